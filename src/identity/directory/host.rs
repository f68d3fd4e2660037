//! Pods on the node's network: known by UID, which the kernel tells of a socket ([`crate::cgroups`]), never by address.
//!
//! Invariant: such a pod is found only while the API server knows one of this UID on this node, on the node's network, that
//! has not ended.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use super::{Directory, State};
use crate::identity::{
    caller::{Caller, Role, Roles, Unidentified},
    index::Pod,
    names::PodUid,
};

/// What becomes of pods on the node's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPods {
    /// They are the node's: we see none of their requests.
    #[default]
    Off,
    /// They are known, and have no role.
    Denied,
    /// They have the roles of their service accounts.
    Served,
}

/// What becomes of one pod's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They come to us, and the pod is known by its address.
    Address,
    /// They come to us, and the pod is known by its cgroup.
    Cgroup,
    /// The same, and it may have no role.
    Denied,
    /// They go to the real metadata service: it is on the node's network, and such pods are the node's.
    Node,
    /// The same, since it is of the daemon's own service account.
    Ours,
    /// It has ended.
    Ended,
}

impl Reach {
    /// Whether the pod may get a role.
    #[must_use]
    pub fn is_served(self) -> bool {
        matches!(self, Self::Address | Self::Cgroup)
    }
}

impl State {
    /// What becomes of this pod's requests.
    pub(super) fn reach(&self, pod: &Pod) -> Reach {
        match self.host_pods {
            _ if pod.finished => Reach::Ended,
            _ if !pod.host_network => Reach::Address,
            HostPods::Off => Reach::Node,
            _ if self.own_pod.as_ref().and_then(|own| self.index.get(own)).is_some_and(|own| are_alike(own, pod)) => {
                Reach::Ours
            }
            HostPods::Denied => Reach::Denied,
            HostPods::Served => Reach::Cgroup,
        }
    }
}

fn are_alike(one: &Pod, other: &Pod) -> bool {
    (&one.namespace, &one.service_account) == (&other.namespace, &other.service_account)
}

impl Directory {
    /// The directory, before it knows pods, with this said of those on the node's network, of which we may be one.
    #[must_use]
    pub fn with_host_pods(self, host_pods: HostPods, own_pod: Option<PodUid>) -> Self {
        let mut state = self.state();
        (state.host_pods, state.own_pod) = (host_pods, own_pod);
        drop(state);
        self
    }

    /// The pod on the node's network with this UID, if it and its role are known.
    #[must_use]
    pub fn host_pod(&self, uid: &PodUid) -> Option<Arc<Caller>> {
        let caller = self.on_host.get(uid)?;
        (caller.roles.main != Role::Unknown).then(|| Arc::clone(caller.value()))
    }

    /// The same, waiting until `deadline` for what is not known yet.
    ///
    /// # Errors
    /// Why it could not be said.
    pub async fn identify_host_pod(&self, uid: &PodUid, deadline: Instant) -> Result<Arc<Caller>, Unidentified> {
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            if let Some(caller) = self.host_pod(uid) {
                return Ok(caller);
            }
            if tokio::time::timeout_at(deadline, version.changed()).await.is_err() {
                return Err(self.unidentified_host_pod(uid));
            }
        }
    }

    fn unidentified_host_pod(&self, uid: &PodUid) -> Unidentified {
        let state = self.state();
        let is_known = self.on_host.contains_key(uid);
        if is_known || !state.pods_synced || state.pods_may_lag { Unidentified::NotYet } else { Unidentified::Nobody }
    }

    /// The pods on the node's network of the service account of the pod with this UID, itself included.
    #[must_use]
    pub fn host_pods_like(&self, uid: &PodUid) -> BTreeSet<PodUid> {
        let state = self.state();
        let Some(one) = state.index.get(uid) else { return BTreeSet::new() };
        let like = state.index.pods().filter(|pod| pod.is_on_host() && are_alike(one, pod));
        like.map(|pod| pod.uid.clone()).collect()
    }

    pub(super) fn publish_host_pods(&self, state: &State, changed: &BTreeSet<PodUid>) {
        for uid in changed {
            let pod = state.index.get(uid).filter(|pod| pod.is_on_host());
            let caller = match (state.host_pods, pod) {
                (HostPods::Off, _) | (_, None) => None,
                (HostPods::Denied, Some(pod)) => {
                    let roles = Roles { main: Role::None, ..Roles::default() };
                    // Its namespace is not read for what it may not have.
                    Some(Caller { roles, pod: Arc::clone(pod), require_imdsv2: false })
                }
                (HostPods::Served, Some(pod)) => Some(state.caller(Arc::clone(pod))),
            };
            match caller {
                Some(caller) if self.on_host.get(uid).is_some_and(|known| **known == caller) => {}
                Some(caller) => drop(self.on_host.insert(uid.clone(), Arc::new(caller))),
                None => drop(self.on_host.remove(uid)),
            }
        }
    }
}
