//! More than one role and account: a second hop, and additional roles by name.
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
    kubernetes::Corruption,
    sandbox::{Pod, Sandbox},
    sts::{Fault, Which},
};
use serde_json::json;
use support::{
    Daemon, ROLE_NAME,
    accounts::{HUB, READER, annotate, calls_for, put_hub, put_role, put_target},
    ask, eventually, metric, role_status, sandbox, sdk, sdk_with,
};

/// A sandbox with a pod `team-a/web-0`, whose service account asks for the reader by way of the hub.
fn chained(rest: &[(&str, &str)]) -> (Sandbox, Pod) {
    let sandbox = sandbox();
    put_hub(&sandbox, HUB);
    annotate(&sandbox, HUB, &[&[("target-role-arn", READER)], rest].concat());
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    (sandbox, web)
}

fn document(pod: &Pod, name: &str) -> support::http::Answer {
    ask(pod, "GET", &format!("{ROLE_NAME}{name}"), &[]).unwrap()
}

fn list(pod: &Pod) -> String {
    ask(pod, "GET", ROLE_NAME, &[]).unwrap().text().to_owned()
}

/// Who STS says that the credentials of this name are.
fn arn_of(sandbox: &Sandbox, pod: &Pod, name: &str) -> Option<String> {
    let answer = document(pod, name);
    let document = (answer.status == 200).then(|| answer.json())?;
    let keys = [
        ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
        ("AWS_SESSION_TOKEN", "Token"),
    ];
    sdk_with(sandbox, pod, &keys.map(|(variable, key)| (variable, document[key].as_str().unwrap()))).arn
}

fn exchanges(sandbox: &Sandbox, action: &str, result: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_sts_exchanges_total{{action=\"{action}\",result=\"{result}\"}}"))
}

#[test]
fn a_pod_gets_a_role_of_another_account_that_checks_its_external_id_and_its_tags() {
    let (sandbox, web) = chained(&[("external-id", "team-a/web")]);
    let tags = json!({
        "sts:ExternalId": "team-a/web",
        "aws:RequestTag/eks-cluster-name": "prod 1",
        "aws:RequestTag/kubernetes-namespace": "team-a",
        "aws:RequestTag/kubernetes-service-account": "web",
        "aws:RequestTag/kubernetes-pod-name": "web-0",
        "aws:RequestTag/kubernetes-pod-uid": web.uid,
    });
    let transitive = json!(["eks-cluster-name", "kubernetes-*"]);
    put_target(
        &sandbox,
        READER,
        HUB,
        &json!({ "StringEquals": tags, "ForAllValues:StringLike": { "sts:TransitiveTagKeys": transitive } }),
    );
    let _daemon = Daemon::ready(&sandbox, &["--cluster-name", "prod 1"]);
    let report = sdk(&sandbox, &web);
    let arn = report.arn.unwrap_or_else(|| panic!("{:?}", report.error));
    assert!(arn.starts_with("arn:aws:sts::444455556666:assumed-role/reader/team-a.web-0-"), "{arn}");
    assert_eq!(list(&web), "reader");
    assert_eq!(document(&web, "hub").status, 404, "the first hop's role is nobody's");

    let (first, second) = (calls_for(&sandbox, HUB), calls_for(&sandbox, READER));
    let [first, second] = [&first[..], &second[..]].map(|calls| match calls {
        [only] => only,
        _ => panic!("{calls:?}"),
    });
    assert_eq!((first.action.as_str(), second.action.as_str()), ("AssumeRoleWithWebIdentity", "AssumeRole"));
    assert_eq!(first.session_name, second.session_name);
    assert!(arn.ends_with(second.session_name.as_deref().unwrap()));
    assert_eq!([exchanges(&sandbox, "web_identity", "ok"), exchanges(&sandbox, "assume_role", "ok")], [1.0, 1.0]);
}

#[test]
fn a_role_that_requires_an_external_id_refuses_without_and_the_operator_is_told() {
    let (sandbox, web) = chained(&[]);
    put_target(&sandbox, READER, HUB, &json!({ "StringEquals": { "sts:ExternalId": "team-a/web" } }));
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    assert_eq!(document(&web, "reader").status, 503);
    let log = daemon.log();
    for part in [
        "service account team-a/web got no credentials",
        &format!(
            "AssumeRole of {READER}: AccessDenied: User: arn:aws:sts::111122223333:assumed-role/hub/team-a.web-0-"
        ),
        "with no external id of annotation kube2irsa.io/external-id",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    annotate(&sandbox, HUB, &[("target-role-arn", READER), ("external-id", "another")]);
    eventually("another id is refused", || daemon.log().contains("with the external id of annotation"));
    assert_eq!(role_status(&web), 403);
    annotate(&sandbox, HUB, &[("target-role-arn", READER), ("external-id", "team-a/web")]);
    eventually("the right one is taken", || role_status(&web) == 200);
    let log = daemon.log();
    assert!(!log.contains("eyJ") && !log.contains("IQoJ"), "a token is in the log: {log}");
}

#[test]
fn a_trust_policy_that_lacks_leave_for_tags_is_named() {
    let (sandbox, web) = chained(&[]);
    let trust = json!({ "Version": "2012-10-17", "Statement": {
        "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": "sts:AssumeRole" }});
    sandbox.cloud.sts.put_role(READER, trust).unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    assert!(daemon.log().contains("is not authorized to perform: sts:TagSession"), "{}", daemon.log());
}

#[test]
fn a_namespace_must_permit_both_hops() {
    let (sandbox, web) = chained(&[]);
    put_target(&sandbox, READER, HUB, &json!({}));
    sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", HUB)]);
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    assert_eq!(document(&web, "reader").status, 403);
    assert!(daemon.log().contains(&format!("namespace team-a does not permit {READER}")), "{}", daemon.log());
    assert_eq!(sandbox.cloud.sts.calls(), [], "not even the first hop is made");
    let both = format!("{HUB},{READER}");
    sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", &both)]);
    eventually("both are permitted", || role_status(&web) == 200);
}

#[test]
fn additional_roles_are_given_by_name_and_fetched_when_somebody_asks() {
    let (prod, staging) = ("arn:aws:iam::444455556666:role/logs", "arn:aws:iam::777788889999:role/logs");
    let (refused, forbidden) = ("arn:aws:iam::444455556666:role/refused", "arn:aws:iam::444455556666:role/forbidden");
    let sandbox = sandbox();
    for role in [HUB, prod, staging, forbidden] {
        put_role(&sandbox, role);
    }
    let roles = format!("prod={prod}, staging={staging}, {refused}, {forbidden}");
    annotate(&sandbox, HUB, &[("additional-role-arns", &roles)]);
    let permitted = format!("{HUB},{prod},{staging},{refused}");
    sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", &permitted)]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);

    let main = sdk(&sandbox, &web).arn.unwrap();
    assert!(main.starts_with("arn:aws:sts::111122223333:assumed-role/hub/team-a.web-0-"), "{main}");
    assert_eq!(list(&web), "hub", "one name, or SDKs would not know which to take");
    assert_eq!(calls_for(&sandbox, prod), [], "nobody has asked");
    for (name, account) in [("prod", "444455556666"), ("staging", "777788889999")] {
        let arn = arn_of(&sandbox, &web, name).unwrap();
        assert!(arn.starts_with(&format!("arn:aws:sts::{account}:assumed-role/logs/team-a.web-0-")), "{name}: {arn}");
    }
    assert_eq!((calls_for(&sandbox, prod).len(), calls_for(&sandbox, staging).len()), (1, 1));
    for (name, status) in [("logs", 404), ("production", 404), ("forbidden", 403), ("refused", 503)] {
        assert_eq!(document(&web, name).status, status, "{name}");
    }
    assert!(daemon.log().contains(&format!("namespace team-a does not permit {forbidden}")), "{}", daemon.log());
    assert_eq!(calls_for(&sandbox, forbidden), []);

    let keys = document(&web, "staging").json()["AccessKeyId"].clone();
    annotate(&sandbox, HUB, &[("additional-role-arns", &format!("staging={staging}"))]);
    eventually("it is taken away", || document(&web, "prod").status == 404);
    assert_eq!(document(&web, "staging").json()["AccessKeyId"], keys, "the other one is not fetched again");
}

#[test]
fn a_changed_target_is_in_force_within_a_second_and_the_old_credentials_are_given_no_more() {
    let (sandbox, web) = chained(&[]);
    let writer = "arn:aws:iam::777788889999:role/writer";
    put_target(&sandbox, READER, HUB, &json!({}));
    put_target(&sandbox, writer, HUB, &json!({}));
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("the first target is given", || document(&web, "reader").status == 200);
    annotate(&sandbox, HUB, &[("target-role-arn", writer)]);
    let start = Instant::now();
    eventually("it is in force", || list(&web) == "writer");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(document(&web, "reader").status, 404);
    let arn = arn_of(&sandbox, &web, "writer").unwrap();
    assert!(arn.starts_with("arn:aws:sts::777788889999:assumed-role/writer/"), "{arn}");
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("/writer/"));

    annotate(&sandbox, HUB, &[]);
    eventually("without a target it is the hub", || list(&web) == "hub");
    assert_eq!(document(&web, "writer").status, 404);
}

#[test]
fn a_hop_that_fails_in_passing_is_made_again() {
    let (sandbox, web) = chained(&[]);
    put_target(&sandbox, READER, HUB, &json!({}));
    let sts = &sandbox.cloud.sts;
    sts.faults().fail_action("AssumeRoleWithWebIdentity", Fault::ServiceUnavailable, Which::Next(1));
    sts.faults().fail_action("AssumeRole", Fault::Throttling, Which::Next(1));
    sts.faults().fail_action("AssumeRole", Fault::Cut, Which::Next(1));
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served in the end", || document(&web, "reader").status == 200);
    for (action, result) in
        [("web_identity", "ServiceUnavailable"), ("assume_role", "Throttling"), ("assume_role", "ok")]
    {
        assert_eq!(exchanges(&sandbox, action, result), 1.0, "{action} {result}: {}", daemon.log());
    }
    let (first, second) = (sts.call_count("AssumeRoleWithWebIdentity"), sts.call_count("AssumeRole"));
    assert_eq!((first, second), (4, 3), "each second hop has a first one of its own");
    assert!(daemon.log().contains(&format!("AssumeRole of {READER}: Throttling")), "{}", daemon.log());
}

#[test]
fn a_token_that_expired_on_its_way_leads_to_no_second_hop() {
    let (sandbox, web) = chained(&[]);
    put_target(&sandbox, READER, HUB, &json!({}));
    sandbox.cloud.kubernetes.faults().corrupt_tokens(Some(Corruption::Expired));
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 503);
    assert!(exchanges(&sandbox, "web_identity", "ExpiredTokenException") >= 2.0, "once more with a new token");
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRole"), 0);
    sandbox.cloud.kubernetes.faults().corrupt_tokens(None);
    eventually("it is served once tokens are good", || document(&web, "reader").status == 200);
}

#[test]
fn keys_of_the_first_hop_that_are_revoked_between_the_hops_are_made_anew() {
    let (sandbox, web) = chained(&[]);
    put_target(&sandbox, READER, HUB, &json!({}));
    sandbox.cloud.sts.faults().hold();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("the first hop is made", || sandbox.cloud.sts.faults().held() == 1);
    sandbox.cloud.sts.revoke_all_keys();
    sandbox.cloud.sts.faults().release();
    eventually("the second is refused", || exchanges(&sandbox, "assume_role", "InvalidClientTokenId") == 1.0);
    eventually("it is served after another first hop", || document(&web, "reader").status == 200);
}

#[test]
fn roles_of_other_partitions_are_roles_too() {
    for (partition, region) in [("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
        let sandbox = sandbox();
        let (hub, reader) = (HUB.replace("aws", partition), READER.replace("aws", partition));
        put_hub(&sandbox, &hub);
        put_target(&sandbox, &reader, &hub, &json!({}));
        annotate(&sandbox, &hub, &[("target-role-arn", &reader), ("additional-role-arns", &format!("first={hub}"))]);
        let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
        let daemon = Daemon::ready(&sandbox, &["--region", region]);
        let report = sdk_with(&sandbox, &web, &[("AWS_REGION", region)]);
        let arn = report.arn.unwrap_or_else(|| panic!("{:?} {}", report.error, daemon.log()));
        assert!(
            arn.starts_with(&format!("arn:{partition}:sts::444455556666:assumed-role/reader/team-a.web-0-")),
            "{arn}"
        );
        assert_eq!(document(&web, "first").status, 200);
    }
}
