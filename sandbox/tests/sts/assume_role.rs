//! AssumeRole: who may, with which external id and tags, and for how long.

use std::{fmt::Write as _, time::Duration};

use aws_sdk_sts::{config::Credentials, error::ProvideErrorMetadata as _, types::Tag};
use http::{HeaderValue, header};
use sandbox::sts::{IamError, Role};
use serde_json::{Value, json};

use crate::world::{ROLE, Signing, World, form, keys_of, signed};

const ARN: &str = "arn:aws:sts::111122223333:assumed-role/web/s1";
const TARGET: &str = "arn:aws:iam::444455556666:role/target";
const SIBLING: &str = "arn:aws:iam::111122223333:role/sibling";

/// A world in which the first role may assume any role, as far as its own policies go.
async fn world() -> World {
    let world = World::new().await;
    permit(&world, "*", json!(["sts:AssumeRole", "sts:TagSession"]));
    world
}

fn permit(world: &World, resource: &str, actions: Value) {
    let allow = json!({ "Effect": "Allow", "Action": actions, "Resource": resource });
    let permissions = Some(json!({ "Version": "2012-10-17", "Statement": allow }));
    world.sts.put_role_with(&Role { permissions, ..Role::new(ROLE, world.trust(crate::world::SUBJECT)) }).unwrap();
}

fn trust(principal: &str, condition: Value) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": { "AWS": principal },
        "Action": ["sts:AssumeRole", "sts:TagSession"],
        "Condition": condition,
    }]})
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().unwrap()
}

/// AssumeRole's code and text, and nothing where it succeeds.
async fn refusal(
    world: &World,
    keys: &Credentials,
    role: &str,
    with: impl FnOnce(AssumeRole) -> AssumeRole,
) -> Option<(String, String)> {
    let ask = world.sdk(Some(keys.clone())).assume_role().role_arn(role).role_session_name("s2");
    let error = with(ask).send().await.err()?;
    Some((error.code().unwrap().to_owned(), error.message().unwrap().to_owned()))
}

type AssumeRole = aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;

fn denied(action: &str, role: &str) -> Option<(String, String)> {
    let text = format!("User: {ARN} is not authorized to perform: {action} on resource: {role}");
    Some(("AccessDenied".to_owned(), text))
}

fn error(code: &str, text: &str) -> Option<(String, String)> {
    Some((code.to_owned(), text.to_owned()))
}

#[tokio::test]
async fn a_role_of_another_account_is_assumed_when_both_sides_allow_it() {
    let world = world().await;
    let keys = world.keys().await;
    for principal in [ROLE, "arn:aws:iam::111122223333:root", "111122223333", ARN, "*"] {
        world.sts.put_role(TARGET, trust(principal, json!({}))).unwrap();
        let ask = world.sdk(Some(keys.clone())).assume_role().role_arn(TARGET).role_session_name("s2");
        let answer = ask.send().await.unwrap();
        let user = answer.assumed_role_user().unwrap();
        assert_eq!(user.arn(), "arn:aws:sts::444455556666:assumed-role/target/s2", "{principal}");
        let got = answer.credentials().unwrap();
        let got = keys_of(got.access_key_id(), got.secret_access_key(), got.session_token());
        let caller = world.sdk(Some(got)).get_caller_identity().send().await.unwrap();
        assert_eq!((caller.arn(), caller.account()), (Some(user.arn()), Some("444455556666")));
    }
}

#[tokio::test]
async fn what_either_side_does_not_allow_is_denied() {
    let world = world().await;
    let keys = world.keys().await;
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET), "no such role");
    world.sts.put_role(TARGET, trust("999999999999", json!({}))).unwrap();
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET), "not trusted");

    // Across accounts the caller's own policies count, whomever the trust names.
    permit(&world, "arn:aws:iam::444455556666:role/other", json!("sts:AssumeRole"));
    for role in [TARGET, SIBLING] {
        world.sts.put_role(role, trust(ROLE, json!({}))).unwrap();
    }
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET));
    assert_eq!(refusal(&world, &keys, SIBLING, |ask| ask).await, None, "its own account's role names it");
    world.sts.put_role(SIBLING, trust("111122223333", json!({}))).unwrap();
    assert_eq!(refusal(&world, &keys, SIBLING, |ask| ask).await, denied("sts:AssumeRole", SIBLING), "delegated");
    world.sts.delete_role(ROLE);
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET), "its role is gone");
}

#[tokio::test]
async fn an_external_id_that_is_required_must_be_given() {
    let world = world().await;
    let keys = world.keys().await;
    world.sts.put_role(TARGET, trust(ROLE, json!({ "StringEquals": { "sts:ExternalId": "team-a/1" } }))).unwrap();
    let ask = async |id: &str| refusal(&world, &keys, TARGET, |ask| ask.external_id(id)).await;
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET));
    assert_eq!(ask("team-a/2").await, denied("sts:AssumeRole", TARGET));
    assert_eq!(ask("team-a/1").await, None);
    let (code, text) = ask("a").await.unwrap();
    assert_eq!(code, "ValidationError");
    assert!(text.ends_with("Member must have length greater than or equal to 2"), "{text}");
    let (_, text) = ask("a b").await.unwrap();
    assert!(text.contains(r"at 'externalId' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@:\/-]*"), "{text}");
    assert!(ask(&"a".repeat(1225)).await.unwrap().1.ends_with("less than or equal to 1224"));
}

#[tokio::test]
async fn tags_need_leave_of_their_own_and_conditions_see_them() {
    let world = world().await;
    let keys = world.keys().await;
    let team = |ask: AssumeRole| ask.tags(tag("team", "a"));
    let mut only_assume = trust(ROLE, json!({}));
    only_assume["Statement"][0]["Action"] = json!("sts:AssumeRole");
    world.sts.put_role(TARGET, only_assume).unwrap();
    assert_eq!(
        refusal(&world, &keys, TARGET, team).await,
        denied("sts:TagSession", TARGET),
        "the trust has no TagSession"
    );
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, None);

    world.sts.put_role(TARGET, trust(ROLE, json!({ "StringEquals": { "aws:RequestTag/Team": "a" } }))).unwrap();
    assert_eq!(refusal(&world, &keys, TARGET, team).await, None, "keys do not depend on case");
    assert_eq!(refusal(&world, &keys, TARGET, |ask| ask).await, denied("sts:AssumeRole", TARGET));
    let other = |ask: AssumeRole| ask.tags(tag("team", "b"));
    assert_eq!(refusal(&world, &keys, TARGET, other).await, denied("sts:AssumeRole", TARGET));
    permit(&world, "*", json!("sts:AssumeRole"));
    assert_eq!(
        refusal(&world, &keys, TARGET, team).await,
        denied("sts:TagSession", TARGET),
        "its own policies lack it"
    );
}

#[tokio::test]
async fn transitive_tags_are_inherited_and_cannot_be_set_anew() {
    let world = world().await;
    let keys = world.keys().await;
    let permissions = json!({ "Version": "2012-10-17", "Statement": {
        "Effect": "Allow", "Action": "sts:*", "Resource": "*" }});
    let role = Role { permissions: Some(permissions), ..Role::new(TARGET, trust(ROLE, json!({}))) };
    world.sts.put_role_with(&role).unwrap();
    let condition = json!({ "StringEquals": { "aws:PrincipalTag/team": "a", "aws:PrincipalTag/other": "b" } });
    world.sts.put_role(SIBLING, trust(TARGET, condition)).unwrap();
    let last = "arn:aws:iam::777788889999:role/last";

    let assume = async |keys: &Credentials, role: &str, tags: &[(&str, &str)], transitive: &[&str]| {
        let ask = world.sdk(Some(keys.clone())).assume_role().role_arn(role).role_session_name("s2");
        let tags = tags.iter().map(|(key, value)| tag(key, value)).collect();
        let transitive = transitive.iter().map(|key| (*key).to_owned()).collect();
        let ask = ask.set_tags(Some(tags)).set_transitive_tag_keys(Some(transitive));
        let answer = ask.send().await.map_err(|error| error.message().unwrap().to_owned())?;
        let got = answer.credentials().unwrap();
        Ok::<_, String>(keys_of(got.access_key_id(), got.secret_access_key(), got.session_token()))
    };
    let second = assume(&keys, TARGET, &[("team", "a"), ("other", "b")], &["Team"]).await.unwrap();
    let third = assume(&second, SIBLING, &[], &[]).await.unwrap();
    assert_eq!(
        assume(&second, SIBLING, &[("TEAM", "b")], &[]).await.unwrap_err(),
        "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the \
         calling session."
    );
    // The tag that is not transitive is not there any more; the other is.
    let role = json!({ "Version": "2012-10-17", "Statement": {
        "Effect": "Allow", "Action": "sts:*", "Resource": "*" }});
    let sibling = trust(TARGET, json!({}));
    world.sts.put_role_with(&Role { permissions: Some(role), ..Role::new(SIBLING, sibling) }).unwrap();
    for (key, holds) in [("team", true), ("other", false)] {
        let condition = json!({ "StringLike": { format!("aws:PrincipalTag/{key}"): "*" } });
        world.sts.put_role(last, trust(SIBLING, condition)).unwrap();
        assert_eq!(assume(&third, last, &[], &[]).await.is_ok(), holds, "{key}");
    }
}

#[tokio::test]
async fn tags_have_limits() {
    let world = world().await;
    let keys = world.keys().await;
    world.sts.put_role(TARGET, trust(ROLE, json!({}))).unwrap();
    let ask = async |tags: &[(&str, &str)]| {
        let tags = tags.iter().map(|(key, value)| tag(key, value)).collect();
        refusal(&world, &keys, TARGET, |ask| ask.set_tags(Some(tags))).await
    };
    let numbered = (0..51).map(|number| format!("k{number}")).collect::<Vec<_>>();
    let many = numbered.iter().map(|key| (key.as_str(), "v")).collect::<Vec<_>>();
    assert_eq!(ask(&many[..50]).await, None);
    let (code, text) = ask(&many).await.unwrap();
    assert_eq!(code, "ValidationError");
    assert!(
        text.ends_with("at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50"),
        "{text}"
    );
    let (long_key, long_value) = ("k".repeat(129), "v".repeat(257));
    for (key, value, part) in [
        (long_key.as_str(), "v", "at 'tags.1.member.key' failed to satisfy constraint: Member must have length less"),
        (
            "k",
            long_value.as_str(),
            "at 'tags.1.member.value' failed to satisfy constraint: Member must have length less",
        ),
        (
            "k*",
            "v",
            r"at 'tags.1.member.key' failed to satisfy constraint: Member must satisfy regular expression pattern: [\p{L}",
        ),
        ("k", "v;", r"at 'tags.1.member.value' failed to satisfy constraint: Member must satisfy regular"),
    ] {
        let (code, text) = ask(&[(key, value)]).await.unwrap();
        assert!(code == "ValidationError" && text.contains(part), "{text}");
    }
    assert_eq!(ask(&[("é_.:/=+-@ 1", "")]).await, None);
    let doubled = "Duplicate tag keys found. Please note that Tag keys are case insensitive.";
    assert_eq!(ask(&[("a", "1"), ("A", "2")]).await, error("InvalidParameterValue", doubled));
    let transitive = refusal(&world, &keys, TARGET, |ask| ask.transitive_tag_keys("a")).await;
    let missing = "The specified transitive tag key must be included in the requested tags.";
    assert_eq!(transitive, error("InvalidParameterValue", missing));
}

#[tokio::test]
async fn a_chained_session_lasts_an_hour_at_most() {
    let world = world().await;
    let keys = world.keys().await;
    let long = Role { max_session_duration: Duration::from_secs(43_200), ..Role::new(TARGET, trust("*", json!({}))) };
    world.sts.put_role_with(&long).unwrap();
    let ask =
        async |keys: &Credentials, seconds| refusal(&world, keys, TARGET, |ask| ask.duration_seconds(seconds)).await;
    assert_eq!(ask(&keys, 3600).await, None);
    let limit = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.";
    assert_eq!(ask(&keys, 3601).await, error("ValidationError", limit));
    assert!(ask(&keys, 899).await.unwrap().1.ends_with("Member must have value greater than or equal to 900"));

    // An instance's own keys are none of a chain.
    let node = world.sts.instance_credentials(ROLE, "i-0123456789abcdef0");
    let node = keys_of(&node.access_key_id, &node.secret_access_key, &node.session_token);
    assert_eq!(ask(&node, 43_200).await, None);
    world.sts.put_role(TARGET, trust("*", json!({}))).unwrap();
    let limit = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
    assert_eq!(ask(&node, 3601).await, error("ValidationError", limit));
}

#[tokio::test]
async fn a_trusted_role_must_exist() {
    let world = World::new().await;
    let error = world.sts.put_role(TARGET, trust(SIBLING, json!({}))).unwrap_err();
    let text = format!("Invalid principal in policy: \"AWS\":\"{SIBLING}\"");
    assert_eq!(error, IamError::MalformedPolicyDocument(text));
}

#[tokio::test]
async fn a_call_without_a_signature_or_with_a_wrong_one_gives_nothing() {
    let world = world().await;
    world.sts.put_role(TARGET, trust("*", json!({}))).unwrap();
    let unsigned = world.post(&[("Action", "AssumeRole"), ("Version", "2011-06-15")]).await;
    assert_eq!(unsigned.tag("Code"), "MissingAuthenticationToken");
    let good = world.keys().await;
    let wrong = keys_of(good.access_key_id(), "another", good.session_token().unwrap());
    let (code, _) = refusal(&world, &wrong, TARGET, |ask| ask).await.unwrap();
    assert_eq!(code, "SignatureDoesNotMatch");
    world.sts.revoke_all_keys();
    let (code, _) = refusal(&world, &good, TARGET, |ask| ask).await.unwrap();
    assert_eq!(code, "InvalidClientTokenId");
}

#[tokio::test]
async fn an_endpoint_knows_the_roles_of_its_own_partition_alone() {
    let world = world().await;
    let keys = world.keys().await;
    let (china, government) =
        ("arn:aws-cn:iam::444455556666:role/target", "arn:aws-us-gov:iam::444455556666:role/target");
    for (host, region, role) in [
        ("sts.eu-west-1.amazonaws.com", "eu-west-1", TARGET),
        ("sts.cn-north-1.amazonaws.com.cn", "cn-north-1", china),
        ("sts.us-gov-west-1.amazonaws.com", "us-gov-west-1", government),
    ] {
        for asked in [TARGET, china, government] {
            let mut body = "Action=AssumeRole&Version=2011-06-15&RoleSessionName=s2&RoleArn=".to_owned();
            write!(body, "{asked}").unwrap();
            let mut request = form(&world.endpoint(), body.clone());
            request.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
            let how = Signing { region, ..Signing::default() };
            let answer = world.send(signed(request, &body, &keys, &how)).await;
            let expected = if asked == role { "AccessDenied" } else { "ValidationError" };
            assert_eq!(answer.tag("Code"), expected, "{asked} at {host}");
        }
    }
}
