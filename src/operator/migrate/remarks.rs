//! What a reader of the plan has to know: what cannot be carried over, what is not quite as it reads, and what to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    decide::{Grant, ROLE_ARN, Subject},
    legacy::{Admitted, Legacy, Listed, Outcome, Restriction},
    objects::Cluster,
    plan::{Plan, Remark},
};
use crate::identity::RoleArn;

/// Names in one remark.
const MOST_NAMES: usize = 8;

pub(super) fn add(plan: &mut Plan, cluster: &Cluster, legacy: &Legacy, hub: Option<&RoleArn>, subjects: &[Subject]) {
    of_outcomes(plan, legacy, subjects);
    of_pods_own_ways(plan, cluster, legacy, subjects);
    of_what_cannot_move(plan, subjects);
    of_accounts(plan, cluster, subjects);
    of_other_aws_accounts(plan, legacy, hub, subjects);
    of_new_accounts(plan, cluster);
    of_exempt_accounts(plan);
    of_whatever_differs(plan, subjects);
}

fn of_outcomes(plan: &mut Plan, legacy: &Legacy, subjects: &[Subject]) {
    let role_key = &legacy.role_key;
    for subject in subjects.iter().filter(|subject| !subject.workload.host_network) {
        let workload = subject.workload;
        match &subject.outcome {
            Outcome::NoRole { text } => plan.left.push(Remark::new(
                workload,
                format!("its {role_key} ({text:?}) is no role that there can be: it gets nothing today, and then"),
                "mend the annotation and run this again, or take it away",
            )),
            Outcome::Refused { role } => plan.left.push(Remark::new(
                workload,
                format!(
                    "its namespace does not permit {role}: it gets nothing today, and then (its ServiceAccount gets no role)"
                ),
                "permit the role and run this again, or take the annotation away",
            )),
            Outcome::None | Outcome::Role { .. } => {}
        }
    }
    let with_default =
        |it: &&Subject| matches!(it.outcome, Outcome::Role { is_default: true, .. }) && it.grant.is_some();
    let with_default = subjects.iter().filter(with_default).map(|subject| subject.workload).collect::<Vec<_>>();
    if let Some(default) = &legacy.default {
        plan.left.push(Remark::new(
            format!("the default role {}", legacy.arn(default)),
            format!(
                "{} gives it to every pod without annotation; kube2irsa gives no pod a role of which its ServiceAccount says \
                 nothing. The ServiceAccounts of {} have it in this plan ({}); those that are made later will not",
                legacy.name,
                if with_default.is_empty() { "no pods" } else { "those that run now" },
                listing(with_default)
            ),
            "find out who needs it (`mode: observe` names who asks), and leave the annotation out of 2-cluster/ for the others",
        ));
    }
}

/// Sessions' names, external ids, the node's network, annotations by hand.
fn of_pods_own_ways(plan: &mut Plan, cluster: &Cluster, legacy: &Legacy, subjects: &[Subject]) {
    let with = |key: &String| {
        let with = subjects.iter().filter(|it| it.grant.is_some() && it.workload.annotations.contains_key(key));
        with.collect::<Vec<_>>()
    };
    let named = with(&legacy.session_name_key);
    if !named.is_empty() {
        plan.left.push(Remark::new(
            listing(named.iter().map(|it| it.workload)),
            format!("{}: sessions are named NAMESPACE.POD here, so that CloudTrail tells pods apart", legacy.session_name_key),
            "look for policies with sts:RoleSessionName or aws:userid, and for searches in CloudTrail, that name the old one",
        ));
    }
    let ids =
        with(&legacy.external_id_key).into_iter().filter(|it| it.grant.as_ref().is_some_and(|it| it.via.is_none()));
    let ids = ids.map(|subject| subject.workload).collect::<Vec<_>>();
    if !ids.is_empty() {
        plan.notes.push(Remark::new(
            listing(ids),
            format!(
                "{}: there is none where a token is exchanged; the trust policy names issuer and ServiceAccount instead, \
                 which nobody else has",
                legacy.external_id_key
            ),
            "nothing; a role that is to be had by way of another one keeps it (--hub-role-arn, for roles of other accounts)",
        ));
    }
    let host =
        subjects.iter().filter(|it| it.workload.host_network && it.workload.annotations.contains_key(&legacy.role_key));
    for subject in host {
        plan.left.push(Remark::new(
            subject.workload,
            format!("it is on the node's network, where {} reaches no pod: it has the node's role, whatever it names", legacy.name),
            "it keeps that (`host-network: \"off\"` in kube2irsa.yaml); to give it a role of its own: docs/host-network.md",
        ));
    }
    for pod in &cluster.edited_pods {
        plan.left.push(Remark::new(
            pod,
            "its annotations are not those that it was made with: somebody has changed them by hand",
            "the plan goes by what makes it; change that if the pod is right, and run this again",
        ));
    }
}

/// Who is to have another service account and cannot be given one by a patch.
fn of_what_cannot_move(plan: &mut Plan, subjects: &[Subject]) {
    for subject in subjects.iter().filter(|subject| !subject.is_movable() && !subject.workload.host_network) {
        let workload = subject.workload;
        let Some(pods) = plan.pods.iter().find(|pods| pods.workload == workload.to_string()) else { continue };
        if pods.before == pods.after {
            continue;
        }
        let Some(before) = &pods.before else { continue };
        let wanted = subject.grant.as_ref().map(Grant::annotations).unwrap_or_default();
        let account = plan.service_accounts.iter().find(|change| {
            change.namespace == workload.namespace
                && change.in_place_of.as_ref() == Some(&workload.account)
                && change.annotations == wanted
        });
        let account = account.map_or("", |change| change.name.as_str());
        let todo = match (&workload.owner, workload.kind.as_str()) {
            (Some(owner), _) => format!("give {owner} serviceAccountName: {account} for its pods, in step 3"),
            (None, "Job") => format!(
                "a Job's pods cannot be changed: let it end under the old daemon, or make it anew with serviceAccountName: \
                 {account}"
            ),
            (None, _) => format!(
                "a pod's ServiceAccount cannot be changed: make it anew in step 3, with serviceAccountName: {account}"
            ),
        };
        plan.left.push(Remark::new(
            workload,
            format!(
                "it has {before}, and other pods of ServiceAccount {} have another role or none; no patch gives it one of its \
                 own",
                workload.account_name()
            ),
            todo,
        ));
    }
}

fn of_accounts(plan: &mut Plan, cluster: &Cluster, subjects: &[Subject]) {
    let mut told = BTreeSet::new();
    for subject in subjects.iter().filter(|subject| !subject.workload.host_network) {
        let name = subject.workload.account_name();
        let Some(has) = cluster.accounts.get(&name).and_then(|account| account.annotations.get(ROLE_ARN)) else {
            continue;
        };
        let wanted = subject.grant.as_ref().map(Grant::annotations);
        let wanted = wanted.as_ref().and_then(|annotations| annotations.get(ROLE_ARN));
        if wanted != Some(has) && !has.is_empty() && told.insert((name.clone(), wanted.cloned())) {
            plan.left.push(Remark::new(
                format!("ServiceAccount {name}"),
                format!(
                    "it has {ROLE_ARN} {has} already, and pods of it ({}, …) have {} by annotation: where the webhook of EKS runs, \
                     SDKs take the former",
                    subject.workload,
                    wanted.map_or("none", String::as_str)
                ),
                "find out which they use (`aws sts get-caller-identity` in one of them), and take the other one away",
            ));
        }
    }
}

fn of_other_aws_accounts(plan: &mut Plan, legacy: &Legacy, hub: Option<&RoleArn>, subjects: &[Subject]) {
    let home = hub.map(|hub| hub.account().to_owned());
    let home = home.or_else(|| legacy.base.as_ref().and_then(|base| base.split(':').nth(4)).map(str::to_owned));
    let mut by_account = BTreeMap::<&str, (BTreeSet<&RoleArn>, bool, bool)>::new();
    for subject in subjects {
        let Some(grant) = &subject.grant else { continue };
        if home.as_deref().is_none_or(|home| home != grant.role.account()) {
            let (roles, by_way, has_id) = by_account.entry(grant.role.account()).or_default();
            roles.insert(&grant.role);
            *by_way |= grant.via.is_some();
            *has_id |= subject.workload.annotations.contains_key(&legacy.external_id_key);
        }
    }
    for (account, (roles, by_way, has_id)) in by_account {
        if home.is_none() && roles.len() == subjects.iter().filter(|it| it.grant.is_some()).count() {
            continue;
        }
        let roles = listing(roles);
        let about = format!("AWS account {account}");
        if let Some(hub) = hub.filter(|_| by_way) {
            plan.left.push(Remark::new(
                about,
                format!(
                    "its roles ({roles}) are had by way of {hub}, which tags its sessions; whoever has a token of their \
                     ServiceAccounts has that role too"
                ),
                "have their trust policies in 1-aws/ put there (sts:TagSession is needed besides sts:AssumeRole), and let that \
                 role have no other rights than those in 1-aws/. Where the webhook of EKS runs, pods would get its token: annotate \
                 under another prefix (docs/roles.md)",
            ));
        } else if home.is_some() {
            let mut what = format!("its roles ({roles}) have to trust the cluster's issuer themselves");
            if has_id {
                what.push_str("; their external ids mean nothing then");
            }
            if let Some(via) = &legacy.via {
                what.push_str(&format!("; {} has them by way of {via}, which is no role for pods", legacy.name));
            }
            plan.left.push(Remark::new(
                about,
                what,
                "make an IAM OIDC provider for the issuer in that account too, or run this again with --hub-role-arn and a role \
                 of yours that may assume these and nothing else, by way of which they are had",
            ));
        }
    }
}

/// Pods whose role would change without a word: there are none that are not told of by now.
fn of_whatever_differs(plan: &mut Plan, subjects: &[Subject]) {
    let is_told = |plan: &Plan, subject: &Subject| {
        let account = format!("ServiceAccount {}", subject.workload.account_name());
        plan.left.iter().any(|remark| remark.about == subject.workload.to_string() || remark.about == account)
    };
    let differs = |it: &&super::plan::PodsRole| it.before != it.after;
    for pods in plan.pods.iter().filter(differs).cloned().collect::<Vec<_>>() {
        let subject = subjects.iter().find(|subject| subject.workload.to_string() == pods.workload);
        if subject.is_some_and(|subject| !is_told(plan, subject)) {
            let role = |role: Option<String>| role.unwrap_or_else(|| "none".to_owned());
            plan.left.push(Remark::new(
                pods.workload,
                format!("its pods have the role {}, and would have {}", role(pods.before), role(pods.after)),
                "give them a ServiceAccount of their own",
            ));
        }
    }
}

/// What is not known of a service account whose place another one takes.
fn of_new_accounts(plan: &mut Plan, cluster: &Cluster) {
    let mut unknown = BTreeSet::new();
    for change in &plan.service_accounts {
        let Some(old) = &change.in_place_of else {
            if change.name == "default" {
                plan.notes.push(Remark::new(
                    format!("ServiceAccount {}/default", change.namespace),
                    "all pods that have it today have one role, and it gets that: so does each pod of the namespace that is made \
                     later and names no other ServiceAccount",
                    "if that is too many, give these workloads one of their own",
                ));
            }
            continue;
        };
        let name = super::objects::AccountName { namespace: change.namespace.clone(), name: old.clone() };
        if !cluster.accounts.contains_key(&name) && old != "default" {
            unknown.insert(name.to_string());
        }
    }
    for name in unknown {
        plan.left.push(Remark::new(
            format!("ServiceAccount {name}"),
            "it is not among what was read: its imagePullSecrets are not carried over to those that take its place",
            "read it too (its manifest, or the live cluster), or add them",
        ));
    }
}

/// Tokens of which are given out although their namespace is one of those whose tokens are not.
fn of_exempt_accounts(plan: &mut Plan) {
    let exempt = plan.exempt_accounts();
    if !exempt.is_empty() {
        plan.notes.push(Remark::new(
            "kube2irsa.yaml",
            format!(
                "admission.exemptServiceAccounts lets kube2irsa have tokens of {}: of no others in kube-system",
                exempt.into_iter().collect::<Vec<_>>().join(", ")
            ),
            "look whether each is to have a role of AWS; take it out of the list otherwise",
        ));
    }
}

/// What is to be said of a namespace's list.
pub(super) fn of_list(plan: &mut Plan, name: &str, legacy: &Legacy, admitted: &Admitted, listed: &Listed) {
    let (Restriction::List { key, .. } | Restriction::Regexp { key, .. }) = &legacy.restriction else { return };
    let about = format!("Namespace {name}");
    if let Some(why) = &admitted.unreadable {
        plan.left.push(Remark::new(
            &about,
            format!("{why}: it permits nothing today, and then"),
            "mend the annotation and run this again",
        ));
    }
    for (text, pattern) in &admitted.patterns {
        if let Err(why) = pattern {
            plan.left.push(Remark::new(
                &about,
                format!("{key} {text:?} is not understood ({why}): nothing is permitted by it"),
                "write what it is to permit into 2-cluster/namespaces.yaml, as globs",
            ));
        }
    }
    for text in listed
        .inexact
        .iter()
        .filter(|text| admitted.patterns.iter().any(|(it, pattern)| it == *text && pattern.is_ok()))
    {
        plan.left.push(Remark::new(
            &about,
            format!(
                "no glob equals {key} {text:?}: of the roles that it admits, those that pods have now are permitted"
            ),
            "add to 2-cluster/namespaces.yaml what else it is to permit",
        ));
    }
    for (text, globs) in &listed.loose {
        plan.left.push(Remark::new(
            &about,
            format!(
                "{key} {text:?} is not anchored as a whole, and so admits more than it reads like: {}",
                globs.join(", ")
            ),
            "as before, these are permitted; if that was not meant, take the * away in 2-cluster/namespaces.yaml",
        ));
    }
}

fn listing<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>();
    names.sort();
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    let names = names.join(", ");
    if more > 0 {
        format!("{names} and {more} more")
    } else if names.is_empty() {
        "none".to_owned()
    } else {
        names
    }
}
