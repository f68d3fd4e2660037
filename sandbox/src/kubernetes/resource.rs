//! The resources that are served, and what may be selected of their fields.

use serde_json::{Value, json};

/// A resource, version 1 of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// DaemonSets, of the group `apps`.
    DaemonSets,
    /// Events, of the group `events.k8s.io`.
    Events,
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// Pods.
    Pods,
    /// Service accounts.
    ServiceAccounts,
}

impl Resource {
    /// By its group and its name in a path.
    #[must_use]
    pub fn from_name(group: &str, name: &str) -> Option<Self> {
        [Self::DaemonSets, Self::Events, Self::Namespaces, Self::Nodes, Self::Pods, Self::ServiceAccounts]
            .into_iter()
            .find(|resource| (resource.group(), resource.name()) == (group, name))
    }

    /// Its group; empty: the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::DaemonSets => "apps",
            Self::Events => "events.k8s.io",
            Self::Namespaces | Self::Nodes | Self::Pods | Self::ServiceAccounts => "",
        }
    }

    /// The `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::DaemonSets => "apps/v1",
            Self::Events => "events.k8s.io/v1",
            Self::Namespaces | Self::Nodes | Self::Pods | Self::ServiceAccounts => "v1",
        }
    }

    /// Its name in a path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DaemonSets => "daemonsets",
            Self::Events => "events",
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::ServiceAccounts => "serviceaccounts",
        }
    }

    /// The kind of its objects.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::DaemonSets => "DaemonSet",
            Self::Events => "Event",
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::Pods => "Pod",
            Self::ServiceAccounts => "ServiceAccount",
        }
    }

    /// The package of its objects' types, as a real server names them.
    pub(super) fn go_package(self) -> &'static str {
        match self {
            Self::DaemonSets => "apps",
            Self::Events | Self::Namespaces | Self::Nodes | Self::Pods | Self::ServiceAccounts => "core",
        }
    }

    pub(super) fn namespaced(self) -> bool {
        matches!(self, Self::DaemonSets | Self::Events | Self::Pods | Self::ServiceAccounts)
    }

    /// What a bookmark carries: an object of the kind with nothing set but its version.
    pub(super) fn empty_object(self) -> Value {
        match self {
            Self::DaemonSets => json!({
                "spec": {
                    "selector": null,
                    "template": { "metadata": {}, "spec": { "containers": null } },
                    "updateStrategy": {},
                },
                "status": {
                    "currentNumberScheduled": 0,
                    "numberMisscheduled": 0,
                    "desiredNumberScheduled": 0,
                    "numberReady": 0,
                },
            }),
            Self::Events => json!({
                "eventTime": null,
                "regarding": {},
                "deprecatedSource": {},
                "deprecatedFirstTimestamp": null,
                "deprecatedLastTimestamp": null,
            }),
            Self::Namespaces => json!({ "spec": {}, "status": {} }),
            Self::Nodes => json!({ "spec": {}, "status": {} }),
            Self::Pods => json!({ "spec": { "containers": null }, "status": {} }),
            Self::ServiceAccounts => json!({}),
        }
    }

    /// The name under which `label` is looked up, or why it may not be selected by
    /// (`pkg/apis/core/v1/conversion.go`).
    pub(super) fn selectable(self, label: &str) -> Result<&str, String> {
        let known = match self {
            Self::Pods => match label {
                "spec.host" => return Ok("spec.nodeName"),
                label => matches!(
                    label,
                    "metadata.name"
                        | "metadata.namespace"
                        | "spec.nodeName"
                        | "spec.restartPolicy"
                        | "spec.schedulerName"
                        | "spec.serviceAccountName"
                        | "spec.hostNetwork"
                        | "status.phase"
                        | "status.podIP"
                        | "status.podIPs"
                        | "status.nominatedNodeName"
                ),
            },
            Self::Events => matches!(
                label,
                "metadata.name"
                    | "metadata.namespace"
                    | "reason"
                    | "regarding.apiVersion"
                    | "regarding.fieldPath"
                    | "regarding.kind"
                    | "regarding.name"
                    | "regarding.namespace"
                    | "regarding.resourceVersion"
                    | "regarding.uid"
                    | "reportingController"
                    | "type"
            ),
            Self::Namespaces => matches!(label, "metadata.name" | "status.phase"),
            Self::Nodes => matches!(label, "metadata.name" | "spec.unschedulable"),
            Self::DaemonSets | Self::ServiceAccounts => {
                if !matches!(label, "metadata.name" | "metadata.namespace") {
                    return Err(format!(
                        "{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ));
                }
                true
            }
        };
        if known { Ok(label) } else { Err(format!("field label not supported: {label}")) }
    }

    /// The value of a selectable field, as a string; a field that is not set is empty.
    pub(super) fn field(self, object: &Value, label: &str) -> String {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |pointer: &str| object.pointer(pointer).and_then(Value::as_bool).unwrap_or_default().to_string();
        match label {
            "spec.hostNetwork" => flag("/spec/hostNetwork"),
            "spec.unschedulable" => flag("/spec/unschedulable"),
            // The first of podIPs; and podIPs itself is accepted in a selector, but never set.
            "status.podIP" => text("/status/podIPs/0/ip"),
            "status.podIPs" => String::new(),
            label => text(&format!("/{}", label.replace('.', "/"))),
        }
    }
}
