//! Which further paths of the real metadata service pods may read (`--allow-path`). Pure.
//!
//! Owns the judgement: what a pod sent is never passed on, but a path that is made anew of plain segments, each of them
//! looked at. Invariant: credentials, user data and what proves an instance to others cannot be allowed, nor reached
//! through a folder that is.

use super::route::segments;

/// What no flag opens, as the segments after the version.
const NEVER: [&[&str]; 7] = [
    &["api"],
    &["user-data"],
    &["meta-data", "iam"],
    &["meta-data", "identity-credentials"],
    &["dynamic", "instance-identity", "signature"],
    &["dynamic", "instance-identity", "pkcs7"],
    &["dynamic", "instance-identity", "rsa2048"],
];
/// The most that a path has; the deepest of the real service has 9.
const MOST_SEGMENTS: usize = 16;

/// The paths that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPaths(Vec<Allowed>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Allowed {
    /// After the version.
    segments: Vec<String>,
    /// Whether all that is below is meant too.
    folder: bool,
}

/// Why a path cannot be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowable {
    /// It is no path.
    #[error("is not a path such as /latest/meta-data/local-ipv4, or /latest/meta-data/tags/ for all below")]
    NotAPath,
    /// It is none that is ever opened.
    #[error("is credentials, user data or a proof of the node's identity, which are never passed on")]
    Never,
}

impl AllowedPaths {
    /// These paths, each as `/latest/…`; one that ends in a slash stands for all below it.
    ///
    /// # Errors
    /// Those that cannot be allowed, and why.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<Self, Vec<(&'a str, NotAllowable)>> {
        let mut allowed = Vec::new();
        let mut errors = Vec::new();
        for path in paths {
            match Allowed::new(path) {
                Ok(path) => allowed.push(path),
                Err(error) => errors.push((path, error)),
            }
        }
        if errors.is_empty() { Ok(Self(allowed)) } else { Err(errors) }
    }

    /// The path to ask the real service for, if what was asked for is allowed.
    #[must_use]
    pub fn judge(&self, path: &str) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let segments = plain(path)?;
        let matches = |allowed: &Allowed| {
            segments.starts_with(&allowed.segments) && (allowed.folder || segments.len() == allowed.segments.len())
        };
        if is_never(&segments) || !self.0.iter().any(matches) {
            return None;
        }
        let slash = if path.ends_with('/') { "/" } else { "" };
        Some(format!("/latest/{}{slash}", segments.join("/")))
    }
}

impl Allowed {
    fn new(path: &str) -> Result<Self, NotAllowable> {
        let segments = plain(path).filter(|segments| !segments.is_empty()).ok_or(NotAllowable::NotAPath)?;
        if !path.starts_with("/latest/") {
            return Err(NotAllowable::NotAPath);
        }
        if is_never(&segments) {
            return Err(NotAllowable::Never);
        }
        Ok(Self { segments, folder: path.ends_with('/') })
    }
}

/// The segments after the version, if all are plain: nothing that any server could take for something else.
fn plain(path: &str) -> Option<Vec<String>> {
    let plain = |segment: &&str| {
        let character = |b: u8| b.is_ascii_alphanumeric() || b"-_.:+=,@".contains(&b);
        segment.bytes().all(character) && !segment.bytes().all(|b| b == b'.')
    };
    let segments = segments(path)?.map(|segment| str::from_utf8(segment).ok().filter(plain).map(str::to_owned));
    let segments = segments.collect::<Option<Vec<_>>>()?;
    (segments.len() <= MOST_SEGMENTS).then_some(segments)
}

/// Whether the path is one of those, above one's content or below. Case does not count: the real service's way with
/// it is its own.
fn is_never(segments: &[String]) -> bool {
    let same = |(segment, never): (&String, &&str)| segment.eq_ignore_ascii_case(never);
    NEVER.iter().any(|never| segments.len() >= never.len() && segments.iter().zip(*never).all(same))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(paths: &[&'static str]) -> AllowedPaths {
        AllowedPaths::new(paths.iter().copied()).unwrap()
    }

    #[test]
    fn what_is_listed_is_allowed_in_every_way_of_writing_it() {
        let allowed = allowed(&["/latest/meta-data/local-ipv4", "/latest/meta-data/tags/"]);
        for (path, expected) in [
            ("/latest/meta-data/local-ipv4", "/latest/meta-data/local-ipv4"),
            ("//latest//meta-data/local-ipv4/", "/latest/meta-data/local-ipv4/"),
            ("/2021-07-15/meta-data/local-ipv4", "/latest/meta-data/local-ipv4"),
            ("/latest/meta-data/tags", "/latest/meta-data/tags"),
            ("/latest/meta-data/tags/", "/latest/meta-data/tags/"),
            ("/latest/meta-data/tags/instance/Name:a@b", "/latest/meta-data/tags/instance/Name:a@b"),
        ] {
            assert_eq!(allowed.judge(path).as_deref(), Some(expected), "{path}");
        }
        for path in [
            "/latest/meta-data/local-ipv4/x",
            "/latest/meta-data/local-ipv",
            "/latest/meta-data/LOCAL-IPV4",
            "/latest/meta-data/tagsx",
            "/latest/meta-data",
            "/latest",
            "/",
            "",
            "/latest/dynamic/local-ipv4",
            "/meta-data/local-ipv4",
            "/latest/meta-data/tags/../local-ipv4",
            "/latest/meta-data/tags/./x",
            "/latest/meta-data/tags/.../x",
            "/latest/meta-data/tags/%2e%2e/iam",
            "/latest/meta-data/tags/a%2fb",
            "/latest/meta-data/tags/a\\..\\..\\iam",
            "/latest/meta-data/tags;/x",
            "/latest/meta-data/tags/x y",
            "/latest/meta-data/tags/\u{e9}",
        ] {
            assert_eq!(allowed.judge(path), None, "{path}");
        }
        let deep = format!("/latest/meta-data/tags/{}", "x/".repeat(MOST_SEGMENTS));
        assert_eq!(allowed.judge(&deep), None);
        assert_eq!(AllowedPaths::default().judge("/latest/meta-data/local-ipv4"), None);
    }

    #[test]
    fn what_is_never_passed_on_is_not_in_a_folder_either() {
        let all = allowed(&["/latest/meta-data/", "/latest/dynamic/", "/latest/dynamic/instance-identity/"]);
        assert!(all.judge("/latest/meta-data/hostname").is_some());
        assert!(all.judge("/latest/dynamic/fws/instance-monitoring").is_some());
        for path in [
            "/latest/user-data",
            "/latest/user-data/",
            "/latest/api/token",
            "/latest/meta-data/iam",
            "/latest/meta-data/iam/security-credentials/node",
            "/latest/meta-data/IAM/security-credentials/node",
            "/latest/meta-data//iam/info",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/dynamic/instance-identity/pkcs7",
            "/latest/dynamic/instance-identity/rsa2048",
            "/latest/dynamic/instance-identity/signature/",
        ] {
            assert_eq!(all.judge(path), None, "{path}");
            if path.starts_with("/latest/") && !path.contains("//") {
                assert_eq!(Allowed::new(path), Err(NotAllowable::Never), "{path}");
            }
        }
        for path in ["", "/", "/latest", "/latest/", "latest/meta-data/mac", "/1.0/meta-data/mac", "/latest/a/../b"] {
            assert_eq!(Allowed::new(path), Err(NotAllowable::NotAPath), "{path}");
        }
    }
}
