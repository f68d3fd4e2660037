//! Cgroups (version 2) of a node: folders as kubelet and systemd make them, and programs in them.
//!
//! A sandbox has a folder of its own in the kernel's one hierarchy, which is what its node takes for the root: programs
//! see it so, by a cgroup namespace that begins there and a mount of it at `/sys/fs/cgroup` that is theirs alone. The machine
//! may itself use version 1.
//!
//! Invariant: the folder ends with its owner, once nothing runs in it.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::network::{Command, Namespace};

/// Enters the cgroup at `$1/$2`, where `$1` is the node's root, and goes on to the rest of its arguments, the first of which
/// begin a cgroup namespace or do nothing. The mounts that it has are its own.
const ENTER: &str = r#"
    set -e
    root=$1 path=$2
    shift 2
    echo 0 > "$root/cgroup.procs"
    exec unshare --cgroup sh -c '
        set -e
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        echo 0 > "/sys/fs/cgroup/$1/cgroup.procs"
        shift
        exec "$@"
    ' sh "$path" "$@"
"#;

/// A node's cgroups. Dropped, they are removed.
#[derive(Debug)]
pub struct Cgroups {
    /// The hierarchy, whose mount is nobody else's.
    mount: File,
    name: String,
}

impl Cgroups {
    /// A folder for a node's, with nothing in it.
    ///
    /// # Errors
    /// When the kernel has no cgroups of version 2, or refuses.
    pub fn new() -> io::Result<Self> {
        let mount = hierarchy()?;
        let random = tempfile::Builder::new().prefix("kube2irsa-sandbox-").tempdir()?;
        let name = random.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cgroups = Self { mount, name };
        fs::create_dir(cgroups.root())?;
        Ok(cgroups)
    }

    /// The folder, for this process and others while it lives.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", process::id(), self.mount.as_raw_fd())).join(&self.name)
    }

    /// Makes a folder in it, with those above.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.root().join(path))
    }

    /// Removes a folder with all below, which must be empty of processes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        remove(&self.root().join(path))
    }

    /// A program in a folder, which sees the node's root at `/sys/fs/cgroup`, as in the node's own cgroup namespace.
    #[must_use]
    pub fn command(&self, network: &Namespace, path: &str, program: &Path) -> Command {
        self.enter(network, path, &["env"]).arg(program)
    }

    /// The same in a cgroup namespace that begins with the folder: as in a container that is not privileged, with the node's
    /// `/sys/fs/cgroup` mounted.
    #[must_use]
    pub fn command_as_container(&self, network: &Namespace, path: &str, program: &Path) -> Command {
        self.enter(network, path, &["unshare", "--cgroup", "--"]).arg(program)
    }

    fn enter(&self, network: &Namespace, path: &str, then: &[&str]) -> Command {
        network.command("sh").args(["-c", ENTER, "sh"]).arg(self.root()).arg(path).args(then)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // A process that was killed is gone from its cgroup some time after it was waited for.
        for _ in 0..50 {
            if remove(&self.root()).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        tracing::warn!(name = self.name, "cannot remove the sandbox's cgroups");
    }
}

/// The hierarchy of version 2, mounted for nobody else: the mount ends with the file.
fn hierarchy() -> io::Result<File> {
    let mounted = || {
        const NOTHING: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
        mount(Some("cgroup2"), "/sys", Some("cgroup2"), MsFlags::empty(), NOTHING)?;
        File::open("/sys")
    };
    let thread = thread::Builder::new().name("cgroups".into()).spawn(mounted)?;
    thread.join().map_err(|_| io::Error::other("a thread panicked"))?
}

/// The kernel's files in a folder go with it.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
