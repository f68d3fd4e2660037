//! The pod index: which pod an address belongs to. Pure: no I/O, no clock, no tokio.
//!
//! Owns the pods of this node by UID and the claims on addresses. It does not know roles.
//! Invariant: [`PodIndex::claim`] names a pod only while exactly one living pod can be meant.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::names::{Namespace, PodUid, ServiceAccountName};

/// What we need to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.serviceAccountName`.
    pub service_account: ServiceAccountName,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// Phase Succeeded or Failed: its addresses are no longer its own.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set: served until it is gone.
    pub terminating: bool,
    /// At least one container is running.
    pub running: bool,
    /// `status.podIPs`, v4-mapped ones canonicalised.
    pub addresses: Vec<IpAddr>,
    /// `status.startTime`, else `metadata.creationTimestamp`: seconds since the Unix epoch.
    pub started: u64,
}

impl Pod {
    /// The addresses that are this pod's alone as far as it knows.
    fn claims(&self) -> &[IpAddr] {
        if self.host_network || self.finished { &[] } else { &self.addresses }
    }

    /// Gives way to another claimant of its address: kubelet frees an address before the pod is gone.
    fn yields(&self) -> bool {
        self.terminating || !self.running
    }

    fn awaits_address(&self) -> bool {
        !self.host_network && !self.finished && self.addresses.is_empty()
    }
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No living pod's.
    Nobody,
    /// This pod's.
    Pod(Arc<Pod>),
    /// Several pods claim it and none of them yields to the others.
    Disputed,
}

/// What a change touched; the caller looks the rest up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Addresses whose claim may have changed.
    pub addresses: BTreeSet<IpAddr>,
    /// Pods that are no more, or have finished.
    pub gone: BTreeSet<PodUid>,
}

/// The pods of this node.
#[derive(Debug, Default)]
pub struct PodIndex {
    pods: HashMap<PodUid, Arc<Pod>>,
    claimants: HashMap<IpAddr, BTreeSet<PodUid>>,
}

impl PodIndex {
    /// A pod appeared or changed.
    pub fn apply(&mut self, pod: Pod) -> Changed {
        let mut changed = Changed::default();
        self.replace(pod.uid.clone(), Some(pod), &mut changed);
        changed
    }

    /// A pod is gone.
    pub fn delete(&mut self, uid: &PodUid) -> Changed {
        let mut changed = Changed::default();
        self.replace(uid.clone(), None, &mut changed);
        changed
    }

    /// These are all the pods there are.
    pub fn reset(&mut self, pods: Vec<Pod>) -> Changed {
        let mut changed = Changed::default();
        let stay = pods.iter().map(|pod| pod.uid.clone()).collect::<BTreeSet<_>>();
        let gone = self.pods.keys().filter(|uid| !stay.contains(*uid)).cloned().collect::<Vec<_>>();
        for uid in gone {
            self.replace(uid, None, &mut changed);
        }
        for pod in pods {
            self.replace(pod.uid.clone(), Some(pod), &mut changed);
        }
        changed
    }

    /// Whose `address` is; it must be canonical (no v4-mapped IPv6).
    #[must_use]
    pub fn claim(&self, address: IpAddr) -> Claim {
        let Some(claimants) = self.claimants.get(&address) else { return Claim::Nobody };
        let mut pods = claimants.iter().filter_map(|uid| self.pods.get(uid));
        let standing = match claimants.len() {
            1 => pods.next(),
            _ => {
                let mut standing = pods.filter(|pod| !pod.yields());
                let first = standing.next();
                if standing.next().is_some() { None } else { first }
            }
        };
        standing.map_or(Claim::Disputed, |pod| Claim::Pod(Arc::clone(pod)))
    }

    /// The pod with this UID.
    #[must_use]
    pub fn get(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Whether some pod of this node has no address yet, so that an unknown address may turn out to be its.
    #[must_use]
    pub fn awaits_addresses(&self) -> bool {
        self.pods.values().any(|pod| pod.awaits_address())
    }

    /// Addresses that several pods claim, with none served.
    #[must_use]
    pub fn disputed(&self) -> usize {
        self.claimants.keys().filter(|address| self.claim(**address) == Claim::Disputed).count()
    }

    fn replace(&mut self, uid: PodUid, new: Option<Pod>, changed: &mut Changed) {
        if new.as_ref().is_none_or(|pod| pod.finished) {
            changed.gone.insert(uid.clone());
        }
        let old = match new {
            Some(pod) => {
                for address in pod.claims() {
                    self.claimants.entry(*address).or_default().insert(uid.clone());
                    changed.addresses.insert(*address);
                }
                self.pods.insert(uid.clone(), Arc::new(pod))
            }
            None => self.pods.remove(&uid),
        };
        let keeps = self.pods.get(&uid).cloned();
        for address in old.iter().flat_map(|pod| pod.claims()) {
            changed.addresses.insert(*address);
            if keeps.as_ref().is_some_and(|pod| pod.claims().contains(address)) {
                continue;
            }
            if let Some(claimants) = self.claimants.get_mut(address) {
                claimants.remove(&uid);
                if claimants.is_empty() {
                    self.claimants.remove(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
