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
use futures::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};

use crate::identity::RoleArn;

/// One try: an SDK's two requests are held for 0.9 s each, and the token takes some of it.
const TIME_LIMIT: Duration = Duration::from_millis(1750);
/// What a role allows unless its owner says otherwise.
const SESSION_SECONDS: i32 = 3600;

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
    /// Credentials of `role`, in a session of this name.
    fn exchange<'a>(
        &'a self,
        role: &'a RoleArn,
        session_name: &'a str,
        token: &'a SecretString,
    ) -> BoxFuture<'a, Result<Session, ExchangeError>>;
}

/// STS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificates for STS: {0}")]
pub struct SetUpError(String);

/// AWS's security token service.
#[derive(Debug)]
pub struct Sts(Client);

impl Sts {
    /// STS of `region`, or at `endpoint`; `ca_bundle` (PEM) replaces the system's certificates.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(
        region: Option<String>,
        endpoint: Option<String>,
        ca_bundle: Option<Vec<u8>>,
    ) -> Result<Self, SetUpError> {
        let roots = match ca_bundle {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem),
            None => TrustStore::default(),
        };
        let context = TlsContext::builder().with_trust_store(roots).build().map_err(|e| SetUpError(e.to_string()))?;
        let http =
            Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc)).tls_context(context).build_https();
        let timeouts = TimeoutConfig::builder().connect_timeout(TIME_LIMIT).operation_timeout(TIME_LIMIT).build();
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        config.set_region(region.map(Region::new));
        config.set_endpoint_url(endpoint);
        Ok(Self(Client::from_conf(config.build())))
    }

    async fn call(&self, role: &RoleArn, session_name: &str, token: &SecretString) -> Result<Session, ExchangeError> {
        let answer = self
            .0
            .assume_role_with_web_identity()
            .role_arn(role.as_str())
            .role_session_name(session_name)
            .duration_seconds(SESSION_SECONDS)
            .web_identity_token(token.expose_secret())
            .send()
            .await
            .map_err(|error| explain(&error, token))?;
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
        role: &'a RoleArn,
        session_name: &'a str,
        token: &'a SecretString,
    ) -> BoxFuture<'a, Result<Session, ExchangeError>> {
        Box::pin(self.call(role, session_name, token))
    }
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
        "IDPCommunicationError" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded" => Class::Transient,
        _ if status == 429 || status >= 500 => Class::Transient,
        _ => Class::Permanent,
    }
}

impl ExchangeError {
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
            (400, "Throttling", "Rate exceeded", Class::Transient),
            (500, "InternalFailure", "", Class::Transient),
            (503, "Unknown", "", Class::Transient),
        ] {
            assert_eq!(classify(status, code, message), class, "{code} {message}");
        }
    }
}
