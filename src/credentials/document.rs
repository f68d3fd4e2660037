//! The role's document: credentials as the metadata service gives them, serialised once. Pure.
//!
//! Owns the only lasting copy of the secrets, which is overwritten when the last reader lets go of it.
//!
//! Source: [Retrieve security credentials from instance metadata](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use aws_smithy_types::{DateTime, date_time::Format};
use bytes::Bytes;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    clock::{Deadline, Now},
    identity::RoleArn,
    sts::Session,
};

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Credentials that can be served until they expire.
pub struct Document {
    body: Bytes,
    expires: Deadline,
    life: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Fields<'a> {
    code: &'static str,
    last_updated: &'a str,
    r#type: &'static str,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    expiration: &'a str,
}

impl Document {
    /// The document of a session that STS gave just now. `None` if it has expired already by our clock.
    #[must_use]
    pub fn new(session: &Session, now: Now) -> Option<Self> {
        let expires = now.deadline(session.expiration);
        let life = expires.left(now);
        if life.is_zero() {
            return None;
        }
        let (secret, token) = (session.secret_access_key.expose_secret(), session.session_token.expose_secret());
        let fields = Fields {
            code: "Success",
            last_updated: &seconds(now.wall)?,
            r#type: "AWS-HMAC",
            access_key_id: &session.access_key_id,
            secret_access_key: secret,
            token,
            expiration: &seconds(session.expiration)?,
        };
        // Room for all of it, so that growing leaves no copy of a part behind.
        let mut body = Zeroizing::new(Vec::with_capacity(512 + secret.len() + token.len()));
        serde_json::to_writer(&mut *body, &fields).ok()?;
        Some(Self { body: Bytes::from_owner(body), expires, life })
    }

    /// The body of the answer; `None` once the credentials have expired.
    #[must_use]
    pub fn body(&self, now: Now) -> Option<Bytes> {
        (!self.expires.passed(now)).then(|| self.body.clone())
    }

    /// When the credentials expire.
    #[must_use]
    pub fn expires(&self) -> Deadline {
        self.expires
    }

    /// The life that STS gave: every other time derives from it.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.life
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("life", &self.life).finish_non_exhaustive()
    }
}

/// `iam/info`: the instance profile that an instance with this role would have, its id made from the role's ARN.
#[must_use]
pub fn instance_profile(role: &RoleArn, now: Now) -> Option<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info<'a> {
        code: &'static str,
        last_updated: &'a str,
        instance_profile_arn: String,
        instance_profile_id: String,
    }
    let hash = digest::digest(&digest::SHA256, role.as_str().as_bytes());
    let info = Info {
        code: "Success",
        last_updated: &seconds(now.wall)?,
        instance_profile_arn: role.as_str().replacen(":role/", ":instance-profile/", 1),
        // Ids have 17 characters of A to Z and 2 to 7 after their kind.
        instance_profile_id: hash.as_ref().iter().take(17).fold("AIPA".to_owned(), |mut id, byte| {
            id.extend(BASE32.get(usize::from(byte % 32)).copied().map(char::from));
            id
        }),
    };
    serde_json::to_string_pretty(&info).ok()
}

/// `YYYY-MM-DDTHH:MM:SSZ`, exactly: the Rust SDK refuses offsets, minio's fractions.
fn seconds(time: SystemTime) -> Option<String> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    DateTime::from_secs(i64::try_from(seconds).ok()?).fmt(Format::DateTime).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn at(unix: u64) -> Now {
        Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(unix), monotonic: Instant::now() }
    }

    fn session(expires: u64) -> Session {
        Session {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            secret_access_key: "secret".into(),
            session_token: "token==".into(),
            expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
            shortened: false,
        }
    }

    #[test]
    fn the_document_is_what_sdks_read() {
        let now = at(1_767_225_600);
        let document = Document::new(&session(1_767_229_200), now).unwrap();
        assert_eq!(document.life(), Duration::from_secs(3600));
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&document.body(now).unwrap()).unwrap(),
            serde_json::json!({
                "Code": "Success",
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Type": "AWS-HMAC",
                "AccessKeyId": "ASIAEXAMPLE",
                "SecretAccessKey": "secret",
                "Token": "token==",
                "Expiration": "2026-01-01T01:00:00Z",
            })
        );
    }

    #[test]
    fn expired_credentials_have_no_body() {
        let now = at(1000);
        assert!(Document::new(&session(1000), now).is_none());
        let document = Document::new(&session(1010), now).unwrap();
        let later = |seconds| {
            let passed = Duration::from_secs(seconds);
            Now { wall: now.wall + passed, monotonic: now.monotonic + passed }
        };
        assert!(document.body(later(9)).is_some());
        assert!(document.body(later(10)).is_none());
    }

    #[test]
    fn the_instance_profile_is_made_of_the_role() {
        let role = "arn:aws-cn:iam::111122223333:role/team-a/web".parse().unwrap();
        let info = instance_profile(&role, at(1_767_225_600)).unwrap();
        let info = serde_json::from_str::<serde_json::Value>(&info).unwrap();
        assert_eq!(info["InstanceProfileArn"], "arn:aws-cn:iam::111122223333:instance-profile/team-a/web");
        assert_eq!((&info["Code"], &info["LastUpdated"]), (&"Success".into(), &"2026-01-01T00:00:00Z".into()));
        assert_eq!(info["InstanceProfileId"].as_str().unwrap().len(), 21);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?} {:?}", Document::new(&session(1010), at(1000)).unwrap(), session(1010));
        assert!(!shown.contains("secret\"") && !shown.contains("token=="), "{shown}");
    }
}
