//! The API server: its version, its clock, and the issuer of its tokens as AWS has to find it.

use aws_smithy_types::{DateTime, date_time::Format};
use http::{Request, header::DATE};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;

use super::{checks, report::Report};
use crate::{
    clock,
    operator::{
        cluster::{self, Cluster},
        inventory::Read,
        oidc::{self, finding::State},
    },
};

/// The first minor version of 1 that has what direct mode needs, and node mode.
const DIRECT_FROM: u32 = 32;
const NODE_FROM: u32 = 36;
/// What clocks may differ by, in seconds.
const TOO_FAR: i64 = 60;
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// What the API server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// As in `v1.36.0`.
    pub(super) text: String,
    /// The second number.
    pub(super) minor: u32,
    /// Seconds that our clock is ahead of its.
    pub(super) ahead: Option<i64>,
}

/// The issuer of service account tokens.
#[derive(Debug)]
pub(super) struct Issuer {
    /// What the API server says.
    pub(super) own: Read<Documents>,
    /// What is at the issuer's URL, seen from here.
    pub(super) public: Option<Read<Documents>>,
}

/// An issuer's two documents, as far as they matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Documents {
    pub(super) issuer: String,
    pub(super) jwks_uri: String,
    /// The ids of its keys, in order.
    pub(super) keys: Vec<String>,
}

/// How far clocks are apart, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clocks {
    /// Ours is ahead of the API server's.
    pub(super) of_api: Option<i64>,
    /// Ours is ahead of STS's.
    pub(super) of_sts: Option<i64>,
    /// Ours is a node's.
    pub(super) on_node: bool,
}

#[derive(Deserialize)]
struct Discovery {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default)]
    kid: String,
}

// === impl Version ===

impl Version {
    pub(super) async fn read(cluster: &Cluster) -> Read<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Said {
            git_version: String,
            minor: String,
        }
        let words = |error: kube::Error| cluster::words(&error);
        let request = Request::get("/version").body(Body::empty()).map_err(|error| error.to_string())?;
        let answer = cluster.client().send(request).await.map_err(words)?;
        let now = clock::now().unix_seconds();
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let ahead = date.and_then(|date| Some(i64::try_from(now).ok()? - date.secs()));
        let body = answer.into_body().collect().await.map_err(words)?.to_bytes();
        let said = serde_json::from_slice::<Said>(&body).map_err(|_| "/version is not understood".to_owned())?;
        // Some say `32+`.
        let minor = said.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse();
        let minor = minor.map_err(|_| format!("/version names no minor version: {:?}", said.minor))?;
        Ok(Self { text: said.git_version, minor, ahead })
    }
}

/// What follows from the version, where the daemons look for tokens by this mode.
pub(super) fn look_at_version(version: &Read<Version>, token_access: &str, mode: Option<&str>, report: &mut Report) {
    let version = match version {
        Ok(version) => version,
        Err(why) => return report.unseen("the API server's version", why),
    };
    let by = mode.map(|mode| format!("; tokens by {mode} mode")).unwrap_or_default();
    report.seen("Kubernetes", format!("{}{by}", version.text));
    let text = &version.text;
    if version.minor < DIRECT_FROM {
        report.find(&checks::VERSION, format!("{text} is older than 1.{DIRECT_FROM}"), "upgrade the cluster");
    } else if version.minor < NODE_FROM && token_access == "node" {
        report.find(
            &checks::VERSION,
            format!("{text} has no node mode, which is wanted"),
            "set tokenAccess: direct in the chart's values, or upgrade the cluster",
        );
    }
    if version.minor >= NODE_FROM && mode == Some("direct") {
        report.find(
            &checks::MODE,
            format!("{text} has node mode, and direct mode is in force"),
            "set tokenAccess: node in the chart's values",
        );
    }
}

// === impl Issuer ===

impl Issuer {
    /// Asks the API server, and then whatever is at the URL that it names; `ca_bundle` replaces the system's certificates.
    pub(super) async fn read(cluster: &Cluster, ca_bundle: Option<&[u8]>) -> Self {
        let own = documents(cluster, DISCOVERY, KEYS).await;
        let public = match &own {
            Ok(own) if defect(&own.issuer).is_none() => Some(at(&own.issuer, ca_bundle).await),
            Ok(_) | Err(_) => None,
        };
        Self { own, public }
    }
}

async fn documents(server: &Cluster, discovery: &str, keys: &str) -> Read<Documents> {
    let read = |path: String| async move { server.text(&path).await.map_err(|error| cluster::words(&error)) };
    let text = read(discovery.to_owned()).await?;
    let said = serde_json::from_str::<Discovery>(&text).map_err(|_| format!("{discovery} is not understood"))?;
    let text = read(keys.to_owned()).await?;
    let set = serde_json::from_str::<KeySet>(&text).map_err(|_| format!("{keys} is not understood"))?;
    let mut keys = set.keys.into_iter().map(|key| key.kid).collect::<Vec<_>>();
    keys.sort_unstable();
    Ok(Documents { issuer: said.issuer, jwks_uri: said.jwks_uri, keys })
}

/// The documents as whoever is outside of the cluster finds them.
async fn at(issuer: &str, ca_bundle: Option<&[u8]>) -> Read<Documents> {
    let (root, path) = split(issuer);
    let discovery = format!("{}{DISCOVERY}", path.trim_end_matches('/'));
    let server = Cluster::outside(root, ca_bundle).map_err(|error| error.to_string())?;
    let text = server.text(&discovery).await.map_err(|error| cluster::words(&error))?;
    let said =
        serde_json::from_str::<Discovery>(&text).map_err(|_| format!("{issuer}{DISCOVERY} is not understood"))?;
    let (root, keys) = split(&said.jwks_uri);
    let server = Cluster::outside(root, ca_bundle).map_err(|error| error.to_string())?;
    let text = server.text(keys).await.map_err(|error| cluster::words(&error))?;
    let set = serde_json::from_str::<KeySet>(&text).map_err(|_| format!("{} is not understood", said.jwks_uri))?;
    let mut keys = set.keys.into_iter().map(|key| key.kid).collect::<Vec<_>>();
    keys.sort_unstable();
    Ok(Documents { issuer: said.issuer, jwks_uri: said.jwks_uri, keys })
}

/// A URL's beginning, and its path.
fn split(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url.get(host..).and_then(|rest| rest.find('/')).map_or(url.len(), |at| host + at);
    url.split_at(path)
}

/// Why AWS would not take an issuer's URL.
fn defect(issuer: &str) -> Option<String> {
    let mut found = oidc::issuer::findings(issuer).into_iter();
    found.find(|finding| finding.state == State::Fails).map(|finding| finding.what)
}

/// What follows from the issuer.
pub(super) fn look_at_issuer(issuer: &Issuer, report: &mut Report) {
    let own = match &issuer.own {
        Ok(own) => own,
        Err(why) => return report.unseen("the issuer of the cluster's tokens", why),
    };
    report.seen("issuer", format!("{}, keys: {}", own.issuer, own.keys.len()));
    let mend = "the API server's --service-account-issuer: docs/install-off-eks.md, \"An issuer that AWS can reach\"";
    if let Some(defect) = defect(&own.issuer) {
        return report.find(&checks::ISSUER, defect, mend);
    }
    match &issuer.public {
        None => {}
        Some(Err(why)) => {
            report.find(&checks::ISSUER_SILENT, format!("{}{DISCOVERY}: {why}", own.issuer), "kube2irsa oidc check")
        }
        Some(Ok(public)) => {
            let missing = own.keys.iter().filter(|key| !public.keys.contains(key)).collect::<Vec<_>>();
            if public.issuer != own.issuer {
                let what = format!("{}{DISCOVERY} names another issuer: {}", own.issuer, public.issuer);
                report.find(&checks::ISSUER_DIFFERS, what, mend);
            } else if !missing.is_empty() {
                let missing = missing.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(", ");
                report.find(
                    &checks::ISSUER_DIFFERS,
                    format!("{} lacks a key that the API server signs with: {missing}", public.jwks_uri),
                    "kube2irsa oidc export DIR, and put the files where the issuer's URL leads (docs/oidc.md)",
                );
            }
        }
    }
}

/// What follows from the clocks.
pub(super) fn look_at_clocks(clocks: Clocks, report: &mut Report) {
    let Clocks { of_api, of_sts, on_node } = clocks;
    let far = |seconds: i64| seconds.abs() > TOO_FAR;
    let mend = "set the clock: timedatectl, chronyc tracking";
    if let (Some(api), Some(sts)) = (of_api, of_sts)
        && far(sts - api)
    {
        let what = format!("the API server's clock is {} STS's", apart(sts - api));
        report.find(&checks::CLOCK, what, mend);
    }
    for (of, ahead) in [("the API server's", of_api), ("STS's", of_sts)] {
        match ahead {
            Some(ahead) if on_node && far(ahead) => {
                report.find(&checks::CLOCK, format!("this node's clock is {} {of}", apart(ahead)), mend);
            }
            Some(_) => {}
            // What did not answer is said to be not looked at elsewhere.
            None => {}
        }
    }
}

fn apart(ahead: i64) -> String {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    format!("{} s {way}", ahead.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(report: Report) -> Vec<&'static str> {
        report.close().findings.into_iter().map(|finding| finding.check.id).collect()
    }

    #[test]
    fn a_version_is_judged_with_the_mode() {
        let none = Vec::<&str>::new();
        for (minor, access, mode, found) in [
            (36, "auto", "node", none.clone()),
            (36, "auto", "direct", vec!["token-mode"]),
            (35, "auto", "direct", none.clone()),
            (35, "node", "node", vec!["kubernetes-version"]),
            (32, "direct", "direct", none),
            (31, "direct", "direct", vec!["kubernetes-version"]),
        ] {
            let version = Ok(Version { text: format!("v1.{minor}.0"), minor, ahead: None });
            let mut report = Report::default();
            look_at_version(&version, access, Some(mode), &mut report);
            assert_eq!(ids(report), found, "{minor} {access} {mode}");
        }
    }

    #[test]
    fn an_issuer_is_https_without_a_port_and_known_outside() {
        for (issuer, usable) in [
            ("https://oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B716D3041E", true),
            ("https://example.com", true),
            ("https://203.0.113.7/a", true),
            ("http://example.com", false),
            ("https://example.com:6443", false),
            ("https://kubernetes.default.svc.cluster.local", false),
            ("https://kubernetes.default.svc", false),
            ("https://kubernetes", false),
            ("https://example.com/a?b", false),
            ("kubernetes/serviceaccount", false),
        ] {
            assert_eq!(defect(issuer).is_none(), usable, "{issuer}");
        }
    }

    #[test]
    fn an_issuer_must_publish_what_the_api_server_signs_with() {
        let documents = |issuer: &str, keys: &[&str]| Documents {
            issuer: issuer.to_owned(),
            jwks_uri: format!("{issuer}/keys"),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        let own = || documents("https://example.com", &["a", "b"]);
        for (public, found) in [
            (Ok(own()), None),
            (Ok(documents("https://example.com", &["a", "b", "old"])), None),
            (Ok(documents("https://example.com", &["a"])), Some("issuer-differs")),
            (Ok(documents("https://example.com/", &["a", "b"])), Some("issuer-differs")),
            (Err("404".to_owned()), Some("issuer-not-reachable")),
        ] {
            let mut report = Report::default();
            look_at_issuer(&Issuer { own: Ok(own()), public: Some(public) }, &mut report);
            assert_eq!(ids(report).first().copied(), found);
        }
    }

    #[test]
    fn a_laptops_clock_is_no_matter_where_the_others_agree() {
        let found = |of_api: i64, of_sts: i64, on_node| {
            let mut report = Report::default();
            look_at_clocks(Clocks { of_api: Some(of_api), of_sts: Some(of_sts), on_node }, &mut report);
            report.findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
        };
        assert_eq!(found(3600, 3590, false), Vec::<String>::new());
        assert_eq!(found(3600, 3590, true).len(), 2);
        assert_eq!(found(60, -60, false), ["the API server's clock is 120 s behind STS's"]);
        assert_eq!(
            found(0, 61, true),
            ["the API server's clock is 61 s ahead of STS's", "this node's clock is 61 s ahead of STS's"]
        );
    }

    #[test]
    fn a_url_is_split_before_its_path() {
        for (url, root, path) in [
            ("https://example.com/id/x", "https://example.com", "/id/x"),
            ("https://example.com", "https://example.com", ""),
            ("https://example.com:1/", "https://example.com:1", "/"),
            ("nonsense", "nonsense", ""),
        ] {
            assert_eq!(split(url), (root, path));
        }
    }
}
