use serde_json::{Value, json};

use super::*;

const ROLE: &str = "arn:aws:iam::111122223333:role/web";
const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue";
const SUB: &str = "oidc.example.com/blue:sub";
const AUD: &str = "oidc.example.com/blue:aud";
const WEB: &str = "system:serviceaccount:team-a:web";

fn statement(condition: &Value) -> Value {
    json!({ "Effect": "Allow", "Principal": {"Federated": PROVIDER}, "Action": WEB_IDENTITY, "Condition": condition })
}

fn document(statements: &[Value]) -> TrustPolicy {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string().parse().unwrap()
}

fn judge(policy: &TrustPolicy, subject: &str, audience: &str) -> Judgement {
    let issuer = "https://oidc.example.com/blue".parse::<Issuer>().unwrap();
    let provider = issuer.provider_arn(&ROLE.parse().unwrap());
    Statements::read(policy).unwrap().of_token(&issuer, &provider, subject, audience)
}

fn of_web(statements: &[Value]) -> Judgement {
    judge(&document(statements), WEB, "sts.amazonaws.com")
}

fn may(by: &str) -> Judgement {
    Judgement::May { by: by.to_owned() }
}

fn reasons(judgement: Judgement) -> Vec<String> {
    match judgement {
        Judgement::MayNot(reasons) => reasons,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(statements: &[Value], why: &[&str]) {
    let reasons = reasons(of_web(statements));
    assert_eq!(reasons.len(), why.len(), "{reasons:?}");
    for (reason, why) in reasons.iter().zip(why) {
        assert!(reason.contains(why), "{reason:?} {why:?}");
    }
}

#[test]
fn the_very_subject_and_audience_are_let_in() {
    assert_eq!(
        of_web(&[statement(&json!({ "StringEquals": { SUB: WEB, AUD: "sts.amazonaws.com" } }))]),
        may("statement 1")
    );
    assert_eq!(of_web(&[statement(&json!({ "StringEquals": { SUB: ["x", WEB] } }))]), may("statement 1"));
    let condition = json!({ "StringLike": { SUB: "system:serviceaccount:team-?:*" } });
    assert_eq!(of_web(&[statement(&condition)]), may("statement 1"));
    let condition =
        json!({ "ForAnyValue:StringEquals": { AUD: ["other", "sts.amazonaws.com"] }, "StringEquals": { SUB: WEB } });
    assert_eq!(of_web(&[statement(&condition)]), may("statement 1"));
    // Names of keys do not depend on case, values do.
    let condition = json!({ "StringEquals": { "OIDC.example.com/BLUE:Sub": WEB } });
    assert_eq!(of_web(&[statement(&condition)]), may("statement 1"));
    for condition in [
        json!({ "ForAllValues:StringEquals": { "other.example.com:sub": "x" } }),
        json!({ "StringEqualsIfExists": { "other.example.com:sub": "x" } }),
        json!({ "StringNotEquals": { "other.example.com:sub": "x" } }),
        json!({ "Null": { "other.example.com:sub": "true" } }),
        json!({ "Null": { SUB: false } }),
        json!({ "StringNotLike": { SUB: "*:default" } }),
        json!({ "StringEqualsIgnoreCase": { SUB: WEB.to_uppercase() } }),
        Value::Null,
    ] {
        let mut admits = statement(&condition);
        if condition.is_null() {
            admits.as_object_mut().unwrap().remove("Condition");
        }
        assert_eq!(of_web(&[admits]), may("statement 1"), "{condition}");
    }
}

#[test]
fn who_is_not_let_in_is_told_which_condition_and_what_it_has() {
    let other = "system:serviceaccount:team-a:other";
    refused(
        &[statement(&json!({ "StringEquals": { SUB: other, AUD: "other" } }))],
        &[
            "statement 1: oidc.example.com/blue:aud is sts.amazonaws.com, and StringEquals wants other",
            "statement 1: oidc.example.com/blue:sub is system:serviceaccount:team-a:web, and StringEquals wants system:serviceaccount:team-a:other",
        ],
    );
    // Of several statements the nearest.
    let near = statement(&json!({ "StringEquals": { SUB: WEB, AUD: "other" } }));
    refused(
        &[statement(&json!({ "StringEquals": { SUB: other, AUD: "x" } })), near],
        &["statement 2: oidc.example.com/blue:aud"],
    );
    let glob = json!({ "StringEquals": { SUB: "system:serviceaccount:team-a:*" } });
    refused(&[statement(&glob)], &["to StringEquals a * is a *: StringLike is meant"]);
    refused(
        &[statement(&json!({ "StringEquals": { SUB: "system:serviceaccount:Team-a:web" } }))],
        &["the case differs"],
    );
    refused(&[statement(&json!({ "StringLike": { SUB: "system:serviceaccount:team-b:*" } }))], &["StringLike wants"]);
    refused(&[statement(&json!({ "StringNotEquals": { SUB: WEB } }))], &["StringNotEquals wants"]);
    refused(&[statement(&json!({ "Null": { SUB: "true" } }))], &["Null wants"]);
    let both = json!({ "StringEquals": { SUB: WEB, "oidc.example.com/green:sub": WEB } });
    refused(&[statement(&both)], &["a key of oidc.example.com/green, which tokens of oidc.example.com/blue have not"]);
    let many = json!({ "StringEquals": { SUB: ["a", "b", "c", "d", "e"] } });
    refused(&[statement(&many)], &["wants a, b, c and 2 more"]);
}

#[test]
fn an_action_that_is_another_is_named() {
    let mut other = statement(&json!({ "StringEquals": { SUB: WEB } }));
    other["Action"] = json!("sts:AssumeRole");
    refused(
        std::slice::from_ref(&other),
        &["statement 1: its Action is sts:AssumeRole, and not sts:AssumeRoleWithWebIdentity"],
    );
    for action in [json!("sts:*"), json!("*"), json!(["sts:TagSession", "STS:assumerolewithwebidentity"])] {
        other["Action"] = action;
        assert_eq!(of_web(std::slice::from_ref(&other)), may("statement 1"));
    }
}

#[test]
fn an_issuer_that_is_missing_is_told_with_what_is_there_instead() {
    let with = |principal: &str| {
        let mut statement = statement(&json!({ "StringEquals": { SUB: WEB } }));
        statement["Principal"]["Federated"] = json!(principal);
        statement
    };
    refused(
        &[with(&PROVIDER.replace("blue", "green"))],
        &["no statement admits arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue; there are"],
    );
    for near in [
        PROVIDER.replace("111122223333", "444455556666"),
        PROVIDER.replace("arn:aws:", "arn:aws-cn:"),
        PROVIDER.replace("oidc.example", "https://oidc.example"),
        PROVIDER.replace("blue", "Blue"),
        format!("{PROVIDER}/"),
    ] {
        refused(&[with(&near)], &[&format!("; {near} is another")]);
    }
    let mut of_role = with(PROVIDER);
    of_role["Principal"] = json!({ "AWS": "*" });
    refused(&[of_role], &["no statement admits arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue"]);
}

#[test]
fn a_deny_wins_wherever_it_stands() {
    let allow = statement(&json!({ "StringEquals": { SUB: WEB } }));
    let mut deny = statement(&json!({ "StringLike": { SUB: "*:web" } }));
    deny["Effect"] = json!("Deny");
    deny["Sid"] = json!("NotWeb");
    refused(&[allow.clone(), deny.clone()], &["statement 2 (NotWeb) denies it"]);
    refused(&[deny.clone(), allow.clone()], &["statement 1 (NotWeb) denies it"]);
    deny["Principal"] = json!("*");
    refused(&[deny.clone(), allow.clone()], &["statement 1 (NotWeb) denies it"]);
    deny["Condition"] = json!({ "StringLike": { SUB: "*:other" } });
    assert_eq!(of_web(&[deny, allow]), may("statement 2"));
}

#[test]
fn what_is_not_known_here_is_neither_a_yes_nor_a_no() {
    let from = json!({ "StringEquals": { SUB: WEB }, "IpAddress": { "aws:SourceIp": "192.0.2.0/24" } });
    let depends = |by: &str, on: &str| Judgement::Depends { by: by.to_owned(), on: vec![on.to_owned()] };
    assert_eq!(of_web(&[statement(&from)]), depends("statement 1", "aws:SourceIp"));
    let sure = statement(&json!({ "StringEquals": { SUB: WEB } }));
    assert_eq!(of_web(&[statement(&from), sure.clone()]), may("statement 2"));
    let mut deny = statement(&json!({ "StringNotEquals": { "aws:SourceVpc": "vpc-1" } }));
    deny["Effect"] = json!("Deny");
    assert_eq!(of_web(&[sure, deny]), depends("statement 2", "aws:SourceVpc"));
    // A no is one, whatever else is not known.
    let other = json!({ "StringEquals": { SUB: "x", "aws:SourceVpc": "vpc-1" } });
    refused(&[statement(&other)], &["StringEquals wants x"]);
    let variable = json!({ "StringEquals": { SUB: "system:serviceaccount:${aws:PrincipalTag/team}:web" } });
    assert_eq!(of_web(&[statement(&variable)]), depends("statement 1", SUB));
    let escaped = json!({ "StringLike": { SUB: "system:serviceaccount:team-a:${*}" } });
    refused(&[statement(&escaped)], &["StringLike wants"]);
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
        ("a*c", "abbc", true),
        ("a*c", "abbcd", false),
        ("a*b*c", "a-b-b-c", true),
        ("*:web", "team-a:web", true),
        ("Web", "web", false),
        ("a*?", "a", false),
        ("**", "abc", true),
        ("a${*}", "a*", true),
        ("a${*}", "ab", false),
        ("${?}${$}", "?$", true),
    ] {
        assert_eq!(like(pattern, text), Holds::from(matches), "{pattern} on {text}");
    }
}

#[test]
fn a_policy_that_admits_everybody_or_several_namespaces_is_warned_of() {
    let warnings = |statements: &[Value]| Statements::read(&document(statements)).unwrap().warnings();
    let of = |condition: &Value| warnings(&[statement(condition)]);
    for safe in [
        json!({ "StringEquals": { SUB: WEB } }),
        json!({ "StringLike": { SUB: "system:serviceaccount:team-a:*" } }),
        json!({ "StringLike": { SUB: "*" }, "StringEquals": { SUB: WEB } }),
        json!({ "ForAnyValue:StringLike": { SUB: ["system:serviceaccount:team-a:*", WEB] } }),
    ] {
        assert_eq!(of(&safe), [""; 0], "{safe}");
    }
    for everybody in
        [json!({ "StringEquals": { AUD: "sts.amazonaws.com" } }), json!({}), json!({ "StringNotEquals": { SUB: "x" } })]
    {
        let warnings = of(&everybody);
        assert!(
            warnings[0].contains("no condition on oidc.example.com/blue:sub: every ServiceAccount"),
            "{warnings:?}"
        );
    }
    for wide in
        ["*", "system:*", "system:serviceaccount:*", "system:serviceaccount:team-*:web", "system:serviceaccount:*:web"]
    {
        let warnings = of(&json!({ "StringLike": { SUB: [WEB, wide] } }));
        assert!(
            warnings[0].starts_with(&format!("statement 1: {wide} admits ServiceAccounts of more than one")),
            "{warnings:?}"
        );
    }
    // A Deny may do what the condition should.
    let mut deny = statement(&json!({ "StringNotLike": { SUB: "system:serviceaccount:team-a:*" } }));
    deny["Effect"] = json!("Deny");
    assert_eq!(warnings(&[statement(&json!({ "StringEquals": { AUD: "sts.amazonaws.com" } })), deny]), [""; 0]);
    let anybody = json!({ "Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole" });
    assert!(warnings(&[anybody])[0].contains("everybody of every account"));
    // Those of somebody else's tokens are not a cluster's.
    let github = "repo:org/app:*";
    assert_eq!(of(&json!({ "StringLike": { SUB: github } })), [""; 0]);
    let notes = |condition: &Value| Statements::read(&document(&[statement(condition)])).unwrap().notes();
    assert_eq!(notes(&json!({ "StringEquals": { SUB: WEB, AUD: "a" } })), [""; 0]);
    assert!(notes(&json!({ "StringEquals": { SUB: WEB } }))[0].contains("no condition on oidc.example.com/blue:aud"));
}

#[test]
fn a_second_hop_needs_the_first_role_the_external_id_and_leave_for_tags() {
    const HUB: &str = "arn:aws:iam::111122223333:role/hub";
    let hop = |statements: &[Value], from: &str, id: Option<&str>, name: &str| {
        let policy = document(statements);
        let statements = Statements::read(&policy).unwrap();
        statements.of_hop(&from.parse().unwrap(), id, &"team-a".into(), &name.into())
    };
    let assume = json!({ "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": ASSUME_ROLE, "Condition": {"StringEquals": {
        EXTERNAL_ID: "id-1", NAMESPACE_TAG: "team-a", SERVICE_ACCOUNT_TAG: ["web", "api"] }}});
    let tag = json!({ "Effect": "Allow", "Principal": {"AWS": HUB}, "Action": TAG_SESSION });
    let both = [assume.clone(), tag];
    assert_eq!(hop(&both, HUB, Some("id-1"), "web"), may("statement 1"));
    let no = |judgement, why: &str| {
        let reasons = reasons(judgement);
        assert!(reasons[0].contains(why), "{reasons:?}");
    };
    no(hop(&both, HUB, Some("id-2"), "web"), "sts:ExternalId is id-2, and StringEquals wants id-1");
    no(hop(&both, HUB, None, "web"), "StringEquals wants sts:ExternalId to be id-1, and there is none");
    no(hop(&both, HUB, Some("id-1"), "other"), "kubernetes-service-account is other");
    no(hop(&both, ROLE, Some("id-1"), "web"), "no statement admits arn:aws:iam::111122223333:role/web");
    no(hop(&[assume], HUB, Some("id-1"), "web"), "and not sts:TagSession");
    for account in ["arn:aws:iam::111122223333:root", "111122223333"] {
        let of_account = json!({ "Effect": "Allow", "Principal": {"AWS": account}, "Action": "sts:*",
            "Condition": {"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/h*"}}});
        assert_eq!(hop(&[of_account], HUB, None, "web"), may("statement 1"));
    }
}

#[test]
fn what_get_role_prints_is_a_policy_of_that_role() {
    let policy = document(&[statement(&json!({ "StringEquals": { SUB: WEB } }))]);
    let printed = json!({ "Role": { "RoleName": "web", "Arn": ROLE, "AssumeRolePolicyDocument": policy } }).to_string();
    assert_eq!(read(&printed), Ok((policy.clone(), Some(ROLE.parse().unwrap()))));
    assert_eq!(read(&policy.to_string()), Ok((policy, None)));
    for (text, why) in [
        ("", "is no policy document"),
        ("{}", "it has no Statement"),
        (r#"{"Statement":[]}"#, "neither an object nor"),
        (r#"{"Statement":["a"]}"#, "neither an object nor"),
    ] {
        assert!(read(text).unwrap_err().to_string().contains(why), "{text}");
    }
}

#[test]
fn what_iam_would_refuse_is_named() {
    for (member, value, why) in [
        ("Effect", json!("allow"), "Effect is neither"),
        ("Resource", json!("*"), "Resource has no place"),
        ("Principal", json!({ "People": "x" }), "Principal is not understood"),
        ("Condition", json!({ "Foo:StringEquals": { SUB: WEB } }), "Condition is not understood"),
        ("NotAction", json!("*"), "one of Action and NotAction"),
        ("Action", json!(7), "Action is neither"),
    ] {
        let mut wrong = statement(&json!({ "StringEquals": { SUB: WEB } }));
        wrong[member] = value;
        let policy = document(&[wrong]);
        let error = Statements::read(&policy).unwrap_err().to_string();
        assert!(error.contains("statement 1") && error.contains(why), "{error}");
    }
}
