//! A service account token for a role's credentials: AssumeRoleWithWebIdentity, and AssumeRole from there where there
//! is a second hop; or AssumeRole by the daemon's own identity ([`own`]) of a role that a pod names.
//!
//! Owns the STS client (our HTTP stack, no retries of its own: those are the refresher's) and the hops. The first hop's
//! keys live for the call that they sign. Invariant: neither tokens nor credentials are in any error or log line.
//!
//! Sources: [AssumeRoleWithWebIdentity](https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html),
//! [AssumeRole](https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html), and for the tags
//! [those of EKS Pod Identity](https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html).

mod error;
mod http;
pub mod own;
mod skew;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_sdk_sts::{
    Client,
    config::{
        BehaviorVersion, Credentials, IdentityCache, Region, StalledStreamProtectionConfig, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
    types,
};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse};
use futures::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};

pub use self::{
    error::{Action, Class, ExchangeError},
    http::{SetUpError, https},
};
use self::{own::Own, skew::Skew};
use crate::{
    clock,
    identity::{RoleArn, Target, Wish, annotations::EXTERNAL_ID, legacy},
    metrics::Metrics,
};

/// One try: an SDK's two requests are held for 0.9 s each, and the token takes some of it.
const TIME_LIMIT: Duration = Duration::from_millis(1750);
/// The region whose endpoint is `sts.amazonaws.com`.
const GLOBAL: &str = "aws-global";
/// Where that is.
const OF_GLOBAL: &str = "us-east-1";
/// What a role allows unless its owner says otherwise, in seconds.
const ROLE_DEFAULT: u32 = 3600;
/// The least that STS gives, in seconds: enough for a second hop.
const SHORTEST: u32 = 900;
/// The tag for the cluster's name.
const CLUSTER_TAG: &str = "eks-cluster-name";

/// Credentials as STS gave them.
#[derive(Debug)]
pub struct Session {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// `SecretAccessKey`.
    pub secret_access_key: SecretString,
    /// `SessionToken`.
    pub session_token: SecretString,
    /// `Expiration`, not later by our clock than by that of STS.
    pub expiration: SystemTime,
    /// The role allows no session as long as was asked for.
    pub shortened: bool,
}

/// Keys that STS gave, without their secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// `Expiration`, as in [`Session`].
    pub expiration: SystemTime,
}

/// A call of STS, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What was asked.
    pub action: Action,
    /// For which role.
    pub role: &'a RoleArn,
    /// The keys, or why there are none.
    pub result: Result<&'a Issued, &'a ExchangeError>,
    /// The id that STS gave the request, if it answered.
    pub request_id: Option<&'a str>,
    /// The region whose STS was called, if that is known.
    pub region: Option<&'a str>,
    /// The endpoint, if it is not the region's own.
    pub endpoint: Option<&'a str>,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The role, and the way there.
    pub wish: &'a Wish,
    /// The session's name, on every hop.
    pub session_name: &'a str,
    /// The session's tags, keys and values, on the second hop.
    pub tags: &'a [(&'static str, String)],
    /// The service account token, where the wish takes one.
    pub token: Option<&'a SecretString>,
    /// Is told of each call of STS as it ends.
    pub told: &'a (dyn Fn(Call<'_>) + Send + Sync),
}

impl fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("wish", &self.wish)
            .field("session_name", &self.session_name)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// What can be told of it.
    #[must_use]
    pub fn issued(&self) -> Issued {
        Issued { access_key_id: self.access_key_id.clone(), expiration: self.expiration }
    }
}

/// Exchanges service account tokens for credentials.
pub trait Exchange: Send + Sync {
    /// Credentials of the role that is asked for.
    fn exchange<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Session, ExchangeError>>;
}

/// AWS's security token service.
pub struct Sts {
    client: Client,
    /// Whether there is a global endpoint beside the region's: in the partition `aws`, unless one was named.
    has_global: bool,
    /// Without it no signature can be made: it is for a region.
    region: Option<String>,
    endpoint: Option<String>,
    cluster_name: Option<String>,
    own: Option<Own>,
    skew: Skew,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Sts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sts").field("has_global", &self.has_global).finish_non_exhaustive()
    }
}

impl Sts {
    /// STS of `region`, or at `endpoint`. Sessions of a second hop are tagged with the cluster's name.
    #[must_use]
    pub fn new(
        https: SharedHttpClient,
        region: Option<String>,
        endpoint: Option<String>,
        cluster_name: Option<String>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let timeouts = TimeoutConfig::builder().connect_timeout(TIME_LIMIT).operation_timeout(TIME_LIMIT).build();
        let skew = Skew::new(Arc::clone(&metrics));
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(https)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .identity_cache(IdentityCache::no_cache())
            .interceptor(skew.clone());
        let has_global = endpoint.is_none() && region.as_deref().is_some_and(is_of_partition_aws);
        config.set_region(region.clone().map(Region::new));
        config.set_endpoint_url(endpoint.clone());
        let client = Client::from_conf(config.build());
        Self { client, has_global, region, endpoint, cluster_name, own: None, skew, metrics }
    }

    /// The same, with an identity of the daemon's own for roles that pods name.
    #[must_use]
    pub fn with_own(self, own: Option<Own>) -> Self {
        Self { own, ..self }
    }

    async fn hops(&self, ask: Ask<'_>) -> Result<Session, ExchangeError> {
        let signed =
            ask.wish.target.as_ref().map(|target| &target.role).or(ask.token.is_none().then_some(&ask.wish.role));
        if let (Some(role), None) = (signed, &self.region) {
            return Err(ExchangeError::new(
                (Action::AssumeRole, role),
                Class::Permanent,
                "NoRegion",
                "AssumeRole is signed for a region, and --sts-endpoint names none: add --region",
            ));
        }
        match (ask.token, &ask.wish.target) {
            (None, _) => self.as_ourselves(ask).await,
            (Some(token), None) => self.first_hop(ask, token).await,
            (Some(token), Some(target)) => {
                let first = self.web_identity(ask, token, SHORTEST).await?;
                let assumed = self.assume_role(ask, target, ask.tags, &first).await;
                assumed.map_err(|error| hinted(error, &ask.wish.role, target))
            }
        }
    }

    /// A session that the role does not allow to be so long is asked for once more, at what every role allows.
    async fn first_hop(&self, ask: Ask<'_>, token: &SecretString) -> Result<Session, ExchangeError> {
        let seconds = ask.wish.session_seconds;
        match self.web_identity(ask, token, seconds).await {
            Err(error) if error.session_too_long() && seconds > ROLE_DEFAULT => {
                let session = self.web_identity(ask, token, ROLE_DEFAULT).await;
                session.map(|session| Session { shortened: true, ..session })
            }
            first => first,
        }
    }

    /// A role that a pod names, assumed as the daemon itself. Without tags: the trust of such roles knows none.
    async fn as_ourselves(&self, ask: Ask<'_>) -> Result<Session, ExchangeError> {
        let role = ask.wish.role.clone();
        let (own, keys) = self.own_keys(&role).await.inspect_err(|error| {
            // No call was made that would be counted; of our own role's it was.
            if error.action == Action::AssumeRole {
                self.metrics.exchanges.with_label_values(&[error.action.label(), error.label()]).inc();
            }
        })?;
        let external_id = ask.wish.of_pod.as_ref().and_then(|of_pod| of_pod.external_id.clone());
        let target = Target { role, external_id };
        match self.assume_role(ask, &target, &[], &keys).await {
            Err(error) if error.is_of_keys() => {
                own.refused(&keys).await;
                // With others.
                Err(ExchangeError { class: Class::Transient, ..error })
            }
            assumed => assumed.map_err(|error| hinted_as_ourselves(error, &target)),
        }
    }

    /// The daemon's own identity, and its keys to assume `role` with: any but its own.
    async fn own_keys(&self, role: &RoleArn) -> Result<(&Own, Arc<Session>), ExchangeError> {
        let refused = |code, why| ExchangeError::new((Action::AssumeRole, role), Class::Permanent, code, why);
        let own = self.own.as_ref().ok_or_else(|| refused("NoIdentity", "the daemon has no identity of its own"))?;
        let keys = own.keys(self, role).await?;
        match own.is_of(role) {
            true => Err(refused("OwnRole", "it is the node's role, or kube2irsa's own: no pod is given that")),
            false => Ok((own, keys)),
        }
    }

    /// A session of the daemon's own role, which is no pod's.
    async fn own_session(
        &self,
        role: &RoleArn,
        token: &SecretString,
        session_name: &str,
        seconds: u32,
    ) -> Result<Session, ExchangeError> {
        let wish = Wish {
            role: role.clone(),
            target: None,
            audience: None,
            session_seconds: seconds,
            regional_sts: None,
            of_pod: None,
        };
        let ask = Ask { wish: &wish, session_name, tags: &[], token: Some(token), told: &|_| {} };
        self.web_identity(ask, token, seconds).await
    }

    async fn web_identity(&self, ask: Ask<'_>, token: &SecretString, seconds: u32) -> Result<Session, ExchangeError> {
        let what = (Action::WebIdentity, &ask.wish.role);
        let call = self
            .client
            .assume_role_with_web_identity()
            .role_arn(ask.wish.role.as_str())
            .role_session_name(ask.session_name)
            .duration_seconds(i32::try_from(seconds).unwrap_or(i32::MAX))
            .web_identity_token(token.expose_secret())
            .customize()
            .config_override(self.endpoint_of(ask.wish));
        let call = async {
            call.send().await.map(|answer| Answered {
                request_id: answer.request_id().map(str::to_owned),
                credentials: answer.credentials,
            })
        };
        self.counted(ask, what, call, &[token]).await
    }

    /// Credentials of `target` by the keys of another role. Where there are tags, the cluster's name is one.
    async fn assume_role(
        &self,
        ask: Ask<'_>,
        target: &Target,
        tags: &[(&'static str, String)],
        by: &Session,
    ) -> Result<Session, ExchangeError> {
        let what = (Action::AssumeRole, &target.role);
        let sent = [&by.secret_access_key, &by.session_token];
        let [secret, token] = sent.map(|secret| secret.expose_secret().to_owned());
        let keys = Credentials::new(&by.access_key_id, secret, Some(token), None, "first hop");
        let cluster = self.cluster_name.iter().filter(|_| !tags.is_empty()).map(|name| (CLUSTER_TAG, name));
        let tags = cluster.chain(tags.iter().map(|(key, value)| (*key, value))).collect::<Vec<_>>();
        let transitive = (!tags.is_empty()).then(|| tags.iter().map(|(key, _)| (*key).to_owned()).collect());
        // The builder fails only where one of the two is missing.
        let tags = tags.iter().filter_map(|(key, value)| types::Tag::builder().key(*key).value(*value).build().ok());
        let tags = Some(tags.collect::<Vec<_>>()).filter(|tags| !tags.is_empty());
        let call = self
            .client
            .assume_role()
            .role_arn(target.role.as_str())
            .role_session_name(ask.session_name)
            .duration_seconds(i32::try_from(ask.wish.session_seconds).unwrap_or(i32::MAX))
            .set_external_id(target.external_id.clone())
            .set_tags(tags)
            .set_transitive_tag_keys(transitive)
            .customize()
            .config_override(self.endpoint_of(ask.wish).credentials_provider(keys));
        let call = async {
            call.send().await.map(|answer| Answered {
                request_id: answer.request_id().map(str::to_owned),
                credentials: answer.credentials,
            })
        };
        self.counted(ask, what, call, &sent).await
    }

    /// The global endpoint for those who ask for it, where there is one.
    fn endpoint_of(&self, wish: &Wish) -> aws_sdk_sts::config::Builder {
        let mut config = aws_sdk_sts::config::Builder::default();
        if self.is_global_for(wish) {
            config.set_region(Some(Region::from_static(GLOBAL)));
        }
        config
    }

    fn is_global_for(&self, wish: &Wish) -> bool {
        self.has_global && wish.regional_sts == Some(false)
    }

    async fn counted<E: ProvideErrorMetadata>(
        &self,
        ask: Ask<'_>,
        what: (Action, &RoleArn),
        call: impl Future<Output = Result<Answered, SdkError<E, HttpResponse>>>,
        sent: &[&SecretString],
    ) -> Result<Session, ExchangeError> {
        let start = clock::now();
        let answer = call.await;
        let request_id = match &answer {
            Ok(answered) => answered.request_id.clone(),
            Err(error) => error.request_id().map(str::to_owned),
        };
        let answer = answer.map_err(|error| ExchangeError::explain(what, &error, sent));
        let session = answer.and_then(|Answered { credentials, .. }| {
            let none = "STS answered without credentials";
            let none = || ExchangeError::new(what, Class::Transient, "NoCredentials", none);
            credentials.map(|credentials| self.session(credentials)).ok_or_else(none)
        });
        self.metrics.exchange_seconds.observe(clock::now().monotonic.duration_since(start.monotonic).as_secs_f64());
        let result = session.as_ref().map_or_else(ExchangeError::label, |_| "ok");
        self.metrics.exchanges.with_label_values(&[what.0.label(), result]).inc();
        let issued = session.as_ref().map(Session::issued);
        (ask.told)(Call {
            action: what.0,
            role: what.1,
            result: issued.as_ref().map_err(|error| *error),
            request_id: request_id.as_deref(),
            region: if self.is_global_for(ask.wish) { Some(OF_GLOBAL) } else { self.region.as_deref() },
            endpoint: self.endpoint.as_deref(),
        });
        session
    }

    /// By a clock that is behind, credentials would seem to last longer than they do: to us, and to the pod.
    fn session(&self, credentials: types::Credentials) -> Session {
        // Whole seconds: fractions would only make it seem later.
        let expires = Duration::from_secs(u64::try_from(credentials.expiration.secs()).unwrap_or_default());
        Session {
            expiration: SystemTime::UNIX_EPOCH + expires.saturating_sub(self.skew.behind()),
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key.into(),
            session_token: credentials.session_token.into(),
            shortened: false,
        }
    }
}

impl Exchange for Sts {
    fn exchange<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Session, ExchangeError>> {
        Box::pin(self.hops(ask))
    }
}

/// What STS answered: the credentials, and the id of the request.
struct Answered {
    credentials: Option<types::Credentials>,
    request_id: Option<String>,
}

/// China, GovCloud and the isolated partitions have no endpoint but the regions' own.
fn is_of_partition_aws(region: &str) -> bool {
    !["cn-", "us-gov-", "us-iso", "eu-iso", "eusc-"].iter().any(|other| region.starts_with(other))
}

/// AWS does not say which of the conditions failed.
fn hinted(mut error: ExchangeError, first: &RoleArn, target: &Target) -> ExchangeError {
    if error.code == "AccessDenied" {
        let external_id = if target.external_id.is_some() { "the" } else { "no" };
        error.message += &format!(
            " (second hop, with {external_id} external id of annotation {EXTERNAL_ID}: the trust policy of {} and the \
             permissions of {first} must both allow sts:AssumeRole and sts:TagSession)",
            target.role
        );
    }
    error
}

/// Nor that.
fn hinted_as_ourselves(mut error: ExchangeError, target: &Target) -> ExchangeError {
    if error.code == "AccessDenied" {
        let external_id = if target.external_id.is_some() { "the" } else { "no" };
        error.message += &format!(
            " (by kube2irsa's own identity, with {external_id} external id of annotation {}: the trust policy of {} and the \
             permissions of that identity must both allow sts:AssumeRole)",
            legacy::EXTERNAL_ID,
            target.role
        );
    }
    error
}
