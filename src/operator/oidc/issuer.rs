//! Whether AWS can use an issuer's URL, by the URL alone. Pure.
//!
//! Sources: [CreateOpenIDConnectProvider](https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html)
//! (https, a path but no query, no port, at most 255 characters); OpenID Connect Discovery 1.0, section 3 (no fragment).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

use super::finding::{Check, Finding};

/// Of a provider's URL in IAM.
const LONGEST: usize = 255;
/// Ends of names that nobody outside can resolve.
const INSIDE: [&str; 8] =
    [".svc", ".cluster.local", ".local", ".localhost", ".internal", ".lan", ".home.arpa", ".localdomain"];
/// What `--service-account-issuer` is changed by.
const CHANGE: &str = "Give the API server an issuer that AWS can reach, as its first --service-account-issuer, and leave this \
                      one behind it for the tokens that are out (docs/oidc.md, \"A new issuer\").";

/// What is to be said of it: one line if nothing is wrong.
#[must_use]
pub fn findings(issuer: &str) -> Vec<Finding> {
    let fails = |what: String, why: &str| Check::Issuer.fails(format!("{issuer}: {what}"), why, CHANGE);
    let Some(rest) = issuer.strip_prefix("https://") else {
        return vec![fails(
            "is no https URL".to_owned(),
            "IAM takes no other, and the API server serves no documents.",
        )];
    };
    let mut found = Vec::new();
    if issuer.contains(['?', '#']) {
        found.push(fails("has a query or a fragment".to_owned(), "OpenID Connect allows none, and IAM takes none."));
    }
    if issuer.len() > LONGEST {
        let what = format!("is {} characters long", issuer.len());
        found.push(fails(what, "A provider's URL in IAM has at most 255."));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        found.push(fails("names a user".to_owned(), "IAM takes a host and a path, and nothing else."));
    }
    match issuer.parse::<Uri>() {
        Ok(uri) => {
            if uri.port().is_some() {
                found.push(fails("names a port".to_owned(), "A provider's URL in IAM has none: STS asks port 443."));
            }
            let host = uri.host().unwrap_or_default();
            if let Some(what) = out_of_reach(host) {
                found.push(fails(what, "STS fetches the documents from the Internet, and cannot get there."));
            } else if as_address(host).is_some() {
                found.push(Check::Issuer.note(
                    format!("{issuer}: its host is an address, not a name"),
                    "Few authorities sign certificates for addresses, and an address cannot move.",
                    "Use a name, unless you know that it works.",
                ));
            }
        }
        Err(error) => found.push(fails(format!("is no URL: {error}"), "Nobody can ask there.")),
    }
    if issuer.ends_with('/') {
        found.push(Check::Issuer.note(
            format!("{issuer}: ends with a slash"),
            "It is a part of the name: tokens, the discovery document and IAM must all have it.",
            "Leave it out of a new issuer.",
        ));
    }
    if found.is_empty() {
        found.push(Check::Issuer.ok(format!("{issuer} is a URL that IAM takes")));
    }
    found
}

/// Why nobody outside can reach a host of this name.
#[must_use]
pub fn out_of_reach(host: &str) -> Option<String> {
    if let Some(address) = as_address(host) {
        return is_private(address).then(|| format!("{address} is an address of a private network or of one machine"));
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if !name.contains('.') {
        return Some(format!("{name:?} is no full name of a host"));
    }
    let end = INSIDE.iter().find(|end| name.ends_with(*end))?;
    Some(format!("names that end with {end} are not known outside"))
}

fn as_address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether no packet from the Internet gets to this address.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4 == Ipv4Addr::UNSPECIFIED || is_shared
        }
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6 == Ipv6Addr::UNSPECIFIED
        }
    }
}

/// Whether IAM looks at no certificate's thumbprint for this host, whatever is given.
#[must_use]
pub fn is_of_aws(host: &str) -> Option<&'static str> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let of_aws = name.ends_with(".amazonaws.com") || name.ends_with(".amazonaws.com.cn");
    if !of_aws {
        return None;
    }
    let labels = name.split('.').collect::<Vec<_>>();
    if labels.first() == Some(&"oidc") && labels.get(1).is_some_and(|label| label.starts_with("eks")) {
        return Some("EKS");
    }
    labels.iter().any(|label| *label == "s3" || label.starts_with("s3-")).then_some("Amazon S3")
}

#[cfg(test)]
mod tests {
    use super::{super::finding::State, *};

    fn fails(issuer: &str) -> bool {
        findings(issuer).iter().any(|finding| finding.state == State::Fails)
    }

    #[test]
    fn an_issuer_that_aws_can_reach_is_well() {
        for issuer in [
            "https://oidc.example.com",
            "https://oidc.example.com/prod",
            "https://s3.eu-central-1.amazonaws.com/bucket/prod",
            "https://d111111abcdef8.cloudfront.net",
            "https://team.github.io/oidc/prod",
            "https://internal.example.com",
            "https://svc.example.com",
        ] {
            let found = findings(issuer);
            assert_eq!(
                found.iter().map(|finding| finding.state).collect::<Vec<_>>(),
                [State::Ok],
                "{issuer}: {found:?}"
            );
        }
    }

    #[test]
    fn an_issuer_that_iam_does_not_take_or_sts_cannot_reach_fails() {
        let long = format!("https://oidc.example.com/{}", "a".repeat(LONGEST));
        for issuer in [
            "kubernetes/serviceaccount",
            "http://oidc.example.com",
            "https://",
            "https://oidc.example.com?cluster=prod",
            "https://oidc.example.com/prod#1",
            "https://user@oidc.example.com",
            "https://oidc.example.com:6443",
            "https://kubernetes.default.svc.cluster.local",
            "https://kubernetes.default.svc",
            "https://kubernetes.default.svc.",
            "https://API.Cluster.Local",
            "https://ip-10-0-0-1.eu-central-1.compute.internal",
            "https://localhost",
            "https://master",
            "https://127.0.0.1",
            "https://10.1.2.3/prod",
            "https://172.16.0.1",
            "https://192.168.0.1",
            "https://169.254.0.1",
            "https://100.64.0.1",
            "https://[::1]",
            "https://[fd00::1]",
            "https://[fe80::1]",
            "https://[::ffff:10.0.0.1]",
            long.as_str(),
        ] {
            assert!(fails(issuer), "{issuer}: {:?}", findings(issuer));
        }
    }

    #[test]
    fn all_that_is_wrong_with_an_issuer_is_said_at_once() {
        let found = findings("https://me@10.0.0.1:6443/?a");
        assert_eq!(found.iter().filter(|finding| finding.state == State::Fails).count(), 4, "{found:?}");
    }

    #[test]
    fn an_address_and_a_slash_at_the_end_are_to_be_known_and_no_failures() {
        for issuer in ["https://203.0.113.1", "https://oidc.example.com/"] {
            let found = findings(issuer);
            assert_eq!(
                found.iter().map(|finding| finding.state).collect::<Vec<_>>(),
                [State::Note],
                "{issuer}: {found:?}"
            );
        }
    }

    #[test]
    fn the_hosts_of_which_iam_looks_at_no_thumbprint_are_known() {
        assert_eq!(is_of_aws("oidc.eks.eu-central-1.amazonaws.com"), Some("EKS"));
        assert_eq!(is_of_aws("oidc.eks-fips.us-east-1.amazonaws.com"), Some("EKS"));
        for host in [
            "s3.amazonaws.com",
            "s3.eu-central-1.amazonaws.com",
            "s3-eu-west-1.amazonaws.com",
            "bucket.s3.eu-central-1.amazonaws.com",
            "bucket.s3.cn-north-1.amazonaws.com.cn",
        ] {
            assert_eq!(is_of_aws(host), Some("Amazon S3"), "{host}");
        }
        for host in ["oidc.example.com", "s3.example.com", "amazonaws.com.example.com", "d1.cloudfront.net"] {
            assert_eq!(is_of_aws(host), None, "{host}");
        }
    }
}
