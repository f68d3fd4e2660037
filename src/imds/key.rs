//! The session keys' file: 0600 in the state directory, so that tokens outlive a restart.
//!
//! Owns its form (when the newer key was made, that key, the older one if there is one) and the change of keys. Daemons
//! that overlap share it: each reads it once a minute, and replaces it only while it holds the directory's lock.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::session::{KEY_LENGTH, SessionKey, SessionKeys};
use crate::clock;

const FILE: &str = "session.key";
const NEW_FILE: &str = "session.new";
/// What there may be of them in the state directory.
pub const FILES: [&str; 2] = [FILE, NEW_FILE];
/// How often the file is read: well within the time that a new key takes to settle.
const INTERVAL: Duration = Duration::from_secs(60);
/// How often, and how long after one another, a lock is tried for that another daemon holds.
const LOCK_TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A time and two keys.
const LARGEST: usize = 8 + 2 * KEY_LENGTH;

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
    /// Others can read the keys, or made them.
    #[error("--state-dir {directory}: {FILE} can be read by others than us, or is not ours; remove it")]
    Exposed {
        /// The state directory.
        directory: PathBuf,
    },
    /// Another daemon holds the directory.
    #[error("--state-dir {directory}: is locked by another daemon")]
    Locked {
        /// The state directory.
        directory: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("cannot make a session key: no random bytes to be had")]
    Random,
}

/// The keys in `directory`: made if there are none, changed if it is time.
///
/// # Errors
/// When the directory cannot be used.
pub async fn load(directory: &Path) -> Result<SessionKeys, KeyError> {
    let mut tries = 0;
    loop {
        match load_or_make(directory, clock::now().unix_seconds()) {
            // Another daemon reads some bytes; no thread is kept waiting for it.
            Err(KeyError::Locked { .. }) if tries < LOCK_TRIES => tries += 1,
            loaded => return loaded,
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

fn load_or_make(directory: &Path, now: u64) -> Result<SessionKeys, KeyError> {
    let failed = |what| move |error| KeyError::Io { directory: directory.to_owned(), what, error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create it"))?;
    let held = File::open(directory).map_err(failed("open it"))?;
    held.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => KeyError::Locked { directory: directory.to_owned() },
        TryLockError::Error(error) => failed("lock it")(error),
    })?;
    let path = directory.join(FILE);
    let old = match read(&path).map_err(failed("read the session keys"))? {
        Some(Found::Exposed) => return Err(KeyError::Exposed { directory: directory.to_owned() }),
        Some(Found::Kept(kept)) => Some(kept),
        // A file of another length is what a full disk leaves: tokens made with it are lost either way.
        None => None,
    };
    let new = match &old {
        // Made by a clock that was ahead: they are kept, and their time begins now.
        Some(kept) if kept.made > now => Kept { made: now, newer: kept.newer.clone(), older: kept.older.clone() },
        Some(kept) if !kept.keys().are_due(now) => return Ok(kept.keys()),
        due => {
            let mut newer = Zeroizing::new([0; KEY_LENGTH]);
            rand::fill(&mut *newer).map_err(|_| KeyError::Random)?;
            Kept { made: now, newer, older: due.as_ref().map(|kept| kept.newer.clone()) }
        }
    };
    match (store(&path, &new.bytes()), old) {
        (Ok(()), _) => Ok(new.keys()),
        // Better than none: on a full disk, say.
        (Err(error), Some(old)) => {
            tracing::warn!(%error, "the session keys cannot be changed; they stay in use");
            Ok(old.keys())
        }
        (Err(error), None) => Err(failed("write the session keys")(error)),
    }
}

/// Keeps `keys` those that are in `directory`, and changes them when it is time; never ends.
pub async fn keep(directory: PathBuf, keys: Arc<ArcSwap<SessionKeys>>) {
    let mut was_well = true;
    loop {
        tokio::time::sleep(INTERVAL).await;
        match load(&directory).await {
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

/// What the file holds.
struct Kept {
    made: u64,
    newer: Zeroizing<[u8; KEY_LENGTH]>,
    older: Option<Zeroizing<[u8; KEY_LENGTH]>>,
}

enum Found {
    Kept(Kept),
    Exposed,
}

impl Kept {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (made, keys) = bytes.split_first_chunk()?;
        let (newer, older) = keys.split_first_chunk()?;
        let older = match older {
            [] => None,
            older => Some(Zeroizing::new(older.try_into().ok()?)),
        };
        Some(Self { made: u64::from_be_bytes(*made), newer: Zeroizing::new(*newer), older })
    }

    fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST));
        bytes.extend(self.made.to_be_bytes());
        bytes.extend(self.newer.iter().chain(self.older.iter().flat_map(|older| older.iter())));
        bytes
    }

    fn keys(&self) -> SessionKeys {
        let older = self.older.as_ref().map(|key| SessionKey::new(key));
        SessionKeys { newer: SessionKey::new(&self.newer), made: self.made, older }
    }
}

fn read(path: &Path) -> io::Result<Option<Found>> {
    // Neither a link is followed nor a pipe waited for.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 || metadata.uid() != geteuid().as_raw() {
        return Ok(Some(Found::Exposed));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST + 1));
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Kept::read(&bytes).map(Found::Kept))
}

/// Whole or not at all: a half-written key would be another key after the next restart.
fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_file_name(NEW_FILE);
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
    fn a_clock_that_was_ahead_for_a_while_costs_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let at = |hour| load_or_make(directory.path(), hour * HOUR).unwrap();
        let token = at(100).issue(A, 101 * HOUR, 6 * HOUR);
        let ahead = at(200);
        assert_eq!(ahead.made, 200 * HOUR);
        let back = at(101);
        assert_eq!(back.made, 101 * HOUR);
        assert!(back.verify(token.as_bytes(), A, 101 * HOUR).is_some());
    }

    #[test]
    fn a_directory_that_another_daemon_holds_is_not_waited_for_with_a_thread() {
        let directory = tempfile::tempdir().unwrap();
        let held = File::open(directory.path()).unwrap();
        held.lock().unwrap();
        assert!(matches!(load_or_make(directory.path(), HOUR), Err(KeyError::Locked { .. })));
        drop(held);
        assert!(load_or_make(directory.path(), HOUR).is_ok());
    }

    #[test]
    fn a_file_that_is_no_keys_is_replaced_and_one_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        fs::write(&file, [0; KEY_LENGTH]).unwrap();
        assert!(matches!(load_or_make(directory.path(), HOUR), Err(KeyError::Exposed { .. })));
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(load_or_make(directory.path(), HOUR).unwrap().made, HOUR);
        assert_eq!(fs::metadata(&file).unwrap().len(), 40);
    }
}
