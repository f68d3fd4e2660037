//! A unix socket under a name in the file system, for our own user alone.
//!
//! Owns how the name is had and given up. Invariants: nobody else can connect at any moment; whoever comes finds the one
//! before us or us, since the name changes hands in one step; what is no socket is never replaced, and another's never removed.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// What is at the end of the name of what is to be the socket.
pub const NEW: &str = ".new";
/// The longest name that leaves room for that: the kernel takes 107 bytes.
pub const LONGEST_PATH: usize = 107 - NEW.len();
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A name that we gave to a socket of ours.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// Listens at `path`, and takes it over from whoever has it, in one step. Makes its directory if there is none.
///
/// # Errors
/// When that cannot be had.
pub fn take(path: &Path) -> io::Result<(UnixListener, Name)> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    let new = Path::new(&new);
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    for path in [path, new] {
        if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())));
        }
    }
    remove(new)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode that the socket has.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(new)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = UnixListener::from_std(socket.into())?;
    let identity = identity(fs::symlink_metadata(new));
    fs::rename(new, path)?;
    Ok((listener, Name { path: path.to_owned(), identity }))
}

/// Whether somebody listens at `path`.
pub async fn is_answered(path: &Path) -> bool {
    UnixStream::connect(path).await.is_ok()
}

/// Removes what a process that died left of a socket at `path`.
///
/// # Errors
/// When a file cannot be removed.
pub async fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    if is_socket && !is_answered(path).await { remove(path) } else { Ok(()) }
}

/// Which file it is, whatever it is called.
pub(crate) fn identity(metadata: io::Result<Metadata>) -> Option<(u64, u64)> {
    metadata.ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes a file that may not be there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

// === impl Name ===

impl Name {
    /// Whether the name is still that of our socket: nobody has removed it, or taken it over.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.identity.is_some() && identity(fs::symlink_metadata(&self.path)) == self.identity
    }

    /// Removes it, unless it is another's by now.
    pub fn give_up(self) {
        if self.is_ours() {
            let _gone_or_read_only = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_name_changes_hands_in_one_step_and_who_lost_it_does_not_remove_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/socket");
        let (first, of_first) = take(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(of_first.is_ours() && is_answered(&path).await);
        let (second, of_second) = take(&path).unwrap();
        assert!(!of_first.is_ours() && of_second.is_ours());
        of_first.give_up();
        drop(first);
        assert!(of_second.is_ours() && is_answered(&path).await);
        drop(second);
        assert!(!is_answered(&path).await, "a dead one's is there and not answered");
        of_second.give_up();
        assert!(!path.exists() && fs::read_dir(path.parent().unwrap()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "another's").unwrap();
        assert_eq!(take(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
    }

    #[tokio::test]
    async fn the_longest_path_can_be_had() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().to_str().unwrap();
        let path = |length| PathBuf::from(format!("{directory}/{}", "x".repeat(length - directory.len() - 1)));
        take(&path(LONGEST_PATH)).unwrap();
        take(&path(LONGEST_PATH + 1)).unwrap_err();
    }
}
