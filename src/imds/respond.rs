//! The answer to one request.
//!
//! Owns the time budget of a request and what each outcome looks like to an SDK. Bodies of errors are empty: CRT would
//! take one for a role's name.
//!
//! A request's future is moved several times before it is first polled. So whatever waits has its state in a box, which a
//! request that finds all there never makes.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, SERVER, USER_AGENT},
    request,
};
use http_body_util::Full;
use tokio::time::Instant;

use super::{
    facts::{Fact, Facts},
    passage::Passage,
    pods::{Pods, granted},
    route::{Route, route},
    session::{Issued, LONGEST_TTL_SECONDS, SessionKeys},
    upstream::Page,
};
use crate::{
    clock,
    credentials::{
        Outcome,
        document::{self, Form},
        slot::Failure,
    },
    identity::{Caller, Grant, Peer, Role, Unidentified},
    metrics::{Metrics, RequestKind},
};

/// From a request's arrival to its answer: most SDKs leave after one second.
pub(super) const BUDGET: Duration = Duration::from_millis(900);

// Names that are parsed once, not with each request.
static TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
static TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
pub(super) const EC2: HeaderValue = HeaderValue::from_static("EC2ws");

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
pub struct Close;

/// The metadata service of this node's pods.
#[derive(Debug)]
pub struct Imds {
    pods: Pods,
    keys: Arc<ArcSwap<SessionKeys>>,
    facts: Facts,
    passage: Option<Passage>,
    require_imdsv2: bool,
    metrics: Arc<Metrics>,
}

/// An answer in the making.
enum Answer {
    Empty(StatusCode),
    Text(Bytes),
    Page(Page),
    Token { token: String, ttl: u64 },
    OnlyPut,
}

impl Imds {
    /// Answers for these pods. With `require_imdsv2` all of them must bring a session token, else those of which that
    /// is said.
    #[must_use]
    pub fn new(
        pods: Pods,
        keys: Arc<ArcSwap<SessionKeys>>,
        facts: Facts,
        passage: Option<Passage>,
        require_imdsv2: bool,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { pods, keys, facts, passage, require_imdsv2, metrics }
    }

    /// The answer to a request from `peer`, by `deadline`. No request's body means anything.
    ///
    /// # Errors
    /// When the connection is to be closed instead.
    pub async fn respond(
        &self,
        head: &request::Parts,
        peer: &Peer,
        deadline: Instant,
    ) -> Result<Response<Full<Bytes>>, Close> {
        let mut route = route(head.uri.path());
        if route == Route::Other
            && head.method == Method::GET
            && let Some(path) = self.passage.as_ref().and_then(|passage| passage.judge(head.uri.path()))
        {
            route = Route::Allowed(path);
        }
        let kind = match route {
            Route::Token | Route::DatedToken => RequestKind::Token,
            Route::RoleName => RequestKind::RoleName,
            Route::RoleDocument(_) => RequestKind::RoleDocument,
            Route::Iam | Route::IamInfo | Route::Node(_) | Route::Folder(_) => RequestKind::Node,
            Route::Allowed(_) => RequestKind::Allowed,
            Route::Other => RequestKind::Other,
        };
        let answer = match (&head.method, route) {
            (&Method::PUT, Route::Token) => self.token(&head.headers, peer),
            (_, Route::DatedToken) => Answer::Empty(StatusCode::FORBIDDEN),
            (_, Route::Token) => Answer::OnlyPut,
            (&Method::GET | &Method::HEAD, route) => match self.session(&head.headers, peer) {
                Ok(session) => self.get(route, session, peer, deadline).await,
                Err(answer) => answer,
            },
            _ => Answer::Empty(StatusCode::NOT_FOUND),
        };
        let response = answer.into_response();
        self.metrics.answered(kind, response.status());
        // CRT aborts its process on nearly any document that it cannot use, but takes a closed connection for an
        // error.
        if kind == RequestKind::RoleDocument && response.status() != StatusCode::OK && is_crt(&head.headers) {
            return Err(Close);
        }
        Ok(response)
    }

    /// `PUT /latest/api/token`: at once, whoever asks.
    fn token(&self, headers: &HeaderMap, peer: &Peer) -> Answer {
        if headers.contains_key(&FORWARDED_FOR) {
            return Answer::Empty(StatusCode::FORBIDDEN);
        }
        let digits = |ttl: &&str| ttl.bytes().all(|byte| byte.is_ascii_digit());
        let ttl = headers.get(&TOKEN_TTL).and_then(|ttl| ttl.to_str().ok().filter(digits)?.parse().ok());
        match ttl.filter(|ttl| (1..=LONGEST_TTL_SECONDS).contains(ttl)) {
            Some(ttl) => Answer::Token { token: self.keys.load().issue(peer, clock::now().unix_seconds(), ttl), ttl },
            None => Answer::Empty(StatusCode::BAD_REQUEST),
        }
    }

    /// When the request's session token was issued, if it has one. One that is not good is an error.
    fn session(&self, headers: &HeaderMap, peer: &Peer) -> Result<Option<Issued>, Answer> {
        let Some(token) = headers.get(&TOKEN) else {
            self.metrics.requests_without_session.inc();
            return if self.require_imdsv2 { Err(self.no_token()) } else { Ok(None) };
        };
        match self.keys.load().verify(token.as_bytes(), peer, clock::now().unix_seconds()) {
            Some(issued) => Ok(Some(issued)),
            None => Err(self.bad_token()),
        }
    }

    fn no_token(&self) -> Answer {
        self.metrics.refused_without_session.inc();
        Answer::Empty(StatusCode::UNAUTHORIZED)
    }

    fn bad_token(&self) -> Answer {
        self.metrics.bad_session_tokens.inc();
        Answer::Empty(StatusCode::UNAUTHORIZED)
    }

    async fn get(&self, route: Route<'_>, session: Option<Issued>, peer: &Peer, deadline: Instant) -> Answer {
        match route {
            Route::RoleName => self.credentials(None, session, peer, deadline).await,
            Route::RoleDocument(name) => self.credentials(Some(&name), session, peer, deadline).await,
            Route::Iam | Route::IamInfo | Route::Node(_) => match (self.caller(session, peer, deadline).await, route) {
                (Err(answer), _) => answer,
                (Ok(_), Route::Node(fact)) => self.of_node(fact, deadline).await,
                (Ok(caller), route) => of_role(&caller.roles.main, route),
            },
            Route::Allowed(path) => match self.caller(session, peer, deadline).await {
                Ok(_) => self.passed(path, peer, deadline).await,
                Err(answer) => answer,
            },
            // What is the same for all is not waited for.
            Route::Folder(_) | Route::Other
                if let Some(caller) = self.pods.identified(peer)
                    && let Err(answer) = self.judge(session, &caller) =>
            {
                answer
            }
            Route::Folder(content) => Answer::Text(Bytes::from_static(content.as_bytes())),
            Route::Token | Route::DatedToken | Route::Other => Answer::Empty(StatusCode::NOT_FOUND),
        }
    }

    /// Who asks.
    async fn caller(&self, session: Option<Issued>, peer: &Peer, deadline: Instant) -> Result<Arc<Caller>, Answer> {
        let identified = match self.pods.identified(peer) {
            Some(caller) => Ok(caller),
            None => Box::pin(self.pods.identify(peer, deadline)).await,
        };
        let caller = identified.map_err(|why| {
            Answer::Empty(match why {
                Unidentified::Nobody | Unidentified::LinkLocal | Unidentified::HostProcess => StatusCode::NOT_FOUND,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            })
        })?;
        self.judge(session, &caller).map(|()| caller)
    }

    /// Whether the session, or that there is none, is good for this pod.
    fn judge(&self, session: Option<Issued>, caller: &Caller) -> Result<(), Answer> {
        match session {
            // Older than the pod that holds the address now: a token of the pod that held it before.
            Some(Issued(issued)) if issued < caller.pod.started => Err(self.bad_token()),
            None if caller.require_imdsv2 => Err(self.no_token()),
            Some(_) | None => Ok(()),
        }
    }

    async fn of_node(&self, fact: Fact, deadline: Instant) -> Answer {
        match Box::pin(self.facts.get(fact, deadline)).await {
            Ok(Some(text)) => Answer::Text(text),
            Ok(None) => Answer::Empty(StatusCode::NOT_FOUND),
            Err(_) => Answer::Empty(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    async fn passed(&self, path: String, peer: &Peer, deadline: Instant) -> Answer {
        let Some(passage) = &self.passage else { return Answer::Empty(StatusCode::NOT_FOUND) };
        match Box::pin(passage.read(path, peer, deadline)).await {
            Ok(Some(page)) => Answer::Page(page),
            Ok(None) => Answer::Empty(StatusCode::NOT_FOUND),
            Err(why) => {
                self.metrics.not_passed.with_label_values(&[why.label()]).inc();
                Answer::Empty(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    }

    /// The document of the role with this name; without one, the name of the main role.
    async fn credentials(&self, name: Option<&str>, session: Option<Issued>, peer: &Peer, deadline: Instant) -> Answer {
        loop {
            let caller = match self.caller(session, peer, deadline).await {
                Ok(caller) => caller,
                Err(answer) => return answer,
            };
            let found = self.pods.credentials(&caller, name, Form::Metadata, peer, deadline).await;
            let (grant, outcome) = match found {
                Some(Ok(found)) => found,
                Some(Err(why)) => return Answer::Empty(why.status()),
                None => continue,
            };
            return match (outcome, name) {
                (Outcome::Document(document), Some(_)) => Answer::Text(document),
                // The name is given in time even if the exchange takes longer: SDKs ask for the document next.
                (Outcome::Document(_) | Outcome::Pending, None) => role_name(grant),
                (Outcome::Failed(Failure::Permanent), None) => Answer::Empty(StatusCode::FORBIDDEN),
                (Outcome::Failed(Failure::Transient | Failure::Throttled) | Outcome::Gone, None) => {
                    Answer::Empty(StatusCode::SERVICE_UNAVAILABLE)
                }
                (_, Some(_)) => Answer::Empty(StatusCode::SERVICE_UNAVAILABLE),
            };
        }
    }
}

/// What stands beside a role's credentials. It is made of the role, never of the node's instance profile.
fn of_role(role: &Role, route: Route<'_>) -> Answer {
    let text = match granted(role) {
        Err(why) => return Answer::Empty(why.status()),
        Ok(_) if route == Route::Iam => Some("info\nsecurity-credentials/".to_owned()),
        Ok(grant) => document::instance_profile(grant.role(), clock::now()),
    };
    text.map_or(Answer::Empty(StatusCode::NOT_FOUND), |text| Answer::Text(text.into()))
}

fn role_name(grant: &Grant) -> Answer {
    Answer::Text(Bytes::copy_from_slice(grant.role().name().as_bytes()))
}

fn is_crt(headers: &HeaderMap) -> bool {
    headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"aws-sdk-crt/"))
}

// === impl Answer ===

impl Answer {
    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = match self {
            Self::Empty(status) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = status;
                response
            }
            Self::Text(body) => {
                let mut response = Response::new(Full::new(body));
                response.headers_mut().insert(CONTENT_TYPE, TEXT);
                response
            }
            Self::Page(Page { content_type, body }) => {
                let mut response = Response::new(Full::new(body));
                response.headers_mut().insert(CONTENT_TYPE, content_type.unwrap_or(TEXT));
                response
            }
            Self::Token { token, ttl } => {
                let mut response = Response::new(Full::new(token.into()));
                response.headers_mut().insert(CONTENT_TYPE, TEXT);
                response.headers_mut().insert(&TOKEN_TTL, ttl.into());
                response
            }
            Self::OnlyPut => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("OPTIONS, PUT"));
                response
            }
        };
        response.headers_mut().insert(SERVER, EC2);
        response
    }
}
