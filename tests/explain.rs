//! What `kube2irsa explain` says of a pod: which step keeps it from its credentials, why, and what to do.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use http::StatusCode;
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Fault, NewPod, PodPhase, PodStatus, Resource, Target},
    sandbox::{AUDIENCE, NODE, Pod, Sandbox, daemon_set},
};
use serde_json::{Value, json};
use support::{
    Daemon, ROLE_NAME,
    accounts::{HUB, READER, put_hub, put_role, put_target},
    admin, ask, eventually,
    node::{as_operator, assert_shown, kube2irsa, operators_kubeconfig},
    role_status, sandbox, with_a_pod, with_an_account,
};

const ROLE: &str = "eks.amazonaws.com/role-arn";

/// What is said of a pod, for programs, and the exit code; no secret may be in it, nor in the lines for people.
fn explain(sandbox: &Sandbox, pod: &str) -> (i32, Value) {
    let socket = sandbox.admin_socket();
    let run = |output: &str| {
        let (code, said, errors) =
            kube2irsa(sandbox, &["explain", pod, "-o", output, "--admin-socket", socket.to_str().unwrap()]);
        assert_eq!(errors, "", "{said}");
        assert_eq!(longest_run(&said), None, "{said}");
        (code.unwrap(), said)
    };
    let (_, text) = run("text");
    println!("{text}");
    let (code, said) = run("json");
    let said = serde_json::from_str::<Value>(&said).unwrap();
    assert_eq!(said["well"], json!(code == 0));
    (code, said)
}

/// A run of characters as long as a secret key, or as a part of a token.
fn longest_run(said: &str) -> Option<&str> {
    let other = |c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c);
    said.split(other).find(|run| run.len() >= 40)
}

/// The step of this name: its state and what it says.
fn step<'a>(said: &'a Value, name: &str) -> &'a Value {
    let steps = said["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name}: {said:#}"))
}

/// Which steps fail, in order.
fn failing(said: &Value) -> Vec<&str> {
    let steps = said["steps"].as_array().unwrap();
    steps.iter().filter(|step| step["state"] == "fails").map(|step| step["step"].as_str().unwrap()).collect()
}

/// Waits until these steps of `team-a/web-0` fail; the first one says all of this.
fn fails(sandbox: &Sandbox, steps: &[&str], parts: &[&str]) -> Value {
    fails_where(sandbox, steps, parts, |_| true)
}

/// The same, where this is so too: what is told of the next call is another while a call is in flight.
fn fails_where(sandbox: &Sandbox, steps: &[&str], parts: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
    let mut said = Value::Null;
    eventually("it fails", || {
        let code;
        (code, said) = explain(sandbox, "team-a/web-0");
        code == 1 && failing(&said) == steps && is_so(&said)
    });
    let says = step(&said, steps[0])["says"].as_str().unwrap();
    for part in parts {
        assert!(says.contains(part), "{part}: {says}");
    }
    said
}

fn has_credentials(pod: &Pod) -> bool {
    ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]).is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_pod_that_is_served_is_explained_from_its_address_to_its_credentials() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    let document = ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap().json();
    let (code, said) = explain(&sandbox, "team-a/web-0");
    assert_eq!((code, said["node"].as_str()), (0, Some(NODE)), "{said:#}");
    let steps = said["steps"].as_array().unwrap();
    let names = steps.iter().map(|step| step["step"].as_str().unwrap()).collect::<Vec<_>>();
    let expected = [
        "daemon",
        "interception",
        "pod",
        "address",
        "service_account",
        "imdsv2",
        "namespace_policy",
        "token",
        "sts",
        "credentials",
    ];
    assert_eq!(names, expected);
    assert!(steps.iter().all(|step| step["state"] == "ok"), "{said:#}");
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    assert_eq!(step(&said, "interception")["way"], "nft");
    assert_eq!(step(&said, "pod")["uid"], web.uid);
    assert_eq!(step(&said, "address")["address"], web.address().to_string());
    assert!(step(&said, "address")["interface"].as_u64().is_some());
    let account = step(&said, "service_account");
    assert_eq!((&account["role"], &account["audience"]), (&json!(role), &json!(AUDIENCE)));
    assert_eq!(step(&said, "token")["access"], "node");
    let credentials = step(&said, "credentials");
    assert_eq!(credentials["access_key_id"], document["AccessKeyId"]);
    assert_eq!(credentials["expires"], document["Expiration"]);
    assert!(credentials["seconds_left"].as_u64().is_some_and(|left| left > 3000));
    let name = credentials["session_name"].as_str().unwrap();
    assert!(name.starts_with("team-a.web-0-"), "{name}");
    for secret in ["SecretAccessKey", "Token"].map(|secret| document[secret].as_str().unwrap()) {
        assert!(longest_run(secret).is_some(), "such a one would be noticed");
        assert!(!said.to_string().contains(secret));
    }
    // Pods are told of by name on the socket alone.
    assert_eq!(admin(&sandbox, "/explain/team-a/web-0").0, 404);
}

#[test]
fn it_can_be_told_while_the_api_server_and_sts_are_away() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    sandbox.cloud.kubernetes.faults().inject(Target::any(), Fault::Stall);
    sandbox.cloud.reset_api_connections();
    sandbox.cloud.sts.faults().hold();
    let (code, said) = explain(&sandbox, "team-a/web-0");
    assert_eq!(code, 0, "{said:#}");
}

#[test]
fn a_service_account_without_a_role_or_with_one_that_is_none_fails_there() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "web", &[]);
    let _web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    fails(&sandbox, &["service_account"], &["team-a/web", "names no role", ROLE]);
    sandbox.annotate("team-a", "web", &[(ROLE, "web")]);
    let said = fails(&sandbox, &["service_account"], &[ROLE, "\"web\"", "Correct the annotation"]);
    let events = || sandbox.cloud.kubernetes.events();
    eventually("there is an Event", || !events().is_empty());
    assert_eq!(events()[0]["note"], step(&said, "service_account")["says"], "one and the same words");
}

#[test]
fn a_role_that_the_namespace_does_not_permit_fails_there_and_one_that_it_does_names_the_glob() {
    let (sandbox, _web) = with_a_pod();
    let glob = format!("arn:aws:iam::{ACCOUNT}:role/w*");
    let _daemon = Daemon::ready(&sandbox, &["--namespace-policy", "required"]);
    fails(&sandbox, &["namespace_policy"], &["team-a", "role/web", "kube2irsa.io/permitted-roles"]);
    sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", &glob)]);
    eventually("it is permitted", || explain(&sandbox, "team-a/web-0").0 == 0);
    let (_, said) = explain(&sandbox, "team-a/web-0");
    assert!(step(&said, "namespace_policy")["says"].as_str().unwrap().contains(&glob), "{said:#}");
    assert_eq!(step(&said, "namespace_policy")["permitted_roles"], json!([glob]));
}

#[test]
fn what_sts_refuses_is_told_in_aws_words_and_with_what_to_do() {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    let parts = [&*role, "AccessDenied", "trust policy", "system:serviceaccount:team-a:web"];
    let said = fails_where(&sandbox, &["sts", "credentials"], &parts, |said| step(said, "sts")["next"].is_string());
    assert_eq!(step(&said, "sts")["code"], "AccessDenied");
    assert_eq!(step(&said, "token")["state"], "ok");
    assert!(step(&said, "sts")["last"].as_str().is_some_and(|at| at.ends_with('Z')));
}

#[test]
fn a_token_that_the_api_server_refuses_fails_before_sts() {
    let (sandbox, web) = with_a_pod();
    let tokens = Target::any().verb("create").resource("serviceaccounts/token");
    sandbox.cloud.kubernetes.faults().inject(tokens, Fault::Answer(StatusCode::CONFLICT));
    let _daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    eventually("it is refused", || role_status(&web) == 403);
    let said = fails(&sandbox, &["token", "credentials"], &["409", "team-a/web"]);
    assert_eq!(step(&said, "token")["code"], "409");
    assert_eq!(step(&said, "sts")["state"], "unknown", "it was not reached");
}

#[test]
fn sts_that_is_away_fails_there_and_what_is_served_goes_on() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--sts-endpoint", "http://127.0.0.1:1", "--region", "eu-central-1"]);
    assert_eq!(role_status(&web), 503);
    let parts = ["Unreachable", "check that the node reaches STS"];
    let waits = |said: &Value| step(said, "sts")["says"].as_str().unwrap().contains("The next call is in");
    let said = fails_where(&sandbox, &["sts", "credentials"], &parts, waits);
    assert_eq!(step(&said, "sts")["endpoint"], "http://127.0.0.1:1");
}

#[test]
fn an_address_whose_link_is_gone_is_suspended() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    let address = web.address().to_string();
    sandbox.remove_network(web).unwrap();
    fails(&sandbox, &["address"], &[&address, "is suspended"]);
}

#[test]
fn an_address_that_two_pods_claim_names_both() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.create_pod(NewPod::new("team-a", "other-0").service_account("web").node(NODE));
    kubernetes.run_pod("team-a", "other-0", &[web.address()]);
    eventually("both are told of", || {
        let (code, said) = explain(&sandbox, "team-a/other-0");
        let address = said["steps"].as_array().unwrap().iter().find(|step| step["step"] == "address");
        address.is_some_and(|address| {
            let claimants = address["claimants"].as_array().map_or(0, Vec::len);
            (code, claimants, address["state"].as_str()) == (1, 2, Some("fails"))
        })
    });
}

#[test]
fn pods_of_the_nodes_own_network_and_of_other_nodes_are_told_what_they_are() {
    let (sandbox, _web) = with_a_pod();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.create_pod(NewPod::new("team-a", "host-0").service_account("web").node(NODE).host_network());
    kubernetes.run_pod("team-a", "host-0", &sandbox.families().node());
    let _daemon = Daemon::ready(&sandbox, &["--host-network", "off"]);
    let (code, said) = explain(&sandbox, "team-a/host-0");
    assert_eq!((code, failing(&said)), (1, vec!["pod"]));
    assert_eq!(step(&said, "pod")["host_network"], true);
    let (code, said) = explain(&sandbox, "team-a/nobody");
    assert_eq!((code, failing(&said)), (1, vec!["pod"]));
    let says = step(&said, "pod")["says"].as_str().unwrap();
    assert!(says.contains(NODE) && says.contains("kubectl get pod -o wide"), "{says}");
}

#[test]
fn pods_that_end_are_served_and_those_that_have_ended_are_not() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    sandbox.cloud.kubernetes.start_deleting_pod("team-a", "web-0", Duration::from_secs(30));
    eventually("it is told", || {
        let (code, said) = explain(&sandbox, "team-a/web-0");
        code == 0 && step(&said, "pod")["says"].as_str().unwrap().contains("is being deleted")
    });
    let ended = PodStatus::new(PodPhase::Succeeded, &[web.address()]);
    sandbox.cloud.kubernetes.set_pod_status("team-a", "web-0", ended);
    fails(&sandbox, &["pod"], &["it has ended"]);
}

#[test]
fn a_pod_that_the_webhook_gave_a_token_is_not_fetched_for_and_that_is_no_failure() {
    let sandbox = with_an_account();
    let web = sandbox.start_pod("team-a", "web-0", "web").unwrap();
    let kubernetes = &sandbox.cloud.kubernetes;
    kubernetes.create_pod(NewPod::new("team-a", "web-0").service_account("web").node(NODE).token(AUDIENCE));
    kubernetes.run_pod("team-a", "web-0", &[web.address()]);
    let _daemon = Daemon::ready(&sandbox, &[]);
    let (code, said) = explain(&sandbox, "team-a/web-0");
    assert_eq!(code, 0, "{said:#}");
    assert_eq!(step(&said, "token")["pod_has_its_own"], true);
    assert_eq!(step(&said, "credentials")["state"], "unknown");
    for step in ["token", "sts"].map(|name| step(&said, name)) {
        assert!(step["says"].as_str().unwrap().starts_with("nothing is remembered"), "{step}");
    }
    eventually("it is served", || has_credentials(&web));
    let (_, said) = explain(&sandbox, "team-a/web-0");
    assert_eq!(step(&said, "credentials")["state"], "ok", "{said:#}");
}

#[test]
fn of_a_session_that_pods_share_it_is_told_with_whose_token_the_last_call_was() {
    let sandbox = with_an_account();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    let _daemon = Daemon::ready(&sandbox, &["--session-scope", "service-account"]);
    let pods = ["web-0", "web-1"].map(|name| sandbox.add_pod("team-a", name, "web").unwrap());
    let is_of_another = |pod: &str, other: &str| {
        let (_, said) = explain(&sandbox, &format!("team-a/{pod}"));
        let sts = step(&said, "sts");
        let says = sts["says"].as_str().unwrap();
        let of_another = says.contains(&format!("with the token of pod {other}, which shares the session"));
        assert!(!says.contains(&format!("pod {pod}, which")), "{says}");
        (sts["state"] == "fails").then_some(of_another)
    };
    for pod in &pods {
        eventually("it is refused", || role_status(pod) == 403);
    }
    // The next call, which may come between the two looks, is with the other's.
    eventually("it is that of one of them", || {
        let both = (is_of_another("web-0", "web-1"), is_of_another("web-1", "web-0"));
        both == (Some(true), Some(false)) || both == (Some(false), Some(true))
    });
}

#[test]
fn each_role_of_a_pod_is_told_by_itself() {
    let sandbox = sandbox();
    let other = format!("arn:aws:iam::{ACCOUNT}:role/other");
    put_hub(&sandbox, HUB);
    put_target(&sandbox, READER, HUB, &json!({}));
    put_role(&sandbox, &other);
    let annotations = [
        (ROLE, HUB),
        ("kube2irsa.io/target-role-arn", READER),
        ("kube2irsa.io/additional-role-arns", other.as_str()),
        ("kube2irsa.io/require-imdsv2", "true"),
    ];
    sandbox.annotate("team-a", "web", &annotations);
    let _web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let state = |said: &Value, role: &str| {
        let steps = said["steps"].as_array().unwrap();
        let of = steps.iter().find(|step| step["step"] == "credentials" && step["role"] == role).unwrap();
        of["state"].as_str().unwrap().to_owned()
    };
    eventually("the main one is there", || state(&explain(&sandbox, "team-a/web-0").1, READER) == "ok");
    let (code, said) = explain(&sandbox, "team-a/web-0");
    assert_eq!((code, state(&said, &other).as_str()), (0, "unknown"), "nobody has asked for that");
    let account = step(&said, "service_account");
    assert_eq!((&account["role"], &account["target_role"]), (&json!(HUB), &json!(READER)));
    assert_eq!(account["additional_roles"], json!([{"name": "other", "role": other}]));
    assert_eq!(step(&said, "imdsv2")["required"], true);
}

#[test]
fn who_is_not_there_or_serves_no_pods_or_is_asked_for_no_pod_is_told_by_the_exit_code() {
    let sandbox = sandbox();
    let socket = sandbox.admin_socket();
    let run = |pod: &str| kube2irsa(&sandbox, &["explain", pod, "--admin-socket", socket.to_str().unwrap()]);
    let (code, said, errors) = run("team-a/web-0");
    assert_eq!((code, said.as_str()), (Some(69), ""));
    assert!(errors.contains("no daemon answers at "), "{errors}");
    for pod in ["web-0", "team-a/", "/web-0", "team-a/web-0/x", "team-a/web 0"] {
        assert_eq!(run(pod).0, Some(64), "{pod}");
    }
    for arguments in
        [&["explain"][..], &["explain", "team-a/web-0", "--all"], &["explain", "--all", "--kubeconfig", "/nowhere"]]
    {
        assert_eq!(kube2irsa(&sandbox, arguments).0, Some(64), "{arguments:?}");
    }
    let kubeconfig = sandbox.kubeconfig();
    let (code, _, errors) = kube2irsa(&sandbox, &["explain", "--all", "--kubeconfig", kubeconfig.to_str().unwrap()]);
    assert_eq!(code, Some(69), "the daemon itself may not list all pods: {errors}");
    assert!(errors.contains("pods is forbidden"), "{errors}");
}

/// `(cause, whether it is a fault, pods)` of all pods, for programs.
fn causes(said: &Value) -> Vec<(&str, bool, Vec<&str>)> {
    let causes = said["causes"].as_array().unwrap().iter();
    let causes = causes.map(|group| {
        let said = group["said"].as_array().unwrap().iter();
        let pods = said.flat_map(|said| said["pods"].as_array().unwrap()).map(|pod| pod.as_str().unwrap());
        let pods = pods.collect::<Vec<_>>();
        assert_eq!(group["count"], json!(pods.len()), "{group}");
        (group["cause"].as_str().unwrap(), group["fault"].as_bool().unwrap(), pods)
    });
    causes.collect()
}

#[test]
fn the_page_for_operators_shows_all_pods_that_get_no_credentials_by_cause() {
    let (sandbox, web) = with_a_pod();
    let kubernetes = &sandbox.cloud.kubernetes;
    let kubeconfig = operators_kubeconfig(&sandbox);
    let all = |output: &str| {
        as_operator(&sandbox, &["explain", "--all", "--kubeconfig", kubeconfig.to_str().unwrap(), "-o", output])
    };
    let role = |name: &str| format!("arn:aws:iam::{ACCOUNT}:role/{name}");
    // Its role trusts another ServiceAccount.
    sandbox.cloud.sts.put_role(&role("batch"), sandbox.trust_policy("system:serviceaccount:team-b:batch")).unwrap();
    sandbox.annotate("team-a", "batch", &[(ROLE, &role("batch"))]);
    let _batch = sandbox.add_pod("team-a", "batch-0", "batch").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || has_credentials(&web));
    eventually("why the other is not stands on the pod", || {
        kubernetes.events().iter().any(|event| event["reason"] == "CredentialsRefused")
    });
    let (code, said, _) = all("json");
    let said = serde_json::from_str::<Value>(&said).unwrap();
    assert_eq!(code, Some(1));
    let expected =
        vec![("refused", true, vec!["team-a/batch-0"]), ("no-role", false, vec!["kube2irsa/kube2irsa-node-1"])];
    assert_eq!((causes(&said), &said["nothing_found"]), (expected, &json!(1)), "{said:#}");

    // One pod for each other cause.
    let run = |pod: NewPod, address: &str| {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        kubernetes.create_pod(pod);
        kubernetes.run_pod(&namespace, &name, &[address.parse().unwrap()]);
    };
    let of = |name: &str, account: &str| NewPod::new("team-a", name).service_account(account).node(NODE);
    run(of("gone-0", "gone"), "10.244.9.1");
    sandbox.annotate("team-a", "typo", &[(ROLE, "web")]);
    run(of("typo-0", "typo"), "10.244.9.2");
    kubernetes.create_namespace("team-c", &[("kube2irsa.io/permitted-roles", &role("team-c-*"))]);
    sandbox.annotate("team-c", "web", &[(ROLE, &role("web"))]);
    run(NewPod::new("team-c", "web-0").service_account("web").node(NODE), "10.244.9.3");
    run(of("twin-0", "web"), "10.244.9.4");
    run(of("twin-1", "web"), "10.244.9.4");
    run(NewPod::new("team-a", "far-0").service_account("web").node("node-2"), "10.244.9.5");
    kubernetes.create_pod(of("host-0", "web").host_network());
    kubernetes.create_pod(of("new-0", "web"));
    kubernetes.create_pod(of("job-0", "web"));
    kubernetes.set_pod_status("team-a", "job-0", PodStatus::new(PodPhase::Succeeded, &[]));
    let env = json!([{"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"}]);
    let webhook = json!({
        "metadata": {"name": "webhook-0", "namespace": "team-a", "uid": "b0000000-0000-4000-8000-000000000001"},
        "spec": {"serviceAccountName": "web", "nodeName": NODE, "containers": [{"name": "main", "image": "i", "env": env}]},
        "status": {"phase": "Pending"},
    });
    kubernetes.restore(Resource::Pods, webhook);
    let mut set = daemon_set();
    let flags = set.pointer_mut("/spec/template/spec/containers/0/env").unwrap().as_array_mut().unwrap();
    flags.push(json!({"name": "KUBE2IRSA_HOST_NETWORK", "value": "off"}));
    kubernetes.restore(Resource::DaemonSets, set);

    let (_, said, _) = all("json");
    let said = serde_json::from_str::<Value>(&said).unwrap();
    let expected = vec![
        ("account-missing", true, vec!["team-a/gone-0"]),
        ("bad-annotation", true, vec!["team-a/typo-0"]),
        ("not-permitted", true, vec!["team-c/web-0"]),
        ("host-network", true, vec!["team-a/host-0"]),
        ("no-daemon", true, vec!["team-a/far-0"]),
        ("duplicate-address", true, vec!["team-a/twin-0", "team-a/twin-1"]),
        ("refused", true, vec!["team-a/batch-0"]),
        ("no-role", false, vec!["kube2irsa/kube2irsa-node-1"]),
        ("own-token", false, vec!["team-a/webhook-0"]),
        ("not-started", false, vec!["team-a/new-0"]),
        ("ended", false, vec!["team-a/job-0"]),
    ];
    assert_eq!((causes(&said), &said["nothing_found"]), (expected, &json!(1)), "{said:#}");
    let (code, text, errors) = all("text");
    assert_eq!((code, errors.as_str()), (Some(1), ""));
    let (before, rest) = text.split_once("(at ").unwrap();
    let (_, after) = rest.split_once(')').unwrap();
    let printed = format!("{before}(at 2026-11-26T23:01:07.402115Z){after}");
    assert_shown("docs/explain.md", "tests/explain.rs", &printed);
}
