//! Whose tokens a role takes: of which issuer, of which service accounts. Pure.

use std::{fmt, str::FromStr};

use crate::identity::names::{Namespace, RoleArn, ServiceAccountName};

/// What IAM takes for the URL of a provider.
const LONGEST_URL: usize = 255;
/// How the subjects of Kubernetes' tokens begin.
pub const SUBJECT: &str = "system:serviceaccount:";

/// An issuer of tokens, by its URL: `https://`, host, path. It is kept byte for byte, for that is how STS compares it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Issuer(String);

/// The text is no URL of an issuer that IAM takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no issuer that IAM takes: https://, a host and perhaps a path, at most 255 characters; no port, no query"
)]
pub struct NotAnIssuer(pub String);

impl Issuer {
    /// Its URL: the tokens' `iss`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0
    }

    /// Its URL without the scheme, as in its provider's ARN and in keys of conditions.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.strip_prefix("https://").unwrap_or(&self.0)
    }

    /// The ARN of its IAM OIDC provider in the account and partition of `role`.
    #[must_use]
    pub fn provider_arn(&self, role: &RoleArn) -> String {
        format!("arn:{}:iam::{}:oidc-provider/{}", role.partition(), role.account(), self.name())
    }

    /// The condition key of a claim of its tokens, such as `sub`.
    #[must_use]
    pub fn key(&self, claim: &str) -> String {
        format!("{}:{claim}", self.name())
    }
}

impl FromStr for Issuer {
    type Err = NotAnIssuer;

    fn from_str(text: &str) -> Result<Self, NotAnIssuer> {
        let is_url = || {
            let name = text.strip_prefix("https://")?;
            let (host, _) = name.split_once('/').unwrap_or((name, ""));
            let host_chars = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
            let path_chars = |b: u8| b.is_ascii_graphic() && !b"?#\"\\*".contains(&b);
            (!host.is_empty()
                && host.bytes().all(host_chars)
                && name.bytes().all(path_chars)
                && text.len() <= LONGEST_URL)
                .then_some(())
        };
        is_url().map(|()| Self(text.to_owned())).ok_or_else(|| NotAnIssuer(text.chars().take(300).collect()))
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Service accounts: one, or all that a glob of IAM's names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject(String);

impl Subject {
    /// One service account.
    #[must_use]
    pub fn of(namespace: &Namespace, name: &ServiceAccountName) -> Self {
        Self(format!("{SUBJECT}{namespace}:{name}"))
    }

    /// All of `NAMESPACE/NAME` with `*` and `?` in it; `None` if it cannot be meant.
    #[must_use]
    pub fn glob(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let is_glob = |text: &str| !text.is_empty() && text.bytes().all(|b| is_name(b) || b"*?".contains(&b));
        (is_glob(namespace) && is_glob(name)).then(|| Self(format!("{SUBJECT}{namespace}:{name}")))
    }

    /// The tokens' `sub`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has a wildcard.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// In words, what it admits.
    #[must_use]
    pub fn admits(&self) -> String {
        admits(&self.0)
    }
}

/// What a name in Kubernetes consists of.
pub(super) fn is_name(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)
}

/// The namespace that a glob of subjects is kept to; `None` if it names several. IAM's `*` stands for colons too.
pub(super) fn namespace(glob: &str) -> Option<&str> {
    let literal = glob.split(['*', '?']).next().unwrap_or_default();
    literal.strip_prefix(SUBJECT)?.split_once(':').map(|(namespace, _)| namespace)
}

/// In words, which service accounts a glob of subjects admits.
pub(super) fn admits(glob: &str) -> String {
    match namespace(glob).map(|namespace| (namespace, &glob[SUBJECT.len() + namespace.len() + 1..])) {
        Some((namespace, "*")) => {
            format!("{glob} admits every ServiceAccount of namespace {namespace}, also those that are made later")
        }
        Some((namespace, name)) if name.contains(['*', '?']) => format!(
            "{glob} admits every ServiceAccount of namespace {namespace} that is named like {name}, also those that are \
             made later"
        ),
        Some((namespace, name)) => format!("{glob} admits {namespace}/{name}"),
        None => format!(
            "{glob} admits ServiceAccounts of more than one namespace (IAM's * stands for colons too): whoever can make a \
             namespace that it names, or a ServiceAccount there, has the role"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_kept_byte_for_byte_and_its_provider_is_of_the_roles_account_and_partition() {
        let role = |text: &str| text.parse::<RoleArn>().unwrap();
        for (url, arn, provider) in [
            (
                "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE",
                "arn:aws:iam::111122223333:role/team/web",
                "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE",
            ),
            (
                "https://oidc.example.com/a/b/",
                "arn:aws-cn:iam::444455556666:role/web",
                "arn:aws-cn:iam::444455556666:oidc-provider/oidc.example.com/a/b/",
            ),
            (
                "https://192.0.2.30",
                "arn:aws-us-gov:iam::444455556666:role/web",
                "arn:aws-us-gov:iam::444455556666:oidc-provider/192.0.2.30",
            ),
        ] {
            let issuer = url.parse::<Issuer>().unwrap();
            assert_eq!((issuer.url(), issuer.provider_arn(&role(arn)).as_str()), (url, provider));
            assert_eq!(issuer.key("sub"), format!("{}:sub", url.trim_start_matches("https://")));
        }
    }

    #[test]
    fn what_iam_takes_for_no_issuer_is_refused() {
        for text in [
            "",
            "oidc.example.com",
            "http://oidc.example.com",
            "https://",
            "https:///id",
            "https://oidc.example.com:8443/id",
            "https://user@oidc.example.com",
            "https://oidc.example.com/?a",
            "https://oidc.example.com/a#b",
            "https://oidc.example.com/a b",
            "https://oidc.example.com/*",
            "https://[2001:db8::1]/",
            &format!("https://oidc.example.com/{}", "a".repeat(231)),
        ] {
            assert!(text.parse::<Issuer>().is_err(), "{text}");
        }
        assert!(format!("https://oidc.example.com/{}", "a".repeat(230)).parse::<Issuer>().is_ok());
    }

    #[test]
    fn a_glob_is_kept_to_one_namespace_or_is_not() {
        let of = |text: &str| Subject::glob(text).map(|subject| namespace(subject.as_str()).map(str::to_owned));
        assert_eq!(of("team-a/*"), Some(Some("team-a".to_owned())));
        assert_eq!(of("team-a/web-?"), Some(Some("team-a".to_owned())));
        for wide in ["*/*", "team-*/web", "team-?/*", "team-a*/web", "*/web"] {
            assert_eq!(of(wide), Some(None), "{wide}");
        }
        for wrong in ["", "team-a", "/web", "team-a/", "team-a/a/b", "Team/*", "team-a/web:*", "team-a/\"*"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(namespace("*"), None);
        assert_eq!(namespace("system:serviceaccount:*"), None);
        assert_eq!(namespace("system:serviceaccount:team-a*"), None);
        assert_eq!(namespace("system:node:a:b*"), None);
    }
}
