//! IMDSv2 session tokens: stateless, so that they outlive a restart. Pure.
//!
//! A token is a MAC over the caller's address (of a pod on the node's network: its UID), its issue time and its life. It can be made before the
//! pod is known; whether the pod that holds the address today is the one that asked for it is for the
//! reader of [`Issued`] to judge: a token from before the pod's start is another pod's.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::identity::Peer;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;
/// The longest life of a token: six hours.
pub const LONGEST_TTL_SECONDS: u64 = 21_600;
/// The age at which a key gets a successor. Twice that until it is gone, and no token of its lives as long.
const ROTATION_SECONDS: u64 = 2 * LONGEST_TTL_SECONDS;
/// The age from which a key is used while there is an older one: by then every daemon that shares them knows it.
const SETTLED_SECONDS: u64 = 180;

/// A token from further ahead was made before the clock was set back: it would live longer than it was to, and be taken
/// for that of a pod which started since.
const AHEAD_SECONDS: u64 = 60;

const VERSION: u64 = 2;
/// A byte for the version, five for the time of issue, two for the life: the Common Runtime has room for a token of 64
/// characters. EC2's have 56.
const HEADER_LENGTH: usize = 8;
const ISSUED_BITS: u64 = 40;
const LIFE_BITS: u64 = 16;
const LARGEST_ISSUED: u64 = (1 << ISSUED_BITS) - 1;
const LONGEST_LIFE: u64 = (1 << LIFE_BITS) - 1;
const MAC_LENGTH: usize = 32;

const HOST_POD: &[u8] = b"a pod on the node's network: ";
const HOST_PROCESS: &[u8] = b"a process on the node's network";

/// What a MAC is over; on the heap only where it has no address.
enum Signed {
    Short([u8; HEADER_LENGTH + 16]),
    Long(Vec<u8>),
}

/// A key that this node's tokens are made with.
pub struct SessionKey(hmac::Key);

/// The keys in force: tokens are made with one of them, and good if made with either.
#[derive(Debug)]
pub struct SessionKeys {
    /// The newer key.
    pub newer: SessionKey,
    /// When that was made: seconds since the Unix epoch.
    pub made: u64,
    /// The one before it, if there was one.
    pub older: Option<SessionKey>,
}

/// When a valid token was issued: seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued(pub u64);

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

impl SessionKey {
    /// The key made of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_LENGTH]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// A token for `peer`, good for `ttl_seconds` from `now` (seconds since the Unix epoch).
    #[must_use]
    pub fn issue(&self, peer: &Peer, now: u64, ttl_seconds: u64) -> String {
        let header = header(now, ttl_seconds);
        let mac = hmac::sign(&self.0, signed(&header, peer).as_ref());
        URL_SAFE_NO_PAD.encode([&header[..], mac.as_ref()].concat())
    }

    /// When the token was issued, if it is ours, for `peer`, and has not expired.
    #[must_use]
    pub fn verify(&self, token: &[u8], peer: &Peer, now: u64) -> Option<Issued> {
        let mut bytes = [0; HEADER_LENGTH + MAC_LENGTH];
        let length = URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()?;
        let (header, mac) = bytes.get(..length)?.split_first_chunk::<HEADER_LENGTH>()?;
        hmac::verify(&self.0, signed(header, peer).as_ref(), mac).ok()?;
        let header = u64::from_be_bytes(*header);
        let version = header >> (ISSUED_BITS + LIFE_BITS);
        let (issued, life) = (header >> LIFE_BITS & LARGEST_ISSUED, header & LONGEST_LIFE);
        let in_time = issued <= now + AHEAD_SECONDS && now < issued + life;
        (version == VERSION && in_time).then_some(Issued(issued))
    }
}

impl SessionKeys {
    /// A token for `peer`, good for `ttl_seconds` from `now` (seconds since the Unix epoch).
    #[must_use]
    pub fn issue(&self, peer: &Peer, now: u64, ttl_seconds: u64) -> String {
        let key = self.older.as_ref().filter(|_| now < self.made + SETTLED_SECONDS).unwrap_or(&self.newer);
        key.issue(peer, now, ttl_seconds)
    }

    /// When the token was issued, if it is ours, for `peer`, and has not expired.
    #[must_use]
    pub fn verify(&self, token: &[u8], peer: &Peer, now: u64) -> Option<Issued> {
        let by = |key: &SessionKey| key.verify(token, peer, now);
        by(&self.newer).or_else(|| by(self.older.as_ref()?))
    }

    /// Whether it is time for another key.
    #[must_use]
    pub fn are_due(&self, now: u64) -> bool {
        now.saturating_sub(self.made) >= ROTATION_SECONDS
    }
}

fn header(issued: u64, life: u64) -> [u8; HEADER_LENGTH] {
    let version = VERSION << (ISSUED_BITS + LIFE_BITS);
    let issued = issued.min(LARGEST_ISSUED) << LIFE_BITS;
    (version | issued | life.min(LONGEST_LIFE)).to_be_bytes()
}

fn signed(header: &[u8; HEADER_LENGTH], peer: &Peer) -> Signed {
    let address = match peer {
        Peer::Address(IpAddr::V4(address)) => address.to_ipv6_mapped(),
        Peer::Address(IpAddr::V6(address)) => *address,
        // Longer than with an address, so that no UID can be taken for one.
        Peer::HostPod(uid) => return Signed::Long([&header[..], HOST_POD, uid.as_str().as_bytes()].concat()),
        Peer::HostProcess => return Signed::Long([&header[..], HOST_PROCESS].concat()),
    };
    let mut signed = [0; HEADER_LENGTH + 16];
    signed[..HEADER_LENGTH].copy_from_slice(header);
    signed[HEADER_LENGTH..].copy_from_slice(&address.octets());
    Signed::Short(signed)
}

impl AsRef<[u8]> for Signed {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Short(signed) => signed,
            Self::Long(signed) => signed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer::Address(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const B: Peer = Peer::Address(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    #[test]
    fn a_token_is_good_for_its_address_and_time_only() {
        let key = SessionKey::new(&[7; KEY_LENGTH]);
        let token = key.issue(&A, 1000, 60);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert_eq!(key.verify(token.as_bytes(), &A, 1059), Some(Issued(1000)));
        assert_eq!(key.verify(token.as_bytes(), &A, 1060), None, "expired");
        assert_eq!(key.verify(token.as_bytes(), &A, 940), Some(Issued(1000)));
        assert_eq!(key.verify(token.as_bytes(), &A, 939), None, "the clock was set back");
        assert_eq!(key.verify(token.as_bytes(), &B, 1000), None, "another pod's");
        assert_eq!(SessionKey::new(&[8; KEY_LENGTH]).verify(token.as_bytes(), &A, 1000), None, "another key's");
    }

    #[test]
    fn a_token_is_no_longer_than_ec2s() {
        let key = SessionKey::new(&[7; KEY_LENGTH]);
        let token = key.issue(&A, 4_000_000_000, LONGEST_TTL_SECONDS);
        assert!(token.len() <= 56, "{token}: the Common Runtime gives up, without an error, on more than 64");
        let last = 4_000_000_000 + LONGEST_TTL_SECONDS - 1;
        assert_eq!(key.verify(token.as_bytes(), &A, last), Some(Issued(4_000_000_000)));
        assert_eq!(key.verify(token.as_bytes(), &A, last + 1), None);
    }

    #[test]
    fn a_token_outlives_its_keys_successor_and_no_later_one() {
        let key = |byte| SessionKey::new(&[byte; KEY_LENGTH]);
        let first = SessionKeys { newer: key(1), made: 1000, older: None };
        let due = 1000 + ROTATION_SECONDS;
        assert!(!first.are_due(due - 1) && first.are_due(due) && !first.are_due(999));
        let last = first.issue(&A, due, LONGEST_TTL_SECONDS);
        assert!(key(1).verify(last.as_bytes(), &A, due).is_some());

        let second = SessionKeys { newer: key(2), made: due, older: Some(key(1)) };
        let before = second.issue(&A, due + SETTLED_SECONDS - 1, LONGEST_TTL_SECONDS);
        assert!(first.verify(before.as_bytes(), &A, due + SETTLED_SECONDS).is_some(), "one who does not know it yet");
        let after = second.issue(&A, due + SETTLED_SECONDS, LONGEST_TTL_SECONDS);
        assert!(key(2).verify(after.as_bytes(), &A, due + SETTLED_SECONDS).is_some());
        for token in [&last, &before, &after] {
            assert!(second.verify(token.as_bytes(), &A, due + SETTLED_SECONDS).is_some());
        }

        let third = SessionKeys { newer: key(3), made: due + ROTATION_SECONDS, older: Some(key(2)) };
        let end = due + SETTLED_SECONDS - 1 + LONGEST_TTL_SECONDS;
        assert!(second.verify(before.as_bytes(), &A, end - 1).is_some() && end < third.made, "its whole life");
        assert!(third.verify(after.as_bytes(), &A, due + SETTLED_SECONDS).is_some());
        assert!(third.verify(last.as_bytes(), &A, due).is_none());
    }

    #[test]
    fn every_changed_or_cut_token_is_refused() {
        let key = SessionKey::new(&[7; KEY_LENGTH]);
        let token = key.issue(&A, 1000, 60);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(key.verify(&changed, &A, 1000), None, "byte {at}");
            assert_eq!(key.verify(&token.as_bytes()[..at], &A, 1000), None, "cut at {at}");
        }
        assert_eq!(key.verify(format!("{token}AAAA").as_bytes(), &A, 1000), None);
    }

    #[test]
    fn a_token_of_one_pod_on_the_nodes_network_is_no_other_ones() {
        let key = SessionKey::new(&[7; KEY_LENGTH]);
        let pod = |uid: &str| Peer::HostPod(uid.into());
        let mut peers = vec![A, B, Peer::HostProcess, pod("a"), pod("b"), pod("a process on the node's network")];
        // As long as an address with all that is before it would be, and the same bytes.
        peers.push(Peer::Address("706f:6420:6f6e:2074:6865:206e:6f64:6527".parse().unwrap()));
        for one in &peers {
            let token = key.issue(one, 1000, 60);
            for other in &peers {
                assert_eq!(key.verify(token.as_bytes(), other, 1000).is_some(), one == other, "{one}, {other}");
            }
        }
    }
}
