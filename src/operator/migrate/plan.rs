//! The plan as it is written: what has to change, and what is to be known. Pure; made by `decide`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::identity::policy::PERMITTED_ROLES;

/// All that has to change, and all that is to be known.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What is left: `kube2iam` or `kiam`.
    pub from: &'static str,
    /// The cluster's token issuer: its host and path.
    pub issuer: String,
    /// What kube2irsa's `--namespace-policy` has to be, where its default will not do.
    pub namespace_policy: Option<&'static str>,
    /// Service accounts that are made or annotated.
    pub service_accounts: Vec<AccountChange>,
    /// Bindings of what the old service accounts may do to the new ones.
    pub bindings: Vec<BindingCopy>,
    /// Namespaces that are annotated.
    pub namespaces: Vec<NamespaceChange>,
    /// What makes pods, and gets another service account.
    pub workloads: Vec<WorkloadChange>,
    /// What makes pods, and has annotations to lose at the end.
    pub cleanup: Vec<Cleanup>,
    /// Roles, and whom they have to trust.
    pub roles: Vec<RoleChange>,
    /// Which role the pods of each workload have, before and after.
    pub pods: Vec<PodsRole>,
    /// The daemons that are left.
    pub daemons: Vec<OldDaemon>,
    /// What is left to the reader.
    pub left: Vec<Remark>,
    /// What is carried over, and is not quite as it reads.
    pub notes: Vec<Remark>,
}

/// Something to be known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remark {
    /// What it is about.
    pub about: String,
    /// What is so.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// A service account that is made or annotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountChange {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The one that it takes the place of; `None`: it is there, and is annotated.
    pub in_place_of: Option<String>,
    /// What it gets.
    pub annotations: BTreeMap<String, String>,
    /// A new one's.
    pub image_pull_secrets: Vec<String>,
    /// A new one's, where the old one says so.
    pub automount_service_account_token: Option<bool>,
}

/// A binding for a new service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BindingCopy {
    /// Empty: a `ClusterRoleBinding`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// That whose place it takes for the new one.
    pub copied_from: String,
    /// What is bound.
    pub role_ref: serde_json::Value,
    /// The new service account's namespace.
    pub account_namespace: String,
    /// Its name.
    pub account: String,
}

/// A namespace that is annotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceChange {
    /// Its name.
    pub name: String,
    /// The roles that it permits.
    pub permitted_roles: Vec<String>,
}

/// Something that makes pods, and gets another service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadChange {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service account that it has.
    pub account_before: String,
    /// The one that it gets.
    pub account: String,
}

/// Something whose pods lose annotations that nobody reads any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for a namespace itself.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The annotations, as they are.
    pub annotations: BTreeMap<String, String>,
}

/// A role, and what AWS has to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleChange {
    /// Its ARN.
    pub role: String,
    /// Its trust policy, as far as this cluster is concerned.
    pub trust_policy: String,
    /// What it has to be permitted, where others are assumed from it.
    pub permissions: Option<String>,
}

/// Which role pods have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsRole {
    /// What makes them, or their own name.
    pub workload: String,
    /// Their namespace.
    pub namespace: String,
    /// The service account that they have in the end.
    pub account: String,
    /// The role that they have by the old daemon.
    pub before: Option<String>,
    /// The role that they have in the end.
    pub after: Option<String>,
}

/// A daemon that is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OldDaemon {
    /// What runs it.
    pub kind: String,
    /// Whether it is on the nodes whose pods it serves.
    pub serves_pods: bool,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

// === impl Plan ===

impl Plan {
    /// Whether nothing is left to the reader.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left.is_empty()
    }

    /// Those whose tokens the chart's admission policy gives to nobody unless it is told to.
    pub(super) fn exempt_accounts(&self) -> BTreeSet<String> {
        let system = self.pods.iter().filter(|pods| pods.after.is_some() && pods.namespace == "kube-system");
        system.map(|pods| format!("kube-system/{}", pods.account)).collect()
    }
}

impl Remark {
    pub(super) fn new(about: impl ToString, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { about: about.to_string(), what: what.into(), todo: todo.into() }
    }
}

impl OldDaemon {
    pub(super) fn of(daemon: &super::daemon::Daemon) -> Self {
        let serves_pods = daemon.kind == "DaemonSet" && !daemon.is_server();
        Self { kind: daemon.kind.clone(), serves_pods, namespace: daemon.namespace.clone(), name: daemon.name.clone() }
    }
}

/// The annotation that a namespace gets.
pub(super) fn permitted_roles(change: &NamespaceChange) -> (String, String) {
    (PERMITTED_ROLES.to_owned(), change.permitted_roles.join(","))
}
