//! Identifiers and keys in AWS's shapes.

use std::fmt::Write as _;

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// AWS's identifiers are base 32 in capitals: no 0, 1, 8, 9.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Random bytes. Without randomness no key may be handed out: the caller's task ends.
#[allow(clippy::panic, reason = "a sandbox whose random source fails must not make guessable keys")]
fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if rand::fill(&mut bytes).is_err() {
        panic!("the system has no randomness");
    }
    bytes
}

fn base32(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

/// A temporary access key's id: `ASIA` and 16 characters.
pub(super) fn access_key_id() -> String {
    format!("ASIA{}", base32(&bytes::<16>()))
}

/// A secret key: 40 characters.
pub(super) fn secret_access_key() -> String {
    STANDARD.encode(bytes::<30>())
}

/// A session token: some 700 characters, as long as the real ones, so that limits show.
pub(super) fn session_token() -> String {
    format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(bytes::<510>()))
}

/// The unique id of a role: `AROA` and 17 characters, the same for the same ARN.
pub(super) fn role_id(arn: &str) -> String {
    unique_id("AROA", arn)
}

/// An IAM unique id with this prefix, the same for the same thing.
pub(crate) fn unique_id(prefix: &str, of: &str) -> String {
    let digest = digest::digest(&digest::SHA256, of.as_bytes());
    format!("{prefix}{}", base32(&digest.as_ref()[..17]))
}

/// A request's id: a UUID, version 4.
pub(crate) fn request_id() -> String {
    let mut bytes = bytes::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// 30 random bytes that name nothing but themselves: an IMDS session token.
pub(crate) fn opaque_token() -> String {
    // The real one is 56 characters that end in "==".
    STANDARD.encode(bytes::<40>()).replace('+', "-").replace('/', "_")
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_awss_shapes_and_differ() {
        let id = access_key_id();
        assert!(id.len() == 20 && id.starts_with("ASIA") && id.bytes().skip(4).all(|b| ALPHABET.contains(&b)), "{id}");
        assert_eq!(secret_access_key().len(), 40);
        assert!(session_token().len() > 600);
        assert_ne!(access_key_id(), id);
        assert_eq!(role_id("arn:aws:iam::1:role/a"), role_id("arn:aws:iam::1:role/a"));
        assert_eq!(role_id("arn:aws:iam::1:role/a").len(), 21);
        assert_eq!(opaque_token().len(), 56);
        assert_eq!(request_id().len(), 36);
    }
}
