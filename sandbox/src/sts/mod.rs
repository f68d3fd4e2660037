//! The Security Token Service, as strict as the real one.
//!
//! It verifies what AWS verifies and answers in AWS's words: `AssumeRoleWithWebIdentity` against the
//! issuer's own documents and the role's trust policy; `AssumeRole` and `GetCallerIdentity` against the signature of a
//! key that it handed out, the former also against the policies of both roles. Roles and OIDC providers are put in from
//! outside, as with IAM. Other operations are denied to everybody.
//!
//! What the real one does and this one does not: session policies, and tags in a token (refused); the limit of their
//! packed size; a limit of rate of its own (see [`Faults`]). An issuer's URL may hold a port, which IAM would not accept.

mod account;
mod answers;
mod assume_role;
mod faults;
mod issuers;
mod policy;
mod query;
mod random;
mod sigv4;
mod token;
mod web_identity;

use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use rustls::ClientConfig;
use serde_json::Value;

pub use account::{IamError, InstanceCredentials, Role};
pub use faults::{Fault, Faults, Which};

pub(crate) use answers::{Refusal, escape, http_date, timestamp};
pub(crate) use query::Parameters;
pub(crate) use random::{hex, opaque_token, request_id, unique_id};
pub(crate) use sigv4::Service;

use account::{Accounts, RoleArn, Session};
use answers::{Answer, Element};
use issuers::Issuers;
use policy::{Context, Verdict};
use sigv4::Signature;

use crate::http::{Body, full};

/// The version of the API, and the only one.
const VERSION: &str = "2011-06-15";
/// The largest body that the query protocol takes.
const LARGEST_BODY: usize = 10_000_000;
/// What STS can do besides; here nobody may.
const DENIED: [&str; 6] = [
    "AssumeRoot",
    "DecodeAuthorizationMessage",
    "GetAccessKeyInfo",
    "GetFederationToken",
    "GetSessionToken",
    "GetWebIdentityToken",
];

/// One request that was answered (or would have been).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The operation; empty if none was named.
    pub action: String,
    /// The role that was asked for.
    pub role: Option<String>,
    /// The name of the session that was asked for.
    pub session_name: Option<String>,
    /// `Success`, or AWS's error code; of a connection that was cut: `Cut`.
    pub outcome: &'static str,
    /// The keys that were given, if any were.
    pub access_key_id: Option<String>,
    /// The id that the answer names.
    pub request_id: String,
    /// When it was answered.
    pub at: Instant,
}

/// A Security Token Service with IAM's roles and OIDC providers. Clones are the same service.
#[derive(Clone)]
pub struct Sts(Arc<Inner>);

struct Inner {
    accounts: Mutex<Accounts>,
    issuers: Issuers,
    faults: Faults,
    max_life: Mutex<Option<Duration>>,
    calls: Mutex<Calls>,
    in_flight: InFlight,
}

/// What a role's permissions policy says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Yes.
    Allowed,
    /// No.
    Denied {
        /// In so many words.
        explicitly: bool,
    },
}

/// How many calls are being answered, and how many were at most.
#[derive(Default)]
struct InFlight {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One of them, until it is dropped: a caller may leave before it is answered.
struct Flight<'a>(&'a InFlight);

#[derive(Default)]
struct Calls {
    all: Vec<Call>,
    by_action: HashMap<String, u64>,
}

impl fmt::Debug for Sts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sts").field("calls", &locked(&self.0.calls).all.len()).finish_non_exhaustive()
    }
}

impl Sts {
    /// A service without roles that trusts `trust` when it fetches issuers' documents.
    #[must_use]
    pub fn new(trust: ClientConfig) -> Self {
        Self::resolving(trust, [])
    }

    /// The same, which resolves these names by itself: what is outside has no DNS.
    #[must_use]
    pub fn resolving(trust: ClientConfig, names: impl IntoIterator<Item = (String, IpAddr)>) -> Self {
        Self(Arc::new(Inner {
            accounts: Mutex::default(),
            issuers: Issuers::new(trust, names.into_iter().collect()),
            faults: Faults::default(),
            max_life: Mutex::default(),
            calls: Mutex::default(),
            in_flight: InFlight::default(),
        }))
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let sts = &self.0;
        let _flight = sts.in_flight.begin();
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            return response;
        };
        let body = body.to_bytes();
        let parameters = Parameters::of(&parts, &body);
        sts.faults.delay().await;
        let fault = sts.faults.next(parameters.get("Action").unwrap_or_default());
        let answer = match fault.and_then(Fault::refusal) {
            Some(refusal) => Answer::Refused(refusal),
            None => sts.answer(&parts, &body, &parameters).await,
        };
        let cut = fault == Some(Fault::Cut);
        let request_id = request_id();
        sts.log(&parameters, if cut { "Cut" } else { answer.outcome() }, answer.text("AccessKeyId"), &request_id);
        if parameters.get("Action") == Some("AssumeRoleWithWebIdentity") {
            sts.faults.pass_gate().await;
        }
        let response = answer.response(sts.faults.now(), &request_id);
        if cut { cut_off(response).await } else { response }
    }

    /// Puts an OIDC provider into IAM: `client_ids` are the audiences that its tokens may have.
    ///
    /// # Errors
    /// When the issuer's URL is not acceptable to IAM.
    pub fn put_oidc_provider(&self, account: &str, issuer_url: &str, client_ids: &[&str]) -> Result<(), IamError> {
        self.0.accounts().put_provider(account, issuer_url, client_ids)
    }

    /// Takes an OIDC provider out of IAM.
    pub fn delete_oidc_provider(&self, account: &str, issuer_url: &str) {
        self.0.accounts().delete_provider(account, issuer_url);
    }

    /// Puts a role into IAM, or replaces it; its sessions last an hour at most.
    ///
    /// # Errors
    /// When IAM would refuse the role, or when its trust policy uses what this sandbox does not know.
    pub fn put_role(&self, role_arn: &str, trust_policy: Value) -> Result<(), IamError> {
        self.put_role_with(&Role::new(role_arn, trust_policy))
    }

    /// The same, with all that a role has.
    ///
    /// # Errors
    /// As [`Self::put_role`].
    pub fn put_role_with(&self, role: &Role) -> Result<(), IamError> {
        self.0.accounts().put_role(role)
    }

    /// Gives a role another permissions policy; it is in force at once, also for keys that were given before.
    ///
    /// # Errors
    /// When IAM would refuse the policy, or there is no such role.
    pub fn put_permissions(&self, role_arn: &str, permissions: &Value) -> Result<(), IamError> {
        self.0.accounts().put_permissions(role_arn, permissions)
    }

    /// Takes a role out of IAM; the keys that it gave stay good.
    pub fn delete_role(&self, role_arn: &str) {
        self.0.accounts().delete_role(role_arn);
    }

    /// What EC2 hands to an instance for its role: keys for six hours, the same until three are left.
    /// Their ARN is `assumed-role/<role>/<instance>`.
    #[must_use]
    pub fn instance_credentials(&self, role_arn: &str, instance_id: &str) -> InstanceCredentials {
        let now = self.0.faults.now();
        self.0.accounts().instance(role_arn, instance_id, now)
    }

    /// The ARN of who signed a request to S3, for a bucket of this region.
    ///
    /// # Errors
    /// In STS's words, why nobody did.
    pub(crate) fn s3_caller(&self, region: &'static str, parts: &Parts, body: &[u8]) -> Result<String, Refusal> {
        self.0.caller(Service::S3 { region }, parts, body).map(|session| session.arn.clone())
    }

    /// The ARN of who signed a request to a service, and what the permissions policy of its role says of doing `action` to
    /// `resource`. A role that is not in IAM is permitted nothing.
    ///
    /// # Errors
    /// In STS's words, why nobody signed it.
    pub(crate) fn permission(
        &self,
        service: Service,
        parts: &Parts,
        body: &[u8],
        action: &str,
        resource: &str,
    ) -> Result<(String, Permission), Refusal> {
        let caller = self.0.caller(service, parts, body)?;
        let role = self.0.accounts().role(caller.role.as_str());
        let verdict = role.map_or(Verdict::Silent, |role| {
            role.permissions.verdict(action, resource, &caller.context(Context::default()))
        });
        let permission = match verdict {
            Verdict::Allows => Permission::Allowed,
            verdict => Permission::Denied { explicitly: verdict == Verdict::Denies },
        };
        Ok((caller.arn.clone(), permission))
    }

    /// The dials of what goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Every key that was ever handed out is unknown from now on.
    pub fn revoke_all_keys(&self) {
        self.0.accounts().revoke_all();
    }

    /// Issuers' keys are fetched anew for the next token, as when STS's cache of them is over.
    pub fn forget_issuer_keys(&self) {
        self.0.issuers.forget();
    }

    /// How many times an issuer's documents were fetched.
    #[must_use]
    pub fn issuer_fetches(&self) -> u64 {
        self.0.issuers.fetches()
    }

    /// All calls so far, in the order of their verdicts.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        locked(&self.0.calls).all.clone()
    }

    /// How many calls of `action` there were, whatever came of them.
    #[must_use]
    pub fn call_count(&self, action: &str) -> u64 {
        locked(&self.0.calls).by_action.get(action).copied().unwrap_or_default()
    }

    /// How many calls were being answered at the same time, at most.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.0.in_flight.most.load(Ordering::Relaxed)
    }

    /// Sessions live no longer than this, whatever was asked for and granted. A test's dial: the real
    /// STS opens no session shorter than 15 minutes.
    pub fn set_max_life(&self, life: Option<Duration>) {
        *locked(&self.0.max_life) = life;
    }
}

impl InFlight {
    fn begin(&self) -> Flight<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Flight(self)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        locked(&self.accounts)
    }

    fn max_life(&self) -> Option<Duration> {
        *locked(&self.max_life)
    }

    async fn answer(&self, parts: &Parts, body: &[u8], parameters: &Parameters) -> Answer {
        if parts.uri.path() != "/" || !matches!(parts.method, Method::GET | Method::POST) {
            return Answer::UnknownOperation;
        }
        let Some(action) = parameters.get("Action") else {
            return Answer::Elsewhere { query: parts.uri.query().map(str::to_owned) };
        };
        if let Some(role) = parameters.get("RoleArn").and_then(RoleArn::parse)
            && sigv4::partition(parts).is_some_and(|partition| partition != role.partition)
        {
            return Answer::Refused(Refusal::bad("ValidationError", "Request ARN is invalid"));
        }
        let version = parameters.get("Version");
        let (action, result) = match action {
            "AssumeRoleWithWebIdentity" if version == Some(VERSION) => {
                ("AssumeRoleWithWebIdentity", web_identity::assume_role(self, parameters).await)
            }
            "AssumeRole" if version == Some(VERSION) => {
                let caller = self.caller(Service::Sts, parts, body);
                ("AssumeRole", caller.and_then(|caller| assume_role::assume_role(self, &caller, parameters)))
            }
            "GetCallerIdentity" if version == Some(VERSION) => {
                ("GetCallerIdentity", self.caller(Service::Sts, parts, body).map(|caller| identity(&caller)))
            }
            action if version == Some(VERSION) && DENIED.contains(&action) => (
                "",
                self.caller(Service::Sts, parts, body)
                    .and_then(|caller| Err(denied(&caller, &format!("sts:{action}"), parameters.get("RoleArn")))),
            ),
            action => ("", Err(Refusal::invalid_action(action, version))),
        };
        match result {
            Ok(result) => Answer::Result { action, result },
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    /// Who signed the request.
    fn caller(&self, service: Service, parts: &Parts, body: &[u8]) -> Result<Arc<Session>, Refusal> {
        let now = self.faults.now();
        let signature = Signature::read(parts, service, now)?;
        let unknown =
            || Refusal::forbidden("InvalidClientTokenId", "The security token included in the request is invalid.");
        let session = self.accounts().session(&signature.access_key_id).ok_or_else(unknown)?;
        let token = signature.security_token.as_deref().unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(token.as_bytes(), session.token.as_bytes())
            .map_err(|_| unknown())?;
        signature.verify(parts, body, &session.secret)?;
        if now >= session.expires {
            return Err(Refusal::forbidden("ExpiredToken", "The security token included in the request is expired"));
        }
        Ok(session)
    }

    fn log(&self, parameters: &Parameters, outcome: &'static str, access_key_id: Option<&str>, request_id: &str) {
        let get = |name| parameters.get(name).map(str::to_owned);
        let call = Call {
            action: get("Action").unwrap_or_default(),
            role: get("RoleArn"),
            session_name: get("RoleSessionName"),
            outcome,
            access_key_id: access_key_id.map(str::to_owned),
            request_id: request_id.to_owned(),
            at: Instant::now(),
        };
        tracing::debug!(action = call.action, role = call.role, session = call.session_name, outcome, "sts");
        let mut calls = locked(&self.calls);
        *calls.by_action.entry(call.action.clone()).or_default() += 1;
        calls.all.push(call);
    }
}

fn identity(caller: &Session) -> Element {
    Element::Parent(
        "GetCallerIdentityResult",
        vec![
            Element::text("Arn", &caller.arn),
            Element::text("UserId", &caller.user_id),
            Element::text("Account", &caller.role.account),
        ],
    )
}

/// A session that was opened: whose it is, and its keys.
fn opened(access_key_id: String, session: &Session) -> [Element; 2] {
    [
        Element::Parent(
            "AssumedRoleUser",
            vec![Element::text("AssumedRoleId", &session.user_id), Element::text("Arn", &session.arn)],
        ),
        Element::Parent(
            "Credentials",
            vec![
                Element::text("AccessKeyId", access_key_id),
                Element::text("SecretAccessKey", &session.secret),
                Element::text("SessionToken", &session.token),
                Element::text("Expiration", timestamp(session.expires)),
            ],
        ),
    ]
}

fn denied(caller: &Session, action: &str, role: Option<&str>) -> Refusal {
    let on = role.map(|role| format!(" on resource: {role}")).unwrap_or_default();
    let message = format!("User: {} is not authorized to perform: {action}{on}", caller.arn);
    Refusal::forbidden("AccessDenied", message)
}

/// The first half of the body, under a length that promises all of it.
async fn cut_off(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let whole = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    parts.headers.insert(header::CONTENT_LENGTH, whole.len().into());
    let broken = io::Error::new(io::ErrorKind::ConnectionReset, "cut on purpose");
    let frames = stream::iter([Ok(Frame::data(whole.slice(..whole.len() / 2))), Err(broken)]);
    Response::from_parts(parts, StreamBody::new(frames).boxed())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
