//! What each step is: from what the daemon knows to what is told.

mod named;
mod role;

use std::sync::Arc;

use super::{About, Explainer, NamedRole, Step, StepState};
use crate::{
    clock::Now,
    config::Intercept,
    events,
    identity::{
        Pod, Reach,
        annotations::AnnotationError,
        directory::found::{Found, FoundAddress, FoundPod},
        index::Claim,
    },
    intercept::host::HostNetwork,
    readiness::Condition,
};

/// What keeps pods' requests from us.
const INTERCEPTION: [Condition; 4] = [Condition::Guard, Condition::Rules, Condition::Arrival, Condition::Observation];

/// All steps, in order.
pub(super) fn of(explainer: &Explainer, found: &Found, now: Now) -> Vec<Step> {
    let mut steps = vec![daemon(explainer), interception(explainer), pod(explainer, found)];
    let Some(first) = found.pods.first() else { return steps };
    steps.extend(addresses(first));
    steps.push(service_account(explainer, found, first));
    if !first.reach.is_served() {
        return steps;
    }
    steps.extend(named::of(explainer, first));
    steps.push(imdsv2(explainer, first));
    for role in first.roles.all() {
        steps.extend(role::of(explainer, found, first, role, now));
    }
    steps
}

fn ok(about: About, says: impl Into<String>) -> Step {
    Step { about, state: StepState::Ok, says: says.into() }
}

fn fails(about: About, says: impl Into<String>) -> Step {
    Step { about, state: StepState::Fails, says: says.into() }
}

fn unknown(about: About, says: impl Into<String>) -> Step {
    Step { about, state: StepState::Unknown, says: says.into() }
}

fn daemon(explainer: &Explainer) -> Step {
    let lacks = explainer.readiness.missing();
    let about = About::Daemon { lacks: lacks.clone() };
    match explainer.readiness.why(Condition::Running) {
        Some(why) => fails(about, format!("this daemon is {why}: if another one runs on the node, ask that one")),
        None if lacks.is_empty() => ok(about, "ready"),
        // Each is told of where it keeps something from going on.
        None => ok(about, format!("not ready: {}", lacks.join("; "))),
    }
}

fn interception(explainer: &Explainer) -> Step {
    let way = match explainer.intercept {
        Intercept::Redirect(_) => explainer.metrics.interception(),
        Intercept::Observe => Some("observe".to_owned()),
        Intercept::None => Some("none".to_owned()),
    };
    let about = About::Interception { way: way.clone() };
    let lacks = INTERCEPTION.iter().filter_map(|condition| explainer.readiness.why(*condition)).collect::<Vec<_>>();
    match explainer.intercept {
        Intercept::Observe => fails(
            about,
            "pods are only observed (--intercept observe): they reach the real metadata service, and nobody is served",
        ),
        _ if !lacks.is_empty() => {
            fails(about, format!("{}. `kube2irsa rules check` on the node says more", lacks.join("; ")))
        }
        Intercept::None => ok(about, "left to others (--intercept none): what brings requests here is not looked at"),
        Intercept::Redirect(_) => {
            ok(about, format!("rules are in place ({}), and nothing is seen in their way", way.unwrap_or_default()))
        }
    }
}

fn pod(explainer: &Explainer, found: &Found) -> Step {
    let none = About::Pod {
        uid: None,
        service_account: None,
        host_network: false,
        host_network_mode: None,
        addresses: Vec::new(),
    };
    let Some(FoundPod { pod, reach, .. }) = found.pods.first() else {
        if !found.pods_synced {
            return fails(
                none,
                "the pods of this node have not been read yet: check that the daemon reaches the API server",
            );
        }
        let lag = if found.pods_may_lag { " The watch of pods is broken, so it may be new." } else { "" };
        return fails(
            none,
            format!(
                "no pod of that name is on {}. `kubectl get pod -o wide` names the node that it is on: ask the daemon there.{lag}",
                explainer.node
            ),
        );
    };
    let about = About::Pod {
        uid: Some(pod.uid.to_string()),
        service_account: Some(pod.service_account.to_string()),
        host_network: pod.host_network,
        host_network_mode: pod.host_network.then(|| explainer.host_network.label().to_owned()),
        addresses: pod.addresses.clone(),
    };
    if pod.finished {
        return fails(about, "it has ended (Succeeded or Failed): its address may be another's, and it gets nothing");
    }
    if let Some(why) = kept_by_the_node(explainer, *reach) {
        return fails(about, why);
    }
    let by_cgroup = match explainer.readiness.why(Condition::HostNetwork).filter(|_| *reach == Reach::Cgroup) {
        Some(why) => {
            return fails(
                about,
                format!("it is on the node's own network (hostNetwork), whose rules are not in place: {why}"),
            );
        }
        None if *reach == Reach::Cgroup => {
            "; on the node's own network, where it is known by the cgroup of its sockets (--host-network serve)"
        }
        None => "",
    };
    let alone = if found.pods.len() > 1 { "; one of the same name before it is known still" } else { "" };
    let lag = if found.pods_may_lag { "; the watch of pods is broken, so it may be out of date" } else { "" };
    let life = match (pod.terminating, pod.running) {
        (true, _) => "is being deleted, and served until it is gone",
        (false, true) => "is on this node, and runs",
        (false, false) => "is on this node; no container of it runs",
    };
    ok(about, format!("{life}{by_cgroup}{alone}{lag}"))
}

/// Why a pod on the node's network gets nothing; `None` if it may.
fn kept_by_the_node(explainer: &Explainer, reach: Reach) -> Option<String> {
    let says = match (reach, &explainer.host_network) {
        (Reach::Denied, _) => "and denied any role (--host-network deny), the node's too".to_owned(),
        (Reach::Ours, _) => {
            "of the daemon's own service account: such pods are not redirected, and reach the real metadata service"
                .to_owned()
        }
        (Reach::Node, HostNetwork::Off(why)) => format!("and left the node's role (--host-network off): {why}"),
        (Reach::Node, HostNetwork::On(..)) => "and left the node's role (--host-network off)".to_owned(),
        (Reach::Address | Reach::Cgroup | Reach::Ended, _) => return None,
    };
    Some(format!("it is on the node's own network (hostNetwork), {says}. See docs/host-network.md"))
}

fn addresses(found: &FoundPod) -> Vec<Step> {
    let pod = &found.pod;
    if !pod.may_ask() {
        return Vec::new();
    }
    if found.addresses.is_empty() {
        let about = About::Address { address: None, interface: None, claimants: Vec::new() };
        return vec![unknown(about, "it has none yet, as far as the API server has told")];
    }
    found.addresses.iter().map(|address| of_address(pod, address)).collect()
}

fn of_address(pod: &Pod, found: &FoundAddress) -> Step {
    let address = found.address;
    let name = |pod: &Arc<Pod>| format!("{}/{}", pod.namespace, pod.name);
    let claimants = found.claimants.iter().map(name).collect::<Vec<_>>();
    let about = About::Address { address: Some(address), interface: found.link, claimants: claimants.clone() };
    match &found.claim {
        Claim::Pod(owner) if owner.uid == pod.uid => match found.link {
            Some(link) => ok(about, format!("{address} is this pod's, with interface {link} of the host")),
            None => ok(about, format!("{address} is this pod's; no interface of the host was found that leads there")),
        },
        Claim::Pod(owner) => fails(about, format!("{address} is that of {} now, as the API server tells", name(owner))),
        Claim::Disputed => fails(
            about,
            format!(
                "{address} is claimed by {}, and served to none of them: it will be that of the one that stays",
                claimants.join(" and ")
            ),
        ),
        Claim::Suspended => fails(
            about,
            format!(
                "{address} is suspended: the host's interface that led there ended or changed, so that the address may be another \
                 pod's by now. It is served again once that interface leads there again, or a container of the pod has started since"
            ),
        ),
        Claim::Unbound => fails(
            about,
            format!(
                "no interface of the host was found that leads to {address} and can be this pod's: it is served once there is one, or \
                 a container of the pod has started. If this stays, see docs/interception.md, \"Whose address: links\""
            ),
        ),
        Claim::Nobody => unknown(about, format!("{address} is not taken in yet")),
    }
}

fn service_account(explainer: &Explainer, found: &Found, of: &FoundPod) -> Step {
    let pod = &of.pod;
    let name = format!("{}/{}", pod.namespace, pod.service_account);
    let about = |uid: Option<String>| About::ServiceAccount {
        name: Some(name.clone()),
        uid,
        role: None,
        target_role: None,
        additional_roles: Vec::new(),
        audience: None,
        session_seconds: None,
        regional_sts: None,
    };
    let Some(account) = &of.account else {
        return match (of.reach.is_served(), found.accounts_synced) {
            (false, _) => unknown(about(None), "not looked at, since the pod gets nothing"),
            (true, false) => fails(
                about(None),
                format!(
                    "the service accounts of {} have not been read yet: check that the daemon reaches the API server, and may list them",
                    pod.namespace
                ),
            ),
            (true, true) => {
                fails(about(None), format!("{name} is not there, or cannot be read: look at it with kubectl"))
            }
        };
    };
    let uid = Some(account.uid.to_string());
    match &account.wishes {
        Err(error @ AnnotationError::AccountNotKnown { .. }) => {
            let why = explainer.readiness.why(Condition::Account).unwrap_or_else(|| "it is about to be".to_owned());
            fails(about(uid), format!("{error}: {why}"))
        }
        Err(error) => fails(about(uid), events::words_of_invalid(pod, error)),
        Ok(None) if pod.legacy.is_some() => {
            ok(about(uid), format!("{name} names no role, so that the one that the pod itself names counts"))
        }
        Ok(None) => fails(
            about(uid),
            format!(
                "{name} names no role, so that its pods get none. Annotate it with {}; the pod need not be restarted",
                explainer.role_annotation
            ),
        ),
        Ok(Some(wishes)) => {
            let main = &wishes.main;
            let named = |(name, wish): &(String, crate::identity::Wish)| NamedRole {
                name: name.clone(),
                role: wish.last_role().to_string(),
            };
            let about = About::ServiceAccount {
                name: Some(name.clone()),
                uid,
                role: Some(main.role.to_string()),
                target_role: main.target.as_ref().map(|target| target.role.to_string()),
                additional_roles: wishes.additional.iter().map(named).collect(),
                audience: Some(main.audience.clone().unwrap_or_else(|| explainer.audience.clone())),
                session_seconds: Some(main.session_seconds),
                regional_sts: main.regional_sts,
            };
            let by_way_of = main.target.as_ref().map(|_| format!(" by way of {}", main.role)).unwrap_or_default();
            let further = match wishes.additional.len() {
                0 => String::new(),
                count => format!("; {count} additional by name"),
            };
            ok(
                about,
                format!(
                    "{name} asks for {}{by_way_of}{further}, for all containers of the pod (skip-containers cannot be honoured)",
                    main.last_role()
                ),
            )
        }
    }
}

fn imdsv2(explainer: &Explainer, of: &FoundPod) -> Step {
    let by = match (explainer.require_imdsv2, of.require_imdsv2) {
        (true, _) => Some("--require-imdsv2"),
        (false, true) => Some("its service account or its namespace"),
        (false, false) => None,
    };
    let about = About::Imdsv2 { required: by.is_some() };
    match by {
        Some(by) => ok(about, format!("a session token is required ({by}): requests without one get 401")),
        None => ok(about, "a session token is not required"),
    }
}
