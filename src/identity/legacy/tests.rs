use super::*;

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn legacy(source: Source) -> Legacy {
    Legacy { base: Some(BASE.to_owned()), source, unlimited: Unlimited::Nothing }
}

fn annotations(pairs: &[(&str, &str)]) -> PodAnnotations {
    let map = pairs.iter().map(|(key, value)| ((*key).to_owned(), serde_json::Value::from(*value)));
    serde_json::from_value(serde_json::Value::Object(map.collect())).unwrap()
}

fn wish(source: Source, pairs: &[(&str, &str)]) -> Result<Wish, AnnotationError> {
    legacy(source).wish(&annotations(pairs))
}

fn role_of(text: &str) -> Result<String, AnnotationError> {
    wish(Source::WebIdentity, &[(ROLE, text)]).map(|wish| wish.role.to_string())
}

fn limits(pairs: &[(&str, &str)], format: Format) -> Limits {
    let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Limits::read(&annotations, format)
}

fn forbids(limits: &Limits, role: &str) -> Option<Forbids> {
    let arn = if role.starts_with("arn:") { role.to_owned() } else { format!("{BASE}{role}") };
    legacy(Source::WebIdentity).forbids(limits, &arn.parse().unwrap())
}

/// Whether each of these roles is permitted.
fn permits<const N: usize>(pairs: &[(&str, &str)], format: Format, roles: [&str; N]) -> [bool; N] {
    let limits = limits(pairs, format);
    roles.map(|role| forbids(&limits, role).is_none())
}

fn list(patterns: &[&str]) -> String {
    serde_json::to_string(patterns).unwrap()
}

#[test]
fn a_name_is_a_role_below_the_base_and_an_arn_is_one_of_any_account() {
    assert_eq!(role_of("web").unwrap(), format!("{BASE}web"));
    assert_eq!(role_of("/team/web").unwrap(), format!("{BASE}team/web"), "a slash at its beginning is no part of it");
    let other = "arn:aws-cn:iam::444455556666:role/x/web";
    assert_eq!(role_of(other).unwrap(), other);
    for text in ["a b", "team/", "arn:web", "*", "/", "${x}"] {
        let error = role_of(text).unwrap_err();
        assert!(matches!(&error, AnnotationError::Role { key, .. } if key == ROLE) && error.is_of_pod(), "{text}");
    }
    let unknown = Legacy { base: None, ..legacy(Source::WebIdentity) };
    let error = unknown.wish(&annotations(&[(ROLE, "web")])).unwrap_err();
    assert!(matches!(error, AnnotationError::AccountNotKnown { .. }), "{error}");
}

#[test]
fn annotations_that_name_no_role_are_not_kept_nor_others_beside_them() {
    assert_eq!(annotations(&[(EXTERNAL_ID, "abc"), ("other", "x")]).kept(), None);
    assert_eq!(annotations(&[(ROLE, "")]).kept(), None);
    assert!(annotations(&[(ROLE, "web"), ("other", "x")]).kept().is_some());
}

#[test]
fn an_external_id_goes_with_the_daemons_own_identity_alone_and_must_be_one() {
    let of =
        |source, id| wish(source, &[(ROLE, "web"), (EXTERNAL_ID, id)]).map(|wish| wish.of_pod.unwrap().external_id);
    assert_eq!(of(Source::AssumeRole, "team:a/1").unwrap().as_deref(), Some("team:a/1"));
    assert_eq!(of(Source::AssumeRole, "").unwrap(), None);
    assert_eq!(of(Source::WebIdentity, "a b").unwrap(), None, "a token's exchange has none");
    assert_eq!(of(Source::AssumeRole, "a b"), Err(AnnotationError::ExternalId(EXTERNAL_ID)));
}

#[test]
fn a_sessions_name_is_made_one_that_sts_takes() {
    let of = |name: &str| wish(Source::AssumeRole, &[(ROLE, "web"), (SESSION_NAME, name)]);
    let named = |name| of(name).unwrap().of_pod.unwrap().session_name.unwrap();
    assert_eq!(named("team_a+web=,.@-1"), "team_a+web=,.@-1");
    assert_eq!(named("team a/ü"), "team-a--");
    assert_eq!(named(&"x".repeat(99)).len(), 64);
    assert_eq!(of("x"), Err(AnnotationError::SessionName));
    assert_eq!(of("").unwrap().of_pod.unwrap().session_name, None);
}

#[test]
fn all_that_decides_about_a_session_makes_a_wish_another_one() {
    let one = wish(Source::AssumeRole, &[(ROLE, "web"), (EXTERNAL_ID, "one"), (SESSION_NAME, "web")]).unwrap();
    let another = |source, pairs: &[(&str, &str)]| assert_ne!(wish(source, pairs).unwrap(), one);
    another(Source::AssumeRole, &[(ROLE, "web2"), (EXTERNAL_ID, "one"), (SESSION_NAME, "web")]);
    another(Source::AssumeRole, &[(ROLE, "web"), (EXTERNAL_ID, "two"), (SESSION_NAME, "web")]);
    another(Source::AssumeRole, &[(ROLE, "web"), (EXTERNAL_ID, "one"), (SESSION_NAME, "web2")]);
    another(Source::WebIdentity, &[(ROLE, "web"), (EXTERNAL_ID, "one"), (SESSION_NAME, "web")]);
}

#[test]
fn a_namespace_that_says_nothing_permits_nothing_unless_all_is_said_to_be() {
    let role = format!("{BASE}web").parse().unwrap();
    let said = |unlimited, limits: &Limits| Legacy { unlimited, ..legacy(Source::WebIdentity) }.forbids(limits, &role);
    let none = Limits::default();
    assert_eq!(said(Unlimited::Nothing, &none), Some(Forbids::NoLegacyAnnotation));
    assert_eq!(said(Unlimited::All, &none), None);
    // What it does say counts in either case.
    for unlimited in [Unlimited::Nothing, Unlimited::All] {
        for (key, text) in
            [(ALLOWED_ROLES, "[]"), (ALLOWED_ROLES, "[\"other\"]"), (PERMITTED, ""), (PERMITTED, "other")]
        {
            let limits = limits(&[(key, text)], Format::Glob);
            assert_eq!(said(unlimited, &limits), Some(Forbids::Legacy(key)), "{key} {text}");
        }
        assert!(said(unlimited, &Limits::unreadable()).is_some());
    }
}

#[test]
fn globs_are_of_names_below_the_base_or_of_whole_arns() {
    let other = "arn:aws:iam::444455556666:role/web";
    for (pattern, permitted) in [
        ("web", [true, false, false, false]),
        ("/web", [true, false, false, false]),
        ("web*", [true, true, false, false]),
        ("team/*", [false, false, true, false]),
        ("*", [true, true, true, false]),
        ("arn:aws:iam::*:role/web", [true, false, false, true]),
        ("arn:*", [true, true, true, true]),
        ("we", [false, false, false, false]),
        ("", [false, false, false, false]),
        // No regular expression.
        ("web.*", [false, false, false, false]),
        ("web|web-admin", [false, false, false, false]),
    ] {
        let said =
            permits(&[(ALLOWED_ROLES, &list(&[pattern]))], Format::Glob, ["web", "web-admin", "team/web", other]);
        assert_eq!(said, permitted, "{pattern}");
    }
    assert_eq!(permits(&[(ALLOWED_ROLES, &list(&["a", "b"]))], Format::Glob, ["a", "b", "ab"]), [true, true, false]);
}

#[test]
fn an_alternative_never_admits_a_longer_name() {
    for key in [ALLOWED_ROLES, PERMITTED] {
        let text = |pattern: &str| if key == PERMITTED { pattern.to_owned() } else { list(&[pattern]) };
        let said = |pattern: &str| {
            permits(&[(key, &text(pattern))], Format::Regexp, ["a", "b", "a-admin", "x-b", "admin/a", "ab"])
        };
        for pattern in ["a|b", "(a|b)", "^a|b$", "^a$|^b$", "(?m)a|b", "(?i)A|B", "[ab]"] {
            assert_eq!(said(pattern), [true, true, false, false, false, false], "{key} {pattern}");
        }
        assert_eq!(said("a"), [true, false, false, false, false, false], "{key}");
        assert_eq!(said("|"), [false; 6], "{key}: an empty one matches no role");
    }
    // An ARN's too.
    let other = "arn:aws:iam::444455556666:role/a";
    let pattern = "arn:aws:iam::444455556666:role/a|arn:aws:iam::444455556666:role/b";
    let said = permits(&[(PERMITTED, pattern)], Format::Glob, [other, &format!("{other}-admin"), "a"]);
    assert_eq!(said, [true, false, false]);
    // Each of a list by itself.
    let several = list(&["a|b", "c"]);
    let said = permits(&[(ALLOWED_ROLES, &several)], Format::Regexp, ["a", "b", "c", "a-c", "bc", "a-admin"]);
    assert_eq!(said, [true, true, true, false, false, false]);
}

/// Alternatives of some names permit these and no other, however they are put together.
#[test]
fn alternatives_permit_exactly_their_own_names_however_many_there_are() {
    let random = |most: usize| fastrand::usize(..most);
    let name = || (0..=random(4)).map(|_| ["a", "b", "-", "x"][random(4)]).collect::<String>();
    for seed in 0..500 {
        fastrand::seed(seed);
        let (names, role) = ((0..=random(5)).map(|_| name()).collect::<Vec<_>>(), name());
        let joined = names.join("|");
        for text in [joined.clone(), format!("(?:{joined})"), format!("^{joined}$")] {
            let expected = names.contains(&role);
            assert_eq!(permits(&[(PERMITTED, &text)], Format::Glob, [&role]), [expected], "{seed}: {text} {role}");
            let list = list(&[&text]);
            assert_eq!(
                permits(&[(ALLOWED_ROLES, &list)], Format::Regexp, [&role]),
                [expected],
                "{seed}: {list} {role}"
            );
        }
    }
}

#[test]
fn a_parenthesis_of_theirs_closes_none_of_ours() {
    for pattern in ["a)|(?:.*", "a)|.*|(b", "(a", "a)", "(?x)a # )|.*", "a\\", "[a", "(?x)a#"] {
        for (key, text) in [(PERMITTED, pattern.to_owned()), (ALLOWED_ROLES, list(&[pattern]))] {
            let limits = limits(&[(key, &text)], Format::Regexp);
            for role in ["a", "admin"] {
                assert!(matches!(forbids(&limits, role), Some(Forbids::Unreadable(..))), "{key} {pattern} {role}");
            }
        }
    }
    let both = limits(&[(ALLOWED_ROLES, &list(&["a", "(?x)b#", "c"]))], Format::Regexp);
    assert!(["a", "b", "c", "admin"].iter().all(|role| forbids(&both, role).is_some()));
}

#[test]
fn what_is_no_expression_or_too_much_of_one_permits_nothing_and_says_why() {
    let nested = format!("{}a{}", "(".repeat(300), ")".repeat(300));
    let many = list(&vec!["(?:a{900})"; 2000]);
    for (key, text, why) in [
        (ALLOWED_ROLES, "web".to_owned(), "no JSON array"),
        (ALLOWED_ROLES, "{\"web\": 1}".to_owned(), "no JSON array"),
        (ALLOWED_ROLES, "[1]".to_owned(), "no JSON array"),
        (ALLOWED_ROLES, String::new(), "no JSON array"),
        (ALLOWED_ROLES, many, "size limit"),
        (ALLOWED_ROLES, format!("[\"{}\"]", "a".repeat(40_000)), "longer than 32768 bytes"),
        (PERMITTED, "a{1000000000}".to_owned(), "size limit"),
        (PERMITTED, "((((a{99}){99}){99}){99})".to_owned(), "size limit"),
        (PERMITTED, nested, "nest"),
        (PERMITTED, "*".to_owned(), "\"*\" is no regular expression"),
        (PERMITTED, "a(?=b)".to_owned(), "no regular expression"),
        (PERMITTED, "(a)\\1".to_owned(), "no regular expression"),
        (PERMITTED, ".".repeat(40_000), "longer than 32768 bytes"),
    ] {
        let said = forbids(&limits(&[(key, &text)], Format::Regexp), "a");
        let Some(Forbids::Unreadable(of, said)) = said else { panic!("{said:?}") };
        assert!(of == key && said.contains(why) && said.len() < 300, "{why}: {said}");
    }
}

#[test]
fn an_expression_that_would_take_others_for_ever_is_matched_in_time() {
    let role = "a".repeat(64);
    for pattern in ["(a*)*b", "(a|a)*b", "(a|aa)+$b", "(.*)(.*)(.*)(.*)(.*)(.*)b", "(a?){40}a{40}b"] {
        assert_eq!(permits(&[(PERMITTED, pattern)], Format::Glob, [&role]), [false], "{pattern}");
    }
}

#[test]
fn where_a_namespace_says_both_both_must_permit() {
    let said = |allowed: &str, permitted: &str| {
        permits(&[(ALLOWED_ROLES, &list(&[allowed])), (PERMITTED, permitted)], Format::Glob, ["web", "db"])
    };
    assert_eq!(said("*", ".*"), [true, true]);
    assert_eq!(said("web", ".*"), [true, false]);
    assert_eq!(said("*", "db"), [false, true]);
    assert_eq!(said("web", "db"), [false, false]);
    assert_eq!(said("web", "("), [false, false]);
}

#[test]
fn kiams_expression_is_matched_with_the_arn_or_with_the_name_below_the_base() {
    let other = "arn:aws:iam::444455556666:role/web";
    for (pattern, permitted) in [
        ("web", [true, false, false]),
        // What does not speak of ARNs opens no other account's roles.
        (".*", [true, true, false]),
        (".*web", [true, true, false]),
        ("a.*", [false, false, false]),
        ("team/.*", [false, true, false]),
        ("arn:aws:iam::[0-9]+:role/web", [true, false, true]),
        ("arn:.*", [true, true, true]),
        (".*web|arn:aws:iam::444455556666:role/none", [true, true, true]),
        ("111122223333", [false, false, false]),
    ] {
        assert_eq!(permits(&[(PERMITTED, pattern)], Format::Glob, ["web", "team/web", other]), permitted, "{pattern}");
    }
}
