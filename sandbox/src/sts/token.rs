//! A web identity token: a JWT's parts, its signature, its claims.
//!
//! Rules: [IAM user guide, "Create an OIDC identity provider"][oidc]; RFC 7515, 7518, 7519. The texts of
//! refusals are those that STS sends; where none is known, the API reference's sentence for the code.
//!
//! [oidc]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answers::Refusal;

/// What the API reference says of `InvalidIdentityToken`.
const NOT_VALIDATED: &str = "The web identity token that was passed could not be validated by AWS. Get a new identity \
                             token from the identity provider and then retry the request.";
const NOT_A_JWT: &str =
    "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)";

/// The signature algorithms that STS takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }
}

/// A token that was read and not yet believed.
#[derive(Debug)]
pub(super) struct Token {
    algorithm: Algorithm,
    /// The key that the issuer says it used; absent is the same as empty.
    pub(super) key_id: String,
    signed: String,
    signature: Vec<u8>,
    /// `iss`.
    pub(super) issuer: String,
    /// `sub`.
    pub(super) subject: String,
    /// `azp` where there is one, else `aud`.
    pub(super) audiences: Vec<String>,
    expires: i64,
    issued: i64,
    not_before: Option<i64>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// When it is no JWT, is signed with an algorithm that STS does not take, or lacks a claim.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let (signed, signature) = text.rsplit_once('.').ok_or_else(not_a_jwt)?;
        let (header, claims) = signed.split_once('.').ok_or_else(not_a_jwt)?;
        let header: Header = part(header)?;
        let claims: Map<String, Value> = part(claims)?;
        Ok(Self {
            algorithm: Algorithm::parse(&header.alg).ok_or_else(not_a_jwt)?,
            key_id: header.kid,
            signed: signed.to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).map_err(|_| not_a_jwt())?,
            issuer: required(&claims, "iss", string)?,
            audiences: match claims.get("azp").and_then(string) {
                Some(party) => vec![party],
                None => required(&claims, "aud", strings)?,
            },
            subject: required(&claims, "sub", string)?,
            expires: required(&claims, "exp", seconds)?,
            issued: required(&claims, "iat", seconds)?,
            not_before: claims.get("nbf").map(|value| seconds(value).ok_or_else(not_a_jwt)).transpose()?,
        })
    }

    /// Whether `key` made the signature.
    ///
    /// # Errors
    /// When it did not.
    pub(super) fn verify(&self, key: &Key) -> Result<(), Refusal> {
        if key.verifies(self) { Ok(()) } else { Err(Refusal::identity_token(NOT_VALIDATED)) }
    }

    /// Whether the token is good at `now`.
    ///
    /// # Errors
    /// When its time is over, or has not come.
    pub(super) fn check_times(&self, now: SystemTime) -> Result<(), Refusal> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        if now >= self.expires {
            let message = format!(
                "Token expired: current date/time {now} must be before the expiration date/time {}",
                self.expires
            );
            return Err(Refusal::bad("ExpiredTokenException", message));
        }
        if now < self.issued.max(self.not_before.unwrap_or(i64::MIN)) {
            return Err(Refusal::identity_token(NOT_VALIDATED));
        }
        Ok(())
    }
}

/// One key of an issuer's key set (RFC 7517).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Key {
    kty: String,
    /// STS finds no key that has none, even if the token names none (an empty one is found).
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    /// Whether this is the key that the token was signed with, if its word is taken.
    pub(super) fn is_for(&self, token: &Token) -> bool {
        self.kid.as_ref() == Some(&token.key_id)
            && self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.alg.as_deref().is_none_or(|alg| alg == token.algorithm.name())
    }

    fn verifies(&self, token: &Token) -> bool {
        let (message, sig) = (token.signed.as_bytes(), token.signature.as_slice());
        match (token.algorithm, self.kty.as_str(), self.crv.as_deref()) {
            (Algorithm::Rs256, "RSA", _) => self.rsa(&signature::RSA_PKCS1_2048_8192_SHA256, message, sig),
            (Algorithm::Rs384, "RSA", _) => self.rsa(&signature::RSA_PKCS1_2048_8192_SHA384, message, sig),
            (Algorithm::Rs512, "RSA", _) => self.rsa(&signature::RSA_PKCS1_2048_8192_SHA512, message, sig),
            (Algorithm::Es256, "EC", Some("P-256")) => self.ec(&signature::ECDSA_P256_SHA256_FIXED, message, sig),
            (Algorithm::Es384, "EC", Some("P-384")) => self.ec(&signature::ECDSA_P384_SHA384_FIXED, message, sig),
            (Algorithm::Es512, "EC", Some("P-521")) => self.ec(&signature::ECDSA_P521_SHA512_FIXED, message, sig),
            _ => false,
        }
    }

    fn rsa(&self, parameters: &'static signature::RsaParameters, message: &[u8], signature: &[u8]) -> bool {
        let (Some(n), Some(e)) = (bytes(self.n.as_deref()), bytes(self.e.as_deref())) else { return false };
        RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
    }

    fn ec(&self, algorithm: &'static signature::EcdsaVerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        let (Some(x), Some(y)) = (bytes(self.x.as_deref()), bytes(self.y.as_deref())) else { return false };
        let point = [&[0x04][..], &x, &y].concat();
        UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
    }
}

fn bytes(text: Option<&str>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text?).ok()
}

fn part<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, Refusal> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| not_a_jwt())?;
    serde_json::from_slice(&json).map_err(|_| not_a_jwt())
}

fn required<T>(claims: &Map<String, Value>, name: &str, read: fn(&Value) -> Option<T>) -> Result<T, Refusal> {
    let value = claims.get(name).ok_or_else(|| Refusal::identity_token(format!("Missing a required claim: {name}")))?;
    read(value).ok_or_else(not_a_jwt)
}

fn string(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(many) => many.iter().map(string).collect(),
        one => Some(vec![string(one)?]),
    }
}

/// RFC 7519 allows fractions; whole seconds are compared.
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64))
}

fn not_a_jwt() -> Refusal {
    Refusal::identity_token(NOT_A_JWT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(header: &Value, claims: &Value) -> Result<Token, Refusal> {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        Token::parse(&format!("{}.{}.c2ln", encode(header), encode(claims)))
    }

    fn claims() -> Value {
        json!({ "iss": "https://a", "aud": ["x", "y"], "sub": "s", "exp": 2000, "iat": 1000, "nbf": 1000 })
    }

    fn refusal(header: Value, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        token(&header, &claims).unwrap_err().message.unwrap().into_owned()
    }

    #[test]
    fn algorithms_that_sts_does_not_take_are_refused() {
        for algorithm in ["none", "HS256", "PS256", "EdDSA", "rs256"] {
            assert_eq!(refusal(json!({ "alg": algorithm }), |_| {}), NOT_A_JWT, "{algorithm}");
        }
        for algorithm in ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"] {
            assert_eq!(token(&json!({ "alg": algorithm }), &claims()).unwrap().algorithm.name(), algorithm);
        }
    }

    #[test]
    fn a_token_without_a_claim_is_refused_and_the_claim_is_named() {
        for name in ["iss", "aud", "sub", "exp", "iat"] {
            let text = refusal(json!({ "alg": "RS256" }), |claims| {
                claims.as_object_mut().unwrap().remove(name);
            });
            assert_eq!(text, format!("Missing a required claim: {name}"));
        }
    }

    #[test]
    fn what_is_not_three_parts_of_json_is_no_token() {
        for text in ["abcd", "a.b", "a.b.c", "....", "e30.e30.c2ln"] {
            assert_eq!(Token::parse(text).unwrap_err().message.unwrap(), NOT_A_JWT, "{text}");
        }
    }

    #[test]
    fn the_authorised_party_is_the_audience_where_there_is_one() {
        let mut claims = claims();
        assert_eq!(token(&json!({ "alg": "RS256" }), &claims).unwrap().audiences, ["x", "y"]);
        claims["azp"] = json!("z");
        assert_eq!(token(&json!({ "alg": "RS256" }), &claims).unwrap().audiences, ["z"]);
    }

    #[test]
    fn a_token_is_good_from_its_start_to_the_second_before_its_end() {
        let token = token(&json!({ "alg": "RS256" }), &claims()).unwrap();
        let at = |seconds| token.check_times(UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert!(at(1000).is_ok() && at(1999).is_ok());
        assert_eq!(at(999).unwrap_err().code, "InvalidIdentityToken");
        let expired = at(2000).unwrap_err();
        assert_eq!(expired.code, "ExpiredTokenException");
        assert_eq!(
            expired.message.unwrap(),
            "Token expired: current date/time 2000 must be before the expiration date/time 2000"
        );
    }
}
