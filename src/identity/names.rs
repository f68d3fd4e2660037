//! Newtypes for what must not be mixed up.

use std::{fmt, sync::Arc};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A pod's `metadata.uid`: its identity, never used twice.
    PodUid
);
name!(
    /// A namespace's name.
    Namespace
);
name!(
    /// A service account's `metadata.name`.
    ServiceAccountName
);
name!(
    /// A service account's `metadata.uid`.
    ServiceAccountUid
);
name!(
    /// A node's `metadata.name`.
    NodeName
);

/// IAM's own limits: 512 characters of path, 64 of name.
const LONGEST_PATH_AND_NAME: usize = 512 + 64;

/// The ARN of an IAM role: `arn:aws[a-z0-9-]*:iam::<12 digits>:role/<path and name>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleArn(Arc<str>);

/// The text is not the ARN of an IAM role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the ARN of an IAM role (arn:aws:iam::<12 digits>:role/<name>)")]
pub struct NotARoleArn(pub String);

impl RoleArn {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition that the role is in: `aws`, `aws-cn`, ….
    #[must_use]
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The account that the role is in: 12 digits.
    #[must_use]
    pub fn account(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }

    /// The role's name: the last segment of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl std::str::FromStr for RoleArn {
    type Err = NotARoleArn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = || {
            let (partition, rest) = text.strip_prefix("arn:")?.split_once(':')?;
            let (account, role) = rest.strip_prefix("iam::")?.split_once(":role/")?;
            let role_chars = |c: char| c.is_ascii_alphanumeric() || "_+=,.@/-".contains(c);
            (is_partition(partition)
                && is_account(account)
                && role.len() <= LONGEST_PATH_AND_NAME
                && role.chars().all(role_chars)
                && !role.rsplit('/').next()?.is_empty())
            .then_some(())
        };
        valid().map(|()| Self(text.into())).ok_or_else(|| NotARoleArn(text.chars().take(200).collect()))
    }
}

/// Whether the text is a partition of AWS: `aws[a-z0-9-]*`.
#[must_use]
pub fn is_partition(text: &str) -> bool {
    text.starts_with("aws") && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether the text is an account of AWS: 12 digits.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_arns_of_every_partition_and_path_are_read() {
        for (text, partition, name) in [
            ("arn:aws:iam::123456789012:role/web", "aws", "web"),
            ("arn:aws-cn:iam::123456789012:role/team/a/web", "aws-cn", "web"),
            ("arn:aws-us-gov:iam::123456789012:role/x+=,.@-_1", "aws-us-gov", "x+=,.@-_1"),
        ] {
            let role = text.parse::<RoleArn>().unwrap();
            assert_eq!((role.partition(), role.name(), role.account()), (partition, name, "123456789012"), "{text}");
        }
    }

    #[test]
    fn what_is_no_role_arn_is_refused() {
        for text in [
            "",
            "web",
            "arn:aws:iam::123456789012:user/web",
            "arn:aws:iam::12345678901:role/web",
            "arn:aws:iam::1234567890123:role/web",
            "arn:aws:iam::12345678901x:role/web",
            "arn:aws:iam:eu-west-1:123456789012:role/web",
            "arn:awsX:iam::123456789012:role/web",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/team/",
            "arn:aws:iam::123456789012:role/a b",
            "arn:aws:iam::123456789012:role/web\n",
            " arn:aws:iam::123456789012:role/web",
            "arn:aws:sts::123456789012:assumed-role/web/x",
            &format!("arn:aws:iam::123456789012:role/{}", "a".repeat(LONGEST_PATH_AND_NAME + 1)),
        ] {
            assert!(text.parse::<RoleArn>().is_err(), "{text:?}");
        }
    }
}
