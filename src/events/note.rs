//! What an Event says: what is wrong, and what whoever reads it can do. Pure.

use crate::{
    identity::{Grant, Pod, annotations::AnnotationError, policy::Forbids},
    sts::{Action, Class, ExchangeError},
    token::TokenError,
};

/// The API server's limit, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Of AWS's and the API server's own words, so that what to do is not cut off.
const LONGEST_QUOTE: usize = 600;

/// Why a fetch failed.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    /// There is no token.
    Token(&'a TokenError),
    /// STS gave no credentials.
    Exchange(&'a ExchangeError),
    /// What STS gave has expired by this node's clock.
    Clock,
}

/// An Event's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    InvalidAnnotation,
    RoleNotPermitted,
    TokenRefused,
    CredentialsRefused,
    /// For reasons that may pass by themselves, for a while now.
    CredentialsUnavailable,
    /// For any reason; there are credentials that are still served.
    RenewalFailing,
    SessionShortened,
}

/// What is to be told of a pod.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) reason: Reason,
    /// Of those of a pod with the same reason, the ones with the same text here are the same, even if AWS words
    /// them differently each time.
    pub(super) which: String,
    pub(super) note: String,
    /// It may pass by itself.
    pub(super) passing: bool,
}

// === impl Reason ===

impl Reason {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::InvalidAnnotation => "InvalidAnnotation",
            Self::RoleNotPermitted => "RoleNotPermitted",
            Self::TokenRefused => "TokenRefused",
            Self::CredentialsRefused => "CredentialsRefused",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
            Self::RenewalFailing => "RenewalFailing",
            Self::SessionShortened => "SessionShortened",
        }
    }
}

// === impl Problem ===

impl Problem {
    fn new(reason: Reason, which: String, note: &str, passing: bool) -> Self {
        Self { reason, which, note: cut(note, LONGEST_NOTE).to_owned(), passing }
    }

    pub(super) fn invalid(who: &str, error: &AnnotationError) -> Self {
        let (reason, advice) = match error {
            AnnotationError::NotPermitted { by: Forbids::PermittedRoles, .. } => (
                Reason::RoleNotPermitted,
                "Have whoever owns the namespace add the role there, or name a permitted one on the ServiceAccount",
            ),
            AnnotationError::NotPermitted { .. } => (
                Reason::RoleNotPermitted,
                "Have whoever owns the namespace permit the role there, or name it on the pod's ServiceAccount instead",
            ),
            _ if error.is_of_pod() => (Reason::InvalidAnnotation, "Correct the annotation of the pod"),
            _ => (Reason::InvalidAnnotation, "Correct the annotation of the ServiceAccount"),
        };
        let note = format!("{who} {}: {error}. {advice}; the pod need not be restarted.", error.consequence());
        let which = error.to_string();
        Self::new(reason, which, &note, false)
    }

    pub(super) fn failed(grant: &Grant, cause: Cause<'_>, renewal: bool, audience: &str) -> Self {
        let (who, role) = (who(&grant.pod, grant.wish.of_pod.is_some()), grant.role());
        let audience = grant.wish.audience.as_deref().unwrap_or(audience);
        let (which, passing, what, advice) = match cause {
            Cause::Token(error) => {
                let which = format!("token {} {role}", error.label());
                (which, error.is_transient(), quote(error), of_token(error))
            }
            Cause::Exchange(error) => {
                let which = format!("{} {} {role}", error.action, error.label());
                let what = format!("STS: {}", quote(error));
                (which, error.class != Class::Permanent, what, of_exchange(error, grant, audience))
            }
            Cause::Clock => {
                let what = "what STS gave has expired by the clock of the node".to_owned();
                ("clock".to_owned(), true, what, "Set the clock of the node".to_owned())
            }
        };
        let reason = match cause {
            _ if renewal => Reason::RenewalFailing,
            _ if passing => Reason::CredentialsUnavailable,
            Cause::Token(_) => Reason::TokenRefused,
            Cause::Exchange(_) | Cause::Clock => Reason::CredentialsRefused,
        };
        let fails = match renewal {
            true => format!("{who}: credentials of {role} are not renewed, and served until they expire"),
            false => format!("{who} gets no credentials of {role}"),
        };
        Self::new(reason, which, &format!("{fails}: {what}. {advice}."), passing)
    }

    pub(super) fn shortened(grant: &Grant) -> Self {
        let (role, asked) = (grant.role(), grant.wish.session_seconds);
        let note = format!(
            "{}: the role {role} allows no session of {asked} s, so that its sessions last 3600 s. Raise the role's maximum session duration, or lower the annotation {} of the ServiceAccount.",
            who(&grant.pod, grant.wish.of_pod.is_some()),
            crate::identity::annotations::SESSION_DURATION
        );
        Self::new(Reason::SessionShortened, format!("{asked} {role}"), &note, false)
    }
}

/// Who names the role: the pod's service account, or the pod.
pub(super) fn who(pod: &Pod, of_pod: bool) -> String {
    let (kind, name) = if of_pod { ("Pod", &*pod.name) } else { ("ServiceAccount", pod.service_account.as_str()) };
    format!("{kind} {}/{name}", pod.namespace)
}

fn quote(error: &impl ToString) -> String {
    cut(error.to_string().trim_end_matches('.'), LONGEST_QUOTE).to_owned()
}

/// The longest beginning of the text that has at most so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

fn of_token(error: &TokenError) -> String {
    match error {
        TokenError::TimedOut | TokenError::Unreachable | TokenError::Refused { code: 429 | 500.., .. } => {
            "It is tried again; if this stays, whoever runs the cluster has to look at the API server"
        }
        TokenError::AudienceNotGranted { .. } => {
            "That is for whoever runs kube2irsa: nodes have to be granted the audience (additionalAudiences of the chart)"
        }
        TokenError::NotOfThisNode { .. } | TokenError::Refused { code: 401 | 403, .. } => {
            "That is for whoever runs kube2irsa: it lacks the rights of its mode of --token-access"
        }
        TokenError::Refused { code: 422, .. } => {
            "An admission policy does not allow it: that is for whoever runs the cluster"
        }
        TokenError::Refused { .. } => {
            "Pod or ServiceAccount have changed since: if this stays, delete the pod, so that it is made anew"
        }
        TokenError::Mismatch(_) => "The token was not used: tell whoever runs the API server",
    }
    .to_owned()
}

fn of_exchange(error: &ExchangeError, grant: &Grant, audience: &str) -> String {
    let (role, pod) = (&error.role, &grant.pod);
    let provider = format!("IAM OIDC provider of the cluster's issuer in the account of {role}");
    match (error.code.as_str(), error.class) {
        // What must be allowed stands in the error.
        ("AccessDenied", _) if error.action == Action::AssumeRole => {
            format!("Check that, and the external id that {role} asks for")
        }
        // Of its own role, or of the node's.
        _ if !grant.wish.takes_token() && (error.action == Action::WebIdentity || error.code == "NoIdentity") => {
            "That is for whoever runs kube2irsa, not for you: it has no identity to assume roles by".to_owned()
        }
        ("OwnRole", _) => "Name a role of the pod's own".to_owned(),
        ("NoRegion", _) => "That is for whoever runs kube2irsa, not for you".to_owned(),
        ("AccessDenied", _) => format!(
            "Check that the role exists, and that its trust policy allows sts:AssumeRoleWithWebIdentity to the cluster's OIDC provider where its sub is system:serviceaccount:{}:{} and its aud is {audience}",
            pod.namespace, pod.service_account
        ),
        ("IDPCommunicationError", _) | ("InvalidIdentityToken", Class::Transient) => {
            "Check that AWS can read the documents of the cluster's issuer (/.well-known/openid-configuration and the keys that it names)".to_owned()
        }
        ("InvalidIdentityToken" | "IDPRejectedClaim", _) => {
            format!("Check the {provider}: it must be there, and have {audience} among its audiences")
        }
        ("ExpiredTokenException", _) => "Check the clocks of the API server and of the node".to_owned(),
        ("RegionDisabledException", _) => format!("Activate the region for STS in the account of {role}"),
        (_, Class::Permanent) => "Check the role, and the annotations of the ServiceAccount".to_owned(),
        _ => "It is tried again; check that the node reaches STS".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::Wish;

    const ROLE: &str = "arn:aws:iam::123456789012:role/web";

    fn grant() -> Grant {
        let wish = Wish {
            role: ROLE.parse().unwrap(),
            target: None,
            audience: None,
            session_seconds: 7200,
            regional_sts: None,
            of_pod: None,
        };
        Grant { pod: Arc::new(Pod::sample("uid", &[])), account: "sa".into(), wish }
    }

    fn refused(class: Class, code: &str, message: &str) -> ExchangeError {
        let (action, role) = (Action::WebIdentity, ROLE.parse().unwrap());
        ExchangeError { action, role, class, code: code.to_owned(), message: message.to_owned() }
    }

    fn problem(error: &ExchangeError, renewal: bool) -> Problem {
        Problem::failed(&grant(), Cause::Exchange(error), renewal, "sts.amazonaws.com")
    }

    #[test]
    fn a_refused_exchange_names_account_and_role_and_what_the_trust_policy_must_say() {
        let problem = problem(&refused(Class::Permanent, "AccessDenied", "Not authorized"), false);
        assert_eq!((problem.reason, problem.passing), (Reason::CredentialsRefused, false));
        for part in [
            "ServiceAccount team-a/web",
            ROLE,
            "AccessDenied: Not authorized. Check",
            "system:serviceaccount:team-a:web",
            "sts.amazonaws.com",
        ] {
            assert!(problem.note.contains(part), "{part}: {}", problem.note);
        }
        let target = "arn:aws:iam::210987654321:role/target";
        let role = target.parse().unwrap();
        let second =
            ExchangeError { action: Action::AssumeRole, role, ..refused(Class::Permanent, "AccessDenied", "") };
        let note = self::problem(&second, false).note;
        assert!(note.contains(target) && !note.contains("sub is"), "{note}");
        let mut own = grant();
        own.wish.audience = Some("another.example".to_owned());
        let error = refused(Class::Permanent, "InvalidIdentityToken", "Incorrect token audience");
        let problem = Problem::failed(&own, Cause::Exchange(&error), false, "sts.amazonaws.com");
        assert!(problem.note.contains("another.example") && !problem.note.contains("sts.amazonaws.com"));
    }

    #[test]
    fn a_reason_says_whether_something_is_still_served_and_whether_it_may_pass() {
        let (permanent, transient) =
            (refused(Class::Permanent, "AccessDenied", ""), refused(Class::Transient, "Timeout", ""));
        for (error, renewal, reason, passing) in [
            (&permanent, false, Reason::CredentialsRefused, false),
            (&permanent, true, Reason::RenewalFailing, false),
            (&transient, false, Reason::CredentialsUnavailable, true),
            (&transient, true, Reason::RenewalFailing, true),
        ] {
            let problem = problem(error, renewal);
            assert_eq!((problem.reason, problem.passing), (reason, passing));
            assert_eq!(problem.note.contains("served until they expire"), renewal, "{}", problem.note);
        }
        let refused = TokenError::Refused { code: 403, reason: "Forbidden".to_owned(), message: "no".to_owned() };
        for (error, reason) in
            [(&refused, Reason::TokenRefused), (&TokenError::TimedOut, Reason::CredentialsUnavailable)]
        {
            assert_eq!(Problem::failed(&grant(), Cause::Token(error), false, "a").reason, reason);
        }
    }

    #[test]
    fn the_same_refusal_in_other_words_is_the_same_and_of_another_role_is_not() {
        let of = |message: &str| problem(&refused(Class::Permanent, "ExpiredTokenException", message), false);
        assert_eq!(of("expired at 1").which, of("expired at 2").which);
        let mut other = grant();
        other.wish.role = "arn:aws:iam::123456789012:role/other".parse().unwrap();
        let error = refused(Class::Permanent, "ExpiredTokenException", "");
        assert_ne!(Problem::failed(&other, Cause::Exchange(&error), false, "a").which, of("").which);
    }

    #[test]
    fn a_note_keeps_the_limit_in_bytes_and_what_to_do() {
        let long = "ä".repeat(3000);
        let note = problem(&refused(Class::Permanent, "AccessDenied", &long), false).note;
        assert!(note.len() <= 1024 && note.ends_with("its aud is sts.amazonaws.com."), "{note}");
        let error = AnnotationError::RoleName("r".repeat(2000));
        let note = Problem::invalid("ServiceAccount team-a/web", &error).note;
        assert_eq!(note.len(), 1024);
        assert_eq!(cut("aä", 2), "a");
    }

    #[test]
    fn a_role_that_is_not_permitted_is_not_said_to_be_the_only_one() {
        let error = AnnotationError::NotPermitted {
            namespace: "n".into(),
            role: ROLE.parse().unwrap(),
            by: Forbids::PermittedRoles,
        };
        let note = Problem::invalid("ServiceAccount team-a/web", &error).note;
        assert!(!note.contains("no credentials"), "it may be an additional role: {note}");
    }

    #[test]
    fn a_shortened_session_names_what_was_asked_for_and_both_places_to_change_it() {
        let note = Problem::shortened(&grant()).note;
        for part in [ROLE, "7200 s", "kube2irsa.io/session-duration", "maximum session duration"] {
            assert!(note.contains(part), "{part}: {note}");
        }
    }
}
