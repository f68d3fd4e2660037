//! Objects, as the API server defaults them and as kubelet fills them in.

use std::{net::IpAddr, time::SystemTime};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{resource::Resource, store::Key, uuid};
use crate::clock;

/// A pod to be created. Its names are enough; the rest is as a plain pod has it.
#[derive(Clone, Debug)]
pub struct NewPod {
    /// Created if it is not there.
    pub namespace: String,
    /// A pod of this name that is there already is replaced by a new one.
    pub name: String,
    /// `default`, if not said otherwise; need not exist.
    pub service_account: String,
    /// The node that it is bound to, created if it is not there; none: not scheduled.
    pub node: Option<String>,
    /// Whether it lives in the node's network namespace.
    pub host_network: bool,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
    /// The audience of a token that a volume brings it.
    pub token_audience: Option<String>,
}

/// What kubelet says of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodStatus {
    /// Its phase.
    pub phase: PodPhase,
    /// Its addresses; the first is `podIP`.
    pub pod_ips: Vec<IpAddr>,
    /// When its container started; now, if not said otherwise.
    pub started_at: Option<SystemTime>,
    /// What its container does; what fits the phase, if not said otherwise.
    pub container: Option<ContainerState>,
}

/// The phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers have run.
    #[default]
    Pending,
    /// At least one container runs, or is about to.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, not all well.
    Failed,
}

/// The state of a pod's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Not running (again) yet.
    Waiting,
    /// Running.
    Running,
    /// Ended.
    Terminated,
}

// === impl NewPod ===

impl NewPod {
    /// A pod that is scheduled nowhere yet and uses the `default` service account.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            node: None,
            host_network: false,
            labels: Vec::new(),
            annotations: Vec::new(),
            token_audience: None,
        }
    }

    /// With this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = name.to_owned();
        self
    }

    /// On this node.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.to_owned());
        self
    }

    /// In the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With a volume that brings it a token of this audience, as the EKS webhook adds one.
    #[must_use]
    pub fn token(mut self, audience: &str) -> Self {
        self.token_audience = Some(audience.to_owned());
        self
    }

    pub(super) fn object(&self) -> Value {
        let pairs = |pairs: &[(String, String)]| {
            pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
        };
        let key = Key::new(Resource::Pods, &self.namespace, &self.name);
        let mut spec = json!({
            "containers": [{
                "name": "main",
                "image": "example.com/main",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "Always",
            }],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": self.service_account,
            "serviceAccount": self.service_account,
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "priority": 0,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
        });
        if let Some(node) = &self.node {
            spec["nodeName"] = node.as_str().into();
        }
        if self.host_network {
            spec["hostNetwork"] = true.into();
        }
        if let Some(audience) = &self.token_audience {
            let token = json!({ "audience": audience, "expirationSeconds": 86400, "path": "token" });
            let sources = json!([{ "serviceAccountToken": token }]);
            spec["volumes"] =
                json!([{ "name": "aws-iam-token", "projected": { "sources": sources, "defaultMode": 420 } }]);
        }
        let mut metadata = metadata(&key, &pairs(&self.labels), &pairs(&self.annotations));
        metadata["generation"] = 1.into();
        json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Pending", "qosClass": "BestEffort" } })
    }
}

// === impl PodStatus ===

impl PodStatus {
    /// A running pod with these addresses.
    #[must_use]
    pub fn running(pod_ips: &[IpAddr]) -> Self {
        Self { phase: PodPhase::Running, pod_ips: pod_ips.to_vec(), ..Self::default() }
    }

    /// A pod of any phase with these addresses.
    #[must_use]
    pub fn new(phase: PodPhase, pod_ips: &[IpAddr]) -> Self {
        Self { phase, ..Self::running(pod_ips) }
    }

    pub(super) fn object(&self) -> Value {
        let started = timestamp(self.started_at.unwrap_or_else(clock::now));
        let state = self.container.unwrap_or(match self.phase {
            PodPhase::Pending => ContainerState::Waiting,
            PodPhase::Running => ContainerState::Running,
            PodPhase::Succeeded | PodPhase::Failed => ContainerState::Terminated,
        });
        let exit_code = i32::from(self.phase == PodPhase::Failed);
        let container_state = match state {
            ContainerState::Waiting => json!({ "waiting": { "reason": "ContainerCreating" } }),
            ContainerState::Running => json!({ "running": { "startedAt": started } }),
            ContainerState::Terminated => json!({ "terminated": {
                "exitCode": exit_code,
                "reason": if exit_code == 0 { "Completed" } else { "Error" },
                "startedAt": started,
                "finishedAt": timestamp(clock::now()),
            } }),
        };
        let running = state == ContainerState::Running;
        let mut status = json!({
            "phase": self.phase.name(),
            "qosClass": "BestEffort",
            "startTime": started,
            "conditions": [{ "type": "Ready", "status": if running { "True" } else { "False" }, "lastProbeTime": null, "lastTransitionTime": started }],
            "containerStatuses": [{
                "name": "main",
                "image": "example.com/main",
                "imageID": "",
                "lastState": {},
                "ready": running,
                "started": running,
                "restartCount": 0,
                "state": container_state,
            }],
        });
        if let Some(first) = self.pod_ips.first() {
            status["podIP"] = first.to_string().into();
            status["podIPs"] = self.pod_ips.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        }
        status
    }
}

impl PodPhase {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// The metadata of a new object.
pub(super) fn metadata(key: &Key, labels: &[(String, String)], annotations: &[(String, String)]) -> Value {
    let mut metadata = json!({
        "name": key.name,
        "uid": uuid(),
        "creationTimestamp": timestamp(clock::now()),
    });
    if key.resource.namespaced() {
        metadata["namespace"] = key.namespace.as_str().into();
    }
    for (field, pairs) in [("labels", labels), ("annotations", annotations)] {
        if !pairs.is_empty() {
            metadata[field] = map(pairs);
        }
    }
    metadata
}

/// Sets or removes the annotations of an object.
pub(super) fn annotate(object: &mut Value, annotations: &[(String, String)]) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if annotations.is_empty() {
        metadata.remove("annotations");
    } else {
        metadata.insert("annotations".to_owned(), map(annotations));
    }
}

fn map(pairs: &[(String, String)]) -> Value {
    pairs.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>().into()
}

/// RFC 3339, in whole seconds, UTC: `metav1.Time`.
pub(super) fn timestamp(time: SystemTime) -> String {
    let timestamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    Timestamp::from_second(timestamp.as_second()).unwrap_or(timestamp).to_string()
}

/// The time that [`timestamp`] wrote.
pub(super) fn parse_timestamp(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}
