use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use super::*;

const ISSUER: &str = "https://oidc.example.com/prod";

fn served_as(issuer: &str, jwks_uri: &str, keys: &[(&str, &str)]) -> Served {
    let keys = keys.iter().map(|(id, number)| json!({ "kty": "RSA", "kid": id, "n": number, "e": "AQAB", "more": 1 }));
    let keys = json!({ "keys": keys.collect::<Vec<_>>() });
    let discovery = json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    Served {
        servers: vec!["https://api.example.com".to_owned()],
        issuer: issuer.to_owned(),
        discovery: Discovery::parse(&discovery.to_string()).unwrap(),
        keys: KeySet::parse(&keys.to_string()).unwrap(),
    }
}

fn served(ids: &[&str]) -> Served {
    let keys = ids.iter().map(|id| (*id, "AQAB")).collect::<Vec<_>>();
    served_as(ISSUER, &format!("{ISSUER}/openid/v1/jwks"), &keys)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn json_of(directory: &tempfile::TempDir, path: &str) -> Value {
    serde_json::from_slice(&fs::read(directory.path().join(path)).unwrap()).unwrap()
}

fn ids(directory: &tempfile::TempDir) -> Vec<String> {
    let keys = json_of(directory, "prod/openid/v1/jwks");
    keys["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn done(exported: &Exported) -> Vec<Done> {
    exported.files.iter().map(|file| file.done).collect()
}

#[test]
fn both_documents_are_below_the_issuers_path_and_say_what_the_api_server_said() {
    let directory = directory();
    let exported = export(directory.path(), &served(&["a"]), None, false).unwrap();
    assert_eq!(json_of(&directory, "prod/.well-known/openid-configuration"), Value::Object(served(&[]).discovery.0));
    assert_eq!(
        json_of(&directory, "prod/openid/v1/jwks"),
        served(&["a"]).keys.json(),
        "with members that nobody knows"
    );
    let files = exported.files.iter().map(|file| (file.url.as_str(), file.path.as_str())).collect::<Vec<_>>();
    assert_eq!(
        files,
        [
            ("https://oidc.example.com/prod/openid/v1/jwks", "prod/openid/v1/jwks"),
            ("https://oidc.example.com/prod/.well-known/openid-configuration", "prod/.well-known/openid-configuration"),
        ]
    );
    assert_eq!(done(&exported), [Done::New, Done::New]);
    assert_eq!(exported.rewritten_jwks_uri, None);
}

#[test]
fn an_issuer_without_a_path_is_at_the_hosts_root_and_two_issuers_share_a_directory() {
    let directory = directory();
    let root = served_as("https://oidc.example.com", "https://oidc.example.com/keys.json", &[("a", "AQAB")]);
    export(directory.path(), &root, None, false).unwrap();
    export(directory.path(), &served(&["b"]), None, false).unwrap();
    assert_eq!(json_of(&directory, ".well-known/openid-configuration")["issuer"], "https://oidc.example.com");
    assert_eq!(json_of(&directory, "keys.json")["keys"][0]["kid"], "a");
    assert_eq!(ids(&directory), ["b"]);
}

#[test]
fn a_jwks_uri_that_is_not_below_the_issuer_is_put_there_and_that_is_told() {
    for uri in [
        "https://ip-10-0-23-45.eu-west-1.compute.internal:443/openid/v1/jwks",
        "https://oidc.example.com/production/openid/v1/jwks",
        "https://oidc.example.com/prod/",
        "https://oidc.example.com/prod/../jwks",
        "https://oidc.example.com/prod/a%2fb",
        "https://oidc.example.com/prod/jwks?v=1",
        "https://oidc.example.com/prod/.well-known/openid-configuration",
        "",
    ] {
        let directory = directory();
        let exported = export(directory.path(), &served_as(ISSUER, uri, &[("a", "AQAB")]), None, false).unwrap();
        assert_eq!(exported.rewritten_jwks_uri.as_deref(), Some(uri));
        assert_eq!(
            json_of(&directory, "prod/.well-known/openid-configuration")["jwks_uri"],
            "https://oidc.example.com/prod/openid/v1/jwks",
            "{uri}"
        );
        assert_eq!(ids(&directory), ["a"], "{uri}");
    }
}

#[test]
fn the_documents_of_an_issuer_that_is_yet_to_come_are_written_with_the_keys_of_today() {
    let directory = directory();
    let inside = "https://kubernetes.default.svc.cluster.local";
    let today = served_as(inside, "https://10.0.0.1:6443/openid/v1/jwks", &[("a", "AQAB")]);
    let exported = export(directory.path(), &today, Some("https://oidc.example.com/prod/"), false).unwrap();
    let document = json_of(&directory, "prod/.well-known/openid-configuration");
    // With the slash that the name has, and where others look for it.
    assert_eq!(document["issuer"], "https://oidc.example.com/prod/");
    assert_eq!(document["jwks_uri"], "https://oidc.example.com/prod/openid/v1/jwks");
    assert_eq!(exported.issuer, "https://oidc.example.com/prod/");
    assert_eq!(ids(&directory), ["a"]);
}

#[test]
fn keys_of_earlier_exports_stay_until_they_are_dropped() {
    let directory = directory();
    export(directory.path(), &served(&["a"]), None, false).unwrap();
    // During a rotation API servers differ, and any may be the one that is asked.
    for (now, all) in [(vec!["b"], vec!["b", "a"]), (vec!["a"], vec!["a", "b"]), (vec!["c"], vec!["c", "a", "b"])] {
        let exported = export(directory.path(), &served(&now), None, false).unwrap();
        assert_eq!(ids(&directory), all);
        let of_cluster = exported.keys.iter().filter(|key| key.of_cluster).map(|key| &key.kid).collect::<Vec<_>>();
        assert_eq!(of_cluster, now);
        assert!(exported.dropped.is_empty());
    }
    let exported = export(directory.path(), &served(&["c", "b"]), None, true).unwrap();
    assert_eq!(ids(&directory), ["c", "b"]);
    assert_eq!(exported.dropped.len(), 1);
    assert!(exported.dropped[0].starts_with("a "), "{:?}", exported.dropped);
}

#[test]
fn keys_stay_also_when_their_place_changes() {
    let directory = directory();
    let before = served_as(ISSUER, &format!("{ISSUER}/keys.json"), &[("a", "AQAB")]);
    export(directory.path(), &before, None, false).unwrap();
    export(directory.path(), &served(&["b"]), None, false).unwrap();
    assert_eq!(ids(&directory), ["b", "a"]);
    // For whoever has the old document still.
    assert_eq!(json_of(&directory, "prod/keys.json")["keys"][0]["kid"], "a");
}

#[test]
fn the_same_export_again_writes_nothing() {
    let directory = directory();
    export(directory.path(), &served(&["a"]), None, false).unwrap();
    let inode = || fs::metadata(directory.path().join("prod/openid/v1/jwks")).unwrap().ino();
    let before = inode();
    assert_eq!(done(&export(directory.path(), &served(&["a"]), None, false).unwrap()), [Done::Unchanged; 2]);
    assert_eq!(inode(), before);
    let changed = export(directory.path(), &served(&["a", "b"]), None, false).unwrap();
    assert_eq!(done(&changed), [Done::Changed, Done::Unchanged]);
    assert_ne!(inode(), before, "a new file takes its place: whoever reads the old one reads it whole");
}

#[test]
fn nothing_but_the_documents_is_left_also_where_an_earlier_run_was_cut_off() {
    let directory = directory();
    let folder = directory.path().join("prod/openid/v1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".jwks.new"), "{\"keys\": [").unwrap();
    export(directory.path(), &served(&["a"]), None, false).unwrap();
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names, ["jwks"]);
}

#[test]
fn what_cannot_be_read_is_no_reason_to_lose_keys() {
    for broken in ["", "{\"keys\": [", "<html>"] {
        let directory = directory();
        export(directory.path(), &served(&["a"]), None, false).unwrap();
        fs::write(directory.path().join("prod/openid/v1/jwks"), broken).unwrap();
        let error = export(directory.path(), &served(&["b"]), None, false).unwrap_err().to_string();
        assert!(error.contains("would be lost"), "{error}");
        assert_eq!(fs::read_to_string(directory.path().join("prod/openid/v1/jwks")).unwrap(), broken);
    }
}

#[test]
fn a_directory_of_another_issuer_is_refused() {
    let directory = directory();
    export(directory.path(), &served(&["a"]), None, false).unwrap();
    let other = served_as("https://elsewhere.example/prod", "", &[("b", "AQAB")]);
    let error = export(directory.path(), &other, None, false).unwrap_err().to_string();
    assert!(error.contains("is of the issuer https://oidc.example.com/prod"), "{error}");
    assert_eq!(ids(&directory), ["a"]);
}

#[test]
fn two_keys_of_one_name_are_refused_and_nothing_is_written() {
    let directory = directory();
    export(directory.path(), &served(&["a"]), None, false).unwrap();
    let other = served_as(ISSUER, &format!("{ISSUER}/openid/v1/jwks"), &[("a", "AQAC")]);
    let error = export(directory.path(), &other, None, false).unwrap_err().to_string();
    assert!(error.contains("another one of the same kid"), "{error}");
    assert_eq!(json_of(&directory, "prod/openid/v1/jwks")["keys"][0]["n"], "AQAB");
    export(directory.path(), &other, None, true).unwrap();
    assert_eq!(json_of(&directory, "prod/openid/v1/jwks")["keys"][0]["n"], "AQAC");
}

#[test]
fn no_private_part_and_no_empty_set_is_ever_written() {
    let directory = directory();
    let mut secret = served(&["a"]);
    let keys = json!({ "keys": [{ "kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB", "d": "AQAB" }] });
    secret.keys = KeySet::parse(&keys.to_string()).unwrap();
    for (served, words) in [(&secret, "private part (d)"), (&served(&[]), "has no keys")] {
        let error = export(directory.path(), served, None, false).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(!directory.path().join("prod").exists());
}

#[test]
fn an_issuer_whose_path_might_lead_out_of_the_directory_is_refused() {
    for issuer in [
        "https://oidc.example.com/../prod",
        "https://oidc.example.com/a/./b",
        "https://oidc.example.com/a//b",
        "https://oidc.example.com/%2e%2e",
        "https://oidc.example.com/a\\b",
        "https://oidc.example.com/?a",
        "http://oidc.example.com",
        "kubernetes/serviceaccount",
    ] {
        let directory = directory();
        let served = served_as(issuer, "", &[("a", "AQAB")]);
        assert!(export(directory.path(), &served, None, false).is_err(), "{issuer}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{issuer}");
    }
}

#[test]
fn exports_at_once_lose_no_key() {
    let directory = directory();
    std::thread::scope(|scope| {
        for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let directory = &directory;
            scope.spawn(move || export(directory.path(), &served(&[id]), None, false).unwrap());
        }
    });
    let mut all = ids(&directory);
    all.sort();
    assert_eq!(all, ["a", "b", "c", "d", "e", "f", "g", "h"]);
}
