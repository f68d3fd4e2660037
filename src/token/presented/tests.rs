use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::{
    hmac, rand,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;
use crate::identity::{Grant, Pod, Role, Roles, Wish};

const NOW: u64 = 1_767_225_600;

fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn claims() -> Value {
    json!({
        "aud": ["pods.eks.amazonaws.com"],
        "exp": NOW + 3600,
        "nbf": NOW,
        "iss": "https://issuer.example",
        "kubernetes.io": {
            "namespace": "team-a",
            "pod": {"name": "web-0", "uid": "pod-uid"},
            "serviceaccount": {"name": "web", "uid": "sa-uid"},
        },
    })
}

/// A token of these parts, signed by hand: what verifies it has no part in it.
fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", part(header.to_string()), part(claims.to_string()));
    format!("{message}.{}", part(sign(message.as_bytes())))
}

fn rsa() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).unwrap()
}

fn rs256(key: &RsaKeyPair, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &rand::SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

fn rsa_jwk(id: &str, key: &RsaKeyPair) -> Value {
    let public = key.public_key();
    let (n, e) = (public.modulus(), public.exponent());
    let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
    json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": part(n), "e": part(e)})
}

fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::generate(algorithm).unwrap()
}

fn es(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(&rand::SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

fn ec_jwk(id: &str, algorithm: &str, curve: &str, key: &EcdsaKeyPair) -> Value {
    let (x, y) = key.public_key().as_ref()[1..].split_at((key.public_key().as_ref().len() - 1) / 2);
    json!({"use": "sig", "kty": "EC", "kid": id, "alg": algorithm, "crv": curve, "x": part(x), "y": part(y)})
}

fn set(keys: &[Value]) -> (KeySet, Vec<String>) {
    KeySet::read(&json!({ "keys": keys }).to_string()).unwrap()
}

#[test]
fn what_the_cluster_signs_is_taken_in_each_way_that_is_supported() {
    let (rsa, p256, p384) = (rsa(), ec(&ECDSA_P256_SHA256_FIXED_SIGNING), ec(&ECDSA_P384_SHA384_FIXED_SIGNING));
    let p521 = ec(&ECDSA_P521_SHA512_FIXED_SIGNING);
    let (keys, unusable) = set(&[
        rsa_jwk("rsa", &rsa),
        ec_jwk("p256", "ES256", "P-256", &p256),
        ec_jwk("p384", "ES384", "P-384", &p384),
        ec_jwk("p521", "ES512", "P-521", &p521),
        json!({"kty": "oct", "kid": "shared", "alg": "HS256", "k": part("secret")}),
        json!({"kty": "new", "kid": "unheard-of"}),
        json!("no key"),
    ]);
    assert_eq!(unusable, ["p521", "shared", "unheard-of", ""]);
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    let good = [
        token(&header("RS256", "rsa"), &claims(), |message| rs256(&rsa, message)),
        token(&header("ES256", "p256"), &claims(), |message| es(&p256, message)),
        token(&header("ES384", "p384"), &claims(), |message| es(&p384, message)),
    ];
    for token in &good {
        let first = keys.verify(token).unwrap();
        assert!(Arc::ptr_eq(&first, &keys.verify(token).unwrap()), "it is remembered");
    }
    assert!(matches!(
        keys.verify(&token(&header("ES512", "p521"), &claims(), |message| es(&p521, message))),
        Err(Refused::Form | Refused::Key)
    ));
    assert_eq!(keys.signed.lock().unwrap().len(), good.len());
}

#[test]
fn what_the_cluster_did_not_sign_is_refused() {
    let (ours, theirs, p256) = (rsa(), rsa(), ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let jwk = rsa_jwk("ours", &ours);
    let (keys, _) = set(&[jwk.clone(), ec_jwk("p256", "ES256", "P-256", &p256)]);
    let header = json!({"alg": "RS256", "kid": "ours"});
    let good = token(&header, &claims(), |message| rs256(&ours, message));
    keys.verify(&good).unwrap();

    let none = json!({"alg": "none", "kid": "ours"});
    let of_form = [token(&none, &claims(), |_| Vec::new()), String::new(), "a.b.c".to_owned(), format!("{good}.x")];
    for token in of_form.iter().chain([&good[..good.len() / 2].to_owned()]) {
        assert!(matches!(keys.verify(token), Err(Refused::Form | Refused::Signature)), "{token}");
    }
    // The public key is no secret: it must not serve as one.
    let shared = |secret: &[u8], message: &[u8]| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
    };
    let confused = json!({"alg": "HS256", "kid": "ours"});
    let n = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
    let sha512 = |message: &[u8]| {
        let mut signature = vec![0; ours.public_modulus_len()];
        ours.sign(&RSA_PKCS1_SHA512, &rand::SystemRandom::new(), message, &mut signature).unwrap();
        signature
    };
    for (token, what) in [
        (token(&json!({"alg": "RS256", "kid": "other"}), &claims(), |m| rs256(&ours, m)), "another key's id"),
        (token(&json!({"alg": "RS256"}), &claims(), |m| rs256(&ours, m)), "no key's id"),
        (token(&confused, &claims(), |m| shared(&n, m)), "the public key as a secret"),
        (token(&confused, &claims(), |m| shared(jwk.to_string().as_bytes(), m)), "the JWK as a secret"),
        (token(&json!({"alg": "RS512", "kid": "ours"}), &claims(), sha512), "another hash than the key's"),
        (token(&json!({"alg": "ES256", "kid": "ours"}), &claims(), |m| es(&p256, m)), "another key's algorithm"),
        (token(&json!({"alg": "RS256", "kid": "p256"}), &claims(), |m| rs256(&ours, m)), "another key's id"),
    ] {
        assert_eq!(keys.verify(&token).unwrap_err(), Refused::Key, "{what}");
    }
    let mut own_key = header.clone();
    own_key["jwk"] = rsa_jwk("ours", &theirs);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let mut other_claims = claims();
    other_claims["kubernetes.io"]["pod"]["uid"] = json!("another");
    let swapped = format!("{}.{}.{signature}", part(header.to_string()), part(other_claims.to_string()));
    for (token, what) in [
        (token(&header, &claims(), |m| rs256(&theirs, m)), "another cluster's"),
        (token(&own_key, &claims(), |m| rs256(&theirs, m)), "a key that it brings along"),
        (swapped, "other claims under the signature"),
        (format!("{message}."), "no signature"),
    ] {
        assert_eq!(keys.verify(&token).unwrap_err(), Refused::Signature, "{what}");
    }
    for at in (0..signature.len()).step_by(7) {
        let mut changed = signature.to_owned().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let token = format!("{message}.{}", String::from_utf8(changed).unwrap());
        assert_eq!(keys.verify(&token).unwrap_err(), Refused::Signature, "byte {at}");
    }
    assert_eq!(keys.signed.lock().unwrap().len(), 1, "only what is good is remembered");
}

#[test]
fn a_token_that_is_bound_to_no_pod_is_not_of_the_kind() {
    let key = rsa();
    let (keys, _) = set(&[rsa_jwk("ours", &key)]);
    for gone in ["/kubernetes.io/pod", "/kubernetes.io", "/exp", "/aud"] {
        let mut claims = claims();
        let (parent, field) = gone.rsplit_once('/').unwrap();
        claims.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field).unwrap();
        let token = token(&json!({"alg": "RS256", "kid": "ours"}), &claims, |message| rs256(&key, message));
        assert_eq!(keys.verify(&token).unwrap_err(), Refused::Form, "{gone}");
    }
}

#[test]
fn no_more_tokens_are_remembered_than_a_node_needs() {
    let key = ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let (keys, _) = set(&[ec_jwk("ours", "ES256", "P-256", &key)]);
    for number in 0..=MOST_REMEMBERED {
        let mut claims = claims();
        claims["jti"] = json!(number);
        let token = token(&json!({"alg": "ES256", "kid": "ours"}), &claims, |message| es(&key, message));
        keys.verify(&token).unwrap();
        assert!(keys.signed.lock().unwrap().len() <= MOST_REMEMBERED);
    }
}

#[test]
fn keys_are_the_same_if_their_ids_and_contents_are() {
    let (one, other) = (rsa(), rsa());
    let set = |keys: &[Value]| set(keys).0;
    let known = set(&[rsa_jwk("a", &one), rsa_jwk("b", &other)]);
    assert!(known.is_same(&set(&[rsa_jwk("b", &other), rsa_jwk("a", &one)])));
    for changed in [&[rsa_jwk("a", &one)][..], &[rsa_jwk("a", &other), rsa_jwk("b", &one)], &[]] {
        assert!(!known.is_same(&set(changed)), "{changed:?}");
    }
    assert!(KeySet::read("no JSON").is_none() && KeySet::read("{}").is_none());
}

fn caller(account: Option<&str>) -> Caller {
    let pod = Arc::new(Pod { name: "web-0".into(), ..Pod::sample("pod-uid", &[]) });
    let grant = |account: &str| {
        let role = "arn:aws:iam::123456789012:role/web".parse().unwrap();
        let wish = Wish { role, target: None, audience: None, session_seconds: 3600, regional_sts: None, of_pod: None };
        Role::Granted(Arc::new(Grant { pod: Arc::clone(&pod), account: account.into(), wish }))
    };
    let roles = Roles { main: account.map_or(Role::None, grant), ..Roles::default() };
    Caller { pod, roles, require_imdsv2: false }
}

fn check(claims: &Value, caller: &Caller) -> Result<(), Refused> {
    let now = Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW), monotonic: Instant::now() };
    let audiences = ["sts.amazonaws.com".to_owned(), "pods.eks.amazonaws.com".to_owned()];
    serde_json::from_value::<Shown>(claims.clone()).unwrap().check(caller, &audiences, now)
}

#[test]
fn a_token_is_good_only_if_it_is_the_callers_own_for_us_and_now() {
    let web = caller(Some("sa-uid"));
    assert_eq!(check(&claims(), &web), Ok(()));
    for (pointer, other, expected) in [
        ("/aud", json!(["sts.amazonaws.com"]), Ok(())),
        ("/aud", json!(["another", "sts.amazonaws.com"]), Ok(())),
        ("/aud", json!(["https://kubernetes.default.svc"]), Err(Refused::Audience)),
        ("/aud", json!([]), Err(Refused::Audience)),
        ("/exp", json!(NOW - 59), Ok(())),
        ("/exp", json!(NOW - 60), Err(Refused::Expired)),
        ("/exp", json!(0), Err(Refused::Expired)),
        ("/exp", json!(u64::MAX), Ok(())),
        ("/nbf", json!(NOW + 60), Ok(())),
        ("/nbf", json!(NOW + 61), Err(Refused::NotYet)),
        ("/nbf", Value::Null, Ok(())),
        ("/kubernetes.io/namespace", json!("team-b"), Err(Refused::AnotherPod)),
        ("/kubernetes.io/pod/uid", json!("another"), Err(Refused::AnotherPod)),
        ("/kubernetes.io/serviceaccount/name", json!("worker"), Err(Refused::AnotherPod)),
        ("/kubernetes.io/serviceaccount/uid", json!("another"), Err(Refused::AnotherPod)),
    ] {
        let mut changed = claims();
        *changed.pointer_mut(pointer).unwrap() = other;
        assert_eq!(check(&changed, &web), expected, "{pointer} {changed}");
    }
    assert_eq!(check(&claims(), &caller(None)), Ok(()), "of an account without a role the UID is not known");
}
