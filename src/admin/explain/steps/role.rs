//! The steps of one role: whether the namespace permits it, and how its session stands.

use std::time::{Duration, SystemTime};

use super::{fails, ok, unknown};
use crate::{
    admin::explain::{About, Explainer, Step},
    clock::{self, Now},
    config::Intercept,
    credentials::trace::{Attempt, Missed, Next, Report, Stage},
    events,
    identity::{
        Grant, Role, RoleArn,
        annotations::AnnotationError,
        directory::found::{Found, FoundPod},
        policy::{NamespacePolicy, PERMITTED_ROLES},
    },
    readiness::Condition,
};

/// There is no session: there was none so far, or there is none any more.
const FORGOTTEN: &str =
    "nothing is remembered: the pod has not asked, or not for so long that its session was given up";

/// The steps of one role.
pub(super) fn of(explainer: &Explainer, found: &Found, of: &FoundPod, role: &Role, now: Now) -> Vec<Step> {
    match role {
        // The service account's step says why.
        Role::None => Vec::new(),
        Role::Unknown if !names_a_role(explainer, of) => Vec::new(),
        Role::Unknown => {
            let says = format!(
                "what namespace {} permits has not been read yet: check that the daemon reaches the API server, and may get namespaces",
                of.pod.namespace
            );
            vec![fails(policy(found, None), says)]
        }
        Role::Invalid(error @ AnnotationError::NotPermitted { role, .. }) => {
            vec![fails(policy(found, Some(role)), events::words_of_invalid(&of.pod, error))]
        }
        Role::Invalid(_) => Vec::new(),
        Role::Granted(grant) => {
            let report = explainer.store.report(grant, now);
            vec![
                permitted(found, grant),
                token(explainer, grant, report.as_ref()),
                sts(explainer, grant, report.as_ref(), now),
                credentials(explainer, grant, report.as_ref(), now),
            ]
        }
    }
}

/// Whether the service account does, or the pod in its place.
fn names_a_role(explainer: &Explainer, of: &FoundPod) -> bool {
    of.account.as_ref().is_some_and(|account| match account.wishes {
        Ok(Some(_)) => true,
        Ok(None) => of.pod.legacy.is_some() && explainer.readiness.why(Condition::Account).is_none(),
        Err(_) => false,
    })
}

fn policy(found: &Found, role: Option<&RoleArn>) -> About {
    let policy = match found.policy {
        NamespacePolicy::Off => "off",
        NamespacePolicy::Annotated => "annotated",
        NamespacePolicy::Required => "required",
    };
    let permitted = found.demands.as_ref().and_then(|demands| demands.permitted.as_ref());
    About::NamespacePolicy {
        role: role.map(ToString::to_string),
        policy: policy.to_owned(),
        permitted_roles: permitted.map(|permitted| permitted.globs().to_vec()),
    }
}

fn permitted(found: &Found, grant: &Grant) -> Step {
    let about = policy(found, Some(grant.role()));
    let permitted = found.demands.as_ref().and_then(|demands| demands.permitted.as_ref());
    let says = match (found.policy, permitted) {
        (NamespacePolicy::Off, _) => "namespaces are not asked (--namespace-policy off)".to_owned(),
        (_, None) => format!("the namespace permits all roles: it has no annotation {PERMITTED_ROLES}"),
        (_, Some(permitted)) => {
            let by = grant.wish.hops().filter_map(|hop| permitted.permitting(hop.as_str())).collect::<Vec<_>>();
            format!("the namespace permits it, by {}", by.join(" and "))
        }
    };
    ok(about, format!("{says}{}", named_by_pod(found, grant)))
}

/// What the namespace says of roles that pods name.
fn named_by_pod(found: &Found, grant: &Grant) -> String {
    let Some(demands) = found.demands.as_ref().filter(|_| grant.wish.of_pod.is_some()) else { return String::new() };
    let by = demands.legacy.keys().collect::<Vec<_>>();
    if by.is_empty() {
        return "; and its pods may name any (--legacy-namespace-policy annotated)".to_owned();
    }
    format!("; and its pods may name it, by its {}", by.join(" and "))
}

fn token(explainer: &Explainer, grant: &Grant, report: Option<&Report>) -> Step {
    let mode = explainer.access.mode();
    let own = grant.pod_has_token(&explainer.audience);
    let last = report.and_then(|report| report.last.as_ref());
    let missed = last.and_then(|last| last.missed.as_ref()).filter(|missed| missed.stage == Stage::Token);
    let about = About::Token {
        role: Some(grant.role().to_string()),
        access: mode.map(|mode| mode.label().to_owned()),
        pod_has_its_own: own,
        last: last.map(|last| time(last.at)),
        code: missed.map(|missed| missed.code.clone()),
    };
    if !grant.wish.takes_token() {
        return ok(
            about,
            "none is needed: the role is assumed by the daemon's own identity (--legacy-source assume-role)",
        );
    }
    let own = if own {
        " The pod's own volumes bring it a token for STS, as the EKS webhook sees to: an SDK that takes that one does not ask here, \
         so that nothing is fetched before somebody does."
    } else {
        ""
    };
    match (missed, last, mode) {
        (Some(missed), Some(last), _) => fails(about, told(missed, last, grant)),
        (_, Some(last), Some(mode)) => {
            let shared = shared(last, grant);
            ok(about, format!("had, by the mode {}, at {}.{shared}{own}", mode.label(), time(last.at)))
        }
        (_, _, None) => {
            let why = explainer.readiness.why(Condition::TokenAccess).unwrap_or_else(|| "not decided yet".to_owned());
            fails(about, format!("with which power tokens are asked for is not decided: {why}"))
        }
        (_, _, Some(mode)) => {
            let so_far = if report.is_some() { "there is none yet" } else { FORGOTTEN };
            unknown(about, format!("{so_far}. It is asked for by the mode {}.{own}", mode.label()))
        }
    }
}

fn sts(explainer: &Explainer, grant: &Grant, report: Option<&Report>, now: Now) -> Step {
    let place = explainer.sts.get();
    let last = report.and_then(|report| report.last.as_ref());
    let missed = last.and_then(|last| last.missed.as_ref());
    let refused = missed.filter(|missed| missed.stage == Stage::Exchange);
    // What did not come so far says nothing of STS.
    let reached = last.filter(|_| missed.is_none() || refused.is_some());
    let next = report.map(|report| report.next).unwrap_or_default();
    let about = About::Sts {
        role: Some(grant.role().to_string()),
        region: place.and_then(|place| place.region.clone()),
        endpoint: place.and_then(|place| place.endpoint.clone()),
        last: reached.map(|last| time(last.at)),
        code: refused.map(|refused| refused.code.clone()),
        next: match next {
            Next::At(at) | Next::WhenAskedAfter(at) => Some(time(at)),
            Next::WhenAsked | Next::Now => None,
        },
    };
    let where_ = match place.map(|place| (&place.region, &place.endpoint)) {
        Some((_, Some(endpoint))) => format!("at {endpoint}"),
        Some((Some(region), None)) => format!("in {region}"),
        Some((None, None)) | None => "somewhere".to_owned(),
    };
    match (refused, reached) {
        (Some(refused), Some(last)) => fails(about, format!("{} {}", told(refused, last, grant), then(next, now))),
        (_, Some(last)) => {
            let shared = shared(last, grant);
            ok(about, format!("gave credentials, {where_}, at {}.{shared} {}", time(last.at), then(next, now)))
        }
        _ if place.is_none() => {
            let why = explainer.readiness.why(Condition::Region).unwrap_or_else(|| "not asked yet".to_owned());
            fails(about, format!("which one to call is not known: {why}"))
        }
        _ if report.is_none() => unknown(about, format!("{FORGOTTEN}. {}", then(next, now))),
        _ => unknown(about, format!("has not answered yet. {}", then(next, now))),
    }
}

fn credentials(explainer: &Explainer, grant: &Grant, report: Option<&Report>, now: Now) -> Step {
    let held = report.and_then(|report| report.held.as_ref());
    let about = About::Credentials {
        role: Some(grant.role().to_string()),
        session_name: report.map(|report| report.session_name.clone()),
        access_key_id: held.map(|held| held.access_key_id.clone()),
        expires: held.map(|held| time(held.expires)),
        seconds_left: held.map(|held| held.left.as_secs()),
    };
    if explainer.intercept == Intercept::Observe {
        return unknown(about, "none are fetched: pods are only observed");
    }
    let next = report.map(|report| report.next).unwrap_or_default();
    match (held, report.and_then(|report| report.last.as_ref())) {
        (Some(held), _) => {
            let session = report.map(|report| report.session_name.as_str()).unwrap_or_default();
            let (until, left) = (time(held.expires), span(held.left));
            ok(
                about,
                format!("served until {until}, for another {left}: key {}, session {session}", held.access_key_id),
            )
        }
        (None, Some(last)) if last.missed.is_some() => fails(about, "there are none, for what fails above"),
        (None, Some(_)) => unknown(about, format!("those that were there have expired. {}", then(next, now))),
        (None, None) => unknown(about, format!("there are none. {}", then(next, now))),
    }
}

/// What failed, and when that was.
fn told(missed: &Missed, last: &Attempt, grant: &Grant) -> String {
    format!("{} (at {}){}", missed.words, time(last.at), shared(last, grant))
}

/// Of a session that pods share: whose the last fetch was, if not this one's.
fn shared(last: &Attempt, grant: &Grant) -> String {
    if last.pod.uid == grant.pod.uid {
        return String::new();
    }
    format!(" That was with the token of pod {}, which shares the session (--session-scope).", last.pod.name)
}

fn then(next: Next, now: Now) -> String {
    let from_now = |at: SystemTime| span(at.duration_since(now.wall).unwrap_or_default());
    match next {
        Next::WhenAsked => "It is called when the pod asks.".to_owned(),
        Next::Now => "A call is in flight, or waits for its turn (--sts-rate).".to_owned(),
        Next::At(at) => format!("The next call is in {}.", from_now(at)),
        Next::WhenAskedAfter(at) if at > now.wall => {
            format!("It is called again if the pod asks, in {} at the earliest.", from_now(at))
        }
        Next::WhenAskedAfter(_) => "It is called again when the pod asks.".to_owned(),
    }
}

fn time(at: SystemTime) -> String {
    clock::rfc3339(at).unwrap_or_default()
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
