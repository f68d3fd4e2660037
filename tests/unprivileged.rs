//! The sandbox by an ordinary user, in a user namespace: the README's first command without root.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// Becomes nobody, who has no home and none of root's files.
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Both binaries where everybody can run them.
fn binaries() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for binary in [support::daemon_binary(), Path::new(support::sandbox_binary())] {
        let copy = folder.path().join(binary.file_name().unwrap());
        fs::copy(binary, &copy).unwrap();
        fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// What the sandbox says under these commands.
fn sandbox(folder: &TempDir, under: &[&str]) -> Output {
    let [sandbox, daemon] = ["sandbox", "kube2irsa"].map(|name| folder.path().join(name).into_os_string());
    let mut words = under.iter().map(Into::into).chain([sandbox, "--daemon".into(), daemon]);
    Command::new(words.next().unwrap())
        .args(words)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .output()
        .unwrap()
}

/// Its lines without what differs each time: times, and the hashes of pods' UIDs.
fn told(output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines = said.lines().filter(|line| !line.contains(" ms"));
    lines.map(|line| line.rsplit_once('-').map_or(line, |(kept, _)| kept).to_owned()).collect()
}

#[test]
fn an_ordinary_user_sees_what_root_sees() {
    let folder = binaries();
    let of_root = told(&sandbox(&folder, &[]));
    let of_nobody = told(&sandbox(&folder, &NOBODY));
    assert!(of_root.iter().any(|line| line.contains("assumed-role/web/team-a.web-0")), "{of_root:?}");
    assert_eq!(of_nobody, of_root);
}

#[test]
fn who_may_have_no_user_namespace_is_told_so_in_one_line_with_what_to_do() {
    let folder = binaries();
    // One in another, as many as there may be; as nobody there.
    let none_left = "echo 1 > /proc/sys/user/max_user_namespaces; exec unshare -U --map-user=65534 \"$@\"";
    let under = [&NOBODY[..], &["unshare", "-Ur", "sh", "-ec", none_left, "sh"]].concat();
    let output = sandbox(&folder, &under);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in ["no user namespace", "sudo env"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
