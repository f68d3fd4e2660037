//! One network namespace, without a name: it lives as long as something refers to it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    panic,
    path::{Path, PathBuf},
    process::{self, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{Command, NetworkError};
use crate::packages;

/// A network namespace. Clones are the same namespace; the kernel removes it, and what is in it, after the last clone, the
/// last process and the last socket in it.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// A new namespace: a loopback link that is down, and nothing else.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new() -> Result<Self, NetworkError> {
        let made = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })?;
        let file = made.map_err(|source| NetworkError::Namespace { action: "make a network namespace", source })?;
        Ok(Self { file: Arc::new(file) })
    }

    /// The namespace's path while this process lives, for other programs (`ip link set eth0 netns PATH`).
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` on a thread of its own in the namespace, and waits for it.
    ///
    /// A socket belongs to the namespace in which it was made, wherever it is used: listen in here, and serve from any
    /// runtime. (Tokio's `TcpSocket::new_v4` may be called here too; its `connect` wants the runtime, outside.)
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic of `work` goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
        on_a_thread(|| {
            self.enter_this_thread()?;
            Ok(work())
        })?
    }

    /// A command that will run in the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.clone(), program.as_ref())
    }

    /// Writes kernel settings of the namespace: names below `/proc/sys/net`, with slashes, and values.
    ///
    /// # Errors
    /// When a setting is unknown or refuses its value.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<(), NetworkError> {
        self.enter(|| {
            // The files show the namespace of the task that opens them.
            settings.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).map_err(|source| NetworkError::Sysctl { path, value: (*value).into(), source })
            })
        })?
    }

    /// Runs a program of the system in the namespace, with `input`, for its effect.
    pub(super) fn run(&self, program: &'static str, arguments: &[&str], input: &str) -> Result<(), NetworkError> {
        let spawn_error = |source| NetworkError::Spawn { program: program.into(), source };
        let path = packages::find(program).ok_or_else(|| spawn_error(io::ErrorKind::NotFound.into()))?;
        let output = self
            .enter(|| {
                let mut child = process::Command::new(path)
                    .args(arguments)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()?;
                if let Some(mut stdin) = child.stdin.take() {
                    // A program that failed early does not read on; its exit status tells.
                    stdin.write_all(input.as_bytes()).ok();
                }
                child.wait_with_output()
            })?
            .map_err(spawn_error)?;
        if output.status.success() {
            return Ok(());
        }
        Err(NetworkError::SetUp { program, reason: one_line(&output.stderr) })
    }

    /// Moves the calling thread, for good: only for threads that are nobody else's.
    pub(super) fn enter_this_thread(&self) -> Result<(), NetworkError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::Namespace { action: "enter a network namespace", source: error.into() })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work);
        spawned.map_err(NetworkError::Thread)?.join().or_else(|payload| panic::resume_unwind(payload))
    })
}

/// One line out of what a program said.
fn one_line(said: &[u8]) -> String {
    String::from_utf8_lossy(said).lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
