//! A web host's certificates, as IAM looks at them: who is said to have signed whom, until when, and the thumbprint.
//!
//! Whether the signatures hold is rustls's to say. Of a certificate only the four fields are read that the findings need.
//!
//! Sources: RFC 5280, 4.1; [IAM, "Obtain the thumbprint for an OpenID Connect identity provider"][iam].
//!
//! [iam]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc_verify-thumbprint.html

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_smithy_types::{DateTime, date_time::Format};
use rustls::pki_types::CertificateDer;

/// A certificate is renewed with a third of its life left, usually; with less than a fifth, somebody has to look.
const LATE: u32 = 5;
/// Of certificates that live for long, what is enough to act.
const ENOUGH: Duration = Duration::from_secs(14 * 24 * 60 * 60);

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whoever signed it, as it says (DER).
    pub issuer: Vec<u8>,
    /// Whose it is (DER).
    pub subject: Vec<u8>,
    /// From when it counts.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// What is wrong with the order in which a host sends certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disorder {
    /// One is there twice.
    Twice,
    /// One did not sign the one before it.
    Order,
}

/// The thumbprint that IAM takes: that of the last certificate which the host sends.
#[must_use]
pub fn thumbprint(chain: &[CertificateDer<'_>]) -> Option<String> {
    let last = digest(&SHA1_FOR_LEGACY_USE_ONLY, chain.last()?);
    Some(last.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        write!(hex, "{byte:02x}").ok();
        hex
    }))
}

/// Whether the certificates are in the order that AWS wants: the host's, the one that signed it, and so on.
#[must_use]
pub fn disorder(chain: &[CertificateDer<'_>]) -> Option<Disorder> {
    if chain.iter().enumerate().any(|(at, one)| chain[..at].contains(one)) {
        return Some(Disorder::Twice);
    }
    let read = chain.iter().map(|der| Certificate::read(der)).collect::<Option<Vec<_>>>()?;
    read.windows(2).any(|pair| pair[0].issuer != pair[1].subject).then_some(Disorder::Order)
}

// === impl Certificate ===

impl Certificate {
    /// Reads it; `None` if it is not built as one.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (certificate, _) = take(der, SEQUENCE)?;
        let (mut fields, _) = take(certificate, SEQUENCE)?;
        if let Some((_, rest)) = take(fields, VERSION) {
            fields = rest;
        }
        let (_serial, fields) = take(fields, INTEGER)?;
        let (_signature, fields) = take(fields, SEQUENCE)?;
        let (issuer, fields) = take(fields, SEQUENCE)?;
        let (validity, fields) = take(fields, SEQUENCE)?;
        let (subject, _) = take(fields, SEQUENCE)?;
        let (not_before, validity) = time(validity)?;
        let (not_after, _) = time(validity)?;
        Some(Self { issuer: issuer.to_vec(), subject: subject.to_vec(), not_before, not_after })
    }

    /// Whether it is time that somebody sees to its renewal.
    #[must_use]
    pub fn ends_soon(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after.duration_since(now).unwrap_or_default() < ENOUGH.min(life / LATE)
    }
}

/// The contents of the value that `der` begins with, if it has this tag, and what comes behind it.
fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // Four bytes are more than any certificate needs.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

/// A time of either kind, with seconds and in UTC, as RFC 5280 wants.
fn time(der: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (text, rest) = match (take(der, UTC_TIME), take(der, GENERALIZED_TIME)) {
        (Some((text, rest)), _) => {
            let text = std::str::from_utf8(text).ok()?;
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            (format!("{century}{text}"), rest)
        }
        (None, Some((text, rest))) => (std::str::from_utf8(text).ok()?.to_owned(), rest),
        (None, None) => return None,
    };
    let part = |from: usize, to: usize| text.get(from..to);
    let has_form = text.len() == "YYYYMMDDHHMMSSZ".len() && text.ends_with('Z');
    let rfc3339 = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?
    );
    let seconds = DateTime::from_str(&rfc3339, Format::DateTime).ok().filter(|_| has_form)?.secs();
    Some((SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?), rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(day: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * day
    }

    fn authority(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    }

    /// A host's certificate, that of the authority which signed it, and the root's.
    fn chain() -> [CertificateDer<'static>; 3] {
        let (root, root_key) = authority("root");
        let (middle, middle_key) = authority("middle");
        let root_certificate = root.self_signed(&root_key).unwrap();
        let root = Issuer::new(root, root_key);
        let middle_certificate = middle.signed_by(&middle_key, &root).unwrap();
        let middle = Issuer::new(middle, middle_key);
        let mut host = CertificateParams::new(vec!["oidc.example.com".to_owned()]).unwrap();
        host.not_before = date_time_ymd(2026, 1, 1);
        host.not_after = date_time_ymd(2050, 4, 1);
        let host = host.signed_by(&KeyPair::generate().unwrap(), &middle).unwrap();
        [host, middle_certificate, root_certificate].map(|certificate| certificate.der().clone())
    }

    #[test]
    fn a_certificate_is_read_with_times_of_either_kind() {
        let [host, middle, root] = chain().map(|der| Certificate::read(&der).unwrap());
        let times = [host.not_before, host.not_after].map(|time| crate::clock::rfc3339(time).unwrap());
        // From 2050 on times are of the other kind.
        assert_eq!(times, ["2026-01-01T00:00:00Z", "2050-04-01T00:00:00Z"]);
        assert_eq!((&host.issuer, &middle.issuer), (&middle.subject, &root.subject));
        assert_eq!(root.issuer, root.subject);
        assert_ne!(host.subject, middle.subject);
    }

    #[test]
    fn what_is_no_certificate_is_not_read_whatever_its_length() {
        let [host, ..] = chain();
        for length in 0..host.len() {
            // The fields that are read stand in front: but the outermost length says that more must come.
            assert_eq!(Certificate::read(&host[..length]), None, "{length}");
        }
        assert_eq!(Certificate::read(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(Certificate::read(&[SEQUENCE, 0x80]), None);
    }

    #[test]
    fn the_order_that_aws_wants_is_told_from_others() {
        let [host, middle, root] = chain();
        for well in [vec![&host], vec![&host, &middle], vec![&host, &middle, &root]] {
            assert_eq!(disorder(&well.into_iter().cloned().collect::<Vec<_>>()), None);
        }
        for wrong in [vec![&host, &root], vec![&host, &root, &middle], vec![&middle, &host]] {
            assert_eq!(disorder(&wrong.into_iter().cloned().collect::<Vec<_>>()), Some(Disorder::Order));
        }
        let twice = [&host, &middle, &middle].map(Clone::clone);
        assert_eq!(disorder(&twice), Some(Disorder::Twice));
    }

    #[test]
    fn the_thumbprint_is_the_sha_1_of_the_last_certificate() {
        // That of the three letters is in FIPS 180.
        let chain = [b"first".to_vec(), b"abc".to_vec()].map(CertificateDer::from);
        assert_eq!(thumbprint(&chain).as_deref(), Some("a9993e364706816aba3e25717850c26c9cd0d89d"));
        assert_eq!(thumbprint(&[]), None);
    }

    #[test]
    fn a_certificate_ends_soon_by_the_measure_of_its_life() {
        let of = |days: u32| Certificate {
            issuer: vec![],
            subject: vec![],
            not_before: at(1000),
            not_after: at(1000 + days),
        };
        for (life, soon, not_yet) in [(398, 385, 383), (90, 77, 75), (47, 39, 37), (6, 5, 4)] {
            assert!(of(life).ends_soon(at(1000 + soon)), "{life}");
            assert!(!of(life).ends_soon(at(1000 + not_yet)), "{life}");
        }
        assert!(of(90).ends_soon(at(2000)), "it has ended");
    }
}
