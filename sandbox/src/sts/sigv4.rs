//! Signature Version 4: reading a signature, and whether a secret made it.
//!
//! Both forms: the `Authorization` header and the presigned query. Sources: [IAM user guide, "Signature
//! Version 4"][sigv4]; the errors and their order are those that AWS's services send.
//!
//! [sigv4]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{constant_time, digest, hmac};
use aws_smithy_types::{DateTime, date_time::Format};
use http::{HeaderMap, header, request::Parts};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};

use super::{
    answers::{Refusal, timestamp},
    random::hex,
};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a request's time may be from ours. STS holds presigned requests to it too, whatever they say.
const SKEW: Duration = Duration::from_secs(15 * 60);
const MISMATCH: &str = "The request signature we calculated does not match the signature you provided. Check your AWS \
                        Secret Access Key and signing method. Consult the service documentation for details.";
/// RFC 3986's unreserved characters stay.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');
/// What S3 is told of a body.
const CONTENT_HASH: &str = "x-amz-content-sha256";
/// That it is not signed: TLS keeps it.
const UNSIGNED_BODY: &str = "UNSIGNED-PAYLOAD";

/// For whom a request is signed. They differ in what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// STS: its host names the region.
    Sts,
    /// S3: the bucket is of a region, whatever the host; the path is signed as it is, and the body by a header.
    S3 {
        /// The bucket's.
        region: &'static str,
    },
    /// EC2 of a region, signed as STS is.
    Ec2 {
        /// Its own.
        region: &'static str,
    },
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::S3 { .. } => "s3",
            Self::Ec2 { .. } => "ec2",
        }
    }
}

/// A signature as it was sent.
#[derive(Debug)]
pub(super) struct Signature {
    /// Whose key it claims to be.
    pub(super) access_key_id: String,
    /// The session token that came with it.
    pub(super) security_token: Option<String>,
    service: Service,
    scope: Scope,
    signed_headers: BTreeSet<String>,
    timestamp: String,
    signature: String,
}

/// `<date>/<region>/<service>/aws4_request`.
#[derive(Debug)]
struct Scope {
    date: String,
    region: String,
    service: String,
    terminator: String,
}

impl Signature {
    /// Reads a request's signature and checks all that can be checked without the secret.
    ///
    /// # Errors
    /// When there is none, when it is incomplete, out of time, or made for another place.
    pub(super) fn read(parts: &Parts, service: Service, now: SystemTime) -> Result<Self, Refusal> {
        let query = query(parts);
        let presigned = query.iter().any(|(name, _)| name == "X-Amz-Algorithm");
        let signature = match (parts.headers.get(header::AUTHORIZATION), presigned) {
            (Some(_), true) => {
                return Err(mismatch(
                    "Found both 'X-Amz-Algorithm' as a query-string param and 'Authorization' as HTTP header.",
                ));
            }
            (Some(authorization), false) => {
                let authorization = authorization.to_str().map_err(|_| missing())?;
                Self::of_header(service, authorization, &parts.headers)?
            }
            (None, true) => Self::of_query(service, &query)?,
            (None, false) => return Err(missing()),
        };
        signature.check_headers(&parts.headers, presigned)?;
        signature.check_time(now)?;
        let host = host(&parts.headers, parts);
        signature.check_scope(match service {
            Service::Sts => host.as_deref().and_then(region_of),
            Service::S3 { region } | Service::Ec2 { region } => Some(region),
        })?;
        Ok(signature)
    }

    /// Whether `secret` made it.
    ///
    /// # Errors
    /// When it did not.
    pub(super) fn verify(&self, parts: &Parts, body: &[u8], secret: &str) -> Result<(), Refusal> {
        let expected = self.sign(&self.canonical_request(parts, body), secret);
        constant_time::verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes())
            .map_err(|_| mismatch(MISMATCH))?;
        self.check_body(parts, body)
    }

    fn of_header(service: Service, authorization: &str, headers: &HeaderMap) -> Result<Self, Refusal> {
        let (algorithm, rest) = authorization.trim().split_once(' ').unwrap_or((authorization.trim(), ""));
        if !algorithm.starts_with("AWS4-") {
            return Err(missing());
        }
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}' (only {ALGORITHM} for now). ")));
        }
        let part = |name: &str| {
            let mut pairs = rest.split(',').filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
        };
        let timestamp = text(headers, "x-amz-date");
        let mut lacks = String::new();
        for name in ["Credential", "Signature", "SignedHeaders"] {
            if part(name).is_none() {
                lacks += &format!("Authorization header requires '{name}' parameter. ");
            }
        }
        if timestamp.is_none() {
            lacks += "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ";
        }
        match (part("Credential"), part("Signature"), part("SignedHeaders"), timestamp) {
            (Some(credential), Some(signature), Some(signed_headers), Some(timestamp)) => {
                let token = text(headers, "x-amz-security-token");
                Self::new(service, &credential, signature, &signed_headers, timestamp, token)
            }
            _ => Err(incomplete(format!("{lacks}Authorization={algorithm}"))),
        }
    }

    fn of_query(service: Service, query: &[(String, String)]) -> Result<Self, Refusal> {
        let part = |name: &str| {
            query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        let algorithm = part("X-Amz-Algorithm").unwrap_or_default();
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("Unsupported AWS 'algorithm': '{algorithm}' (only {ALGORITHM} for now). ")));
        }
        let mut lacks = String::new();
        for name in ["X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"] {
            if part(name).is_none() {
                lacks += &format!("AWS query-string parameters must include '{name}'. ");
            }
        }
        let parts =
            (part("X-Amz-Credential"), part("X-Amz-Signature"), part("X-Amz-SignedHeaders"), part("X-Amz-Date"));
        match parts {
            (Some(credential), Some(signature), Some(signed_headers), Some(timestamp)) => {
                let token = part("X-Amz-Security-Token");
                Self::new(service, &credential, signature, &signed_headers, timestamp, token)
            }
            _ => Err(incomplete(format!("{lacks}Re-examine the query-string parameters."))),
        }
    }

    fn new(
        service: Service,
        credential: &str,
        signature: String,
        signed_headers: &str,
        timestamp: String,
        security_token: Option<String>,
    ) -> Result<Self, Refusal> {
        let [access_key_id, date, region, scoped_service, terminator] =
            credential.split('/').collect::<Vec<_>>().try_into().map_err(|_| {
                incomplete(format!(
                    "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got \
                     '{credential}'"
                ))
            })?;
        let [date, region, scoped_service, terminator] = [date, region, scoped_service, terminator].map(str::to_owned);
        Ok(Self {
            service,
            access_key_id: access_key_id.to_owned(),
            security_token,
            scope: Scope { date, region, service: scoped_service, terminator },
            signed_headers: signed_headers.split(';').map(str::to_owned).collect(),
            timestamp,
            signature,
        })
    }

    /// The host must be signed, and every `x-amz-` header that counts; none may be signed that was not sent.
    fn check_headers(&self, headers: &HeaderMap, presigned: bool) -> Result<(), Refusal> {
        let unsigned = |name: &str| format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.");
        if !self.signed_headers.contains("host") {
            return Err(mismatch(unsigned("Host")));
        }
        let counting = if presigned { &[][..] } else { &["x-amz-date", "x-amz-security-token"][..] };
        if let Some(name) =
            counting.iter().find(|name| headers.contains_key(**name) && !self.signed_headers.contains(**name))
        {
            return Err(mismatch(unsigned(name)));
        }
        let mut counting = headers.keys().map(header::HeaderName::as_str).filter(|name| name.starts_with("x-amz-"));
        if matches!(self.service, Service::S3 { .. }) && counting.any(|name| !self.signed_headers.contains(name)) {
            let message = "There were headers present in the request which were not signed";
            return Err(Refusal::forbidden("AccessDenied", message));
        }
        Ok(())
    }

    fn check_time(&self, now: SystemTime) -> Result<(), Refusal> {
        let sent = parse_basic(&self.timestamp).ok_or_else(|| {
            incomplete(format!(
                "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
                self.timestamp
            ))
        })?;
        let (text, now_text) = (&self.timestamp, basic(now));
        if sent < now - SKEW {
            let least = basic(now - SKEW);
            return Err(mismatch(format!(
                "Signature expired: {text} is now earlier than {least} ({now_text} - 15 min.)"
            )));
        }
        if sent > now + SKEW {
            let most = basic(now + SKEW);
            return Err(mismatch(format!(
                "Signature not yet current: {text} is still later than {most} ({now_text} + 15 min.)"
            )));
        }
        Ok(())
    }

    fn check_scope(&self, region: Option<&str>) -> Result<(), Refusal> {
        let mut wrong = String::new();
        if region.is_some_and(|region| region != self.scope.region) || self.scope.region.is_empty() {
            wrong += "Credential should be scoped to a valid region. ";
        }
        let service = self.service.name();
        if self.scope.service != service {
            wrong += &format!("Credential should be scoped to correct service: '{service}'. ");
        }
        if self.scope.terminator != "aws4_request" {
            wrong += &format!(
                "Credential should be scoped with a valid terminator: 'aws4_request', not '{}'. ",
                self.scope.terminator
            );
        }
        if !self.timestamp.starts_with(&self.scope.date) || self.scope.date.len() != 8 {
            wrong += &format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{}', \
                 from '{}'. ",
                self.scope.date,
                self.timestamp.get(..8).unwrap_or_default(),
                self.timestamp
            );
        }
        if wrong.is_empty() { Ok(()) } else { Err(mismatch(wrong)) }
    }

    fn canonical_request(&self, parts: &Parts, body: &[u8]) -> String {
        let mut query: Vec<_> = query(parts)
            .into_iter()
            .filter(|(name, _)| name != "X-Amz-Signature")
            .map(|(name, value)| (encode(&name), encode(&value)))
            .collect();
        query.sort();
        let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let mut headers = String::new();
        for name in &self.signed_headers {
            let value = if name == "host" { host(&parts.headers, parts) } else { canonical(&parts.headers, name) };
            headers += &format!("{name}:{}\n", value.unwrap_or_default());
        }
        let signed = self.signed_headers.iter().map(String::as_str).collect::<Vec<_>>().join(";");
        let path = parts.uri.path();
        let (path, body) = match self.service {
            Service::Sts | Service::Ec2 { .. } => (path.to_owned(), sha256(body)),
            Service::S3 { .. } => {
                let path = percent_decode_str(path).collect::<Vec<_>>();
                (percent_encode(&path, ENCODED_IN_PATH).to_string(), self.signed_body(parts))
            }
        };
        format!("{}\n{path}\n{query}\n{headers}\n{signed}\n{body}", parts.method)
    }

    /// What a request to S3 says of its body: the hash, or that it is not signed.
    fn signed_body(&self, parts: &Parts) -> String {
        text(&parts.headers, CONTENT_HASH).unwrap_or_else(|| UNSIGNED_BODY.to_owned())
    }

    /// Whether the body is the one that was signed.
    ///
    /// # Errors
    /// When S3 is not told what it is to be, or it is another one.
    fn check_body(&self, parts: &Parts, body: &[u8]) -> Result<(), Refusal> {
        if !matches!(self.service, Service::S3 { .. }) {
            return Ok(());
        }
        match text(&parts.headers, CONTENT_HASH).as_deref() {
            None if parts.headers.contains_key(header::AUTHORIZATION) => {
                Err(Refusal::bad("InvalidRequest", "Missing required header for this request: x-amz-content-sha256"))
            }
            None | Some(UNSIGNED_BODY) => Ok(()),
            Some(hash) if hash == sha256(body) => Ok(()),
            Some(_) => Err(Refusal::bad(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )),
        }
    }

    fn sign(&self, canonical_request: &str, secret: &str) -> String {
        let Scope { date, region, service, terminator } = &self.scope;
        let string_to_sign = format!(
            "{ALGORITHM}\n{}\n{date}/{region}/{service}/{terminator}\n{}",
            self.timestamp,
            sha256(canonical_request.as_bytes())
        );
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [date, region, service, terminator] {
            key = mac(&key, part.as_bytes());
        }
        hex(&mac(&key, string_to_sign.as_bytes()))
    }
}

fn query(parts: &Parts) -> Vec<(String, String)> {
    // Not as a form: here a plus is a plus.
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn host(headers: &HeaderMap, parts: &Parts) -> Option<String> {
    canonical(headers, "host").or_else(|| parts.uri.authority().map(ToString::to_string))
}

/// The region that a host's name binds a signature to; an address or another name binds it to none.
fn region_of(host: &str) -> Option<&str> {
    let name = host.split(':').next()?;
    let rest = name.strip_suffix(".amazonaws.com").or_else(|| name.strip_suffix(".amazonaws.com.cn"))?;
    let rest = rest.strip_prefix("sts-fips").or_else(|| rest.strip_prefix("sts"))?;
    match rest {
        "" => Some("us-east-1"),
        region => region.strip_prefix('.'),
    }
}

/// The partition of the host that a request was sent to; an address or another name is of none.
pub(super) fn partition(parts: &Parts) -> Option<&'static str> {
    let host = host(&parts.headers, parts)?;
    Some(match region_of(&host)? {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// All values of a header, trimmed, runs of spaces as one, joined by commas.
fn canonical(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(name).iter();
    let values: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()).split_ascii_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

/// `20261125T120000Z`.
fn basic(time: SystemTime) -> String {
    timestamp(time).replace(['-', ':'], "")
}

fn parse_basic(text: &str) -> Option<SystemTime> {
    let digits =
        |range: std::ops::Range<usize>| text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let (date, time) = (digits(0..8)?, digits(9..15)?);
    if text.len() != 16 || text.get(8..9)? != "T" || text.get(15..)? != "Z" {
        return None;
    }
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    let (hour, minute, second) = (&time[..2], &time[2..4], &time[4..]);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    SystemTime::try_from(DateTime::from_str(&text, Format::DateTime).ok()?).ok()
}

fn missing() -> Refusal {
    Refusal::forbidden("MissingAuthenticationToken", "Request is missing Authentication Token")
}

fn incomplete(message: String) -> Refusal {
    Refusal::bad("IncompleteSignature", message)
}

fn mismatch(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::forbidden("SignatureDoesNotMatch", message)
}

#[cfg(test)]
#[path = "sigv4_tests.rs"]
mod tests;
