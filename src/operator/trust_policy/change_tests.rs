use super::*;

const BLUE: &str = "https://oidc.example.com/blue";
const GREEN: &str = "https://oidc.example.com/green";

fn issuer(url: &str) -> Issuer {
    url.parse().unwrap()
}

fn policy(text: &str) -> TrustPolicy {
    text.parse().unwrap()
}

fn admits(issuer: &str, sid: &str, subject: &str) -> String {
    format!(
        r#"{{"Condition":{{"StringEquals":{{"oidc.example.com/{issuer}:sub":"{subject}","oidc.example.com/{issuer}:aud":["sts.amazonaws.com"]}}}},{sid}"Effect":"Allow","Action":"sts:AssumeRoleWithWebIdentity","Principal":{{"Federated":"arn:aws-cn:iam::111122223333:oidc-provider/oidc.example.com/{issuer}"}}}}"#
    )
}

/// A person's own, with what else a policy may hold, in an order of its own.
fn written(statements: &[&str]) -> String {
    let github = r#"{"Sid":"Ci","Effect":"Allow","Principal":{"Federated":"arn:aws-cn:iam::111122223333:oidc-provider/token.actions.githubusercontent.com"},"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{"token.actions.githubusercontent.com:sub":"repo:a/b:ref:refs/heads/main"}}}"#;
    let statements = [&[github], statements].concat().join(",");
    format!(r#"{{"Statement":[{statements}],"Id":"ours","Version":"2012-10-17"}}"#)
}

const WEB: &str = "system:serviceaccount:team-a:web";

#[test]
fn a_new_issuer_is_admitted_as_the_one_that_is_there_and_nothing_else_changes() {
    let blue = admits("blue", r#""Sid":"Blue","#, WEB);
    let before = policy(&written(&[&blue]));
    let after = add(&before, &issuer(GREEN), None).unwrap();
    let green = admits("green", r#""Sid":"Blue2","#, WEB);
    assert_eq!(after.document().to_string(), written(&[&blue, &green]));
    assert_eq!(add(&after, &issuer(GREEN), None), Ok(after.clone()), "twice is once");
    assert_eq!(remove(&after, &issuer(GREEN)), Ok(before.clone()), "the way back");
    let moved = remove(&after, &issuer(BLUE)).unwrap();
    assert_eq!(moved.document().to_string(), written(&[&green]), "the end of the move");
    assert_eq!(remove(&moved, &issuer(BLUE)), Ok(moved.clone()), "twice is once");
}

#[test]
fn denies_of_an_issuer_go_with_it() {
    let blue = admits("blue", "", WEB);
    let deny = r#"{"Effect":"Deny","Principal":"*","Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringLike":{"OIDC.example.com/blue:sub":"*:default"}}}"#;
    let before = policy(&written(&[&blue, deny]));
    let after = add(&before, &issuer(GREEN), None).unwrap();
    let green = admits("green", "", WEB);
    let deny_green = deny.replace("OIDC.example.com/blue", "oidc.example.com/green");
    assert_eq!(after.document().to_string(), written(&[&blue, deny, &green, &deny_green]));
    assert_eq!(remove(&after, &issuer(BLUE)).unwrap().document().to_string(), written(&[&green, &deny_green]));
}

#[test]
fn a_deny_that_holds_wherever_the_issuers_key_is_missing_is_nobodys_to_copy_or_take_out() {
    let blue = admits("blue", "", WEB);
    for operator in ["StringNotLike", "StringNotEquals", "StringEqualsIfExists", "ForAllValues:StringLike", "Null"] {
        let deny = format!(
            r#"{{"Effect":"Deny","Principal":"*","Action":"sts:AssumeRoleWithWebIdentity","Condition":{{"{operator}":{{"oidc.example.com/blue:sub":"true"}}}}}}"#
        );
        let before = policy(&written(&[&blue, &deny]));
        for done in [add(&before, &issuer(GREEN), None), remove(&before, &issuer(BLUE))] {
            assert!(matches!(done, Err(CannotChange::OfAllOthers { place: 3, .. })), "{operator}: {done:?}");
        }
    }
}

#[test]
fn a_third_issuer_is_like_the_others_if_those_are_alike() {
    let (blue, green) = (admits("blue", r#""Sid":"A","#, WEB), admits("green", r#""Sid":"B","#, WEB));
    let third = issuer("https://oidc.example.com/third");
    let after = add(&policy(&written(&[&blue, &green])), &third, None).unwrap();
    let copy = admits("third", r#""Sid":"B2","#, WEB);
    assert_eq!(after.document().to_string(), written(&[&blue, &green, &copy]));

    let other = admits("green", "", "system:serviceaccount:team-a:other");
    let unlike = policy(&written(&[&blue, &other]));
    let names = ["oidc.example.com/blue", "oidc.example.com/green"].map(str::to_owned);
    assert_eq!(add(&unlike, &third, None), Err(CannotChange::Ambiguous(names.to_vec())));
    let after = add(&unlike, &third, Some(&issuer(GREEN))).unwrap();
    let copy = other.replace("/green", "/third");
    assert_eq!(after.document().to_string(), written(&[&blue, &other, &copy]));
}

#[test]
fn what_is_not_clear_is_not_done() {
    assert_eq!(add(&policy(&written(&[])), &issuer(GREEN), None), Err(CannotChange::NoModel(issuer(GREEN))));
    let blue = admits("blue", "", WEB);
    let third = issuer("https://oidc.example.com/third");
    assert_eq!(add(&policy(&written(&[&blue])), &issuer(GREEN), Some(&third)), Err(CannotChange::NotThere(third)));
    let both = r#"{"Effect":"Allow","Action":"sts:AssumeRoleWithWebIdentity","Principal":{"Federated":["arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue","arn:aws:iam::111122223333:oidc-provider/oidc.example.com/other"]},"Condition":{"StringEquals":{"oidc.example.com/blue:sub":"system:serviceaccount:team-a:web"}}}"#;
    let entangled = policy(&written(&[both]));
    for done in [add(&entangled, &issuer(GREEN), None), remove(&entangled, &issuer(BLUE))] {
        assert!(matches!(done, Err(CannotChange::Entangled { place: 2, .. })), "{done:?}");
    }
    let alone = policy(&format!(r#"{{"Version":"2012-10-17","Statement":{blue}}}"#));
    assert_eq!(remove(&alone, &issuer(BLUE)), Err(CannotChange::NothingLeft(issuer(BLUE))));
}

#[test]
fn an_issuer_whose_name_begins_like_anothers_is_another() {
    let (id, id2) = (admits("blue", "", WEB), admits("blue2", "", WEB));
    let both = policy(&written(&[&id, &id2]));
    assert_eq!(remove(&both, &issuer(BLUE)).unwrap().document().to_string(), written(&[&id2]));
    let after = add(&policy(&written(&[&id2])), &issuer(BLUE), None).unwrap();
    assert_eq!(after.document().to_string(), written(&[&id2, &id]));
}
