//! What a namespace demands of its pods, and which roles it permits: globs over the whole ARN. Pure.
//!
//! `*` stands for any run of characters without `:`, so that it never crosses into another account or
//! partition. A glob is anchored at both ends; alternatives are separate globs.

use super::legacy;

/// The annotation that lists the roles which a namespace permits.
pub const PERMITTED_ROLES: &str = "kube2irsa.io/permitted-roles";

/// Why a namespace does not permit a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbids {
    /// Its list does not name it, or there is none and must be.
    #[error("annotation {PERMITTED_ROLES} of the namespace")]
    PermittedRoles,
    /// Nor does this annotation, which is heeded for roles that pods name.
    #[error("annotation {0} of the namespace")]
    Legacy(&'static str),
    /// It cannot be read.
    #[error("annotation {0} of the namespace cannot be read: {1}")]
    Unreadable(&'static str, String),
    /// There is none.
    #[error("it has neither annotation {} nor {}", legacy::ALLOWED_ROLES, legacy::PERMITTED)]
    NoLegacyAnnotation,
}

/// What a namespace says of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// The roles that it permits, if it says so.
    pub permitted: Option<PermittedRoles>,
    /// Whether they must bring a session token.
    pub require_imdsv2: bool,
    /// The roles that its pods may name.
    pub legacy: legacy::Limits,
}

impl Demands {
    /// Those of a namespace that cannot be read: it permits nothing, whoever asks in whatever way.
    #[must_use]
    pub fn unreadable() -> Self {
        let permitted = Some(PermittedRoles::new(""));
        Self { permitted, require_imdsv2: false, legacy: legacy::Limits::unreadable() }
    }
}

/// How namespaces limit the roles of their pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespacePolicy {
    /// Not at all: namespaces are not looked at.
    #[default]
    Off,
    /// Where they say so: one without the annotation permits all roles.
    Annotated,
    /// Always: one without the annotation permits none.
    Required,
}

impl NamespacePolicy {
    /// Whether a namespace with this list, if it has one, permits a role.
    #[must_use]
    pub fn permits(self, permitted: Option<&PermittedRoles>, arn: &str) -> bool {
        match (self, permitted) {
            (Self::Off, _) | (Self::Annotated, None) => true,
            (Self::Required, None) => false,
            (Self::Annotated | Self::Required, Some(permitted)) => permitted.permits(arn),
        }
    }
}

/// The roles that a namespace permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermittedRoles(Vec<String>);

impl PermittedRoles {
    /// A comma-separated list of globs; spaces around a glob do not count. An empty list permits nothing.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.split(',').map(str::trim).filter(|glob| !glob.is_empty()).map(str::to_owned).collect())
    }

    /// Whether one of the globs matches the whole ARN.
    #[must_use]
    pub fn permits(&self, arn: &str) -> bool {
        self.permitting(arn).is_some()
    }

    /// The globs.
    #[must_use]
    pub fn globs(&self) -> &[String] {
        &self.0
    }

    /// The first of the globs that matches the whole ARN.
    #[must_use]
    pub fn permitting(&self, arn: &str) -> Option<&str> {
        // Since `*` takes no colon, each colon of the ARN is one of the glob's.
        let permitting = self.0.iter().find(|glob| {
            glob.split(':').count() == arn.split(':').count()
                && glob.split(':').zip(arn.split(':')).all(|(glob, part)| matches(glob.as_bytes(), part.as_bytes()))
        });
        permitting.map(String::as_str)
    }
}

/// Greedy, with the last `*` alone to come back to: no glob is expensive.
pub(super) fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut at_glob, mut at_text) = (0, 0);
    // After the last `*`, and what it has taken up to.
    let mut back = None;
    loop {
        match (glob.get(at_glob), text.get(at_text)) {
            (Some(b'*'), _) => {
                at_glob += 1;
                back = Some((at_glob, at_text));
            }
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == found => {
                at_glob += 1;
                at_text += 1;
            }
            _ => match back {
                Some((after_star, taken)) if taken < text.len() => {
                    (at_glob, at_text) = (after_star, taken + 1);
                    back = Some((after_star, taken + 1));
                }
                Some(_) | None => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_the_whole_arn_and_its_star_no_colon() {
        const ARN: &str = "arn:aws:iam::111122223333:role/team-a/web";
        for (globs, permitted) in [
            (ARN, true),
            ("arn:aws:iam::111122223333:role/team-a/*", true),
            ("arn:aws:iam::111122223333:role/*", true),
            ("arn:aws:iam::111122223333:role/*web", true),
            ("arn:aws:iam::111122223333:role/*a*web*", true),
            ("arn:aws:iam::*:role/team-a/web", true),
            ("arn:*:iam:*:*:role/*", true),
            ("x, arn:aws:iam::111122223333:role/team-a/web ,y", true),
            ("", false),
            (",", false),
            ("*", false),
            ("arn:*", false),
            ("arn:aws:iam::*", false),
            ("arn:aws:iam::*web", false),
            ("arn:aws:iam::111122223333:role/team-a", false),
            ("rn:aws:iam::111122223333:role/team-a/web", false),
            ("arn:aws:iam::111122223333:role/team-a/we", false),
            ("arn:aws:iam::999999999999:role/*", false),
            ("arn:aws:iam::111122223333:role/team-a/we.", false),
            ("arn:aws:iam::111122223333:role/team-?/web", false),
        ] {
            assert_eq!(PermittedRoles::new(globs).permits(ARN), permitted, "{globs:?}");
        }
    }

    #[test]
    fn a_namespace_without_a_list_permits_all_or_none_as_the_policy_says() {
        let list = PermittedRoles::new("arn:aws:iam::111122223333:role/a");
        let permits = |policy: NamespacePolicy, list: Option<&PermittedRoles>| {
            ["a", "b"].map(|name| policy.permits(list, &format!("arn:aws:iam::111122223333:role/{name}")))
        };
        assert_eq!(permits(NamespacePolicy::Off, Some(&list)), [true, true]);
        assert_eq!(permits(NamespacePolicy::Annotated, None), [true, true]);
        assert_eq!(permits(NamespacePolicy::Annotated, Some(&list)), [true, false]);
        assert_eq!(permits(NamespacePolicy::Required, None), [false, false]);
        assert_eq!(permits(NamespacePolicy::Required, Some(&list)), [true, false]);
    }

    #[test]
    fn an_alternative_never_admits_a_longer_name() {
        let permitted = PermittedRoles::new("arn:aws:iam::111122223333:role/a,arn:aws:iam::111122223333:role/b");
        assert!(permitted.permits("arn:aws:iam::111122223333:role/a"));
        assert!(!permitted.permits("arn:aws:iam::111122223333:role/a-admin"));
        assert!(!PermittedRoles::new("arn:aws:iam::111122223333:role/a|b").permits("arn:aws:iam::111122223333:role/a"));
    }
}
