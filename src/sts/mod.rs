//! AssumeRoleWithWebIdentity: a service account token for a role's credentials.
//!
//! Owns the STS client (unsigned calls, our HTTP stack, no retries of its own: those are the refresher's)
//! and what an error means. Invariant: neither the token nor the credentials are in any error or log line.
//!
//! Source: [AssumeRoleWithWebIdentity](https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html).

use std::time::{Duration, SystemTime};

use aws_sdk_sts::{
    Client,
    config::{BehaviorVersion, Region, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata as _, SdkError},
    primitives::DateTime,
};
use aws_smithy_http_client::{
    Builder,
    tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use futures::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};

use crate::identity::Wish;

/// One try: an SDK's two requests are held for 0.9 s each, and the token takes some of it.
const TIME_LIMIT: Duration = Duration::from_millis(1750);
/// The region whose endpoint is `sts.amazonaws.com`.
const GLOBAL: &str = "aws-global";
/// What a role allows unless its owner says otherwise, in seconds.
const ROLE_DEFAULT: u32 = 3600;

/// Credentials as STS gave them.
#[derive(Debug)]
pub struct Session {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// `SecretAccessKey`.
    pub secret_access_key: SecretString,
    /// `SessionToken`.
    pub session_token: SecretString,
    /// `Expiration`.
    pub expiration: SystemTime,
}

/// What an error means for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Worth trying again soon.
    Transient,
    /// Worth trying again, but AWS asks for fewer calls.
    Throttled,
    /// Will not change until somebody mends the role, its trust or the account.
    Permanent,
    /// The token expired on its way: a new one, once.
    TokenExpired,
}

/// Why there are no credentials.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ExchangeError {
    /// What it means.
    pub class: Class,
    /// AWS's code, or our word for what happened on the way.
    pub code: String,
    /// AWS's message, for the operator only.
    pub message: String,
}

/// Exchanges service account tokens for credentials.
pub trait Exchange: Send + Sync {
    /// Credentials of the role that is wished for, in a session of this name.
    fn exchange<'a>(
        &'a self,
        wish: &'a Wish,
        session_name: &'a str,
        token: &'a SecretString,
    ) -> BoxFuture<'a, Result<Session, ExchangeError>>;
}

/// STS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificates for STS: {0}")]
pub struct SetUpError(String);

/// The HTTP client for STS; `ca_bundle` (PEM) replaces the system's certificates.
///
/// # Errors
/// When the certificates cannot be used.
pub fn https(ca_bundle: Option<Vec<u8>>) -> Result<SharedHttpClient, SetUpError> {
    let roots = match ca_bundle {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(roots).build().map_err(|e| SetUpError(e.to_string()))?;
    let provider = tls::Provider::Rustls(CryptoMode::AwsLc);
    Ok(Builder::new().tls_provider(provider).tls_context(context).build_https())
}

/// AWS's security token service.
#[derive(Debug)]
pub struct Sts {
    client: Client,
    /// Whether there is a global endpoint beside the region's: in the partition `aws`, unless one was named.
    has_global: bool,
}

impl Sts {
    /// STS of `region`, or at `endpoint`.
    #[must_use]
    pub fn new(https: SharedHttpClient, region: Option<String>, endpoint: Option<String>) -> Self {
        let timeouts = TimeoutConfig::builder().connect_timeout(TIME_LIMIT).operation_timeout(TIME_LIMIT).build();
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(https)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let has_global = endpoint.is_none() && region.as_deref().is_some_and(is_of_partition_aws);
        config.set_region(region.map(Region::new));
        config.set_endpoint_url(endpoint);
        Self { client: Client::from_conf(config.build()), has_global }
    }

    /// A session that the role does not allow to be so long is asked for once more, at what every role allows.
    async fn call(&self, wish: &Wish, session_name: &str, token: &SecretString) -> Result<Session, ExchangeError> {
        match self.ask(wish, session_name, token, wish.session_seconds).await {
            Err(error) if error.session_too_long() && wish.session_seconds > ROLE_DEFAULT => {
                tracing::warn!(role = %wish.role, asked = wish.session_seconds, "{error}; it gets {ROLE_DEFAULT} s");
                self.ask(wish, session_name, token, ROLE_DEFAULT).await
            }
            first => first,
        }
    }

    async fn ask(
        &self,
        wish: &Wish,
        session_name: &str,
        token: &SecretString,
        seconds: u32,
    ) -> Result<Session, ExchangeError> {
        let call = self
            .client
            .assume_role_with_web_identity()
            .role_arn(wish.role.as_str())
            .role_session_name(session_name)
            .duration_seconds(i32::try_from(seconds).unwrap_or(i32::MAX))
            .web_identity_token(token.expose_secret());
        let answer = if self.has_global && wish.regional_sts == Some(false) {
            let global = aws_sdk_sts::config::Builder::default().region(Region::from_static(GLOBAL));
            call.customize().config_override(global).send().await
        } else {
            call.send().await
        };
        let answer = answer.map_err(|error| explain(&error, token))?;
        let credentials = answer.credentials.ok_or_else(|| ExchangeError {
            class: Class::Transient,
            code: "NoCredentials".to_owned(),
            message: "STS answered without credentials".to_owned(),
        })?;
        Ok(Session {
            expiration: wall(&credentials.expiration),
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key.into(),
            session_token: credentials.session_token.into(),
        })
    }
}

impl Exchange for Sts {
    fn exchange<'a>(
        &'a self,
        wish: &'a Wish,
        session_name: &'a str,
        token: &'a SecretString,
    ) -> BoxFuture<'a, Result<Session, ExchangeError>> {
        Box::pin(self.call(wish, session_name, token))
    }
}

/// China, GovCloud and the isolated partitions have no endpoint but the regions' own.
fn is_of_partition_aws(region: &str) -> bool {
    !["cn-", "us-gov-", "us-iso", "eu-iso", "eusc-"].iter().any(|other| region.starts_with(other))
}

/// Whole seconds: fractions would only make it seem later.
fn wall(time: &DateTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.secs()).unwrap_or_default())
}

type CallError = SdkError<aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError>;

/// The SDK's own text of an error holds the raw answer, so that it is never printed.
fn explain(error: &CallError, token: &SecretString) -> ExchangeError {
    let transient = |code: &str, message: &str| ExchangeError {
        class: Class::Transient,
        code: code.to_owned(),
        message: message.to_owned(),
    };
    match error {
        SdkError::TimeoutError(_) => transient("Timeout", "STS did not answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            transient("Timeout", "STS could not be reached in time")
        }
        SdkError::DispatchFailure(failure) => {
            let cause = failure.as_connector_error().map(|error| root_cause(error)).unwrap_or_default();
            transient("Unreachable", &format!("STS could not be reached: {cause}"))
        }
        SdkError::ServiceError(context) => {
            let status = context.raw().status().as_u16();
            let code = context.err().code().unwrap_or("Unknown").to_owned();
            let message = context.err().message().unwrap_or("no message");
            // AWS quotes parameters that it finds invalid.
            let message = message.replace(token.expose_secret(), "(the token)");
            ExchangeError { class: classify(status, &code, &message), code, message }
        }
        _ => transient("Unreadable", "STS's answer could not be read"),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}

/// `protocol.md` §3: what AWS's answer means.
fn classify(status: u16, code: &str, message: &str) -> Class {
    match code {
        "ExpiredTokenException" => Class::TokenExpired,
        // One code for two things: AWS could not fetch the issuer's keys, or it did and refuses the token.
        "InvalidIdentityToken" if message.contains("retrieve verification key") => Class::Transient,
        "IDPCommunicationError" => Class::Transient,
        // AWS throttles and times out under many names, all of them 400.
        _ if ["Throttl", "TooManyRequests", "RequestLimit"].iter().any(|part| code.contains(part)) => Class::Throttled,
        _ if code.contains("Timeout") => Class::Transient,
        _ if status == 429 => Class::Throttled,
        _ if matches!(status, 408 | 500..) => Class::Transient,
        _ => Class::Permanent,
    }
}

impl ExchangeError {
    fn session_too_long(&self) -> bool {
        self.code == "ValidationError" && self.message.contains("MaxSessionDuration")
    }

    /// The code as a metric's label: one of a bounded number.
    #[must_use]
    pub fn label(&self) -> &'static str {
        const KNOWN: [&str; 16] = [
            "AccessDenied",
            "ExpiredTokenException",
            "IDPCommunicationError",
            "IDPRejectedClaim",
            "InternalFailure",
            "InvalidIdentityToken",
            "MalformedPolicyDocument",
            "NoCredentials",
            "PackedPolicyTooLarge",
            "RegionDisabledException",
            "ServiceUnavailable",
            "Throttling",
            "Timeout",
            "Unreachable",
            "Unreadable",
            "ValidationError",
        ];
        KNOWN.into_iter().find(|known| *known == self.code).unwrap_or("other")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_answers_are_what_the_protocol_says() {
        let key_fetch = "Couldn't retrieve verification key from your identity provider, please reference …";
        for (status, code, message, class) in [
            (403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", Class::Permanent),
            (400, "InvalidIdentityToken", "Incorrect token audience", Class::Permanent),
            (400, "InvalidIdentityToken", key_fetch, Class::Transient),
            (403, "IDPRejectedClaim", "", Class::Permanent),
            (400, "IDPCommunicationError", "", Class::Transient),
            (400, "ExpiredTokenException", "", Class::TokenExpired),
            (400, "ValidationError", "", Class::Permanent),
            (403, "RegionDisabledException", "", Class::Permanent),
            (400, "Throttling", "Rate exceeded", Class::Throttled),
            (429, "Unknown", "", Class::Throttled),
            (400, "RequestTimeout", "", Class::Transient),
            (400, "TooManyRequestsException", "", Class::Throttled),
            (408, "Unknown", "", Class::Transient),
            (500, "InternalFailure", "", Class::Transient),
            (503, "Unknown", "", Class::Transient),
        ] {
            assert_eq!(classify(status, code, message), class, "{code} {message}");
        }
    }
}
