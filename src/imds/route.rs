//! What a path means. Pure. Default deny: what is not recognised is [`Route::Other`].

use std::borrow::Cow;

use super::facts::Fact;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/latest/api/token`: a session token.
    Token,
    /// `/<date>/api/token`, which the real service refuses.
    DatedToken,
    /// `…/meta-data/iam/security-credentials`, with or without a slash: the role's name.
    RoleName,
    /// `…/meta-data/iam/security-credentials/<name>`: that role's document.
    RoleDocument(Cow<'a, str>),
    /// `…/meta-data/iam/`: what is there of a role.
    Iam,
    /// `…/meta-data/iam/info`: the instance profile that the role would have.
    IamInfo,
    /// What is said of the node.
    Node(Fact),
    /// A folder: what is in it.
    Folder(&'static str),
    /// What an operator allowed: the path to ask the real service for. No path means this by itself.
    Allowed(String),
    /// Anything else.
    Other,
}

/// The route of a path. Empty segments are dropped: some SDKs send `//`. Nothing is resolved or decoded
/// but the last segment, which is only ever compared with the role's name.
#[must_use]
pub fn route(path: &str) -> Route<'_> {
    let mut segments = split(path);
    let mut next = || segments.next().unwrap_or_default();
    let version = next();
    if version.is_empty() {
        return Route::Folder("latest");
    }
    if !is_version(version) {
        return Route::Other;
    }
    match (next(), next(), next(), next(), next()) {
        (b"meta-data", b"iam", b"security-credentials", b"", b"") => Route::RoleName,
        (b"meta-data", b"iam", b"security-credentials", name, b"") => {
            decode(name).map_or(Route::Other, Route::RoleDocument)
        }
        (b"api", b"token", b"", b"", b"") if version == b"latest" => Route::Token,
        (b"api", b"token", b"", b"", b"") => Route::DatedToken,
        (b"meta-data", b"iam", b"", b"", b"") => Route::Iam,
        (b"meta-data", b"iam", b"info", b"", b"") => Route::IamInfo,
        (b"meta-data", b"placement", b"region", b"", b"") => Route::Node(Fact::Region),
        (b"meta-data", b"placement", b"availability-zone", b"", b"") => Route::Node(Fact::Zone),
        (b"meta-data", b"instance-id", b"", b"", b"") => Route::Node(Fact::InstanceId),
        (b"dynamic", b"instance-identity", b"document", b"", b"") => Route::Node(Fact::Document),
        (b"", b"", b"", b"", b"") => Route::Folder("dynamic\nmeta-data"),
        (b"meta-data", b"", b"", b"", b"") => Route::Folder("iam/\ninstance-id\nplacement/"),
        (b"meta-data", b"placement", b"", b"", b"") => Route::Folder("availability-zone\nregion"),
        (b"dynamic", b"", b"", b"", b"") => Route::Folder("instance-identity/"),
        (b"dynamic", b"instance-identity", b"", b"", b"") => Route::Folder("document"),
        _ => Route::Other,
    }
}

/// The segments of a path after its version, if it begins with one.
pub(super) fn segments(path: &str) -> Option<impl Iterator<Item = &[u8]>> {
    let mut segments = split(path);
    segments.next().filter(|version| is_version(version)).map(|_| segments)
}

fn split(path: &str) -> impl Iterator<Item = &[u8]> {
    // By bytes: searching for a char costs several times as much on paths as short as these.
    path.as_bytes().split(|byte| *byte == b'/').filter(|segment| !segment.is_empty())
}

/// `latest`, `YYYY-MM-DD`, or the first version's `1.0`.
fn is_version(version: &[u8]) -> bool {
    version == b"latest"
        || version == b"1.0"
        || version.len() == 10
            && version
                .iter()
                .enumerate()
                .all(|(at, b)| if at == 4 || at == 7 { *b == b'-' } else { b.is_ascii_digit() })
}

/// Percent-decodes once: a role's name may hold `+=,.@`, which some clients encode.
fn decode(segment: &[u8]) -> Option<Cow<'_, str>> {
    if !segment.contains(&b'%') {
        return str::from_utf8(segment).ok().map(Cow::Borrowed);
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.iter().copied();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sdks_send_is_understood() {
        for (path, expected) in [
            ("/latest/api/token", Route::Token),
            ("/latest/api/token/", Route::Token),
            ("/2021-07-15/api/token", Route::DatedToken),
            ("/latest/meta-data/iam/security-credentials", Route::RoleName),
            ("/latest/meta-data/iam/security-credentials/", Route::RoleName),
            ("//latest/meta-data//iam/security-credentials/", Route::RoleName),
            ("/2021-07-15/meta-data/iam/security-credentials/", Route::RoleName),
            ("/1.0/meta-data/iam/security-credentials/", Route::RoleName),
            ("/latest/meta-data/iam/security-credentials/web", Route::RoleDocument("web".into())),
            ("/latest/meta-data/iam/security-credentials/web/", Route::RoleDocument("web".into())),
            ("/latest/meta-data/iam/security-credentials/a%40b+c", Route::RoleDocument("a@b+c".into())),
            ("/latest/meta-data/iam/", Route::Iam),
            ("/latest/meta-data/iam/info", Route::IamInfo),
            ("/latest/meta-data/placement/region", Route::Node(Fact::Region)),
            ("/latest/meta-data/placement/availability-zone/", Route::Node(Fact::Zone)),
            ("/2009-04-04/meta-data/instance-id", Route::Node(Fact::InstanceId)),
            ("//latest/dynamic/instance-identity/document", Route::Node(Fact::Document)),
            ("/", Route::Folder("latest")),
            ("/latest", Route::Folder("dynamic\nmeta-data")),
            ("/latest/meta-data/", Route::Folder("iam/\ninstance-id\nplacement/")),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn everything_else_is_denied() {
        for path in [
            "/latest/user-data",
            "/latest/user-data/",
            "/latest/meta-data/hostname",
            "/latest/meta-data/iam/info/x",
            "/latest/meta-data/placement/region/x",
            "/latest/dynamic/instance-identity/signature",
            "/latest/dynamic/instance-identity/pkcs7",
            "/latest/dynamic/instance-identity/rsa2048",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/meta-data/iam/security-credentials/web/x",
            "/latest/meta-data/iam/security-credentials/web/x/y/z",
            "/latest/meta-data/iam/security-credentials-extended/web",
            "/latest/meta-data/iam/../iam/security-credentials/",
            "/latest/meta-data/iam/./security-credentials/",
            "/latest/meta-data/iam%2fsecurity-credentials/",
            "/latest\\meta-data\\iam\\security-credentials",
            "/LATEST/meta-data/iam/security-credentials/",
            "/latest;x/meta-data/iam/security-credentials/",
            "/2021-7-15/meta-data/iam/security-credentials/",
            "/latest/meta-data/iam/security-credentials/%zz",
            "/latest/meta-data/iam/security-credentials/%f",
            "/latest/meta-data/iam/security-credentials/%ff",
            "/latest/api/token/x",
        ] {
            assert_eq!(route(path), Route::Other, "{path}");
        }
    }

    #[test]
    fn an_encoded_slash_stays_within_the_name() {
        let path = "/latest/meta-data/iam/security-credentials/web%2f..%2fother";
        assert_eq!(route(path), Route::RoleDocument("web/../other".into()));
    }
}
