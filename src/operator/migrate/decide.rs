//! The plan: from a cluster and the rules of its old daemon to what has to change, so that each pod has the role that it had. Pure.
//!
//! It decides per service account: where all pods of one have one role, it is annotated; else each of those roles gets a service
//! account of its own, with all that the old one may do. Whoever had no role gets none. What cannot be so is left to the reader,
//! in words: a pod's role never changes without one.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    accounts::{Names, binding_copies},
    legacy::{Legacy, Outcome, Restriction},
    objects::{Account, AccountName, Cluster, Workload},
    plan::{AccountChange, Cleanup, NamespaceChange, OldDaemon, Plan, PodsRole, Remark, RoleChange, WorkloadChange},
    remarks,
};
use crate::identity::{
    Namespace, RoleArn, ServiceAccountName,
    annotations::{EKS_PREFIX, EXTERNAL_ID, Keys, SESSION_DURATION, TARGET_ROLE_ARN},
    policy::PermittedRoles,
};
use crate::operator::trust_policy::{Issuer, Roles};

/// The annotation of a service account that names its role.
pub(super) const ROLE_ARN: &str = "eks.amazonaws.com/role-arn";
/// What a session lasts where nothing is said, in seconds; by way of another role, at most.
const SESSION: u32 = 3600;
const LONGEST_SESSION: u32 = 43_200;
/// What IAM takes for a trust policy, unless its quota was raised.
const LONGEST_POLICY: usize = 2048;
const AUDIENCE: &str = "sts.amazonaws.com";

/// What a service account is to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    pub(super) role: RoleArn,
    /// The role by way of which it is had.
    pub(super) via: Option<RoleArn>,
    pub(super) external_id: Option<String>,
    pub(super) session_seconds: Option<u32>,
}

/// Pods of one kind, what they have, and what they are to have.
pub(super) struct Subject<'a> {
    pub(super) workload: &'a Workload,
    pub(super) outcome: Outcome,
    pub(super) grant: Option<Grant>,
}

impl Grant {
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let first = self.via.as_ref().unwrap_or(&self.role);
        let mut annotations = BTreeMap::from([(ROLE_ARN.to_owned(), first.to_string())]);
        if self.via.is_some() {
            annotations.insert(TARGET_ROLE_ARN.to_owned(), self.role.to_string());
            annotations.extend(self.external_id.clone().map(|id| (EXTERNAL_ID.to_owned(), id)));
        }
        annotations.extend(self.session_seconds.map(|seconds| (SESSION_DURATION.to_owned(), seconds.to_string())));
        annotations
    }
}

impl Subject<'_> {
    /// Whether a patch can give its pods another service account.
    pub(super) fn is_movable(&self) -> bool {
        self.workload.owner.is_none() && !["Job", "Pod"].contains(&self.workload.kind.as_str())
    }
}

/// The plan for this cluster. `hub` is the role by way of which those of other accounts are had, if any.
pub(super) fn plan(cluster: &Cluster, legacy: &Legacy, hub: Option<&RoleArn>, issuer: &Issuer) -> Plan {
    let nothing = BTreeMap::new();
    let of_namespace = |name: &str| cluster.namespaces.get(name).unwrap_or(&nothing);
    let is_daemon = |workload: &Workload| legacy.daemons.iter().any(|daemon| daemon.workload == workload.to_string());
    let subjects = cluster.workloads.iter().filter(|workload| !is_daemon(workload)).map(|workload| {
        let outcome = legacy.outcome(&workload.annotations, of_namespace(&workload.namespace));
        let grant = match &outcome {
            // They have the node's: no old daemon serves pods on the node's network.
            _ if workload.host_network => None,
            Outcome::Role { role, .. } => Some(grant(legacy, hub, workload, role)),
            _ => None,
        };
        Subject { workload, outcome, grant }
    });
    let subjects = subjects.collect::<Vec<_>>();
    let mut plan = Plan {
        from: legacy.name,
        issuer: issuer.name().to_owned(),
        namespace_policy: (legacy.restriction != Restriction::None).then_some("required"),
        service_accounts: Vec::new(),
        bindings: Vec::new(),
        namespaces: Vec::new(),
        workloads: Vec::new(),
        cleanup: Vec::new(),
        roles: Vec::new(),
        pods: Vec::new(),
        daemons: Vec::new(),
        left: legacy.left.clone(),
        notes: legacy.notes.clone(),
    };
    let mut groups = BTreeMap::<AccountName, Vec<&Subject>>::new();
    for subject in subjects.iter().filter(|subject| !subject.workload.host_network) {
        groups.entry(subject.workload.account_name()).or_default().push(subject);
    }
    let mut names = Names::of(cluster);
    for (account, group) in &groups {
        plan.add_group(cluster, &mut names, account, group);
    }
    plan.add_namespaces(cluster, legacy, &subjects);
    plan.add_cleanup(cluster, legacy, &subjects);
    plan.add_pods(cluster, &subjects);
    plan.add_roles(cluster, issuer);
    remarks::add(&mut plan, cluster, legacy, hub, &subjects);
    plan.daemons = legacy.daemons.iter().map(OldDaemon::of).collect();
    plan.left.sort();
    plan.left.dedup();
    plan.notes.sort();
    plan.notes.dedup();
    plan
}

fn grant(legacy: &Legacy, hub: Option<&RoleArn>, workload: &Workload, role: &RoleArn) -> Grant {
    let via = hub.filter(|hub| hub.account() != role.account()).cloned();
    let external_id = workload.annotations.get(&legacy.external_id_key).filter(|id| via.is_some() && !id.is_empty());
    // Longer than by default, where they are; by way of another role AWS gives an hour at most.
    let seconds = legacy.session_seconds.min(LONGEST_SESSION);
    let session_seconds = (seconds > SESSION && via.is_none()).then_some(seconds);
    Grant { role: role.clone(), external_id: external_id.cloned(), via, session_seconds }
}

// === impl Plan ===

impl Plan {
    /// All pods of one service account.
    fn add_group(&mut self, cluster: &Cluster, names: &mut Names, account: &AccountName, group: &[&Subject]) {
        let old = cluster.accounts.get(account).cloned().unwrap_or_default();
        let has = old.annotations.get(ROLE_ARN).filter(|role| !role.is_empty());
        let stays = match has {
            // Somebody has decided: those who are to have what it says stay.
            Some(_) => group.iter().find_map(|it| it.grant.clone().filter(|grant| says(&old, grant))),
            None => stays(group),
        };
        if let (None, Some(grant)) = (has, &stays) {
            self.service_accounts.push(AccountChange {
                namespace: account.namespace.clone(),
                name: account.name.clone(),
                in_place_of: None,
                annotations: grant.annotations(),
                image_pull_secrets: Vec::new(),
                automount_service_account_token: None,
            });
        }
        let mut made = BTreeMap::<&Grant, String>::new();
        for subject in group.iter().filter(|subject| subject.grant != stays) {
            let Some(grant) = &subject.grant else { continue };
            if !made.contains_key(grant) {
                let name = names.new_account(account, grant);
                self.bindings.extend(binding_copies(cluster, names, account, &name));
                self.service_accounts.push(AccountChange {
                    namespace: account.namespace.clone(),
                    name: name.clone(),
                    in_place_of: Some(account.name.clone()),
                    annotations: grant.annotations(),
                    image_pull_secrets: old.image_pull_secrets.clone(),
                    automount_service_account_token: old.automount,
                });
                made.insert(grant, name);
            }
            let Some(name) = made.get(grant).filter(|_| subject.is_movable()) else { continue };
            self.workloads.push(WorkloadChange {
                kind: subject.workload.kind.clone(),
                namespace: subject.workload.namespace.clone(),
                name: subject.workload.name.clone(),
                account_before: account.name.clone(),
                account: name.clone(),
            });
        }
    }

    fn add_namespaces(&mut self, cluster: &Cluster, legacy: &Legacy, subjects: &[Subject]) {
        if legacy.restriction == Restriction::None {
            return;
        }
        let nothing = BTreeMap::new();
        let of_pods = subjects.iter().map(|subject| &subject.workload.namespace);
        for name in cluster.namespaces.keys().chain(of_pods).collect::<BTreeSet<_>>() {
            let grants = subjects.iter().filter(|subject| subject.workload.namespace == *name);
            let grants = grants.filter_map(|subject| subject.grant.as_ref()).collect::<Vec<_>>();
            let in_use = grants.iter().map(|grant| grant.role.clone()).collect::<Vec<_>>();
            let admitted = legacy.admitted(cluster.namespaces.get(name).unwrap_or(&nothing));
            let listed = legacy.list(&admitted, &in_use);
            remarks::of_list(self, name, legacy, &admitted, &listed);
            let default = legacy.default.as_ref().map(|default| legacy.arn(default));
            // Each hop is judged.
            let hubs = grants.iter().filter_map(|grant| grant.via.as_ref()).map(ToString::to_string);
            let globs =
                listed.globs.into_iter().chain(default.filter(|arn| arn.parse::<RoleArn>().is_ok())).chain(hubs);
            let globs = super::patterns::without_the_covered(globs.collect());
            if !globs.is_empty() {
                self.namespaces.push(NamespaceChange { name: name.clone(), permitted_roles: globs });
            }
        }
    }

    fn add_cleanup(&mut self, cluster: &Cluster, legacy: &Legacy, subjects: &[Subject]) {
        let keys = [&legacy.role_key, &legacy.external_id_key, &legacy.session_name_key];
        let of = |annotations: &BTreeMap<String, String>, keys: &[&String]| {
            let ours = annotations.iter().filter(|(key, _)| keys.contains(key));
            ours.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        for subject in subjects.iter().filter(|subject| subject.is_movable()) {
            let annotations = of(&subject.workload.annotations, &keys);
            if !annotations.is_empty() {
                let Workload { kind, namespace, name, .. } = subject.workload.clone();
                self.cleanup.push(Cleanup { kind, namespace, name, annotations });
            }
        }
        let (Restriction::List { key, .. } | Restriction::Regexp { key, .. }) = &legacy.restriction else { return };
        for (name, annotations) in &cluster.namespaces {
            let annotations = of(annotations, &[key]);
            if !annotations.is_empty() {
                let kind = "Namespace".to_owned();
                self.cleanup.push(Cleanup { kind, namespace: String::new(), name: name.clone(), annotations });
            }
        }
    }

    /// The service accounts as they are in the end.
    fn accounts(&self, cluster: &Cluster) -> BTreeMap<AccountName, BTreeMap<String, String>> {
        let there = cluster.accounts.iter().map(|(name, account)| (name.clone(), account.annotations.clone()));
        let mut accounts = there.collect::<BTreeMap<_, _>>();
        for change in &self.service_accounts {
            let name = AccountName { namespace: change.namespace.clone(), name: change.name.clone() };
            accounts.entry(name).or_default().extend(change.annotations.clone());
        }
        accounts
    }

    /// Trust policies of all roles that the changed service accounts ask for, with all service accounts that do.
    fn add_roles(&mut self, cluster: &Cluster, issuer: &Issuer) {
        let keys = Keys::new(EKS_PREFIX);
        let mut roles = Roles::default();
        for (account, annotations) in self.accounts(cluster) {
            if let Ok(Some(wishes)) = keys.read(&annotations) {
                let (namespace, name) = (Namespace::from(account.namespace), ServiceAccountName::from(account.name));
                roles.add(&namespace, &name, &wishes, AUDIENCE);
            }
        }
        // Also those of service accounts that say already what they are to say: whether AWS knows is not known here.
        let pods = self.pods.iter().filter(|pods| pods.before.is_some() && pods.after.is_some());
        let of_pods = pods.map(|pods| AccountName { namespace: pods.namespace.clone(), name: pods.account.clone() });
        let changed = self.service_accounts.iter();
        let changed = changed.map(|it| AccountName { namespace: it.namespace.clone(), name: it.name.clone() });
        let accounts = self.accounts(cluster);
        let names = of_pods.chain(changed).collect::<BTreeSet<_>>();
        let annotations = names.iter().filter_map(|name| accounts.get(name)).flatten();
        let ours = annotations.filter(|(key, _)| [ROLE_ARN, TARGET_ROLE_ARN].contains(&key.as_str()));
        let ours = ours.map(|(_, role)| role.clone()).collect::<BTreeSet<_>>();
        for trust in roles.iter().filter(|trust| ours.contains(trust.role.as_str())) {
            let Some(policy) = trust.policy(std::slice::from_ref(issuer)) else { continue };
            if policy.characters() > LONGEST_POLICY {
                self.left.push(Remark::new(
                    &trust.role,
                    format!("its trust policy has {} characters; IAM takes {LONGEST_POLICY}", policy.characters()),
                    "have the quota \"Role trust policy length\" raised (to 4096), or let a glob stand for its \
                     ServiceAccounts: `kube2irsa trust-policy --help`",
                ));
            }
            self.roles.push(RoleChange {
                role: trust.role.to_string(),
                trust_policy: policy.document().pretty(),
                permissions: trust.permissions().map(|policy| policy.document().pretty()),
            });
        }
    }

    /// What each pod has before and after, from what is written alone.
    fn add_pods(&mut self, cluster: &Cluster, subjects: &[Subject]) {
        let (keys, accounts) = (Keys::new(EKS_PREFIX), self.accounts(cluster));
        for subject in subjects.iter().filter(|subject| !subject.workload.host_network) {
            let workload = subject.workload;
            let is_it = |change: &&WorkloadChange| {
                (&change.kind, &change.namespace, &change.name) == (&workload.kind, &workload.namespace, &workload.name)
            };
            let moved = self.workloads.iter().find(is_it).map(|change| change.account.clone());
            let account = moved.unwrap_or_else(|| workload.account.clone());
            let name = AccountName { namespace: workload.namespace.clone(), name: account.clone() };
            let wishes = accounts.get(&name).and_then(|annotations| keys.read(annotations).ok().flatten());
            let permits = |role: &RoleArn| self.namespace_policy.is_none() || self.permits(&workload.namespace, role);
            let after = wishes.filter(|wishes| wishes.main.hops().all(permits));
            let before = match &subject.outcome {
                Outcome::Role { role, .. } => Some(role.to_string()),
                _ => None,
            };
            let after = after.map(|wishes| wishes.main.last_role().to_string());
            let namespace = workload.namespace.clone();
            self.pods.push(PodsRole { workload: workload.to_string(), namespace, account, before, after });
        }
    }

    fn permits(&self, namespace: &str, role: &RoleArn) -> bool {
        let list = self.namespaces.iter().find(|change| change.name == namespace);
        list.is_some_and(|list| PermittedRoles::new(&list.permitted_roles.join(",")).permits(role.as_str()))
    }
}

/// What a service account of which nothing is said yet is to say, when its pods differ: who has none is given none, and who
/// cannot be moved keeps what it has.
fn stays(group: &[&Subject]) -> Option<Grant> {
    let grants = group.iter().map(|subject| &subject.grant).collect::<BTreeSet<_>>();
    if let [one] = grants.iter().collect::<Vec<_>>()[..] {
        return (*one).clone();
    }
    if grants.contains(&None) {
        return None;
    }
    let of = |is_it: &dyn Fn(&&&Subject) -> bool| {
        let grants = group.iter().filter(is_it).filter_map(|subject| subject.grant.as_ref());
        grants.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let fixed = of(&|subject| !subject.is_movable());
    let default = of(&|subject| matches!(subject.outcome, Outcome::Role { is_default: true, .. }));
    match (fixed.as_slice(), default.as_slice()) {
        ([one], _) | ([], [one]) => Some((*one).clone()),
        _ => None,
    }
}

/// Whether a service account says already what it is to say.
fn says(account: &Account, grant: &Grant) -> bool {
    let read = |annotations: &BTreeMap<String, String>| Keys::new(EKS_PREFIX).read(annotations).ok().flatten();
    let (there, wanted) = (read(&account.annotations), read(&grant.annotations()));
    there
        .zip(wanted)
        .is_some_and(|(there, wanted)| (there.main.role, there.main.target) == (wanted.main.role, wanted.main.target))
}
