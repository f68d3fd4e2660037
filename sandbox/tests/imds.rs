//! The sandbox's metadata service, asked by the unmodified AWS SDK, and by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use aws_config::imds::{client::Client as ImdsClient, credentials::ImdsCredentialsProvider};
use aws_sdk_sts::config::ProvideCredentials as _;
use aws_smithy_types::{DateTime, date_time::Format};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sandbox::{
    ca::Ca,
    http::Server,
    imds::{HttpTokens, Imds, ImdsVersion, USER_DATA_SECRET},
    sts::Sts,
};
use serde_json::Value;
use tokio::net::TcpListener;

const ROLE: &str = "arn:aws:iam::111122223333:role/node";
const INSTANCE: &str = "i-0123456789abcdef0";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const LIST: &str = "/latest/meta-data/iam/security-credentials/";
const KEYS: &str = "/latest/meta-data/iam/security-credentials/node";

struct World {
    imds: Imds,
    sts: Sts,
    server: Server,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl World {
    async fn new() -> Self {
        let sts = Sts::new(Ca::new().unwrap().client().unwrap());
        let source = sts.clone();
        let imds = Imds::new("node", "eu-west-1", move || source.instance_credentials(ROLE, INSTANCE));
        let handler = imds.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, None, move |request, peer| {
            let imds = handler.clone();
            async move { imds.handle_from(request, peer).await }
        })
        .unwrap();
        Self { imds, sts, server }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.server.address()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        assert_eq!(parts.headers["server"], "EC2ws");
        assert!(parts.headers.contains_key("content-length") && parts.headers.contains_key("date"));
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body).unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[]).await
    }

    async fn token(&self, ttl: &str) -> Answer {
        self.send(Method::PUT, "/latest/api/token", &[(TTL, ttl)]).await
    }

    async fn text(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.body
    }
}

#[tokio::test]
async fn the_sdk_gets_the_nodes_keys_in_both_modes() {
    let world = World::new().await;
    for tokens in [HttpTokens::Optional, HttpTokens::Required] {
        world.imds.set_http_tokens(tokens);
        let client = ImdsClient::builder().endpoint(format!("http://{}", world.server.address())).unwrap().build();
        let keys = ImdsCredentialsProvider::builder().imds_client(client).build().provide_credentials().await.unwrap();
        let known = world.sts.instance_credentials(ROLE, INSTANCE);
        assert_eq!(keys.access_key_id(), known.access_key_id);
        assert_eq!(keys.secret_access_key(), known.secret_access_key);
        assert_eq!(keys.session_token(), Some(known.session_token.as_str()));
    }
    assert_eq!(world.imds.credential_requests(), 2);
    assert!(world.imds.requests().iter().all(|request| request.version == ImdsVersion::V2));
}

#[tokio::test]
async fn the_roles_name_has_no_newline_and_its_document_is_whole() {
    let world = World::new().await;
    assert_eq!(world.text(LIST).await, "node");
    for path in [KEYS, &format!("{KEYS}/"), &KEYS.replace("/iam", "//iam"), &KEYS.replace("latest", "2021-07-15")] {
        let document: Value = serde_json::from_str(&world.text(path).await).unwrap();
        assert_eq!((&document["Code"], &document["Type"]), (&"Success".into(), &"AWS-HMAC".into()));
        for name in ["LastUpdated", "Expiration"] {
            let time = document[name].as_str().unwrap();
            assert!(time.len() == 20 && DateTime::from_str(time, Format::DateTime).is_ok(), "{time}");
        }
        for name in ["AccessKeyId", "SecretAccessKey", "Token"] {
            assert!(!document[name].as_str().unwrap().is_empty());
        }
    }
    assert_eq!(world.get(&format!("{LIST}other")).await.status, 404);
    assert_eq!(world.get(&format!("{KEYS}/x")).await.status, 404);
    let requests = world.imds.requests();
    assert_eq!((requests[0].path.as_str(), requests[0].version), (LIST, ImdsVersion::V1));
    assert!(requests[0].peer.unwrap().ip().is_loopback());
    assert_eq!(world.imds.credential_requests(), 4);
}

#[tokio::test]
async fn a_session_token_is_for_a_ttl_of_one_second_to_six_hours() {
    let world = World::new().await;
    for ttl in ["1", "60", "21600"] {
        let answer = world.token(ttl).await;
        assert_eq!((answer.status.as_u16(), &answer.headers[TTL]), (200, &ttl.parse().unwrap()));
        assert_eq!(answer.headers["content-type"], "text/plain");
        assert!(answer.body.len() == 56 && !answer.body.contains(char::is_whitespace), "{}", answer.body);
        let read = world.send(Method::GET, LIST, &[(TOKEN, &answer.body)]).await;
        assert_eq!(read.status, 200);
        assert!(read.headers[TTL].to_str().unwrap().parse::<u64>().unwrap() <= ttl.parse().unwrap());
    }
    for ttl in ["0", "21601", "-1", "1.5", "", "x"] {
        let answer = world.token(ttl).await;
        assert_eq!(answer.status, 400, "{ttl}");
        assert!(answer.body.contains("<title>400 - Bad Request</title>") && !answer.headers.contains_key(TTL));
    }
    assert_eq!(world.send(Method::PUT, "/latest/api/token", &[]).await.status, 400);
    let proxied = world.send(Method::PUT, "/latest/api/token", &[(TTL, "60"), ("x-forwarded-for", "10.0.0.9")]).await;
    assert_eq!(proxied.status, 403);
    assert_eq!(world.send(Method::PUT, "/2021-07-15/api/token", &[(TTL, "60")]).await.status, 403);
}

#[tokio::test]
async fn a_session_token_that_is_over_or_unknown_is_unauthorised() {
    let world = World::new().await;
    let token = world.token("1").await.body;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for token in [token.as_str(), "nonsense", ""] {
        let answer = world.send(Method::GET, KEYS, &[(TOKEN, token)]).await;
        assert_eq!(answer.status, 401);
        assert!(answer.body.contains("<h1>401 - Unauthorized</h1>"));
    }
    let token = world.token("60").await.body;
    world.imds.forget_sessions();
    assert_eq!(world.send(Method::GET, KEYS, &[(TOKEN, &token)]).await.status, 401);
    assert_eq!(world.imds.credential_requests(), 0);
}

#[tokio::test]
async fn without_a_session_token_nothing_is_served_where_one_is_required() {
    let world = World::new().await;
    world.imds.set_http_tokens(HttpTokens::Required);
    for path in ["/", "/latest/", LIST, KEYS, "/latest/user-data", "/nowhere"] {
        assert_eq!(world.get(path).await.status, 401, "{path}");
    }
    let token = world.token("60").await.body;
    assert_eq!(world.send(Method::GET, KEYS, &[(TOKEN, &token)]).await.status, 200);
}

#[tokio::test]
async fn what_describes_the_node_is_where_clients_look_for_it() {
    let world = World::new().await;
    let meta = |path: &str| format!("/latest/meta-data/{path}");
    assert_eq!(world.text(&meta("placement/region")).await, "eu-west-1");
    assert_eq!(world.text(&meta("placement/availability-zone")).await, "eu-west-1a");
    assert_eq!(world.text(&meta("placement/availability-zone/")).await, "eu-west-1a");
    assert_eq!(world.text(&meta("instance-id")).await, INSTANCE);
    assert!(world.text(&meta("ami-id")).await.starts_with("ami-"));
    let info: Value = serde_json::from_str(&world.text(&meta("iam/info")).await).unwrap();
    assert_eq!(info["InstanceProfileArn"], "arn:aws:iam::111122223333:instance-profile/node");
    assert!(info["InstanceProfileId"].as_str().unwrap().starts_with("AIPA"));
    let document = world.text("/latest/dynamic/instance-identity/document").await;
    assert!(document.contains("  \"region\" : \"eu-west-1\""), "{document}");
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["accountId"], &document["instanceId"]), (&"111122223333".into(), &INSTANCE.into()));
    let user_data = world.get("/latest/user-data").await;
    assert!(user_data.body.contains(USER_DATA_SECRET));
    assert_eq!(user_data.headers["content-type"], "application/octet-stream");
}

#[tokio::test]
async fn directories_are_listed_and_lead_to_what_is_there() {
    let world = World::new().await;
    let versions = world.text("/").await;
    assert!(versions.starts_with("1.0\n2007-01-19\n") && versions.ends_with("\nlatest"), "{versions}");
    assert_eq!(world.text("/latest").await, "dynamic\nmeta-data\nuser-data");
    assert_eq!(world.text("/latest/").await, "dynamic\nmeta-data\nuser-data");
    assert_eq!(world.text("/latest/meta-data/iam/").await, "info\nsecurity-credentials/");
    let moved = world.get("/latest/meta-data/iam/security-credentials").await;
    assert_eq!(moved.status, 301);
    assert_eq!(moved.headers["location"], format!("http://169.254.169.254{LIST}"));
    let mut directories = vec!["/latest/meta-data/".to_owned(), "/latest/dynamic/".to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in world.text(&directory).await.lines() {
            let path = format!("{directory}{entry}");
            match entry.ends_with('/') {
                true => directories.push(path),
                false => assert_eq!(world.get(&path).await.status, 200, "{path}"),
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[tokio::test]
async fn what_is_not_there_is_a_page_that_says_so() {
    let world = World::new().await;
    for path in
        ["/latest/meta-data/nothing", "/nowhere", "/latest/api", "/1999-01-01/meta-data/", "/latest/user-data/x"]
    {
        let answer = world.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.headers["content-type"], "text/html");
        assert!(answer.body.starts_with("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html PUBLIC"));
        assert!(answer.body.contains(" <head>\n  <title>404 - Not Found</title>\n </head>"), "{}", answer.body);
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let world = World::new().await;
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let answer = world.send(method, "/latest/api/token", &[]).await;
        assert_eq!((answer.status.as_u16(), &answer.headers["allow"]), (405, &"OPTIONS, PUT".parse().unwrap()));
        assert!(answer.body.is_empty());
    }
    assert_eq!(world.send(Method::POST, KEYS, &[]).await.status, 405);
    assert_eq!(world.send(Method::PUT, KEYS, &[(TTL, "60")]).await.status, 405);
    let head = world.send(Method::HEAD, LIST, &[]).await;
    assert_eq!((head.status.as_u16(), &head.headers["content-length"]), (200, &"4".parse().unwrap()));
    assert_eq!(world.imds.credential_requests(), 0);
}

#[tokio::test]
async fn it_can_be_down_or_slow() {
    let world = World::new().await;
    world.imds.set_down(true);
    assert_eq!(world.get(LIST).await.status, 503);
    assert_eq!(world.token("60").await.status, 503);
    world.imds.set_down(false);
    world.imds.stall(true);
    assert!(tokio::time::timeout(Duration::from_millis(200), world.get(LIST)).await.is_err());
    world.imds.stall(false);
    world.imds.set_latency(Duration::from_millis(100));
    let start = tokio::time::Instant::now();
    assert_eq!(world.get(LIST).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}
