//! A service account token for one pod, from the API server's TokenRequest; and one that a pod shows us ([`presented`]).
//!
//! Owns what is asked for (one audience, bound to the pod's UID, ten minutes) and what is accepted: the
//! answer's claims must name the pod that was asked for. The token lives in memory for one exchange.
//!
//! Source: [TokenRequest API](https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/).

pub mod access;
pub mod keys;
pub mod presented;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use self::access::{Access, Mode};
use crate::identity::{Grant, NodeName};

/// The shortest life that the API server gives; one exchange needs seconds of it.
const LIFE_SECONDS: i64 = 600;
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// In the API server's words, by which alone it can be told from a pod that it does not know of yet (NodeRestriction).
const NO_AUDIENCE: &str = "not found in pod spec volume";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The API server did not answer in time.
    #[error("the API server did not answer the TokenRequest within {} s", TIME_LIMIT.as_secs())]
    TimedOut,
    /// The API server said no.
    #[error("the API server refused the TokenRequest: {code} {reason}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// The machine-readable reason of the `Status` object.
        reason: String,
        /// The message of the `Status` object.
        message: String,
    },
    /// The API server does not let us have it as our node.
    #[error("the API server refused the TokenRequest to our node: {message}")]
    NotOfThisNode {
        /// The message of the `Status` object.
        message: String,
    },
    /// Our node may not have tokens with this audience.
    #[error("the API server refused the TokenRequest to our node: {message}")]
    AudienceNotGranted {
        /// The message of the `Status` object.
        message: String,
    },
    /// The API server could not be reached, or its answer could not be read. The cause is not shown: it
    /// may hold the answer.
    #[error("the API server's answer to the TokenRequest could not be had")]
    Unreachable,
    /// The token is not for the pod that it was asked for. It is not used.
    #[error("the API server's token is not what was asked for: its {0} differs")]
    Mismatch(&'static str),
}

impl TokenError {
    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // What the API server knows of nodes' pods lags behind its watches: of a new pod it says so for a
            // moment.
            Self::TimedOut | Self::Unreachable | Self::NotOfThisNode { .. } => true,
            // RBAC and admission policies are mended without telling us, and 404, 409 and 400 mean that the
            // pod or its account has changed: the watch will say so.
            // 401: our own token is being replaced.
            Self::Refused { code, .. } => matches!(code, 401 | 429 | 500..),
            Self::AudienceNotGranted { .. } | Self::Mismatch(_) => false,
        }
    }

    /// Whether it may be the pod's end or change alone: another one of the same service account can fare better.
    #[must_use]
    pub fn is_of_pod(&self) -> bool {
        matches!(self, Self::Refused { code: 404 | 409, .. })
    }

    /// As a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Unreachable => "unreachable",
            Self::Mismatch(_) => "mismatch",
            Self::NotOfThisNode { .. } | Self::AudienceNotGranted { .. } => "403",
            Self::Refused { code, .. } => match code {
                400 => "400",
                401 => "401",
                403 => "403",
                404 => "404",
                409 => "409",
                422 => "422",
                429 => "429",
                500.. => "5xx",
                _ => "other",
            },
        }
    }
}

/// Gives service account tokens for pods.
pub trait TokenSource: Send + Sync {
    /// A token of the pod's service account, bound to the pod.
    fn token<'a>(&'a self, grant: &'a Grant) -> BoxFuture<'a, Result<SecretString, TokenError>>;
}

/// Tokens from the API server.
pub struct ApiServer {
    access: Arc<Access>,
    node: NodeName,
    audience: String,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Tokens of `audience` for pods of `node`.
    #[must_use]
    pub fn new(access: Arc<Access>, node: NodeName, audience: String) -> Self {
        Self { access, node, audience }
    }

    async fn request(&self, grant: &Grant) -> Result<SecretString, TokenError> {
        let Grant { pod, account, wish } = grant;
        let audience = wish.audience.as_ref().unwrap_or(&self.audience);
        let wanted = Wanted {
            namespace: pod.namespace.as_str(),
            account: (pod.service_account.as_str(), account.as_str()),
            pod: (&pod.name, pod.uid.as_str()),
            audience,
        };
        // Before it is decided no pod is known, so nothing is asked for.
        let (mode, client) = self.access.client().await;
        let token = ask(&client, &wanted).await.map_err(|error| match error {
            TokenError::Refused { code: 403, message, .. } if mode == Mode::Node && message.contains(NO_AUDIENCE) => {
                TokenError::AudienceNotGranted { message }
            }
            TokenError::Refused { code: 403 | 404, message, .. } if mode == Mode::Node => {
                TokenError::NotOfThisNode { message }
            }
            error => error,
        })?;
        Claims::read(token.expose_secret()).ok_or(TokenError::Mismatch("form"))?.check(grant, audience, &self.node)?;
        Ok(token)
    }
}

/// What a token is asked for: names and UIDs.
struct Wanted<'a> {
    namespace: &'a str,
    account: (&'a str, &'a str),
    pod: (&'a str, &'a str),
    audience: &'a str,
}

async fn ask(client: &Client, wanted: &Wanted<'_>) -> Result<SecretString, TokenError> {
    let (account, account_uid) = wanted.account;
    let request = TokenRequest {
        metadata: ObjectMeta { uid: Some(account_uid.to_owned()), ..ObjectMeta::default() },
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![wanted.audience.to_owned()]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(wanted.pod.0.to_owned()),
                uid: Some(wanted.pod.1.to_owned()),
            }),
            expiration_seconds: Some(LIFE_SECONDS),
            ..TokenRequestSpec::default()
        }),
        status: None,
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), wanted.namespace);
    let params = PostParams::default();
    let asked = accounts.create_token_request(account, &params, &request);
    let answer = tokio::time::timeout(TIME_LIMIT, asked).await.map_err(|_elapsed| TokenError::TimedOut)?;
    let answer = answer.map_err(|error| match error {
        kube::Error::Api(status) => {
            TokenError::Refused { code: status.code, reason: status.reason.clone(), message: status.message.clone() }
        }
        _ => TokenError::Unreachable,
    })?;
    Ok(SecretString::from(answer.status.and_then(|status| status.token).unwrap_or_default()))
}

impl TokenSource for ApiServer {
    fn token<'a>(&'a self, grant: &'a Grant) -> BoxFuture<'a, Result<SecretString, TokenError>> {
        Box::pin(self.request(grant))
    }
}

/// What a bound service account token says; the signature is for STS to judge.
#[derive(Deserialize)]
struct Claims {
    aud: Vec<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Debug, Deserialize)]
struct Bound {
    namespace: String,
    node: Option<Node>,
    pod: Object,
    serviceaccount: Object,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Object {
    name: String,
    uid: String,
}

impl Claims {
    fn read(token: &str) -> Option<Self> {
        let payload = token.split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// Whether this is the token that was asked for.
    fn check(self, grant: &Grant, audience: &str, node: &NodeName) -> Result<(), TokenError> {
        let Grant { pod, account, .. } = grant;
        let bound = self.kubernetes;
        for (claim, agrees) in [
            ("audience", self.aud == [audience]),
            ("namespace", bound.namespace == pod.namespace.as_str()),
            ("service account", bound.serviceaccount.name == pod.service_account.as_str()),
            ("service account UID", bound.serviceaccount.uid == account.as_str()),
            ("pod", bound.pod.name == *pod.name),
            ("pod UID", bound.pod.uid == pod.uid.as_str()),
            // Older API servers do not name the node.
            ("node", bound.node.is_none_or(|named| named.name == node.as_str())),
        ] {
            if !agrees {
                return Err(TokenError::Mismatch(claim));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::identity::{Pod, Wish};

    fn grant() -> Grant {
        let pod = Pod { name: "web-0".into(), ..Pod::sample("pod-uid", &[]) };
        let role = "arn:aws:iam::123456789012:role/web".parse().unwrap();
        let wish = Wish { role, target: None, audience: None, session_seconds: 3600, regional_sts: None, of_pod: None };
        Grant { pod: Arc::new(pod), account: "sa-uid".into(), wish }
    }

    fn claims() -> Value {
        json!({
            "aud": ["sts.amazonaws.com"],
            "kubernetes.io": {
                "namespace": "team-a",
                "node": {"name": "node-1", "uid": "node-uid"},
                "pod": {"name": "web-0", "uid": "pod-uid"},
                "serviceaccount": {"name": "web", "uid": "sa-uid"},
            },
        })
    }

    fn check(claims: &Value) -> Result<(), String> {
        let token = format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let claims = Claims::read(&token).ok_or("form")?;
        claims.check(&grant(), "sts.amazonaws.com", &"node-1".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_used_only_if_every_claim_is_what_was_asked_for() {
        assert_eq!(check(&claims()), Ok(()));
        for (pointer, other, what) in [
            ("/aud/0", json!("another"), "audience"),
            ("/aud", json!(["sts.amazonaws.com", "another"]), "audience"),
            ("/kubernetes.io/namespace", json!("team-b"), "namespace"),
            ("/kubernetes.io/node/name", json!("node-2"), "node"),
            ("/kubernetes.io/pod/name", json!("web-1"), "pod"),
            ("/kubernetes.io/pod/uid", json!("another"), "pod UID"),
            ("/kubernetes.io/serviceaccount/name", json!("worker"), "service account"),
            ("/kubernetes.io/serviceaccount/uid", json!("another"), "service account UID"),
        ] {
            let mut changed = claims();
            *changed.pointer_mut(pointer).unwrap() = other;
            let error = check(&changed).unwrap_err();
            assert!(error.ends_with(&format!("its {what} differs")), "{pointer}: {error}");
        }
        let mut unbound = claims();
        unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
        assert_eq!(check(&unbound).unwrap_err(), "form");
    }
}
