use std::{net::IpAddr, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{
    super::{
        fetch::{Shown, Trust},
        finding::State,
    },
    *,
};

const ISSUER: &str = "https://oidc.example.com/prod";
const KEYS: &str = "https://oidc.example.com/prod/openid/v1/jwks";
const DAY: u64 = 24 * 60 * 60;
/// 2026-11-26.
const TODAY: u64 = 20_783 * DAY;

/// A cluster and a web host between which all is well, until something is changed.
struct World {
    issuer: String,
    served: Option<Served>,
    discovery: Value,
    keys: Value,
    answers: [Result<Answer, FetchError>; 2],
    addresses: Vec<IpAddr>,
    shown: Shown,
    keys_url: String,
    now: SystemTime,
}

fn rsa(id: &str, number: &str) -> Value {
    json!({ "use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": number, "e": "AQAB" })
}

fn chain(names: &[&str]) -> Vec<CertificateDer<'static>> {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = root.self_signed(&key).unwrap();
    let root = Issuer::new(root, key);
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut host = CertificateParams::new(names).unwrap();
    host.distinguished_name = rcgen::DistinguishedName::new();
    host.not_before = date_time_ymd(2026, 10, 1);
    host.not_after = date_time_ymd(2026, 12, 30);
    let host = host.signed_by(&KeyPair::generate().unwrap(), &root).unwrap();
    vec![host.der().clone(), certificate.der().clone()]
}

impl World {
    fn new() -> Self {
        let discovery = json!({
            "issuer": ISSUER,
            "jwks_uri": KEYS,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        });
        let keys = json!({ "keys": [rsa("a", "AQAB"), rsa("b", "AQAC")] });
        let json = |kind: &str| Ok(Answer { status: 200, content_type: Some(kind.to_owned()), ..Answer::default() });
        let served = Served {
            servers: vec!["https://api.example.com".to_owned()],
            issuer: ISSUER.to_owned(),
            discovery: Discovery::parse(&discovery.to_string()).unwrap(),
            keys: KeySet::parse(&keys.to_string()).unwrap(),
        };
        Self {
            issuer: ISSUER.to_owned(),
            served: Some(served),
            discovery,
            keys,
            answers: [json("application/json"), json("application/json; charset=utf-8")],
            addresses: vec!["203.0.113.7".parse().unwrap()],
            shown: Shown { chain: chain(&["oidc.example.com"]), trust: Trust::Public, only_tls13: false },
            keys_url: KEYS.to_owned(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(TODAY),
        }
    }

    fn cluster_keys(&mut self, keys: &[Value]) {
        self.served.as_mut().unwrap().keys = KeySet::parse(&json!({ "keys": keys }).to_string()).unwrap();
    }

    fn fetched(&self, which: usize, url: &str, body: &Value) -> Fetched {
        let answer = self.answers[which].clone().map(|mut answer| {
            if answer.body.is_empty() {
                answer.body = body.to_string().into_bytes();
            }
            answer
        });
        let shown = Some(self.shown.clone());
        Fetched { url: url.to_owned(), addresses: self.addresses.clone(), shown, answer }
    }

    fn findings(&self) -> Vec<Finding> {
        findings(&Facts {
            issuer: &self.issuer,
            served: self.served.as_ref().ok_or("no kubeconfig"),
            discovery: self.fetched(0, &super::super::documents::discovery_url(&self.issuer), &self.discovery),
            keys: Some(self.fetched(1, &self.keys_url, &self.keys)),
            now: self.now,
        })
    }
}

/// What is found after the change, but for what is as it should be.
fn changed(change: impl FnOnce(&mut World)) -> Vec<Finding> {
    let mut world = World::new();
    change(&mut world);
    world.findings().into_iter().filter(|finding| finding.state != State::Ok).collect()
}

/// The change is found by this check alone, in this way, and in these words; it is said why it matters and what mends it.
#[track_caller]
fn finds(check: Check, state: State, words: &str, change: impl FnOnce(&mut World)) -> Finding {
    let found = changed(change);
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.check, finding.state), (check, state), "{finding}");
    assert!(finding.what.contains(words), "{finding}");
    assert!(!finding.why.is_empty() && !finding.mend.is_empty(), "{finding}");
    finding.clone()
}

#[test]
fn where_all_is_well_each_check_says_so() {
    let found = World::new().findings();
    let checks = [Check::Issuer, Check::Cluster, Check::Discovery, Check::Keys, Check::Certificate, Check::Thumbprint];
    assert_eq!(found.iter().map(|finding| finding.check).collect::<Vec<_>>(), checks, "{found:#?}");
    assert!(found.iter().all(|finding| finding.state == State::Ok), "{found:#?}");
}

#[test]
fn an_issuer_that_aws_cannot_use_is_found_beside_what_is_outside() {
    let inside = "https://kubernetes.default.svc.cluster.local";
    let found = changed(|world| {
        world.issuer = inside.to_owned();
        world.served.as_mut().unwrap().issuer = inside.to_owned();
        world.discovery["issuer"] = json!(inside);
    });
    assert_eq!((found.len(), found[0].check, found[0].state), (1, Check::Issuer, State::Fails), "{found:#?}");
}

#[test]
fn a_cluster_of_another_issuer_is_found_byte_for_byte() {
    for other in ["https://oidc.example.com/prod/", "https://oidc.example.com/Prod", "https://oidc.example.com"] {
        let found = changed(|world| world.served.as_mut().unwrap().issuer = other.to_owned());
        let fails = found.iter().find(|finding| finding.check == Check::Cluster).unwrap();
        assert_eq!(fails.state, State::Fails, "{found:#?}");
        assert!(fails.mend.contains(ISSUER));
    }
}

#[test]
fn without_a_cluster_the_outside_is_judged_and_it_is_said_that_nothing_was_compared() {
    let note = finds(Check::Cluster, State::Note, "nothing was compared", |world| world.served = None);
    assert!(note.why.contains("no kubeconfig"));
    let found = changed(|world| {
        world.served = None;
        world.keys["keys"][0]["use"] = json!("enc");
    });
    assert!(found.iter().any(|finding| finding.check == Check::Keys && finding.state == State::Fails), "{found:#?}");
}

#[test]
fn a_discovery_document_that_does_not_say_what_it_must_is_found() {
    let check = Check::Discovery;
    finds(check, State::Fails, "is of the issuer https://oidc.example.com, not of", |world| {
        world.discovery["issuer"] = json!("https://oidc.example.com");
    });
    for name in ["response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"] {
        for value in [Value::Null, json!([]), json!("RS256"), json!([1])] {
            finds(check, State::Fails, name, |world| world.discovery[name] = value);
        }
    }
    for (name, words) in [("issuer", "names no issuer"), ("jwks_uri", "has no jwks_uri")] {
        finds(check, State::Fails, words, |world| drop(world.discovery.as_object_mut().unwrap().remove(name)));
    }
    for uri in ["http://oidc.example.com/prod/openid/v1/jwks", "/openid/v1/jwks", "https://"] {
        finds(check, State::Fails, "is no https URL", |world| world.discovery["jwks_uri"] = json!(uri));
    }
    for uri in
        ["https://ip-10-0-23-45.eu-west-1.compute.internal:443/openid/v1/jwks", "https://10.0.0.1/openid/v1/jwks"]
    {
        finds(check, State::Fails, "not to be reached", |world| world.discovery["jwks_uri"] = json!(uri));
    }
}

#[test]
fn algorithms_that_sts_does_not_take_are_found() {
    let found = changed(|world| {
        world.discovery["id_token_signing_alg_values_supported"] = json!(["EdDSA", "PS256", "HS256"]);
    });
    let fails = found.iter().filter(|finding| finding.state == State::Fails).collect::<Vec<_>>();
    assert!(matches!(fails.as_slice(), [fails] if fails.check == Check::Discovery), "{found:#?}");
    // Beside one that is taken they do no harm.
    assert_eq!(
        changed(|world| world.discovery["id_token_signing_alg_values_supported"] = json!(["EdDSA", "RS256"])),
        []
    );
    finds(Check::Discovery, State::Note, "does not name RS256", |world| {
        world.discovery["id_token_signing_alg_values_supported"] = json!(["ES256"]);
    });
    finds(Check::Keys, State::Fails, "is of no algorithm that STS takes", |world| {
        let key = json!({ "kty": "OKP", "kid": "c", "alg": "EdDSA", "crv": "Ed25519", "x": "AQAB" });
        world.cluster_keys(std::slice::from_ref(&key));
        world.keys = json!({ "keys": [key] });
    });
}

#[test]
fn a_key_of_the_clusters_that_is_not_outside_fails_and_one_that_is_only_outside_is_a_note() {
    let fails = finds(Check::Keys, State::Fails, "the cluster's key b ", |world| {
        world.keys["keys"].as_array_mut().unwrap().truncate(1);
    });
    assert!(fails.mend.contains("kube2irsa oidc export"));
    let note = finds(Check::Keys, State::Note, "the key c ", |world| {
        world.keys["keys"].as_array_mut().unwrap().push(rsa("c", "AQAD"));
    });
    assert!(note.mend.contains("--drop-old-keys"));
}

#[test]
fn a_key_that_is_another_one_outside_fails() {
    finds(Check::Keys, State::Fails, "another one", |world| world.keys["keys"][0]["n"] = json!("AQAF"));
    finds(Check::Keys, State::Fails, "a use or an alg", |world| world.keys["keys"][0]["alg"] = json!("RS512"));
    finds(Check::Keys, State::Fails, "a use or an alg", |world| world.keys["keys"][0]["use"] = json!("enc"));
    let found = changed(|world| {
        world.keys["keys"][0].as_object_mut().unwrap().remove("kid");
    });
    assert!(
        found.iter().any(|one| one.state == State::Fails && one.what.contains("the cluster's key a ")),
        "{found:#?}"
    );
}

#[test]
fn keys_that_sts_finds_no_key_in_fail() {
    type Change = fn(&mut Value);
    let without_cluster = |change: Change| {
        changed(move |world| {
            world.served = None;
            change(&mut world.keys);
        })
    };
    let changes: [(Change, &str); 6] = [
        (|keys| keys["keys"] = json!([]), "has no key"),
        (|keys| drop(keys["keys"][0].as_object_mut().unwrap().remove("kid")), "has no kid"),
        (|keys| keys["keys"][0]["use"] = json!("enc"), "not for signatures"),
        (|keys| keys["keys"][0]["kty"] = json!("oct"), "no algorithm that STS takes"),
        (|keys| keys["keys"][0]["n"] = json!("?"), "lacks a public number"),
        (|keys| keys["keys"][1]["kid"] = json!("a"), "two keys of the kid a"),
    ];
    for (change, words) in changes {
        let found = without_cluster(change);
        let fails = found.iter().filter(|finding| finding.state == State::Fails).collect::<Vec<_>>();
        assert!(matches!(fails.as_slice(), [one] if one.what.contains(words)), "{words}: {found:#?}");
    }
    finds(Check::Keys, State::Note, "two keys of the kid a", |world| {
        world.keys["keys"].as_array_mut().unwrap().push(rsa("a", "AQAB"));
    });
    finds(Check::Keys, State::Fails, "with its private part (d)", |world| world.keys["keys"][0]["d"] = json!("AQAB"));
}

#[test]
fn more_than_a_hundred_keys_of_a_kind_fail() {
    let many = |count: usize| (0..count).map(|number| rsa(&number.to_string(), "AQAB")).collect::<Vec<_>>();
    let with = |count: usize| {
        changed(|world| {
            world.cluster_keys(&many(count));
            world.keys = json!({ "keys": many(count) });
        })
    };
    assert_eq!(with(100), []);
    assert!(matches!(with(101).as_slice(), [one] if one.what.contains("101 keys of the kind RSA")));
}

#[test]
fn what_is_no_document_fails() {
    for (which, check) in [(0, Check::Discovery), (1, Check::Keys)] {
        for body in ["<html>not here</html>", "[]", "{", "\u{feff}{}", "{\"keys\":{}}"] {
            let found = changed(|world| world.answers[which].as_mut().unwrap().body = body.as_bytes().to_vec());
            assert!(found.iter().all(|one| one.check == check && one.state == State::Fails), "{body}: {found:#?}");
            assert!(!found.is_empty(), "{body}");
        }
        finds(check, State::Fails, "is no text", |world| world.answers[which].as_mut().unwrap().body = vec![0xff]);
    }
}

#[test]
fn an_answer_that_is_not_the_document_itself_fails() {
    for (which, check) in [(0, Check::Discovery), (1, Check::Keys)] {
        let status = |status: u16, words: &str| {
            finds(check, State::Fails, words, |world| world.answers[which].as_mut().unwrap().status = status)
        };
        status(403, "may not be read (403)");
        status(401, "may not be read (401)");
        status(404, "is answered by 404");
        status(204, "is answered by 204");
        assert_eq!(status(503, "is answered by 503").why, OUT_OF_REACH);
        let redirected = finds(check, State::Fails, "is redirected (301) to https://elsewhere.example/", |world| {
            let answer = world.answers[which].as_mut().unwrap();
            (answer.status, answer.location) = (301, Some("https://elsewhere.example/".to_owned()));
        });
        assert!(redirected.why.contains("follows no redirect"));
        finds(check, State::Note, "its Content-Type is text/html", |world| {
            world.answers[which].as_mut().unwrap().content_type = Some("text/html".to_owned());
        });
        finds(check, State::Note, "its Content-Type is none", |world| {
            world.answers[which].as_mut().unwrap().content_type = None;
        });
    }
    assert_eq!(
        changed(|world| world.answers[1].as_mut().unwrap().content_type = Some("application/jwk-set+json".to_owned())),
        []
    );
}

#[test]
fn a_host_that_does_not_answer_fails() {
    for (error, words) in [
        (FetchError::Url, "is no https URL"),
        (FetchError::Name("no such name".to_owned()), "no such name"),
        (FetchError::Connect("refused".to_owned()), "refused"),
        (FetchError::Tls("alert".to_owned()), "alert"),
        (FetchError::Http("cut".to_owned()), "cut"),
        (FetchError::Slow, "within 5 s"),
        (FetchError::Large, "larger than 1048576 bytes"),
    ] {
        for (which, check) in [(0, Check::Discovery), (1, Check::Keys)] {
            finds(check, State::Fails, words, |world| world.answers[which] = Err(error.clone()));
        }
    }
}

#[test]
fn keys_that_caches_may_keep_for_long_are_a_note() {
    let with = |value: &str| {
        let value = value.to_owned();
        move |world: &mut World| world.answers[1].as_mut().unwrap().cache_control = Some(value)
    };
    finds(Check::Keys, State::Note, "may be kept for 86400 s", with("public, max-age=86400"));
    for well in ["public, max-age=300", "max-age=3600", "no-store", "max-age=never"] {
        assert_eq!(changed(with(well)), [], "{well}");
    }
}

#[test]
fn a_certificate_that_is_not_good_or_about_to_end_fails() {
    let fails = finds_with_trust(Trust::None("certificate expired".to_owned()));
    assert!(fails.what.contains("certificate expired") && fails.why.contains("thumbprint"), "{fails}");
    let ends = finds(Check::Certificate, State::Fails, "ends at 2026-12-30T00:00:00Z", |world| {
        world.now += Duration::from_secs(21 * DAY);
    });
    assert!(ends.mend.contains("Renew"));
    assert_eq!(changed(|world| world.now += Duration::from_secs(19 * DAY)), []);
}

fn finds_with_trust(trust: Trust) -> Finding {
    finds(Check::Certificate, State::Fails, "its certificate is not good", |world| world.shown.trust = trust)
}

#[test]
fn a_host_that_leaves_out_the_authorities_between_is_told_to_send_them() {
    let fails = finds(Check::Certificate, State::Fails, "its certificate is not good", |world| {
        world.shown.trust = Trust::None("UnknownIssuer".to_owned());
        world.shown.chain.truncate(1);
    });
    assert!(fails.mend.contains("between its own and the root"), "{fails}");
}

#[test]
fn certificates_in_an_order_that_sts_fails_on_are_found() {
    finds(Check::Certificate, State::Fails, "in another order", |world| world.shown.chain.reverse());
    finds(Check::Certificate, State::Fails, "sends a certificate twice", |world| {
        let last = world.shown.chain.last().unwrap().clone();
        world.shown.chain.push(last);
    });
}

#[test]
fn a_machine_without_authorities_says_that_it_does_not_know() {
    finds(Check::Certificate, State::Note, "knows no authorities", |world| world.shown.trust = Trust::Unknown);
}

#[test]
fn the_thumbprint_is_said_where_iam_goes_by_it() {
    let thumbprint = super::super::certificate::thumbprint(&World::new().shown.chain[1..]).unwrap();
    assert_eq!(thumbprint.len(), 40);
    let own = finds(Check::Thumbprint, State::Note, "IAM goes by it", |world| world.shown.trust = Trust::Own);
    assert!(own.mend.contains("--thumbprint-list"), "{own}");
    let tls13 = finds(Check::Thumbprint, State::Note, "refuses TLS 1.2", |world| world.shown.only_tls13 = true);
    assert!(tls13.mend.contains("--thumbprint-list"), "{tls13}");
    let alone = finds(Check::Thumbprint, State::Note, "IAM goes by it", |world| {
        world.shown.trust = Trust::Own;
        world.shown.chain.truncate(1);
    });
    assert!(alone.why.contains("changes with each renewal"), "{alone}");

    let said = |issuer: &str| {
        let mut world = World::new();
        (world.issuer, world.keys_url) = (issuer.to_owned(), format!("{issuer}/openid/v1/jwks"));
        (world.discovery["issuer"], world.discovery["jwks_uri"]) = (json!(issuer), json!(world.keys_url));
        world.served.as_mut().unwrap().issuer = issuer.to_owned();
        world.shown.trust = Trust::Own;
        world.findings().pop().unwrap()
    };
    for (issuer, service) in [
        ("https://s3.eu-central-1.amazonaws.com/bucket/prod", "Amazon S3"),
        ("https://oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF", "EKS"),
    ] {
        let said = said(issuer);
        assert_eq!((said.check, said.state), (Check::Thumbprint, State::Ok));
        assert!(said.what.contains(&format!("IAM looks at none for {service}")), "{said}");
    }
}

#[test]
fn a_name_that_leads_to_private_addresses_here_is_a_note() {
    finds(Check::Certificate, State::Note, "is 10.0.0.7 here", |world| {
        world.addresses = vec!["10.0.0.7".parse().unwrap()];
    });
    assert_eq!(changed(|world| world.addresses.push("10.0.0.7".parse().unwrap())), [], "one of two is public");
}

#[test]
fn keys_on_another_host_are_looked_at_there_too() {
    let found = changed(|world| {
        world.keys_url = "https://keys.example.com/jwks".to_owned();
        world.discovery["jwks_uri"] = json!("https://keys.example.com/jwks");
        world.shown.trust = Trust::None("certificate expired".to_owned());
    });
    let hosts = found.iter().map(|one| one.what.split(':').next().unwrap()).collect::<Vec<_>>();
    assert_eq!(hosts, ["oidc.example.com", "keys.example.com"], "{found:#?}");
}
