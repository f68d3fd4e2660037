//! The cluster's service account issuer: the signing key, and the two documents that verifiers read.
//!
//! Shapes: [Kubernetes, "Service account issuer discovery"][k8s]; OpenID Connect Discovery 1.0, section 3; RFC 7517.
//!
//! [k8s]: https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery

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
    /// A token could not be signed, or is not one of ours.
    #[error("not a valid token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
}

/// An issuer of service account tokens, signed with RS256.
pub struct Issuer {
    url: String,
    key_id: String,
    key: EncodingKey,
    jwk: Jwk,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("url", &self.url).field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer known as `url` (no slash at its end), with a key of its own.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn new(url: impl Into<String>) -> Result<Self, IssuerError> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let key = EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes())?;
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256)?;
        let key_id = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(key_id.clone());
        jwk.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
        Ok(Self { url: url.into(), key_id, key, jwk })
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
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::RS256) };
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
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
        Ok(jsonwebtoken::decode(token, &DecodingKey::from_jwk(&self.jwk)?, &validation)?.claims)
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
        json!({ "keys": [self.jwk] })
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
}
