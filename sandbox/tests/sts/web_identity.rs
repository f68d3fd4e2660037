//! AssumeRoleWithWebIdentity: who gets a role's keys, and what everyone else is told.

use std::time::Duration;

use aws_smithy_types::{DateTime, date_time::Format};
use sandbox::sts::Role;
use serde_json::{Value, json};

use crate::world::{ACCOUNT, ACTION, ROLE, SUBJECT, World, form, get, keys_of};

const DENIED: &str = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
const NOT_A_JWT: &str =
    "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)";
const NOT_VALIDATED: &str = "The web identity token that was passed could not be validated by AWS. Get a new identity \
                             token from the identity provider and then retry the request.";

#[tokio::test]
async fn the_sdk_gets_the_roles_keys_and_is_then_the_role() {
    let world = World::new().await;
    let answer = world
        .sdk(None)
        .assume_role_with_web_identity()
        .role_arn(ROLE)
        .role_session_name("team-a.web@node-1")
        .web_identity_token(world.token())
        .duration_seconds(900)
        .send()
        .await
        .unwrap();
    let user = answer.assumed_role_user().unwrap();
    assert_eq!(user.arn(), "arn:aws:sts::111122223333:assumed-role/web/team-a.web@node-1");
    let (role_id, session) = user.assumed_role_id().split_once(':').unwrap();
    assert!(role_id.starts_with("AROA") && role_id.len() == 21, "{role_id}");
    assert_eq!(session, "team-a.web@node-1");
    assert_eq!(answer.subject_from_web_identity_token(), Some(SUBJECT));
    assert_eq!(answer.audience(), Some("sts.amazonaws.com"));
    let name = world.issuer.url().strip_prefix("https://").unwrap();
    assert_eq!(answer.provider(), Some(format!("arn:aws:iam::{ACCOUNT}:oidc-provider/{name}").as_str()));
    let keys = answer.credentials().unwrap();
    assert!(keys.access_key_id().starts_with("ASIA") && keys.access_key_id().len() == 20);
    assert_eq!(keys.secret_access_key().len(), 40);

    let keys = keys_of(keys.access_key_id(), keys.secret_access_key(), keys.session_token());
    let caller = world.sdk(Some(keys)).get_caller_identity().send().await.unwrap();
    assert_eq!(caller.arn(), Some(user.arn()));
    assert_eq!(caller.user_id(), Some(user.assumed_role_id()));
    assert_eq!(caller.account(), Some(ACCOUNT));
}

#[tokio::test]
async fn the_answer_is_awss_xml_and_ends_when_it_was_asked_to() {
    let world = World::new().await;
    let answer = world.assume(&world.token(), &[]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/xml");
    let tag = |name| answer.tag(name);
    let expected = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
         <AssumeRoleWithWebIdentityResult>\n    \
         <SubjectFromWebIdentityToken>{SUBJECT}</SubjectFromWebIdentityToken>\n    \
         <Audience>sts.amazonaws.com</Audience>\n    \
         <AssumedRoleUser>\n      <AssumedRoleId>{}</AssumedRoleId>\n      <Arn>{}</Arn>\n    </AssumedRoleUser>\n    \
         <Credentials>\n      <AccessKeyId>{}</AccessKeyId>\n      <SecretAccessKey>{}</SecretAccessKey>\n      \
         <SessionToken>{}</SessionToken>\n      <Expiration>{}</Expiration>\n    </Credentials>\n    \
         <Provider>{}</Provider>\n  </AssumeRoleWithWebIdentityResult>\n  \
         <ResponseMetadata>\n    <RequestId>{}</RequestId>\n  </ResponseMetadata>\n\
         </AssumeRoleWithWebIdentityResponse>\n",
        tag("AssumedRoleId"),
        tag("Arn"),
        tag("AccessKeyId"),
        tag("SecretAccessKey"),
        tag("SessionToken"),
        tag("Expiration"),
        tag("Provider"),
        answer.headers["x-amzn-requestid"].to_str().unwrap(),
    );
    assert_eq!(answer.body, expected);
    let date = DateTime::from_str(answer.headers["date"].to_str().unwrap(), Format::HttpDate).unwrap();
    let expiration = tag("Expiration");
    assert!(expiration.len() == 20 && expiration.ends_with('Z'), "{expiration}");
    let life = DateTime::from_str(expiration, Format::DateTime).unwrap().secs() - date.secs();
    assert!((3599..=3600).contains(&life), "an hour by default: {life}");
}

#[tokio::test]
async fn a_get_does_as_well_and_so_does_a_signature_that_nobody_needs() {
    let world = World::new().await;
    let query = format!(
        "{}/?Action={ACTION}&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=s1&WebIdentityToken={}",
        world.endpoint(),
        world.token()
    );
    assert_eq!(world.send(get(&query)).await.status, 200);
    let body = query.split_once('?').unwrap().1.to_owned();
    let mut request = form(&world.endpoint(), body);
    request.headers_mut().insert("authorization", "AWS4-HMAC-SHA256 Credential=nonsense".parse().unwrap());
    assert_eq!(world.send(request).await.status, 200);
}

async fn refused(world: &World, change: impl FnOnce(&mut Value), status: u16, code: &str, message: &str) {
    let mut claims = world.claims();
    change(&mut claims);
    let token = world.issuer.sign(&claims).unwrap();
    world.assume(&token, &[]).await.refuses(status, code, message);
}

#[tokio::test]
async fn an_unknown_issuer_is_refused() {
    let world = World::new().await;
    let message = "No OpenIDConnect provider found in your account for https://elsewhere.example/id/1";
    let iss = |claims: &mut Value| claims["iss"] = json!("https://elsewhere.example/id/1");
    refused(&world, iss, 400, "InvalidIdentityToken", message).await;
    // The provider must be in the role's own account.
    let role = "arn:aws:iam::444455556666:role/web";
    world.sts.put_role(role, world.trust(SUBJECT)).unwrap();
    let message = format!("No OpenIDConnect provider found in your account for {}", world.issuer.url());
    let answer = world.assume(&world.token(), &[("RoleArn", Some(role))]).await;
    answer.refuses(400, "InvalidIdentityToken", &message);
    world.sts.delete_oidc_provider(ACCOUNT, world.issuer.url());
    world.assume(&world.token(), &[]).await.refuses(400, "InvalidIdentityToken", &message);
    assert_eq!(world.sts.issuer_fetches(), 0, "an issuer that nobody named is not asked");
}

#[tokio::test]
async fn a_wrong_audience_is_refused() {
    let world = World::new().await;
    let aud = |claims: &mut Value| claims["aud"] = json!(["https://kubernetes.default.svc"]);
    refused(&world, aud, 400, "InvalidIdentityToken", "Incorrect token audience").await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let world = World::new().await;
    let mut claims = world.claims();
    let now = claims["iat"].as_u64().unwrap();
    claims["exp"] = json!(now - 1);
    let answer = world.assume(&world.issuer.sign(&claims).unwrap(), &[]).await;
    let text = answer.tag("Message");
    let at: u64 =
        text.strip_prefix("Token expired: current date/time ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((now..now + 5).contains(&at), "{text}");
    answer.refuses(
        400,
        "ExpiredTokenException",
        &format!("Token expired: current date/time {at} must be before the expiration date/time {}", now - 1),
    );
}

#[tokio::test]
async fn a_token_from_the_future_is_refused() {
    let world = World::new().await;
    for name in ["nbf", "iat"] {
        let later = |claims: &mut Value| claims[name] = json!(claims["exp"].as_u64().unwrap() - 1);
        refused(&world, later, 400, "InvalidIdentityToken", NOT_VALIDATED).await;
    }
}

#[tokio::test]
async fn a_forged_signature_is_refused() {
    let world = World::new().await;
    let token = world.token();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{flipped}{}", &signature[1..]);
    world.assume(&forged, &[]).await.refuses(400, "InvalidIdentityToken", NOT_VALIDATED);
    // Claims that were changed after they were signed.
    let mut claims = world.claims();
    claims["sub"] = json!("system:serviceaccount:kube-system:admin");
    let other = world.issuer.sign(&claims).unwrap();
    let swapped = format!("{}.{}", other.rsplit_once('.').unwrap().0, signature);
    world.assume(&swapped, &[]).await.refuses(400, "InvalidIdentityToken", NOT_VALIDATED);
    for token in ["abcd", "a.b.c", "Bearer x", signed] {
        world.assume(token, &[]).await.refuses(400, "InvalidIdentityToken", NOT_A_JWT);
    }
}

#[tokio::test]
async fn a_token_without_a_claim_is_refused() {
    let world = World::new().await;
    for name in ["sub", "aud", "iat", "exp"] {
        let drop = |claims: &mut Value| drop(claims.as_object_mut().unwrap().remove(name));
        refused(&world, drop, 400, "InvalidIdentityToken", &format!("Missing a required claim: {name}")).await;
    }
}

#[tokio::test]
async fn another_subject_and_a_role_that_is_not_there_are_refused_alike() {
    let world = World::new().await;
    let sub = |claims: &mut Value| claims["sub"] = json!("system:serviceaccount:team-a:other");
    refused(&world, sub, 403, "AccessDenied", DENIED).await;
    let missing = [("RoleArn", Some("arn:aws:iam::111122223333:role/missing"))];
    world.assume(&world.token(), &missing).await.refuses(403, "AccessDenied", DENIED);
    // A role's name is not its ARN: the path counts.
    let pathless = [("RoleArn", Some("arn:aws:iam::111122223333:role/web"))];
    world.assume(&world.token(), &pathless).await.refuses(403, "AccessDenied", DENIED);
    world.sts.delete_role(ROLE);
    world.assume(&world.token(), &[]).await.refuses(403, "AccessDenied", DENIED);
}

#[tokio::test]
async fn a_pattern_of_subjects_is_trusted_as_far_as_it_reaches() {
    let world = World::new().await;
    let name = world.issuer.url().strip_prefix("https://").unwrap();
    let mut trust = world.trust(SUBJECT);
    trust["Statement"][0]["Condition"] =
        json!({ "StringLike": { format!("{name}:sub"): "system:serviceaccount:team-?:*" } });
    world.sts.put_role(ROLE, trust).unwrap();
    assert_eq!(world.assume(&world.token(), &[]).await.status, 200);
    let sub = |claims: &mut Value| claims["sub"] = json!("system:serviceaccount:team-ab:web");
    refused(&world, sub, 403, "AccessDenied", DENIED).await;
}

#[tokio::test]
async fn parameters_are_checked_before_the_token() {
    let world = World::new().await;
    let one = |text: &str| format!("1 validation error detected: {text}");
    let failed = |name: &str, value: &str, constraint: &str| {
        one(&format!("Value {value} at '{name}' failed to satisfy constraint: Member must {constraint}"))
    };
    let long = "a".repeat(65);
    let long_arn = format!("arn:{}", "x".repeat(2045));
    let long_token = "a".repeat(20001);
    let secret = "have length less than or equal to 20000";
    for (change, message) in [
        (("RoleArn", None), failed("roleArn", "null", "not be null")),
        (("RoleSessionName", None), failed("roleSessionName", "null", "not be null")),
        (("WebIdentityToken", None), failed("webIdentityToken", "null", "not be null")),
        (("RoleArn", Some("web")), failed("roleArn", "'web'", "have length greater than or equal to 20")),
        (
            ("RoleArn", Some(long_arn.as_str())),
            failed("roleArn", &format!("'{long_arn}'"), "have length less than or equal to 2048"),
        ),
        (("RoleArn", Some("arn:aws:iam::111122223333:user/web")), "Request ARN is invalid".to_owned()),
        (("RoleSessionName", Some("a")), failed("roleSessionName", "'a'", "have length greater than or equal to 2")),
        (
            ("RoleSessionName", Some(long.as_str())),
            failed("roleSessionName", &format!("'{long}'"), "have length less than or equal to 64"),
        ),
        (
            ("RoleSessionName", Some("a/b")),
            failed("roleSessionName", "'a/b'", r"satisfy regular expression pattern: [\w+=,.@-]*"),
        ),
        (
            ("DurationSeconds", Some("899")),
            failed("durationSeconds", "'899'", "have value greater than or equal to 900"),
        ),
        (
            ("DurationSeconds", Some("43201")),
            failed("durationSeconds", "'43201'", "have value less than or equal to 43200"),
        ),
        (
            ("WebIdentityToken", Some(long_token.as_str())),
            one(&format!("Value at 'webIdentityToken' failed to satisfy constraint: Member must {secret}")),
        ),
        (("Policy", Some("{}")), "Policy is not known to this sandbox".to_owned()),
        (("PolicyArns.member.1.arn", Some("x")), "PolicyArns is not known to this sandbox".to_owned()),
    ] {
        world.assume("no token at all", &[change]).await.refuses(400, "ValidationError", &message);
    }
    let several = world.assume("no token", &[("RoleSessionName", None), ("WebIdentityToken", None)]).await;
    assert!(several.tag("Message").starts_with("2 validation errors detected: Value null at 'roleSessionName'"));
    let number = world.assume("no token", &[("DurationSeconds", Some("1h"))]).await;
    assert_eq!((number.status.as_u16(), number.tag("Code")), (400, "MalformedInput"));
}

#[tokio::test]
async fn a_session_is_no_longer_than_its_role_allows() {
    let world = World::new().await;
    let text = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
    let ask = [("DurationSeconds", Some("3601"))];
    world.assume(&world.token(), &ask).await.refuses(400, "ValidationError", text);
    let max_session_duration = Duration::from_secs(43200);
    world.sts.put_role_with(&Role { max_session_duration, ..Role::new(ROLE, world.trust(SUBJECT)) }).unwrap();
    assert_eq!(world.assume(&world.token(), &[("DurationSeconds", Some("43200"))]).await.status, 200);
    let too_long = Duration::from_secs(43201);
    let role = Role { max_session_duration: too_long, ..Role::new(ROLE, world.trust(SUBJECT)) };
    assert!(world.sts.put_role_with(&role).is_err());
}

#[tokio::test]
async fn only_a_known_operation_of_the_known_version_is_one() {
    let world = World::new().await;
    let ask = |parameters: &'static [(&'static str, &'static str)]| world.post(parameters);
    for (parameters, text) in [
        (&[("Action", "Nonsense"), ("Version", "2011-06-15")][..], "operation Nonsense for version 2011-06-15"),
        (
            &[("Action", ACTION), ("Version", "2010-01-01")],
            "operation AssumeRoleWithWebIdentity for version 2010-01-01",
        ),
        (&[("Action", ACTION)], "operation AssumeRoleWithWebIdentity for version NO_VERSION_SPECIFIED"),
        (&[("Action", ""), ("Version", "2011-06-15")], "operation  for version 2011-06-15"),
    ] {
        ask(parameters).await.refuses(400, "InvalidAction", &format!("Could not find {text}"));
    }
    let nothing = ask(&[("Version", "2011-06-15")]).await;
    assert_eq!(
        (nothing.status.as_u16(), &nothing.headers["location"]),
        (302, &"https://aws.amazon.com/iam".parse().unwrap())
    );
    let elsewhere = world.send(get(&format!("{}/other?Action={ACTION}", world.endpoint()))).await;
    assert_eq!((elsewhere.status.as_u16(), elsewhere.body.as_str()), (404, "<UnknownOperationException/>\n"));
}

#[tokio::test]
async fn the_call_log_says_who_asked_for_what_and_holds_no_secret() {
    let world = World::new().await;
    let token = world.token();
    world.assume(&token, &[]).await;
    world.assume(&token, &[("RoleArn", Some("arn:aws:iam::111122223333:role/missing"))]).await;
    let calls = world.sts.calls();
    assert_eq!(calls.iter().map(|call| call.outcome).collect::<Vec<_>>(), ["Success", "AccessDenied"]);
    assert_eq!(calls[0].role.as_deref(), Some(ROLE));
    assert_eq!(calls[0].session_name.as_deref(), Some("s1"));
    assert_eq!(world.sts.call_count(ACTION), 2);
    assert!(!format!("{calls:?} {:?}", world.sts).contains(&token));
}
