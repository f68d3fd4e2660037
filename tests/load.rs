//! What we cost the API server: as much as this node's pods make of it, whatever else the cluster holds.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use sandbox::{
    kubernetes::{NewPod, RecordedRequest},
    sandbox::Sandbox,
};
use support::{Daemon, eventually, sandbox};

/// Longer than all that the daemon is told of this node in this test.
const LONG: usize = 100_000;

/// Pods of two namespaces here, the daemon's own on the node's network, and others elsewhere.
fn cluster() -> Sandbox {
    let sandbox = sandbox();
    // None comes of itself while the test counts.
    sandbox.cloud.kubernetes.faults().bookmark_every(Duration::from_secs(3600));
    for namespace in ["team-a", "team-b", "team-c"] {
        sandbox.add_service_account(namespace, "web", &format!("{namespace}-web")).unwrap();
    }
    for (namespace, name) in [("team-a", "web-0"), ("team-a", "web-1"), ("team-b", "web-0")] {
        // Also a pod that has no network yet counts.
        sandbox.create_pod(namespace, name, "web");
    }
    for namespace in ["team-a", "team-c"] {
        elsewhere(&sandbox, namespace, "elsewhere");
    }
    sandbox
}

/// A pod of another node, which is long.
fn elsewhere(sandbox: &Sandbox, namespace: &str, name: &str) {
    let pod = NewPod::new(namespace, name).service_account("web").node("node-2");
    sandbox.cloud.kubernetes.create_pod(pod.annotation("example.com/long", &"x".repeat(LONG)));
    sandbox.cloud.kubernetes.run_pod(namespace, name, &["10.9.9.9".parse().unwrap()]);
}

/// A request of the daemon's, as what it asks for.
fn asked(request: &RecordedRequest) -> String {
    let selector = request.query.split('&').find(|parameter| parameter.starts_with("fieldSelector="));
    format!("{} {}", request.path, selector.unwrap_or_default()).trim_end().to_owned()
}

fn sorted<'a>(requests: impl IntoIterator<Item = &'a RecordedRequest>) -> Vec<String> {
    let mut asked = requests.into_iter().map(asked).collect::<Vec<_>>();
    asked.sort();
    asked
}

#[test]
fn one_watch_of_pods_and_two_for_each_namespace_with_a_pod_here_and_none_else() {
    let sandbox = cluster();
    let kubernetes = &sandbox.cloud.kubernetes;
    let _daemon = Daemon::ready(&sandbox, &[]);
    let expected = |namespaces: &[&str]| {
        let of = |namespace: &&str| {
            let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            [accounts, format!("/api/v1/namespaces fieldSelector=metadata.name%3D{namespace}")]
        };
        let mut expected = namespaces.iter().flat_map(of).collect::<Vec<_>>();
        expected.push("/api/v1/pods fieldSelector=spec.nodeName%3Dnode-1".to_owned());
        expected.sort();
        expected
    };
    eventually("watches", || kubernetes.open_watches().len() >= 5);
    assert_eq!(sorted(&kubernetes.open_watches()), expected(&["team-a", "team-b"]));
    // Each began with one list; lists of one pod are the trial of our rights.
    let requests = kubernetes.requests();
    let trial = |request: &RecordedRequest| request.query.split('&').any(|parameter| parameter == "limit=1");
    let listed = |request: &&RecordedRequest| request.verb == "list" && !trial(request);
    assert_eq!(sorted(requests.iter().filter(listed)), expected(&["team-a", "team-b"]));

    sandbox.create_pod("team-c", "web-0", "web");
    eventually("a new namespace", || sorted(&kubernetes.open_watches()) == expected(&["team-a", "team-b", "team-c"]));
    kubernetes.delete_pod("team-b", "web-0");
    kubernetes.delete_pod("team-c", "web-0");
    eventually("namespaces without pods", || sorted(&kubernetes.open_watches()) == expected(&["team-a"]));
}

#[test]
fn of_what_changes_elsewhere_we_are_told_nothing() {
    let sandbox = cluster();
    let kubernetes = &sandbox.cloud.kubernetes;
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("watches", || kubernetes.open_watches().len() == 5);
    let told = || {
        let sent = kubernetes.bytes_sent().into_iter().filter(|((verb, _), _)| verb == "watch");
        sent.map(|((_, resource), sent)| (resource, usize::try_from(sent).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let asked = || kubernetes.requests().iter().filter(|request| request.verb != "create").count();
    let (told_before, asked_before) = (told(), asked());
    let long = "x".repeat(LONG);
    let annotation = [("example.com/long", long.as_str())];
    for namespace in ["team-a", "team-c"] {
        elsewhere(&sandbox, namespace, "another");
        kubernetes.delete_pod(namespace, "elsewhere");
    }
    sandbox.annotate("team-c", "web", &annotation);
    sandbox.annotate("team-d", "web", &annotation);
    kubernetes.delete_service_account("team-c", "web");
    kubernetes.create_namespace("team-c", &annotation);
    // Whatever was sent of that was sent before these.
    kubernetes.annotate_pod("team-a", "web-0", &[("example.com/short", "x")]);
    sandbox.annotate("team-a", "other", &[]);
    sandbox.annotate("team-b", "other", &[]);
    kubernetes.create_namespace("team-a", &[("example.com/short", "x")]);
    kubernetes.create_namespace("team-b", &[("example.com/short", "x")]);
    let more = || {
        let before = |resource: &str| told_before.get(resource).copied().unwrap_or_default();
        told().into_iter().map(|(resource, now)| now - before(&resource)).collect::<Vec<_>>()
    };
    eventually("what changes here", || more().len() == 3 && more().iter().all(|more| *more > 0));
    assert!(more().iter().all(|more| *more < LONG), "{:?}", told());
    assert_eq!(asked(), asked_before);
}
