use serde_json::json;

use super::*;
use crate::identity::annotations::{EKS_PREFIX, Keys};

const WEB: &str = "arn:aws:iam::111122223333:role/web";

fn candidate(name: &str, annotations: &[(&str, &str)]) -> Candidate {
    let (namespace, name) = name.split_once('/').unwrap();
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let wishes = Keys::new(EKS_PREFIX).read(&annotations);
    Candidate { namespace: namespace.into(), name: name.into(), wishes, named: false }
}

fn admits(subject: &str, audience: &str) -> TrustPolicy {
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"Federated": "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {
            "StringLike": {"oidc.example.com/blue:sub": subject},
            "StringEquals": {"oidc.example.com/blue:aud": audience},
        },
    });
    json!({ "Version": "2012-10-17", "Statement": statement }).to_string().parse().unwrap()
}

fn asked(policy: &TrustPolicy, role: Option<&str>, candidates: &[Candidate]) -> Report {
    let role = role.map(|role| role.parse::<RoleArn>().unwrap());
    let issuers = ["https://oidc.example.com/blue".parse().unwrap()];
    let question =
        Question { policy, role: role.as_ref(), issuers: &issuers, audience: "sts.amazonaws.com", quota: 2048 };
    check(&question, candidates).unwrap()
}

fn names(lines: &[Line]) -> Vec<(&str, bool)> {
    lines.iter().map(|line| (line.service_account.as_str(), line.annotated)).collect()
}

fn cluster() -> Vec<Candidate> {
    let web = [("eks.amazonaws.com/role-arn", WEB)];
    vec![
        candidate("team-a/web", &web),
        candidate("team-a/other", &[("eks.amazonaws.com/role-arn", "arn:aws:iam::111122223333:role/other")]),
        candidate("team-a/default", &[]),
        candidate("team-b/web", &web),
        candidate("team-b/default", &[]),
    ]
}

#[test]
fn who_may_and_who_should_and_may_not_are_told_apart() {
    let report = asked(&admits("system:serviceaccount:team-a:*", "sts.amazonaws.com"), Some(WEB), &cluster());
    assert_eq!(names(&report.may), [("team-a/web", true), ("team-a/other", false), ("team-a/default", false)]);
    assert_eq!(names(&report.may_not), [("team-b/web", true)]);
    assert!(report.may_not[0].reasons[0].contains("sub is system:serviceaccount:team-b:web"));
    assert!(!report.well);
    let narrow = admits("system:serviceaccount:team-a:web", "sts.amazonaws.com");
    assert!(asked(&narrow, Some(WEB), &cluster()[..3]).well);
}

#[test]
fn without_its_role_a_policy_is_not_to_blame_for_those_of_other_roles() {
    let narrow = admits("system:serviceaccount:team-a:web", "sts.amazonaws.com");
    let report = asked(&narrow, None, &cluster());
    assert_eq!(names(&report.may), [("team-a/web", true)]);
    assert_eq!(names(&report.may_not), [("team-a/other", true), ("team-b/web", true)]);
    assert!(report.well && report.to_string().contains("not known without --role"));
}

#[test]
fn whose_audience_is_annotated_is_judged_by_it_and_others_by_any_that_they_can_ask_for() {
    let policy = admits("system:serviceaccount:team-a:*", "other");
    let report = asked(&policy, Some(WEB), &cluster());
    assert_eq!(names(&report.may_not), [("team-a/web", true), ("team-b/web", true)], "its tokens are for STS");
    assert_eq!(names(&report.may), [("team-a/other", false), ("team-a/default", false)]);
    let annotated =
        [candidate("team-a/web", &[("eks.amazonaws.com/role-arn", WEB), ("eks.amazonaws.com/audience", "other")])];
    assert_eq!(names(&asked(&policy, Some(WEB), &annotated).may), [("team-a/web", true)]);
}

#[test]
fn who_is_asked_for_by_name_is_answered_for() {
    let mut default = candidate("team-b/default", &[]);
    default.named = true;
    let report = asked(&admits("system:serviceaccount:team-a:*", "sts.amazonaws.com"), Some(WEB), &[default]);
    assert_eq!(names(&report.may_not), [("team-b/default", false)]);
    assert!(!report.well);
}

#[test]
fn a_targets_policy_is_judged_by_the_first_roles_of_those_who_ask_for_it() {
    const HUB: &str = "arn:aws:iam::111122223333:role/hub";
    const READER: &str = "arn:aws:iam::444455556666:role/reader";
    let of = |id: &str| {
        let annotations = [
            ("eks.amazonaws.com/role-arn", HUB),
            ("kube2irsa.io/target-role-arn", READER),
            ("kube2irsa.io/external-id", id),
        ];
        candidate(&format!("team-a/{id}"), &annotations)
    };
    let statement =
        json!({ "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": ["sts:AssumeRole", "sts:TagSession"] });
    let mut assume = statement.clone();
    assume["Action"] = json!("sts:AssumeRole");
    assume["Condition"] = json!({ "StringEquals": {"sts:ExternalId": "web"} });
    let mut tag = statement;
    tag["Action"] = json!("sts:TagSession");
    let policy = json!({ "Version": "2012-10-17", "Statement": [assume, tag] }).to_string().parse().unwrap();
    let candidates = [of("web"), of("other"), candidate("team-a/default", &[])];
    let report = asked(&policy, Some(READER), &candidates);
    assert_eq!(names(&report.may), [("team-a/web", true)]);
    assert_eq!(report.may[0].by_way_of, HUB);
    assert_eq!(names(&report.may_not), [("team-a/other", true)]);
    assert!(report.to_string().contains(&format!("statement 1 by way of {HUB}")), "{report}");
    assert_eq!(names(&asked(&policy, None, &candidates).may), [("team-a/web", true)]);
}

#[test]
fn a_policy_that_is_too_long_or_too_wide_is_no_good_one() {
    let wide = admits("system:serviceaccount:*", "sts.amazonaws.com");
    let report = asked(&wide, Some(WEB), &cluster());
    assert_eq!((report.well, report.may.len(), report.warnings.len()), (false, 5, 1));
    let long = admits(&format!("system:serviceaccount:team-a:{}", "a".repeat(2048)), "sts.amazonaws.com");
    assert!(asked(&long, Some(WEB), &[]).warnings[0].contains("more than the 2048"));
}
