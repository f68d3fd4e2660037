//! What is in a cluster, as far as the commands look at it: pods, service accounts, namespaces, nodes, and who runs on the nodes.
//!
//! Owns the slim types of those objects and their reading. What cannot be read is kept with the API server's words, so that it
//! is never taken for well. Of a variable of a container's environment the value is kept only where it is no secret by its name.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::Deserialize;

use super::cluster::{self, Cluster};
use crate::identity::legacy;

/// What was read, or why not.
pub type Read<T> = Result<T, String>;

/// The label by which all that is ours is known.
const NAME_LABEL: &str = "app.kubernetes.io/name";
const OURS: &str = "kube2irsa";
/// Variables of a container whose values are looked at: none of them holds a secret.
const SEEN: [&str; 3] = ["NO_PROXY", "no_proxy", "AWS_EC2_METADATA_DISABLED"];
/// Those of the daemon itself.
const OUR_VARIABLES: &str = "KUBE2IRSA_";

/// All of it.
#[derive(Debug)]
pub struct Inventory {
    /// Pods of all namespaces.
    pub pods: Read<Vec<Pod>>,
    /// Service accounts of all namespaces.
    pub accounts: Read<Vec<Object>>,
    /// Namespaces.
    pub namespaces: Read<Vec<Object>>,
    /// Nodes.
    pub nodes: Read<Vec<Node>>,
    /// DaemonSets of all namespaces.
    pub daemon_sets: Read<Vec<DaemonSet>>,
}

/// An object of which the metadata is all that matters.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Object {
    /// Its metadata.
    #[serde(default)]
    pub metadata: Metadata,
}

/// An object's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace, if it has one.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Set while it is being deleted.
    pub deletion_timestamp: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its metadata.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: PodSpec,
    /// What it is.
    pub status: PodStatus,
}

/// What a pod is to be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that it is on; empty: none yet.
    pub node_name: String,
    /// Its service account.
    pub service_account_name: String,
    /// Whether it is on the node's network.
    pub host_network: bool,
    /// The labels that its node must have.
    pub node_selector: BTreeMap<String, String>,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// What its program is told.
    pub args: Vec<String>,
    /// Its environment, as far as the pod itself says it.
    pub env: Vec<Variable>,
}

/// A variable of a container's environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "RawVariable")]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Whether it is more than an empty text.
    pub is_set: bool,
    /// Its value, where that is looked at.
    pub value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVariable {
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: String,
    value_from: Option<serde::de::IgnoredAny>,
}

/// What a pod is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<serde::de::IgnoredAny>,
}

/// A node.
pub type Node = Object;

/// A DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    /// Its metadata.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: DaemonSetSpec,
}

/// What a DaemonSet is to be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DaemonSetSpec {
    selector: Selector,
    /// Its pods.
    pub template: Template,
}

/// The pods of a DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Template {
    /// What they are to be.
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

// === impl Inventory ===

impl Inventory {
    /// Reads it.
    pub async fn read(cluster: &Cluster) -> Self {
        let (pods, accounts, namespaces, nodes, daemon_sets) = futures::join!(
            list(cluster, "/api/v1/pods"),
            list(cluster, "/api/v1/serviceaccounts"),
            list(cluster, "/api/v1/namespaces"),
            list(cluster, "/api/v1/nodes"),
            list(cluster, "/apis/apps/v1/daemonsets"),
        );
        Self { pods, accounts, namespaces, nodes, daemon_sets }
    }

    /// What was not read, and why.
    #[must_use]
    pub fn unread(&self) -> Vec<(&'static str, &str)> {
        [
            ("pods", self.pods.as_ref().err()),
            ("service accounts", self.accounts.as_ref().err()),
            ("namespaces", self.namespaces.as_ref().err()),
            ("nodes", self.nodes.as_ref().err()),
            ("DaemonSets", self.daemon_sets.as_ref().err()),
        ]
        .into_iter()
        .filter_map(|(what, why)| why.map(|why| (what, why.as_str())))
        .collect()
    }

    /// The DaemonSet of the daemon.
    #[must_use]
    pub fn daemon(&self) -> Option<&DaemonSet> {
        let mut sets = self.daemon_sets.as_ref().ok()?.iter();
        sets.find(|set| set.metadata.labels.get(NAME_LABEL).is_some_and(|name| name == OURS))
    }

    /// The daemon's pods that are not being deleted and have not ended.
    #[must_use]
    pub fn daemon_pods(&self) -> Vec<&Pod> {
        let Some(set) = self.daemon() else { return Vec::new() };
        self.pods.iter().flatten().filter(|pod| pod.is_of(set) && !pod.is_over() && !pod.is_terminating()).collect()
    }

    /// Service accounts by namespace and name; none if they were not read.
    #[must_use]
    pub fn accounts_by_name(&self) -> HashMap<(&str, &str), &Object> {
        self.accounts.iter().flatten().map(|account| (account.metadata.key(), account)).collect()
    }

    /// Namespaces by name; none if they were not read.
    #[must_use]
    pub fn namespaces_by_name(&self) -> HashMap<&str, &Object> {
        self.namespaces.iter().flatten().map(|namespace| (namespace.metadata.name.as_str(), namespace)).collect()
    }

    /// The addresses that several pods claim which run and are not being deleted, each with those pods.
    #[must_use]
    pub fn disputed_addresses(&self) -> Vec<(IpAddr, Vec<&Pod>)> {
        let mut claims = BTreeMap::<IpAddr, Vec<&Pod>>::new();
        let claimants = self.pods.iter().flatten().filter(|pod| !pod.spec.host_network && pod.runs());
        for pod in claimants.filter(|pod| !pod.is_over() && !pod.is_terminating()) {
            for address in pod.addresses() {
                claims.entry(address).or_default().push(pod);
            }
        }
        claims.into_iter().filter(|(_, pods)| pods.len() > 1).collect()
    }
}

async fn list<T: serde::de::DeserializeOwned>(cluster: &Cluster, path: &str) -> Read<Vec<T>> {
    cluster.list(path).await.map_err(|error| cluster::words(&error))
}

// === impl Metadata ===

impl Metadata {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

// === impl Pod ===

impl Pod {
    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it is annotated with a role, as with kube2iam and kiam.
    #[must_use]
    pub fn names_a_role(&self) -> bool {
        self.metadata.annotations.get(legacy::ROLE).is_some_and(|role| !role.is_empty())
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether a container of it runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.status.container_statuses.iter().any(|container| container.state.running.is_some())
    }

    /// Whether it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.status.pod_ips.iter().filter_map(|ip| ip.ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical())
    }

    /// Its containers.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.containers()
    }

    /// The name of its service account, with the namespace.
    #[must_use]
    pub fn account(&self) -> (&str, &str) {
        (&self.metadata.namespace, &self.spec.service_account_name)
    }

    fn is_of(&self, set: &DaemonSet) -> bool {
        let wanted = &set.spec.selector.match_labels;
        self.metadata.namespace == set.metadata.namespace
            && !wanted.is_empty()
            && wanted.iter().all(|(label, value)| self.metadata.labels.get(label) == Some(value))
    }
}

// === impl PodSpec ===

impl PodSpec {
    /// Its containers, those that come first too.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }
}

// === impl Container ===

impl Container {
    /// A variable of its environment that is more than an empty text.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        // The last of one name counts.
        self.env.iter().rfind(|variable| variable.name == name).filter(|variable| variable.is_set)
    }
}

// === impl Variable ===

impl From<RawVariable> for Variable {
    fn from(RawVariable { name, value, value_from }: RawVariable) -> Self {
        let is_set = !value.is_empty() || value_from.is_some();
        let is_seen = SEEN.contains(&name.as_str()) || name.starts_with(OUR_VARIABLES);
        let value = (is_seen && value_from.is_none()).then_some(value);
        Self { name, is_set, value }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_variable_the_value_is_forgotten_where_it_may_be_a_secret() {
        let read = |name: &str| serde_json::from_value::<Variable>(json!({"name": name, "value": "hush"})).unwrap();
        for name in ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HTTP_PROXY", "PASSWORD"] {
            let variable = read(name);
            assert!(variable.is_set && variable.value.is_none(), "{variable:?}");
        }
        assert_eq!(read("NO_PROXY").value.as_deref(), Some("hush"));
        let given = json!({"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        assert!(serde_json::from_value::<Variable>(given).unwrap().is_set);
        assert!(!serde_json::from_value::<Variable>(json!({"name": "HTTP_PROXY"})).unwrap().is_set);
    }

    #[test]
    fn an_object_with_nothing_in_it_is_read() {
        let pod = serde_json::from_value::<Pod>(json!({})).unwrap();
        assert!(!pod.runs() && !pod.is_ready() && !pod.is_over() && pod.addresses().next().is_none());
        assert!(serde_json::from_value::<DaemonSet>(json!({})).is_ok());
    }

    #[test]
    fn an_address_is_disputed_by_pods_that_run_and_stay_alone() {
        let pod = |name: &str, change: &dyn Fn(&mut Pod)| {
            let mut pod = serde_json::from_value::<Pod>(json!({
                "metadata": {"name": name, "namespace": "a"},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
                    "containerStatuses": [{"state": {"running": {"startedAt": "x"}}}]},
            }))
            .unwrap();
            change(&mut pod);
            pod
        };
        let disputed = |change: &dyn Fn(&mut Pod)| {
            let inventory = Inventory {
                pods: Ok(vec![pod("one", &|_| {}), pod("two", change)]),
                accounts: Ok(Vec::new()),
                namespaces: Ok(Vec::new()),
                nodes: Ok(Vec::new()),
                daemon_sets: Ok(Vec::new()),
            };
            inventory.disputed_addresses().len()
        };
        assert_eq!(disputed(&|_| {}), 1);
        assert_eq!(disputed(&|pod| pod.metadata.deletion_timestamp = Some("now".to_owned())), 0);
        assert_eq!(disputed(&|pod| pod.status.phase = "Succeeded".to_owned()), 0);
        assert_eq!(disputed(&|pod| pod.spec.host_network = true), 0);
        assert_eq!(disputed(&|pod| pod.status.container_statuses.clear()), 0);
    }
}
