//! The EC2 instance metadata service of a node, as the real one answers; it holds the node's role.
//!
//! Rules: [EC2 user guide, "Use the Instance Metadata Service"][imds]; headers, bodies and redirects as
//! the real one (`EC2ws`) sends them. Not here: what needs a packet's hop count.
//!
//! [imds]: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html

mod tree;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, ext::ReasonPhrase};
use tokio::sync::watch;

use crate::{
    clock,
    http::{Body, full},
    sts::{InstanceCredentials, http_date, opaque_token},
};
use tree::{Found, Tree};

pub use tree::USER_DATA_SECRET;

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Six hours: the longest that a session token lives.
const LONGEST_TTL: u64 = 21600;

/// Whether a session token is needed (`HttpTokens` of an instance's metadata options).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpTokens {
    /// Requests without a token are served: IMDSv1 and v2.
    Optional,
    /// Requests without a token are refused: IMDSv2 only.
    Required,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImdsVersion {
    /// Without a session token.
    V1,
    /// For a session token, or with one.
    V2,
}

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImdsRequest {
    /// Who asked, where it is known.
    pub peer: Option<SocketAddr>,
    /// The method.
    pub method: Method,
    /// The path, as it was sent.
    pub path: String,
    /// How it came.
    pub version: ImdsVersion,
    /// The answer's status.
    pub status: StatusCode,
}

/// A node's metadata service. Clones are the same service.
#[derive(Clone)]
pub struct Imds(Arc<Inner>);

struct Inner {
    tree: Tree,
    credentials: Box<dyn Fn() -> InstanceCredentials + Send + Sync>,
    sessions: Mutex<HashMap<String, SystemTime>>,
    requests: Mutex<Vec<ImdsRequest>>,
    credential_requests: AtomicU64,
    tokens_required: AtomicBool,
    down: AtomicBool,
    latency: Mutex<Duration>,
    stalled: watch::Sender<bool>,
    started: SystemTime,
}

impl fmt::Debug for Imds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imds").field("credential_requests", &self.credential_requests()).finish_non_exhaustive()
    }
}

impl Imds {
    /// The service of a node in `region` whose instance profile holds the role of this name, with
    /// session tokens optional.
    pub fn new(
        role_name: &str,
        region: &str,
        credentials: impl Fn() -> InstanceCredentials + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            tree: Tree::new(role_name, region),
            credentials: Box::new(credentials),
            sessions: Mutex::default(),
            requests: Mutex::default(),
            credential_requests: AtomicU64::new(0),
            tokens_required: AtomicBool::new(false),
            down: AtomicBool::new(false),
            latency: Mutex::default(),
            stalled: watch::channel(false).0,
            started: clock::now(),
        }))
    }

    /// Answers one request of someone unknown.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.answer(request, None).await
    }

    /// Answers one request of `peer`.
    pub async fn handle_from(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        self.answer(request, Some(peer)).await
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<ImdsRequest> {
        locked(&self.0.requests).clone()
    }

    /// How often the node's credentials were handed out.
    #[must_use]
    pub fn credential_requests(&self) -> u64 {
        self.0.credential_requests.load(Ordering::Relaxed)
    }

    /// Whether a session token is needed from now on.
    pub fn set_http_tokens(&self, tokens: HttpTokens) {
        self.0.tokens_required.store(tokens == HttpTokens::Required, Ordering::Relaxed);
    }

    /// While down, every request is answered 503.
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Relaxed);
    }

    /// Every answer comes so much later.
    pub fn set_latency(&self, latency: Duration) {
        *locked(&self.0.latency) = latency;
    }

    /// While stalled, requests are read and not answered.
    pub fn stall(&self, stalled: bool) {
        self.0.stalled.send_replace(stalled);
    }

    /// Forgets all session tokens, as a stop and start of the instance does.
    pub fn forget_sessions(&self) {
        locked(&self.0.sessions).clear();
    }

    async fn answer(&self, request: Request<Incoming>, peer: Option<SocketAddr>) -> Response<Body> {
        let imds = &self.0;
        let latency = *locked(&imds.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        // The sender is ours: it cannot go away while we wait.
        let _ = imds.stalled.subscribe().wait_for(|stalled| !stalled).await;

        let (parts, _) = request.into_parts();
        let path = parts.uri.path();
        let mut response = imds.route(&parts.method, path, &parts.headers);
        let now = clock::now();
        let headers = response.headers_mut();
        headers.insert(header::SERVER, HeaderValue::from_static("EC2ws"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Ok(date) = HeaderValue::from_str(&http_date(now)) {
            headers.insert(header::DATE, date);
        }
        let v2 = parts.headers.contains_key(TOKEN) || parts.method == Method::PUT;
        let version = if v2 { ImdsVersion::V2 } else { ImdsVersion::V1 };
        let status = response.status();
        tracing::debug!(?peer, method = %parts.method, path, ?version, %status, "imds");
        locked(&imds.requests).push(ImdsRequest { peer, method: parts.method, path: path.to_owned(), version, status });
        response
    }
}

impl Inner {
    fn route(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        if self.down.load(Ordering::Relaxed) {
            return page(StatusCode::SERVICE_UNAVAILABLE);
        }
        let place: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        match place.as_slice() {
            ["latest", "api", "token"] => return self.token(method, headers),
            // Session tokens came after the dated versions were frozen.
            [version, "api", "token"] if tree::is_version(version) => return page(StatusCode::FORBIDDEN),
            _ => {}
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return not_allowed("GET, HEAD, OPTIONS");
        }
        let left = match self.session(headers) {
            Ok(left) => left,
            Err(status) => return page(status),
        };
        let mut response = match self.tree.find(&place, path.ends_with('/')) {
            Found::Nothing => page(StatusCode::NOT_FOUND),
            Found::Directory => moved(path),
            Found::Listing(text) => plain(text),
            Found::Leaf(leaf) => {
                let credentials = (self.credentials)();
                if leaf.is_secret() && method == Method::GET {
                    self.credential_requests.fetch_add(1, Ordering::Relaxed);
                }
                let mut response = plain(leaf.text(&credentials));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(leaf.content_type()));
                response
            }
        };
        if response.status() == StatusCode::OK {
            let headers = response.headers_mut();
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
            if let Ok(date) = HeaderValue::from_str(&http_date(self.started)) {
                headers.insert(header::LAST_MODIFIED, date);
            }
            if let Some(left) = left {
                headers.insert(TOKEN_TTL, left.as_secs().into());
            }
        }
        response
    }

    /// `PUT /latest/api/token`.
    fn token(&self, method: &Method, headers: &HeaderMap) -> Response<Body> {
        if method != Method::PUT {
            return not_allowed("OPTIONS, PUT");
        }
        // A proxy that was left open to the world must not fetch tokens for it.
        if headers.contains_key("x-forwarded-for") {
            return page(StatusCode::FORBIDDEN);
        }
        let ttl = headers.get(TOKEN_TTL).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=LONGEST_TTL).contains(ttl)) else {
            return page(StatusCode::BAD_REQUEST);
        };
        let token = opaque_token();
        locked(&self.sessions).insert(token.clone(), clock::now() + Duration::from_secs(ttl));
        let mut response = plain(token);
        response.headers_mut().insert(TOKEN_TTL, ttl.into());
        response
    }

    /// What is left of the request's session, if it has one.
    fn session(&self, headers: &HeaderMap) -> Result<Option<Duration>, StatusCode> {
        let Some(token) = headers.get(TOKEN) else {
            let required = self.tokens_required.load(Ordering::Relaxed);
            return if required { Err(StatusCode::UNAUTHORIZED) } else { Ok(None) };
        };
        let ends = token.to_str().ok().and_then(|token| locked(&self.sessions).get(token).copied());
        let left = ends.and_then(|ends| ends.duration_since(clock::now()).ok()).filter(|left| !left.is_zero());
        left.map(Some).ok_or(StatusCode::UNAUTHORIZED)
    }
}

fn plain(text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The page that the real one sends with every error.
fn page(status: StatusCode) -> Response<Body> {
    let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(full(format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
         <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
         \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
         <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

/// A directory without its slash.
fn moved(path: &str) -> Response<Body> {
    let mut response = page(StatusCode::MOVED_PERMANENTLY);
    if let Ok(to) = HeaderValue::from_str(&format!("http://169.254.169.254{path}/")) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

fn not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = plain(String::new());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response.extensions_mut().insert(ReasonPhrase::from_static(b"Not Allowed"));
    response
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
