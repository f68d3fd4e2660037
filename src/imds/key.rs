//! The session keys' file: 0600 in the state directory, so that tokens outlive a restart.
//!
//! Owns its form (when the newer key was made, that key, the older one if there is one) and the change of keys. Daemons
//! that overlap share it: each reads it once a minute, and replaces it only while it holds the directory's lock.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::session::{KEY_LENGTH, SessionKey, SessionKeys};
use crate::clock;

const FILE: &str = "session.key";
/// How often the file is read: well within the time that a new key takes to settle.
const INTERVAL: Duration = Duration::from_secs(60);

const TIME_LENGTH: usize = 8;
const ONE_KEY: usize = TIME_LENGTH + KEY_LENGTH;
const TWO_KEYS: usize = ONE_KEY + KEY_LENGTH;

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Something cannot be read or written.
    #[error("--state-dir {directory}: cannot {what}: {error}")]
    Io {
        /// The state directory.
        directory: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Others can read the keys.
    #[error("--state-dir {directory}: {FILE} can be read by others than its owner; remove it")]
    Exposed {
        /// The state directory.
        directory: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("cannot make a session key: no random bytes to be had")]
    Random,
}

/// The keys in `directory` at `now` (seconds since the Unix epoch): made if there are none, changed if it is time.
///
/// # Errors
/// When the directory cannot be used.
pub fn load_or_make(directory: &Path, now: u64) -> Result<SessionKeys, KeyError> {
    let failed = |what| move |error| KeyError::Io { directory: directory.to_owned(), what, error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create it"))?;
    let held = File::open(directory).map_err(failed("open it"))?;
    held.lock().map_err(failed("lock it"))?;
    let path = directory.join(FILE);
    let old = match load(&path).map_err(failed("read the session keys"))? {
        Some(Loaded::Exposed) => return Err(KeyError::Exposed { directory: directory.to_owned() }),
        Some(Loaded::Keys(bytes)) => Some(bytes),
        // A file of another length is what a full disk leaves: tokens made with it are lost either way.
        None => None,
    };
    if let Some(keys) = old.as_ref().and_then(|bytes| keys(bytes))
        && !keys.are_due(now)
    {
        return Ok(keys);
    }
    let mut new = Zeroizing::new(Vec::with_capacity(TWO_KEYS));
    new.extend(now.to_be_bytes());
    new.resize(ONE_KEY, 0);
    rand::fill(&mut new[TIME_LENGTH..]).map_err(|_| KeyError::Random)?;
    new.extend(old.iter().flat_map(|bytes| &bytes[TIME_LENGTH..ONE_KEY]));
    store(&path, &new).map_err(failed("write the session keys"))?;
    keys(&new).ok_or(KeyError::Random)
}

/// Keeps `keys` those that are in `directory`, and changes them when it is time; never ends.
pub async fn keep(directory: PathBuf, keys: Arc<ArcSwap<SessionKeys>>) {
    let mut was_well = true;
    loop {
        tokio::time::sleep(INTERVAL).await;
        // A file of some bytes; the lock is held for as long as that takes.
        match load_or_make(&directory, clock::now().unix_seconds()) {
            Ok(loaded) => {
                keys.store(Arc::new(loaded));
                was_well = true;
            }
            Err(error) => {
                if std::mem::replace(&mut was_well, false) {
                    tracing::warn!("the session keys stay as they are: {error}");
                }
            }
        }
    }
}

enum Loaded {
    Keys(Zeroizing<Vec<u8>>),
    Exposed,
}

fn load(path: &Path) -> io::Result<Option<Loaded>> {
    let mut file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        return Ok(Some(Loaded::Exposed));
    }
    let Some(length) = [ONE_KEY, TWO_KEYS].into_iter().find(|length| metadata.len() == *length as u64) else {
        return Ok(None);
    };
    let mut bytes = Zeroizing::new(vec![0; length]);
    file.read_exact(&mut bytes)?;
    Ok(Some(Loaded::Keys(bytes)))
}

fn keys(bytes: &[u8]) -> Option<SessionKeys> {
    let (made, keys) = bytes.split_first_chunk()?;
    let (newer, older) = keys.split_first_chunk()?;
    let older = older.try_into().ok().map(SessionKey::new);
    Some(SessionKeys { newer: SessionKey::new(newer), made: u64::from_be_bytes(*made), older })
}

/// Whole or not at all: a half-written key would be another key after the next restart.
fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::remove_file(&temporary).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const HOUR: u64 = 3600;

    #[test]
    fn keys_change_and_two_of_them_are_good_whoever_changes_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |hour| load_or_make(directory.path(), hour * HOUR).unwrap();
        let (old, new) = (at(100), at(101));
        let token = old.issue(A, 101 * HOUR, 6 * HOUR);
        assert!(new.older.is_none() && new.verify(token.as_bytes(), A, 101 * HOUR).is_some());
        let last = old.issue(A, 112 * HOUR, 6 * HOUR);
        let both = [at(112), at(112)];
        for keys in &both {
            assert_eq!(keys.made, 112 * HOUR, "changed once");
            assert!(keys.verify(last.as_bytes(), A, 118 * HOUR - 1).is_some());
        }
        let token = both[0].issue(A, 113 * HOUR, 6 * HOUR);
        assert!(both[1].verify(token.as_bytes(), A, 113 * HOUR).is_some());
        assert!(at(124).verify(last.as_bytes(), A, 117 * HOUR).is_none(), "gone with the second change");
    }

    #[test]
    fn a_file_that_is_no_keys_is_replaced_and_one_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        fs::write(&file, [0; KEY_LENGTH]).unwrap();
        assert!(matches!(load_or_make(directory.path(), HOUR), Err(KeyError::Exposed { .. })));
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(load_or_make(directory.path(), HOUR).unwrap().made, HOUR);
        assert_eq!(fs::metadata(&file).unwrap().len(), ONE_KEY as u64);
    }
}
