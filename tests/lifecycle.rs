//! Start, stop, and what keeps the daemon from starting.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, process::Stdio, thread, time::Duration};

use nix::sys::signal::Signal;
use sandbox::sandbox::Sandbox;
use support::{Daemon, ROLE_NAME, admin, connect, daemon_binary, eventually, metric, role_status, sandbox};

#[test]
fn all_requests_in_flight_are_answered_before_it_ends() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let mut daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.sts.faults().hold();
    let mut connections = (0..50).map(|_| connect(&web).unwrap()).collect::<Vec<_>>();
    // One more, kept alive and idle: it must not hold up the end.
    let mut idle = connect(&web).unwrap();
    idle.send("GET", "/", &[]).unwrap();
    idle.answer().unwrap();
    for connection in &mut connections {
        connection.send("GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
    }
    eventually("STS is asked", || sandbox.cloud.sts.faults().held() == 1);
    daemon.process.signal(Signal::SIGTERM).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(connect(&web).is_err(), "nobody is accepted any more");
    sandbox.cloud.sts.faults().release();
    for connection in &mut connections {
        let answer = connection.answer().unwrap_or_else(|error| panic!("{error}: {}", daemon.log()));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert!(daemon.process.wait().unwrap().success(), "{}", daemon.log());
    assert!(idle.is_closed());
}

#[test]
fn what_keeps_it_from_starting_is_said_in_one_line_and_leaves_nothing_behind() {
    let sandbox = sandbox();
    let directory = sandbox.directory();
    let before = support::rules(&sandbox);
    let taken = sandbox.node().enter(|| TcpListener::bind("10.0.0.10:9169")).unwrap().unwrap();

    let broken = directory.join("broken");
    fs::write(&broken, "clusters: [very-secret").unwrap();
    let file = directory.join("file");
    fs::write(&file, "").unwrap();
    let exposed = directory.join("exposed");
    fs::create_dir(&exposed).unwrap();
    fs::write(exposed.join("session.key"), [0; 32]).unwrap();
    fs::set_permissions(exposed.join("session.key"), fs::Permissions::from_mode(0o644)).unwrap();

    let (broken, file, exposed) = (broken.to_str().unwrap(), file.to_str().unwrap(), exposed.to_str().unwrap());
    for (flags, code) in [
        (["--kubeconfig", broken], 64),
        (["--kubeconfig", "/nowhere"], 64),
        (["--ca-bundle", file], 64),
        (["--listen", "10.0.0.10:9169"], 1),
        (["--listen", "192.0.2.99:9169"], 1),
        (["--admin-listen", "10.0.0.10:9169"], 1),
        (["--state-dir", file], 1),
        (["--state-dir", "/proc/nowhere"], 1),
        (["--state-dir", exposed], 1),
    ] {
        let free_port = ["--listen", "10.0.0.10:9269"];
        let flags = [&free_port[..], &flags].concat();
        assert_fails(&sandbox, &flags, code);
        assert_eq!(support::rules(&sandbox), before, "{flags:?}");
    }
    assert!(!sandbox.state_dir().exists());
    drop(taken);
}

fn assert_fails(sandbox: &Sandbox, flags: &[&str], code: i32) {
    let command = sandbox.daemon(daemon_binary()).args(flags).args(["--log-level", "error"]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{flags:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{flags:?}: {said}");
    let flag = flags[flags.len() - 2];
    assert!(said.starts_with("kube2irsa: ") && said.contains(flag), "{flags:?}: {said}");
    assert!(!said.contains("very-secret"), "{said}");
}

#[test]
fn session_tokens_outlive_a_restart() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "60")];
    let token = support::ask(&web, "PUT", "/latest/api/token", &ttl).unwrap().text().to_owned();
    assert!(daemon.stop().success());
    let mode = fs::metadata(sandbox.state_dir().join("session.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _daemon = Daemon::ready(&sandbox, &[]);
    let answer = support::ask(&web, "GET", ROLE_NAME, &[("X-aws-ec2-metadata-token", &token)]).unwrap();
    assert_eq!(answer.status, 200);
}

#[test]
fn health_and_readiness_tell_the_truth_when_the_api_server_is_away() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    sandbox.cloud.stop_api();
    let mut daemon = Daemon::started(&sandbox, &[]);
    eventually("the operator's listener answers", || {
        sandbox::sandbox::get(sandbox.node(), sandbox::sandbox::ADMIN, "/healthz").is_ok()
    });
    eventually("the API server has been asked", || admin(&sandbox, "/readyz").1.contains("cannot be reached"));
    assert_eq!(admin(&sandbox, "/healthz").0, 200);
    let (status, lacks) = admin(&sandbox, "/readyz");
    assert!(status == 503 && lacks.contains("token access: ") && lacks.contains("watches: "), "{status} {lacks}");
    assert_eq!(metric(&sandbox, "kube2irsa_ready"), 0.0);

    sandbox.cloud.start_api().unwrap();
    daemon.wait_until_ready(&sandbox);
    assert_eq!(metric(&sandbox, "kube2irsa_ready"), 1.0);
    assert_eq!(role_status(&web), 200);

    sandbox.cloud.stop_api();
    eventually("the watch of pods has failed", || {
        metric(&sandbox, "kube2irsa_watch_errors_total{resource=\"pods\"}") >= 1.0
    });
    assert_eq!(admin(&sandbox, "/readyz").0, 200, "what is known is served");
    assert_eq!(role_status(&web), 200);
}

#[test]
fn the_region_can_be_given_or_asked_for() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    for flags in [
        &["--region", "eu-central-1", "--imds-endpoint", "off"][..],
        &["--sts-endpoint", "https://192.0.2.10", "--imds-endpoint", "off"],
    ] {
        let daemon = Daemon::ready(&sandbox, flags);
        assert_eq!(role_status(&web), 200, "{}", daemon.log());
        assert!(daemon.stop().success());
    }
    sandbox.cloud.imds.set_down(true);
    let output = sandbox.daemon(daemon_binary()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--region"), "{said}");
}
