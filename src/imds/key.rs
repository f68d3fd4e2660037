//! The session keys' file: 0600 in the state directory, so that tokens outlive a restart.
//!
//! Owns its form (when the newer key was made, that key, the older one if there is one) and the change of keys. Daemons
//! that overlap share it: each reads it once a minute, which needs no lock, for it is replaced as a whole, and replaces it
//! only while it holds the lock for that. Where nothing can be written, keys are made all the same and live in memory until it
//! can: a full disk must not cost a node's pods their credentials.

use std::{
    fs::{self, DirBuilder, OpenOptions, TryLockError},
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
use crate::{
    clock,
    metrics::{Metrics, StateUse},
};

const FILE: &str = "session.key";
const NEW_FILE: &str = "session.new";
const LOCK: &str = "session.lock";
/// What there may be of them in the state directory.
pub const FILES: [&str; 3] = [FILE, NEW_FILE, LOCK];
/// How often the file is read: well within the time that a new key takes to settle.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same while keys are in no file.
const INTERVAL_UNSAVED: Duration = Duration::from_secs(2);
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
    /// Another daemon holds the lock.
    #[error("--state-dir {directory}: {LOCK} is held by another daemon")]
    Locked {
        /// The state directory.
        directory: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("cannot make a session key: no random bytes to be had")]
    Random,
}

/// The session keys of a state directory.
#[derive(Debug)]
pub struct KeyFile {
    directory: PathBuf,
    /// Keys in force that are in no file yet.
    unsaved: Option<Kept>,
    /// Those that were in the file.
    saved: Option<Kept>,
    metrics: Arc<Metrics>,
}

// === impl KeyFile ===

impl KeyFile {
    /// The keys in `directory`, or those to be.
    #[must_use]
    pub fn new(directory: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self { directory, unsaved: None, saved: None, metrics }
    }

    /// The keys: made if there are none, changed if it is time.
    ///
    /// # Errors
    /// When the directory cannot be used for a reason that an operator must mend. A disk that is full, read-only or broken
    /// is none.
    pub async fn load(&mut self) -> Result<SessionKeys, KeyError> {
        let mut tries = 0;
        loop {
            match self.load_or_make(clock::now().unix_seconds()) {
                // Another daemon writes some bytes; no thread is kept waiting for it.
                Err(KeyError::Locked { .. }) if tries < LOCK_TRIES => tries += 1,
                loaded => return loaded,
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Keeps `keys` those that are in the directory, and changes them when it is time; never ends.
    pub async fn keep(mut self, keys: Arc<ArcSwap<SessionKeys>>) {
        let mut was_well = true;
        loop {
            tokio::time::sleep(if self.unsaved.is_some() { INTERVAL_UNSAVED } else { INTERVAL }).await;
            match self.load().await {
                Ok(loaded) => {
                    keys.store(Arc::new(loaded));
                    was_well = true;
                }
                Err(error) => {
                    self.metrics.lacks_state_dir(StateUse::SessionKeys, true);
                    if std::mem::replace(&mut was_well, false) {
                        tracing::warn!("the session keys stay as they are: {error}");
                    }
                }
            }
        }
    }

    fn load_or_make(&mut self, now: u64) -> Result<SessionKeys, KeyError> {
        let found = match self.read() {
            Ok(found) => found,
            Err(error) if error.is_of_the_disk() => None,
            Err(error) => return Err(error),
        };
        let kept = match found {
            Some(kept) if !kept.changes(now) => kept,
            found => match self.write(now) {
                Ok(kept) => kept,
                Err(error) if error.is_of_the_disk() || found.is_some() && matches!(error, KeyError::Io { .. }) => {
                    return self.unsaved(found, now, &error);
                }
                Err(error) => return Err(error),
            },
        };
        self.unsaved = None;
        self.saved = Some(kept.clone());
        if self.metrics.lacks_state_dir(StateUse::SessionKeys, false) {
            tracing::info!("the session keys are in the state directory");
        }
        Ok(kept.keys())
    }

    /// The keys in force while nothing can be written: those of the file, which other daemons know too, else our own.
    fn unsaved(&mut self, found: Option<Kept>, now: u64, why: &KeyError) -> Result<SessionKeys, KeyError> {
        if !self.metrics.lacks_state_dir(StateUse::SessionKeys, true) {
            let then = if found.is_some() { "they stay in use" } else { "tokens made with them end with this process" };
            tracing::warn!("the session keys cannot be kept, {then}: {why}");
        }
        if let Some(found) = found {
            return Ok(found.keys());
        }
        let unsaved = match self.ours() {
            Some(ours) if !ours.changes(now) => ours.clone(),
            before => Kept::after(before, now)?,
        };
        Ok(self.unsaved.insert(unsaved).keys())
    }

    fn read(&self) -> Result<Option<Kept>, KeyError> {
        match read(&self.directory.join(FILE)).map_err(self.failed("read the session keys"))? {
            Some(Found::Exposed) => Err(KeyError::Exposed { directory: self.directory.clone() }),
            Some(Found::Kept(kept)) => Ok(Some(kept)),
            // A file of another length is what a full disk leaves: tokens made with it are lost either way.
            None => Ok(None),
        }
    }

    /// Writes keys that are as they should be.
    fn write(&self, now: u64) -> Result<Kept, KeyError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(self.failed("create it"))?;
        let mut lock = OpenOptions::new();
        lock.create(true).truncate(false).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let lock = lock.open(self.directory.join(LOCK)).map_err(self.failed("lock the session keys"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => KeyError::Locked { directory: self.directory.clone() },
            TryLockError::Error(error) => self.failed("lock the session keys")(error),
        })?;
        // Another daemon may have been there first.
        let kept = match self.read()? {
            Some(kept) if !kept.changes(now) => return Ok(kept),
            None if let Some(ours) = self.ours().filter(|ours| !ours.changes(now)) => ours.clone(),
            found => Kept::after(found.as_ref().or(self.ours()), now)?,
        };
        store(&self.directory.join(FILE), &kept.bytes()).map_err(self.failed("write the session keys"))?;
        Ok(kept)
    }

    /// The keys in force: where the file is gone, tokens made with them go on.
    fn ours(&self) -> Option<&Kept> {
        self.unsaved.as_ref().or(self.saved.as_ref())
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> KeyError {
        move |error| KeyError::Io { directory: self.directory.clone(), what, error }
    }
}

// === impl KeyError ===

impl KeyError {
    /// Whether the disk is at fault, and not whoever set up the directory.
    fn is_of_the_disk(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let Self::Io { error, .. } = self else { return false };
        matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
            || error.raw_os_error() == Some(nix::libc::EIO)
    }
}

/// What the file holds.
#[derive(Clone)]
struct Kept {
    made: u64,
    newer: Zeroizing<[u8; KEY_LENGTH]>,
    older: Option<Zeroizing<[u8; KEY_LENGTH]>>,
}

enum Found {
    Kept(Kept),
    Exposed,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Kept {
    /// Whether others must take their place: they are due, or were made by a clock that was ahead.
    fn changes(&self, now: u64) -> bool {
        self.made > now || self.keys().are_due(now)
    }

    /// What takes the place of `before`.
    fn after(before: Option<&Self>, now: u64) -> Result<Self, KeyError> {
        if let Some(kept) = before.filter(|kept| kept.made > now) {
            // They are kept, and their time begins now.
            return Ok(Self { made: now, ..kept.clone() });
        }
        let mut newer = Zeroizing::new([0; KEY_LENGTH]);
        rand::fill(&mut *newer).map_err(|_| KeyError::Random)?;
        Ok(Self { made: now, newer, older: before.map(|kept| kept.newer.clone()) })
    }

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

    const A: crate::identity::Peer = crate::identity::Peer::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    const HOUR: u64 = 3600;

    fn file(directory: &Path) -> KeyFile {
        KeyFile::new(directory.to_owned(), Arc::new(Metrics::new().unwrap()))
    }

    #[test]
    fn keys_change_and_two_of_them_are_good_whoever_changes_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |hour| file(directory.path()).load_or_make(hour * HOUR).unwrap();
        let (old, new) = (at(100), at(101));
        let token = old.issue(&A, 101 * HOUR, 6 * HOUR);
        assert!(new.older.is_none() && new.verify(token.as_bytes(), &A, 101 * HOUR).is_some());
        let last = old.issue(&A, 112 * HOUR, 6 * HOUR);
        let both = [at(112), at(112)];
        for keys in &both {
            assert_eq!(keys.made, 112 * HOUR, "changed once");
            assert!(keys.verify(last.as_bytes(), &A, 118 * HOUR - 1).is_some());
        }
        let token = both[0].issue(&A, 113 * HOUR, 6 * HOUR);
        assert!(both[1].verify(token.as_bytes(), &A, 113 * HOUR).is_some());
        assert!(at(124).verify(last.as_bytes(), &A, 117 * HOUR).is_none(), "gone with the second change");
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_while_costs_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let at = |hour| file(directory.path()).load_or_make(hour * HOUR).unwrap();
        let token = at(100).issue(&A, 101 * HOUR, 6 * HOUR);
        let ahead = at(200);
        assert_eq!(ahead.made, 200 * HOUR);
        let back = at(101);
        assert_eq!(back.made, 101 * HOUR);
        assert!(back.verify(token.as_bytes(), &A, 101 * HOUR).is_some());
    }

    #[test]
    fn a_lock_that_another_daemon_holds_is_not_waited_for_with_a_thread_and_not_needed_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let held = fs::File::create(directory.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        assert!(matches!(file(directory.path()).load_or_make(HOUR), Err(KeyError::Locked { .. })));
        drop(held);
        assert!(file(directory.path()).load_or_make(HOUR).is_ok());
        let held = fs::File::open(directory.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        assert!(file(directory.path()).load_or_make(HOUR).is_ok());
    }

    #[test]
    fn keys_that_could_not_be_written_are_the_first_that_are() {
        let directory = tempfile::tempdir().unwrap();
        let full = KeyError::Io { directory: "/".into(), what: "write", error: io::ErrorKind::StorageFull.into() };
        let mut ours = file(directory.path());
        let keys = ours.unsaved(None, 100 * HOUR, &full).unwrap();
        let token = keys.issue(&A, 100 * HOUR, 6 * HOUR);
        let again = ours.unsaved(None, 101 * HOUR, &full).unwrap();
        assert!(again.verify(token.as_bytes(), &A, 101 * HOUR).is_some(), "they stay");
        let changed = ours.unsaved(None, 113 * HOUR, &full).unwrap();
        assert_eq!(changed.made, 113 * HOUR, "and are changed in time");
        assert!(changed.verify(keys.issue(&A, 111 * HOUR, 6 * HOUR).as_bytes(), &A, 113 * HOUR).is_some());

        let written = ours.load_or_make(114 * HOUR).unwrap();
        assert_eq!(written.made, 113 * HOUR);
        assert!(ours.unsaved.is_none());
        let token = changed.issue(&A, 114 * HOUR, 6 * HOUR);
        let read = file(directory.path()).load_or_make(114 * HOUR).unwrap();
        assert!(read.verify(token.as_bytes(), &A, 114 * HOUR).is_some());

        // Whoever was first is right: other daemons know those.
        let mut late = file(directory.path());
        late.unsaved(None, 114 * HOUR, &full).unwrap();
        assert!(late.load_or_make(114 * HOUR).unwrap().verify(token.as_bytes(), &A, 114 * HOUR).is_some());
    }

    #[test]
    fn keys_whose_file_is_gone_stay_in_force_whether_they_can_be_written_again_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let full = KeyError::Io { directory: "/".into(), what: "write", error: io::ErrorKind::StorageFull.into() };
        let mut ours = file(&path);
        let token = ours.load_or_make(100 * HOUR).unwrap().issue(&A, 100 * HOUR, 6 * HOUR);
        let is_good = |keys: SessionKeys| keys.verify(token.as_bytes(), &A, 101 * HOUR).is_some();
        fs::remove_dir_all(&path).unwrap();
        assert!(is_good(ours.unsaved(None, 101 * HOUR, &full).unwrap()));
        assert!(is_good(ours.load_or_make(101 * HOUR).unwrap()), "written again");
        fs::remove_dir_all(&path).unwrap();
        assert!(is_good(ours.load_or_make(101 * HOUR).unwrap()));
        assert!(is_good(file(&path).load_or_make(101 * HOUR).unwrap()), "the next daemon knows them");
    }

    #[test]
    fn a_file_that_is_no_keys_is_replaced_and_one_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        fs::write(&path, [0; KEY_LENGTH]).unwrap();
        assert!(matches!(file(directory.path()).load_or_make(HOUR), Err(KeyError::Exposed { .. })));
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(file(directory.path()).load_or_make(HOUR).unwrap().made, HOUR);
        assert_eq!(fs::metadata(&path).unwrap().len(), 40);
    }
}
