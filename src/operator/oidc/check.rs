//! What follows from what AWS would fetch, and from what the cluster has. Pure.
//!
//! What STS is known to refuse fails; what is only unusual is a note. Where AWS's pages do not say what becomes of something,
//! neither do we.
//!
//! Sources: [IAM, "Create an OpenID Connect identity provider"][iam] (at least one key, at most a hundred of each kind, the six
//! algorithms); [its page on thumbprints][thumbprint] (which certificates, in which order, TLS 1.3); [STS's knowledge
//! centre][kc] (five seconds).
//!
//! [iam]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html
//! [thumbprint]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc_verify-thumbprint.html
//! [kc]: https://repost.aws/knowledge-center/iam-sts-invalididentitytoken

mod host;
mod keys;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use http::Uri;

use super::{
    documents::{ALGORITHMS, Discovery, KeySet},
    fetch::{Answer, FetchError, Fetched},
    finding::{Check, Finding},
    issuer,
    served::Served,
};

/// What STS says where it finds no key.
const NO_KEY: &str = "STS then refuses every token: InvalidIdentityToken, \"Couldn't retrieve verification key from your \
                      identity provider\".";
/// What it says where it finds nobody.
const OUT_OF_REACH: &str = "STS then refuses every token: IDPCommunicationError or InvalidIdentityToken.";
/// What mends most.
const PUBLISH: &str = "kube2irsa oidc export DIR, and put what is in DIR on the web host.";

/// What is known.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Whose documents were fetched.
    pub issuer: &'a str,
    /// What the cluster has; or why that is not known.
    pub served: Result<&'a Served, &'a str>,
    /// The discovery document.
    pub discovery: Fetched,
    /// What is where it says that the keys are.
    pub keys: Option<Fetched>,
    /// When.
    pub now: SystemTime,
}

/// What is to be said of it.
#[must_use]
pub fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found = issuer::findings(facts.issuer);
    found.push(cluster(facts));
    found.extend(discovery(facts));
    if let Some(fetched) = &facts.keys {
        found.extend(keys_at(fetched, facts.served.ok()));
        if host_of(&fetched.url) != host_of(&facts.discovery.url) {
            found.extend(host::certificate(&facts.discovery, facts.now));
        }
        found.extend(host::certificate(fetched, facts.now));
        found.extend(host::thumbprint(fetched, facts.issuer));
    } else {
        found.extend(host::certificate(&facts.discovery, facts.now));
    }
    found
}

/// What is to be said of the cluster's keys by themselves.
#[must_use]
pub fn of_cluster(keys: &KeySet) -> Vec<Finding> {
    keys.keys.iter().flat_map(keys::of_cluster).collect()
}

fn cluster(facts: &Facts<'_>) -> Finding {
    match facts.served {
        Err(why) => Check::Cluster.note(
            "nothing was compared with a cluster",
            format!("It cannot be asked: {why}"),
            "With a kubeconfig it is seen whether the keys are the cluster's.",
        ),
        Ok(served) if served.issuer == facts.issuer => {
            Check::Cluster.ok(format!("its tokens are of this issuer, byte for byte ({})", served.servers.join(", ")))
        }
        Ok(served) => Check::Cluster.fails(
            format!("its tokens are of another issuer: {}", served.issuer),
            "STS looks for the provider by the issuer that a token names, byte for byte.",
            format!(
                "Give the API server --service-account-issuer={} in front of the one that it has, or check that one.",
                facts.issuer
            ),
        ),
    }
}

fn discovery(facts: &Facts<'_>) -> Vec<Finding> {
    let check = Check::Discovery;
    let url = &facts.discovery.url;
    let (text, mut found) = match answered(check, &facts.discovery) {
        Ok(answered) => answered,
        Err(found) => return vec![found],
    };
    let document = match Discovery::parse(&text) {
        Ok(document) => document,
        Err(why) => {
            found.push(check.fails(format!("{url} {why}"), NO_KEY, PUBLISH));
            return found;
        }
    };
    let mut fails = |what: String, why: &str, mend: &str| found.push(check.fails(format!("{url}: {what}"), why, mend));
    match document.text("issuer") {
        Some(named) if named == facts.issuer => {}
        Some(named) => fails(format!("is of the issuer {named}, not of {}", facts.issuer), NO_KEY, PUBLISH),
        None => fails("names no issuer".to_owned(), NO_KEY, PUBLISH),
    }
    for name in ["response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"] {
        if document.list(name).is_none_or(|list| list.is_empty()) {
            fails(format!("{name} is no list of words, or has none"), NO_KEY, PUBLISH);
        }
    }
    let algorithms = document.list("id_token_signing_alg_values_supported").unwrap_or_default();
    if !algorithms.is_empty() && !algorithms.iter().any(|one| ALGORITHMS.contains(one)) {
        let what = format!("has no algorithm that STS takes, but {}", algorithms.join(", "));
        fails(what, NO_KEY, "Sign with a key of RSA, or of ECDSA on P-256, P-384 or P-521; EdDSA is not taken.");
    }
    match document.text("jwks_uri") {
        None => fails("has no jwks_uri".to_owned(), NO_KEY, PUBLISH),
        Some(uri) => {
            if let Some(why) = out_of_reach(uri) {
                fails(format!("its jwks_uri is {uri}, which {why}"), NO_KEY, PUBLISH);
            }
        }
    }
    if let Ok(served) = facts.served {
        let other = served.keys.keys.iter().filter_map(|key| key.algorithm());
        let other = other.filter(|one| ALGORITHMS.contains(one) && !algorithms.contains(one)).collect::<Vec<_>>();
        if let Some(algorithm) = other.first().filter(|_| !algorithms.is_empty()) {
            found.push(check.note(
                format!("{url}: does not name {algorithm}, which a key of the cluster is for"),
                "Who goes by that list takes no token that this key signed.",
                PUBLISH,
            ));
        }
    }
    if found.is_empty() {
        found.push(check.ok(format!("{url} says what it must")));
    }
    found
}

/// Why nobody outside can get keys there.
fn out_of_reach(jwks_uri: &str) -> Option<&'static str> {
    let uri = jwks_uri.parse::<Uri>().ok();
    let Some(host) = uri.as_ref().and_then(Uri::host).filter(|_| jwks_uri.starts_with("https://")) else {
        return Some("is no https URL");
    };
    issuer::out_of_reach(host).map(|_| "is not to be reached from the Internet")
}

fn keys_at(fetched: &Fetched, served: Option<&Served>) -> Vec<Finding> {
    let (text, mut found) = match answered(Check::Keys, fetched) {
        Ok(answered) => answered,
        Err(found) => return vec![found],
    };
    let url = &fetched.url;
    match KeySet::parse(&text) {
        Ok(outside) => found.extend(keys::findings(url, &outside, served)),
        Err(why) => found.push(Check::Keys.fails(format!("{url} {why}"), NO_KEY, PUBLISH)),
    }
    found.extend(cache(fetched));
    found
}

/// What a host answered, if that is a document, and what else is to be said of it.
fn answered(check: Check, fetched: &Fetched) -> Result<(String, Vec<Finding>), Finding> {
    let url = &fetched.url;
    let answer = match &fetched.answer {
        Ok(answer) => answer,
        Err(error) => {
            let mend = match error {
                FetchError::Url => PUBLISH,
                FetchError::Name(_) => "Give the name a record in the public DNS.",
                FetchError::Connect(_) => "Let port 443 of the host be reached by everybody.",
                FetchError::Tls(_) => "Let the host take TLS 1.2, with a certificate of its name.",
                FetchError::Http(_) => "See what the host is.",
                FetchError::Slow => "Take a host that answers at once: STS does not wait.",
                FetchError::Large => PUBLISH,
            };
            return Err(check.fails(format!("{url}: {error}"), OUT_OF_REACH, mend));
        }
    };
    match (answer.status, &answer.location) {
        (200, _) => {}
        (300..=399, location) => {
            let to = location.as_deref().unwrap_or("nowhere");
            return Err(check.fails(
                format!("{url} is redirected ({}) to {to}", answer.status),
                format!("STS follows no redirect. {NO_KEY}"),
                "Serve the document at this very URL.",
            ));
        }
        (401 | 403, _) => {
            return Err(check.fails(
                format!("{url} may not be read ({})", answer.status),
                NO_KEY,
                "Let everybody read it: nothing in it is secret. Of a bucket: its policy, and Block Public Access.",
            ));
        }
        (status, _) if status >= 500 => {
            return Err(check.fails(
                format!("{url} is answered by {status}"),
                OUT_OF_REACH,
                "See what the host lacks.",
            ));
        }
        (status, _) => return Err(check.fails(format!("{url} is answered by {status}"), NO_KEY, PUBLISH)),
    }
    let Ok(text) = String::from_utf8(answer.body.clone()) else {
        return Err(check.fails(format!("{url} is no text"), NO_KEY, PUBLISH));
    };
    Ok((text, content_type(check, url, answer).into_iter().collect()))
}

fn content_type(check: Check, url: &str, answer: &Answer) -> Option<Finding> {
    let of = answer.content_type.as_deref().unwrap_or("none");
    let kind = of.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if ["application/json", "application/jwk-set+json"].contains(&kind.as_str()) {
        return None;
    }
    Some(check.note(
        format!("{url}: its Content-Type is {of}"),
        "Some who read it want application/json.",
        "Serve it as application/json; of a bucket: aws s3 cp --content-type application/json",
    ))
}

/// How long a new key may stay unseen.
fn cache(fetched: &Fetched) -> Option<Finding> {
    const LONG: u64 = 60 * 60;
    let answer = fetched.answer.as_ref().ok()?;
    let directives = answer.cache_control.as_deref()?.split(',').map(str::trim);
    let age = directives.filter_map(|one| one.strip_prefix("max-age=")?.parse::<u64>().ok()).next()?;
    (age > LONG).then(|| {
        Check::Keys.note(
            format!("{}: may be kept for {age} s (Cache-Control)", fetched.url),
            "For so long after it was published, a new key may be unknown to whoever reads it by a cache.",
            "Wait so long before API servers sign with a new key, or serve it with Cache-Control: public, max-age=300",
        )
    })
}

fn host_of(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.authority().map(|authority| authority.as_str().to_ascii_lowercase())
}
