//! The issuer's two documents: the discovery document, and the keys. Pure.
//!
//! A key stays as it was read: what is exported is what the API server said, member by member. Two keys are one if STS would
//! take one for the other: the same `kid` and the same public numbers.
//!
//! Sources: OpenID Connect Discovery 1.0, section 3; RFC 7517, 7518; [IAM, "Create an OpenID Connect identity provider"][iam].
//!
//! [iam]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// Where the discovery document is, below the issuer.
pub const DISCOVERY: &str = ".well-known/openid-configuration";
/// Where the keys are below the issuer, unless the document says otherwise.
pub const KEYS: &str = "openid/v1/jwks";

/// The signature algorithms that STS takes.
pub const ALGORITHMS: [&str; 6] = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"];
/// Members of a key that nobody but its owner may have (RFC 7518, 6.2.2, 6.3.2, 6.4.1).
const SECRET: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Where an issuer's discovery document is.
#[must_use]
pub fn discovery_url(issuer: &str) -> String {
    format!("{}/{DISCOVERY}", issuer.trim_end_matches('/'))
}

/// A discovery document.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovery(pub Map<String, Value>);

/// A key set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySet {
    /// Its keys, in its order.
    pub keys: Vec<Key>,
}

/// A key of a key set.
#[derive(Clone, Debug, PartialEq)]
pub struct Key(Map<String, Value>);

/// Why STS finds no key in it, or no use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It has no name; an empty one will do.
    NoId,
    /// It is not for signatures.
    Use(String),
    /// No algorithm that STS takes goes with it.
    Algorithm(String),
    /// A public number is missing, or cannot be read.
    Incomplete,
}

// === impl Discovery ===

impl Discovery {
    /// Reads it.
    ///
    /// # Errors
    /// In what way it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(Value::Object(members)) => Ok(Self(members)),
            Ok(_) => Err("is JSON, but no object".to_owned()),
            Err(error) => Err(format!("is no JSON: {error}")),
        }
    }

    /// The value of a member that is text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The values of a member that is a list of texts. `None`: it is not there, or is something else.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<&str>> {
        self.0.get(name)?.as_array()?.iter().map(Value::as_str).collect()
    }
}

// === impl KeySet ===

impl KeySet {
    /// Reads it.
    ///
    /// # Errors
    /// In what way it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = serde_json::from_str::<Value>(text).map_err(|error| format!("is no JSON: {error}"))?;
        let keys = value.get("keys").and_then(Value::as_array).ok_or("has no list \"keys\"")?;
        let keys = keys.iter().map(|key| key.as_object().cloned().map(Key)).collect::<Option<_>>();
        Ok(Self { keys: keys.ok_or("has a key that is no object")? })
    }

    /// Whether this very key is among them.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.keys.iter().any(|one| one.is_same(key))
    }

    /// Those of the other set that are not here yet are put behind.
    pub fn add(&mut self, other: &Self) {
        for key in &other.keys {
            if !self.has(key) {
                self.keys.push(key.clone());
            }
        }
    }

    /// As it is served.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::json!({ "keys": self.keys.iter().map(|key| &key.0).collect::<Vec<_>>() })
    }
}

// === impl Key ===

impl Key {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Its name, which tokens have in their header.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.text("kid")
    }

    /// `RSA`, `EC`, or another.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text("kty").unwrap_or_default()
    }

    /// The algorithm that it says, or the one that goes with it.
    #[must_use]
    pub fn algorithm(&self) -> Option<&str> {
        self.text("alg").or_else(|| match (self.kind(), self.text("crv")) {
            ("RSA", _) => Some("RS256"),
            ("EC", Some("P-256")) => Some("ES256"),
            ("EC", Some("P-384")) => Some("ES384"),
            ("EC", Some("P-521")) => Some("ES512"),
            _ => None,
        })
    }

    /// The numbers that make it the key that it is.
    fn numbers(&self) -> [Option<&str>; 5] {
        ["n", "e", "crv", "x", "y"].map(|name| self.text(name))
    }

    /// Whether it is the same key by the same name.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.has_name_of(other) && self.kind() == other.kind() && self.numbers() == other.numbers()
    }

    /// Whether it has the same name.
    #[must_use]
    pub fn has_name_of(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// Whether who finds this one takes the tokens that `key` signed.
    #[must_use]
    pub fn stands_for(&self, key: &Self) -> bool {
        self.is_same(key)
            && self.text("use").is_none_or(|usage| usage == "sig")
            && self.text("alg").is_none_or(|algorithm| Some(algorithm) == key.algorithm())
    }

    /// The members that nobody but its owner may have.
    #[must_use]
    pub fn secrets(&self) -> Vec<&'static str> {
        SECRET.into_iter().filter(|name| self.0.contains_key(*name)).collect()
    }

    /// What keeps STS from taking it.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        if self.id().is_none() {
            flaws.push(Flaw::NoId);
        }
        if let Some(usage) = self.text("use").filter(|usage| *usage != "sig") {
            flaws.push(Flaw::Use(usage.to_owned()));
        }
        let fits = self.algorithm().is_some_and(|algorithm| {
            ALGORITHMS.contains(&algorithm)
                && match (self.kind(), self.text("crv")) {
                    ("RSA", _) => algorithm.starts_with("RS"),
                    ("EC", Some("P-256")) => algorithm == "ES256",
                    ("EC", Some("P-384")) => algorithm == "ES384",
                    ("EC", Some("P-521")) => algorithm == "ES512",
                    _ => false,
                }
        });
        let needed = if self.kind() == "RSA" { ["n", "e"] } else { ["x", "y"] };
        let complete = needed.iter().all(|name| self.bytes(name).is_some_and(|bytes| !bytes.is_empty()));
        match (fits, complete) {
            (false, _) => flaws.push(Flaw::Algorithm(self.in_words())),
            (true, false) => flaws.push(Flaw::Incomplete),
            (true, true) => {}
        }
        flaws
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        URL_SAFE_NO_PAD.decode(self.text(name)?).ok()
    }

    /// Algorithm and kind, as people name them.
    fn in_words(&self) -> String {
        let size = match (self.bytes("n"), self.text("crv")) {
            (Some(n), _) if self.kind() == "RSA" => format!(" of {} bits", n.len() * 8),
            (_, Some(curve)) => format!(" {curve}"),
            _ => String::new(),
        };
        let kind = if self.kind().is_empty() { "no kind" } else { self.kind() };
        format!("{}, {kind}{size}", self.algorithm().unwrap_or("no algorithm"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id().unwrap_or("without a kid"), self.in_words())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(value: Value) -> Key {
        KeySet::parse(&json!({ "keys": [value] }).to_string()).unwrap().keys.remove(0)
    }

    fn rsa() -> Value {
        json!({ "use": "sig", "kty": "RSA", "kid": "a", "alg": "RS256", "n": "AQAB", "e": "AQAB" })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut key = rsa();
        key[name] = value;
        key
    }

    fn without(name: &str) -> Value {
        let mut key = rsa();
        key.as_object_mut().unwrap().remove(name);
        key
    }

    #[test]
    fn keys_of_the_six_algorithms_have_no_flaw() {
        for algorithm in ["RS256", "RS384", "RS512"] {
            assert_eq!(key(with("alg", json!(algorithm))).flaws(), []);
        }
        for (algorithm, curve) in [("ES256", "P-256"), ("ES384", "P-384"), ("ES512", "P-521")] {
            let key = key(json!({ "kty": "EC", "kid": "b", "alg": algorithm, "crv": curve, "x": "AQAB", "y": "AQAB" }));
            assert_eq!(key.flaws(), [], "{algorithm}");
        }
        // Both may be left out, and the name may be empty.
        assert_eq!(key(without("alg")).flaws(), []);
        assert_eq!(key(without("use")).flaws(), []);
        assert_eq!(key(with("kid", json!(""))).flaws(), []);
    }

    #[test]
    fn what_keeps_sts_from_taking_a_key_is_found() {
        assert_eq!(key(without("kid")).flaws(), [Flaw::NoId]);
        assert_eq!(key(with("use", json!("enc"))).flaws(), [Flaw::Use("enc".to_owned())]);
        for broken in [without("n"), without("e"), with("n", json!("")), with("n", json!("not base64!"))] {
            assert_eq!(key(broken).flaws(), [Flaw::Incomplete]);
        }
        for other in [
            with("alg", json!("PS256")),
            with("alg", json!("HS256")),
            with("alg", json!("ES256")),
            with("kty", json!("EC")),
            without("kty"),
            json!({ "kty": "OKP", "kid": "c", "alg": "EdDSA", "crv": "Ed25519", "x": "AQAB" }),
            json!({ "kty": "EC", "kid": "c", "crv": "secp256k1", "x": "AQAB", "y": "AQAB" }),
            json!({ "kty": "EC", "kid": "c", "alg": "ES384", "crv": "P-256", "x": "AQAB", "y": "AQAB" }),
        ] {
            let flaws = key(other.clone()).flaws();
            assert!(matches!(flaws.as_slice(), [Flaw::Algorithm(_)]), "{other}: {flaws:?}");
        }
    }

    #[test]
    fn a_key_is_another_one_if_its_name_or_a_number_differs() {
        let first = key(rsa());
        assert!(first.is_same(&key(with("alg", json!("RS256")))) && first.is_same(&key(with("x5c", json!([])))));
        for other in [with("kid", json!("b")), with("n", json!("AQAC")), with("e", json!("Aw")), without("kid")] {
            assert!(!first.is_same(&key(other.clone())), "{other}");
        }
    }

    #[test]
    fn a_copy_with_another_use_or_algorithm_does_not_stand_for_the_key() {
        let first = key(with("alg", json!("RS384")));
        assert!(first.stands_for(&first));
        let copy = |name: &str, value| {
            let mut copy = with("alg", json!("RS384"));
            copy[name] = value;
            key(copy)
        };
        assert!(!copy("use", json!("enc")).stands_for(&first) && !copy("alg", json!("RS256")).stands_for(&first));
        assert!(!copy("n", json!("AQAC")).stands_for(&first));
        // What does not say its algorithm is taken for any that goes with it.
        assert!(key(without("alg")).stands_for(&first));
    }

    #[test]
    fn the_union_of_two_sets_has_each_key_once_and_the_first_sets_in_front() {
        let [a, b, c] = ["a", "b", "c"].map(|id| key(with("kid", json!(id))));
        let mut keys = KeySet { keys: vec![b.clone(), a.clone()] };
        keys.add(&KeySet { keys: vec![a.clone(), c.clone(), b.clone(), c.clone()] });
        assert_eq!(keys.keys, [b, a, c]);
        let read = KeySet::parse(&keys.json().to_string()).unwrap();
        assert_eq!(read, keys, "what is written is what was read");
    }

    #[test]
    fn private_numbers_are_found() {
        assert!(key(rsa()).secrets().is_empty());
        assert_eq!(key(with("d", json!("AQAB"))).secrets(), ["d"]);
        assert_eq!(key(json!({ "kty": "oct", "k": "AQAB" })).secrets(), ["k"]);
    }

    #[test]
    fn what_is_no_document_is_said_in_words() {
        for (text, says) in [("<html>", "is no JSON"), ("[]", "no object"), ("", "is no JSON")] {
            assert!(Discovery::parse(text).unwrap_err().contains(says), "{text}");
        }
        for (text, says) in [("<html>", "is no JSON"), ("{}", "no list"), (r#"{"keys":[1]}"#, "no object")] {
            assert!(KeySet::parse(text).unwrap_err().contains(says), "{text}");
        }
        let discovery = Discovery::parse(r#"{"issuer":"a","ok":["b"],"mixed":["b",1],"one":"b"}"#).unwrap();
        assert_eq!(discovery.list("ok"), Some(vec!["b"]));
        assert_eq!((discovery.list("mixed"), discovery.list("one"), discovery.list("none")), (None, None, None));
    }

    #[test]
    fn the_discovery_document_is_below_the_issuer_with_or_without_a_slash() {
        for issuer in ["https://a.example.com/prod", "https://a.example.com/prod/"] {
            assert_eq!(discovery_url(issuer), "https://a.example.com/prod/.well-known/openid-configuration");
        }
    }
}
