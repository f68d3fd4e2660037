//! What the daemon may do on the node is what it needs and nothing else (`docs/rights.md`): root with one capability, no
//! way to another, a file system that cannot be written to.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs, io,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    process::Stdio,
};

use nix::sys::signal::Signal;
use sandbox::{network::Process, sandbox::Sandbox};
use support::{
    Daemon, ROLE_NAME, ask, confined, connect, eventually, role_status, rules, sdk, with_a_pod, without_but,
};

const NET_ADMIN: &[&str] = &["net_admin"];

fn started(sandbox: &Sandbox) -> Daemon {
    Daemon::of(sandbox, confined(sandbox, NET_ADMIN))
}

fn ready(sandbox: &Sandbox) -> Daemon {
    let mut daemon = started(sandbox);
    daemon.wait_until_ready(sandbox);
    daemon
}

fn status_of(daemon: &Daemon, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    value.unwrap().to_owned()
}

#[test]
fn the_main_job_needs_net_admin_and_a_state_directory_and_nothing_else() {
    let (sandbox, web) = with_a_pod();
    let without_us = sdk(&sandbox, &web).arn.unwrap();
    assert!(without_us.contains("assumed-role/node/"), "or the rest proves little: {without_us}");
    let daemon = ready(&sandbox);

    // It has what it was given; CAP_NET_ADMIN is number 12.
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let wanted = if matches!(set, "CapInh" | "CapAmb") { 0 } else { 1_u64 << 12 };
        assert_eq!(u64::from_str_radix(&status_of(&daemon, set), 16).unwrap(), wanted, "{set}");
    }
    assert_eq!(status_of(&daemon, "NoNewPrivs"), "1");
    let its = |path: &str| format!("/proc/{}/root{path}", daemon.process.id());
    for directory in ["/tmp", "/run", "/etc", sandbox.directory().to_str().unwrap()] {
        let error = fs::write(its(&format!("{directory}/kube2irsa-test")), "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{directory}");
    }

    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
    let installed = rules(&sandbox);
    // All but what the node's own way out needs.
    let flush = "iptables -t nat -F PREROUTING; iptables -t nat -F KUBE2IRSA; iptables -t nat -X KUBE2IRSA; \
        iptables -F; iptables -X; ip rule flush; ip rule add pref 32766 lookup main; \
        ip rule add pref 32767 lookup default; ip -6 rule flush; ip -6 rule add pref 32766 lookup main; true";
    assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
    eventually("all rules are back", || rules(&sandbox) == installed);
    assert_eq!(role_status(&web), 200);

    // The next daemon takes over.
    let mut next = started(&sandbox);
    eventually("it took over", || next.log().contains("took over from the daemon that ran here"));
    assert!(daemon.stop().success());
    next.wait_until_ready(&sandbox);
    assert_eq!(role_status(&web), 200);

    // It dies, and comes back.
    next.kill();
    eventually("nobody listens", || connect(&web).is_err());
    let last = ready(&sandbox);
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
    assert!(last.log().lines().all(|line| !line.contains("ERROR")), "{}", last.log());

    // An operator's command needs no more.
    assert!(last.stop().success());
    let binary = support::daemon_binary().to_str().unwrap();
    let remove = sandbox.node().command("setpriv").args([&without_but(NET_ADMIN), binary, "rules", "remove"]);
    assert!(remove.status().unwrap().success());
    let left = rules(&sandbox);
    assert!(!left.contains("KUBE2IRSA") && !left.contains("169.254"), "{left}");
}

#[test]
fn without_net_admin_it_says_what_it_cannot_do_and_is_not_ready() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::of(&sandbox, confined(&sandbox, &[]));
    eventually("it says so", || {
        let lacks = support::admin_if_up(&sandbox, "/readyz").unwrap_or_default();
        lacks.contains("guard: a routing rule could not be added") && lacks.contains("not permitted")
    });
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/node/"), "nothing was changed on the node");
}

/// The legacy variant makes a raw socket to speak to the kernel.
#[test]
fn the_legacy_variant_of_iptables_needs_net_raw_too() {
    let (sandbox, web) = with_a_pod();
    let legacy = sandbox.directory().join("legacy");
    fs::create_dir(&legacy).unwrap();
    for (name, variant) in [("iptables", "iptables-legacy"), ("iptables-restore", "iptables-legacy-restore")] {
        let binary = ["/usr/sbin", "/sbin"].map(|place| format!("{place}/{variant}"));
        symlink(binary.iter().find(|binary| fs::exists(binary).unwrap()).unwrap(), legacy.join(name)).unwrap();
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", legacy.display());
    let with = |capabilities| {
        let command = confined(&sandbox, capabilities).args(["--intercept", "iptables"]);
        Daemon::of(&sandbox, command.env("PATH", &path))
    };

    let daemon = with(NET_ADMIN);
    eventually("it says so", || {
        let lacks = support::admin_if_up(&sandbox, "/readyz").unwrap_or_default();
        lacks.contains("rules: iptables does not work here") && lacks.contains("Permission denied")
    });
    assert!(connect(&web).is_err(), "the guard stands");
    daemon.kill();

    let mut daemon = with(&["net_admin", "net_raw"]);
    daemon.wait_until_ready(&sandbox);
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
    let listed = sandbox.node().command("iptables-legacy").args(["-t", "nat", "-S", "KUBE2IRSA"]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains("--to-destination"));
}

/// Fewer files than it wants, and no right to raise the limit.
#[test]
fn a_limit_of_open_files_that_cannot_be_raised_costs_connections_and_not_the_service() {
    let (sandbox, web) = with_a_pod();
    let bounding = without_but(NET_ADMIN);
    let binary = support::daemon_binary().to_str().unwrap();
    let command = sandbox.daemon_under("prlimit", &["--nofile=512:512", "setpriv", &bounding, binary]);
    let mut daemon = Daemon::of(&sandbox, command);
    daemon.wait_until_ready(&sandbox);
    assert!(daemon.log().contains("only 256 fit below the limit of open files (512)"), "{}", daemon.log());
    assert_eq!(role_status(&web), 200);
}

/// Of a root without capabilities: whether it can read what a process was started with, and its memory.
fn can_be_read(sandbox: &Sandbox, process: &Process) -> [bool; 2] {
    ["environ", "mem"].map(|file| {
        let file = format!("if=/proc/{}/{file}", process.id());
        // Memory begins somewhere else; whether it can be opened is the question.
        let reader = [&without_but(NET_ADMIN), "dd", &file, "count=0"];
        let reader = sandbox.node().command("setpriv").args(reader).stderr(Stdio::null());
        reader.status().unwrap().success()
    })
}

#[test]
fn another_process_of_the_same_user_cannot_read_its_memory() {
    let (sandbox, web) = with_a_pod();
    let bounding = without_but(NET_ADMIN);
    let other = sandbox.node().command("setpriv").args([&bounding, "sleep", "600"]).spawn().unwrap();
    assert!(can_be_read(&sandbox, &other)[0], "any other process's can be read, or this proves nothing");
    let daemon = ready(&sandbox);
    assert_eq!(role_status(&web), 200);
    assert_eq!(can_be_read(&sandbox, &daemon.process), [false, false]);
}

#[test]
fn a_crash_leaves_no_core() {
    let (sandbox, web) = with_a_pod();
    let place = sandbox.directory().join("home");
    let unlimited = ["--core=unlimited:unlimited"];
    let crash = |process: &mut Process, signal| {
        // The first SIGSEGV is looked at by the runtime, and is its own if nothing is wrong with the stack.
        eventually("it dies", || process.signal(signal).is_err());
        let status = process.wait().unwrap();
        (status.signal(), status.core_dumped())
    };
    let other = sandbox.node().command("prlimit").args(unlimited).args(["sleep", "600"]).current_dir(&place);
    let mut other = other.spawn().unwrap();
    eventually("it runs", || fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap() == "sleep\n");
    assert_eq!(crash(&mut other, Signal::SIGABRT), (Some(6), true), "any other process does, or this proves nothing");
    fs::read_dir(&place).unwrap().for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());

    for signal in [Signal::SIGABRT, Signal::SIGSEGV] {
        let binary = support::daemon_binary().to_str().unwrap();
        let command = sandbox.daemon_under("prlimit", &[&unlimited[..], &[binary]].concat()).current_dir(&place);
        let mut daemon = Daemon::of(&sandbox, command);
        daemon.wait_until_ready(&sandbox);
        assert_eq!(ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap().status, 200);
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.process.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        assert_eq!(crash(&mut daemon.process, signal), (Some(signal as i32), false));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    }
}
