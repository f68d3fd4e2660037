//! An account with a provider and a role, the issuer, and STS, each behind TLS of one CA.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
use aws_sigv4::{
    http_request::{
        PercentEncodingMode, SessionTokenMode, SignableBody, SignableRequest, SignatureLocation, SigningParams,
        SigningSettings, sign,
    },
    sign::v4,
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use sandbox::{
    ca::Ca,
    clock,
    http::{Server, full},
    issuer::{DISCOVERY_PATH, Issuer, JWKS_PATH},
    sts::Sts,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) const ACCOUNT: &str = "111122223333";
pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/team/web";
pub(crate) const SUBJECT: &str = "system:serviceaccount:team-a:web";
pub(crate) const AUDIENCE: &str = "sts.amazonaws.com";
pub(crate) const ACTION: &str = "AssumeRoleWithWebIdentity";

/// What the issuer's server answers.
#[derive(Clone)]
pub(crate) struct Documents {
    pub(crate) status: StatusCode,
    /// Where the documents are said to have moved, and are.
    pub(crate) redirect: Option<String>,
    pub(crate) discovery: Value,
    pub(crate) jwks: Value,
}

pub(crate) struct World {
    pub(crate) sts: Sts,
    pub(crate) issuer: Issuer,
    pub(crate) documents: Arc<Mutex<Documents>>,
    pub(crate) address: SocketAddr,
    pub(crate) issuer_server: Option<Server>,
    ca: Arc<Ca>,
    _server: Server,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn tag(&self, name: &str) -> &str {
        let (_, rest) = self.body.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        rest.split_once("</").unwrap().0
    }

    /// Asserts that this is AWS's refusal, in its whole shape.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, code: &str, message: &str) {
        let id = self.headers.get("x-amzn-requestid").expect("x-amzn-requestid").to_str().unwrap();
        assert_eq!(self.headers["content-type"], "text/xml");
        assert!(self.headers.contains_key("date"));
        let namespace = match code {
            "InvalidAction" => "http://webservices.amazon.com/AWSFault/2005-15-09",
            _ => "https://sts.amazonaws.com/doc/2011-06-15/",
        };
        let kind = if status < 500 { "Sender" } else { "Receiver" };
        let expected = format!(
            "<ErrorResponse xmlns=\"{namespace}\">\n  <Error>\n    <Type>{kind}</Type>\n    <Code>{code}</Code>\n    \
             <Message>{message}</Message>\n  </Error>\n  <RequestId>{id}</RequestId>\n</ErrorResponse>\n"
        );
        assert_eq!((self.status.as_u16(), self.body.as_str()), (status, expected.as_str()));
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_issuer_ca(None).await
    }

    /// The issuer's certificate is signed by `other`, which STS does not trust.
    pub(crate) async fn with_issuer_ca(other: Option<Ca>) -> Self {
        let ca = Arc::new(Ca::new().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Issuer::new(format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let documents =
            Documents { status: StatusCode::OK, redirect: None, discovery: issuer.discovery(), jwks: issuer.jwks() };
        let documents = Arc::new(Mutex::new(documents));
        let serve = Arc::clone(&documents);
        let tls = other.as_ref().unwrap_or(&ca).server(&["127.0.0.1"]).unwrap();
        let issuer_server = Server::start(listener, Some(tls), move |request, _| {
            let documents = serve.lock().unwrap().clone();
            async move {
                let path = request.uri().path();
                if let Some(to) = documents.redirect.as_ref().filter(|_| !path.starts_with("/elsewhere")) {
                    let moved = Response::builder().status(StatusCode::FOUND).header("location", format!("{to}{path}"));
                    return moved.body(full("")).unwrap();
                }
                let (status, body) = match path.trim_start_matches("/elsewhere") {
                    DISCOVERY_PATH => (documents.status, documents.discovery.to_string()),
                    JWKS_PATH => (documents.status, documents.jwks.to_string()),
                    _ => (StatusCode::NOT_FOUND, String::new()),
                };
                let mut response = Response::new(full(body));
                *response.status_mut() = status;
                response
            }
        })
        .unwrap();

        let sts = Sts::new(ca.client().unwrap());
        sts.put_oidc_provider(ACCOUNT, issuer.url(), &[AUDIENCE]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let handler = sts.clone();
        let server = Server::start(listener, Some(ca.server(&["127.0.0.1"]).unwrap()), move |request, _| {
            let sts = handler.clone();
            async move { sts.handle(request).await }
        })
        .unwrap();
        let address = server.address();
        let world = Self { sts, issuer, documents, address, issuer_server: Some(issuer_server), ca, _server: server };
        world.sts.put_role(ROLE, world.trust(SUBJECT)).unwrap();
        world
    }

    /// A trust policy for tokens of this subject.
    pub(crate) fn trust(&self, subject: &str) -> Value {
        let name = self.issuer.url().strip_prefix("https://").unwrap();
        json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": { "Federated": format!("arn:aws:iam::{ACCOUNT}:oidc-provider/{name}") },
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": { "StringEquals": { format!("{name}:sub"): subject, format!("{name}:aud"): AUDIENCE } },
        }]})
    }

    /// Claims as the API server makes them.
    pub(crate) fn claims(&self) -> Value {
        let now = seconds(clock::now());
        json!({
            "iss": self.issuer.url(), "sub": SUBJECT, "aud": [AUDIENCE],
            "iat": now, "nbf": now, "exp": now + 600,
        })
    }

    pub(crate) fn token(&self) -> String {
        self.issuer.sign(&self.claims()).unwrap()
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The SDK's client, with these keys or without any.
    pub(crate) fn sdk(&self, credentials: Option<Credentials>) -> aws_sdk_sts::Client {
        self.sdk_with(credentials, RetryConfig::disabled())
    }

    pub(crate) fn sdk_with(&self, credentials: Option<Credentials>, retry: RetryConfig) -> aws_sdk_sts::Client {
        let trust = TrustStore::empty().with_pem_certificate(self.ca.pem());
        let http = Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(TlsContext::builder().with_trust_store(trust).build().unwrap())
            .build_https();
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(self.endpoint())
            .region(Region::from_static("eu-west-1"))
            .retry_config(retry)
            .http_client(http);
        config.set_credentials_provider(credentials.map(aws_sdk_sts::config::SharedCredentialsProvider::new));
        aws_sdk_sts::Client::from_conf(config.build())
    }

    /// Keys of the role, by the SDK.
    pub(crate) async fn keys(&self) -> Credentials {
        let sdk = self.sdk(None);
        let ask = sdk.assume_role_with_web_identity().role_arn(ROLE).role_session_name("s1");
        let keys = ask.web_identity_token(self.token()).send().await.unwrap().credentials.unwrap();
        keys_of(keys.access_key_id(), keys.secret_access_key(), keys.session_token())
    }

    /// A POST with these parameters.
    pub(crate) async fn post(&self, parameters: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        self.send(form(&self.endpoint(), body)).await
    }

    /// AssumeRoleWithWebIdentity with all that it needs, and then these instead (or, empty, left out).
    pub(crate) async fn assume(&self, token: &str, changes: &[(&str, Option<&str>)]) -> Answer {
        let usual = [
            ("Action", ACTION),
            ("Version", "2011-06-15"),
            ("RoleArn", ROLE),
            ("RoleSessionName", "s1"),
            ("WebIdentityToken", token),
        ];
        let mut parameters: Vec<_> =
            usual.into_iter().filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name)).collect();
        parameters.extend(changes.iter().filter_map(|(name, value)| Some((*name, (*value)?))));
        self.post(&parameters).await
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// Errors when the connection ends early.
    pub(crate) async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let tls = self.ca.client().unwrap();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let response = client.request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() })
    }
}

/// How a request of [`signed`] is signed.
#[derive(Clone)]
pub(crate) struct Signing {
    pub(crate) region: &'static str,
    pub(crate) service: &'static str,
    pub(crate) time: SystemTime,
    pub(crate) presigned: Option<Duration>,
    pub(crate) sign_token: bool,
}

impl Default for Signing {
    fn default() -> Self {
        let (region, service) = ("eu-west-1", "sts");
        Self { region, service, time: clock::now(), presigned: None, sign_token: true }
    }
}

/// `request`, signed by the SDK's own signer.
pub(crate) fn signed(
    mut request: Request<Full<Bytes>>,
    body: &str,
    keys: &Credentials,
    how: &Signing,
) -> Request<Full<Bytes>> {
    let identity = keys.clone().into();
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Double;
    if let Some(expires) = how.presigned {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(expires);
    }
    if !how.sign_token {
        settings.session_token_mode = SessionTokenMode::Exclude;
    }
    let params: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(how.region)
        .name(how.service)
        .time(how.time)
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let uri = request.uri().to_string();
    let method = request.method().to_string();
    let headers: Vec<_> =
        request.headers().iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let signable = SignableRequest::new(&method, uri, headers, SignableBody::Bytes(body.as_bytes())).unwrap();
    let (instructions, _) = sign(signable, &params).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    request
}

/// A POST of a form.
pub(crate) fn form(endpoint: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("{endpoint}/"))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A GET.
pub(crate) fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).unwrap()
}

pub(crate) fn keys_of(id: &str, secret: &str, token: &str) -> Credentials {
    Credentials::new(id, secret, Some(token.to_owned()), None, "test")
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}
