//! Clusters that come from kube2iam or kiam: pods that name their roles themselves, beside those whose service accounts do.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use sandbox::{
    cloud::{ACCOUNT, INSTANCE_ID, NODE_ROLE},
    sandbox::{AUDIENCE, DAEMON, DAEMON_POD, Pod, Sandbox},
    sts::{Fault, Role, Which},
};
use serde_json::{Value, json};
use support::{
    Daemon, ROLE_NAME, accounts::calls_for, ask, eventually, metric, node::kube2irsa, role_status, sandbox, sdk, total,
};

const ROLE: &str = "iam.amazonaws.com/role";
const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";
const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// A role of another account.
const FAR: &str = "arn:aws:iam::444455556666:role/team/far";

fn arn(role: &str) -> String {
    if role.starts_with("arn:") { role.to_owned() } else { format!("arn:aws:iam::{ACCOUNT}:role/{role}") }
}

/// A pod of `team-a`'s account `default`, which names no role, with these annotations.
fn pod(sandbox: &Sandbox, name: &str, annotations: &[(&str, &str)]) -> Pod {
    let pod = sandbox.add_pod("team-a", name, "default").unwrap();
    annotate(sandbox, name, annotations);
    pod
}

fn annotate(sandbox: &Sandbox, pod: &str, annotations: &[(&str, &str)]) {
    sandbox.cloud.kubernetes.annotate_pod("team-a", pod, annotations);
}

/// What `team-a` permits its pods to name.
fn namespace(sandbox: &Sandbox, annotations: &[(&str, &str)]) {
    sandbox.cloud.kubernetes.create_namespace("team-a", annotations);
}

/// A role that trusts the tokens of `team-a`'s account `default`.
fn put_web_identity_role(sandbox: &Sandbox, role: &str) {
    sandbox.cloud.sts.put_role_with(&sandbox.role(&arn(role), "team-a", "default").unwrap()).unwrap();
}

/// The role of the node, which may assume others as kube2iam's documentation has it.
fn put_node_role(sandbox: &Sandbox) {
    let statement =
        json!({"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"});
    let allow = json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::*:role/*"});
    let role = Role {
        permissions: Some(json!({"Version": "2012-10-17", "Statement": allow})),
        ..Role::new(&arn(NODE_ROLE), json!({"Version": "2012-10-17", "Statement": statement}))
    };
    sandbox.cloud.sts.put_role_with(&role).unwrap();
}

/// A role that trusts another one under this condition.
fn put_role_trusting(sandbox: &Sandbox, role: &str, principal: &str, condition: &Value) {
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"AWS": principal},
        "Action": "sts:AssumeRole",
        "Condition": condition,
    });
    sandbox.cloud.sts.put_role(&arn(role), json!({"Version": "2012-10-17", "Statement": statement})).unwrap();
}

fn list(pod: &Pod) -> (u16, String) {
    let answer = ask(pod, "GET", ROLE_NAME, &[]).unwrap();
    (answer.status, answer.text().to_owned())
}

fn document(pod: &Pod, name: &str) -> support::http::Answer {
    ask(pod, "GET", &format!("{ROLE_NAME}{name}"), &[]).unwrap()
}

/// Who STS says that an SDK in the pod is.
fn who(sandbox: &Sandbox, pod: &Pod) -> String {
    eventually("the pod is served", || role_status(pod) == 200);
    let report = sdk(sandbox, pod);
    report.arn.unwrap_or_else(|| panic!("{:?}", report.error))
}

fn is_session_of(arn: &str, role: &str) -> bool {
    arn.starts_with(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/"))
}

/// What is said of a pod, for programs.
fn explain(sandbox: &Sandbox, pod: &str) -> Value {
    let socket = sandbox.admin_socket();
    let socket = socket.to_str().unwrap();
    let (_, text, _) = kube2irsa(sandbox, &["explain", pod, "--admin-socket", socket]);
    println!("{text}");
    let (_, said, _) = kube2irsa(sandbox, &["explain", pod, "-o", "json", "--admin-socket", socket]);
    serde_json::from_str(&said).unwrap()
}

fn step<'a>(said: &'a Value, name: &str) -> &'a Value {
    let steps = said["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name}: {said:#}"))
}

fn figure(sandbox: &Sandbox, role: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_legacy_pods{{role=\"{role}\"}}"))
}

fn events(sandbox: &Sandbox, reason: &str) -> Vec<String> {
    let events = sandbox.cloud.kubernetes.events();
    let of_reason = events.iter().filter(|event| event["reason"] == reason);
    of_reason.map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

fn no_secret_in(daemon: &Daemon) {
    let log = daemon.log();
    assert!(!log.contains("eyJ") && !log.contains("IQoJ"), "a token is in the log: {log}");
}

#[test]
fn unless_it_is_asked_for_what_pods_name_is_nothing_to_us() {
    let sandbox = sandbox();
    put_web_identity_role(&sandbox, "web");
    namespace(&sandbox, &[(ALLOWED_ROLES, r#"["*"]"#)]);
    let web = pod(&sandbox, "web-0", &[(ROLE, "web")]);
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(list(&web), (404, String::new()));
    assert_eq!(document(&web, "web").status, 404);
    assert_eq!(sandbox.cloud.sts.calls(), []);
    assert_eq!(total(&sandbox, "kube2irsa_legacy_pods"), 0.0);
}

#[test]
fn old_and_new_roles_run_side_by_side_and_a_service_accounts_comes_first() {
    let sandbox = sandbox();
    for role in ["old", "old2", "team/deep", FAR] {
        put_web_identity_role(&sandbox, role);
    }
    sandbox.add_service_account("team-a", "web", "new").unwrap();
    namespace(&sandbox, &[(ALLOWED_ROLES, &json!(["old*", "team/*", FAR]).to_string())]);
    let old = pod(&sandbox, "old-0", &[(ROLE, "old"), (EXTERNAL_ID, "of no use here")]);
    let new = sandbox.add_pod("team-a", "new-0", "web").unwrap();
    annotate(&sandbox, "new-0", &[(ROLE, "old")]);
    let (deep, far) = (pod(&sandbox, "deep-0", &[(ROLE, "/team/deep")]), pod(&sandbox, "far-0", &[(ROLE, FAR)]));
    let none = pod(&sandbox, "none-0", &[("iam.amazonaws.com/other", "old")]);
    // Without us each has the node's, this one too.
    assert!(is_session_of(&sdk(&sandbox, &none).arn.unwrap(), NODE_ROLE));
    let daemon = Daemon::ready(&sandbox, &["--legacy-annotations"]);

    assert!(is_session_of(&who(&sandbox, &old), "old"));
    assert!(who(&sandbox, &old).contains("/team-a.old-0-"), "its own session");
    assert!(is_session_of(&who(&sandbox, &new), "new"));
    assert!(is_session_of(&who(&sandbox, &deep), "deep"), "the path is no part of a session's ARN");
    assert!(who(&sandbox, &far).starts_with("arn:aws:sts::444455556666:assumed-role/far/team-a.far-0-"));
    assert_eq!(list(&none), (404, String::new()), "there is no role of all pods");
    // With and without the slash; and no other name than its own.
    for (pod, name) in [(&old, "old"), (&new, "new"), (&deep, "deep")] {
        assert_eq!(list(pod), (200, name.to_owned()));
        let bare = ask(pod, "GET", ROLE_NAME.trim_end_matches('/'), &[]).unwrap();
        assert_eq!((bare.status, bare.text()), (200, name));
        assert_eq!(document(pod, &format!("{name}/")).status, 200);
        for other in ["old2", "node", "web", "old/x", "team/deep"] {
            assert_eq!(document(pod, other).status, 404, "{name} {other}");
        }
    }
    assert_eq!(document(&new, "old").status, 404, "what it names itself is superseded");

    assert_eq!((figure(&sandbox, "used"), figure(&sandbox, "superseded")), (3.0, 1.0));
    let said = explain(&sandbox, "team-a/old-0");
    assert_eq!((&said["well"], &step(&said, "service_account")["state"]), (&json!(true), &json!("ok")));
    let about = step(&said, "pod_annotation");
    assert_eq!((&about["role"], &about["source"]), (&json!(arn("old")), &json!("web-identity")));
    assert!(step(&said, "namespace_policy")["says"].as_str().unwrap().contains(ALLOWED_ROLES), "{said:#}");
    let said = explain(&sandbox, "team-a/new-0");
    assert_eq!(step(&said, "pod_annotation")["superseded"], true);
    no_secret_in(&daemon);

    // On its way: once the account names one, that is it, and the pod's own is not given any more.
    sandbox.annotate("team-a", "default", &[("eks.amazonaws.com/role-arn", &arn("old2"))]);
    let start = Instant::now();
    eventually("the account's is in force", || list(&old).1 == "old2");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(document(&old, "old").status, 404);
    eventually("nobody lives of them", || figure(&sandbox, "used") == 0.0);
}

#[test]
fn another_name_is_in_force_within_a_second_and_nothing_of_the_old_one_is_left_nor_given_to_the_next_pod() {
    let sandbox = sandbox();
    put_web_identity_role(&sandbox, "one");
    put_web_identity_role(&sandbox, "two");
    namespace(&sandbox, &[(PERMITTED, "one|two")]);
    let web = pod(&sandbox, "web-0", &[(ROLE, "one")]);
    let _daemon = Daemon::ready(&sandbox, &["--legacy-annotations"]);
    assert!(is_session_of(&who(&sandbox, &web), "one"));
    annotate(&sandbox, "web-0", &[(ROLE, "two")]);
    let start = Instant::now();
    eventually("the other is in force", || list(&web).1 == "two");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(document(&web, "one").status, 404);
    assert!(is_session_of(&who(&sandbox, &web), "two"));
    annotate(&sandbox, "web-0", &[]);
    eventually("it has none", || list(&web).0 == 404);
    assert_eq!(document(&web, "two").status, 404);
    annotate(&sandbox, "web-0", &[(ROLE, "two")]);
    eventually("it has it again", || list(&web).1 == "two");

    // Its name and its address are the next one's, and its role is not.
    let address = web.address();
    sandbox.remove_pod(web).unwrap();
    let next = sandbox.add_pod_at("team-a", "web-0", "default", address).unwrap();
    eventually("the next one is known", || list(&next).0 == 404);
    assert_eq!((document(&next, "one").status, document(&next, "two").status), (404, 404));
}

#[test]
fn a_pods_annotation_never_widens_what_its_namespace_permits() {
    let sandbox = sandbox();
    for role in ["a", "a-admin", "b"] {
        put_web_identity_role(&sandbox, role);
    }
    let (a, admin) = (pod(&sandbox, "a-0", &[(ROLE, "a")]), pod(&sandbox, "admin-0", &[(ROLE, "a-admin")]));
    let flags = ["--legacy-annotations", "--legacy-namespace-format", "regexp"];
    let daemon = Daemon::ready(&sandbox, &flags);
    let statuses = |expected: [u16; 2]| {
        eventually(&format!("{expected:?}"), || [list(&a).0, list(&admin).0] == expected);
    };
    // It says nothing.
    statuses([403, 403]);
    assert_eq!(sandbox.cloud.sts.calls(), [], "and STS is not asked");
    let neither = format!("namespace team-a does not permit {} (it has neither annotation", arn("a-admin"));
    assert!(daemon.log().contains(&neither), "{}", daemon.log());
    eventually("the pod's owner is told", || events(&sandbox, "RoleNotPermitted").len() == 2);
    let said = events(&sandbox, "RoleNotPermitted").concat();
    assert!(said.contains("Pod team-a/admin-0 is refused a role: ") && said.contains(&neither), "{said}");
    for (key, text, expected) in [
        (ALLOWED_ROLES, r#"["a|b"]"#, [200, 403]),
        (PERMITTED, "b|a", [200, 403]),
        (PERMITTED, ".*admin", [403, 200]),
        (ALLOWED_ROLES, r#"["b)|(?:.*"]"#, [403, 403]),
        (ALLOWED_ROLES, r#"["a.*"]"#, [200, 200]),
        (ALLOWED_ROLES, "a", [403, 403]),
        (PERMITTED, "", [403, 403]),
        (PERMITTED, ".*", [200, 200]),
    ] {
        namespace(&sandbox, &[(key, text)]);
        statuses(expected);
    }
    // Both are heeded, and so is our own.
    namespace(&sandbox, &[(PERMITTED, ".*"), (ALLOWED_ROLES, r#"["a"]"#)]);
    statuses([200, 403]);
    namespace(&sandbox, &[(PERMITTED, ".*"), ("kube2irsa.io/permitted-roles", &arn("a-admin"))]);
    statuses([403, 200]);
    namespace(&sandbox, &[("kube2irsa.io/permitted-roles", &arn("*"))]);
    statuses([403, 403]);
    let said = explain(&sandbox, "team-a/admin-0");
    let policy = step(&said, "namespace_policy");
    assert_eq!(policy["state"], "fails");
    assert!(policy["says"].as_str().unwrap().contains(&neither), "{policy}");
    eventually("it is counted", || figure(&sandbox, "refused") == 2.0);
    assert_eq!(document(&a, "a").status, 403);
    drop(daemon);
    let _daemon = Daemon::ready(&sandbox, &[&flags[..], &["--legacy-namespace-policy", "annotated"]].concat());
    statuses([200, 200]);
}

#[test]
fn an_annotation_that_cannot_be_meant_gives_nothing_and_is_told_of() {
    let sandbox = sandbox();
    namespace(&sandbox, &[(PERMITTED, ".*")]);
    let web = pod(&sandbox, "web-0", &[(ROLE, "a role")]);
    let daemon = Daemon::ready(&sandbox, &["--legacy-annotations"]);
    eventually("it is refused", || list(&web).0 == 403);
    eventually("the pod's owner is told", || !events(&sandbox, "InvalidAnnotation").is_empty());
    let said = events(&sandbox, "InvalidAnnotation").concat();
    for part in [
        "Pod team-a/web-0 gets no credentials: annotation iam.amazonaws.com/role: ",
        "Correct the annotation of the pod",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(daemon.log().contains("pod team-a/web-0 gets no credentials: annotation iam.amazonaws.com/role"));
    assert_eq!(step(&explain(&sandbox, "team-a/web-0"), "pod_annotation")["state"], "fails");
    assert_eq!(sandbox.cloud.sts.calls(), []);
}

const AS_NODE: [&str; 3] = ["--legacy-annotations", "--legacy-source", "assume-role"];

#[test]
fn as_kube2iam_does_roles_are_assumed_as_the_node_with_external_id_and_session_name() {
    let sandbox = sandbox();
    put_node_role(&sandbox);
    let node = arn(NODE_ROLE);
    put_role_trusting(&sandbox, "old", &node, &json!({"StringEquals": {"sts:ExternalId": "team-a/old"}}));
    put_role_trusting(&sandbox, FAR, &node, &json!({"StringEquals": {"sts:RoleSessionName": "chosen-by-a-team"}}));
    // It trusts the pods' tokens, and the node not.
    put_web_identity_role(&sandbox, "closed");
    sandbox.add_service_account("team-a", "web", "new").unwrap();
    namespace(&sandbox, &[(ALLOWED_ROLES, r#"["*", "arn:*"]"#)]);
    let old = pod(&sandbox, "old-0", &[(ROLE, "old"), (EXTERNAL_ID, "team-a/old")]);
    let far = pod(&sandbox, "far-0", &[(ROLE, FAR), (SESSION_NAME, "chosen by a/team")]);
    let closed = pod(&sandbox, "closed-0", &[(ROLE, "closed")]);
    let unnamed = pod(&sandbox, "unnamed-0", &[(ROLE, "old")]);
    let new = sandbox.add_pod("team-a", "new-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &AS_NODE);
    assert!(daemon.log().contains("assumed as this node"), "it is said what that means: {}", daemon.log());

    let is = who(&sandbox, &old);
    assert!(is_session_of(&is, "old") && is.contains("/team-a.old-0-"), "{is}");
    assert_eq!(who(&sandbox, &far), "arn:aws:sts::444455556666:assumed-role/far/chosen-by-a-team");
    assert!(is_session_of(&who(&sandbox, &new), "new"), "a service account's is had by its token, as ever");
    for pod in [&closed, &unnamed] {
        eventually("it is refused", || list(pod).0 == 403);
    }
    eventually("the pods' owners are told", || events(&sandbox, "CredentialsRefused").len() == 2);
    let said = events(&sandbox, "CredentialsRefused").concat();
    for part in [
        &format!("Pod team-a/closed-0 gets no credentials of {}: STS: AssumeRole of", arn("closed")),
        "AccessDenied: User: arn:aws:sts::111122223333:assumed-role/node/",
        "with no external id of annotation iam.amazonaws.com/external-id",
        &format!("the trust policy of {} and the permissions of that identity must both allow", arn("old")),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The right one is taken, without a restart; and so does another one.
    annotate(&sandbox, "unnamed-0", &[(ROLE, "old"), (EXTERNAL_ID, "team-a/old")]);
    assert!(is_session_of(&who(&sandbox, &unnamed), "old"));
    annotate(&sandbox, "unnamed-0", &[(ROLE, "old"), (EXTERNAL_ID, "another")]);
    eventually("another is refused", || list(&unnamed).0 == 403);

    let call = &calls_for(&sandbox, &arn("old"))[0];
    assert_eq!(call.action, "AssumeRole");
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 1, "of the service account's role");
    let tokens = sandbox.cloud.kubernetes.requests();
    let tokens = tokens.iter().filter(|request| request.resource == "serviceaccounts/token");
    assert!(
        tokens.clone().all(|request| request.path.contains("/serviceaccounts/web/") || request.path.contains(DAEMON))
    );
    assert_eq!(sandbox.cloud.imds.credential_requests(), 1, "once for all of them");
    assert_eq!(metric(&sandbox, "kube2irsa_sts_exchanges_total{action=\"assume_role\",result=\"ok\"}"), 3.0);

    let said = explain(&sandbox, "team-a/old-0");
    assert_eq!(said["well"], true, "{said:#}");
    let about = step(&said, "pod_annotation");
    assert_eq!((&about["source"], &about["external_id"]), (&json!("assume-role"), &json!(true)));
    assert!(step(&said, "token")["says"].as_str().unwrap().starts_with("none is needed"));
    no_secret_in(&daemon);
    assert!(
        !daemon.log().contains(&sandbox.cloud.sts.instance_credentials(&arn(NODE_ROLE), INSTANCE_ID).access_key_id)
    );
    for name in ["node", "closed"] {
        assert_eq!(document(&old, name).status, 404, "the node's own is nobody's");
    }
}

/// It may assume all roles, itself too, by its permissions and by this trust.
fn put_self_trusting_role(sandbox: &Sandbox, role: &str, mut trust: Vec<Value>) {
    let allow = json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::*:role/*"});
    trust.push(json!({"Effect": "Allow", "Principal": {"AWS": arn(role)}, "Action": "sts:AssumeRole"}));
    let role = Role {
        permissions: Some(json!({"Version": "2012-10-17", "Statement": allow})),
        ..Role::new(&arn(role), json!({"Version": "2012-10-17", "Statement": trust}))
    };
    sandbox.cloud.sts.put_role_with(&role).unwrap();
}

/// Each of these pods is refused the role that it names, and STS was not asked for it.
fn is_refused_as_our_own(sandbox: &Sandbox, daemon: &Daemon, pods: &[&Pod], names: &[&str]) {
    for (pod, name) in pods.iter().zip(names) {
        eventually("it is refused", || list(pod).0 == 403);
        assert_eq!(document(pod, name.rsplit('/').next().unwrap()).status, 503);
        assert!(daemon.log().contains(&format!("AssumeRole of {}: OwnRole", arn(name))), "{}", daemon.log());
    }
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRole"), 0);
}

#[test]
fn the_nodes_role_is_no_pods_even_where_it_trusts_itself_and_the_namespace_permits_it() {
    let sandbox = sandbox();
    let ec2 = json!({"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"});
    put_self_trusting_role(&sandbox, NODE_ROLE, vec![ec2]);
    namespace(&sandbox, &[(PERMITTED, ".*|arn:.*")]);
    let shouted = NODE_ROLE.to_uppercase();
    let elsewhere = format!("arn:aws:iam::444455556666:role/x/{NODE_ROLE}");
    let names = [NODE_ROLE, &shouted, &elsewhere];
    let pods = [0, 1, 2].map(|at| pod(&sandbox, &format!("bold-{at}"), &[(ROLE, names[at])]));
    assert!(is_session_of(&sdk(&sandbox, &pods[0]).arn.unwrap(), NODE_ROLE), "without us it has it");
    let daemon = Daemon::ready(&sandbox, &AS_NODE);
    is_refused_as_our_own(&sandbox, &daemon, &pods.each_ref(), &names);
    eventually("the pods' owners are told", || events(&sandbox, "CredentialsRefused").len() == 3);
    no_secret_in(&daemon);
}

#[test]
fn the_daemons_own_role_is_no_pods_either() {
    let sandbox = sandbox();
    let own = arn("kube2irsa");
    let trust = sandbox.role(&own, DAEMON, DAEMON).unwrap().trust_policy["Statement"].clone();
    let trust = trust.as_array().cloned().unwrap_or_else(|| vec![trust]);
    put_self_trusting_role(&sandbox, "kube2irsa", trust);
    namespace(&sandbox, &[(PERMITTED, ".*")]);
    let bold = pod(&sandbox, "bold-0", &[(ROLE, "kube2irsa")]);
    let token_file = sandbox.directory().join("token");
    let token = sandbox.cloud.kubernetes.projected_token(DAEMON, DAEMON, DAEMON_POD, AUDIENCE).unwrap();
    std::fs::write(&token_file, token).unwrap();
    let environment = [("AWS_ROLE_ARN", own.as_str()), ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.to_str().unwrap())];
    let flags = [&AS_NODE[..], &["--legacy-identity", "web-identity"]].concat();
    let daemon = Daemon::ready_in(&sandbox, &environment, &flags);
    is_refused_as_our_own(&sandbox, &daemon, &[&bold], &["kube2irsa"]);
    no_secret_in(&daemon);
}

#[test]
fn the_nodes_keys_are_asked_for_again_when_sts_takes_them_no_longer_and_kept_while_they_are_not_to_be_had() {
    let sandbox = sandbox();
    put_node_role(&sandbox);
    for role in ["one", "two"] {
        put_role_trusting(&sandbox, role, &arn(NODE_ROLE), &json!({}));
    }
    namespace(&sandbox, &[(PERMITTED, ".*")]);
    let web = pod(&sandbox, "web-0", &[(ROLE, "one")]);
    // The flags name what else it would ask the service for.
    let place = ["--region", "eu-central-1", "--aws-account", ACCOUNT, "--aws-partition", "aws"];
    sandbox.cloud.imds.set_down(true);
    let daemon = Daemon::ready(&sandbox, &[&AS_NODE[..], &place].concat());
    eventually("nobody is served", || list(&web).0 == 503);
    assert!(daemon.log().contains("NoIdentity: the node's own credentials: "), "{}", daemon.log());
    let counted = r#"kube2irsa_sts_exchanges_total{action="assume_role",result="NoIdentity"}"#;
    assert!(metric(&sandbox, counted) >= 1.0, "no call was made, and yet it is counted");
    sandbox.cloud.imds.set_down(false);
    assert!(is_session_of(&who(&sandbox, &web), "one"));
    let asked = sandbox.cloud.imds.credential_requests();

    // Those that it has are good while the service is away.
    sandbox.cloud.imds.set_down(true);
    annotate(&sandbox, "web-0", &[(ROLE, "two")]);
    assert!(is_session_of(&who(&sandbox, &web), "two"));
    sandbox.cloud.imds.set_down(false);
    assert_eq!(sandbox.cloud.imds.credential_requests(), asked);

    sandbox.cloud.sts.revoke_all_keys();
    annotate(&sandbox, "web-0", &[(ROLE, "one")]);
    eventually("it is served by others", || {
        list(&web) == (200, "one".to_owned()) && document(&web, "one").status == 200
    });
    assert_eq!(
        metric(&sandbox, "kube2irsa_sts_exchanges_total{action=\"assume_role\",result=\"InvalidClientTokenId\"}"),
        1.0
    );
    assert_eq!(sandbox.cloud.imds.credential_requests(), asked + 1);
    // What passes by itself is tried again, as with any exchange.
    sandbox.cloud.sts.faults().fail_action("AssumeRole", Fault::Throttling, Which::Next(1));
    annotate(&sandbox, "web-0", &[(ROLE, "two")]);
    assert!(is_session_of(&who(&sandbox, &web), "two"));
    no_secret_in(&daemon);
}

#[test]
fn roles_are_assumed_by_a_role_of_the_daemons_own_that_a_mounted_token_is_exchanged_for() {
    let sandbox = sandbox();
    let own = arn("kube2irsa");
    let allow = json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::*:role/*"});
    let permissions = Some(json!({"Version": "2012-10-17", "Statement": allow}));
    let role = Role { permissions, ..sandbox.role(&own, DAEMON, DAEMON).unwrap() };
    sandbox.cloud.sts.put_role_with(&role).unwrap();
    put_role_trusting(&sandbox, "old", &own, &json!({}));
    put_role_trusting(&sandbox, "old2", &own, &json!({}));
    namespace(&sandbox, &[(PERMITTED, ".*")]);
    let pods = ["old", "old2"].map(|role| pod(&sandbox, &format!("{role}-0"), &[(ROLE, role)]));
    let token_file = sandbox.directory().join("token");
    std::fs::write(&token_file, "not yet\n").unwrap();
    let environment = [("AWS_ROLE_ARN", own.as_str()), ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.to_str().unwrap())];
    let base = arn("");
    let flags = [&AS_NODE[..], &["--legacy-identity", "web-identity", "--legacy-base-role-arn", &base]].concat();
    let daemon = Daemon::ready_in(&sandbox, &environment, &flags);
    eventually("it is refused", || {
        list(&pods[0]).0 != 200 && daemon.log().contains(&format!("AssumeRoleWithWebIdentity of {own}"))
    });
    let token = sandbox.cloud.kubernetes.projected_token(DAEMON, DAEMON, DAEMON_POD, AUDIENCE).unwrap();
    std::fs::write(&token_file, token + "\n").unwrap();
    for (pod, role) in pods.iter().zip(["old", "old2"]) {
        assert!(is_session_of(&who(&sandbox, pod), role));
    }
    let with_success =
        calls_for(&sandbox, &own).into_iter().filter(|call| call.outcome == "Success").collect::<Vec<_>>();
    assert_eq!(with_success.len(), 1, "one session of its own for all: {with_success:?}");
    assert_eq!(with_success[0].session_name.as_deref(), Some("kube2irsa.node-1"));
    assert_eq!(sandbox.cloud.imds.credential_requests(), 0, "the node's are left alone");
    no_secret_in(&daemon);
}

#[test]
fn flags_that_cannot_be_meant_are_named() {
    let sandbox = sandbox();
    let refused = |flags: &[&str]| {
        let mut daemon = Daemon::started(&sandbox, flags);
        assert_eq!(daemon.process.wait().unwrap().code(), Some(64));
        daemon.log()
    };
    let said = refused(&[
        "--legacy-annotations",
        "--legacy-source",
        "assume-role",
        "--legacy-identity",
        "web-identity",
        "--legacy-base-role-arn",
        "arn:aws:iam::1:role/",
        "--legacy-namespace-format",
        "pcre",
        "--legacy-namespace-policy",
        "off",
    ]);
    for part in [
        "AWS_ROLE_ARN: is missing for --legacy-identity web-identity",
        "AWS_WEB_IDENTITY_TOKEN_FILE: is missing",
        "--legacy-base-role-arn \"arn:aws:iam::1:role/\": is not what stands before roles' names",
        "--legacy-namespace-format \"pcre\": must be glob or regexp",
        "--legacy-namespace-policy \"off\": must be required or annotated",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let off = ["--imds-endpoint", "off", "--region", "eu-central-1"];
    let said = refused(&[&AS_NODE[..], &off].concat());
    for part in ["--legacy-identity node: there is nobody to ask", "--aws-account: is missing for --legacy-annotations"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}
