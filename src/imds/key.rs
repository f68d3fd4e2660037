//! The session key's file: 0600 in the state directory, so that tokens outlive a restart.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::session::{KEY_LENGTH, SessionKey};

const FILE: &str = "session.key";

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
    /// Others can read the key.
    #[error("--state-dir {directory}: {FILE} can be read by others than its owner; remove it")]
    Exposed {
        /// The state directory.
        directory: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("cannot make a session key: no random bytes to be had")]
    Random,
}

/// The key in `directory`, made if it is not there.
///
/// # Errors
/// When the directory cannot be used.
pub fn load_or_make(directory: &Path) -> Result<SessionKey, KeyError> {
    let failed = |what| move |error| KeyError::Io { directory: directory.to_owned(), what, error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create it"))?;
    let path = directory.join(FILE);
    match load(&path).map_err(failed("read the session key"))? {
        Some(Loaded::Key(key)) => Ok(SessionKey::new(&key)),
        Some(Loaded::Exposed) => Err(KeyError::Exposed { directory: directory.to_owned() }),
        // A file of another length is what a full disk leaves: tokens made with it are lost either way.
        None => {
            let mut key = Zeroizing::new([0; KEY_LENGTH]);
            rand::fill(&mut *key).map_err(|_| KeyError::Random)?;
            store(&path, &key).map_err(failed("write the session key"))?;
            Ok(SessionKey::new(&key))
        }
    }
}

enum Loaded {
    Key(Zeroizing<[u8; KEY_LENGTH]>),
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
    if metadata.len() != KEY_LENGTH as u64 {
        return Ok(None);
    }
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    file.read_exact(&mut *key)?;
    Ok(Some(Loaded::Key(key)))
}

/// Whole or not at all: a half-written key would be another key after the next restart.
fn store(path: &Path, key: &[u8; KEY_LENGTH]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::remove_file(&temporary).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(key)?;
    fs::rename(&temporary, path)
}
