//! The chart on a real API server, with the daemon run as its DaemonSet says: the main job from end to end, with the
//! rights and the token that a pod of it has, and nothing beyond. A tier of its own (`make test-chart`).
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "support/kubelet.rs"]
mod kubelet;
#[path = "support/apiserver.rs"]
mod server;
mod support;

use std::collections::BTreeSet;

use kubelet::Running;
use sandbox::{
    cloud::ACCOUNT,
    network::NODE_ADDRESS,
    sandbox::{ADMIN, AUDIENCE, NODE, Pod, Sandbox, get},
};
use serde_json::{Value, json};
use server::{Answer, ApiServer, Caller, assert_gets_its_role, for_sts};
use support::{
    chart::{DIRECT_MODE, NODE_MODE, render, the, try_render_as, variants},
    eventually, role_status, rules, sdk,
};

const OTHER_NODE: &str = "node-2";
const NOT_READY: &str = "kube2irsa.io/not-ready";

/// The real API server, two nodes that are not to get pods yet, and a pod that gets the node's role without us.
fn cluster() -> (Sandbox, ApiServer, Pod) {
    let (sandbox, api, pod) = server::with_a_pod();
    for node in [NODE, OTHER_NODE] {
        api.add_node(&sandbox, node);
        api.taint_node(&sandbox, node, &json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }
    api.add_pod(&sandbox, ("team-a", "web-9"), "web", OTHER_NODE, Some("10.244.1.9"));
    let arn = sdk(&sandbox, &pod).arn.unwrap();
    assert!(arn.contains("assumed-role/node/"), "or the rest proves little: {arn}");
    (sandbox, api, pod)
}

/// The values with which the daemon trusts the sandbox's STS.
fn trusting(sandbox: &Sandbox, mut values: Value) -> Value {
    let file = sandbox.ca_file();
    values["flags"]["ca-bundle"] = json!("/run/aws/ca.pem");
    values["extraVolumes"] = json!([{"name": "aws", "hostPath": {"path": file, "type": "File"}}]);
    values["extraVolumeMounts"] = json!([{"name": "aws", "mountPath": "/run/aws/ca.pem", "readOnly": true}]);
    values["namespace"]["create"] = json!(true);
    values
}

/// Waits for what the kubelet waits for.
fn ready(running: &mut Running) {
    eventually("the daemon is ready", || {
        if let Ok(Some(status)) = running.daemon.process.try_wait() {
            panic!("{status}\n{}", running.daemon.log());
        }
        running.probe("readinessProbe").0 == 0
    });
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(running.probe(probe).0, 0, "{probe}");
    }
}

fn metrics(sandbox: &Sandbox, admin: std::net::SocketAddr) -> String {
    get(sandbox.node(), admin, "/metrics").unwrap().1
}

fn uid(sandbox: &Sandbox, api: &ApiServer, namespace: &str, name: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let pod = api.call(sandbox, api.admin(), "GET", &path, &Value::Null).accepted();
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn taints(sandbox: &Sandbox, api: &ApiServer, node: &str) -> Value {
    let node = api.call(sandbox, api.admin(), "GET", &format!("/api/v1/nodes/{node}"), &Value::Null).accepted();
    node["spec"]["taints"].clone()
}

/// All that the holder of this token may do beyond what every service account may: `verb group/resource`.
fn may(sandbox: &Sandbox, api: &ApiServer, token: &str) -> BTreeSet<String> {
    let rules = |token: &str| {
        let review = json!({"spec": {"namespace": "team-a"}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let review = api.call(sandbox, Caller { token, impersonates: None }, "POST", path, &review).accepted();
        let mut all = BTreeSet::new();
        for rule in review["status"]["resourceRules"].as_array().unwrap() {
            let words = |field: &str| rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
            for (verb, group) in words("verbs").flat_map(|verb| words("apiGroups").map(move |group| (verb, group))) {
                all.extend(words("resources").map(|resource| format!("{verb} {group}/{resource}")));
            }
        }
        all
    };
    let nobody = api.issued(api.token(sandbox, api.admin(), ("team-a", "web"), &json!({})));
    &rules(token) - &rules(&nobody)
}

#[test]
#[ignore = "run by make test-chart"]
fn the_api_server_takes_every_variant_and_the_pods_that_come_of_it() {
    let sandbox = support::sandbox();
    let api = ApiServer::start(&sandbox);
    let account = render(NODE_MODE, &json!({"namespace": {"create": true}}));
    api.apply_all(&sandbox, &account[..2]);
    api.add_namespace(&sandbox, "kube2irsa", &[("roles", Value::Null)]);
    let mut seen = BTreeSet::new();
    for (version, values) in variants() {
        let objects = render(version, &values);
        for object in objects.iter().filter(|object| seen.insert(object.to_string())) {
            let Answer(code, said) = api.try_apply(&sandbox, object, "&dryRun=All");
            assert!(matches!(code, 200 | 201), "{values}: {code} {said}");
        }
        let template = &the(&objects, "DaemonSet")["spec"]["template"];
        let mut pod = json!({"metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["name"] = json!("dry");
        let path = "/api/v1/namespaces/kube2irsa/pods?dryRun=All&fieldValidation=Strict";
        let made = api.create(&sandbox, path, &pod);
        assert_eq!(made["spec"]["priority"], 2_000_001_000, "system-node-critical: {made}");
    }
    // It would be said.
    let mut wrong = account[1].clone();
    wrong["automount"] = json!(false);
    let Answer(code, said) = api.try_apply(&sandbox, &wrong, "&dryRun=All");
    assert!(code >= 400 && said.to_string().contains("automount"), "{code} {said}");
}

#[test]
#[ignore = "run by make test-chart"]
fn in_node_mode_pods_get_their_roles_and_the_daemon_may_do_nothing_else() {
    let (sandbox, api, pod) = cluster();
    // A role that trusts another.
    let refused = format!("arn:aws:iam::{ACCOUNT}:role/refused");
    api.put_role(&sandbox, &refused, "system:serviceaccount:team-b:web");
    api.add_namespace(&sandbox, "team-a", &[("refused", json!({"eks.amazonaws.com/role-arn": refused}))]);
    let other = sandbox.add_pod("team-a", "refused-0", "refused").unwrap();
    api.add_pod(&sandbox, ("team-a", "refused-0"), "refused", NODE, Some(&other.address().to_string()));

    let objects = render(NODE_MODE, &trusting(&sandbox, json!({"startupTaint": {"enabled": true}})));
    api.apply_all(&sandbox, &objects);
    let mut running = kubelet::run(&sandbox, &api, &objects, "kube2irsa-1");
    ready(&mut running);
    assert_gets_its_role(&sandbox, &pod, &running.daemon);
    let said = metrics(&sandbox, ADMIN);
    assert!(said.contains("kube2irsa_token_access_info{mode=\"node\"} 1"), "{said}");
    assert!(said.contains("kube2irsa_excess_rights 0"), "{said}");
    eventually("the taint is removed", || taints(&sandbox, &api, NODE) == Value::Null);
    assert_ne!(taints(&sandbox, &api, OTHER_NODE), Value::Null);
    assert_eq!(role_status(&other), 403);
    let events = "/api/v1/namespaces/team-a/events?fieldSelector=involvedObject.name%3Drefused-0";
    let events = || api.call(&sandbox, api.admin(), "GET", events, &Value::Null).accepted()["items"].clone();
    eventually("an Event says why", || events()[0]["reason"] == "CredentialsRefused");
    assert!(running.daemon.log().lines().all(|line| !line.contains("ERROR") && !line.contains("eyJ")));

    // All that this token is good for.
    let token = running.token.as_ref().unwrap();
    let expected = [
        "create events.k8s.io/events",
        "get /namespaces",
        "get /serviceaccounts",
        "impersonate-on:associated-node:create /serviceaccounts/token",
        "impersonate-on:associated-node:get /nodes",
        "impersonate-on:associated-node:list /pods",
        "impersonate-on:associated-node:watch /pods",
        "impersonate:associated-node authentication.k8s.io/nodes",
        "list /namespaces",
        "list /serviceaccounts",
        "patch /nodes",
        "patch events.k8s.io/events",
        "watch /namespaces",
        "watch /serviceaccounts",
    ];
    assert_eq!(may(&sandbox, &api, token), expected.map(str::to_owned).into());
    // It lives for an hour, not for a year.
    assert!((3500..=3600).contains(&life(token)), "{}", life(token));
    let ourselves = Caller { token, impersonates: None };
    let as_node = Caller { token, impersonates: Some("system:node:node-1") };
    let ask = |caller, request: &Value| api.token(&sandbox, caller, ("team-a", "web"), request);
    let (here, elsewhere) = (uid(&sandbox, &api, "team-a", "web-0"), uid(&sandbox, &api, "team-a", "web-9"));
    ask(as_node, &for_sts("web-0", &here)).accepted();
    ask(as_node, &for_sts("web-9", &elsewhere))
        .refuses(403, "node requested token bound to a pod scheduled on a different node");
    assert_eq!(ask(ourselves, &for_sts("web-0", &here)).0, 403);
    let other_node = Caller { token, impersonates: Some("system:node:node-2") };
    assert_eq!(ask(other_node, &for_sts("web-9", &elsewhere)).0, 403);
    refuses_what_both_modes_refuse(&sandbox, &api, token);
}

#[test]
#[ignore = "run by make test-chart"]
fn in_direct_mode_under_any_name_pods_get_their_roles_and_each_value_of_the_policies_counts() {
    let (sandbox, api, pod) = cluster();
    let mut values = trusting(
        &sandbox,
        json!({
            "startupTaint": {"enabled": true},
            "additionalAudiences": ["vault.example.com"],
            "admission": {
                "forbiddenNamespaces": ["kube-system", "team-b"],
                "exemptServiceAccounts": ["kube-system/aws-node"],
            },
            "metrics": {"enabled": true, "port": 9999},
        }),
    );
    let rendered = |values: &Value| try_render_as(("aws", "platform"), DIRECT_MODE, values).unwrap();
    let objects = rendered(&values);
    api.apply_all(&sandbox, &objects);
    let mut running = kubelet::run(&sandbox, &api, &objects, "aws-kube2irsa-1");
    let admin = (NODE_ADDRESS, 9999).into();
    ready(&mut running);
    assert_gets_its_role(&sandbox, &pod, &running.daemon);
    assert!(metrics(&sandbox, admin).contains("kube2irsa_token_access_info{mode=\"direct\"} 1"));
    assert!(get(pod.network(), admin, "/metrics").is_ok(), "who reaches the node reaches them, as the values say");
    eventually("the taint is removed", || taints(&sandbox, &api, NODE) == Value::Null);
    assert_ne!(taints(&sandbox, &api, OTHER_NODE), Value::Null);

    let token = running.token.as_ref().unwrap();
    let expected = [
        "create /serviceaccounts/token",
        "create events.k8s.io/events",
        "get /namespaces",
        "get /nodes",
        "get /serviceaccounts",
        "list /namespaces",
        "list /pods",
        "list /serviceaccounts",
        "patch /nodes",
        "patch events.k8s.io/events",
        "watch /namespaces",
        "watch /pods",
        "watch /serviceaccounts",
    ];
    assert_eq!(may(&sandbox, &api, token), expected.map(str::to_owned).into());
    let ourselves = Caller { token, impersonates: None };
    let ask = |namespace: &str, request: &Value| api.token(&sandbox, ourselves, (namespace, "web"), request);
    let (here, elsewhere) = (uid(&sandbox, &api, "team-a", "web-0"), uid(&sandbox, &api, "team-a", "web-9"));
    let with = |pointer: &str, value: Value| {
        let mut request = for_sts("web-0", &here);
        *request.pointer_mut(pointer).unwrap() = value;
        request
    };
    let for_audience = |audience: &str| with("/spec/audiences", json!([audience]));
    for audience in [AUDIENCE, "vault.example.com"] {
        ask("team-a", &for_audience(audience)).accepted();
    }
    let may_only = "kube2irsa may ask only for tokens";
    let end = format!("{may_only} with the audience sts.amazonaws.com or vault.example.com");
    for audiences in [json!(["https://kubernetes.default.svc"]), json!([AUDIENCE, "vault.example.com"])] {
        ask("team-a", &with("/spec/audiences", audiences)).refuses(422, &end);
    }
    ask("team-a", &with("/spec/boundObjectRef", Value::Null)).refuses(422, "that are bound to a pod by its UID");
    ask("team-a", &with("/spec/expirationSeconds", json!(901))).refuses(422, "of at most 900 seconds");
    for namespace in ["kube-system", "team-b"] {
        api.add_namespace(&sandbox, namespace, &[("web", Value::Null), ("aws-node", Value::Null)]);
        let there = api.add_pod(&sandbox, (namespace, "web-0"), "web", NODE, Some("10.244.0.77"));
        let refused = "kube2irsa may not ask for tokens in this namespace";
        ask(namespace, &for_sts("web-0", &there)).refuses(422, refused);
        let agent = api.add_pod(&sandbox, (namespace, "aws-node-0"), "aws-node", NODE, Some("10.244.0.78"));
        let of_agent = api.token(&sandbox, ourselves, (namespace, "aws-node"), &for_sts("aws-node-0", &agent));
        if namespace == "kube-system" {
            of_agent.accepted();
        } else {
            of_agent.refuses(422, refused);
        }
    }
    refuses_what_both_modes_refuse(&sandbox, &api, token);

    // Pods of other nodes: only with the policy that costs.
    ask("team-a", &for_sts("web-9", &elsewhere)).accepted();
    values["admission"]["podsOfOwnNodeOnly"] = json!(true);
    api.apply_all(&sandbox, &rendered(&values));
    eventually("the policy is in force", || ask("team-a", &for_sts("web-9", &elsewhere)).0 == 422);
    let of_own = format!("{may_only} that are bound to a pod of the node that its own token is bound to");
    ask("team-a", &for_sts("web-9", &elsewhere)).refuses(422, &of_own);
    ask("team-a", &for_sts("web-0", &here)).accepted();
    // One that no node has yet, and one that nobody knows.
    let path = "/api/v1/namespaces/team-a/pods";
    let spec = json!({"serviceAccountName": "web", "containers": [{"name": "main", "image": "example.com/main"}]});
    let waiting = api.create(&sandbox, path, &json!({"metadata": {"name": "web-8"}, "spec": spec}));
    let waiting = for_sts("web-8", waiting["metadata"]["uid"].as_str().unwrap());
    eventually("it is known to the policy", || ask("team-a", &waiting).0 == 422);
    ask("team-a", &waiting).refuses(422, &of_own);
    // The daemon is hindered in nothing by it.
    let later = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    api.add_pod(&sandbox, ("team-a", "web-1"), "web", NODE, Some(&later.address().to_string()));
    eventually("a later pod is served", || role_status(&later) == 200);
    // Nor is anybody else.
    api.token(&sandbox, api.admin(), ("team-a", "web"), &json!({})).accepted();
}

/// What is nobody's in either mode, for the holder of the daemon's token, and for who has one of its account from elsewhere.
fn refuses_what_both_modes_refuse(sandbox: &Sandbox, api: &ApiServer, token: &str) {
    let ourselves = Caller { token, impersonates: None };
    let as_node = Caller { token, impersonates: Some("system:node:node-1") };
    for caller in [ourselves, as_node] {
        for path in ["/api/v1/secrets", "/api/v1/namespaces/team-a/secrets/any", "/api/v1/configmaps", "/api/v1/nodes"]
        {
            assert_eq!(api.call(sandbox, caller, "GET", path, &Value::Null).0, 403, "{path}");
        }
        let pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
        let pods = "/api/v1/namespaces/team-a/pods";
        assert_eq!(api.call(sandbox, caller, "POST", pods, &pod).0, 403);
        let untaint = json!({"spec": {"taints": null}});
        let other = api.call(sandbox, caller, "PATCH", "/api/v1/nodes/node-2", &untaint);
        assert!(matches!(other.0, 403 | 422), "{other:?}");
    }
    let untaint = json!({"spec": {"taints": null}});
    api.call(sandbox, ourselves, "PATCH", "/api/v1/nodes/node-2", &untaint)
        .refuses(422, "kube2irsa may change only the Node that its own token is bound to");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    api.call(sandbox, ourselves, "PATCH", "/api/v1/nodes/node-1", &label)
        .refuses(422, "kube2irsa may change nothing of a Node's metadata");
    // The same account's token that is bound to no pod.
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = api.call(sandbox, ourselves, "POST", path, &json!({})).accepted();
    let user = review["status"]["userInfo"]["username"].as_str().unwrap();
    let [_, _, namespace, name] = user.split(':').collect::<Vec<_>>()[..] else { panic!("{user}") };
    let unbound = api.issued(api.token(sandbox, api.admin(), (namespace, name), &json!({})));
    let here = for_sts("web-0", &uid(sandbox, api, "team-a", "web-0"));
    for impersonates in [None, Some("system:node:node-1")] {
        let caller = Caller { token: &unbound, impersonates };
        let answer = api.token(sandbox, caller, ("team-a", "web"), &here);
        assert!(matches!(answer.0, 403 | 422), "{answer:?}");
    }
}

/// The seconds that a token lives.
fn life(token: &str) -> i64 {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

#[test]
#[ignore = "run by make test-chart"]
fn who_observes_names_the_pods_and_can_ask_for_no_token() {
    for version in [NODE_MODE, DIRECT_MODE] {
        let (sandbox, api, pod) = cluster();
        let objects = render(version, &trusting(&sandbox, json!({"mode": "observe"})));
        api.apply_all(&sandbox, &objects);
        let mut running = kubelet::run(&sandbox, &api, &objects, "kube2irsa-1");
        ready(&mut running);
        let named = "pod team-a/web-0 of service account web contacts 169.254.169.254: it would get arn:aws:iam::";
        eventually("it is named", || {
            // It still gets the node's.
            assert!(sdk(&sandbox, &pod).arn.unwrap().contains("assumed-role/node/"));
            running.daemon.log().contains(named)
        });
        let token = running.token.as_ref().unwrap();
        let here = for_sts("web-0", &uid(&sandbox, &api, "team-a", "web-0"));
        for impersonates in [None, Some("system:node:node-1")] {
            let answer = api.token(&sandbox, Caller { token, impersonates }, ("team-a", "web"), &here);
            assert_eq!(answer.0, 403, "{answer:?}");
        }
        assert!(running.daemon.log().lines().all(|line| !line.contains("ERROR")), "{}", running.daemon.log());
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn an_upgrade_lets_the_next_daemon_follow_and_a_removal_leaves_nothing_behind() {
    let (sandbox, api, pod) = cluster();
    let before = rules(&sandbox);
    let objects = render(NODE_MODE, &trusting(&sandbox, json!({})));
    api.apply_all(&sandbox, &objects);
    let mut first = kubelet::run(&sandbox, &api, &objects, "kube2irsa-1");
    ready(&mut first);
    assert_gets_its_role(&sandbox, &pod, &first.daemon);

    // As with maxSurge: both at once, and the first is told to stop as soon as the next is said to be ready.
    let mut next = kubelet::run(&sandbox, &api, &objects, "kube2irsa-2");
    ready(&mut next);
    // It is ready once its rules stand, and tells the one before in the same moment.
    eventually("it took over", || next.daemon.log().contains("took over from the daemon that ran here"));
    assert!(first.daemon.stop().success());
    assert_gets_its_role(&sandbox, &pod, &next.daemon);

    // What Helm takes away with the upgrade is gone before the daemons are.
    for role in ["kube2irsa", "kube2irsa-audience"] {
        for resource in ["clusterrolebindings", "clusterroles"] {
            let path = format!("/apis/rbac.authorization.k8s.io/v1/{resource}/{role}");
            api.call(&sandbox, api.admin(), "DELETE", &path, &Value::Null).accepted();
        }
    }
    let objects = render(NODE_MODE, &json!({"mode": "remove", "namespace": {"create": true}}));
    api.apply_all(&sandbox, &objects);
    let mut removal = kubelet::run(&sandbox, &api, &objects, "kube2irsa-3");
    assert_eq!(removal.token, None);
    ready(&mut removal);
    eventually("all is out", || rules(&sandbox) == before);
    assert!(sdk(&sandbox, &pod).arn.unwrap().contains("assumed-role/node/"));
    assert!(next.daemon.stop().success());
    assert!(removal.daemon.stop().success());
    assert_eq!(rules(&sandbox), before);
}
