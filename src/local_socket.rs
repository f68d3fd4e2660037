//! A unix socket under a name in the file system, for our own user alone.
//!
//! Owns how the name is had and given up. Invariants: nobody else can connect at any moment; whoever comes finds the one
//! before us or us, since the name changes hands in one step; what is no socket is never replaced, and another's never removed.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::clock;

/// What is at the end of the name of what is to be the socket, after a number that nobody else has: all daemons of a node
/// may have the same process id, each in its container.
const NEW: &str = ".new";
/// Hexadecimal digits of that number.
const DIGITS: usize = 6;
/// The longest name that leaves room for both: the kernel takes 107 bytes.
pub const LONGEST_PATH: usize = 107 - NEW.len() - DIGITS - ".".len();
/// What was to be the socket for so long will not be: who made it died.
const LEFT: Duration = Duration::from_secs(60);
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
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())));
    }
    remove_leftovers(path, LEFT)?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{:0DIGITS$x}{NEW}", fastrand::u32(..1 << (4 * DIGITS))));
    let new = Path::new(&new);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode that the socket has.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(new)?)?;
    let taken = listen(socket, new).and_then(|taken| fs::rename(new, path).map(|()| taken));
    if taken.is_err() {
        remove(new)?;
    }
    let (listener, identity) = taken?;
    Ok((listener, Name { path: path.to_owned(), identity }))
}

/// Listens, and says which file the socket is at its own name.
fn listen(socket: Socket, new: &Path) -> io::Result<(UnixListener, Option<(u64, u64)>)> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(socket.into())?, identity(fs::symlink_metadata(new))))
}

/// Whether somebody listens at `path`, or may.
pub async fn is_answered(path: &Path) -> bool {
    !UnixStream::connect(path).await.is_err_and(|error| is_nobody(&error))
}

/// Whether an attempt to connect met this because nobody listens. Another error is none of theirs: their queue is full, or we
/// have no descriptors left.
pub(crate) fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, InvalidInput, NotADirectory, NotFound};
    matches!(error.kind(), ConnectionRefused | InvalidInput | NotADirectory | NotFound)
}

/// Removes what a process that died left of a socket at `path`.
///
/// # Errors
/// When a file cannot be removed.
pub async fn remove_dead(path: &Path) -> io::Result<()> {
    remove_leftovers(path, Duration::ZERO)?;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    if is_socket && !is_answered(path).await { remove(path) } else { Ok(()) }
}

/// Removes what was to be a socket at `path` for so long at least. Whoever still meant it to be fails, and tries again.
///
/// # Errors
/// When a file cannot be removed.
pub(crate) fn remove_leftovers(path: &Path, age: Duration) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let now = clock::now().wall;
    // Where nothing can be listed, nothing is found.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let number = file.as_bytes().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_suffix(NEW.as_bytes()));
        let is_new = number
            .and_then(|number| number.strip_prefix(b"."))
            .is_some_and(|number| number.len() == DIGITS && number.iter().all(u8::is_ascii_hexdigit));
        let is_old = |metadata: &Metadata| {
            metadata.modified().is_ok_and(|made| now.duration_since(made).is_ok_and(|passed| passed >= age))
        };
        if is_new && entry.metadata().is_ok_and(|there| there.file_type().is_socket() && is_old(&there)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
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
    use std::{
        os::unix::fs::PermissionsExt as _,
        process::Command,
        sync::{Arc, Barrier},
        time::SystemTime,
    };

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

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_who_take_one_name_at_once_all_have_had_it_and_one_has_it() {
        let directory = tempfile::tempdir().unwrap();
        for _round in 0..50 {
            let path = directory.path().join("socket");
            let start = Arc::new(Barrier::new(4));
            let takers = (0..4).map(|_| {
                let (path, start) = (path.clone(), Arc::clone(&start));
                tokio::task::spawn_blocking(move || {
                    start.wait();
                    take(&path)
                })
            });
            let taken = futures::future::join_all(takers).await;
            let taken = taken.into_iter().map(|taken| taken.unwrap().unwrap()).collect::<Vec<_>>();
            assert_eq!(taken.iter().filter(|(_, name)| name.is_ours()).count(), 1);
            for (listener, name) in taken {
                // Whoever thinks so is the one who is heard.
                if name.is_ours() {
                    let _asks = UnixStream::connect(&path).await.unwrap();
                    tokio::time::timeout(Duration::from_secs(30), listener.accept()).await.unwrap().unwrap();
                }
            }
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[tokio::test]
    async fn a_full_queue_is_that_of_a_living_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (listener, _name) = take(&path).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(is_answered(&path).await);
        remove_dead(&path).await.unwrap();
        assert!(path.exists());
        drop((listener, waiting));
        assert!(!is_answered(&path).await);
        remove_dead(&path).await.unwrap();
        assert!(!path.exists() && !is_answered(&path).await && !is_answered(&path.join("socket")).await);
    }

    #[tokio::test]
    async fn what_who_died_left_is_removed_and_what_is_anothers_or_new_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let of_long_ago = clock::now().wall - 2 * LEFT;
        let socket = |name: &str, made: SystemTime| {
            drop(std::os::unix::net::UnixListener::bind(at(name)).unwrap());
            let times = Command::new("touch").arg("-d").arg(clock::rfc3339(made).unwrap()).arg(at(name)).status();
            assert!(times.unwrap().success());
        };
        for name in ["socket.0a1b2c.new", "other.0a1b2c.new", "socket.0a1b2.new", "socket.0a1b2c", "socketx0a1b2c.new"]
        {
            socket(name, of_long_ago);
        }
        socket("socket.ffffff.new", clock::now().wall);
        fs::write(at("socket.aaaaaa.new"), "another's").unwrap();
        let (_listener, _name) = take(&at("socket")).unwrap();
        let there = || {
            let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names = names.map(|name| name.into_string().unwrap()).collect::<Vec<_>>();
            names.sort();
            names
        };
        let others = [
            "other.0a1b2c.new",
            "socket",
            "socket.0a1b2.new",
            "socket.0a1b2c",
            "socket.aaaaaa.new",
            "socketx0a1b2c.new",
        ];
        assert!(!at("socket.0a1b2c.new").exists() && at("socket.ffffff.new").exists());
        remove_leftovers(&at("socket"), Duration::ZERO).unwrap();
        assert_eq!(there(), others);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "another's").unwrap();
        assert_eq!(take(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "and nothing is left beside it");
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
