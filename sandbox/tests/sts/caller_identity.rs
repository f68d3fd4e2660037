//! GetCallerIdentity: whose signature it is, and what AWS says of one that is nobody's.

use std::time::{Duration, SystemTime};

use aws_sdk_sts::{config::Credentials, error::ProvideErrorMetadata as _};
use http::{HeaderValue, header};
use sandbox::clock;

use crate::world::{Answer, Signing, World, form, get, keys_of, signed};

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const ARN: &str = "arn:aws:sts::111122223333:assumed-role/web/s1";
const MISMATCH: &str = "The request signature we calculated does not match the signature you provided. Check your AWS \
                        Secret Access Key and signing method. Consult the service documentation for details.";
const UNKNOWN: &str = "The security token included in the request is invalid.";

async fn ask(world: &World, keys: &Credentials, how: &Signing) -> Answer {
    world.send(signed(form(&world.endpoint(), BODY), BODY, keys, how)).await
}

/// The same, to a host of this name.
async fn ask_host(world: &World, keys: &Credentials, how: &Signing, host: &'static str) -> Answer {
    let mut request = form(&world.endpoint(), BODY);
    request.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
    world.send(signed(request, BODY, keys, how)).await
}

#[tokio::test]
async fn keys_that_were_handed_out_are_known_by_their_signature() {
    let world = World::new().await;
    let keys = world.keys().await;
    let answer = ask(&world, &keys, &Signing::default()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
         <GetCallerIdentityResult>\n    <Arn>{ARN}</Arn>\n    <UserId>{}</UserId>\n    \
         <Account>111122223333</Account>\n  </GetCallerIdentityResult>\n  \
         <ResponseMetadata>\n    <RequestId>{}</RequestId>\n  </ResponseMetadata>\n</GetCallerIdentityResponse>\n",
        answer.tag("UserId"),
        answer.headers["x-amzn-requestid"].to_str().unwrap(),
    );
    assert_eq!(answer.body, expected);
}

#[tokio::test]
async fn a_get_and_a_presigned_url_are_known_too() {
    let world = World::new().await;
    let keys = world.keys().await;
    let uri = format!("{}/?{BODY}", world.endpoint());
    let answer = world.send(signed(get(&uri), "", &keys, &Signing::default())).await;
    assert_eq!((answer.status.as_u16(), answer.tag("Arn")), (200, ARN));
    let presigned = Signing { presigned: Some(Duration::from_secs(60)), ..Signing::default() };
    let request = signed(get(&uri), "", &keys, &presigned);
    assert!(!request.headers().contains_key("authorization"));
    let url = request.uri().to_string();
    let answer = world.send(request).await;
    assert_eq!((answer.status.as_u16(), answer.body.contains(ARN)), (200, true), "{answer:?}");
    // The signature covers the query.
    let answer = world.send(get(&url.replace("Version=2011-06-15", "Version=2011-06-15&x=y"))).await;
    answer.refuses(403, "SignatureDoesNotMatch", MISMATCH);
    // A presigned request that says it too in a header is one of each.
    let mut both = get(&url);
    both.headers_mut().insert("authorization", HeaderValue::from_static("AWS4-HMAC-SHA256 x"));
    let text = "Found both 'X-Amz-Algorithm' as a query-string param and 'Authorization' as HTTP header.";
    world.send(both).await.refuses(403, "SignatureDoesNotMatch", text);
}

#[tokio::test]
async fn a_wrong_secret_is_a_signature_that_does_not_match() {
    let world = World::new().await;
    let keys = world.keys().await;
    let flipped: String = keys.secret_access_key().chars().rev().collect();
    let wrong = keys_of(keys.access_key_id(), &flipped, keys.session_token().unwrap());
    ask(&world, &wrong, &Signing::default()).await.refuses(403, "SignatureDoesNotMatch", MISMATCH);
    let error = world.sdk(Some(wrong)).get_caller_identity().send().await.unwrap_err();
    assert_eq!(error.code(), Some("SignatureDoesNotMatch"));
    // A body that was changed after it was signed.
    let request = signed(form(&world.endpoint(), format!("{BODY}&x=y")), BODY, &keys, &Signing::default());
    world.send(request).await.refuses(403, "SignatureDoesNotMatch", MISMATCH);
}

#[tokio::test]
async fn an_unknown_key_and_a_wrong_token_are_invalid() {
    let world = World::new().await;
    let (keys, others) = (world.keys().await, world.keys().await);
    let token = keys.session_token().unwrap();
    for wrong in [
        keys_of("ASIAAAAAAAAAAAAAAAAA", keys.secret_access_key(), token),
        keys_of(keys.access_key_id(), keys.secret_access_key(), others.session_token().unwrap()),
        Credentials::new(keys.access_key_id(), keys.secret_access_key(), None, None, "test"),
    ] {
        ask(&world, &wrong, &Signing::default()).await.refuses(403, "InvalidClientTokenId", UNKNOWN);
    }
    world.sts.revoke_all_keys();
    ask(&world, &keys, &Signing::default()).await.refuses(403, "InvalidClientTokenId", UNKNOWN);
}

#[tokio::test]
async fn a_session_that_is_over_is_expired() {
    let world = World::new().await;
    world.sts.set_max_life(Some(Duration::from_secs(1)));
    let keys = world.keys().await;
    assert_eq!(ask(&world, &keys, &Signing::default()).await.status, 200);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let text = "The security token included in the request is expired";
    ask(&world, &keys, &Signing::default()).await.refuses(403, "ExpiredToken", text);
}

#[tokio::test]
async fn a_request_without_a_signature_misses_its_token() {
    let world = World::new().await;
    let text = "Request is missing Authentication Token";
    world.send(form(&world.endpoint(), BODY)).await.refuses(403, "MissingAuthenticationToken", text);
    let mut basic = form(&world.endpoint(), BODY);
    basic.headers_mut().insert("authorization", HeaderValue::from_static("Basic YTpi"));
    world.send(basic).await.refuses(403, "MissingAuthenticationToken", text);
}

#[tokio::test]
async fn a_signature_that_is_too_old_or_too_new_does_not_match() {
    let world = World::new().await;
    let keys = world.keys().await;
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let at = |time: SystemTime| Signing { time, ..Signing::default() };
    assert_eq!(ask(&world, &keys, &at(clock::now() - minutes(14))).await.status, 200);
    assert_eq!(ask(&world, &keys, &at(clock::now() + minutes(14))).await.status, 200);
    let old = ask(&world, &keys, &at(clock::now() - minutes(16))).await;
    assert_eq!((old.status.as_u16(), old.tag("Code")), (403, "SignatureDoesNotMatch"));
    let text = old.tag("Message");
    assert!(text.starts_with("Signature expired: ") && text.ends_with("Z - 15 min.)"), "{text}");
    let new = ask(&world, &keys, &at(clock::now() + minutes(16))).await;
    assert!(new.tag("Message").starts_with("Signature not yet current: "), "{new:?}");
    // A presigned request, whatever it says of its own life.
    let presigned = Signing { presigned: Some(minutes(60)), ..at(clock::now() - minutes(16)) };
    let uri = format!("{}/?{BODY}", world.endpoint());
    let old = world.send(signed(get(&uri), "", &keys, &presigned)).await;
    assert!(old.tag("Message").starts_with("Signature expired: "), "{old:?}");
}

#[tokio::test]
async fn a_signature_is_for_one_service_and_for_the_hosts_region() {
    let world = World::new().await;
    let keys = world.keys().await;
    let region = |region| Signing { region, ..Signing::default() };
    let (wrong_region, wrong_service) =
        ("Credential should be scoped to a valid region. ", "Credential should be scoped to correct service: 'sts'. ");
    for (host, good, bad) in [
        ("sts.eu-west-1.amazonaws.com", "eu-west-1", "us-east-1"),
        ("sts.amazonaws.com", "us-east-1", "eu-west-1"),
        ("sts-fips.us-east-2.amazonaws.com", "us-east-2", "us-east-1"),
        ("sts.cn-north-1.amazonaws.com.cn", "cn-north-1", "us-east-1"),
    ] {
        assert_eq!(ask_host(&world, &keys, &region(good), host).await.status, 200, "{host}");
        let answer = ask_host(&world, &keys, &region(bad), host).await;
        answer.refuses(403, "SignatureDoesNotMatch", wrong_region);
    }
    let s3 = Signing { service: "s3", ..Signing::default() };
    ask(&world, &keys, &s3).await.refuses(403, "SignatureDoesNotMatch", wrong_service);
    assert_eq!(ask(&world, &keys, &region("ap-south-1")).await.status, 200, "an address has no region");
}

#[tokio::test]
async fn the_session_token_must_be_signed() {
    let world = World::new().await;
    let keys = world.keys().await;
    let unsigned = Signing { sign_token: false, ..Signing::default() };
    let text = "'x-amz-security-token' must be a 'SignedHeader' in the AWS Authorization.";
    ask(&world, &keys, &unsigned).await.refuses(403, "SignatureDoesNotMatch", text);
}

#[tokio::test]
async fn an_instances_keys_are_the_nodes_role() {
    let world = World::new().await;
    let node = world.sts.instance_credentials("arn:aws:iam::111122223333:role/node", "i-0123456789abcdef0");
    assert_eq!(
        world.sts.instance_credentials(&node.role_arn, &node.instance_id),
        node,
        "the same until half their life"
    );
    assert!(!format!("{node:?}").contains(&node.secret_access_key));
    let keys = keys_of(&node.access_key_id, &node.secret_access_key, &node.session_token);
    let caller = world.sdk(Some(keys)).get_caller_identity().send().await.unwrap();
    assert_eq!(caller.arn(), Some("arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0"));
}

#[tokio::test]
async fn other_operations_are_denied_to_those_who_sign_and_closed_to_others() {
    let world = World::new().await;
    let keys = world.keys().await;
    let error = world.sdk(Some(keys)).get_session_token().send().await.unwrap_err();
    assert_eq!(error.code(), Some("AccessDenied"));
    let text = format!("User: {ARN} is not authorized to perform: sts:GetSessionToken");
    assert_eq!(error.message(), Some(text.as_str()));
    let unsigned = world.post(&[("Action", "GetSessionToken"), ("Version", "2011-06-15")]).await;
    assert_eq!(unsigned.tag("Code"), "MissingAuthenticationToken");
}
