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
use sandbox::{
    kubernetes::{Fault, Target},
    sandbox::Sandbox,
};
use support::{Daemon, ROLE_NAME, admin, connect, daemon_binary, eventually, metric, role_status, sandbox, with_a_pod};

#[test]
fn all_requests_in_flight_are_answered_before_it_ends() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.sts.faults().hold();
    let mut daemon = Daemon::ready(&sandbox, &[]);
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
    eventually("nobody is accepted any more", || connect(&web).is_err());
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
    fs::write(exposed.join("session.key"), [0; 40]).unwrap();
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
    assert!(
        fs::read_dir(sandbox.state_dir()).is_ok_and(|mut files| files.next().is_none()),
        "the folder, and nothing in it"
    );
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
fn session_tokens_outlive_a_restart_and_a_change_of_keys() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "60")];
    let token = support::ask(&web, "PUT", "/latest/api/token", &ttl).unwrap().text().to_owned();
    assert!(daemon.stop().success());
    let file = sandbox.state_dir().join("session.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let status = || support::ask(&web, "GET", ROLE_NAME, &[("X-aws-ec2-metadata-token", &token)]).unwrap().status;
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(status(), 200);

    let age_by_half_a_day = || {
        let mut keys = fs::read(&file).unwrap();
        let made = u64::from_be_bytes(keys[..8].try_into().unwrap());
        keys[..8].copy_from_slice(&(made - 12 * 3600).to_be_bytes());
        fs::write(&file, &keys).unwrap();
        keys
    };
    assert!(daemon.stop().success());
    let old = age_by_half_a_day();
    let daemon = Daemon::ready(&sandbox, &[]);
    let new = fs::read(&file).unwrap();
    assert_eq!(new[40..], old[8..], "the key before is kept");
    assert_eq!(status(), 200, "and good");
    assert!(daemon.stop().success());
    age_by_half_a_day();
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(status(), 401, "not after two changes: by then every token of its time has expired");
}

#[test]
fn health_and_readiness_tell_the_truth_when_the_api_server_is_away() {
    let (sandbox, web) = with_a_pod();
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
    let (sandbox, web) = with_a_pod();
    for flags in [
        &["--region", "eu-central-1", "--imds-endpoint", "off"][..],
        &["--sts-endpoint", "https://192.0.2.10", "--imds-endpoint", "off"],
    ] {
        let daemon = Daemon::ready(&sandbox, flags);
        assert_eq!(role_status(&web), 200, "{}", daemon.log());
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_metadata_service_that_does_not_name_the_region_at_first_leaves_no_pod_with_the_nodes_role() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.imds.stall(true);
    let mut daemon = Daemon::started(&sandbox, &[]);
    eventually("it says what it lacks", || {
        let lacks = sandbox::sandbox::get(sandbox.node(), sandbox::sandbox::ADMIN, "/readyz");
        lacks.is_ok_and(|(status, lacks)| status == 503 && lacks.contains("region: --region is not given"))
    });
    let document = support::ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
    assert_eq!(document.status, 503);
    sandbox.cloud.imds.stall(false);
    daemon.wait_until_ready(&sandbox);
    assert_eq!(role_status(&web), 200);
}

#[test]
fn half_a_request_does_not_hold_up_the_end() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    let mut half_a_head = connect(&web).unwrap();
    half_a_head.send_bytes(b"GET /latest HTTP/1.1\r\nHost:").unwrap();
    let mut half_a_body = connect(&web).unwrap();
    let head = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    half_a_body.send_bytes(format!("{head}Content-Length: 10\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(half_a_body.answer().unwrap().status, 400, "it is not waited for longer than any request");
    let mut second_half = connect(&web).unwrap();
    second_half.send_bytes(format!("{head}Content-Length: 10\r\n\r\n").as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(100));
    let log_before = daemon.log();
    assert!(daemon.stop().success(), "{log_before}");
    let log = fs::read_to_string(sandbox.directory().join("daemon.log")).unwrap();
    assert!(!log.contains("still in flight"), "{log}");
}

#[test]
fn a_list_or_watch_that_stalls_is_started_anew() {
    let (sandbox, web) = with_a_pod();
    let faults = sandbox.cloud.kubernetes.faults();
    // The first list is the watch's, or the one that shows whether we have rights too many.
    for (verb, times) in [("list", 2), ("watch", 1)] {
        faults.inject_times(Target::any().verb(verb).resource("pods"), Fault::Stall, times);
    }
    let mut daemon = Daemon::started(&sandbox, &["--token-access", "node"]);
    daemon.wait_until_ready(&sandbox);
    assert!(metric(&sandbox, "kube2irsa_watch_errors_total{resource=\"pods\"}") >= 1.0);
    assert_eq!(role_status(&web), 200);

    // While the watch is not there, a pod that it would tell of is not said to be unknown.
    let later = sandbox.add_pod("team-a", "later-0", "web").unwrap();
    eventually("the later pod is served", || {
        let status = role_status(&later);
        assert_ne!(status, 404, "{}", daemon.log());
        status == 200
    });
}
