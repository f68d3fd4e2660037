//! With which power the daemon asks the API server: as its node where that is allowed, and never with more.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use http::StatusCode;
use sandbox::{
    kubernetes::{Fault, Grant, Target},
    sandbox::{DAEMON_USER, Sandbox},
};
use support::{Daemon, admin, eventually, metric, role_status, with_a_pod};

/// What `daemonset/manifests/direct.yaml` grants.
fn direct_rights() -> [Grant; 4] {
    [
        Grant::new(&["list", "watch"], "pods"),
        Grant::new(&["create"], "serviceaccounts/token"),
        Grant::new(&["get", "list", "watch"], "serviceaccounts"),
        Grant::new(&["get", "list", "watch"], "namespaces"),
    ]
}

fn mode(sandbox: &Sandbox, mode: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_token_access_info{{mode=\"{mode}\"}}"))
}

#[test]
fn pods_and_tokens_are_asked_for_as_the_node_and_service_accounts_as_itself() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200);
    assert_eq!((mode(&sandbox, "node"), metric(&sandbox, "kube2irsa_excess_rights")), (1.0, 0.0));
    let requests = sandbox.cloud.kubernetes.requests();
    assert!(requests.iter().all(|request| request.user == DAEMON_USER), "{requests:?}");
    for (verb, resource, impersonated) in [
        ("watch", "pods", "system:node:node-1"),
        ("create", "serviceaccounts/token", "system:node:node-1"),
        ("watch", "serviceaccounts", ""),
    ] {
        let mut of_it = requests.iter().filter(|request| request.verb == verb && request.resource == resource);
        assert!(of_it.all(|request| request.impersonated == impersonated), "{requests:?}");
    }
}

#[test]
fn a_failure_is_no_refusal_the_daemon_waits_with_the_reason_and_then_acts_as_its_node() {
    let (sandbox, web) = with_a_pod();
    for grant in direct_rights() {
        sandbox.cloud.kubernetes.grant(DAEMON_USER, grant);
    }
    let faults = sandbox.cloud.kubernetes.faults();
    let token = || Target::any().verb("create").resource("serviceaccounts/token");
    faults.inject_times(token(), Fault::Answer(StatusCode::SERVICE_UNAVAILABLE), 3);
    faults.inject(token(), Fault::Stall);
    let mut daemon = Daemon::started(&sandbox, &[]);
    let lacks = |what: &str| {
        eventually(what, || support::admin_if_up(&sandbox, "/readyz").is_some_and(|lacks| lacks.contains(what)));
    };
    lacks("token access: whether node mode is allowed is not known: the API server refused the TokenRequest: 503");
    lacks("token access: whether node mode is allowed is not known: the API server did not answer the TokenRequest");
    assert_eq!((mode(&sandbox, "node"), mode(&sandbox, "direct")), (0.0, 0.0));
    faults.clear();
    daemon.wait_until_ready(&sandbox);
    assert_eq!((mode(&sandbox, "node"), mode(&sandbox, "direct")), (1.0, 0.0));
    assert_eq!(role_status(&web), 200);
    eventually("rights beyond the mode are seen", || metric(&sandbox, "kube2irsa_excess_rights") == 1.0);
    assert!(daemon.log().contains("which node mode does not need"), "{}", daemon.log());
}

#[test]
fn where_node_mode_is_refused_the_daemon_acts_as_itself() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.kubernetes.revoke(DAEMON_USER);
    for grant in direct_rights() {
        sandbox.cloud.kubernetes.grant(DAEMON_USER, grant);
    }
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!((mode(&sandbox, "node"), mode(&sandbox, "direct")), (0.0, 1.0));
    assert_eq!(role_status(&web), 200);
    assert!(daemon.log().contains("cannot impersonate-on:associated-node:list"), "{}", daemon.log());
}

#[test]
fn a_mode_that_is_asked_for_is_not_tried_out() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::started(&sandbox, &["--token-access", "direct"]);
    eventually("the watch of pods is refused", || {
        support::admin_if_up(&sandbox, "/metrics").is_some()
            && metric(&sandbox, "kube2irsa_watch_errors_total{resource=\"pods\"}") >= 1.0
    });
    assert_eq!((mode(&sandbox, "direct"), admin(&sandbox, "/readyz").0), (1.0, 503));
    daemon.stop();
    let daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    assert_eq!((mode(&sandbox, "node"), role_status(&web)), (1.0, 200), "{}", daemon.log());
}
