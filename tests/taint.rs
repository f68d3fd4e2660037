//! The start-up taint: it keeps pods from a node until the daemon is ready there, and nothing else depends on it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use http::StatusCode;
use kube2irsa::{
    config::TokenAccess,
    metrics::Metrics,
    readiness::Readiness,
    taint::Remover,
    token::access::{Access, Decision},
};
use sandbox::{
    http::Server,
    issuer::Issuer,
    kubernetes::{Fault, Grant, Kubernetes, Target},
    sandbox::{DAEMON_USER, NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use support::{Daemon, admin, eventually, metric, role_status, with_a_pod};
use tokio::net::TcpListener;

const REMOVE: &str = "--remove-taint";

fn ours(effect: &str) -> Value {
    json!({"key": "kube2irsa.io/not-ready", "effect": effect})
}

fn others(key: &str) -> Value {
    json!({"key": key, "value": "kube2irsa.io/not-ready", "effect": "NoSchedule"})
}

/// A pod with a role, and a node with these taints; the right to patch it, as
/// `daemonset/manifests/startup-taint-node.yaml` grants it.
fn tainted(taints: &Value) -> (Sandbox, Pod) {
    let (sandbox, web) = with_a_pod();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.taint_node(NODE, taints);
    kubernetes.grant(DAEMON_USER, Grant::new(&["patch"], "nodes"));
    (sandbox, web)
}

fn taints(sandbox: &Sandbox) -> Value {
    sandbox.cloud.kubernetes.node_taints(NODE)
}

/// How often Nodes were asked for, and patched.
fn asked(sandbox: &Sandbox) -> (usize, usize) {
    let requests = sandbox.cloud.kubernetes.requests();
    let of = |verb: &str| requests.iter().filter(|one| one.resource == "nodes" && one.verb == verb).count();
    let all = requests.iter().filter(|one| one.resource == "nodes").count();
    assert_eq!(all, of("get") + of("patch"), "{requests:?}");
    (of("get"), of("patch"))
}

fn results(sandbox: &Sandbox) -> [f64; 4] {
    ["removed", "conflict", "forbidden", "failed"]
        .map(|result| metric(sandbox, &format!("kube2irsa_startup_taint_removals_total{{result=\"{result}\"}}")))
}

fn patch() -> Target {
    Target::any().verb("patch").resource("nodes")
}

/// Long enough for what must not happen to have happened.
fn wait() {
    thread::sleep(Duration::from_millis(500));
}

#[test]
fn once_ready_it_is_removed_whatever_its_effect_and_other_taints_stay() {
    let given = json!([others("a"), ours("NoSchedule"), others("b"), ours("NoExecute")]);
    let (sandbox, web) = tainted(&given);
    let daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("it is removed", || taints(&sandbox) == json!([others("a"), others("b")]));
    assert_eq!((asked(&sandbox), results(&sandbox)), ((1, 1), [1.0, 0.0, 0.0, 0.0]), "{}", daemon.log());
    let requests = sandbox.cloud.kubernetes.requests();
    for (verb, impersonated) in [("get", "system:node:node-1"), ("patch", "")] {
        let request = requests.iter().find(|request| request.resource == "nodes" && request.verb == verb).unwrap();
        assert_eq!((&*request.user, &*request.impersonated), (DAEMON_USER, impersonated), "NodeRestriction");
    }
    assert_eq!(role_status(&web), 200);
}

#[test]
fn while_the_daemon_is_not_ready_it_stays() {
    let (sandbox, _web) = tainted(&json!([ours("NoSchedule")]));
    let faults = sandbox.cloud.kubernetes.faults();
    faults.inject(Target::any().verb("list").resource("serviceaccounts"), Fault::Stall);
    sandbox.cloud.imds.set_down(true);
    let mut daemon = Daemon::started(&sandbox, &[REMOVE]);
    let lacks = |what: &str| support::admin_if_up(&sandbox, "/readyz").is_some_and(|lacks| lacks.contains(what));
    eventually("nothing lacks but two", || lacks("watches: ") && lacks("region: ") && !lacks("rules: "));
    wait();
    assert_eq!((taints(&sandbox), asked(&sandbox).1), (json!([ours("NoSchedule")]), 0), "watches and region");
    sandbox.cloud.imds.set_down(false);
    eventually("nothing lacks but one", || lacks("watches: ") && !lacks("region: "));
    wait();
    assert_eq!((taints(&sandbox), asked(&sandbox).1), (json!([ours("NoSchedule")]), 0), "watches");
    faults.clear();
    daemon.wait_until_ready(&sandbox);
    eventually("it is removed", || taints(&sandbox).is_null());
}

#[test]
fn a_daemon_that_has_not_taken_over_yet_leaves_it() {
    // Also where it waits for no rules.
    for intercept in ["auto", "none"] {
        let (sandbox, _web) = tainted(&json!([ours("NoSchedule")]));
        let before = Daemon::ready(&sandbox, &["--intercept", intercept]);
        sandbox.cloud.sts.faults().hold();
        let next = Daemon::started(&sandbox, &["--intercept", intercept, REMOVE]);
        eventually("the next one waits for credentials", || sandbox.cloud.sts.faults().held() > 0);
        wait();
        assert_eq!((taints(&sandbox), asked(&sandbox)), (json!([ours("NoSchedule")]), (0, 0)), "{}", next.log());
        sandbox.cloud.sts.faults().release();
        eventually("it is removed", || taints(&sandbox).is_null());
        assert!(next.log().contains("a daemon is running here"), "{}", next.log());
        assert!(before.stop().success());
    }
}

#[test]
fn without_the_flag_no_node_is_asked_for_or_changed() {
    let (sandbox, _web) = tainted(&json!([ours("NoSchedule")]));
    let _daemon = Daemon::ready(&sandbox, &[]);
    wait();
    assert_eq!((taints(&sandbox), asked(&sandbox)), (json!([ours("NoSchedule")]), (0, 0)));
}

#[test]
fn where_it_is_not_nothing_is_written() {
    let (sandbox, _web) = tainted(&json!([others("kube2irsa.io/not-ready-yet")]));
    let _daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("it is looked for", || asked(&sandbox).0 == 1);
    wait();
    assert_eq!((asked(&sandbox), results(&sandbox)), ((1, 0), [0.0; 4]));
}

#[test]
fn what_others_write_between_look_and_removal_stays() {
    let (sandbox, _web) = tainted(&json!([others("a"), ours("NoSchedule")]));
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.faults().inject_times(patch(), Fault::Delay(Duration::from_secs(2)), 1);
    let daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("the patch is under way", || asked(&sandbox).1 == 1);
    // One is gone, and two have come: ours is in another place, and in its own is another.
    kubernetes.taint_node(NODE, &json!([others("b"), others("c"), ours("NoSchedule")]));
    eventually("it is removed", || taints(&sandbox) == json!([others("b"), others("c")]));
    assert_eq!(results(&sandbox), [1.0, 1.0, 0.0, 0.0]);
    assert!(!daemon.log().contains("cannot be removed"), "{}", daemon.log());

    // What does not touch the taints is no conflict.
    daemon.stop();
    kubernetes.taint_node(NODE, &json!([others("a"), ours("NoSchedule")]));
    kubernetes.faults().inject_times(patch(), Fault::Delay(Duration::from_secs(2)), 1);
    let _daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("the patch is under way", || asked(&sandbox).1 == 3);
    kubernetes.label_node(NODE, &[("written", "meanwhile")]);
    eventually("it is removed", || taints(&sandbox) == json!([others("a")]));
    assert_eq!(results(&sandbox), [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn what_fails_is_said_once_and_tried_again_and_pods_are_served() {
    let (sandbox, web) = tainted(&json!([ours("NoSchedule")]));
    let faults = sandbox.cloud.kubernetes.faults();
    faults.inject(patch(), Fault::Answer(StatusCode::SERVICE_UNAVAILABLE));
    let daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("it is tried again", || results(&sandbox)[3] >= 3.0);
    assert_eq!((admin(&sandbox, "/readyz").0, role_status(&web)), (200, 200));
    assert_eq!(daemon.log().matches("cannot be removed from node-1, and is tried again: 503").count(), 1);
    faults.clear();
    // Others change the taints all the time.
    faults.inject_times(patch(), Fault::Answer(StatusCode::CONFLICT), 1);
    eventually("it is removed", || taints(&sandbox).is_null());
    assert_eq!(results(&sandbox)[1], 1.0, "{}", daemon.log());
}

#[test]
fn without_the_right_a_warning_says_what_to_apply_and_pods_are_served() {
    let (sandbox, web) = with_a_pod();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.taint_node(NODE, &json!([ours("NoSchedule")]));
    let daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("it is refused", || results(&sandbox)[2] >= 2.0);
    assert_eq!((admin(&sandbox, "/readyz").0, role_status(&web)), (200, 200));
    let said = "cannot patch resource \"nodes\" in API group \"\" at the cluster scope; \
        apply the chart with startupTaint.enabled";
    assert_eq!(daemon.log().matches(said).count(), 1, "{}", daemon.log());
    assert_eq!(taints(&sandbox), json!([ours("NoSchedule")]));
    kubernetes.grant(DAEMON_USER, Grant::new(&["patch"], "nodes"));
    eventually("it is removed", || taints(&sandbox).is_null());
}

#[test]
fn without_the_right_to_read_its_node_too() {
    let (sandbox, web) = with_a_pod();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.taint_node(NODE, &json!([ours("NoSchedule")]));
    kubernetes.revoke(DAEMON_USER);
    for (verbs, resource) in [
        (&["list", "watch"][..], "pods"),
        (&["create"], "serviceaccounts/token"),
        (&["get", "list", "watch"], "serviceaccounts"),
        (&["get", "list", "watch"], "namespaces"),
        (&["patch"], "nodes"),
    ] {
        kubernetes.grant(DAEMON_USER, Grant::new(verbs, resource));
    }
    let daemon = Daemon::ready(&sandbox, &[REMOVE]);
    eventually("it is refused", || results(&sandbox)[2] >= 1.0);
    let log = daemon.log();
    assert!(log.contains("cannot get resource \"nodes\"") && log.contains("startupTaint.enabled"), "{log}");
    assert_eq!(role_status(&web), 200);
    kubernetes.grant(DAEMON_USER, Grant::new(&["get"], "nodes"));
    eventually("it is removed", || taints(&sandbox).is_null());
}

/// With the pause that is in force this takes longer than a test may.
#[tokio::test]
async fn a_taint_that_is_set_again_is_removed_again_if_the_daemon_is_ready_then() {
    let kubernetes = Kubernetes::new(Arc::new(Issuer::new("https://issuer.test").unwrap()));
    kubernetes.create_node(NODE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let served = kubernetes.clone();
    let server = Server::start(listener, None, move |request, _| {
        let kubernetes = served.clone();
        async move { kubernetes.handle(request).await }
    });
    let server = server.unwrap();
    let mut config = kube::Config::new(format!("http://{}", server.address()).parse().unwrap());
    config.auth_info.token = Some(kubernetes.user_token("administrator").into());
    let own = kube::Client::try_from(config).unwrap();
    let (access, metrics) = (Arc::new(Access::new(own.clone(), own.clone())), Arc::new(Metrics::new().unwrap()));
    let decision = Decision {
        access: Arc::clone(&access),
        node: NODE.into(),
        audience: String::new(),
        own_token: None,
        readiness: Arc::new(Readiness::default()),
        metrics: Arc::clone(&metrics),
    };
    tokio::spawn(decision.make(TokenAccess::Direct));
    let is_ready = Arc::new(AtomicBool::new(true));
    let ready = Arc::clone(&is_ready);
    let remover = Remover {
        access,
        own,
        node: NODE.into(),
        ready: move || ready.load(Ordering::SeqCst),
        metrics,
        look_again: Duration::from_millis(50),
    };
    tokio::spawn(remover.run());
    let gone = async || {
        while !kubernetes.node_taints(NODE).is_null() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for _ in 0..3 {
        kubernetes.taint_node(NODE, &json!([ours("NoExecute")]));
        tokio::time::timeout(support::PATIENCE, gone()).await.unwrap();
    }
    is_ready.store(false, Ordering::SeqCst);
    // A look may have begun before.
    tokio::time::sleep(Duration::from_millis(500)).await;
    kubernetes.taint_node(NODE, &json!([ours("NoExecute")]));
    tokio::time::timeout(Duration::from_millis(500), gone()).await.unwrap_err();
    is_ready.store(true, Ordering::SeqCst);
    tokio::time::timeout(support::PATIENCE, gone()).await.unwrap();
}
