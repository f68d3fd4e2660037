//! Pods on the node's network: known by UID, which the kernel tells of a socket ([`crate::cgroups`]), never by address.
//!
//! Invariant: such a pod is found only while the API server knows one of this UID on this node, on the node's network, that
//! has not ended.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use super::{Directory, State};
use crate::identity::{
    caller::{Caller, Role, Roles, Unidentified},
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

impl Directory {
    /// The directory, before it knows pods, with this said of those on the node's network.
    #[must_use]
    pub fn with_host_pods(self, host_pods: HostPods) -> Self {
        self.state().host_pods = host_pods;
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
        let like = state.index.pods().filter(|pod| {
            pod.is_on_host() && (&pod.namespace, &pod.service_account) == (&one.namespace, &one.service_account)
        });
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
