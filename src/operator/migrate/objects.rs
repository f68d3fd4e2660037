//! Objects of Kubernetes as they are read, from an API server or from a file, and the cluster that they make. Pure.
//!
//! One slim type for all kinds, of what says which role a pod has; the rest of an object is not looked at.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object of any kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Object {
    #[serde(deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    spec: Spec,
    #[serde(deserialize_with = "nullable")]
    status: Status,
    /// Of a list.
    #[serde(deserialize_with = "nullable")]
    pub(super) items: Vec<Self>,
    #[serde(deserialize_with = "nullable")]
    image_pull_secrets: Vec<Named>,
    automount_service_account_token: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    subjects: Vec<Subject>,
    #[serde(deserialize_with = "nullable")]
    role_ref: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    /// Of what is made with a name of the server's choice.
    #[serde(deserialize_with = "nullable")]
    generate_name: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

/// Of pods and of what makes them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(deserialize_with = "nullable")]
    template: Template,
    #[serde(deserialize_with = "nullable")]
    job_template: JobTemplate,
    #[serde(flatten)]
    pod: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    service_account_name: String,
    /// The older name of the same.
    #[serde(deserialize_with = "nullable")]
    service_account: String,
    #[serde(deserialize_with = "nullable")]
    host_network: bool,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    #[serde(deserialize_with = "nullable")]
    metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct JobTemplate {
    #[serde(deserialize_with = "nullable")]
    spec: JobSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct JobSpec {
    #[serde(deserialize_with = "nullable")]
    template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "nullable")]
    phase: String,
    completion_time: Option<String>,
}

/// A container, as far as it says whether it is a daemon that is left, and with which flags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    #[serde(deserialize_with = "nullable")]
    pub(super) image: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) command: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) args: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

/// Who is bound.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    #[serde(deserialize_with = "nullable")]
    namespace: String,
}

/// What of the cluster matters here.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) workloads: Vec<Workload>,
    pub(super) accounts: BTreeMap<AccountName, Account>,
    /// Annotations of namespaces.
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) bindings: Vec<Binding>,
    /// Pods whose annotations are not those of what made them.
    pub(super) edited_pods: Vec<Workload>,
}

/// A service account's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What makes pods, or a pod that nothing makes.
#[derive(Clone, Debug, Default)]
pub(super) struct Workload {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The service account of its pods.
    pub(super) account: String,
    /// Its pods' annotations.
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) host_network: bool,
    /// Whatever makes it in turn, and is not among what was read.
    pub(super) owner: Option<String>,
    pub(super) containers: Vec<Container>,
}

/// A service account.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Made by an earlier plan.
    pub(super) is_ours: bool,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) image_pull_secrets: Vec<String>,
    pub(super) automount: Option<bool>,
}

/// A binding of a role of Kubernetes to service accounts.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    /// Empty: of the whole cluster.
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) role: Value,
    pub(super) accounts: BTreeSet<AccountName>,
}

/// The label of service accounts that a plan has made.
pub(super) const MADE_BY: (&str, &str) = ("kube2irsa.io/made-by", "migrate");

/// Kinds whose pods are made from a template.
pub(super) const MAKERS: [&str; 7] =
    ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"];

/// `null` is what it is where nothing is said.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Object {
    /// An object of a list, whose objects do not say their kind.
    pub(super) fn of_kind(mut self, kind: &str) -> Self {
        if self.kind.is_empty() {
            kind.clone_into(&mut self.kind);
        }
        self
    }
}

impl std::fmt::Display for AccountName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Workload {
    pub(super) fn account_name(&self) -> AccountName {
        AccountName { namespace: self.namespace.clone(), name: self.account.clone() }
    }
}

impl Cluster {
    /// The cluster of these objects; those of other kinds are passed over.
    pub(super) fn of(objects: Vec<Object>) -> Self {
        let mut cluster = Self::default();
        let mut made = Vec::new();
        let mut objects = objects;
        while let Some(object) = objects.pop() {
            if object.kind.ends_with("List") {
                let kind = object.kind.trim_end_matches("List").to_owned();
                objects.extend(object.items.into_iter().map(|item| item.of_kind(&kind)));
                continue;
            }
            cluster.add(object, &mut made);
        }
        cluster.add_made(made);
        cluster.workloads.sort_by_key(ToString::to_string);
        cluster.edited_pods.sort_by_key(ToString::to_string);
        cluster.bindings.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        cluster
    }

    fn add(&mut self, object: Object, made: &mut Vec<(Owner, Workload)>) {
        let namespace = namespace_of(&object.metadata.namespace);
        match object.kind.as_str() {
            "Namespace" => {
                self.namespaces.insert(object.metadata.name, object.metadata.annotations);
            }
            "ServiceAccount" => {
                let (key, value) = MADE_BY;
                let account = Account {
                    is_ours: object.metadata.labels.get(key).is_some_and(|by| by == value),
                    annotations: object.metadata.annotations,
                    image_pull_secrets: object.image_pull_secrets.into_iter().map(|secret| secret.name).collect(),
                    automount: object.automount_service_account_token,
                };
                self.accounts.insert(AccountName { namespace, name: object.metadata.name }, account);
            }
            "RoleBinding" | "ClusterRoleBinding" => {
                let of_cluster = object.kind == "ClusterRoleBinding";
                let accounts = object.subjects.iter().filter_map(|subject| account_of(subject, &namespace)).collect();
                let namespace = if of_cluster { String::new() } else { namespace };
                self.bindings.push(Binding { namespace, name: object.metadata.name, role: object.role_ref, accounts });
            }
            kind if kind == "Pod" || MAKERS.contains(&kind) => {
                // Ended, and not to be served again.
                if ["Succeeded", "Failed"].contains(&object.status.phase.as_str())
                    || object.status.completion_time.is_some()
                {
                    return;
                }
                let owner =
                    object.metadata.owner_references.iter().find(|owner| owner.controller == Some(true)).cloned();
                let workload = workload(object, namespace);
                match owner {
                    Some(owner) => made.push((owner, workload)),
                    None => self.workloads.push(workload),
                }
            }
            _ => {}
        }
    }

    /// What something else makes: counted by itself only where that is not known.
    fn add_made(&mut self, made: Vec<(Owner, Workload)>) {
        let makers = self.workloads.iter().chain(made.iter().map(|(_, workload)| workload));
        let makers =
            makers.map(|it| ((it.kind.clone(), it.namespace.clone(), it.name.clone()), it.annotations.clone()));
        let makers = makers.collect::<BTreeMap<_, _>>();
        let mut seen = BTreeSet::new();
        for (owner, mut workload) in made {
            match makers.get(&(owner.kind.clone(), workload.namespace.clone(), owner.name.clone())) {
                Some(annotations) => {
                    let is_edited = annotations.iter().any(|(key, value)| workload.annotations.get(key) != Some(value))
                        || workload
                            .annotations
                            .keys()
                            .any(|key| key.starts_with(IAM) && !annotations.contains_key(key));
                    if is_edited && workload.kind == "Pod" {
                        self.edited_pods.push(workload);
                    }
                }
                // Kubelet's own, from a file on the node, which can have no token.
                None if owner.kind == "Node" => {}
                None => {
                    let owner = format!("{} {}/{}", owner.kind, workload.namespace, owner.name);
                    if seen.insert((owner.clone(), workload.account.clone(), workload.annotations.clone())) {
                        workload.owner = Some(owner);
                        self.workloads.push(workload);
                    }
                }
            }
        }
    }
}

/// The prefix of the annotations of both.
const IAM: &str = "iam.amazonaws.com/";

fn namespace_of(namespace: &str) -> String {
    if namespace.is_empty() { "default".to_owned() } else { namespace.to_owned() }
}

fn account_of(subject: &Subject, namespace: &str) -> Option<AccountName> {
    match subject.kind.as_str() {
        "ServiceAccount" => {
            let namespace = if subject.namespace.is_empty() { namespace } else { &subject.namespace };
            Some(AccountName { namespace: namespace.to_owned(), name: subject.name.clone() })
        }
        "User" => {
            let (namespace, name) = subject.name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
            Some(AccountName { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => None,
    }
}

fn workload(object: Object, namespace: String) -> Workload {
    let Object { kind, metadata, spec, .. } = object;
    let name = if metadata.name.is_empty() { metadata.generate_name } else { metadata.name };
    let (annotations, spec) = match kind.as_str() {
        "Pod" => (metadata.annotations, spec.pod),
        "CronJob" => {
            let template = spec.job_template.spec.template;
            (template.metadata.annotations, template.spec)
        }
        _ => (spec.template.metadata.annotations, spec.template.spec),
    };
    let account = [spec.service_account_name, spec.service_account].into_iter().find(|name| !name.is_empty());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let (host_network, containers) = (spec.host_network, spec.containers);
    Workload { kind, namespace, name, account, annotations, host_network, owner: None, containers }
}

#[cfg(test)]
mod tests;
