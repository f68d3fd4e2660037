//! What STS's refusals mean, and how they are told to an operator.
//!
//! Owns the classes and the words. Invariant: no token and no key is in any of them: the SDK's own text of an error
//! holds the raw answer, so that it is never printed.

use std::fmt;

use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use secrecy::{ExposeSecret as _, SecretString};

use crate::identity::RoleArn;

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

/// What is asked of STS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `AssumeRoleWithWebIdentity`, the first hop.
    WebIdentity,
    /// `AssumeRole`: the second, or by the daemon's own identity.
    AssumeRole,
}

impl Action {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WebIdentity => "web_identity",
            Self::AssumeRole => "assume_role",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WebIdentity => "AssumeRoleWithWebIdentity",
            Self::AssumeRole => "AssumeRole",
        })
    }
}

/// Why there are no credentials.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{action} of {role}: {code}: {message}")]
pub struct ExchangeError {
    /// What was asked.
    pub action: Action,
    /// For which role.
    pub role: RoleArn,
    /// What it means.
    pub class: Class,
    /// AWS's code, or our word for what happened on the way.
    pub code: String,
    /// AWS's message, for the operator only.
    pub message: String,
}

impl ExchangeError {
    pub(super) fn new(
        (action, role): (Action, &RoleArn),
        class: Class,
        code: &str,
        message: impl Into<String>,
    ) -> Self {
        Self { action, role: role.clone(), class, code: code.to_owned(), message: message.into() }
    }

    /// What the SDK met. AWS quotes parameters that it finds invalid, and what a signature is made of: the secrets
    /// that were sent are taken out.
    pub(super) fn explain<E: ProvideErrorMetadata>(
        what: (Action, &RoleArn),
        error: &SdkError<E, HttpResponse>,
        sent: &[&SecretString],
    ) -> Self {
        let transient = |code: &str, message: &str| Self::new(what, Class::Transient, code, message);
        match error {
            SdkError::TimeoutError(_) => transient("Timeout", "STS did not answer in time"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                transient("Timeout", "STS could not be reached in time")
            }
            SdkError::DispatchFailure(failure) => {
                let cause = failure.as_connector_error().map(|error| unreachable(error)).unwrap_or_default();
                transient("Unreachable", &format!("STS could not be reached{cause}"))
            }
            SdkError::ServiceError(context) => {
                let status = context.raw().status().as_u16();
                let code = context.err().code().unwrap_or("Unknown");
                let message = context.err().message().unwrap_or("no message").to_owned();
                let message =
                    sent.iter().fold(message, |message, sent| message.replace(sent.expose_secret(), "(secret)"));
                Self::new(what, classify(status, code, &message), code, message)
            }
            _ => transient("Unreadable", "STS's answer could not be read"),
        }
    }

    pub(super) fn session_too_long(&self) -> bool {
        self.code == "ValidationError" && self.message.contains("MaxSessionDuration")
    }

    /// Whether the keys that signed the call are taken no longer: of the daemon's own identity, others may be.
    pub(super) fn is_of_keys(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "InvalidClientTokenId")
    }

    /// The code as a metric's label: one of a bounded number.
    #[must_use]
    pub fn label(&self) -> &'static str {
        const KNOWN: [&str; 22] = [
            "AccessDenied",
            "ExpiredToken",
            "ExpiredTokenException",
            "IDPCommunicationError",
            "IDPRejectedClaim",
            "InternalFailure",
            "InvalidClientTokenId",
            "InvalidIdentityToken",
            "MalformedPolicyDocument",
            "NoCredentials",
            "NoIdentity",
            "NoRegion",
            "OwnRole",
            "PackedPolicyTooLarge",
            "RegionDisabledException",
            "ServiceUnavailable",
            "SignatureDoesNotMatch",
            "Throttling",
            "Timeout",
            "Unreachable",
            "Unreadable",
            "ValidationError",
        ];
        // AWS has several names for it.
        if self.class == Class::Throttled {
            return "Throttling";
        }
        KNOWN.into_iter().find(|known| *known == self.code).unwrap_or("other")
    }
}

/// The innermost cause. A proxy's URL may hold a password: it is named by the variable that it came from.
fn unreachable(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = || std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let through =
        if chain().any(|text| text.starts_with("tunnel error")) { " through the proxy of HTTPS_PROXY" } else { "" };
    format!("{through}: {}", chain().last().unwrap_or_default())
}

/// `protocol.md` §3: what AWS's answer means.
fn classify(status: u16, code: &str, message: &str) -> Class {
    match code {
        "ExpiredTokenException" => Class::TokenExpired,
        // The first hop's keys, which are made anew for each try.
        "ExpiredToken" => Class::Transient,
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
            (403, "ExpiredToken", "", Class::Transient),
            (403, "InvalidClientTokenId", "", Class::Permanent),
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

    #[test]
    fn what_was_sent_in_secret_is_not_repeated() {
        use aws_sdk_sts::operation::assume_role::AssumeRoleError;
        use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};
        let text = "The Canonical String should have been 'x-amz-security-token:IQoJtoken' by the-key";
        let error = ErrorMetadata::builder().code("SignatureDoesNotMatch").message(text).build();
        let answer = HttpResponse::new(403.try_into().unwrap(), SdkBody::from(text));
        let error = SdkError::service_error(AssumeRoleError::generic(error), answer);
        let role = "arn:aws:iam::444455556666:role/reader".parse().unwrap();
        let sent = ["the-key", "IQoJtoken"].map(SecretString::from);
        let error = ExchangeError::explain((Action::AssumeRole, &role), &error, &[&sent[0], &sent[1]]);
        assert_eq!(
            error.to_string(),
            "AssumeRole of arn:aws:iam::444455556666:role/reader: SignatureDoesNotMatch: The Canonical String should \
             have been 'x-amz-security-token:(secret)' by (secret)"
        );
        assert_eq!((error.class, error.label()), (Class::Permanent, "SignatureDoesNotMatch"));
        let throttled = ExchangeError { class: Class::Throttled, code: "TooManyRequestsException".to_owned(), ..error };
        assert_eq!(throttled.label(), "Throttling", "whatever AWS calls it");
    }
}
