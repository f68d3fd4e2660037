//! The role's documents: credentials as the metadata service and the container endpoint give them, serialised once. Pure.
//!
//! Owns the only lasting copies of the secrets, which are overwritten when the last reader lets go of them.
//!
//! Sources: [Retrieve security credentials from instance metadata](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html),
//! [Container credential provider](https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html).

use std::{fmt, time::Duration};

use aws_lc_rs::digest;
use bytes::Bytes;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    clock::{Deadline, Now, rfc3339},
    identity::RoleArn,
    sts::Session,
};

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Whose form a document has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The metadata service's.
    Metadata,
    /// The container endpoint's.
    Container,
}

/// Credentials that can be served until they expire.
pub struct Document {
    metadata: Bytes,
    container: Bytes,
    expires: Deadline,
    life: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    code: &'static str,
    last_updated: &'a str,
    r#type: &'static str,
    #[serde(flatten)]
    keys: &'a Keys<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container<'a> {
    #[serde(flatten)]
    keys: &'a Keys<'a>,
    account_id: &'a str,
    role_arn: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Keys<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    expiration: &'a str,
}

impl Document {
    /// The documents of a session of `role` that STS gave just now. `None` if it has expired already by our clock.
    #[must_use]
    pub fn new(session: &Session, role: &RoleArn, now: Now) -> Option<Self> {
        let expires = now.deadline(session.expiration);
        let life = expires.left(now);
        if life.is_zero() {
            return None;
        }
        let keys = Keys {
            access_key_id: &session.access_key_id,
            secret_access_key: session.secret_access_key.expose_secret(),
            token: session.session_token.expose_secret(),
            expiration: &rfc3339(session.expiration)?,
        };
        let last_updated = &rfc3339(now.wall)?;
        let metadata = Metadata { code: "Success", last_updated, r#type: "AWS-HMAC", keys: &keys };
        let container = Container { keys: &keys, account_id: role.account(), role_arn: role.as_str() };
        // Room for all of it, so that growing leaves no copy of a part behind.
        let room = 512 + keys.secret_access_key.len() + keys.token.len();
        let (metadata, container) = (serialised(&metadata, room)?, serialised(&container, room + role.as_str().len())?);
        Some(Self { metadata, container, expires, life })
    }

    /// The body of the answer; `None` once the credentials have expired.
    #[must_use]
    pub fn body(&self, form: Form, now: Now) -> Option<Bytes> {
        let body = match form {
            Form::Metadata => &self.metadata,
            Form::Container => &self.container,
        };
        (!self.expires.passed(now)).then(|| body.clone())
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

fn serialised(document: &impl Serialize, room: usize) -> Option<Bytes> {
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *body, document).ok()?;
    Some(Bytes::from_owner(body))
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
        last_updated: &rfc3339(now.wall)?,
        instance_profile_arn: role.as_str().replacen(":role/", ":instance-profile/", 1),
        // Ids have 17 characters of A to Z and 2 to 7 after their kind.
        instance_profile_id: hash.as_ref().iter().take(17).fold("AIPA".to_owned(), |mut id, byte| {
            id.extend(BASE32.get(usize::from(byte % 32)).copied().map(char::from));
            id
        }),
    };
    serde_json::to_string_pretty(&info).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

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

    fn role() -> RoleArn {
        "arn:aws:iam::111122223333:role/team-a/web".parse().unwrap()
    }

    #[test]
    fn the_documents_are_what_sdks_read() {
        let now = at(1_767_225_600);
        let document = Document::new(&session(1_767_229_200), &role(), now).unwrap();
        let read = |form| serde_json::from_slice::<serde_json::Value>(&document.body(form, now).unwrap()).unwrap();
        assert_eq!(document.life(), Duration::from_secs(3600));
        assert_eq!(
            read(Form::Metadata),
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
        assert_eq!(
            read(Form::Container),
            serde_json::json!({
                "AccessKeyId": "ASIAEXAMPLE",
                "SecretAccessKey": "secret",
                "Token": "token==",
                "Expiration": "2026-01-01T01:00:00Z",
                "AccountId": "111122223333",
                "RoleArn": "arn:aws:iam::111122223333:role/team-a/web",
            })
        );
    }

    #[test]
    fn expired_credentials_have_no_body() {
        let now = at(1000);
        assert!(Document::new(&session(1000), &role(), now).is_none());
        let document = Document::new(&session(1010), &role(), now).unwrap();
        let later = |seconds| {
            let passed = Duration::from_secs(seconds);
            Now { wall: now.wall + passed, monotonic: now.monotonic + passed }
        };
        for form in [Form::Metadata, Form::Container] {
            assert!(document.body(form, later(9)).is_some());
            assert!(document.body(form, later(10)).is_none());
        }
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
        let shown = format!("{:?} {:?}", Document::new(&session(1010), &role(), at(1000)).unwrap(), session(1010));
        assert!(!shown.contains("secret\"") && !shown.contains("token=="), "{shown}");
    }
}
