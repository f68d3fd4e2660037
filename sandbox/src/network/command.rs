//! A program that runs in a namespace, and does not outlive this process.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    ops::{Deref, DerefMut},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Namespace, NetworkError};
use crate::packages;

/// A program to run in a namespace; in the manner of [`std::process::Command`], but by value.
///
/// It gets a mount namespace of its own, with the network namespace's `/sys`. The mounts of this process stay as they are.
#[derive(Debug)]
pub struct Command {
    namespace: Namespace,
    program: OsString,
    command: std::process::Command,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Command {
    pub(super) fn new(namespace: Namespace, program: &OsStr) -> Self {
        // It kills the program with this process, also when that is killed itself: otherwise the program would
        // go on, and keep its namespace.
        let mut command = std::process::Command::new(packages::find("setpriv").unwrap_or_else(|| "setpriv".into()));
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(packages::find(program).unwrap_or_else(|| program.into()));
        Self { namespace, program: program.into(), command, files: BTreeMap::new() }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of the environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Starts from an empty environment, without this process's.
    pub fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets where standard input comes from.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Sets where standard output goes.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Sets where standard error goes.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// Puts the program into a process group of its own, so that a terminal's Ctrl-C does not reach it.
    pub fn own_process_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Lets the program see these contents in the place of the file at `path`, which must exist (a link is followed).
    pub fn file(mut self, path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.into(), contents.into());
        self
    }

    /// Lets the program resolve these names, and `localhost`, and no other: replaces `/etc/hosts`, `/etc/resolv.conf` and
    /// what `/etc/nsswitch.conf` says of hosts.
    pub fn names<'a>(mut self, names: impl IntoIterator<Item = (&'a str, IpAddr)>) -> Self {
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for (name, address) in names {
            // Writing to a string cannot fail.
            writeln!(hosts, "{address} {name}").ok();
        }
        self = self
            .file("/etc/hosts", hosts)
            // Nobody listens there: a name that is not listed is refused at once, not after a timeout.
            .file("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
        // Where the host asks systemd-resolved first, that would answer from outside of the namespace.
        if let Ok(switch) = fs::read_to_string("/etc/nsswitch.conf") {
            let others = switch.lines().filter(|line| !line.trim_start().starts_with("hosts:"));
            let switch = others.chain(["hosts: files dns"]).flat_map(|line| [line, "\n"]).collect::<String>();
            self = self.file("/etc/nsswitch.conf", switch);
        }
        self
    }

    /// Starts the program, which is killed when the returned handle is dropped. Standard streams that were not set
    /// are this process's.
    ///
    /// # Errors
    /// When the namespace, a file or the program is not there.
    pub fn spawn(self) -> Result<Process, NetworkError> {
        let (send, receive) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        // The kernel counts the end of the thread that started a program as its parent's death, so this one stays.
        thread::Builder::new()
            .name("process".into())
            .spawn(move || {
                send.send(self.namespace.clone().enter_this_thread().and_then(|()| self.start())).ok();
                released.recv().ok();
            })
            .map_err(NetworkError::Thread)?;
        let child = receive.recv().map_err(|error| NetworkError::Thread(io::Error::other(error)))??;
        Ok(Process { child, _parent: release })
    }

    /// Runs the program to its end. Standard streams that were not set are this process's.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn status(self) -> Result<ExitStatus, NetworkError> {
        let program = self.program.to_string_lossy().into_owned();
        self.spawn()?.wait().map_err(|source| NetworkError::Spawn { program, source })
    }

    /// Runs the program to its end, and collects what it wrote to its standard output and standard error. Standard
    /// input is empty.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn output(self) -> Result<Output, NetworkError> {
        let program = self.program.to_string_lossy().into_owned();
        let command = self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let namespace = command.namespace.clone();
        // That thread stays until the program ends: see `spawn`.
        namespace
            .enter(|| command.start().map(Child::wait_with_output))??
            .map_err(|source| NetworkError::Spawn { program, source })
    }

    /// Starts the program on the calling thread, which is in the network namespace and nobody else's.
    fn start(mut self) -> Result<Child, NetworkError> {
        let spawn_error = |source| NetworkError::Spawn { program: self.program.to_string_lossy().into_owned(), source };
        if packages::find(&self.program).is_none() {
            return Err(spawn_error(io::ErrorKind::NotFound.into()));
        }
        mount_over(&self.files)?;
        let child = self.command.spawn().map_err(spawn_error)?;
        wait_for_program(&child, self.command.get_program());
        Ok(child)
    }
}

/// Waits until `setpriv` has become the program: before that the program's end with this process is not yet arranged.
fn wait_for_program(child: &Child, setpriv: &OsStr) {
    let Ok(setpriv) = fs::canonicalize(setpriv) else { return };
    let running = PathBuf::from(format!("/proc/{}/exe", child.id()));
    // Of a program that has ended it cannot be read.
    let mut waits = 0..1000;
    while waits.next().is_some() && fs::read_link(&running).is_ok_and(|program| program == setpriv) {
        thread::sleep(Duration::from_micros(500));
    }
}

/// Gives the calling thread a mount namespace of its own, with these files over others and the network namespace's `/sys`.
pub(super) fn mount_over(files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(), NetworkError> {
    const NOTHING: Option<&str> = None;
    let error = |path: &Path, source: io::Error| NetworkError::Mount { path: path.into(), source };
    let (root, sys) = (Path::new("/"), Path::new("/sys"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;

    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| NetworkError::Namespace { action: "make a mount namespace", source: errno.into() })?;
    mount(NOTHING, root, NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
        .map_err(|errno| error(root, errno.into()))?;
    // The files' contents need a file system; this one is seen by nobody else and ends with its last mount.
    mount(Some("tmpfs"), sys, Some("tmpfs"), flags, Some("mode=0755")).map_err(|errno| error(sys, errno.into()))?;
    for (number, (path, contents)) in files.iter().enumerate() {
        let file = sys.join(number.to_string());
        fs::write(&file, contents)
            .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)))
            .and_then(|()| Ok(mount(Some(&file), path, NOTHING, MsFlags::MS_BIND, NOTHING)?))
            .map_err(|source| error(path, source))?;
    }
    umount2(sys, MntFlags::MNT_DETACH).map_err(|errno| error(sys, errno.into()))?;
    mount(Some("sysfs"), sys, Some("sysfs"), flags, NOTHING).map_err(|errno| error(sys, errno.into()))
}

/// A running program. Dropped, it is killed and waited for; it is killed too when this process ends in any way, from the
/// moment that there is this handle. What the program itself started is its own affair.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Lets the thread go that the kernel takes for the program's parent.
    _parent: mpsc::Sender<()>,
}

impl Process {
    /// Sends the program a signal, unless it has been waited for.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // After the wait the number may be another process's.
        if self.child.try_wait()?.is_some() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither fails for a program that has been waited for.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::warn!(pid = self.child.id(), %error, "cannot end a program of the sandbox");
        }
    }
}
