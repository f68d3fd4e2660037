//! The resources that are served, and what may be selected of their fields.

use serde_json::{Value, json};

/// A resource of the core group, version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
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
    /// By its name in a path.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Namespaces, Self::Nodes, Self::Pods, Self::ServiceAccounts]
            .into_iter()
            .find(|resource| resource.name() == name)
    }

    /// Its name in a path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
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
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::Pods => "Pod",
            Self::ServiceAccounts => "ServiceAccount",
        }
    }

    pub(super) fn namespaced(self) -> bool {
        matches!(self, Self::Pods | Self::ServiceAccounts)
    }

    /// What a bookmark carries: an object of the kind with nothing set but its version.
    pub(super) fn empty_object(self) -> Value {
        match self {
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
            Self::Namespaces => matches!(label, "metadata.name" | "status.phase"),
            Self::Nodes => matches!(label, "metadata.name" | "spec.unschedulable"),
            Self::ServiceAccounts => {
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
