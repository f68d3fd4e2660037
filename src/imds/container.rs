//! The container credentials endpoint, as pods see it that set `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials`.
//!
//! Owns its paths, who may ask (the address, the `Host` header, the token in `Authorization` where there is one), and
//! what each outcome looks like to an SDK: a status and `{"code":"…","message":"…"}`. There is one request here and no
//! list before it, so an exchange that takes longer than the budget is 503: SDKs try again. (CRT, which the metadata
//! service has to close its connection for, takes an error here for an error.)
//! Invariant: a token that is shown must be the pod's own; the address alone is enough where none is.
//!
//! Source: [Container credential provider](https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html).

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST},
    request,
};
use http_body_util::Full;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    pods::{Pods, Unentitled},
    route::decode,
};
use crate::{
    clock,
    credentials::{Outcome, document::Form, slot::Failure},
    identity::{Caller, Peer, Unidentified},
    metrics::{Metrics, RequestKind},
    token::{keys::Keys, presented::Refused},
};

/// The audience of the tokens that EKS Pod Identity brings pods.
const POD_IDENTITY: &str = "pods.eks.amazonaws.com";
const SCHEME: &str = "Bearer ";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD");
const HTTP: u16 = 80;

/// The container credentials endpoint of this node's pods.
#[derive(Debug)]
pub struct Container {
    pods: Pods,
    keys: Arc<Keys>,
    audiences: [String; 2],
    require_token: bool,
    /// By which it is known.
    addresses: Arc<[IpAddr]>,
    metrics: Arc<Metrics>,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    /// The main role's credentials.
    Main,
    /// Those of the role that goes by this name.
    Named(Cow<'a, str>),
}

/// Why there are no credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// No `Host` header, or more than one.
    NoHost,
    /// A `Host` that is not ours: some page's name that was made to lead here.
    AnotherHost,
    NoSuchPath,
    OnlyRead,
    /// None is shown, and one must be.
    NoToken,
    Unauthorized(Refused),
    Unidentified(Unidentified),
    Unentitled(Unentitled),
    Pending,
    Failed(Failure),
    Gone,
}

/// Whether the path is one of this endpoint's, for connections that do not say which service they mean.
#[must_use]
pub fn is_path(path: &str) -> bool {
    path.split('/').find(|segment| !segment.is_empty()) == Some("v1")
}

/// `/v1/credentials` and `/v1/credentials/<name>`, with slashes as the metadata service takes them.
fn wanted(path: &str) -> Option<Wanted<'_>> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    match (segments.next(), segments.next(), segments.next(), segments.next()) {
        (Some("v1"), Some("credentials"), None, None) => Some(Wanted::Main),
        (Some("v1"), Some("credentials"), Some(name), None) => decode(name.as_bytes()).map(Wanted::Named),
        _ => None,
    }
}

impl Container {
    /// Answers for these pods at these addresses. A token that is shown must be for `audience`, or for that of EKS Pod
    /// Identity. With `require_token` all of them must show one, else those that must bring the metadata service a
    /// session token: who can make a pod send no more than a path must not get its credentials.
    #[must_use]
    pub fn new(
        pods: Pods,
        keys: Arc<Keys>,
        audience: String,
        require_token: bool,
        addresses: Arc<[IpAddr]>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { pods, keys, audiences: [audience, POD_IDENTITY.to_owned()], require_token, addresses, metrics }
    }

    /// The answer to a request from `peer`, by `deadline`. `own`: the address that the connection came to, where it was
    /// not redirected.
    pub async fn respond(
        &self,
        head: &request::Parts,
        peer: &Peer,
        own: Option<SocketAddr>,
        deadline: Instant,
    ) -> Response<Full<Bytes>> {
        let wanted = wanted(head.uri.path());
        let kind = if wanted.is_some() { RequestKind::ContainerCredentials } else { RequestKind::Other };
        let found = match self.host(head, own).and_then(|()| wanted.ok_or(Problem::NoSuchPath)) {
            Ok(_) if !matches!(head.method, Method::GET | Method::HEAD) => Err(Problem::OnlyRead),
            Ok(wanted) => self.credentials(&wanted, &head.headers, peer, deadline).await,
            Err(problem) => Err(problem),
        };
        if let Err(problem) = &found
            && let Some(reason) = problem.refusal()
        {
            self.metrics.refused_container_requests.with_label_values(&[reason]).inc();
            tracing::debug!(%peer, reason, "refused at the container endpoint");
        }
        let response = match found {
            Ok(document) => json(StatusCode::OK, document),
            Err(problem) => problem.into_response(),
        };
        self.metrics.answered(kind, response.status());
        response
    }

    /// A page of the Internet can make a browser in a pod ask here, but not by our name.
    fn host(&self, head: &request::Parts, own: Option<SocketAddr>) -> Result<(), Problem> {
        let mut hosts = head.headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Problem::NoHost) };
        let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let ours = |host: &[u8]| {
            address(host)
                .is_some_and(|host| host.port() == HTTP && self.addresses.contains(&host.ip()) || own == Some(host))
        };
        if ours(host.as_bytes()) && authority.is_none_or(ours) { Ok(()) } else { Err(Problem::AnotherHost) }
    }

    async fn credentials(
        &self,
        wanted: &Wanted<'_>,
        headers: &HeaderMap,
        peer: &Peer,
        deadline: Instant,
    ) -> Result<Bytes, Problem> {
        let name = match wanted {
            Wanted::Main => None,
            Wanted::Named(name) => Some(name.as_ref()),
        };
        loop {
            let caller = self.pods.identify(peer, deadline).await.map_err(Problem::Unidentified)?;
            self.authorize(headers, &caller, deadline).await?;
            // Keys may have been waited for.
            if !self.pods.still(&caller, peer) {
                if Instant::now() >= deadline {
                    return Err(Problem::Gone);
                }
                tokio::task::yield_now().await;
                continue;
            }
            let found = self.pods.credentials(&caller, name, Form::Container, peer, deadline).await;
            let outcome = match found {
                Some(found) => found.map_err(Problem::Unentitled)?.1,
                None => continue,
            };
            return match outcome {
                Outcome::Document(document) => Ok(document),
                Outcome::Pending => Err(Problem::Pending),
                Outcome::Failed(failure) => Err(Problem::Failed(failure)),
                Outcome::Gone => Err(Problem::Gone),
            };
        }
    }

    /// Whether the token that is shown is the caller's own, or none is and none need be.
    async fn authorize(&self, headers: &HeaderMap, caller: &Caller, deadline: Instant) -> Result<(), Problem> {
        let mut tokens = headers.get_all(AUTHORIZATION).iter();
        match (tokens.next(), tokens.next()) {
            (None, _) if self.require_token || caller.require_imdsv2 => Err(Problem::NoToken),
            (None, _) => Ok(()),
            (Some(token), None) => self.check(token, caller, deadline).await.map_err(Problem::Unauthorized),
            (Some(_), Some(_)) => Err(Problem::Unauthorized(Refused::Form)),
        }
    }

    async fn check(&self, token: &HeaderValue, caller: &Caller, deadline: Instant) -> Result<(), Refused> {
        let token = token.to_str().map_err(|_| Refused::Form)?.trim();
        let token = match token.split_at_checked(SCHEME.len()) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_start(),
            _ => token,
        };
        let shown = self.keys.verify(token, deadline).await?;
        shown.check(caller, &self.audiences, clock::now())
    }
}

/// The address that a `Host` header names, if it names one.
fn address(host: &[u8]) -> Option<SocketAddr> {
    let host = str::from_utf8(host).ok()?;
    let in_brackets = || host.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let alone = || host.parse().map(IpAddr::V4).ok().or_else(|| in_brackets().map(IpAddr::V6));
    host.parse().ok().or_else(|| alone().map(|address| SocketAddr::new(address, HTTP)))
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

// === impl Problem ===

impl Problem {
    /// Why the request was refused whoever it came from, as a metric's label.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self::NoHost | Self::AnotherHost => Some("host"),
            Self::NoToken => Some("no_token"),
            Self::Unauthorized(refused) => Some(refused.label()),
            _ => None,
        }
    }

    /// What the pod is told: the kind of failure, nothing of the role. The operator is told why.
    fn told(self) -> (StatusCode, &'static str, Cow<'static, str>) {
        let operator = "; the log of kube2irsa on this node says why";
        match self {
            Self::NoHost => (StatusCode::BAD_REQUEST, "InvalidHost", "there must be one Host header".into()),
            Self::AnotherHost => (StatusCode::FORBIDDEN, "InvalidHost", "the Host header names another server".into()),
            Self::NoSuchPath => {
                (StatusCode::NOT_FOUND, "NotFound", "the paths are /v1/credentials and /v1/credentials/<name>".into())
            }
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "TokenRequired",
                "an Authorization header with the pod's token is needed".into(),
            ),
            Self::OnlyRead => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "use GET or HEAD".into()),
            Self::Unauthorized(Refused::NoKeys) => {
                (StatusCode::SERVICE_UNAVAILABLE, "KeysUnavailable", Refused::NoKeys.to_string().into())
            }
            Self::Unauthorized(refused) => (StatusCode::UNAUTHORIZED, "InvalidToken", refused.to_string().into()),
            Self::Unidentified(Unidentified::Nobody | Unidentified::HostProcess) => {
                (StatusCode::NOT_FOUND, "UnknownCaller", "the request comes from no pod of this node".into())
            }
            Self::Unidentified(Unidentified::LinkLocal) => (
                StatusCode::NOT_FOUND,
                "LinkLocalCaller",
                "the request comes from a link-local address, which is no pod's; in a cluster of IPv6 ask over IPv6"
                    .into(),
            ),
            Self::Unidentified(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "CallerNotKnownYet",
                "which pod the request comes from is not known now; try again".into(),
            ),
            Self::Unentitled(why) => match why {
                Unentitled::NoRole => (why.status(), "NoRole", "the pod's service account has no such role".into()),
                Unentitled::Invalid => (
                    why.status(),
                    "InvalidRole",
                    format!("the service account's annotations cannot be meant, or a role is not permitted{operator}")
                        .into(),
                ),
                Unentitled::NotKnown => {
                    (why.status(), "RoleNotKnownYet", "the pod's service account is not known now; try again".into())
                }
            },
            Self::Pending | Self::Gone => (
                StatusCode::SERVICE_UNAVAILABLE,
                "CredentialsPending",
                "the credentials are still being fetched; try again".into(),
            ),
            Self::Failed(Failure::Permanent) => {
                (StatusCode::FORBIDDEN, "CredentialsRefused", format!("the credentials were refused{operator}").into())
            }
            Self::Failed(Failure::Transient | Failure::Throttled) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "CredentialsUnavailable",
                "the credentials cannot be fetched now; try again".into(),
            ),
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Told<'a> {
            code: &'a str,
            message: &'a str,
        }
        let (status, code, message) = self.told();
        let body = serde_json::to_vec(&Told { code, message: &message }).unwrap_or_default();
        let mut response = json(status, body.into());
        if self == Self::OnlyRead {
            response.headers_mut().insert(ALLOW, METHODS);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_are_two_and_a_name_is_one_segment() {
        for path in ["/v1/credentials", "/v1/credentials/", "//v1//credentials"] {
            assert_eq!(wanted(path), Some(Wanted::Main), "{path}");
        }
        for (path, name) in [("/v1/credentials/prod", "prod"), ("/v1/credentials/a%40b/", "a@b")] {
            assert_eq!(wanted(path), Some(Wanted::Named(name.into())), "{path}");
        }
        for path in [
            "/",
            "/v1",
            "/v2/credentials",
            "/v1/credentials/prod/x",
            "/v1/credentials/%zz",
            "/V1/credentials",
            "/v1/credentialsx",
            "/latest/meta-data/iam/security-credentials/",
            "/latest/../v1/credentials",
        ] {
            assert_eq!(wanted(path), None, "{path}");
        }
        assert!(is_path("//v1/anything") && !is_path("/latest/v1") && !is_path("/v11"));
    }

    #[test]
    fn a_host_is_an_address_with_or_without_a_port() {
        for (host, expected) in [
            ("169.254.170.2", Some("169.254.170.2:80")),
            ("169.254.170.2:80", Some("169.254.170.2:80")),
            ("169.254.170.2:8080", Some("169.254.170.2:8080")),
            ("[fd00:ec2::23]", Some("[fd00:ec2::23]:80")),
            ("[fd00:ec2::23]:80", Some("[fd00:ec2::23]:80")),
            ("fd00:ec2::23", None),
            ("169.254.170.2.example.com", None),
            ("localhost", None),
            ("169.254.170.2:", None),
            ("user@169.254.170.2", None),
            (" 169.254.170.2", None),
            ("2852039170", None),
            ("0xa9.254.170.2", None),
            ("", None),
        ] {
            assert_eq!(address(host.as_bytes()), expected.map(|address| address.parse().unwrap()), "{host}");
        }
    }
}
