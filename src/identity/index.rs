//! The pod index: which pod an address belongs to. Pure: no I/O, no clock, no tokio.
//!
//! Owns the pods of this node by UID and the claims on addresses, each with the link that it is bound to. It
//! does not know roles.
//! Invariant: [`PodIndex::claim`] names a pod only while exactly one living pod can be meant, and its link lives.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    binding::{Binding, Link, Links, Reason, Standing},
    legacy::PodAnnotations,
    names::{Namespace, PodUid, ServiceAccountName},
};

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
    /// `status.startTime`, else `metadata.creationTimestamp`, but not ahead of our clock: seconds since the Unix epoch.
    pub started: u64,
    /// The same as it was told, which may be ahead of our clock.
    pub start_time: u64,
    /// When its newest container started, in seconds since the Unix epoch; `None` before the first one.
    pub container_started: Option<u64>,
    /// Audiences of the tokens that its own volumes bring it.
    pub token_audiences: Vec<String>,
    /// What its annotations say, if they name a role and are heeded.
    pub legacy: Option<Box<PodAnnotations>>,
}

impl Pod {
    /// The addresses that are this pod's alone as far as it knows.
    fn claims(&self) -> &[IpAddr] {
        if self.may_ask() { &self.addresses } else { &[] }
    }

    /// Whether its address tells it apart, and it has not ended.
    #[must_use]
    pub fn may_ask(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Whether it is known by its cgroup alone, for its addresses are the node's; and has not ended.
    #[must_use]
    pub fn is_on_host(&self) -> bool {
        self.host_network && !self.finished
    }

    /// Gives way to another claimant of its address: kubelet frees an address before the pod is gone.
    fn yields(&self) -> bool {
        self.terminating || !self.running
    }

    fn awaits_address(&self) -> bool {
        self.may_ask() && self.addresses.is_empty()
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
    /// That of a pod whose link ended or changed.
    Suspended,
    /// That of a pod whose link was not found yet.
    Unbound,
}

/// What a change touched; the caller looks the rest up.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Addresses whose claim may have changed.
    pub addresses: BTreeSet<IpAddr>,
    /// Pods that came, changed or went.
    pub pods: BTreeSet<PodUid>,
    /// Why claims were suspended, once for each.
    pub suspended: Vec<Reason>,
}

/// The pods of this node.
#[derive(Debug, Default)]
pub struct PodIndex {
    binding: Binding,
    links: Links,
    pods: HashMap<PodUid, Arc<Pod>>,
    claimants: HashMap<IpAddr, BTreeMap<PodUid, Standing>>,
}

impl PodIndex {
    /// An empty index.
    #[must_use]
    pub fn new(binding: Binding) -> Self {
        Self { binding, ..Self::default() }
    }

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
        let Some((pod, standing)) = self.meant(claimants) else {
            let all_suspended = claimants.values().all(|standing| standing.is_suspended());
            return if all_suspended { Claim::Suspended } else { Claim::Disputed };
        };
        match self.binding {
            Binding::Required if !standing.is_bound() => Claim::Unbound,
            Binding::Required | Binding::WhereFound => Claim::Pod(Arc::clone(pod)),
        }
    }

    /// The one claimant that can be meant: one whose link is gone yields to all others.
    fn meant(&self, claimants: &BTreeMap<PodUid, Standing>) -> Option<(&Arc<Pod>, Standing)> {
        let unsuspended = claimants.iter().filter(|(_, standing)| !standing.is_suspended());
        let alone = unsuspended.clone().count() == 1;
        let pods = unsuspended.filter_map(|(uid, standing)| Some((self.pods.get(uid)?, *standing)));
        let mut standing = pods.filter(|(pod, _)| alone || !pod.yields());
        let first = standing.next();
        if standing.next().is_some() { None } else { first }
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

    /// Whether it has addresses, and what comes from them is answered at none as this pod's.
    #[must_use]
    pub fn is_withheld(&self, pod: &Pod) -> bool {
        let is_its = |address: &IpAddr| matches!(self.claim(*address), Claim::Pod(of) if of.uid == pod.uid);
        !pod.addresses.is_empty() && !pod.addresses.iter().any(is_its)
    }

    /// Addresses that several pods claim, with none served; and those whose pod is suspended.
    #[must_use]
    pub fn withheld(&self) -> (usize, usize) {
        let count = |wanted: &Claim| self.claimants.keys().filter(|address| self.claim(**address) == *wanted).count();
        (count(&Claim::Disputed), count(&Claim::Suspended))
    }

    // What the kernel says of links.

    /// These are all the links there are. At the `first` time nothing is known of when they appeared.
    pub fn links_are(&mut self, all: &BTreeSet<u32>, first: bool, now: u64) -> Changed {
        let mut changed = Changed::default();
        let ended = self.links.living().filter(|index| !all.contains(index)).collect::<Vec<_>>();
        for index in ended {
            self.link_ended_into(index, now, &mut changed);
            self.links.ended(index);
        }
        for index in all {
            if first { self.links.was_there(*index) } else { self.links.appeared(*index, now) }
        }
        changed
    }

    /// There is a link.
    pub fn link_appeared(&mut self, index: u32, now: u64) {
        self.links.appeared(index, now);
    }

    /// A link is no more.
    pub fn link_ended(&mut self, index: u32, now: u64) -> Changed {
        let changed = self.link_left(index, now);
        self.links.ended(index);
        changed
    }

    /// A link is there, but no longer leads to what it led to.
    pub fn link_left(&mut self, index: u32, now: u64) -> Changed {
        let mut changed = Changed::default();
        self.link_ended_into(index, now, &mut changed);
        changed
    }

    fn link_ended_into(&mut self, index: u32, now: u64, changed: &mut Changed) {
        for (address, claimants) in &mut self.claimants {
            for (uid, standing) in claimants {
                let known = self.pods.get(uid).and_then(|pod| pod.container_started);
                if let Some(reason) = standing.ended(index, known, now) {
                    changed.addresses.insert(*address);
                    changed.suspended.push(reason);
                }
            }
        }
    }

    /// News of links was lost: no claim stands until its link is found to be the same as before.
    pub fn doubt_all(&mut self, now: u64) -> Changed {
        let mut changed = Changed::default();
        for (address, claimants) in &mut self.claimants {
            for (uid, standing) in claimants {
                if standing.doubt(self.pods.get(uid).and_then(|pod| pod.container_started), now) {
                    changed.addresses.insert(*address);
                }
            }
        }
        changed
    }

    /// It was looked which link leads to `address`, on behalf of these claimants.
    pub fn looked(&mut self, address: IpAddr, on_behalf: &BTreeSet<PodUid>, found: Option<Link>, now: u64) -> Changed {
        let mut changed = Changed::default();
        let Some(claimants) = self.claimants.get(&address) else { return changed };
        let meant = self.meant(claimants).map(|(pod, _)| pod.uid.clone());
        // A link that is one claimant's is not another's.
        let taken = claimants.values().any(|standing| found.is_some() && standing.link() == found);
        let Some(claimants) = self.claimants.get_mut(&address) else { return changed };
        for (uid, standing) in claimants.iter_mut().filter(|(uid, _)| on_behalf.contains(*uid)) {
            let known = self.pods.get(uid).and_then(|pod| pod.container_started);
            let before = *standing;
            let reason = standing.looked(found, meant.as_ref() == Some(uid) && !taken, &self.links, known, now);
            changed.suspended.extend(reason);
            if *standing != before {
                changed.addresses.insert(address);
            }
        }
        changed
    }

    /// The claimants of `address`.
    #[must_use]
    pub fn claimants(&self, address: IpAddr) -> BTreeSet<PodUid> {
        self.claimants.get(&address).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// How a pod's claim of `address` stands.
    pub(super) fn standing(&self, address: IpAddr, uid: &PodUid) -> Option<Standing> {
        self.claimants.get(&address)?.get(uid).copied()
    }

    /// Whether some claimant's link was never looked for.
    #[must_use]
    pub fn unlooked(&self, address: IpAddr) -> bool {
        let claimants = self.claimants.get(&address);
        claimants.is_some_and(|claimants| claimants.values().any(|standing| *standing == Standing::New))
    }

    /// Claimed addresses, and the links that they are bound to.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, Option<Link>)> {
        self.claimants.iter().map(|(address, claimants)| (*address, claimants.values().find_map(|s| s.link())))
    }

    fn replace(&mut self, uid: PodUid, new: Option<Pod>, changed: &mut Changed) {
        changed.pods.insert(uid.clone());
        let old = match new {
            Some(mut pod) => {
                // Of a time that is ahead of our clock the first that was told counts: our clock goes on.
                if let Some(before) = self.pods.get(&uid).filter(|before| before.start_time == pod.start_time) {
                    pod.started = pod.started.min(before.started);
                }
                for address in pod.claims() {
                    let claimants = self.claimants.entry(*address).or_default();
                    claimants.entry(uid.clone()).or_default().told(pod.container_started);
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
impl Pod {
    /// A running pod, named as its UID, of service account `web` in `team-a`.
    pub(crate) fn sample(uid: &str, addresses: &[IpAddr]) -> Self {
        Self {
            uid: uid.into(),
            namespace: "team-a".into(),
            name: uid.into(),
            service_account: "web".into(),
            host_network: false,
            finished: false,
            terminating: false,
            running: true,
            addresses: addresses.to_vec(),
            started: 0,
            start_time: 0,
            container_started: Some(0),
            token_audiences: Vec::new(),
            legacy: None,
        }
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
