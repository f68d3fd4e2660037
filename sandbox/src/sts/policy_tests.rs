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

impl TrustPolicy {
    fn allows(&self, action: &str, provider: &str, context: &Context) -> bool {
        self.verdict(action, Caller::WebIdentity(provider), context) == Verdict::Allows
    }
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

fn of_session(document: &Value) -> Verdict {
    let role = RoleArn::parse("arn:aws:iam::111122223333:role/team/web").unwrap();
    let caller = Caller::Session(&role, "arn:aws:sts::111122223333:assumed-role/web/s1");
    TrustPolicy::parse(document).unwrap().verdict("sts:AssumeRole", caller, &Context::default())
}

fn trusts(effect: &str, principal: &Value) -> Value {
    json!({ "Effect": effect, "Principal": principal, "Action": "sts:AssumeRole" })
}

#[test]
fn a_session_is_named_by_its_role_itself_or_its_account() {
    for (principal, verdict) in [
        (json!({ "AWS": "arn:aws:iam::111122223333:role/team/web" }), Verdict::Allows),
        (json!({ "AWS": "arn:aws:sts::111122223333:assumed-role/web/s1" }), Verdict::Allows),
        (json!({ "AWS": "*" }), Verdict::Allows),
        (json!("*"), Verdict::Allows),
        (json!({ "AWS": "arn:aws:iam::111122223333:root" }), Verdict::Delegates),
        (json!({ "AWS": ["999999999999", "111122223333"] }), Verdict::Delegates),
        (json!({ "AWS": "arn:aws:iam::111122223333:role/web" }), Verdict::Silent),
        (json!({ "AWS": "arn:aws:sts::111122223333:assumed-role/web/s2" }), Verdict::Silent),
        (json!({ "AWS": "arn:aws:iam::999999999999:root" }), Verdict::Silent),
        (json!({ "Federated": PROVIDER }), Verdict::Silent),
    ] {
        let document = json!({ "Version": "2012-10-17", "Statement": trusts("Allow", &principal) });
        assert_eq!(of_session(&document), verdict, "{principal}");
        let everyone = trusts("Allow", &json!("*"));
        let document = json!({ "Version": "2012-10-17", "Statement": [everyone, trusts("Deny", &principal)] });
        let denied = if verdict == Verdict::Silent { Verdict::Allows } else { Verdict::Denies };
        assert_eq!(of_session(&document), denied, "{principal}");
    }
}

#[test]
fn an_aws_principal_that_is_none_is_refused() {
    for name in
        ["", "web", "12345", "arn:aws:iam::1111:root", "arn:aws:iam::111122223333:user/a", "arn:aws:iam::*:root"]
    {
        let document = json!({ "Version": "2012-10-17", "Statement": trusts("Allow", &json!({ "AWS": name })) });
        let error = TrustPolicy::parse(&document).unwrap_err();
        assert_eq!(error, malformed(format!("Invalid principal in policy: \"AWS\":\"{name}\"")));
    }
}

#[test]
fn permissions_are_for_resources_and_say_nothing_of_others() {
    let policy = |statement: Value| json!({ "Version": "2012-10-17", "Statement": statement });
    let allow = json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "arn:aws:iam::*:role/team-*" });
    let deny = json!({ "Effect": "Deny", "Action": "sts:*", "Resource": ["arn:aws:iam::999999999999:role/*"] });
    let both = Permissions::parse(&policy(json!([allow, deny]))).unwrap();
    let verdict = |action, arn| both.verdict(action, arn, &Context::default());
    assert_eq!(verdict("sts:AssumeRole", "arn:aws:iam::444455556666:role/team-b"), Verdict::Allows);
    assert_eq!(verdict("sts:AssumeRole", "arn:aws:iam::999999999999:role/team-b"), Verdict::Denies);
    assert_eq!(verdict("sts:AssumeRole", "arn:aws:iam::444455556666:role/other"), Verdict::Silent);
    assert_eq!(verdict("sts:TagSession", "arn:aws:iam::444455556666:role/team-b"), Verdict::Silent);
    for statement in [
        json!({ "Effect": "Allow", "Action": "sts:AssumeRole" }),
        json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*", "Principal": "*" }),
        json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "NotResource": "*" }),
    ] {
        assert!(Permissions::parse(&policy(statement.clone())).is_err(), "{statement}");
    }
}
