//! The admin socket: whose it is, who may ask there, and what the probes of a daemon's pod hear.
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
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::sandbox::Sandbox;
use support::{Daemon, daemon_binary, eventually, node::kube2irsa, sandbox, with_a_pod};

const OK: (i32, &str) = (0, "ok\n");

/// The exit code of a probe, and what it says.
fn probe(sandbox: &Sandbox, which: &str, socket: &Path) -> (i32, String) {
    let (code, said, errors) = kube2irsa(sandbox, &["probe", which, "--admin-socket", socket.to_str().unwrap()]);
    assert_eq!(errors, "");
    (code.unwrap(), said)
}

fn is_ok(sandbox: &Sandbox, which: &str, socket: &Path) -> bool {
    let (code, said) = probe(sandbox, which, socket);
    (code, said.as_str()) == OK
}

fn daemon_with(sandbox: &Sandbox, socket: &Path) -> Daemon {
    Daemon::started(sandbox, &["--admin-socket", socket.to_str().unwrap()])
}

#[test]
fn each_of_two_daemons_of_a_node_hears_its_own_probes() {
    let (sandbox, _web) = with_a_pod();
    let [one, two] = ["pod-1/admin.sock", "pod-2/admin.sock"].map(|path| sandbox.directory().join(path));
    let first = daemon_with(&sandbox, &one);
    eventually("the first is ready", || is_ok(&sandbox, "ready", &one));
    // It does not take over before it has the pod's credentials.
    sandbox.cloud.sts.faults().hold();
    let second = daemon_with(&sandbox, &two);
    eventually("the second lives", || is_ok(&sandbox, "live", &two));
    eventually("it waits", || second.log().contains("it goes on until this one is ready"));
    for _ in 0..10 {
        let (code, said) = probe(&sandbox, "ready", &two);
        assert!(code == 1 && said.lines().any(|line| line.starts_with("rules: ")), "{code} {said}");
        assert!(is_ok(&sandbox, "ready", &one));
    }
    sandbox.cloud.sts.faults().release();
    eventually("the second is ready", || is_ok(&sandbox, "ready", &two));
    eventually("the first waits for its end", || first.log().contains("handed over to the next daemon"));
    assert_eq!(probe(&sandbox, "ready", &one), (1, "running: stopping\n".to_owned()));
    assert!(is_ok(&sandbox, "live", &one), "it lives until it is told to stop");
    assert!(first.stop().success());
    assert!(!one.exists() && is_ok(&sandbox, "ready", &two));
}

#[test]
fn on_one_path_the_next_daemon_is_heard_and_the_one_before_again_if_that_ends() {
    let (sandbox, _web) = with_a_pod();
    let socket = sandbox.admin_socket();
    let first = Daemon::ready(&sandbox, &[]);
    assert!(is_ok(&sandbox, "ready", &socket));
    sandbox.cloud.sts.faults().hold();
    let second = Daemon::started(&sandbox, &[]);
    eventually("it waits", || second.log().contains("it goes on until this one is ready"));
    // The first looks after its name every two seconds.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(probe(&sandbox, "ready", &socket).0, 1, "it is still the second that is heard");
    second.kill();
    eventually("the first is heard", || is_ok(&sandbox, "ready", &socket));
    let third = Daemon::started(&sandbox, &[]);
    eventually("it waits", || third.log().matches("it goes on until this one is ready").count() == 2);
    assert!(first.stop().success());
    assert!(is_ok(&sandbox, "live", &socket), "who ends does not take the other's away");
    assert!(third.stop().success());
    assert!(!socket.exists());
}

#[test]
fn a_daemon_that_hangs_fails_its_probe_within_the_limit_also_when_its_queue_is_full() {
    let sandbox = sandbox();
    let socket = sandbox.admin_socket();
    let mut daemon = Daemon::ready(&sandbox, &[]);
    daemon.process.signal(Signal::SIGSTOP).unwrap();
    let fails = |said: &str| {
        let start = Instant::now();
        let (code, reason) = probe(&sandbox, "live", &socket);
        assert!(code == 1 && reason.contains(said) && reason.contains("nothing within 5 s"), "{code} {reason}");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    };
    fails("does not answer");
    let mut waiting = Vec::new();
    loop {
        let next = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        next.set_nonblocking(true).unwrap();
        match next.connect(&socket2::SockAddr::unix(&socket).unwrap()) {
            Ok(()) => waiting.push(next),
            Err(_full) => break,
        }
    }
    fails("no daemon answers");
    daemon.process.signal(Signal::SIGCONT).unwrap();
    drop(waiting);
    eventually("it lives", || is_ok(&sandbox, "live", &socket));
}

#[test]
fn connections_that_say_nothing_do_not_keep_a_probe_out_for_good() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let silent = (0..100).map(|_| UnixStream::connect(sandbox.admin_socket()).unwrap()).collect::<Vec<_>>();
    eventually("it is heard", || is_ok(&sandbox, "live", &sandbox.admin_socket()));
    drop(silent);
}

#[test]
fn nobody_else_may_ask_whatever_the_umask_or_a_later_mode() {
    let sandbox = sandbox();
    let socket = sandbox.admin_socket();
    let command = sandbox.daemon_under("sh", &["-c", "umask 0; exec \"$@\"", "sh", daemon_binary().to_str().unwrap()]);
    let mut daemon = Daemon::of(&sandbox, command);
    daemon.wait_until_ready(&sandbox);
    let metadata = fs::symlink_metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let everybody = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    everybody(sandbox.directory(), 0o755);
    everybody(&sandbox.state_dir(), 0o755);
    let as_nobody = || {
        let rights = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let command = sandbox.node().command("setpriv").args(rights).arg(daemon_binary());
        let output = command.args(["probe", "live", "--admin-socket"]).arg(&socket).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = as_nobody();
    assert!(code == Some(1) && said.contains("Permission denied"), "{code:?} {said}");
    everybody(&socket, 0o777);
    let (code, said) = as_nobody();
    assert!(code == Some(1) && said.contains("does not answer"), "{code:?} {said}");
    assert!(is_ok(&sandbox, "live", &socket));
}

#[test]
fn a_socket_that_is_taken_away_is_made_again_and_what_is_no_socket_is_left_alone() {
    let sandbox = sandbox();
    let socket = sandbox.admin_socket();
    let daemon = Daemon::ready(&sandbox, &[]);
    fs::remove_file(&socket).unwrap();
    let (code, said) = probe(&sandbox, "live", &socket);
    assert!(code == 1 && said.starts_with("no daemon answers at "), "{code} {said}");
    eventually("it is there again", || is_ok(&sandbox, "ready", &socket));

    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "another's").unwrap();
    eventually("it is said", || daemon.log().contains("admin.sock is no socket"));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "another's");
    fs::remove_file(&socket).unwrap();
    eventually("it is there again", || is_ok(&sandbox, "ready", &socket));
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "another's").unwrap();
    assert!(daemon.stop().success());
    assert!(socket.exists(), "what is not ours stays");
}

#[test]
fn a_probe_that_is_none_is_bad_usage() {
    let run = |arguments: &[&str]| Command::new(daemon_binary()).args(arguments).env_clear().output().unwrap();
    for arguments in
        [&["probe"][..], &["probe", "maybe"], &["probe", "ready", "live"], &["probe", "ready", "--no-flag"]]
    {
        let output = run(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0), "{arguments:?}");
    }
    let missing = tempfile::tempdir().unwrap().path().join("nobody");
    let output = run(&["probe", "ready", "--admin-socket", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
}
