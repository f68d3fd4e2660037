//! On a real API server, with the files of `daemonset/manifests/`: what each mode of token access allows, and what it
//! does not. A tier of its own (`make test-apiserver`), for it builds a kube-apiserver and needs Go.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "support/apiserver.rs"]
mod server;
mod support;

use std::fs;

use sandbox::{
    cloud::ACCOUNT,
    network::CONTAINER_ADDRESSES,
    sandbox::{AUDIENCE, DAEMON, DAEMON_USER, NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use server::{Answer, ApiServer, Caller, bound, for_sts};
use support::{Daemon, eventually, http::Connection, metric, node::as_operator, role_status, sandbox};

const AS_NODE: &str = "system:node:node-1";
const OTHER_NODE: &str = "node-2";
const RIGHTS: &[&str] = &["ClusterRole", "ClusterRoleBinding"];
const MORE_RIGHTS: &str = "apply the chart with startupTaint.enabled";

/// Two nodes, each with a pod of `team-a/web`; an account that no pod uses; the daemon on the first.
struct Cluster {
    sandbox: Sandbox,
    api: ApiServer,
    daemon_token: String,
    here: String,
    elsewhere: String,
}

fn cluster() -> Cluster {
    let sandbox = sandbox();
    let api = ApiServer::start(&sandbox);
    let daemon_token = api.add_daemon(&sandbox);
    api.add_node(&sandbox, OTHER_NODE);
    api.add_namespace(&sandbox, "team-a", &[("web", Value::Null), ("unused", Value::Null)]);
    let here = api.add_pod(&sandbox, ("team-a", "web-0"), "web", NODE, Some("10.244.0.1"));
    let elsewhere = api.add_pod(&sandbox, ("team-a", "web-1"), "web", OTHER_NODE, Some("10.244.1.1"));
    Cluster { sandbox, api, daemon_token, here, elsewhere }
}

impl Cluster {
    fn ourselves(&self) -> Caller<'_> {
        Caller { token: &self.daemon_token, impersonates: None }
    }

    fn as_node(&self) -> Caller<'_> {
        Caller { impersonates: Some(AS_NODE), ..self.ourselves() }
    }

    fn token(&self, caller: Caller<'_>, account: &str, request: &Value) -> Answer {
        self.api.token(&self.sandbox, caller, ("team-a", account), request)
    }

    fn get(&self, caller: Caller<'_>, path: &str) -> Answer {
        self.api.call(&self.sandbox, caller, "GET", path, &Value::Null)
    }

    fn own_unbound_token(&self) -> String {
        let answer = self.api.token(&self.sandbox, self.api.admin(), (DAEMON, DAEMON), &json!({}));
        self.api.issued(answer)
    }
}

#[test]
#[ignore = "run by make test-apiserver"]
fn in_node_mode_the_daemon_has_power_over_its_nodes_pods_and_no_others() {
    let cluster = cluster();
    let good = for_sts("web-0", &cluster.here);
    let refused = cluster.token(cluster.as_node(), "web", &good);
    refused.refuses(
        403,
        r#"cannot impersonate-on:associated-node:create resource "serviceaccounts/token" in API group "" in the namespace "team-a""#,
    );
    cluster.api.apply(&cluster.sandbox, "node.yaml");
    eventually("a pod of the node gets a token", || cluster.token(cluster.as_node(), "web", &good).0 == 201);
    let of_node = cluster.get(cluster.as_node(), "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1").accepted();
    assert_eq!(of_node["items"].as_array().unwrap().len(), 2, "{of_node}");

    // Another node's pod, of the same account.
    cluster
        .token(cluster.as_node(), "web", &for_sts("web-1", &cluster.elsewhere))
        .refuses(403, "node requested token bound to a pod scheduled on a different node");
    // A token bound to nothing, or to a name alone.
    let unbound = json!({"spec": {"audiences": [AUDIENCE]}});
    cluster.token(cluster.as_node(), "web", &unbound).refuses(403, "node requested token not bound to a pod");
    cluster
        .token(cluster.as_node(), "web", &for_sts("web-0", ""))
        .refuses(403, "node requested token with a pod binding without a uid");
    // An account that no pod of the node uses.
    let no_relationship = "no relationship found between node 'node-1' and this object";
    cluster.token(cluster.as_node(), "unused", &good).refuses(403, no_relationship);
    // An audience that opens something in the cluster.
    let mut for_api = good.clone();
    for_api["spec"]["audiences"] = json!(["https://kubernetes.default.svc"]);
    let not_granted = "system:node:node-1 is not authorized to request tokens for this audience";
    cluster.token(cluster.as_node(), "web", &for_api).refuses(403, not_granted);
    // Another node's name, for that node's own pod.
    let other = Caller { impersonates: Some("system:node:node-2"), ..cluster.ourselves() };
    let arbitrary = r#"cannot impersonate-on:arbitrary-node:create resource "serviceaccounts/token" in API group "" in the namespace "team-a""#;
    cluster.token(other, "web", &for_sts("web-1", &cluster.elsewhere)).refuses(403, arbitrary);
    // All pods, and another node's.
    let selector = "can only list/watch pods with spec.nodeName field selector";
    cluster.get(cluster.as_node(), "/api/v1/pods").refuses(403, selector);
    let of_other = "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2";
    cluster.get(cluster.as_node(), of_other).refuses(403, selector);
    // What else a node may do.
    assert_eq!(cluster.get(cluster.as_node(), "/api/v1/nodes/node-1").0, 200, "its own place");
    let of_others = "cannot read 'node-2', only its own Node object";
    cluster.get(cluster.as_node(), "/api/v1/nodes/node-2").refuses(403, of_others);
    assert_eq!(cluster.get(cluster.as_node(), "/api/v1/namespaces/team-a/secrets/any").0, 403);
    // As ourselves.
    assert_eq!(cluster.token(cluster.ourselves(), "web", &good).0, 403);
    assert_eq!(cluster.get(cluster.ourselves(), of_other).0, 403);
    // The daemon's account without the daemon's pod.
    let token = cluster.own_unbound_token();
    cluster.token(Caller { token: &token, impersonates: Some(AS_NODE) }, "web", &good).refuses(403, arbitrary);
}

#[test]
#[ignore = "run by make test-apiserver"]
fn in_direct_mode_each_clause_of_the_policy_refuses_what_it_alone_should() {
    let cluster = cluster();
    let (api, sandbox) = (&cluster.api, &cluster.sandbox);
    api.add_namespace(sandbox, "kube-system", &[("web", Value::Null)]);
    let system = api.add_pod(sandbox, ("kube-system", "web-0"), "web", NODE, Some("10.244.0.2"));
    let unbound_caller = cluster.own_unbound_token();
    let with = |pointer: &str, value: Value| {
        let mut request = for_sts("web-0", &cluster.here);
        *request.pointer_mut(pointer).unwrap() = value;
        request
    };
    let may_only = "kube2irsa may ask only for tokens";
    let cases = [
        (
            with("/spec/audiences", json!(["https://kubernetes.default.svc"])),
            format!("{may_only} with the audience sts.amazonaws.com"),
        ),
        (
            with("/spec/audiences", json!([AUDIENCE, "https://kubernetes.default.svc"])),
            format!("{may_only} with the audience sts.amazonaws.com"),
        ),
        (with("/spec/boundObjectRef", Value::Null), format!("{may_only} that are bound to a pod by its UID")),
        (with("/spec/boundObjectRef", bound("web-0", "")), format!("{may_only} that are bound to a pod by its UID")),
        (
            with("/spec/boundObjectRef", json!({"kind": "Node", "apiVersion": "v1", "name": NODE})),
            format!("{may_only} that are bound to a pod by its UID"),
        ),
        (with("/spec/expirationSeconds", json!(901)), format!("{may_only} of at most 900 seconds")),
    ];
    let by_unbound = Caller { token: &unbound_caller, impersonates: None };
    let good = for_sts("web-0", &cluster.here);
    let in_system = || api.token(sandbox, cluster.ourselves(), ("kube-system", "web"), &for_sts("web-0", &system));

    // Without the policy all of it is given: nothing else refuses.
    api.apply_kinds(sandbox, "direct.yaml", RIGHTS);
    eventually("the rights are there", || cluster.token(cluster.ourselves(), "web", &good).0 == 201);
    for (request, _) in &cases {
        cluster.token(cluster.ourselves(), "web", request).accepted();
    }
    cluster.token(by_unbound, "web", &good).accepted();
    in_system().accepted();

    api.apply(sandbox, "direct.yaml");
    eventually("the policy is in force", || cluster.token(cluster.ourselves(), "web", &cases[0].0).0 == 422);
    cluster.token(cluster.ourselves(), "web", &good).accepted();
    cluster.token(cluster.ourselves(), "web", &with("/spec/expirationSeconds", json!(900))).accepted();
    for (request, message) in &cases {
        cluster.token(cluster.ourselves(), "web", request).refuses(422, message);
    }
    let only_bound = "kube2irsa may ask for tokens only with a token of its own that is bound to a node";
    cluster.token(by_unbound, "web", &good).refuses(422, only_bound);
    in_system().refuses(422, "kube2irsa may not ask for tokens in this namespace");
    // Nobody else is hindered.
    cluster.token(api.admin(), "web", &json!({})).accepted();

    // One mode's rights at a time.
    api.apply(sandbox, "node.yaml");
    eventually("direct mode's rights are gone", || cluster.token(cluster.ourselves(), "web", &good).0 == 403);
}

#[test]
#[ignore = "run by make test-apiserver"]
fn of_nodes_the_daemon_may_change_nothing_but_take_the_start_up_taint_off_its_own() {
    let cluster = cluster();
    let (api, sandbox) = (&cluster.api, &cluster.sandbox);
    let unbound = cluster.own_unbound_token();
    let by_unbound = Caller { token: &unbound, impersonates: None };
    let path = |node: &str| format!("/api/v1/nodes/{node}");
    let patch = |caller: Caller<'_>, path: &str, patch: &Value| api.call(sandbox, caller, "PATCH", path, patch);
    let taint = |key: &str| json!({"key": key, "value": "x", "effect": "NoSchedule"});
    let ours = |effect: &str| json!({"key": "kube2irsa.io/not-ready", "effect": effect});
    let before = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"labels": {"l": "1"}, "annotations": {"a": "1"}},
        "spec": {"unschedulable": true, "taints": [taint("a"), ours("NoSchedule"), taint("b"), ours("NoExecute")]},
    });
    for node in [NODE, OTHER_NODE] {
        // From an apply on the API server records who wrote what.
        api.apply_as(sandbox, api.admin(), &path(node), &before).accepted();
    }
    // As large as a node's status gets.
    let image = |number: usize| json!({"names": [format!("{}{number}@sha256", "n".repeat(100)), format!("{}{number}:1", "n".repeat(100))], "sizeBytes": number});
    let images = json!({"status": {"images": (0..50).map(image).collect::<Vec<_>>()}});
    patch(api.admin(), &format!("{}/status", path(NODE)), &images).accepted();
    let removed = |node: &str, also: Value| {
        let mut patch = json!({"spec": {"taints": [taint("a"), taint("b")]}});
        for (part, fields) in also.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                patch[part][field] = value.clone();
            }
        }
        (node.to_owned(), patch)
    };
    let with_taints = |taints: Value| removed(NODE, json!({"spec": {"taints": taints}}));
    let of_own = "kube2irsa may change only the Node that its own token is bound to";
    let of_taints = "kube2irsa may only remove the taint kube2irsa.io/not-ready, and leave all others as they are";
    let of_spec = "kube2irsa may change nothing of a Node's spec but its taints";
    let of_metadata = "kube2irsa may change nothing of a Node's metadata";
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": cluster.here}]);
    let mut changed = taint("a");
    changed["value"] = json!("y");
    let cases = [
        (removed(OTHER_NODE, json!({})), of_own),
        (with_taints(json!([taint("a")])), of_taints),
        (with_taints(json!([])), of_taints),
        (with_taints(Value::Null), of_taints),
        (with_taints(json!([taint("a"), ours("NoSchedule"), ours("NoExecute")])), of_taints),
        (with_taints(json!([taint("a"), taint("b"), taint("c")])), of_taints),
        (with_taints(json!([taint("a"), taint("b"), ours("PreferNoSchedule")])), of_taints),
        (with_taints(json!([changed, taint("b")])), of_taints),
        (with_taints(json!([taint("b"), taint("a")])), of_taints),
        (removed(NODE, json!({"spec": {"unschedulable": false}})), of_spec),
        (removed(NODE, json!({"spec": {"unschedulable": null}})), of_spec),
        (removed(NODE, json!({"spec": {"providerID": "aws:///a/i-1"}})), of_spec),
        (removed(NODE, json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}})), of_spec),
        (removed(NODE, json!({"metadata": {"labels": {"m": "1"}}})), of_metadata),
        (removed(NODE, json!({"metadata": {"labels": {"l": "2"}}})), of_metadata),
        (removed(NODE, json!({"metadata": {"labels": null}})), of_metadata),
        (removed(NODE, json!({"metadata": {"annotations": {"b": "1"}}})), of_metadata),
        (removed(NODE, json!({"metadata": {"annotations": {"a": null}}})), of_metadata),
        (removed(NODE, json!({"metadata": {"finalizers": ["example.com/f"]}})), of_metadata),
        (removed(NODE, json!({"metadata": {"ownerReferences": owner}})), of_metadata),
    ];
    let good = removed(NODE, json!({})).1;
    let dry = |node: &str| format!("{}?dryRun=All", path(node));

    // Without the policy all of it is taken: nothing else refuses.
    let binding = json!({
        "metadata": {"name": "for-a-while"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "for-a-while"},
        "subjects": [{"kind": "ServiceAccount", "name": DAEMON, "namespace": DAEMON}],
    });
    let role = json!({
        "metadata": {"name": "for-a-while"},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}],
    });
    api.create(sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role);
    api.create(sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding);
    eventually("the rights are there", || patch(cluster.ourselves(), &dry(NODE), &good).0 == 200);
    for ((node, change), _) in &cases {
        patch(cluster.ourselves(), &dry(node), change).accepted();
    }
    patch(by_unbound, &dry(NODE), &good).accepted();
    let delete = |path: &str| api.call(sandbox, api.admin(), "DELETE", path, &Value::Null).accepted();
    delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/for-a-while");
    eventually("the rights are gone", || patch(cluster.ourselves(), &dry(NODE), &good).0 == 403);

    api.apply(sandbox, "startup-taint-node.yaml");
    let (node, change) = &cases[0].0;
    eventually("policy and rights are in force", || patch(cluster.ourselves(), &dry(node), change).0 == 422);
    for ((node, change), message) in &cases {
        patch(cluster.ourselves(), &path(node), change).refuses(422, message);
    }
    patch(by_unbound, &path(NODE), &good).refuses(422, of_own);
    // What the right does not reach.
    assert_eq!(patch(cluster.ourselves(), &format!("{}/status", path(NODE)), &images).0, 403);
    assert_eq!(patch(cluster.as_node(), &path(NODE), &good).0, 403);
    let whole = cluster.get(api.admin(), &path(NODE)).accepted();
    for method in ["PUT", "DELETE"] {
        assert_eq!(api.call(sandbox, cluster.ourselves(), method, &path(NODE), &whole).0, 403, "{method}");
    }
    let new = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-3"}});
    assert_eq!(api.apply_as(sandbox, cluster.ourselves(), &path("node-3"), &new).0, 403, "created by a patch");
    assert!(cluster.get(api.admin(), &path(NODE)).accepted() == whole, "nothing has changed");
    // A status beside it is not written, whoever sends it.
    let also_status = removed(NODE, json!({"status": {"images": []}})).1;
    let by_us = format!("{}?fieldManager=kube2irsa", path(NODE));
    let after = patch(cluster.ourselves(), &by_us, &also_status).accepted();
    let mut expected = whole;
    expected["spec"]["taints"] = json!([taint("a"), taint("b")]);
    for field in ["resourceVersion", "managedFields"] {
        expected["metadata"][field] = after["metadata"][field].clone();
    }
    assert!(after == expected, "{after} {expected}");
    let writers = after["metadata"]["managedFields"].to_string();
    assert!(writers.contains(r#""manager":"kube2irsa""#), "who wrote what is recorded: {writers}");
    // Where there is no taint of ours, and none at all.
    patch(cluster.ourselves(), &dry(NODE), &good).accepted();
    patch(api.admin(), &path(NODE), &json!({"spec": {"taints": [ours("NoSchedule")]}})).accepted();
    patch(cluster.ourselves(), &path(NODE), &json!({"spec": {"taints": null}})).accepted();
    // Nobody else is hindered.
    patch(api.admin(), &path(NODE), &before).accepted();
}

#[test]
#[ignore = "run by make test-apiserver"]
fn the_daemon_takes_the_start_up_taint_off_its_node_with_the_rights_of_either_mode() {
    for (rights, more) in [("node.yaml", "startup-taint-node.yaml"), ("direct.yaml", "startup-taint-direct.yaml")] {
        let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        api.taint_node(&sandbox, NODE, &json!([taint("kube2irsa.io/not-ready"), taint("a")]));
        api.apply(&sandbox, rights);
        let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig, "--remove-taint"]);
        eventually("it is said what to apply", || daemon.log().contains(MORE_RIGHTS));
        server::assert_gets_its_role(&sandbox, &pod, &daemon);
        api.apply(&sandbox, more);
        let taints = || {
            api.call(&sandbox, api.admin(), "GET", "/api/v1/nodes/node-1", &Value::Null).accepted()["spec"]["taints"]
                .clone()
        };
        eventually("it is removed", || taints() == json!([taint("a")]));
        let removed = "kube2irsa_startup_taint_removals_total{result=\"removed\"}";
        eventually("it is counted", || metric(&sandbox, removed) == 1.0);
    }
}

#[test]
#[ignore = "run by make test-apiserver"]
fn a_daemon_that_takes_another_node_for_its_own_leaves_that_nodes_taint_and_says_why() {
    let (sandbox, api, _pod, kubeconfig) = cluster_with_a_pod();
    let taints = json!([{"key": "kube2irsa.io/not-ready", "effect": "NoSchedule"}]);
    api.add_node(&sandbox, OTHER_NODE);
    api.taint_node(&sandbox, OTHER_NODE, &taints);
    for file in ["direct.yaml", "startup-taint-direct.yaml"] {
        api.apply(&sandbox, file);
    }
    // Until the policy is in force the right alone counts, and the taint would be gone.
    let ourselves = Caller { impersonates: Some(DAEMON_USER), ..api.admin() };
    let (path, nothing) = ("/api/v1/nodes/node-2?dryRun=All", json!({}));
    eventually("the policy is in force", || api.call(&sandbox, ourselves, "PATCH", path, &nothing).0 == 422);
    let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig, "--node-name", OTHER_NODE, "--remove-taint"]);
    let said = "kube2irsa may change only the Node that its own token is bound to";
    eventually("it is refused, which is no conflict", || daemon.log().contains(said));
    let failed = "kube2irsa_startup_taint_removals_total{result=\"failed\"}";
    assert!(metric(&sandbox, failed) >= 1.0, "{}", daemon.log());
    assert_eq!(metric(&sandbox, "kube2irsa_startup_taint_removals_total{result=\"conflict\"}"), 0.0);
    let node = api.call(&sandbox, api.admin(), "GET", "/api/v1/nodes/node-2", &Value::Null).accepted();
    assert_eq!(node["spec"]["taints"], taints);
}

/// The real API server with a pod on the sandbox's node, and the kubeconfig of the daemon there.
fn cluster_with_a_pod() -> (Sandbox, ApiServer, Pod, String) {
    let (sandbox, api, pod) = server::with_a_pod();
    let token = api.add_daemon(&sandbox);
    let kubeconfig = sandbox.directory().join("real.kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig(&sandbox, &token)).unwrap();
    (sandbox, api, pod, kubeconfig.to_str().unwrap().to_owned())
}

#[test]
#[ignore = "run by make test-apiserver"]
fn a_pod_gets_its_role_in_node_mode_with_a_token_that_sts_verifies_by_the_api_servers_documents() {
    let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
    api.apply(&sandbox, "node.yaml");
    let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig]);
    server::assert_gets_its_role(&sandbox, &pod, &daemon);
    assert_eq!(metric(&sandbox, "kube2irsa_token_access_info{mode=\"node\"}"), 1.0, "{}", daemon.log());
    assert_eq!(metric(&sandbox, "kube2irsa_excess_rights"), 0.0);
    assert!(daemon.log().contains("token access is decided"), "{}", daemon.log());
    assert!(!daemon.log().contains("eyJ"), "a token is in the log");

    // A pod that comes later.
    let later = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    api.add_pod(&sandbox, ("team-a", "web-1"), "web", NODE, Some(&later.address().to_string()));
    eventually("a later pod is served", || role_status(&later) == 200);
}

#[test]
#[ignore = "run by make test-apiserver"]
fn a_token_that_the_api_server_signed_for_a_pod_is_taken_from_that_pod_alone() {
    let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
    api.apply(&sandbox, "node.yaml");
    let other = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    api.add_pod(&sandbox, ("team-a", "web-1"), "web", NODE, Some(&other.address().to_string()));
    let token = |audience: &str| {
        let path = "/api/v1/namespaces/team-a/pods/web-0";
        let uid = api.call(&sandbox, api.admin(), "GET", path, &Value::Null).accepted()["metadata"]["uid"].clone();
        let bound = bound("web-0", uid.as_str().unwrap());
        let request = json!({"spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound}});
        api.issued(api.token(&sandbox, api.admin(), ("team-a", "web"), &request))
    };
    let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig]);
    let status = |pod: &Pod, token: &str| {
        let server = (CONTAINER_ADDRESSES[0], 80).into();
        let mut connection = Connection::open(pod.network(), server).unwrap();
        let head = format!("GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.2\r\nAuthorization: {token}\r\n\r\n");
        connection.send_bytes(head.as_bytes()).unwrap();
        connection.answer().unwrap().status
    };
    let for_us = token("pods.eks.amazonaws.com");
    assert_eq!((status(&pod, &for_us), status(&other, &for_us)), (200, 401), "{}", daemon.log());
    assert_eq!((status(&pod, &token(AUDIENCE)), status(&pod, &token(&api.url))), (200, 401), "{}", daemon.log());
}

#[test]
#[ignore = "run by make test-apiserver"]
fn why_a_pod_gets_no_credentials_stands_on_the_pod_with_the_rights_of_either_mode() {
    for rights in ["node.yaml", "direct.yaml"] {
        let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
        let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
        sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
        api.apply(&sandbox, rights);
        let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig]);
        assert_eq!(role_status(&pod), 403);
        // As `kubectl describe pod` asks.
        let path =
            "/api/v1/namespaces/team-a/events?fieldSelector=involvedObject.name%3Dweb-0,involvedObject.kind%3DPod";
        let events = || api.call(&sandbox, api.admin(), "GET", path, &Value::Null).accepted()["items"].clone();
        eventually("there is an Event", || events() != json!([]));
        let events = events();
        let [event] = events.as_array().unwrap().as_slice() else { panic!("{events}") };
        assert_eq!((&event["reason"], &event["type"]), (&json!("CredentialsRefused"), &json!("Warning")));
        let note = event["message"].as_str().unwrap();
        assert!(note.contains("system:serviceaccount:team-a:web") && !note.contains("eyJ"), "{note}");
        assert_eq!(metric(&sandbox, "kube2irsa_events_total{result=\"written\"}"), 1.0, "{}", daemon.log());
    }
}

#[test]
#[ignore = "run by make test-apiserver"]
fn the_daemon_finds_out_that_it_has_the_rights_of_direct_mode_and_waits_for_those_of_either() {
    let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
    let mut daemon = Daemon::started(&sandbox, &["--kubeconfig", &kubeconfig]);
    eventually("it says that it may do nothing", || {
        support::admin_if_up(&sandbox, "/readyz").is_some_and(|lacks| lacks.contains("neither mode is allowed"))
    });
    api.apply(&sandbox, "direct.yaml");
    daemon.wait_until_ready(&sandbox);
    server::assert_gets_its_role(&sandbox, &pod, &daemon);
    assert_eq!(metric(&sandbox, "kube2irsa_token_access_info{mode=\"direct\"}"), 1.0, "{}", daemon.log());
}

#[test]
#[ignore = "run by make test-apiserver"]
fn the_doctor_sees_what_rights_and_policies_of_each_mode_allow() {
    let cluster = cluster();
    let (api, sandbox) = (&cluster.api, &cluster.sandbox);
    api.add_namespace(sandbox, "kube-system", &[("default", Value::Null)]);
    let pod = format!("/api/v1/namespaces/{DAEMON}/pods/kube2irsa-node-1");
    let labels = json!({"app.kubernetes.io/name": DAEMON, "app.kubernetes.io/instance": DAEMON});
    api.call(sandbox, api.admin(), "PATCH", &pod, &json!({"metadata": {"labels": labels}})).accepted();
    let kubeconfig = sandbox.directory().join("operator");
    fs::write(&kubeconfig, api.kubeconfig(sandbox, api.admin().token)).unwrap();
    let (kubeconfig, certificates) = (kubeconfig.to_str().unwrap().to_owned(), sandbox.ca_file());
    let doctor = || {
        let arguments =
            ["doctor", "--kubeconfig", &kubeconfig, "--ca-bundle", certificates.to_str().unwrap(), "-o", "json"];
        let (_, said, errors) = as_operator(sandbox, &arguments);
        let said = serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}{errors}"));
        assert!(!said.to_string().contains("eyJ"), "{said}");
        let ids = said["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap().to_owned());
        let of_rights = |id: &String| {
            ["rights-", "token-", "audience-", "kubernetes-"].iter().any(|subject| id.starts_with(subject))
        };
        let ids = ids.filter(of_rights).collect::<std::collections::BTreeSet<_>>();
        (ids.into_iter().collect::<Vec<_>>(), said)
    };
    let finds = |what: &str, wanted: &[&str]| {
        let mut last = Value::Null;
        eventually(what, || {
            let (ids, said) = doctor();
            last = json!([ids, said]);
            if ids != wanted {
                println!("{what}: {ids:?}");
            }
            ids == wanted
        });
        let unseen = last[1]["not_looked_at"].to_string();
        assert!(!unseen.contains("would be given") && !unseen.contains("may do"), "{unseen}");
    };
    finds("no rights at all", &["rights-events", "rights-missing"]);
    // The rights of direct mode without its policy, and with it.
    api.apply_kinds(sandbox, "direct.yaml", &["ClusterRole", "ClusterRoleBinding", "DaemonSet"]);
    finds("no policy", &["token-any-audience", "token-kube-system", "token-mode", "token-unbound"]);
    api.apply(sandbox, "direct.yaml");
    finds("direct mode, whole", &["token-mode"]);
    // Node mode in its place, and then with what somebody else grants besides.
    api.apply(sandbox, "node.yaml");
    finds("node mode, whole", &[]);
    let role = json!({
        "metadata": {"name": "more"},
        "rules": [{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["list"]}],
    });
    let binding = json!({
        "metadata": {"name": "more"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "more"},
        "subjects": [{"kind": "ServiceAccount", "name": DAEMON, "namespace": DAEMON}],
    });
    api.create(sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role);
    api.create(sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding);
    finds("more rights", &["rights-of-both-modes", "rights-too-wide"]);
    let (_, said) = doctor();
    assert!(said["seen"].to_string().contains("tokens by node mode"), "{said}");
    // A service account with an audience that no node is granted.
    let account = "/api/v1/namespaces/team-a/serviceaccounts/web";
    let annotations = json!({
        "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/web",
        "eks.amazonaws.com/audience": "vault.example.com",
    });
    api.call(sandbox, api.admin(), "PATCH", account, &json!({"metadata": {"annotations": annotations}})).accepted();
    finds("an audience", &["audience-not-granted", "rights-of-both-modes", "rights-too-wide"]);
}
