use serde_json::json;

use super::*;

const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.example/id/1";

fn context(sub: &str, audiences: &[&str]) -> Context {
    Context::default()
        .with("oidc.example/id/1:sub", [sub.to_owned()])
        .with("oidc.example/id/1:aud", audiences.iter().map(|aud| (*aud).to_owned()))
}

fn policy(condition: Value) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "Federated": PROVIDER }, "Action": ACTION, "Condition": condition
    }]})
}

fn allows(document: &Value, sub: &str) -> bool {
    TrustPolicy::parse(document).unwrap().allows(ACTION, PROVIDER, &context(sub, &["sts.amazonaws.com"]))
}

#[test]
fn a_glob_is_case_sensitive_and_matches_the_whole_text() {
    for (pattern, text, matches) in [
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
        ("?", "", false),
        ("?", "a", true),
        ("?", "ab", false),
        ("a*", "a", true),
        ("a*c", "abbc", true),
        ("a*c", "abbcd", false),
        ("a*b*c", "a-b-b-c", true),
        ("*:web", "team-a:web", true),
        ("system:serviceaccount:team-?:*", "system:serviceaccount:team-a:web", true),
        ("system:serviceaccount:team-?:*", "system:serviceaccount:team-ab:web", false),
        ("Web", "web", false),
        ("a.c", "abc", false),
        ("[ab]", "a", false),
        ("**", "abc", true),
        ("a*?", "a", false),
        ("?é", "aé", true),
    ] {
        assert_eq!(like(pattern, text), matches, "{pattern} on {text}");
    }
}

#[test]
fn string_equals_wants_the_very_subject() {
    let document = policy(json!({ "StringEquals": { "oidc.example/id/1:sub": "system:serviceaccount:a:web" } }));
    assert!(allows(&document, "system:serviceaccount:a:web"));
    assert!(!allows(&document, "system:serviceaccount:a:Web"));
    assert!(!allows(&document, "system:serviceaccount:a:web2"));
    let document = policy(json!({ "StringEquals": { "oidc.example/id/1:sub": "system:serviceaccount:a:*" } }));
    assert!(!allows(&document, "system:serviceaccount:a:web"), "a star is only a wildcard in StringLike");
}

#[test]
fn all_operators_must_hold_and_one_of_their_values() {
    let document = policy(json!({
        "StringEquals": { "oidc.example/id/1:aud": "sts.amazonaws.com", "oidc.example/id/1:sub": ["a", "b"] },
        "StringNotEquals": { "oidc.example/id/1:sub": ["c", "b"] },
    }));
    assert!(allows(&document, "a"));
    assert!(!allows(&document, "b"));
    assert!(!allows(&document, "c"));
    let policy = TrustPolicy::parse(&document).unwrap();
    assert!(!policy.allows(ACTION, PROVIDER, &context("a", &["elsewhere"])));
}

#[test]
fn a_condition_on_a_key_that_is_not_there_fails_unless_it_says_if_exists_or_not() {
    for (operator, holds) in [
        ("StringEquals", false),
        ("StringLike", false),
        ("StringNotEquals", true),
        ("StringEqualsIfExists", true),
        ("ForAnyValue:StringEquals", false),
        ("ForAllValues:StringEquals", true),
    ] {
        let document = policy(json!({ operator: { "other.example:sub": "*" } }));
        assert_eq!(allows(&document, "a"), holds, "{operator}");
    }
}

#[test]
fn set_operators_look_at_each_value() {
    let both = context("a", &["x", "y"]);
    for (operator, wanted, holds) in [
        ("ForAnyValue:StringEquals", json!(["x"]), true),
        ("ForAllValues:StringEquals", json!(["x"]), false),
        ("ForAllValues:StringLike", json!(["x", "?"]), true),
        ("ForAnyValue:StringNotEquals", json!(["x"]), true),
        ("ForAllValues:StringNotEquals", json!(["x"]), false),
        ("StringNotEquals", json!(["x"]), false),
    ] {
        let document = policy(json!({ operator: { "oidc.example/id/1:aud": wanted } }));
        let policy = TrustPolicy::parse(&document).unwrap();
        assert_eq!(policy.allows(ACTION, PROVIDER, &both), holds, "{operator}");
    }
}

#[test]
fn a_deny_wins_whatever_its_place() {
    let allow = json!({ "Effect": "Allow", "Principal": { "Federated": [PROVIDER] }, "Action": ["sts:*"] });
    let deny = json!({
        "Effect": "Deny", "Principal": { "Federated": PROVIDER }, "Action": "*",
        "Condition": { "StringLike": { "oidc.example/id/1:sub": "system:serviceaccount:kube-*:*" } },
    });
    for statements in [json!([allow, deny]), json!([deny, allow])] {
        let document = json!({ "Version": "2012-10-17", "Statement": statements });
        assert!(allows(&document, "system:serviceaccount:a:web"));
        assert!(!allows(&document, "system:serviceaccount:kube-system:web"));
    }
}

#[test]
fn a_deny_for_everyone_is_for_web_identities_too() {
    for everyone in [json!("*"), json!({ "AWS": "*" })] {
        let mut document = policy(json!({}));
        let allow = document["Statement"][0].clone();
        document["Statement"] = json!([allow, { "Effect": "Deny", "Principal": everyone, "Action": ACTION }]);
        assert!(!allows(&document, "a"));
        document["Statement"] = json!([{ "Effect": "Allow", "Principal": everyone, "Action": ACTION }]);
        assert!(!allows(&document, "a"), "an allow for every AWS principal is not one for a web identity");
    }
}

#[test]
fn another_provider_or_another_action_is_not_trusted() {
    let policy = TrustPolicy::parse(&policy(json!({}))).unwrap();
    let context = context("a", &["sts.amazonaws.com"]);
    assert!(policy.allows(ACTION, PROVIDER, &context));
    assert!(!policy.allows(ACTION, "arn:aws:iam::444455556666:oidc-provider/oidc.example/id/1", &context));
    assert!(!policy.allows("sts:AssumeRole", PROVIDER, &context));
}

#[test]
fn what_is_not_understood_is_refused_and_not_ignored() {
    let with = |change: fn(&mut Value)| {
        let mut document = policy(json!({}));
        change(&mut document);
        document
    };
    for document in [
        policy(json!({ "StringEqual": { "oidc.example/id/1:sub": "a" } })),
        policy(json!({ "Bool": { "aws:SecureTransport": "true" } })),
        policy(json!({ "ForNoValue:StringEquals": { "oidc.example/id/1:sub": "a" } })),
        policy(json!({ "StringEquals": { "oidc.example/id/1:sub": "${aws:username}" } })),
        policy(json!({ "StringEquals": { "oidc.example/id/1:sub": 7 } })),
        with(|document| document["Version"] = json!("2020-01-01")),
        with(|document| document["Statement"] = json!([])),
        with(|document| document["Statement"][0]["Resource"] = json!("*")),
        with(|document| document["Statement"][0]["Effect"] = json!("allow")),
        with(|document| document["Statement"][0]["NotAction"] = json!("sts:AssumeRole")),
        with(|document| document["Statement"][0]["Action"] = json!("s3:GetObject")),
        with(|document| document["Statement"][0]["Principal"] = json!({ "Federated": "nonsense" })),
        with(|document| document["Statement"][0]["Principal"] = json!({ "Canonical": "x" })),
        json!("a policy"),
    ] {
        let error = TrustPolicy::parse(&document).unwrap_err();
        assert!(matches!(error, IamError::MalformedPolicyDocument(_)), "{document}");
    }
    let long = policy(json!({ "StringEquals": { "oidc.example/id/1:sub": "a".repeat(2048) } }));
    assert!(matches!(TrustPolicy::parse(&long), Err(IamError::LimitExceeded(_))));
}
