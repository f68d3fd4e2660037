//! The keys outside, by themselves and beside the cluster's.

use super::{NO_KEY, PUBLISH};
use crate::operator::oidc::{
    documents::{Flaw, Key, KeySet},
    finding::{Check, Finding, State},
    served::Served,
};

/// Keys of a kind that STS takes of one issuer.
const MOST: usize = 100;

/// What is to be said of the keys at `url`.
pub(super) fn findings(url: &str, outside: &KeySet, served: Option<&Served>) -> Vec<Finding> {
    let check = Check::Keys;
    let mut found = Vec::new();
    if outside.keys.is_empty() {
        found.push(check.fails(format!("{url} has no key"), NO_KEY, PUBLISH));
    }
    for kind in ["RSA", "EC"] {
        let count = outside.keys.iter().filter(|key| key.kind() == kind).count();
        if count > MOST {
            found.push(check.fails(
                format!("{url} has {count} keys of the kind {kind}"),
                format!("STS takes at most {MOST} of each kind. {NO_KEY}"),
                "kube2irsa oidc export DIR --drop-old-keys, and put what is in DIR on the web host.",
            ));
        }
    }
    found.extend(outside.keys.iter().filter_map(|key| published_secret(url, key)));
    found.extend(same_names(url, outside));
    match served {
        None => found.extend(outside.keys.iter().flat_map(|key| flaws(&format!("{url}: the key {key}"), key))),
        Some(served) => {
            found.extend(served.keys.keys.iter().flat_map(of_cluster));
            found.extend(served.keys.keys.iter().flat_map(|key| missing(url, key, outside)));
            found.extend(outside.keys.iter().filter_map(|key| unknown(url, key, &served.keys)));
        }
    }
    if !found.iter().any(|finding| finding.state == State::Fails) {
        let what = match (outside.keys.len(), served) {
            (1, Some(_)) => "has one key, which is the cluster's".to_owned(),
            (many, Some(served)) => format!("has {many} keys, of which {} are the cluster's", served.keys.keys.len()),
            (1, None) => "has one key, of a kind that STS takes".to_owned(),
            (many, None) => format!("has {many} keys, of kinds that STS takes"),
        };
        found.insert(0, check.ok(format!("{url} {what}")));
    }
    found
}

/// Whoever has the private part of a key signs tokens of every service account.
fn published_secret(url: &str, key: &Key) -> Option<Finding> {
    let secrets = key.secrets();
    (!secrets.is_empty()).then(|| {
        Check::Keys.fails(
            format!("{url}: the key {key} is there with its private part ({})", secrets.join(", ")),
            "Whoever read it can sign tokens of every service account, for every role.",
            "Take it out at once, sign with a new key, and take the old one out of every API server.",
        )
    })
}

fn same_names(url: &str, outside: &KeySet) -> Vec<Finding> {
    let keys = &outside.keys;
    let twice = keys
        .iter()
        .enumerate()
        .filter(|(at, key)| key.id().is_some() && keys[..*at].iter().any(|one| one.has_name_of(key)));
    let mut found = Vec::new();
    for (at, key) in twice {
        let what = format!("{url} has two keys of the kid {}", key.id().unwrap_or_default());
        let finding = match keys[..at].iter().any(|one| one.is_same(key)) {
            true => Check::Keys.note(what, "They are the same key, which is there twice.", "Leave one."),
            false => Check::Keys.fails(
                what,
                "A token names its key by the kid alone: of the one or of the other key STS refuses every token.",
                "Leave the cluster's.",
            ),
        };
        if !found.contains(&finding) {
            found.push(finding);
        }
    }
    found
}

/// What keeps STS from taking a key of the cluster's, wherever it is.
pub(super) fn of_cluster(key: &Key) -> Vec<Finding> {
    flaws(&format!("the cluster's key {key}"), key)
}

fn flaws(whose: &str, key: &Key) -> Vec<Finding> {
    let fails = |what: String, mend: &str| {
        let why = "STS refuses every token that is signed with it: InvalidIdentityToken.";
        Check::Keys.fails(format!("{whose} {what}"), why, mend)
    };
    let said = |flaw: Flaw| match flaw {
        Flaw::NoId => fails("has no kid".to_owned(), "Give it the kid that tokens name, or \"\" where they name none."),
        Flaw::Use(usage) => {
            fails(format!("is for {usage:?}, not for signatures"), "Its use must be \"sig\", or not there.")
        }
        Flaw::Algorithm(_) => fails(
            "is of no algorithm that STS takes".to_owned(),
            "Sign with a key of RSA, or of ECDSA on P-256, P-384 or P-521, by the algorithm of that curve.",
        ),
        Flaw::Incomplete => fails("lacks a public number".to_owned(), PUBLISH),
    };
    key.flaws().into_iter().map(said).collect()
}

/// A key of the cluster's that STS does not find, or finds to be another one.
fn missing(url: &str, key: &Key, outside: &KeySet) -> Option<Finding> {
    let what = if outside.keys.iter().any(|one| one.stands_for(key)) {
        return None;
    } else if outside.has(key) {
        format!("the cluster's key {key} is at {url} with a use or an alg by which it is not for its tokens")
    } else if outside.keys.iter().any(|one| one.has_name_of(key)) {
        format!("the cluster's key {key} is another one at {url}, by the same kid")
    } else {
        format!("the cluster's key {key} is not at {url}")
    };
    let why = "STS refuses every token that is signed with it: InvalidIdentityToken, \"Couldn't retrieve verification key from \
               your identity provider\". Pods lose their credentials as these run out.";
    Some(Check::Keys.fails(what, why, PUBLISH))
}

/// A key outside that the cluster does not have.
fn unknown(url: &str, key: &Key, cluster: &KeySet) -> Option<Finding> {
    (!cluster.keys.iter().any(|one| one.has_name_of(key))).then(|| {
        Check::Keys.note(
            format!("{url}: the key {key} is none of the cluster's"),
            "It may be of an API server that was not asked, one that is yet to come, or an old one. Tokens that it signed are \
             taken for as long as it is there.",
            "If it is old: kube2irsa oidc export DIR --drop-old-keys, a day after the last API server stopped signing with it.",
        )
    })
}
