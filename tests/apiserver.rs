//! On a real API server, with the files of `daemonset/`: what each mode of token access allows, and what it
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
    sandbox::{AUDIENCE, DAEMON, NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use server::{Answer, ApiServer, Caller, bound, for_sts};
use support::{Daemon, eventually, http::Connection, metric, role_status, sandbox, sdk};

const AS_NODE: &str = "system:node:node-1";
const OTHER_NODE: &str = "node-2";

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
    cluster.api.apply(&cluster.sandbox, "rbac-node.yaml");
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
    api.apply(sandbox, "rbac-direct.yaml");
    eventually("the rights are there", || cluster.token(cluster.ourselves(), "web", &good).0 == 201);
    for (request, _) in &cases {
        cluster.token(cluster.ourselves(), "web", request).accepted();
    }
    cluster.token(by_unbound, "web", &good).accepted();
    in_system().accepted();

    api.apply(sandbox, "admission-policy-direct.yaml");
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
    api.apply(sandbox, "rbac-node.yaml");
    eventually("direct mode's rights are gone", || cluster.token(cluster.ourselves(), "web", &good).0 == 403);
}

/// The real API server with a pod on the sandbox's node, and a role whose account trusts that issuer.
fn cluster_with_a_pod() -> (Sandbox, ApiServer, Pod, String) {
    let sandbox = sandbox();
    let api = ApiServer::start(&sandbox);
    let token = api.add_daemon(&sandbox);
    // What whoever runs IRSA off EKS does, so that AWS can read the issuer's documents.
    let reader = json!({
        "metadata": {"name": "issuer-discovery"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:service-account-issuer-discovery",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}],
    });
    api.create(&sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &reader);
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let policy = sandbox.trust_policy("system:serviceaccount:team-a:web").to_string();
    let host = |url: &str| url.trim_start_matches("https://").to_owned();
    let policy = policy.replace(&host(sandbox.cloud.issuer.url()), &host(&api.url));
    sandbox.cloud.sts.put_oidc_provider(ACCOUNT, &api.url, &[AUDIENCE]).unwrap();
    sandbox.cloud.sts.put_role(&role, serde_json::from_str(&policy).unwrap()).unwrap();
    api.add_namespace(&sandbox, "team-a", &[("web", json!({"eks.amazonaws.com/role-arn": role}))]);
    // Its network, and its object in the API that the daemon does not read.
    let pod = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    api.add_pod(&sandbox, ("team-a", "web-0"), "web", NODE, Some(&pod.address().to_string()));
    let kubeconfig = sandbox.directory().join("real.kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig(&sandbox, &token)).unwrap();
    (sandbox, api, pod, kubeconfig.to_str().unwrap().to_owned())
}

fn assert_gets_its_role(sandbox: &Sandbox, pod: &Pod, daemon: &Daemon) {
    let report = sdk(sandbox, pod);
    let arn = report.arn.unwrap_or_else(|| panic!("{:?}\n{}", report.error, daemon.log()));
    assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/web/team-a.web-0-"), "{arn}");
}

#[test]
#[ignore = "run by make test-apiserver"]
fn a_pod_gets_its_role_in_node_mode_with_a_token_that_sts_verifies_by_the_api_servers_documents() {
    let (sandbox, api, pod, kubeconfig) = cluster_with_a_pod();
    api.apply(&sandbox, "rbac-node.yaml");
    let daemon = Daemon::ready(&sandbox, &["--kubeconfig", &kubeconfig]);
    assert_gets_its_role(&sandbox, &pod, &daemon);
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
    api.apply(&sandbox, "rbac-node.yaml");
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
    for rights in ["rbac-node.yaml", "rbac-direct.yaml"] {
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
    api.apply(&sandbox, "admission-policy-direct.yaml");
    api.apply(&sandbox, "rbac-direct.yaml");
    daemon.wait_until_ready(&sandbox);
    assert_gets_its_role(&sandbox, &pod, &daemon);
    assert_eq!(metric(&sandbox, "kube2irsa_token_access_info{mode=\"direct\"}"), 1.0, "{}", daemon.log());
}
