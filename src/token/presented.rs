//! A service account token that a pod shows us: whether the cluster signed it, and whether it is that very pod's. Pure.
//!
//! Owns the cluster's public keys of one moment, the algorithms that count, and what a token must say. A key has one
//! algorithm, so that a token cannot choose another. Invariant: no token and no claim is in any error.
//!
//! Sources: [Kubernetes, bound service account tokens][k8s]; RFC 7517, 7519.
//!
//! [k8s]: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm},
};
use serde::Deserialize;
use serde_json::Value;

use super::Bound;
use crate::{clock::Now, identity::Caller};

/// By how much this node's clock and the API server's may differ, in seconds.
const LEEWAY: u64 = 60;
/// Tokens that are remembered as good: more than a node has pods.
const MOST_REMEMBERED: usize = 512;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be read as a JWT of the kind that the cluster makes.
    #[error("the token is not a service account token that is bound to a pod")]
    Form,
    /// It is signed by a key that is not the cluster's, or in a way that is not that key's.
    #[error("the token is not signed by a key of this cluster")]
    Key,
    /// The signature does not fit.
    #[error("the token's signature does not fit")]
    Signature,
    /// It is over.
    #[error("the token has expired")]
    Expired,
    /// It is not yet good.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is for somebody else to read.
    #[error("the token is for another audience")]
    Audience,
    /// It is another pod's, or another service account's.
    #[error("the token is not that of the pod that shows it")]
    AnotherPod,
    /// Whether the cluster signed it cannot be told: its keys are not to be had.
    #[error("the keys that the token is checked with are not to be had now")]
    NoKeys,
}

impl Refused {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not_yet_valid",
            Self::Audience => "audience",
            Self::AnotherPod => "another_pod",
            Self::NoKeys => "no_keys",
        }
    }
}

/// The cluster's keys, and the tokens that were found to be signed by them.
#[derive(Default)]
pub struct KeySet {
    keys: HashMap<String, Key>,
    /// By a hash, so that no token is kept. They are forgotten with the keys.
    signed: Mutex<HashMap<[u8; 32], Arc<Shown>>>,
}

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What a token says that the cluster signed.
#[derive(Debug, Deserialize)]
pub struct Shown {
    exp: u64,
    nbf: Option<u64>,
    aud: Vec<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

// === impl KeySet ===

impl KeySet {
    /// The keys in a JWKS, and the ids of those that cannot be used. `None` if it is no JWKS.
    #[must_use]
    pub fn read(jwks: &str) -> Option<(Self, Vec<String>)> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Value>,
        }
        let (mut keys, mut unusable) = (HashMap::new(), Vec::new());
        for key in serde_json::from_str::<Jwks>(jwks).ok()?.keys {
            let id = key.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
            match Key::read(key) {
                Some(key) => drop(keys.insert(id, key)),
                None => unusable.push(id),
            }
        }
        Some((Self { keys, signed: Mutex::default() }, unusable))
    }

    /// Whether these are the same keys.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.keys.len() == other.keys.len()
            && self.keys.iter().all(|(id, key)| other.keys.get(id).is_some_and(|other| key.is_same(other)))
    }

    /// What the token says, if one of these keys signed it. It may be another pod's, or over: see [`Shown::check`].
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(&self, token: &str) -> Result<Arc<Shown>, Refused> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let signed = || self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = signed().get(&hash) {
            return Ok(Arc::clone(shown));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refused::Form)?;
        let key = header.kid.and_then(|id| self.keys.get(&id)).ok_or(Refused::Key)?;
        if header.alg != key.algorithm {
            return Err(Refused::Key);
        }
        // The claims are ours to judge, by our clock.
        let mut signature_only = Validation::new(key.algorithm);
        signature_only.required_spec_claims.clear();
        (signature_only.validate_exp, signature_only.validate_aud) = (false, false);
        let shown = jsonwebtoken::decode::<Value>(token, &key.key, &signature_only).map_err(|_| Refused::Signature)?;
        let shown = Arc::new(serde_json::from_value::<Shown>(shown.claims).map_err(|_| Refused::Form)?);
        let mut signed = signed();
        if signed.len() >= MOST_REMEMBERED {
            // Rare: whoever still comes is verified once more.
            signed.clear();
        }
        signed.insert(hash, Arc::clone(&shown));
        Ok(shown)
    }
}

// === impl Key ===

impl Key {
    /// The key of a JWK; `None` if it is for something else, or for an algorithm that is not supported.
    fn read(jwk: Value) -> Option<Self> {
        let jwk = serde_json::from_value::<Jwk>(jwk).ok()?;
        // Those that Kubernetes signs with; its fourth, ES512, is not supported.
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                (Algorithm::ES384, KeyAlgorithm::ES384)
            }
            _ => return None,
        };
        let fits = jwk.common.key_algorithm.is_none_or(|of_key| of_key == named);
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        fits.then_some(Self { algorithm, key })
    }

    fn is_same(&self, other: &Self) -> bool {
        use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        self.algorithm == other.algorithm
            && match (self.key.kind(), other.key.kind()) {
                (SecretOrDer(one), SecretOrDer(other)) => one == other,
                (RsaModulusExponent { n, e }, RsaModulusExponent { n: other_n, e: other_e }) => {
                    (n, e) == (other_n, other_e)
                }
                _ => false,
            }
    }
}

// === impl Shown ===

impl Shown {
    /// Whether the token is good now, for one of these audiences, and is the caller's own.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, caller: &Caller, audiences: &[String], now: Now) -> Result<(), Refused> {
        let (now, bound) = (now.unix_seconds(), &self.kubernetes);
        let Caller { pod, roles, .. } = caller;
        let is_callers = bound.pod.uid == pod.uid.as_str()
            && bound.namespace == pod.namespace.as_str()
            && bound.serviceaccount.name == pod.service_account.as_str()
            // Known where there is a role.
            && roles.grants().all(|grant| bound.serviceaccount.uid == grant.account.as_str());
        for (refused, agrees) in [
            (Refused::Expired, now < self.exp.saturating_add(LEEWAY)),
            (Refused::NotYet, self.nbf.is_none_or(|from| from <= now.saturating_add(LEEWAY))),
            (Refused::Audience, self.aud.iter().any(|audience| audiences.contains(audience))),
            (Refused::AnotherPod, is_callers),
        ] {
            if !agrees {
                return Err(refused);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
