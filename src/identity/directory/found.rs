//! What is known of one pod and why it is served or not, for whoever asks for that pod by name.

use std::{net::IpAddr, sync::Arc};

use super::{
    super::{
        binding::Standing,
        caller::{Roles, ServiceAccount},
        index::{Claim, Pod},
        names::Namespace,
        policy::{Demands, NamespacePolicy},
    },
    Directory, Reach,
};

/// What is known under one name.
#[derive(Clone, Debug)]
pub struct Found {
    /// The pods of this name, the newest first: the one before may be known still.
    pub pods: Vec<FoundPod>,
    /// Whether the pods of this node have been read.
    pub pods_synced: bool,
    /// The watch of pods broke, and has said nothing since.
    pub pods_may_lag: bool,
    /// Whether the service accounts of the namespace have been read.
    pub accounts_synced: bool,
    /// How namespaces limit roles.
    pub policy: NamespacePolicy,
    /// What the namespace demands, once that is read.
    pub demands: Option<Demands>,
}

/// A pod, and what depends on it.
#[derive(Clone, Debug)]
pub struct FoundPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What becomes of its requests.
    pub reach: Reach,
    /// Its addresses.
    pub addresses: Vec<FoundAddress>,
    /// Its service account, if that is known.
    pub account: Option<ServiceAccount>,
    /// Its roles, and those that it does not get.
    pub roles: Roles,
    /// Whether its service account or its namespace asks that it bring a session token, or may.
    pub require_imdsv2: bool,
}

/// An address of a pod.
#[derive(Clone, Debug)]
pub struct FoundAddress {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub claim: Claim,
    /// The interface that it is bound to.
    pub link: Option<u32>,
    /// Whether this pod's claim is suspended.
    pub suspended: bool,
    /// All that claim it.
    pub claimants: Vec<Arc<Pod>>,
}

impl Directory {
    /// What is known of the pod of this name, and of what it depends on.
    #[must_use]
    pub fn find(&self, namespace: &Namespace, name: &str) -> Found {
        let state = self.state();
        let accounts = state.accounts.get(namespace);
        let mut pods =
            state.index.pods().filter(|pod| pod.namespace == *namespace && *pod.name == *name).collect::<Vec<_>>();
        pods.sort_by_key(|pod| std::cmp::Reverse((!pod.finished, pod.start_time)));
        let address = |pod: &Pod, address: IpAddr| {
            let standing = state.index.standing(address, &pod.uid);
            FoundAddress {
                address,
                claim: state.index.claim(address),
                link: standing.and_then(Standing::link).map(|link| link.index),
                suspended: standing.is_some_and(Standing::is_suspended),
                claimants: state
                    .index
                    .claimants(address)
                    .iter()
                    .filter_map(|uid| state.index.get(uid))
                    .cloned()
                    .collect(),
            }
        };
        let pods = pods.into_iter().map(|pod| FoundPod {
            addresses: pod.addresses.iter().map(|of_pod| address(pod, *of_pod)).collect(),
            account: accounts.and_then(|accounts| accounts.by_name.get(&pod.service_account)).cloned(),
            roles: state.roles(pod),
            require_imdsv2: state.caller(Arc::clone(pod)).require_imdsv2,
            reach: state.reach(pod),
            pod: Arc::clone(pod),
        });
        Found {
            pods: pods.collect(),
            pods_synced: state.pods_synced,
            pods_may_lag: state.pods_may_lag,
            accounts_synced: accounts.is_some_and(|accounts| accounts.synced),
            policy: state.policy,
            demands: state.demands.get(namespace).cloned(),
        }
    }
}
