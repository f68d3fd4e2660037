use super::*;

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn globs(pattern: Result<Pattern, String>) -> Option<Vec<String>> {
    pattern.unwrap().globs()
}

fn expressed(pattern: Result<Pattern, String>) -> String {
    globs(pattern).map_or("nothing".to_owned(), |globs| globs.join(" "))
}

#[test]
fn a_glob_that_crosses_colons_is_told_in_parts() {
    for (glob, expected) in [
        ("arn:aws:iam::111122223333:role/team-a/*", "arn:aws:iam::111122223333:role/team-a/*"),
        ("*", "arn:*:iam::*:role/*"),
        ("arn:aws:iam::*", "arn:aws:iam::*:role/*"),
        ("arn:aws:iam::*:role/team-a/*", "arn:aws:iam::*:role/team-a/*"),
        ("arn:*web", "arn:*:iam::*:role/*web"),
        ("*:role/web", "arn:*:iam::*:role/web"),
        ("*2333:role/web", "arn:*:iam::*2333:role/web"),
        ("web", ""),
        ("arn:aws:s3:::*", ""),
    ] {
        assert_eq!(expressed(Pattern::glob(glob)), expected, "{glob}");
    }
    assert_eq!(globs(Pattern::glob("arn:aws:iam::111122223333:role/a,b")), None, "a comma separates globs");
}

#[test]
fn a_regexp_is_a_list_of_globs_or_none() {
    for (regexp, expected) in [
        // Not anchored: what is written admits more than itself.
        ("web", "arn:aws:iam::111122223333:role/web*"),
        ("web$", "arn:aws:iam::111122223333:role/web"),
        ("team-a/.*", "arn:aws:iam::111122223333:role/team-a/*"),
        ("(red|blue)-.*", "arn:aws:iam::111122223333:role/red-* arn:aws:iam::111122223333:role/blue-*"),
        ("web-[ab]$", "arn:aws:iam::111122223333:role/web-a arn:aws:iam::111122223333:role/web-b"),
        ("webs?$", "arn:aws:iam::111122223333:role/webs arn:aws:iam::111122223333:role/web"),
        (".+", "arn:aws:iam::111122223333:role/*"),
        ("web.", "nothing"),
        ("web-[0-9]+$", "nothing"),
        (r"a\.b$", "arn:aws:iam::111122223333:role/a.b"),
        ("a.b$", "nothing"),
    ] {
        let pattern = Pattern::regexp(&format!("{BASE}{regexp}"), &[Subject::Arn]);
        assert_eq!(expressed(pattern), expected, "{regexp}");
    }
    let accounts = Pattern::regexp(r"^arn:aws:iam::\d{12}:role/web$", &[Subject::Arn]);
    assert_eq!(expressed(accounts), "arn:aws:iam::*:role/web", "an account is twelve digits");
}

#[test]
fn a_regexp_over_names_counts_where_names_are_written() {
    let name = |text: &str| Pattern::regexp(text, &[Subject::Arn, Subject::Behind(BASE.to_owned())]);
    assert_eq!(expressed(name("^web$")), "arn:aws:iam::111122223333:role/web");
    assert_eq!(expressed(name("^.*$")), "arn:*:iam::*:role/*");
    assert!(name("^web$").unwrap().admits("arn:aws:iam::111122223333:role/web"));
    assert!(!name("^web$").unwrap().admits("arn:aws:iam::444455556666:role/web"));
    let path = Pattern::regexp("^team/.*$", &[Subject::Arn, Subject::PathAndName]);
    assert_eq!(expressed(path), "arn:*:iam::*:role/team/*");
}

#[test]
fn an_ungrouped_alternative_admits_what_it_admitted_and_no_less() {
    let subjects = [Subject::Arn, Subject::Behind(BASE.to_owned())];
    let ungrouped = Pattern::regexp("^web|db$", &subjects).unwrap();
    assert!(ungrouped.admits("arn:aws:iam::111122223333:role/web-admin"));
    let globs = ungrouped.globs().unwrap();
    let listed = PermittedRoles::new(&globs.join(","));
    assert!(listed.permits("arn:aws:iam::111122223333:role/web-admin"), "{globs:?}");
    assert!(listed.permits("arn:aws:iam::444455556666:role/admin-db"), "{globs:?}");
    assert!(!listed.permits("arn:aws:iam::111122223333:role/the-web"), "{globs:?}");
}

/// Of random expressions: the list admits what the expression admits, of roles that are made to be near it.
#[test]
fn no_list_is_wider_or_narrower_than_its_expression() {
    let mut random = fastrand::Rng::with_seed(7);
    let words = ["a", "b", "-", "/", ".*", ".", "(a|b)", "[ab]", "b?", "^", "$", "role", ":", "|", "a+", r"\.", "[^a]"];
    let names = ["a", "b", "-", "/", "ab", "role", ".", "c"];
    let (mut expressed, mut roles) = (0, 0);
    for _ in 0..150 {
        let text = (0..random.usize(1..5)).map(|_| words[random.usize(..words.len())]).collect::<String>();
        let base = if random.bool() { BASE } else { "" };
        let subjects = [Subject::Arn, Subject::Behind(BASE.to_owned()), Subject::PathAndName];
        let subjects = &subjects[..random.usize(1..=3)];
        let Ok(pattern) = Pattern::regexp(&format!("{base}{text}"), subjects) else { continue };
        let Some(globs) = pattern.globs() else { continue };
        expressed += 1;
        let listed = PermittedRoles::new(&globs.join(","));
        for _ in 0..40 {
            let name = (0..random.usize(1..5)).map(|_| names[random.usize(..names.len())]).collect::<String>();
            let account = ["111122223333", "444455556666"][random.usize(..2)];
            let arn = format!("arn:aws:iam::{account}:role/{name}");
            if arn.parse::<crate::identity::RoleArn>().is_ok() {
                roles += 1;
                assert_eq!(listed.permits(&arn), pattern.admits(&arn), "{base}{text} {subjects:?}: {globs:?}: {arn}");
            }
        }
    }
    assert!(expressed > 25 && roles > 1000, "{expressed} {roles}");
}
