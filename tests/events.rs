//! What an operator finds on a pod that gets no credentials: Events, in the API.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{sync::Arc, thread, time::Duration};

use http::StatusCode;
use kube::config::Kubeconfig;
use kube2irsa::{events, metrics::Metrics};
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Fault, Grant, Target},
    sandbox::{DAEMON_USER, NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use support::{Daemon, eventually, metric, role_status, sandbox, with_a_pod};

fn written(sandbox: &Sandbox) -> f64 {
    metric(sandbox, "kube2irsa_events_total{result=\"written\"}")
}

fn failed(sandbox: &Sandbox) -> f64 {
    metric(sandbox, "kube2irsa_events_total{result=\"failed\"}")
}

/// The one Event that there is, on this pod: its reason and its note.
fn only_event(sandbox: &Sandbox, pod: &Pod) -> (String, String) {
    eventually("there is an Event", || written(sandbox) > 0.0);
    let events = sandbox.cloud.kubernetes.events();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    for (pointer, value) in [
        ("/metadata/namespace", &*pod.namespace),
        ("/regarding/kind", "Pod"),
        ("/regarding/apiVersion", "v1"),
        ("/regarding/namespace", &pod.namespace),
        ("/regarding/name", &pod.name),
        ("/regarding/uid", &pod.uid),
        ("/reportingController", "kube2irsa"),
        ("/reportingInstance", NODE),
        ("/type", "Warning"),
    ] {
        assert_eq!(text(pointer), value, "{pointer}");
    }
    assert!(!event.to_string().contains("eyJ"), "a token is in the Event: {event}");
    (text("/reason"), text("/note"))
}

/// A pod whose role trusts another service account.
fn with_a_refused_pod() -> (Sandbox, Pod) {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    (sandbox, web)
}

#[test]
fn a_role_arn_that_is_none_is_an_event_and_no_call_to_sts() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", "web")]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    for _ in 0..10 {
        assert_eq!(role_status(&web), 403);
    }
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "InvalidAnnotation");
    for part in ["team-a/web", "eks.amazonaws.com/role-arn", "\"web\"", "Correct the annotation"] {
        assert!(note.contains(part), "{part}: {note}");
    }
    assert_eq!(sandbox.cloud.sts.calls().len(), 0);
}

#[test]
fn a_role_that_the_namespace_does_not_permit_is_an_event() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--namespace-policy", "required"]);
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "RoleNotPermitted");
    assert!(note.contains("kube2irsa.io/permitted-roles") && note.contains("role/web"), "{note}");
}

#[test]
fn an_audience_that_nodes_are_not_granted_is_refused_at_once_and_an_event() {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let annotations = [("eks.amazonaws.com/role-arn", &*role), ("eks.amazonaws.com/audience", "another.example")];
    sandbox.annotate("team-a", "web", &annotations);
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "TokenRefused");
    assert!(note.contains("another.example") && note.contains("additionalAudiences"), "{note}");
    assert_eq!(metric(&sandbox, "kube2irsa_pods{credentials=\"refused_by_kubernetes\"}"), 1.0);
}

#[test]
fn a_refusal_of_sts_is_one_event_that_says_what_to_do_however_often_the_pod_asks() {
    let (sandbox, web) = with_a_refused_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 403);
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "CredentialsRefused");
    for part in [
        "ServiceAccount team-a/web",
        "role/web",
        "AccessDenied",
        "trust policy",
        "system:serviceaccount:team-a:web",
        "sts.amazonaws.com",
    ] {
        assert!(note.contains(part), "{part}: {note}");
    }
    let calls = || sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity");
    let before = calls();
    for _ in 0..100 {
        assert_eq!(role_status(&web), 403);
        thread::sleep(Duration::from_millis(20));
    }
    assert!(calls() > before, "it was refused again, else this shows nothing");
    only_event(&sandbox, &web);
    assert_eq!(written(&sandbox), 1.0, "nor was it written again");
    assert!(!daemon.log().contains("Events on pods cannot be written"), "{}", daemon.log());
}

#[test]
fn a_refused_token_is_an_event() {
    let (sandbox, web) = with_a_pod();
    let tokens = Target::any().verb("create").resource("serviceaccounts/token");
    sandbox.cloud.kubernetes.faults().inject(tokens, Fault::Answer(StatusCode::CONFLICT));
    let _daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    assert_eq!(role_status(&web), 403);
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "TokenRefused");
    assert!(note.contains("409") && note.contains("team-a/web"), "{note}");
}

#[test]
fn a_session_that_the_role_shortens_is_an_event_and_is_served() {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let annotations = [("eks.amazonaws.com/role-arn", role.as_str()), ("kube2irsa.io/session-duration", "7200")];
    sandbox.annotate("team-a", "web", &annotations);
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200);
    let (reason, note) = only_event(&sandbox, &web);
    assert_eq!(reason, "SessionShortened");
    assert!(note.contains("7200 s") && note.contains("kube2irsa.io/session-duration"), "{note}");
}

#[test]
fn a_failure_that_passes_is_no_event() {
    let (sandbox, web) = with_a_pod();
    let faults = sandbox.cloud.kubernetes.faults();
    let tokens = Target::any().verb("create").resource("serviceaccounts/token");
    faults.inject(tokens, Fault::Answer(StatusCode::SERVICE_UNAVAILABLE));
    let _daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    assert_eq!(role_status(&web), 503);
    faults.clear();
    eventually("it is served", || role_status(&web) == 200);
    assert_eq!(sandbox.cloud.kubernetes.events().len(), 0);
}

#[test]
fn pods_are_served_where_events_are_refused_or_not_answered() {
    let (sandbox, refused) = with_a_refused_pod();
    sandbox.add_service_account("team-a", "good", "good").unwrap();
    let good = sandbox.add_pod("team-a", "good-0", "good").unwrap();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.revoke(DAEMON_USER);
    // The rights of an earlier version.
    kubernetes.grant(DAEMON_USER, Grant::new(&["impersonate:associated-node"], "nodes").group("authentication.k8s.io"));
    for (verbs, resource) in [
        (["impersonate-on:associated-node:list", "impersonate-on:associated-node:watch"].as_slice(), "pods"),
        (&["impersonate-on:associated-node:create"], "serviceaccounts/token"),
        (&["get", "list", "watch"], "serviceaccounts"),
        (&["get", "list", "watch"], "namespaces"),
    ] {
        kubernetes.grant(DAEMON_USER, Grant::new(verbs, resource));
    }
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&refused), 403);
    assert_eq!(role_status(&good), 200);
    eventually("it is counted", || failed(&sandbox) >= 1.0);
    assert_eq!(sandbox.cloud.kubernetes.events().len(), 0);
    let said = daemon.log().matches("Events on pods cannot be written").count();
    assert_eq!(said, 1, "{}", daemon.log());

    kubernetes.grant(DAEMON_USER, Grant::new(&["create", "patch"], "events").group("events.k8s.io"));
    kubernetes.faults().inject(Target::any().resource("events"), Fault::Stall);
    sandbox.annotate("team-a", "bad", &[("eks.amazonaws.com/role-arn", "bad")]);
    let bad = sandbox.add_pod("team-a", "bad-0", "bad").unwrap();
    sandbox.add_service_account("team-a", "late", "late").unwrap();
    let late = sandbox.add_pod("team-a", "late-0", "late").unwrap();
    assert_eq!(role_status(&late), 200);
    assert_eq!(role_status(&bad), 403);
    eventually("it is given up", || failed(&sandbox) >= 2.0);
    assert_eq!(daemon.log().matches("Events on pods cannot be written").count(), 1, "{}", daemon.log());
}

#[test]
fn what_is_told_again_goes_on_as_a_series_also_where_the_api_server_has_forgotten_the_first() {
    let (sandbox, web) = with_a_pod();
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    // Whose threads live where the API server can be reached.
    let runtime = sandbox.outside().enter(build).unwrap().unwrap();
    let kubeconfig = Kubeconfig::read_from(sandbox.kubeconfig()).unwrap();
    let (report, reported) = tokio::sync::mpsc::channel(8);
    runtime.spawn(async move {
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        events::write(config.try_into().unwrap(), reported, Arc::new(Metrics::new().unwrap())).await;
    });
    let tell = |name: &str, count: Option<i32>| {
        let last = "2026-11-25T12:10:00.000001Z";
        let event = json!({
            "metadata": {"name": name, "namespace": "team-a"},
            "eventTime": "2026-11-25T12:00:00.123456Z",
            "series": count.map(|count| json!({"count": count, "lastObservedTime": last})),
            "reportingController": "kube2irsa",
            "reportingInstance": NODE,
            "action": "GetCredentials",
            "reason": "CredentialsRefused",
            "type": "Warning",
            "note": "what is wrong, and what to do",
            "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "team-a", "name": "web-0", "uid": web.uid},
        });
        report.blocking_send(serde_json::from_value(event).unwrap()).unwrap();
    };
    let counts = || {
        let events = sandbox.cloud.kubernetes.events();
        let count = |event: &Value| (event["metadata"]["name"].clone(), event["series"]["count"].clone());
        events.iter().map(count).collect::<Vec<_>>()
    };
    tell("web-0.1", None);
    tell("web-0.1", Some(57));
    tell("web-0.2", Some(3));
    let expected = [(json!("web-0.1"), json!(57)), (json!("web-0.2"), json!(3))];
    eventually("both are there", || counts() == expected);
    let requests = sandbox.cloud.kubernetes.requests();
    let verbs = requests.iter().filter(|request| request.resource == "events").map(|request| request.verb.as_str());
    assert_eq!(verbs.collect::<Vec<_>>(), ["create", "patch", "patch", "create"]);
}
