//! Random paths, judged by a plain list of what is allowed.

use std::borrow::Cow;

use super::{
    facts::Fact,
    route::{Route, route},
};
use crate::histories;

/// What is there below a version, and what it means; all else means nothing.
const ALLOWED: [(&str, Route<'static>); 13] = [
    ("", Route::Folder("dynamic\nmeta-data")),
    ("/meta-data", Route::Folder("iam/\ninstance-id\nplacement/")),
    ("/meta-data/iam", Route::Iam),
    ("/meta-data/iam/info", Route::IamInfo),
    ("/meta-data/iam/security-credentials", Route::RoleName),
    ("/meta-data/placement", Route::Folder("availability-zone\nregion")),
    ("/meta-data/placement/region", Route::Node(Fact::Region)),
    ("/meta-data/placement/availability-zone", Route::Node(Fact::Zone)),
    ("/meta-data/instance-id", Route::Node(Fact::InstanceId)),
    ("/dynamic", Route::Folder("instance-identity/")),
    ("/dynamic/instance-identity", Route::Folder("document")),
    ("/dynamic/instance-identity/document", Route::Node(Fact::Document)),
    ("/api/token", Route::Token),
];

const SEGMENTS: [&str; 44] = [
    "latest",
    "1.0",
    "2021-07-15",
    "2021-7-15",
    "9999-99-99",
    "LATEST",
    "latest;x",
    "latest%00",
    "meta-data",
    "Meta-Data",
    "meta-data.",
    "iam",
    "IAM",
    "iam%2finfo",
    "info",
    "security-credentials",
    "security-credentials-extended",
    "security-credentials%2f",
    "security%2dcredentials",
    "web",
    "node",
    "%6eode",
    "web%2f..%2fnode",
    "placement",
    "region",
    "availability-zone",
    "instance-id",
    "dynamic",
    "instance-identity",
    "document",
    "signature",
    "pkcs7",
    "identity-credentials",
    "ec2",
    "user-data",
    "api",
    "token",
    "..",
    ".",
    "%2e%2e",
    "%2e",
    "\\",
    "%zz",
    "\u{e9}",
];

/// A path that means something, or nearly.
fn path(random: &mut fastrand::Rng) -> String {
    let mut segments = match random.u8(0..3) {
        0 => (0..random.usize(0..7)).map(|_| random.choice(SEGMENTS).unwrap()).collect(),
        _ => {
            let version = random.choice(["latest", "2021-07-15", "1.0"]).unwrap();
            let (rest, _) = random.choice(&ALLOWED).unwrap();
            let mut segments = vec![version];
            segments.extend(rest.split('/').skip(1));
            if rest.ends_with("security-credentials") && random.bool() {
                segments.push("web");
            }
            segments
        }
    };
    for _ in 0..random.usize(0..3) {
        let at = random.usize(0..=segments.len());
        match random.u8(0..3) {
            0 => segments.insert(at, random.choice(SEGMENTS).unwrap()),
            1 if at < segments.len() => drop(segments.remove(at)),
            _ => segments.insert(at, ""),
        }
    }
    let mut path = format!("/{}", segments.join("/"));
    if random.u8(0..8) == 0 {
        let at = (0..=path.len()).filter(|at| path.is_char_boundary(*at)).collect::<Vec<_>>();
        path.insert(
            random.choice(at).unwrap(),
            random.choice(['/', '.', '%', '\\', ';', '\0', 'x', '?', '#']).unwrap(),
        );
    }
    path
}

/// What a path means, by taking it apart and looking it up.
fn meaning(path: &str) -> Route<'static> {
    let mut plain = path.to_owned();
    while plain.contains("//") {
        plain = plain.replace("//", "/");
    }
    let plain = plain.trim_matches('/');
    let (version, rest) =
        plain.split_once('/').map_or((plain, String::new()), |(version, rest)| (version, format!("/{rest}")));
    let digits = version.replace(|c: char| c.is_ascii_digit(), "d");
    if version.is_empty() {
        return Route::Folder("latest");
    }
    if !["latest", "1.0"].contains(&version) && digits != "dddd-dd-dd" {
        return Route::Other;
    }
    if let Some((_, route)) = ALLOWED.iter().find(|(allowed, _)| *allowed == rest) {
        return if *route == Route::Token && version != "latest" { Route::DatedToken } else { route.clone() };
    }
    match rest.strip_prefix("/meta-data/iam/security-credentials/") {
        Some(name) if !name.contains('/') => {
            decoded(name).map_or(Route::Other, |name| Route::RoleDocument(Cow::Owned(name)))
        }
        _ => Route::Other,
    }
}

/// Decoded by pieces: before the first `%` nothing is encoded, and after each two digits stand for a byte.
fn decoded(name: &str) -> Option<String> {
    let mut pieces = name.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let digits = piece.get(..2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[test]
fn a_random_path_means_what_the_list_says_and_nothing_else() {
    let meant = std::sync::atomic::AtomicU64::new(0);
    histories::all(400_000, |random| {
        let path = path(random);
        let expected = meaning(&path);
        if expected != Route::Other {
            meant.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        assert_eq!(route(&path), expected, "{path:?}");
    });
    // Or it would prove little.
    let one = std::env::var("KUBE2IRSA_SEED").is_ok();
    assert!(one || (50_000..350_000).contains(&meant.into_inner()));
}
