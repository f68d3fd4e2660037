//! Where STS has a token's key from: the issuer's own documents, over TLS.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use sandbox::{ca::Ca, issuer::Issuer};
use serde_json::{Value, json};

use crate::world::{Documents, World};

const NO_KEY: &str = "Couldn't retrieve verification key from your identity provider,  please reference \
                      AssumeRoleWithWebIdentity documentation for requirements";
const OUT_OF_REACH: &str = "The request could not be fulfilled because the identity provider (IDP) that was asked to \
                            verify the incoming identity token could not be reached.";

async fn with_documents(change: impl FnOnce(&mut Documents)) -> crate::world::Answer {
    let world = World::new().await;
    change(&mut world.documents.lock().unwrap());
    world.assume(&world.token(), &[]).await
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_for_a_new_key() {
    let world = World::new().await;
    for _ in 0..3 {
        assert_eq!(world.assume(&world.token(), &[]).await.status, 200);
    }
    assert_eq!(world.sts.issuer_fetches(), 1);
    // While it has the key, STS does not need the issuer.
    world.documents.lock().unwrap().status = StatusCode::INTERNAL_SERVER_ERROR;
    assert_eq!(world.assume(&world.token(), &[]).await.status, 200);
    // The issuer's key is rotated.
    let rotated = Issuer::new(world.issuer.url()).unwrap();
    *world.documents.lock().unwrap() =
        Documents { discovery: rotated.discovery(), jwks: rotated.jwks(), status: StatusCode::OK, redirect: None };
    assert_eq!(world.assume(&rotated.sign(&world.claims()).unwrap(), &[]).await.status, 200);
    assert_eq!(world.sts.issuer_fetches(), 2);
    // The old one is gone with it.
    world.assume(&world.token(), &[]).await.refuses(400, "InvalidIdentityToken", NO_KEY);
}

#[tokio::test]
async fn a_key_that_the_issuer_does_not_publish_is_no_key() {
    let world = World::new().await;
    let stranger = Issuer::new(world.issuer.url()).unwrap();
    let token = stranger.sign(&world.claims()).unwrap();
    world.assume(&token, &[]).await.refuses(400, "InvalidIdentityToken", NO_KEY);
}

#[tokio::test]
async fn documents_that_do_not_say_what_they_must_yield_no_key() {
    type Change = fn(&mut Documents);
    let changes: [Change; 9] = [
        |documents| documents.status = StatusCode::NOT_FOUND,
        |documents| documents.discovery = json!("nothing"),
        |documents| documents.discovery["issuer"] = json!("https://elsewhere.example"),
        |documents| drop(documents.discovery.as_object_mut().unwrap().remove("response_types_supported")),
        |documents| drop(documents.discovery.as_object_mut().unwrap().remove("subject_types_supported")),
        |documents| {
            let discovery = documents.discovery.as_object_mut().unwrap();
            drop(discovery.remove("id_token_signing_alg_values_supported"));
        },
        |documents| {
            let url = documents.discovery["jwks_uri"].as_str().unwrap().replace("https:", "http:");
            documents.discovery["jwks_uri"] = json!(url);
        },
        |documents| drop(documents.jwks["keys"][0].as_object_mut().unwrap().remove("kid")),
        |documents| documents.jwks["keys"][0]["use"] = json!("enc"),
    ];
    for change in changes {
        with_documents(change).await.refuses(400, "InvalidIdentityToken", NO_KEY);
    }
}

#[tokio::test]
async fn more_than_a_hundred_keys_of_a_kind_or_none_yield_no_key() {
    let with = async |others: usize| {
        with_documents(|documents| {
            let keys = documents.jwks["keys"].as_array_mut().unwrap();
            let other = |number: usize| json!({ "kty": "RSA", "kid": number.to_string(), "n": "AQAB", "e": "AQAB" });
            keys.extend((0..others).map(other));
        })
        .await
    };
    assert_eq!(with(99).await.status, 200);
    with(100).await.refuses(400, "InvalidIdentityToken", NO_KEY);
    with_documents(|documents| documents.jwks["keys"] = json!([])).await.refuses(400, "InvalidIdentityToken", NO_KEY);
}

#[tokio::test]
async fn no_redirect_of_an_issuers_is_followed() {
    let world = World::new().await;
    let elsewhere = format!("{}/elsewhere", world.issuer.url());
    world.documents.lock().unwrap().redirect = Some(elsewhere);
    world.assume(&world.token(), &[]).await.refuses(400, "InvalidIdentityToken", NO_KEY);
}

#[tokio::test]
async fn an_issuer_that_fails_or_is_not_there_is_a_communication_error() {
    let answer = with_documents(|documents| documents.status = StatusCode::BAD_GATEWAY).await;
    answer.refuses(400, "IDPCommunicationError", OUT_OF_REACH);
    let mut world = World::new().await;
    world.issuer_server = None;
    world.assume(&world.token(), &[]).await.refuses(400, "IDPCommunicationError", OUT_OF_REACH);
}

#[tokio::test]
async fn an_issuer_whose_certificate_is_not_trusted_is_refused() {
    let world = World::with_issuer_ca(Some(Ca::new().unwrap())).await;
    let text = "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint";
    world.assume(&world.token(), &[]).await.refuses(400, "InvalidIdentityToken", text);
}

/// The token signed by hand, and its key's JWK.
fn by_hand(claims: &Value, algorithm: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({ "alg": algorithm, "kid": "by-hand" }).to_string();
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
    format!("{signed}.{}", encode(&sign(signed.as_bytes())))
}

async fn accepted(world: &World, algorithm: &str, key: Value, sign: impl Fn(&[u8]) -> Vec<u8>) {
    world.sts.forget_issuer_keys();
    world.documents.lock().unwrap().jwks = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "" }, key] });
    let token = by_hand(&world.claims(), algorithm, &sign);
    let answer = world.assume(&token, &[]).await;
    assert_eq!(answer.status, 200, "{algorithm}: {answer:?}");
    let forged = by_hand(&world.claims(), algorithm, |message| sign(&message[1..]));
    let answer = world.assume(&forged, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.tag("Code")), (400, "InvalidIdentityToken"), "{algorithm}");
}

#[tokio::test]
async fn all_six_algorithms_of_sts_are_verified() {
    let world = World::new().await;
    let random = SystemRandom::new();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);

    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = rsa.public_key();
    let (n, e) = (encode(public.modulus().big_endian_without_leading_zero()), encode(&[1, 0, 1]));
    let algorithms: [(&str, &dyn RsaEncoding); 3] = [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
    ];
    for (name, encoding) in algorithms {
        let key = json!({ "kty": "RSA", "kid": "by-hand", "n": n, "e": e });
        accepted(&world, name, key, |message| {
            let mut signature = vec![0; rsa.public_modulus_len()];
            rsa.sign(encoding, &random, message, &mut signature).unwrap();
            signature
        })
        .await;
    }

    let algorithms: [(&str, &str, &'static EcdsaSigningAlgorithm); 3] = [
        ("ES256", "P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        ("ES384", "P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ("ES512", "P-521", &signature::ECDSA_P521_SHA512_FIXED_SIGNING),
    ];
    for (name, curve, algorithm) in algorithms {
        let ec = EcdsaKeyPair::generate(algorithm).unwrap();
        let (x, y) = ec.public_key().as_ref()[1..].split_at((ec.public_key().as_ref().len() - 1) / 2);
        let key = json!({ "kty": "EC", "crv": curve, "kid": "by-hand", "x": encode(x), "y": encode(y) });
        accepted(&world, name, key, |message| ec.sign(&random, message).unwrap().as_ref().to_vec()).await;
    }
}
