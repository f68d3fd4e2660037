//! The cluster's service account issuer: the signing keys, and the two documents that verifiers read.
//!
//! Shapes: [Kubernetes, "Service account issuer discovery"][k8s]; OpenID Connect Discovery 1.0, section 3; RFC 7517.
//!
//! [k8s]: https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk::Jwk};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde::Serialize;
use serde_json::{Value, json};

/// Where the discovery document is, below the issuer's URL.
pub const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
/// Where the key set is, below the issuer's URL.
pub const JWKS_PATH: &str = "/openid/v1/jwks";

/// What can go wrong while keys are made, or tokens are signed or verified.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The RSA key could not be made.
    #[error("cannot make a signing key: {0}")]
    Key(#[from] rcgen::Error),
    /// No key of this issuer signs it.
    #[error("no key of this issuer")]
    NoKey,
    /// A token could not be signed, or is not one of ours.
    #[error("not a valid token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
}

/// An issuer of service account tokens, signed with RS256.
///
/// Its keys change in the steps of an API server's: a key is known (`--service-account-key-file`) before it signs
/// (`--service-account-signing-key-file`), and after.
pub struct Issuer {
    url: String,
    keys: RwLock<Keys>,
}

/// Those that are known, which are all published.
struct Keys {
    all: Vec<Key>,
    /// The one that signs.
    signing: usize,
}

struct Key {
    id: String,
    signs: EncodingKey,
    public: Jwk,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Key {
    fn new() -> Result<Self, IssuerError> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let signs = EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes())?;
        let mut public = Jwk::from_encoding_key(&signs, Algorithm::RS256)?;
        let id = public.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256)?;
        public.common.key_id = Some(id.clone());
        public.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        Ok(Self { id, signs, public })
    }
}

impl Issuer {
    /// An issuer known as `url` (no slash at its end), with a key of its own.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(url: impl Into<String>) -> Result<Self, IssuerError> {
        Ok(Self { url: url.into(), keys: RwLock::new(Keys { all: vec![Key::new()?], signing: 0 }) })
    }

    /// Signs with a new key from now on; the old ones stay published.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn rotate(&self) -> Result<(), IssuerError> {
        self.add_key()?;
        self.sign_with_newest();
        Ok(())
    }

    /// Publishes a new key, which does not sign yet. Returns its id.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn add_key(&self) -> Result<String, IssuerError> {
        let key = Key::new()?;
        let id = key.id.clone();
        self.keys_to_change().all.push(key);
        Ok(id)
    }

    /// Signs with the newest key from now on.
    pub fn sign_with_newest(&self) {
        let mut keys = self.keys_to_change();
        keys.signing = keys.all.len().saturating_sub(1);
    }

    /// Knows no key any more but the one that signs.
    pub fn drop_old_keys(&self) {
        let mut keys = self.keys_to_change();
        let signing = keys.signing;
        keys.all.drain(..signing);
        keys.all.truncate(1);
        keys.signing = 0;
    }

    fn keys_to_change(&self) -> RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The issuer's URL: the tokens' `iss`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A token with these claims; nothing is added to them.
    ///
    /// # Errors
    /// When the claims cannot be serialised.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, IssuerError> {
        let keys = self.keys();
        let key = keys.all.get(keys.signing).ok_or(IssuerError::NoKey)?;
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::RS256) };
        Ok(jsonwebtoken::encode(&header, claims, &key.signs)?)
    }

    /// The claims of a token that this issuer signed and that is valid now, for any audience.
    ///
    /// # Errors
    /// When the signature, the issuer or the times are wrong.
    pub fn verify(&self, token: &str) -> Result<Value, IssuerError> {
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_issuer(&[&self.url]);
        let id = jsonwebtoken::decode_header(token)?.kid;
        let keys = self.keys();
        let key = keys.all.iter().find(|key| Some(&key.id) == id.as_ref()).ok_or(IssuerError::NoKey)?;
        Ok(jsonwebtoken::decode(token, &DecodingKey::from_jwk(&key.public)?, &validation)?.claims)
    }

    /// The discovery document.
    #[must_use]
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{}{JWKS_PATH}", self.url),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        })
    }

    /// The key set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys().all.iter().map(|key| &key.public).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_another_issuers_key_is_refused() {
        let (ours, theirs) = (Issuer::new("https://a").unwrap(), Issuer::new("https://a").unwrap());
        let token = ours.sign(&json!({ "iss": "https://a", "exp": 4_102_444_800_u64 })).unwrap();
        assert!(ours.verify(&token).is_ok());
        assert!(theirs.verify(&token).is_err());
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_after_until_it_is_dropped() {
        let issuer = Issuer::new("https://a").unwrap();
        let sign = || issuer.sign(&json!({ "iss": "https://a", "exp": 4_102_444_800_u64 })).unwrap();
        let signed_by = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
        let published = || {
            let keys = issuer.jwks()["keys"].as_array().unwrap().clone();
            keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (old, first) = (sign(), published().remove(0));
        let second = issuer.add_key().unwrap();
        assert_eq!((signed_by(&sign()), published()), (first.clone(), vec![first.clone(), second.clone()]));
        issuer.sign_with_newest();
        assert_eq!((signed_by(&sign()), published()), (second.clone(), vec![first, second.clone()]));
        issuer.drop_old_keys();
        assert_eq!((signed_by(&sign()), published()), (second.clone(), vec![second]));
        assert!(issuer.verify(&old).is_err() && issuer.verify(&sign()).is_ok());
    }

    #[test]
    fn a_token_of_an_older_key_stays_good() {
        let issuer = Issuer::new("https://a").unwrap();
        let sign = || issuer.sign(&json!({ "iss": "https://a", "exp": 4_102_444_800_u64 })).unwrap();
        let old = sign();
        issuer.rotate().unwrap();
        let new = sign();
        assert!(issuer.verify(&old).is_ok() && issuer.verify(&new).is_ok());
        assert_ne!(old.split('.').next(), new.split('.').next());
        assert_eq!(issuer.jwks()["keys"].as_array().unwrap().len(), 2);
    }
}
