//! Why a pod gets its credentials, or does not: each step from its address to what it is served, as this daemon has it in
//! memory. Nothing is asked of anybody, so it can be told while the API server or STS are away.
//!
//! Owns the form of what is told, which programs read (`docs/explain.md`); [`steps`] says what each step is, [`text`] prints it.
//! Invariants: no secret is in it; a step that fails says why and what to do, in the words of the Events on the pod where
//! there are some.

pub mod steps;
pub mod text;

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};

use crate::{
    clock,
    config::Intercept,
    credentials::Store,
    identity::{Directory, Namespace, NodeName},
    intercept::host::HostNetwork,
    metrics::Metrics,
    readiness::Readiness,
    token::access::Access,
};

/// All that is told of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The node whose daemon tells.
    pub node: String,
    /// Whether no step fails.
    pub well: bool,
    /// The steps, from the pod's address to what it is served.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which, and what is known of it.
    #[serde(flatten)]
    pub about: About,
    /// Whether it is well.
    pub state: StepState,
    /// In words; of a step that fails, why and what to do.
    pub says: String,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Well.
    Ok,
    /// It keeps the pod from its credentials, or will.
    Fails,
    /// Nothing came so far yet.
    Unknown,
}

/// Which step, and what is known of it. Absent is what is not known, or what there is none of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum About {
    /// The daemon that tells.
    Daemon {
        /// What it lacks to be ready.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lacks: Vec<String>,
    },
    /// How pods' requests come to it.
    Interception {
        /// `nft`, `iptables`, `observe` or `none`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        way: Option<String>,
    },
    /// The pod.
    Pod {
        /// `metadata.uid`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<String>,
        /// `spec.serviceAccountName`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service_account: Option<String>,
        /// `spec.hostNetwork`.
        #[serde(default)]
        host_network: bool,
        /// What becomes of such pods: `off`, `deny` or `serve`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_network_mode: Option<String>,
        /// `status.podIPs`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        addresses: Vec<IpAddr>,
    },
    /// One of its addresses.
    Address {
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        /// The index of the host's interface that leads there, and which the address is the pod's with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<u32>,
        /// The pods that claim it, `namespace/name`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        claimants: Vec<String>,
    },
    /// Its service account, and what the annotations say.
    ServiceAccount {
        /// `namespace/name`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// `metadata.uid`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<String>,
        /// The role that tokens are exchanged for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// The role that is assumed from there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_role: Option<String>,
        /// Further roles that its pods can ask for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        additional_roles: Vec<NamedRole>,
        /// The audience of its tokens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audience: Option<String>,
        /// How long its sessions are asked to last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_seconds: Option<u32>,
        /// `sts-regional-endpoints`, where it is set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        regional_sts: Option<bool>,
    },
    /// What the pod's own annotations say of a role, where these are heeded (`--legacy-annotations`) and name one.
    PodAnnotation {
        /// The role that the pod gets by it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// How it is had: `web-identity` or `assume-role`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// Whether it is assumed with an external id.
        #[serde(default)]
        external_id: bool,
        /// Whether it is not heeded, since the service account names a role.
        #[serde(default)]
        superseded: bool,
    },
    /// Whether its requests need a session token.
    Imdsv2 {
        /// Whether they do.
        required: bool,
    },
    /// What the namespace says of one role.
    NamespacePolicy {
        /// The role that the pod ends up with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// `off`, `annotated` or `required`.
        policy: String,
        /// The globs of the namespace's annotation, where it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        permitted_roles: Option<Vec<String>>,
    },
    /// The token of the service account that is exchanged for one role.
    Token {
        /// The role that the pod ends up with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// `node` or `direct`, once that is decided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access: Option<String>,
        /// Whether the pod's own volumes bring it a token for STS, as the EKS webhook sees to.
        #[serde(default)]
        pod_has_its_own: bool,
        /// When the last one was had, or refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<String>,
        /// What it was refused with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// The exchange of the token for one role's credentials.
    Sts {
        /// The role that the pod ends up with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// The region whose STS is called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
        /// Where it is, if that is not the region's own endpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// When the last exchange ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<String>,
        /// AWS's code, where it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        /// When it is made next; absent: when somebody asks, or now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// What is served of one role.
    Credentials {
        /// The role that the pod ends up with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// `RoleSessionName`, as CloudTrail has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_name: Option<String>,
        /// `AccessKeyId`, as CloudTrail has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access_key_id: Option<String>,
        /// When they expire.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<String>,
        /// How long that is from now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds_left: Option<u64>,
    },
}

/// A role that goes by a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRole {
    /// The name that pods ask for it by.
    pub name: String,
    /// Its ARN.
    pub role: String,
}

/// Where STS is, once that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StsPlace {
    /// Its region.
    pub region: Option<String>,
    /// Its endpoint, where that is not the region's own.
    pub endpoint: Option<String>,
}

/// Explains pods.
#[derive(Debug)]
pub struct Explainer {
    /// Who is who.
    pub directory: Arc<Directory>,
    /// What is served.
    pub store: Arc<Store>,
    /// With which power tokens are asked for.
    pub access: Arc<Access>,
    /// What we lack.
    pub readiness: Arc<Readiness>,
    /// Which backend is in force.
    pub metrics: Arc<Metrics>,
    /// This node.
    pub node: NodeName,
    /// The audience of tokens, where a service account names none.
    pub audience: String,
    /// The annotation that names a role.
    pub role_annotation: String,
    /// How requests are redirected.
    pub intercept: Intercept,
    /// What becomes of pods on the node's network.
    pub host_network: HostNetwork,
    /// Whether every pod must bring a session token.
    pub require_imdsv2: bool,
    /// Where STS is.
    pub sts: Arc<OnceLock<StsPlace>>,
}

// === impl Explainer ===

impl Explainer {
    /// All that is known of the pod of this name.
    #[must_use]
    pub fn explain(&self, namespace: &str, pod: &str) -> Explanation {
        let found = self.directory.find(&Namespace::from(namespace), pod);
        let steps = steps::of(self, &found, clock::now());
        Explanation {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            node: self.node.to_string(),
            well: !steps.iter().any(|step| step.state == StepState::Fails),
            steps,
        }
    }
}
