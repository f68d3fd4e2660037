use serde_json::{Value, json};

use super::*;
use crate::identity::annotations::{EKS_PREFIX, Keys};

const WEB: &str = "arn:aws:iam::111122223333:role/web";
const BLUE: &str = "https://oidc.example.com/blue";
const GREEN: &str = "https://oidc.example.com/green";
const AUDIENCE: &str = "sts.amazonaws.com";

fn issuers(urls: &[&str]) -> Vec<Issuer> {
    urls.iter().map(|url| url.parse().unwrap()).collect()
}

fn roles(accounts: &[(&str, &[(&str, &str)])]) -> Roles {
    let mut roles = Roles::default();
    for (account, annotations) in accounts {
        let (namespace, name) = account.split_once('/').unwrap();
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let wishes = Keys::new(EKS_PREFIX).read(&annotations).unwrap().unwrap();
        roles.add(&namespace.into(), &name.into(), &wishes, AUDIENCE);
    }
    roles
}

fn policy(roles: &Roles, role: &str, urls: &[&str]) -> Value {
    let trust = roles.iter().find(|trust| trust.role.as_str() == role).unwrap();
    serde_json::to_value(trust.policy(&issuers(urls)).unwrap()).unwrap()
}

fn of_tokens(issuer: &str, subject: &Value, audience: &str) -> Value {
    let name = issuer.trim_start_matches("https://");
    json!({
        "Effect": "Allow",
        "Principal": {"Federated": format!("arn:aws:iam::111122223333:oidc-provider/{name}")},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {format!("{name}:sub"): subject, format!("{name}:aud"): audience}},
    })
}

#[test]
fn one_service_account_and_issuer_is_the_policy_of_irsas_documentation() {
    let roles = roles(&[("team-a/web", &[("eks.amazonaws.com/role-arn", WEB)])]);
    let statement = of_tokens(BLUE, &json!("system:serviceaccount:team-a:web"), AUDIENCE);
    assert_eq!(policy(&roles, WEB, &[BLUE]), json!({ "Version": "2012-10-17", "Statement": [statement] }));
}

#[test]
fn each_issuer_has_a_statement_of_its_own() {
    let roles = roles(&[("team-a/web", &[("eks.amazonaws.com/role-arn", WEB)])]);
    let statements = [BLUE, GREEN].map(|it| of_tokens(it, &json!("system:serviceaccount:team-a:web"), AUDIENCE));
    assert_eq!(policy(&roles, WEB, &[BLUE, GREEN])["Statement"], json!(statements));
}

#[test]
fn service_accounts_that_share_a_role_are_listed_and_those_of_another_audience_apart() {
    let role = ("eks.amazonaws.com/role-arn", WEB);
    let roles = roles(&[
        ("team-b/web", &[role]),
        ("team-a/web", &[role]),
        ("team-a/other", &[role, ("eks.amazonaws.com/audience", "other")]),
    ]);
    let both = json!(["system:serviceaccount:team-a:web", "system:serviceaccount:team-b:web"]);
    let statements =
        [of_tokens(BLUE, &json!("system:serviceaccount:team-a:other"), "other"), of_tokens(BLUE, &both, AUDIENCE)];
    assert_eq!(policy(&roles, WEB, &[BLUE])["Statement"], json!(statements));
}

#[test]
fn a_wildcard_is_compared_as_one_and_the_audience_is_not() {
    let mut trust = RoleTrust::new(WEB.parse().unwrap());
    trust.admit(Subject::glob("team-a/*").unwrap(), AUDIENCE);
    trust.admit(Subject::of(&"team-b".into(), &"web".into()), AUDIENCE);
    let policy = serde_json::to_value(trust.policy(&issuers(&[BLUE])).unwrap()).unwrap();
    assert_eq!(
        policy["Statement"][0]["Condition"],
        json!({
            "StringLike": {
                "oidc.example.com/blue:sub": ["system:serviceaccount:team-a:*", "system:serviceaccount:team-b:web"]
            },
            "StringEquals": {"oidc.example.com/blue:aud": AUDIENCE},
        })
    );
}

#[test]
fn a_target_admits_the_first_role_with_the_external_id_and_the_tags_of_those_who_ask_for_it() {
    const HUB: &str = "arn:aws:iam::111122223333:role/hub";
    const READER: &str = "arn:aws:iam::444455556666:role/reader";
    const LOGS: &str = "arn:aws-cn:iam::444455556666:role/logs";
    let hub = ("eks.amazonaws.com/role-arn", HUB);
    let target = ("kube2irsa.io/target-role-arn", READER);
    let roles = roles(&[
        ("team-a/web", &[hub, target, ("kube2irsa.io/external-id", "team-a")]),
        ("team-a/api", &[hub, target, ("kube2irsa.io/external-id", "team-a")]),
        ("team-b/web", &[hub, target, ("kube2irsa.io/additional-role-arns", LOGS)]),
    ]);
    let assume = |condition: Value| {
        json!({ "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": condition} })
    };
    let tag = json!({ "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": "sts:TagSession" });
    let statements = [
        assume(json!({ NAMESPACE_TAG: "team-b", SERVICE_ACCOUNT_TAG: "web" })),
        assume(json!({ EXTERNAL_ID: "team-a", NAMESPACE_TAG: "team-a", SERVICE_ACCOUNT_TAG: ["api", "web"] })),
        tag,
    ];
    assert_eq!(policy(&roles, READER, &[BLUE])["Statement"], json!(statements));
    let first = policy(&roles, HUB, &[BLUE]);
    assert_eq!(first["Statement"].as_array().unwrap().len(), 1);
    let permissions = roles.iter().find(|trust| trust.role.as_str() == HUB).unwrap().permissions().unwrap();
    assert_eq!(
        serde_json::to_value(permissions).unwrap()["Statement"],
        json!([{ "Effect": "Allow", "Action": ["sts:AssumeRole", "sts:TagSession"], "Resource": READER }])
    );
    // The token is exchanged for an additional role directly.
    let provider = &policy(&roles, LOGS, &[BLUE])["Statement"][0]["Principal"]["Federated"];
    assert_eq!(provider, "arn:aws-cn:iam::444455556666:oidc-provider/oidc.example.com/blue");
}

#[test]
fn twelve_first_roles_of_the_same_service_account_fit() {
    let mut trust = RoleTrust::new("arn:aws:iam::444455556666:role/reader".parse().unwrap());
    let first_roles = (10..22).map(|n| format!("arn:aws:iam::111122223333:role/cluster-{n}"));
    let first_roles = first_roles.collect::<Vec<_>>();
    for from in &first_roles {
        let external_id = Some("team-a".to_owned());
        let hop = Hop { from: from.parse().unwrap(), external_id, namespace: "team-a".into() };
        trust.admit_by_way_of(hop, "web".into());
    }
    let policy = trust.policy(&[]).unwrap();
    let written = serde_json::to_value(&policy).unwrap();
    assert_eq!(written["Statement"].as_array().unwrap().len(), 2);
    assert_eq!(written["Statement"][0]["Principal"]["AWS"], json!(first_roles));
    assert_eq!(written["Statement"][1]["Principal"]["AWS"], json!(first_roles));
    assert!(policy.characters() <= 2048, "{}", policy.characters());
}

#[test]
fn white_space_does_not_count() {
    let roles = roles(&[("team-a/web", &[("eks.amazonaws.com/role-arn", WEB)])]);
    let policy = roles.iter().next().unwrap().policy(&issuers(&[BLUE])).unwrap();
    let compact = policy.document().to_string();
    assert_eq!(policy.characters(), compact.len());
    assert!(policy.to_string().len() > compact.len());
    assert_eq!(policy.to_string().parse::<TrustPolicy>().unwrap(), policy);
}
