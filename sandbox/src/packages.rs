//! What the sandbox needs from the system it runs on: commands of Debian packages, and root.
//!
//! On a fresh Debian or Ubuntu the missing packages are installed where that is allowed; everywhere else the error
//! is one line that says what to do.

use std::{
    env,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{fcntl::OFlag, unistd};

use crate::userns;

/// Where commands of the administrator are, also when `PATH` leaves them out (as after `su`).
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// What can be missing.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Not root.
    #[error(r#"network namespaces need root: put this before the same command: sudo env "PATH=$PATH" "HOME=$HOME""#)]
    NotRoot,
    /// Commands are missing, and may not or cannot be installed from here.
    #[error("commands are missing ({}): apt-get install {}", commands.join(", "), packages.join(" "))]
    Missing {
        /// The commands that were not found.
        commands: Vec<&'static str>,
        /// The Debian packages that have them.
        packages: Vec<&'static str>,
    },
    /// The installation failed.
    #[error("apt-get did not get {}: {reason}", packages.join(" "))]
    Install {
        /// The Debian packages that were asked for.
        packages: Vec<&'static str>,
        /// The last line that apt-get said.
        reason: String,
    },
    /// Another process's installation could not be waited for.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A command, and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// The command's name, as in `PATH`.
    pub command: &'static str,
    /// The package's name.
    pub package: &'static str,
}

/// What [`Network`](crate::network::Network) and the daemon in it run.
pub const NETWORK: [Package; 5] = [
    Package { command: "ip", package: "iproute2" },
    Package { command: "iptables-restore", package: "iptables" },
    Package { command: "ip6tables-restore", package: "iptables" },
    // The daemon's, which goes on without it, and its tests'.
    Package { command: "nft", package: "nftables" },
    Package { command: "setpriv", package: "util-linux" },
];

/// The command line client of AWS, for those who ask for it.
pub const AWS_CLI: Package = Package { command: "aws", package: "awscli" };

/// Refuses to go on without root.
///
/// # Errors
/// [`PackageError::NotRoot`] for any other user.
pub fn require_root() -> Result<(), PackageError> {
    if unistd::geteuid().is_root() { Ok(()) } else { Err(PackageError::NotRoot) }
}

/// Root of a user namespace without other users owns none of the system's files.
fn may_install() -> bool {
    unistd::geteuid().is_root() && !userns::is_alone()
}

/// Sees to it that these commands are there: installs what is missing as root where there is `apt-get`, and tells
/// `progress` a line before each step that takes long. Processes that do so at the same time wait for each other.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn ensure(packages: &[Package], progress: &mut dyn FnMut(&str)) -> Result<(), PackageError> {
    let missing = missing(packages, &directories());
    if missing.is_empty() {
        return Ok(());
    }
    let Some(apt) = find("apt-get").filter(|_| may_install()) else {
        return Err(missing_error(&missing));
    };
    let path = env::temp_dir().join("kube2irsa-sandbox-packages.lock");
    let _lock = lock(&path).map_err(|source| PackageError::Lock { path, source })?;
    // Another process may have installed them while this one waited.
    let missing = self::missing(packages, &directories());
    if missing.is_empty() {
        return Ok(());
    }
    install(&apt, &missing, progress)?;
    match self::missing(packages, &directories()) {
        left if left.is_empty() => Ok(()),
        left => Err(missing_error(&left)),
    }
}

/// The folder of a Debian package's files, unpacked into `folder` and not installed: a service that it has is not started,
/// and what else it wants to have installed is not. What is there already is not fetched again.
///
/// # Errors
/// When there is no `apt-get`, or it does not get the package.
pub fn unpacked(package: &'static str, folder: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, PackageError> {
    let path = folder.join(format!("{package}.lock"));
    let _lock = lock(&path).map_err(|source| PackageError::Lock { path, source })?;
    let files = folder.join(package);
    if files.is_dir() {
        return Ok(files);
    }
    progress(&format!("fetching {package}"));
    let failed = |reason| PackageError::Install { packages: vec![package], reason };
    let fetched = tempfile::tempdir_in(folder).map_err(|error| failed(error.to_string()))?;
    let apt = find("apt-get").ok_or_else(|| failed("there is no apt-get".to_owned()))?;
    let fetch = || run_in(fetched.path(), &apt, &["-qq", "download", package]);
    // Lists that are older than the archive name files that are gone.
    if fetch().is_err() {
        let _ = run_apt(&apt, &["update"]);
        fetch().map_err(failed)?;
    }
    let mut archives = fetched.path().read_dir().into_iter().flatten().flatten().map(|file| file.path());
    let archive = archives.find(|file| file.extension() == Some("deb".as_ref()));
    let archive = archive.ok_or_else(|| failed("nothing was fetched".to_owned()))?;
    let unpacked = fetched.path().join("files");
    let [archive, to] = [&archive, &unpacked].map(|path| path.as_os_str());
    run_in(fetched.path(), Path::new("dpkg-deb"), &["--extract".as_ref(), archive, to]).map_err(failed)?;
    // All of it is there, or nothing.
    std::fs::rename(&unpacked, &files).map_err(|error| failed(error.to_string()))?;
    Ok(files)
}

/// The path of a command: of `PATH`, or of the system's own directories. A path stays as it is.
#[must_use]
pub fn find(command: impl AsRef<OsStr>) -> Option<PathBuf> {
    find_in(command.as_ref(), &directories())
}

fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(SYSTEM_DIRECTORIES.map(PathBuf::from)).collect()
}

fn find_in(command: &OsStr, directories: &[PathBuf]) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    // A name with a slash is a path already.
    if Path::new(command).components().nth(1).is_some() {
        return Some(PathBuf::from(command)).filter(runs);
    }
    directories.iter().map(|directory| directory.join(command)).find(runs)
}

fn missing(packages: &[Package], directories: &[PathBuf]) -> Vec<Package> {
    packages.iter().filter(|package| find_in(package.command.as_ref(), directories).is_none()).copied().collect()
}

/// The packages' names, each once.
fn names(packages: &[Package]) -> Vec<&'static str> {
    let mut names: Vec<_> = packages.iter().map(|package| package.package).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn missing_error(missing: &[Package]) -> PackageError {
    PackageError::Missing {
        commands: missing.iter().map(|package| package.command).collect(),
        packages: names(missing),
    }
}

/// Held until dropped. The temporary directory is everybody's: a link that was planted there is not followed.
fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    file.lock()?;
    Ok(file)
}

fn install(apt: &Path, missing: &[Package], progress: &mut dyn FnMut(&str)) -> Result<(), PackageError> {
    let packages = names(missing);
    progress(&format!("installing {}", packages.join(", ")));
    // Lists that cannot be refreshed may still be good enough.
    if let Err(reason) = run_apt(apt, &["update"]) {
        progress(&format!("apt-get update failed ({reason}); trying with the lists that are there"));
    }
    let arguments: Vec<_> =
        ["install", "--yes", "--no-install-recommends"].iter().chain(packages.iter()).copied().collect();
    run_apt(apt, &arguments).map_err(|reason| PackageError::Install { packages, reason })
}

fn run_apt(apt: &Path, arguments: &[&str]) -> Result<(), String> {
    // An upgrade that runs in the background right after boot is waited for.
    run_in(Path::new("/"), apt, &[&["-qq", "-o", "DPkg::Lock::Timeout=300"], arguments].concat())
}

/// Runs a command in a folder; the last line that it says, where it fails.
fn run_in(folder: &Path, command: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<(), String> {
    let output = Command::new(command)
        .args(arguments)
        .current_dir(folder)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(last.map_or_else(|| output.status.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Package = Package { command: "sh", package: "dash" };
    const ABSENT: Package = Package { command: "no-such-command", package: "no-such-package" };

    #[test]
    fn a_command_is_found_in_the_systems_directories() {
        assert_eq!(find_in("sh".as_ref(), &["/nowhere".into(), "/bin".into()]), Some("/bin/sh".into()));
        assert_eq!(find_in("sh".as_ref(), &["/nowhere".into()]), None);
        assert_eq!(find_in("../bin/sh".as_ref(), &["/bin".into()]), None);
        assert_eq!(find_in("/bin/sh".as_ref(), &[]), Some("/bin/sh".into()));
        // A file that cannot be run is not a command.
        assert_eq!(find_in("passwd".as_ref(), &["/etc".into()]), None);
    }

    #[test]
    fn what_is_there_is_not_installed() {
        ensure(&[SHELL], &mut |line| panic!("{line}")).unwrap();
    }

    #[test]
    fn the_error_is_one_line_that_says_what_to_install() {
        let missing = missing(&[SHELL, ABSENT, ABSENT], &directories());
        assert_eq!(missing, [ABSENT, ABSENT]);
        assert_eq!(
            missing_error(&missing[..1]).to_string(),
            "commands are missing (no-such-command): apt-get install no-such-package"
        );
        assert_eq!(names(&missing), ["no-such-package"]);
        assert!(!PackageError::NotRoot.to_string().contains('\n'));
    }

    #[test]
    fn processes_wait_for_each_other() {
        let path = env::temp_dir().join(format!("kube2irsa-sandbox-test-{}.lock", std::process::id()));
        let held = lock(&path).unwrap();
        let second = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(second.try_lock().is_err());
        drop(held);
        assert!(second.try_lock().is_ok());
        std::fs::remove_file(&path).unwrap();
    }
}
