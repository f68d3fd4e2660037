//! A container credentials endpoint behind the node, as an agent of ECS or of EKS Pod Identity has one: it gives the
//! node's role to whoever asks. Not here: what those agents check.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use serde_json::json;

use crate::{
    http::{Body, full},
    sts::{InstanceCredentials, timestamp},
};

/// The endpoint. Clones are the same one.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    credentials: Box<dyn Fn() -> InstanceCredentials + Send + Sync>,
    credential_requests: AtomicU64,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("credential_requests", &self.credential_requests()).finish_non_exhaustive()
    }
}

impl Agent {
    /// An endpoint that hands out these credentials.
    pub fn new(credentials: impl Fn() -> InstanceCredentials + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { credentials: Box::new(credentials), credential_requests: AtomicU64::new(0) }))
    }

    /// Answers one request, whatever its path.
    #[must_use]
    pub fn handle<B>(&self, _request: &Request<B>) -> Response<Body> {
        self.0.credential_requests.fetch_add(1, Ordering::Relaxed);
        let node = (self.0.credentials)();
        let document = json!({
            "AccessKeyId": node.access_key_id,
            "SecretAccessKey": node.secret_access_key,
            "Token": node.session_token,
            "Expiration": timestamp(node.expiration),
            "RoleArn": node.role_arn,
        });
        let mut response = Response::new(full(document.to_string()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// How often the node's credentials were handed out.
    #[must_use]
    pub fn credential_requests(&self) -> u64 {
        self.0.credential_requests.load(Ordering::Relaxed)
    }
}
