//! S3: only who has keys of STS's may read, and each request is kept with the ARN of who signed it.

use aws_sdk_sts::config::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sandbox::{clock, http::Server, s3::S3};
use tokio::net::TcpListener;

use crate::world::{Answer, World, keys_of};

const REGION: &str = "eu-west-1";
const ARN: &str = "arn:aws:sts::111122223333:assumed-role/web/s1";
const KEY: &str = "a folder/ä+b.txt";
const PATH: &str = "/bucket/a%20folder/%C3%A4%2Bb.txt";

struct Store {
    world: World,
    s3: S3,
    server: Server,
}

impl Store {
    async fn new() -> Self {
        let world = World::new().await;
        let s3 = S3::new(REGION, world.sts.clone());
        s3.put_object("bucket", KEY, "0123456789");
        let handler = s3.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let serve = move |request, _| {
            let s3 = handler.clone();
            async move { s3.handle(request).await }
        };
        Self { world, s3, server: Server::start(listener, None, serve).unwrap() }
    }

    fn request(&self, method: Method, path: &str) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.server.address());
        Request::builder().method(method).uri(uri).body(Full::default()).unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str, keys: &Credentials) -> Answer {
        self.send(signed(self.request(Method::GET, path), keys, "s3", REGION)).await
    }

    /// The last request's object, caller and outcome.
    fn last(&self) -> (Option<String>, Option<String>, &'static str) {
        let call = self.s3.calls().pop().unwrap();
        (call.key, call.caller, call.outcome)
    }
}

/// Signed by the SDK's own signer, in the way that is S3's.
fn signed(mut request: Request<Full<Bytes>>, keys: &Credentials, service: &str, region: &str) -> Request<Full<Bytes>> {
    let identity = keys.clone().into();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(clock::now())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let (method, uri) = (request.method().to_string(), request.uri().to_string());
    let headers = request.headers().clone();
    let signable = SignableRequest::new(&method, uri, pairs(&headers), SignableBody::Bytes(b"")).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    request
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
}

#[tokio::test]
async fn who_has_keys_reads_and_is_known() {
    let store = Store::new().await;
    let keys = store.world.keys().await;
    let answer = store.get(PATH, &keys).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, "0123456789"), "{answer:?}");
    assert_eq!(store.last(), (Some(KEY.to_owned()), Some(ARN.to_owned()), "Success"));

    let mut request = store.request(Method::GET, PATH);
    request.headers_mut().insert("range", "bytes=2-4".parse().unwrap());
    let answer = store.send(signed(request, &keys, "s3", REGION)).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (206, "234"));
    assert_eq!(answer.headers["content-range"], "bytes 2-4/10");

    let answer = store.send(signed(store.request(Method::HEAD, PATH), &keys, "s3", REGION)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-length"], &*answer.body),
        (200, &"10".parse().unwrap(), "")
    );

    let answer = store.get("/bucket?list-type=2&prefix=a%20f&delimiter=%2F", &keys).await;
    assert!(answer.body.contains("<CommonPrefixes><Prefix>a folder/</Prefix></CommonPrefixes>"), "{answer:?}");
    assert_eq!(store.last(), (Some("a f".to_owned()), Some(ARN.to_owned()), "Success"));
    assert_eq!(store.get("/", &keys).await.tag("Name"), "bucket");
    for (path, status, code) in [
        ("/bucket/none", 404, "NoSuchKey"),
        ("/other/none", 404, "NoSuchBucket"),
        ("/bucket?acl", 501, "NotImplemented"),
    ] {
        let answer = store.get(path, &keys).await;
        assert_eq!((answer.status.as_u16(), answer.tag("Code")), (status, code));
    }
}

#[tokio::test]
async fn who_has_not_is_refused_in_s3s_words() {
    let store = Store::new().await;
    let keys = store.world.keys().await;
    let (id, secret, token) = (keys.access_key_id(), keys.secret_access_key(), keys.session_token().unwrap());
    let get = || store.request(Method::GET, PATH);
    let mut without_hash = signed(get(), &keys, "s3", REGION);
    without_hash.headers_mut().remove("x-amz-content-sha256");
    let mut unsigned_header = signed(get(), &keys, "s3", REGION);
    unsigned_header.headers_mut().insert("x-amz-acl", "private".parse().unwrap());
    let mut other_object = signed(get(), &keys, "s3", REGION);
    *other_object.uri_mut() = get().uri().to_string().replace("folder", "holder").parse().unwrap();
    let mut other_body = signed(get(), &keys, "s3", REGION);
    *other_body.body_mut() = Full::from("x");
    for (request, status, code) in [
        (get(), 403, "AccessDenied"),
        (signed(get(), &keys_of("ASIANOBODYSKEYID0000", secret, token), "s3", REGION), 403, "InvalidAccessKeyId"),
        (signed(get(), &keys_of(id, &secret.to_lowercase(), token), "s3", REGION), 403, "SignatureDoesNotMatch"),
        (signed(get(), &keys_of(id, secret, "another"), "s3", REGION), 403, "InvalidAccessKeyId"),
        (signed(get(), &keys, "sts", REGION), 403, "SignatureDoesNotMatch"),
        (signed(get(), &keys, "s3", "us-east-1"), 403, "SignatureDoesNotMatch"),
        (without_hash, 403, "SignatureDoesNotMatch"),
        (unsigned_header, 403, "AccessDenied"),
        (other_object, 403, "SignatureDoesNotMatch"),
        (other_body, 400, "XAmzContentSHA256Mismatch"),
    ] {
        let answer = store.send(request).await;
        assert_eq!((answer.status.as_u16(), answer.tag("Code")), (status, code));
        assert_eq!(store.last().1, None);
    }
    let answer = store.send(signed(store.request(Method::DELETE, PATH), &keys, "s3", REGION)).await;
    assert_eq!((answer.status.as_u16(), answer.tag("Code")), (403, "AccessDenied"));
    store.world.sts.revoke_all_keys();
    assert_eq!(store.get(PATH, &keys).await.tag("Code"), "InvalidAccessKeyId");
}
