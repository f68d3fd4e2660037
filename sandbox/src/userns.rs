//! Root for the sandbox's own affairs, without being root: a user namespace.
//!
//! In it this process is root over the namespaces that it makes, and over nothing else: its files stay its user's, and no
//! package can be installed. Not every machine lets ordinary users have one; then the error says what would.

use std::{fs, io};

use nix::{
    sched::{CloneFlags, unshare},
    unistd,
};

/// What keeps ordinary users from it, in the kernel or in a distribution's own: a setting, the value that does, and one
/// that does not.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "10000"),
];

/// There is no user namespace to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    r#"ordinary users get no user namespace here ({refusal}): {remedy}be root: put this before the same command: sudo env "PATH=$PATH" "HOME=$HOME""#
)]
pub struct UserNamespaceError {
    refusal: io::Error,
    remedy: String,
}

/// Makes this process root in a user namespace of its own, unless it is root. It must not have another thread yet.
///
/// # Errors
/// In one line, what forbids it and how it can be allowed.
pub fn be_root() -> Result<(), UserNamespaceError> {
    let (user, group) = (unistd::geteuid(), unistd::getegid());
    if user.is_root() {
        return Ok(());
    }
    let made = || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
        // Where AppArmor is in the way there is one, and nothing may be done in it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        io::Result::Ok(())
    };
    made().map_err(|refusal| UserNamespaceError { refusal, remedy: remedy(value) })
}

/// Whether we are root of a namespace that has no other user, as [`be_root`] makes it.
#[must_use]
pub fn is_alone() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| has_one_user(&map))
}

fn has_one_user(map: &str) -> bool {
    let users = |line: &str| line.split_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    map.lines().map(users).sum::<u64>() == 1
}

fn value(setting: &str) -> Option<String> {
    let value = fs::read_to_string(format!("/proc/sys/{}", setting.replace('.', "/"))).ok()?;
    Some(value.trim().to_owned())
}

fn remedy(value: impl Fn(&str) -> Option<String>) -> String {
    let forbids = |(setting, forbids, _): &&(&str, &str, &str)| value(setting).as_deref() == Some(*forbids);
    let settings = SETTINGS.iter().filter(forbids).map(|(setting, _, allows)| format!(" {setting}={allows}"));
    let settings = settings.collect::<String>();
    if settings.is_empty() { String::new() } else { format!("allow them with sudo sysctl -w{settings}, or ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_it_is_named_and_others_are_not() {
        let ubuntu = |setting: &str| match setting {
            "kernel.unprivileged_userns_clone" | "kernel.apparmor_restrict_unprivileged_userns" => Some("1".to_owned()),
            _ => Some("63000".to_owned()),
        };
        let refusal = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = UserNamespaceError { refusal, remedy: remedy(ubuntu) }.to_string();
        assert!(error.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or be root:"), "{error}");
        assert!(!error.contains("max_user_namespaces") && !error.contains('\n'), "{error}");
        assert_eq!(remedy(|_| None), "");
    }

    #[test]
    fn a_namespace_of_one_user_is_told_apart_from_the_machines_own() {
        assert!(has_one_user("         0       1000          1\n"));
        assert!(!has_one_user("         0          0 4294967295\n"));
        assert!(!has_one_user("         0       1000          1\n         1     100000      65536\n"));
        assert!(!has_one_user(""));
    }
}
