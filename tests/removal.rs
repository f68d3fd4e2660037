//! Nobody is left on the node: what `kube2irsa rules remove` takes out, once or for as long as it stays.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::PathBuf,
};

use nix::sys::signal::Signal;
use sandbox::{
    cloud::NODE_ROLE,
    network::Process,
    sandbox::{Pod, Sandbox},
};
use support::{
    Daemon, ROLE_NAME, admin, admin_if_up, ask, daemon_binary, eventually,
    node::{KUBE_PROXY, KUBE_PROXY_NFT, everything, kube2irsa, kube2irsa_rules, sh},
    role_status, with_a_pod,
};

const OUT: &str = "guard and redirect are taken out and kept out";

/// `kube2irsa rules remove --stay` on the node.
struct Remover {
    process: Process,
    log: PathBuf,
}

impl Remover {
    fn started(sandbox: &Sandbox, environment: &[(&str, &str)]) -> Self {
        let log = sandbox.directory().join("remover.log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let state_dir = sandbox.state_dir();
        let command = sandbox.node().command(daemon_binary()).args(["rules", "remove", "--stay", "--state-dir"]);
        let command = command.arg(state_dir).arg("--admin-socket").arg(sandbox.admin_socket());
        let mut command = command.stderr(stderr);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        Self { process: command.spawn().unwrap(), log }
    }

    fn says(&self, what: &str) {
        eventually(what, || fs::read_to_string(&self.log).unwrap().contains(what));
    }

    fn stop(mut self) {
        self.process.signal(Signal::SIGTERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn gets_the_node_role(pod: &Pod) -> bool {
    let answer = ask(pod, "GET", &format!("{ROLE_NAME}{NODE_ROLE}"), &[]);
    answer.is_ok_and(|answer| answer.status == 200 && answer.text().contains("AccessKeyId"))
}

fn other_programs_rules(sandbox: &Sandbox) {
    let script = format!("iptables-restore --noflush <<'E'\n{KUBE_PROXY}E\nnft -f - <<'E'\n{KUBE_PROXY_NFT}E\n");
    sh(sandbox, &script);
}

#[test]
fn who_stays_to_remove_takes_over_from_a_daemon_and_leaves_nothing_of_ours() {
    for backend in ["nft", "iptables"] {
        let (sandbox, web) = with_a_pod();
        other_programs_rules(&sandbox);
        let before = everything(&sandbox);
        assert!(gets_the_node_role(&web), "without us a pod must get the node's role");
        let daemon = Daemon::ready(&sandbox, &["--intercept", backend]);
        assert_eq!(role_status(&web), 200);
        assert!(!gets_the_node_role(&web));
        assert!(sandbox.state_dir().join("session.key").exists());

        let mut remover = Remover::started(&sandbox, &[]);
        remover.says(OUT);
        remover.says("took over from the daemon that ran here");
        eventually("the one before waits", || daemon.log().contains("handed over to the next daemon"));
        assert_eq!(everything(&sandbox), before);
        assert!(gets_the_node_role(&web));
        assert_eq!(admin(&sandbox, "/readyz"), (200, "ok\n".to_owned()));
        assert!(admin(&sandbox, "/metrics").1.contains("kube2irsa_intercept_info{backend=\"remove\"} 1\n"));
        let admin_socket = sandbox.admin_socket();
        let probe = ["probe", "ready", "--admin-socket", admin_socket.to_str().unwrap()];
        assert_eq!(kube2irsa(&sandbox, &probe), (Some(0), "ok\n".to_owned(), String::new()));
        assert!(daemon.stop().success());
        assert!(remover.process.try_wait().unwrap().is_none(), "a DaemonSet starts again what ends");
        assert_eq!(everything(&sandbox), before);
        remover.stop();
        assert_eq!(everything(&sandbox), before);
        assert!(!sandbox.state_dir().exists(), "keys and sockets are gone");
    }
}

#[test]
fn a_daemon_that_was_stopped_before_leaves_nothing_either() {
    let (sandbox, web) = with_a_pod();
    other_programs_rules(&sandbox);
    let before = everything(&sandbox);
    Daemon::ready(&sandbox, &[]).kill();
    assert!(!gets_the_node_role(&web));
    let remover = Remover::started(&sandbox, &[]);
    remover.says(OUT);
    assert_eq!(everything(&sandbox), before);
    remover.stop();
    assert!(!sandbox.state_dir().exists());
}

#[test]
fn a_daemon_takes_over_from_who_removes_and_back() {
    let (sandbox, web) = with_a_pod();
    let before = everything(&sandbox);
    let mut first = Remover::started(&sandbox, &[]);
    first.says(OUT);
    // It is wanted after all; or a daemon that died is started again before its DaemonSet's change comes to it.
    let daemon = Daemon::started(&sandbox, &[]);
    eventually("the daemon took over", || daemon.log().contains("took over from the daemon that ran here"));
    first.says("handed over to the next daemon");
    assert_eq!(role_status(&web), 200);
    assert!(!gets_the_node_role(&web));
    // That daemon ends: the rules stay, and who was to remove them is started again.
    assert!(daemon.stop().success());
    assert_eq!(first.process.wait().unwrap().code(), Some(1));
    assert!(!gets_the_node_role(&web));
    let second = Remover::started(&sandbox, &[]);
    eventually("removed again", || everything(&sandbox) == before);
    second.stop();
    assert!(!sandbox.state_dir().exists());
}

#[test]
fn a_daemon_goes_on_with_its_rules_when_who_took_over_from_it_and_hung_is_killed() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    let installed = everything(&sandbox);
    let mut remover = Remover::started(&sandbox, &[("PATH", "/nowhere")]);
    remover.says("rules are not taken out");
    remover.process.signal(Signal::SIGKILL).unwrap();
    let _killed = remover.process.wait().unwrap();
    drop(daemon);
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(everything(&sandbox), installed);
    assert_eq!(role_status(&web), 200);
}

#[test]
fn what_cannot_be_taken_out_is_said_and_tried_again() {
    let (sandbox, web) = with_a_pod();
    let before = everything(&sandbox);
    assert!(Daemon::ready(&sandbox, &["--intercept", "nft"]).stop().success());
    let commands = sandbox.directory().join("commands");
    fs::create_dir(&commands).unwrap();
    let remover = Remover::started(&sandbox, &[("PATH", commands.to_str().unwrap())]);
    remover.says("rules are not taken out, and it is tried again: nft is not installed");
    let lacks = admin_if_up(&sandbox, "/readyz").unwrap();
    assert!(lacks.contains("rules: not taken out: nft is not installed"), "{lacks}");
    for command in ["nft", "iptables", "ip6tables"] {
        symlink(format!("/usr/sbin/{command}"), commands.join(command)).unwrap();
    }
    // Restoring is not needed: nothing of ours is in iptables.
    remover.says(OUT);
    eventually("ready", || admin(&sandbox, "/readyz").0 == 200);
    assert_eq!(everything(&sandbox), before);
    assert!(gets_the_node_role(&web));
    remover.stop();
}

#[test]
fn once_it_is_refused_while_a_daemon_runs_and_then_leaves_nothing_of_ours() {
    let (sandbox, _web) = with_a_pod();
    other_programs_rules(&sandbox);
    let before = everything(&sandbox);
    let state_dir = sandbox.state_dir();
    let daemon = Daemon::ready(&sandbox, &[]);
    let socket = sandbox.admin_socket();
    let arguments = ["--state-dir", state_dir.to_str().unwrap(), "--admin-socket", socket.to_str().unwrap()];
    let (installed, arguments) = (everything(&sandbox), [&["remove"][..], &arguments].concat());
    let (code, _, errors) = kube2irsa_rules(&sandbox, &arguments);
    assert_eq!(code, Some(1));
    assert!(errors.starts_with("kube2irsa: not removed: a daemon runs on this node"), "{errors}");
    assert_eq!(everything(&sandbox), installed);
    daemon.kill();
    assert!(socket.exists(), "a killed one leaves it");
    fs::write(state_dir.join("not-ours"), "").unwrap();
    assert_eq!(kube2irsa_rules(&sandbox, &arguments), (Some(0), String::new(), String::new()));
    assert_eq!(everything(&sandbox), before);
    let left = fs::read_dir(&state_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left, ["not-ours"]);
    fs::remove_file(state_dir.join("not-ours")).unwrap();
    assert_eq!(kube2irsa_rules(&sandbox, &arguments).0, Some(0));
    assert!(!state_dir.exists());
}

#[test]
fn legacy_tables_of_others_that_need_another_right_keep_nothing_there_and_are_told_of() {
    let (sandbox, _web) = with_a_pod();
    sh(&sandbox, "iptables-legacy -t nat -N OTHER");
    let before = everything(&sandbox);
    assert!(Daemon::ready(&sandbox, &["--intercept", "nft"]).stop().success());
    let state_dir = sandbox.state_dir();
    let remove = |path: &str| {
        let rights = ["--bounding-set", "-all,+net_admin", "--inh-caps", "-all", "--ambient-caps", "-all"];
        let command = sandbox.node().command("/usr/bin/setpriv").args(rights).arg(daemon_binary());
        let command = command.args(["rules", "remove", "--state-dir", state_dir.to_str().unwrap()]);
        let output = command.env("PATH", path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // Where they are the node's own, ours may be in them.
    let legacy_only = sandbox.directory().join("legacy-only");
    fs::create_dir(&legacy_only).unwrap();
    for (name, command) in [("nft", "nft"), ("iptables", "iptables-legacy"), ("iptables-legacy", "iptables-legacy")] {
        symlink(format!("/usr/sbin/{command}"), legacy_only.join(name)).unwrap();
    }
    let (code, said) = remove(legacy_only.to_str().unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not removed: iptables -w 5") && said.contains("Permission denied"), "{said}");
    assert!(state_dir.exists());

    let (code, said) = remove("/usr/sbin:/sbin");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cannot be looked at: iptables-legacy (needs NET_RAW"), "{said}");
    assert_eq!(everything(&sandbox), before);
    assert!(!state_dir.exists());
    // Who stays says it once, and is ready.
    assert!(Daemon::ready(&sandbox, &["--intercept", "nft"]).stop().success());
    let log = sandbox.directory().join("remover.log");
    let rights = ["--bounding-set", "-all,+net_admin", "--inh-caps", "-all", "--ambient-caps", "-all"];
    let command = sandbox.node().command("/usr/bin/setpriv").args(rights).arg(daemon_binary());
    let command = command.args(["rules", "remove", "--stay", "--state-dir", state_dir.to_str().unwrap()]);
    let command = command.arg("--admin-socket").arg(sandbox.admin_socket());
    let process = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
    let remover = Remover { process, log };
    remover.says("cannot be looked at: iptables-legacy (needs NET_RAW");
    remover.says(OUT);
    eventually("ready", || admin_if_up(&sandbox, "/readyz").is_some_and(|said| said == "ok\n"));
    assert_eq!(everything(&sandbox), before);
    remover.stop();
}
