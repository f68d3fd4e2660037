//! What IAM knows of accounts: OIDC providers, roles, and the sessions that STS opened.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{
    policy::{Context, Permissions, TrustPolicy},
    random,
};

/// The session life that a role allows unless it says more.
const DEFAULT_MAX_SESSION: Duration = Duration::from_secs(3600);
/// The longest session life that a role can allow.
const LONGEST_MAX_SESSION: Duration = Duration::from_secs(43200);
/// How long EC2's credentials for an instance live.
const INSTANCE_LIFE: Duration = Duration::from_secs(6 * 3600);

/// What IAM refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IamError {
    /// The policy is not one, or uses what this sandbox does not know.
    #[error("MalformedPolicyDocument: {0}")]
    MalformedPolicyDocument(String),
    /// The policy is too long.
    #[error("LimitExceeded: {0}")]
    LimitExceeded(String),
    /// An ARN, a URL or a duration is not acceptable.
    #[error("ValidationError: {0}")]
    Validation(String),
}

/// A role as it is put into an account.
#[derive(Clone, Debug)]
pub struct Role {
    /// `arn:aws:iam::<account>:role/<path and name>`.
    pub arn: String,
    /// The trust policy document.
    pub trust_policy: Value,
    /// The permissions policy document.
    pub permissions: Option<Value>,
    /// The longest session that may be asked for: an hour to twelve.
    pub max_session_duration: Duration,
}

impl Role {
    /// A role with this trust policy, no permissions, and sessions of an hour at most, as IAM makes them by default.
    #[must_use]
    pub fn new(arn: &str, trust_policy: Value) -> Self {
        Self { arn: arn.to_owned(), trust_policy, permissions: None, max_session_duration: DEFAULT_MAX_SESSION }
    }
}

/// What EC2 hands to an instance for its role.
#[derive(Clone, PartialEq, Eq)]
pub struct InstanceCredentials {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: String,
    /// The session token.
    pub session_token: String,
    /// When EC2 last renewed them.
    pub last_updated: SystemTime,
    /// When they end.
    pub expiration: SystemTime,
    /// The instance's role.
    pub role_arn: String,
    /// The instance.
    pub instance_id: String,
}

impl fmt::Debug for InstanceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceCredentials")
            .field("access_key_id", &self.access_key_id)
            .field("role_arn", &self.role_arn)
            .field("instance_id", &self.instance_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

/// A role's ARN, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoleArn {
    pub(super) partition: String,
    pub(super) account: String,
    /// Without its path.
    pub(super) name: String,
    text: String,
}

impl RoleArn {
    /// `None` unless it is the ARN of an IAM role.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("arn:")?;
        let (partition, rest) = rest.split_once(":iam::")?;
        let (account, path) = rest.split_once(":role/")?;
        let name = path.rsplit('/').next()?;
        let name_is_good = (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
        (matches!(partition, "aws" | "aws-cn" | "aws-us-gov") && is_account(account) && name_is_good).then(|| Self {
            partition: partition.to_owned(),
            account: account.to_owned(),
            name: name.to_owned(),
            text: text.to_owned(),
        })
    }

    /// As text.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The ARN of a session of this role; the role's path is not in it.
    pub(super) fn session(&self, name: &str) -> String {
        format!("arn:{}:sts::{}:assumed-role/{}/{name}", self.partition, self.account, self.name)
    }

    /// The role's unique id.
    pub(super) fn unique_id(&self) -> String {
        random::role_id(&self.text)
    }

    /// The ARN of the OIDC provider of this role's account for `issuer`.
    pub(super) fn provider(&self, issuer: &str) -> String {
        let name = issuer.strip_prefix("https://").unwrap_or(issuer);
        format!("arn:{}:iam::{}:oidc-provider/{name}", self.partition, self.account)
    }
}

/// Whether it is an account's number.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// A role that IAM accepted.
#[derive(Debug)]
pub(super) struct KnownRole {
    pub(super) trust: TrustPolicy,
    pub(super) permissions: Permissions,
    pub(super) max_session: Duration,
}

/// Keys that STS handed out, and whose they are.
pub(super) struct Session {
    pub(super) secret: String,
    pub(super) token: String,
    pub(super) arn: String,
    pub(super) user_id: String,
    pub(super) role: RoleArn,
    pub(super) expires: SystemTime,
    pub(super) tags: Vec<Tag>,
    /// EC2 opened it: a role that it assumes is not assumed by chaining.
    pub(super) of_instance: bool,
}

impl Session {
    /// What policies can ask of who calls, added to the rest.
    pub(super) fn context(&self, rest: Context) -> Context {
        let rest = rest
            .with("aws:PrincipalArn", [self.role.as_str().to_owned()])
            .with("aws:PrincipalAccount", [self.role.account.clone()]);
        self.tags
            .iter()
            .fold(rest, |rest, tag| rest.with(&format!("aws:PrincipalTag/{}", tag.key), [tag.value.clone()]))
    }
}

/// A session's tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) key: String,
    pub(super) value: String,
    /// Sessions that are opened with this one's keys inherit it.
    pub(super) transitive: bool,
}

/// All accounts.
#[derive(Default)]
pub(super) struct Accounts {
    /// Audiences by account and issuer.
    providers: HashMap<(String, String), Arc<[String]>>,
    roles: HashMap<String, Arc<KnownRole>>,
    sessions: HashMap<String, Arc<Session>>,
    instances: HashMap<(String, String), InstanceCredentials>,
}

impl Accounts {
    /// Makes or replaces an OIDC provider.
    pub(super) fn put_provider(&mut self, account: &str, issuer: &str, audiences: &[&str]) -> Result<(), IamError> {
        if !issuer.starts_with("https://") || issuer.contains(['?', '#']) || issuer.len() > 255 {
            return Err(IamError::Validation(format!("Invalid Open ID Connect Provider URL {issuer}")));
        }
        let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
        self.providers.insert((account.to_owned(), issuer.to_owned()), audiences);
        Ok(())
    }

    /// The audiences of the account's provider for `issuer`.
    pub(super) fn provider(&self, account: &str, issuer: &str) -> Option<Arc<[String]>> {
        self.providers.get(&(account.to_owned(), issuer.to_owned())).cloned()
    }

    /// Takes the account's provider for `issuer` away.
    pub(super) fn delete_provider(&mut self, account: &str, issuer: &str) {
        self.providers.remove(&(account.to_owned(), issuer.to_owned()));
    }

    /// Makes or replaces a role.
    pub(super) fn put_role(&mut self, role: &Role) -> Result<(), IamError> {
        if RoleArn::parse(&role.arn).is_none() {
            return Err(IamError::Validation(format!("{} is not the ARN of a role", role.arn)));
        }
        if !(DEFAULT_MAX_SESSION..=LONGEST_MAX_SESSION).contains(&role.max_session_duration) {
            return Err(IamError::Validation("a role's maximum session duration is 3600 to 43200 s".to_owned()));
        }
        let trust = TrustPolicy::parse(&role.trust_policy)?;
        if let Some(unknown) = trust.roles().find(|arn| *arn != role.arn && !self.roles.contains_key(*arn)) {
            let message = format!("Invalid principal in policy: \"AWS\":\"{unknown}\"");
            return Err(IamError::MalformedPolicyDocument(message));
        }
        let permissions = role.permissions.as_ref().map(Permissions::parse).transpose()?.unwrap_or_default();
        let known = KnownRole { trust, permissions, max_session: role.max_session_duration };
        self.roles.insert(role.arn.clone(), Arc::new(known));
        Ok(())
    }

    /// Replaces a role's permissions.
    pub(super) fn put_permissions(&mut self, arn: &str, permissions: &Value) -> Result<(), IamError> {
        let permissions = Permissions::parse(permissions)?;
        let none = || IamError::Validation(format!("there is no role {arn}"));
        let role = self.roles.get_mut(arn).ok_or_else(none)?;
        let KnownRole { trust, max_session, .. } = &**role;
        *role = Arc::new(KnownRole { trust: trust.clone(), permissions, max_session: *max_session });
        Ok(())
    }

    /// Takes a role away; its sessions live on, as AWS's do for a while.
    pub(super) fn delete_role(&mut self, arn: &str) {
        self.roles.remove(arn);
    }

    /// The role with this ARN.
    pub(super) fn role(&self, arn: &str) -> Option<Arc<KnownRole>> {
        self.roles.get(arn).cloned()
    }

    /// Opens a session and gives its key's id.
    pub(super) fn open(
        &mut self,
        role: &RoleArn,
        name: &str,
        tags: Vec<Tag>,
        expires: SystemTime,
    ) -> (String, Arc<Session>) {
        self.open_session(role, name, tags, expires, false)
    }

    fn open_session(
        &mut self,
        role: &RoleArn,
        name: &str,
        tags: Vec<Tag>,
        expires: SystemTime,
        of_instance: bool,
    ) -> (String, Arc<Session>) {
        let id = random::access_key_id();
        let session = Arc::new(Session {
            secret: random::secret_access_key(),
            token: random::session_token(),
            arn: role.session(name),
            user_id: format!("{}:{name}", role.unique_id()),
            role: role.clone(),
            expires,
            tags,
            of_instance,
        });
        self.sessions.insert(id.clone(), Arc::clone(&session));
        (id, session)
    }

    /// The session of an access key.
    pub(super) fn session(&self, access_key_id: &str) -> Option<Arc<Session>> {
        self.sessions.get(access_key_id).cloned()
    }

    /// Forgets every key that was ever handed out.
    pub(super) fn revoke_all(&mut self) {
        self.sessions.clear();
        self.instances.clear();
    }

    /// An instance's credentials; EC2 renews them when half their life is over.
    pub(super) fn instance(&mut self, role_arn: &str, instance_id: &str, now: SystemTime) -> InstanceCredentials {
        let place = (role_arn.to_owned(), instance_id.to_owned());
        if let Some(known) = self.instances.get(&place)
            && known.expiration.duration_since(now).is_ok_and(|left| left > INSTANCE_LIFE / 2)
        {
            return known.clone();
        }
        let role = RoleArn::parse(role_arn).unwrap_or_else(|| RoleArn {
            partition: "aws".to_owned(),
            account: "000000000000".to_owned(),
            name: role_arn.rsplit('/').next().unwrap_or_default().to_owned(),
            text: role_arn.to_owned(),
        });
        let expiration = now + INSTANCE_LIFE;
        let (access_key_id, session) = self.open_session(&role, instance_id, Vec::new(), expiration, true);
        let credentials = InstanceCredentials {
            access_key_id,
            secret_access_key: session.secret.clone(),
            session_token: session.token.clone(),
            last_updated: now,
            expiration,
            role_arn: role_arn.to_owned(),
            instance_id: instance_id.to_owned(),
        };
        self.instances.insert(place, credentials.clone());
        credentials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_arn_drops_the_roles_path() {
        let arn = RoleArn::parse("arn:aws:iam::111122223333:role/team/a/web").unwrap();
        assert_eq!(arn.session("s"), "arn:aws:sts::111122223333:assumed-role/web/s");
        assert_eq!(arn.provider("https://a.example/b"), "arn:aws:iam::111122223333:oidc-provider/a.example/b");
    }

    #[test]
    fn only_a_roles_arn_is_one() {
        for text in [
            "arn:aws:iam::111122223333:user/web",
            "arn:aws:iam::11112222333:role/web",
            "arn:aws:iam:eu-west-1:111122223333:role/web",
            "arn:aws:sts::111122223333:assumed-role/web/s",
            "arn:aws:iam::111122223333:role/",
            "arn:evil:iam::111122223333:role/web",
            "web",
        ] {
            assert_eq!(RoleArn::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_oidc_provider_must_be_https() {
        assert!(Accounts::default().put_provider("1", "http://a.example", &["a"]).is_err());
    }
}
