//! What a service account's annotations say, with the semantics of the EKS pod identity webhook. Pure.
//!
//! Owns the keys, the empty values, the words for true and false, and the limits. A value that is an error
//! is an error of that service account: its pods get nothing, rather than something that nobody asked for.
//!
//! Source: [amazon-eks-pod-identity-webhook](https://github.com/aws/amazon-eks-pod-identity-webhook).

use std::collections::BTreeMap;

use super::{
    names::{Namespace, NotARoleArn, RoleArn},
    policy::PERMITTED_ROLES,
};

/// The webhook's own prefix.
pub const EKS_PREFIX: &str = "eks.amazonaws.com";

const SESSION_DURATION: &str = "kube2irsa.io/session-duration";

/// What AWS allows a session to last, in seconds.
const SESSION_LIMITS: std::ops::RangeInclusive<u32> = 900..=43_200;
const SESSION_DEFAULT: u32 = 3600;

/// What a service account asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The role.
    pub role: RoleArn,
    /// The audience of its tokens, where it is not the daemon's.
    pub audience: Option<String>,
    /// How long its sessions last, in seconds.
    pub session_seconds: u32,
    /// Whether the region's STS is called, where it says so.
    pub regional_sts: Option<bool>,
}

/// What is wrong with the annotations of a service account, or what its namespace's forbid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The role is none.
    #[error("annotation {key}: {error}")]
    Role {
        /// The annotation.
        key: String,
        /// Why.
        error: NotARoleArn,
    },
    /// The session's duration is none that AWS allows.
    #[error("annotation {SESSION_DURATION}: {0:?} is not a number of seconds from 900 to 43200")]
    SessionDuration(String),
    /// The namespace does not permit the role.
    #[error("namespace {namespace} does not permit {role} (annotation {PERMITTED_ROLES} of the namespace)")]
    NotPermitted {
        /// The namespace.
        namespace: Namespace,
        /// The role.
        role: RoleArn,
    },
}

/// The keys with the prefix in force.
#[derive(Clone, Debug)]
pub struct Keys {
    role_arn: String,
    audience: String,
    regional: String,
}

impl Keys {
    /// The keys under `prefix`, such as [`EKS_PREFIX`].
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            role_arn: format!("{prefix}/role-arn"),
            audience: format!("{prefix}/audience"),
            regional: format!("{prefix}/sts-regional-endpoints"),
        }
    }

    /// What the annotations of a service account say; `None` if they name no role.
    ///
    /// # Errors
    /// When a value cannot be meant.
    pub fn read(&self, annotations: &BTreeMap<String, String>) -> Result<Option<Wish>, AnnotationError> {
        // The webhook takes an empty value for none.
        let get = |key: &str| annotations.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let Some(role) = get(&self.role_arn) else { return Ok(None) };
        let role = role.parse().map_err(|error| AnnotationError::Role { key: self.role_arn.clone(), error })?;
        Ok(Some(Wish {
            role,
            audience: get(&self.audience).map(str::to_owned),
            session_seconds: session_seconds(get(SESSION_DURATION))?,
            regional_sts: get(&self.regional).and_then(parse_bool),
        }))
    }
}

fn session_seconds(text: Option<&str>) -> Result<u32, AnnotationError> {
    let Some(text) = text else { return Ok(SESSION_DEFAULT) };
    let seconds = text.parse().ok().filter(|seconds| SESSION_LIMITS.contains(seconds));
    seconds.ok_or_else(|| AnnotationError::SessionDuration(text.chars().take(40).collect()))
}

/// The words of Go's `strconv.ParseBool`, and no others.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "arn:aws:iam::123456789012:role/web";

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wish>, AnnotationError> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Keys::new(EKS_PREFIX).read(&annotations)
    }

    fn wish(pairs: &[(&str, &str)]) -> Wish {
        read(&[&[("eks.amazonaws.com/role-arn", ROLE)], pairs].concat()).unwrap().unwrap()
    }

    #[test]
    fn no_role_or_an_empty_one_is_none_whatever_else_is_said() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("eks.amazonaws.com/role-arn", ""), (SESSION_DURATION, "x")]), Ok(None));
        assert_eq!(read(&[("eks.amazonaws.com/audience", "a")]), Ok(None));
    }

    #[test]
    fn a_value_that_is_no_role_is_an_error_that_names_the_annotation() {
        let error = read(&[("eks.amazonaws.com/role-arn", "web")]).unwrap_err().to_string();
        assert!(error.starts_with("annotation eks.amazonaws.com/role-arn: \"web\" is not"), "{error}");
    }

    #[test]
    fn the_audience_is_as_said_and_an_empty_one_is_the_daemons() {
        assert_eq!(wish(&[]).audience, None);
        assert_eq!(wish(&[("eks.amazonaws.com/audience", "")]).audience, None);
        assert_eq!(wish(&[("eks.amazonaws.com/audience", "a")]).audience.as_deref(), Some("a"));
    }

    #[test]
    fn regional_sts_is_true_or_false_by_gos_words_alone() {
        for (text, value) in [
            ("true", Some(true)),
            ("T", Some(true)),
            ("1", Some(true)),
            ("False", Some(false)),
            ("0", Some(false)),
            ("tRUE", None),
            ("yes", None),
            ("", None),
        ] {
            assert_eq!(wish(&[("eks.amazonaws.com/sts-regional-endpoints", text)]).regional_sts, value, "{text:?}");
        }
    }

    #[test]
    fn a_sessions_duration_is_one_that_aws_allows_or_an_error() {
        assert_eq!(wish(&[]).session_seconds, 3600);
        assert_eq!(wish(&[(SESSION_DURATION, "900")]).session_seconds, 900);
        assert_eq!(wish(&[(SESSION_DURATION, "43200")]).session_seconds, 43_200);
        for text in ["899", "43201", "1h", "-1"] {
            let error = read(&[("eks.amazonaws.com/role-arn", ROLE), (SESSION_DURATION, text)]).unwrap_err();
            assert_eq!(error, AnnotationError::SessionDuration(text.to_owned()));
        }
    }

    #[test]
    fn another_prefix_is_read_instead() {
        let annotations = BTreeMap::from([("example.com/role-arn".to_owned(), ROLE.to_owned())]);
        assert!(Keys::new("example.com").read(&annotations).unwrap().is_some());
        assert_eq!(Keys::new(EKS_PREFIX).read(&annotations), Ok(None));
    }
}
