//! The step of a role that the pod itself names, by the annotations of kube2iam and kiam, where these are heeded.

use super::{fails, ok, unknown};
use crate::{
    admin::explain::{About, Explainer, Step},
    events,
    identity::{
        Role, RoleArn,
        annotations::AnnotationError,
        directory::found::FoundPod,
        legacy::{OfPod, ROLE, Source},
    },
    readiness::Condition,
};

/// `None` if it names none.
pub(super) fn of(explainer: &Explainer, of: &FoundPod) -> Option<Step> {
    of.pod.legacy.as_ref()?;
    let about = |role: Option<&RoleArn>, of_pod: Option<&OfPod>| About::PodAnnotation {
        role: role.map(ToString::to_string),
        source: of_pod.map(|of_pod| of_pod.source.label().to_owned()),
        external_id: of_pod.is_some_and(|of_pod| of_pod.external_id.is_some()),
        superseded: false,
    };
    let account = of.account.as_ref()?;
    if !matches!(account.wishes, Ok(None)) {
        let about = About::PodAnnotation { role: None, source: None, external_id: false, superseded: true };
        return Some(ok(about, format!("{ROLE} is not heeded, since the service account names a role: it can go")));
    }
    Some(match &of.roles.main {
        Role::Granted(grant) => {
            let of_pod = grant.wish.of_pod.as_deref();
            let how = match of_pod.map(|of_pod| of_pod.source) {
                Some(Source::AssumeRole) => "assumed by the daemon's own identity",
                Some(Source::WebIdentity) | None => "had by a token of its service account",
            };
            ok(about(Some(grant.role()), of_pod), format!("{ROLE} names {}, which is {how}", grant.role()))
        }
        Role::Invalid(AnnotationError::NotPermitted { role, .. }) => {
            ok(about(Some(role), None), format!("{ROLE} names {role}"))
        }
        Role::Invalid(error) => fails(about(None, None), events::words_of_invalid(&of.pod, error)),
        Role::Unknown | Role::None => match explainer.readiness.why(Condition::Account) {
            Some(why) => {
                fails(about(None, None), format!("the account that roles' names are of is not known yet: {why}"))
            }
            None => unknown(about(None, None), format!("{ROLE} names one")),
        },
    })
}
