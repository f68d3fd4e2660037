//! The node's role: what every pod gets without us, and none with us. Each test shows the first before it
//! tries the second, and counts what the real service handed out.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use sandbox::{
    cloud::NODE_ROLE,
    network::{Namespace, PodNetwork},
    sandbox::{METADATA, Pod, Sandbox},
};
use support::{
    Daemon, ROLE_NAME, ask, connect, eventually, http::Connection, role_status, sandbox, sandbox_with, sdk, sdk_on_node,
};

const BACKENDS: [&str; 2] = ["nft", "iptables"];

fn node_role_path() -> String {
    format!("{ROLE_NAME}{NODE_ROLE}")
}

/// Whether the node's credentials come back, on a new connection from this namespace.
fn gets_the_node_role(namespace: &Namespace) -> bool {
    let got = || -> io::Result<bool> {
        let mut connection = Connection::open(namespace, METADATA)?;
        connection.send("GET", &node_role_path(), &[])?;
        let answer = connection.answer()?;
        Ok(answer.status == 200 && answer.text().contains("AccessKeyId"))
    };
    got().unwrap_or(false)
}

/// A pod with a role, which has got the node's without us.
fn exposed_pod(sandbox: &Sandbox) -> Pod {
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    assert!(gets_the_node_role(web.network()), "without us a pod must get the node's role, or this proves nothing");
    assert!(gets_the_node_role(sandbox.node()));
    web
}

/// Runs `tries` and fails if the real service handed out anything meanwhile.
fn nothing_is_handed_out(sandbox: &Sandbox, tries: impl FnOnce()) {
    let before = sandbox.cloud.imds.credential_requests();
    tries();
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
}

#[test]
fn an_sdk_gets_the_nodes_role_without_us_and_never_with_us_by_any_path() {
    for shape in [PodNetwork::Routed, PodNetwork::Bridge] {
        let sandbox = sandbox_with(shape);
        let web = exposed_pod(&sandbox);
        let without = sdk(&sandbox, &web).arn.unwrap();
        assert_eq!(without, "arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0");

        let _daemon = Daemon::ready(&sandbox, &[]);
        let paths = [
            node_role_path(),
            "/latest/meta-data/iam/security-credentials/web/../node".into(),
            "/latest/meta-data/iam/security-credentials/%6eode".into(),
            "/latest//meta-data/iam/security-credentials//node".into(),
            "/2021-07-15/meta-data/iam/security-credentials/node".into(),
            "/latest\\meta-data\\iam\\security-credentials\\node".into(),
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance".into(),
            "/latest/user-data".into(),
            "/latest/dynamic/instance-identity/signature".into(),
            "http://169.254.169.254/latest/meta-data/iam/security-credentials/node".into(),
        ];
        nothing_is_handed_out(&sandbox, || {
            for path in &paths {
                let answer = ask(&web, "GET", path, &[]).unwrap();
                assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
            }
        });
        let with = sdk(&sandbox, &web).arn.unwrap();
        assert!(with.contains("assumed-role/web/"), "{with}");
        let node = sdk_on_node(&sandbox).arn.unwrap();
        assert!(node.contains("assumed-role/node/"), "the node itself goes on as ever: {node}");
    }
}

#[test]
fn before_the_first_sync_nothing_is_served_and_nothing_of_the_nodes() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    sandbox.cloud.stop_api();
    let mut daemon = Daemon::started(&sandbox, &[]);
    eventually("the redirect is there", || {
        ask(&web, "GET", "/latest/user-data", &[]).is_ok_and(|answer| answer.status == 404)
    });
    nothing_is_handed_out(&sandbox, || {
        let start = Instant::now();
        assert_eq!(role_status(&web), 503);
        assert!(start.elapsed() >= Duration::from_millis(800), "it waits for the pod to become known");
        assert!(!gets_the_node_role(web.network()));
    });
    let token = ask(&web, "PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")]).unwrap();
    assert_eq!(token.status, 200, "tokens wait for nothing");

    sandbox.cloud.start_api().unwrap();
    daemon.wait_until_ready(&sandbox);
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
}

#[test]
fn after_a_flush_of_all_rules_the_guard_holds_and_the_redirect_comes_back() {
    for backend in BACKENDS {
        after_a_flush_the_redirect_comes_back(backend);
    }
}

fn after_a_flush_the_redirect_comes_back(backend: &str) {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let _daemon = Daemon::ready(&sandbox, &["--intercept", backend]);
    assert_eq!(role_status(&web), 200);
    let flush = "for t in nat filter mangle raw; do iptables -t $t -F; iptables -t $t -X; done; \
        command -v nft >/dev/null && nft flush ruleset; true";
    nothing_is_handed_out(&sandbox, || {
        for _ in 0..3 {
            assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
            eventually("the redirect is back", || {
                assert!(!gets_the_node_role(web.network()));
                ask(&web, "GET", ROLE_NAME, &[]).is_ok_and(|answer| answer.status == 200)
            });
        }
    });
    assert!(gets_the_node_role(sandbox.node()), "the node itself goes on as ever");
    assert!(support::metric(&sandbox, "kube2irsa_rules_restored_total{part=\"redirect\"}") >= 1.0);
}

#[test]
fn when_routing_rules_are_flushed_too_the_guard_comes_back() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let _daemon = Daemon::ready(&sandbox, &[]);
    let before = support::rules(&sandbox);
    for address in ["169.254.169.254", "fd00:ec2::254"] {
        assert!(before.contains(&format!("from all to {address} prohibit")), "{before}");
    }
    let flush = "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default; \
        ip -6 rule flush; ip -6 rule add pref 32766 lookup main; true";
    assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
    eventually("all rules are back", || support::rules(&sandbox) == before);
    assert!(!gets_the_node_role(web.network()));
    assert!(support::metric(&sandbox, "kube2irsa_rules_restored_total{part=\"guard\"}") >= 1.0);
}

#[test]
fn a_connection_from_before_the_start_reaches_the_real_service_no_longer() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let mut old = connect(&web).unwrap();
    old.send("GET", &node_role_path(), &[]).unwrap();
    assert_eq!(old.answer().unwrap().status, 200, "without us it does");

    let _daemon = Daemon::ready(&sandbox, &[]);
    nothing_is_handed_out(&sandbox, || {
        let answer = old.send("GET", &node_role_path(), &[]).and_then(|()| old.answer());
        assert!(answer.is_err(), "{answer:?}");
    });
    assert_eq!(role_status(&web), 200, "a new one is served");
}

#[test]
fn a_killed_daemon_leaves_connection_refused_and_serves_again_once_it_is_back() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200);
    daemon.kill();
    nothing_is_handed_out(&sandbox, || {
        // A program that it was about to start, such as iptables, has its sockets until it runs.
        eventually("nobody listens", || connect(&web).is_err());
        for _ in 0..5 {
            let error = connect(&web).err().unwrap_or_else(|| panic!("connected"));
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            thread::sleep(Duration::from_millis(50));
        }
    });
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
}

#[test]
fn a_connection_that_was_not_redirected_is_closed() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "iptables"]);
    assert_eq!(role_status(&web), 200);
    let from_pod = Connection::open(web.network(), sandbox::sandbox::LISTEN).err().unwrap();
    assert_eq!(from_pod.kind(), io::ErrorKind::ConnectionRefused, "the rules let nobody in");

    // Nor does the daemon serve those that a flushed rule lets in.
    let open = "while iptables -D INPUT -p tcp -m tcp --dport 9169 -j KUBE2IRSA-INPUT; do :; done 2>/dev/null; true";
    let closed = || {
        assert!(sandbox.node().command("sh").args(["-c", open]).status().unwrap().success());
        let Ok(mut direct) = Connection::open(web.network(), sandbox::sandbox::LISTEN) else { return false };
        direct.send("GET", ROLE_NAME, &[]).is_err() || direct.is_closed()
    };
    eventually("a direct connection is let in and closed", closed);
    assert!(support::metric(&sandbox, "kube2irsa_direct_connections_total") >= 1.0);
}

#[test]
fn the_rules_stay_when_the_daemon_stops_and_leave_with_an_operators_command() {
    for backend in BACKENDS {
        the_rules_stay_and_leave_with_an_operators_command(backend);
    }
}

fn the_rules_stay_and_leave_with_an_operators_command(backend: &str) {
    let sandbox = sandbox();
    let foreign =
        "iptables -A INPUT -p tcp --dport 22 -j ACCEPT; iptables -t nat -A PREROUTING -p tcp --dport 81 -j RETURN";
    assert!(sandbox.node().command("sh").args(["-c", foreign]).status().unwrap().success());
    let web = exposed_pod(&sandbox);
    let before = support::rules(&sandbox);
    let daemon = Daemon::ready(&sandbox, &["--intercept", backend]);
    let installed = support::rules(&sandbox);
    assert_ne!(installed, before);
    assert!(daemon.stop().success());
    assert_eq!(support::rules(&sandbox), installed);
    assert!(!gets_the_node_role(web.network()));

    // Another run, at another port, leaves nothing of the first one.
    let mut other = Daemon::started(&sandbox, &["--intercept", backend, "--listen", "10.0.0.10:9269"]);
    other.wait_until_ready(&sandbox);
    assert_eq!(role_status(&web), 200);
    assert_eq!(support::rules(&sandbox).replace("9269", "9169"), installed);
    assert!(other.stop().success());

    let remove = sandbox.node().command(support::daemon_binary()).args(["rules", "remove"]);
    assert!(remove.status().unwrap().success());
    assert_eq!(support::rules(&sandbox), before);
    assert!(gets_the_node_role(web.network()));
}

#[test]
fn another_interceptors_rule_for_the_same_address_comes_after_ours() {
    let sandbox = sandbox();
    let web = exposed_pod(&sandbox);
    let mut daemon = Daemon::ready(&sandbox, &["--intercept", "iptables"]);
    // By its address, by a prefix with it, and by its port alone.
    for other in [
        "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to 10.0.0.10:9999",
        "-d 169.254.0.0/16 -p tcp -m tcp --dport 80 -j DNAT --to 10.0.0.10:9998",
        "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9997",
    ] {
        let insert = format!("iptables -t nat -I PREROUTING {other}");
        assert!(sandbox.node().command("sh").args(["-c", &insert]).status().unwrap().success());
        let port = other.split_at(other.len() - 4).1;
        eventually("our jump is before the other's", || {
            role_status_or_none(&web) == Some(200) && support::rules(&sandbox).contains(port)
        });
        daemon.wait_until_ready(&sandbox);
    }
    // And nothing is done again once it is.
    let restored = || {
        let metrics = support::admin(&sandbox, "/metrics").1;
        metrics.lines().filter(|line| line.contains("restored_total")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = restored();
    assert!(!before.is_empty());
    thread::sleep(Duration::from_secs(6));
    assert_eq!(restored(), before);
}

fn role_status_or_none(pod: &Pod) -> Option<u16> {
    ask(pod, "GET", ROLE_NAME, &[]).ok().map(|answer| answer.status)
}

#[test]
fn rules_that_cannot_be_removed_are_said_to_stay() {
    for (backend, command) in BACKENDS.into_iter().zip(["nft", "iptables"]) {
        rules_that_cannot_be_removed_stay(backend, command);
    }
}

fn rules_that_cannot_be_removed_stay(backend: &str, command: &str) {
    let sandbox = sandbox();
    let _web = exposed_pod(&sandbox);
    assert!(Daemon::ready(&sandbox, &["--intercept", backend]).stop().success());
    let remove = |path: &str| {
        let command = sandbox.node().command(support::daemon_binary()).args(["rules", "remove"]).env("PATH", path);
        command.output().unwrap()
    };
    let without_commands = remove("/nowhere");
    assert!(!without_commands.status.success());
    let said = String::from_utf8(without_commands.stderr).unwrap();
    assert!(said.contains(&format!("not removed: {command} is not installed")), "{said}");
    assert!(!support::rules(&sandbox).contains("prohibit"), "what can be removed is");
    assert!(support::rules(&sandbox).to_lowercase().contains("kube2irsa"));
    assert!(remove("/usr/sbin:/sbin").status.success());
    assert!(!support::rules(&sandbox).to_lowercase().contains("kube2irsa"));
}

#[test]
fn without_iptables_and_without_rules_by_it_nothing_of_ours_stays() {
    let sandbox = sandbox();
    let before = support::rules(&sandbox);
    assert!(Daemon::ready(&sandbox, &["--intercept", "nft"]).stop().success());
    let nft_only = sandbox.directory().join("nft-only");
    std::fs::create_dir(&nft_only).unwrap();
    std::os::unix::fs::symlink("/usr/sbin/nft", nft_only.join("nft")).unwrap();
    let remove = || {
        let command = sandbox.node().command(support::daemon_binary()).args(["rules", "remove"]);
        let output = command.env("PATH", nft_only.to_str().unwrap()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (done, said) = remove();
    assert!(done && said.contains("cannot be looked at: legacy iptables, for iptables is not installed"), "{said}");
    assert_eq!(support::rules(&sandbox), before);
    // `nft` sees what was put there by iptables.
    assert!(Daemon::ready(&sandbox, &["--intercept", "iptables"]).stop().success());
    let (done, said) = remove();
    assert!(!done && said.contains("not removed: iptables is not installed"), "{said}");
}
