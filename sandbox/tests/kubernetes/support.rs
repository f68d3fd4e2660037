//! A cluster behind TLS, and a client that takes answers apart.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sandbox::{
    ca::Ca,
    http::Server,
    issuer::Issuer,
    kubernetes::{Kubernetes, NewPod},
};
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};

/// Long enough for a busy machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) kubernetes: Kubernetes,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) kubeconfig: String,
    url: String,
    token: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    _server: Server,
}

/// An answer that has come to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// A watch that is open.
pub(crate) struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Cluster {
    /// A cluster with a namespace `team-a`, its service accounts `web` and `db`, and nothing else.
    pub(crate) async fn start() -> Self {
        // A key takes long to make, and no test changes it.
        static ISSUER: OnceLock<Arc<Issuer>> = OnceLock::new();
        let issuer = ISSUER.get_or_init(|| Arc::new(Issuer::new("https://issuer.test").unwrap())).clone();
        let kubernetes = Kubernetes::new(issuer.clone());
        kubernetes.create_namespace("team-a", &[]);
        kubernetes.apply_service_account("team-a", "web", &[("role", "reader")]);
        kubernetes.apply_service_account("team-a", "db", &[]);

        let ca = Ca::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, Some(ca.server(&["127.0.0.1"]).unwrap()), {
            let kubernetes = kubernetes.clone();
            move |request, _| {
                let kubernetes = kubernetes.clone();
                async move { kubernetes.handle(request).await }
            }
        })
        .unwrap();
        let url = format!("https://{}", server.address());
        let token = kubernetes.user_token("admin");
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(ca.client().unwrap()).https_only().enable_http1().build();
        Self {
            issuer,
            kubeconfig: kubernetes.kubeconfig(&url, ca.pem(), &token),
            client: Client::builder(TokioExecutor::new()).build(connector),
            kubernetes,
            url,
            token,
            _server: server,
        }
    }

    /// As [`start`](Self::start), with a pod `web-1` of `web` on `node-a`; its UID.
    pub(crate) async fn with_pod() -> (Self, String) {
        let cluster = Self::start().await;
        let uid = cluster.kubernetes.create_pod(pod("web-1"));
        (cluster, uid)
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        timeout(PATIENCE, self.client.request(request)).await.expect("no answer").expect("no connection")
    }

    pub(crate) async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let (parts, body) = self.send(method, path, headers, body).await.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.expect("no end").unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { code: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }

    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Answer {
        self.call("GET", path, &[("authorization", &format!("Bearer {token}"))], "").await
    }

    /// A TokenRequest for a service account of `team-a`.
    pub(crate) async fn token(&self, account: &str, body: &Value) -> Answer {
        let path = format!("/api/v1/namespaces/team-a/serviceaccounts/{account}/token");
        self.call("POST", &path, &[("content-type", "application/json")], &body.to_string()).await
    }

    pub(crate) async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, &[]).await
    }

    pub(crate) async fn watch_as(&self, path: &str, headers: &[(&str, &str)]) -> Watch {
        let response = self.send("GET", path, headers, "").await;
        assert_eq!(response.status(), StatusCode::OK);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// Waits until so many watches are open.
    pub(crate) async fn watches_open(&self, count: usize) {
        eventually(|| self.kubernetes.open_watches().len() == count).await;
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// That it is a `Status` with this code, reason and message.
    #[track_caller]
    pub(crate) fn refuses(&self, code: u16, reason: &str, message: &str) {
        let status = self.json();
        assert_eq!(self.code.as_u16(), code, "{status}");
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["apiVersion"], "v1");
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["code"], code);
        assert_eq!(status["message"], message);
        assert_eq!(status["reason"].as_str().unwrap_or_default(), reason);
    }

    /// The names of a list's items, in order.
    #[track_caller]
    pub(crate) fn names(&self) -> Vec<String> {
        assert_eq!(self.code, StatusCode::OK, "{}", self.text);
        let list = self.json();
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Watch {
    /// The next line; `None` at an orderly end.
    pub(crate) async fn line(&mut self) -> Result<Option<String>, hyper::Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=end).collect::<Vec<_>>();
                return Ok(Some(String::from_utf8(line).unwrap()));
            }
            match timeout(PATIENCE, self.body.frame()).await.expect("silence") {
                Some(frame) => self.buffer.extend(frame?.into_data().unwrap()),
                None => return Ok(None),
            }
        }
    }

    pub(crate) async fn event(&mut self) -> Value {
        serde_json::from_str(&self.line().await.unwrap().expect("the watch ended")).unwrap()
    }

    /// The next event's type, and its object's name.
    pub(crate) async fn heard(&mut self) -> (String, String) {
        let event = self.event().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }

    /// That nothing comes for a while.
    pub(crate) async fn is_silent(&mut self) {
        let line = timeout(Duration::from_millis(300), self.line()).await;
        assert!(line.is_err(), "not silent: {line:?}");
    }
}

/// A pod of `web` on `node-a`.
pub(crate) fn pod(name: &str) -> NewPod {
    NewPod::new("team-a", name).service_account("web").node("node-a")
}

pub(crate) fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it did not come to pass");
}

/// What a token says, unverified.
pub(crate) fn claims(token: &str) -> Value {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}
