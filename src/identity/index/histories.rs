//! The index under random histories.
//!
//! In the first kind there is a real world: pods with networks, a kubelet, an API server that tells late, again or
//! from long ago, a kernel that tells at once or loses news. Whatever the index is told, it must name the pod
//! whose link leads to the address, or none. In the second kind anything at all is told, and a plain model
//! says what the answer is.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::histories::all;

const ADDRESSES: [IpAddr; 3] = [address(1), address(2), address(3)];
/// Of each kind.
const CASES: u64 = 60_000;
const CASES_AT_LENGTH: u64 = 5_000_000;
/// A container's start counts in seconds: one that starts so long after another's can be told from it.
const LONG_ENOUGH: u64 = 3;

const fn address(last: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, last))
}

#[test]
fn whatever_is_told_late_an_address_is_that_of_the_pod_whose_link_leads_there_or_nobodys() {
    all(CASES, World::live);
}

#[test]
fn whatever_is_told_the_answer_is_that_of_a_plain_model() {
    all(CASES, Model::live);
}

#[test]
#[ignore = "takes minutes: make test-histories"]
fn ten_million_histories() {
    all(CASES_AT_LENGTH, World::live);
    all(CASES_AT_LENGTH, Model::live);
}

/// Nothing is kept but of pods that are there and claim the address.
fn assert_tidy(index: &PodIndex) {
    for (address, claimants) in &index.claimants {
        assert!(!claimants.is_empty());
        for uid in claimants.keys() {
            assert!(index.pods[uid].claims().contains(address), "{uid} no longer claims {address}");
        }
    }
}

// === The world ===

#[derive(Default)]
struct World {
    now: u64,
    next: u32,
    pods: Vec<RealPod>,
    /// The link that leads to an address, and the pod at its other end.
    leads: HashMap<IpAddr, (u32, usize)>,
    /// What the API server was told, in order.
    told: Vec<Told>,
    /// How much of it has reached us.
    heard: usize,
    /// The API server tells at once and in order, so that time need not pass between pods.
    orderly: bool,
    /// Nobody knows which link leads to an address before somebody asks from there.
    bridge: bool,
    asked: HashSet<u32>,
    /// News of links is being lost.
    deaf: bool,
    /// A look that was made and whose result is on its way.
    looked: Option<(IpAddr, BTreeSet<PodUid>, Option<Link>)>,
    index: PodIndex,
}

struct RealPod {
    pod: Pod,
    link: Option<u32>,
    deleted: bool,
}

#[derive(Clone)]
enum Told {
    Applied(Pod),
    Deleted(PodUid),
}

impl World {
    fn live(random: &mut fastrand::Rng) {
        let (orderly, bridge) = (random.bool(), random.bool());
        let index = PodIndex::new(Binding::Required);
        let mut world = Self { now: 1000, orderly, bridge, index, ..Self::default() };
        world.index.links_are(&BTreeSet::new(), true, world.now);
        for _ in 0..random.u32(5..40) {
            world.step(random);
            world.check();
        }
        world.settle();
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        let address = ADDRESSES[random.usize(..ADDRESSES.len())];
        let some = (!self.pods.is_empty()).then(|| random.usize(..self.pods.len()));
        match (random.u8(..20), some) {
            (0..=2, _) | (_, None) => self.create(random),
            (3..=5, Some(pod)) => self.start_network(pod, address),
            (6..=8, Some(pod)) => self.start_container(pod, random.bool()),
            (9, Some(pod)) => {
                self.pods[pod].pod.terminating = true;
                self.tell(pod);
            }
            (10 | 11, Some(pod)) => self.end_network(pod),
            (12, Some(pod)) => {
                self.pods[pod].pod.running = false;
                self.pods[pod].pod.finished |= random.bool();
                self.tell(pod);
            }
            (13, Some(pod)) => self.delete(pod),
            (14 | 15, _) => (0..random.u8(1..4)).for_each(|_| self.hear()),
            (16, _) => self.list(random),
            (17, _) => self.look_later(address, random.bool()),
            (18, _) => self.lose_and_find(random),
            (_, _) => self.ask(address),
        }
        self.now += random.u64(..2);
    }

    fn create(&mut self, random: &mut fastrand::Rng) {
        let host_network = random.u8(..8) == 0;
        let uid = format!("{}", self.pods.len());
        let addresses = if host_network { vec![ADDRESSES[0]] } else { Vec::new() };
        let pod = Pod { host_network, running: host_network, container_started: None, ..Pod::sample(&uid, &addresses) };
        self.pods.push(RealPod { pod, link: None, deleted: false });
        self.tell(self.pods.len() - 1);
    }

    fn start_network(&mut self, number: usize, address: IpAddr) {
        let RealPod { pod, link, .. } = &self.pods[number];
        if link.is_some() || pod.host_network || pod.finished || self.leads.contains_key(&address) {
            return;
        }
        if self.orderly && !self.deaf {
            (0..self.pods.len()).for_each(|number| self.tell(number));
            while self.heard < self.told.len() {
                self.hear();
            }
        } else {
            self.now += LONG_ENOUGH;
        }
        let real = &mut self.pods[number];
        self.next += 1;
        real.link = Some(self.next);
        real.pod.addresses = vec![address];
        real.pod.running = false;
        self.leads.insert(address, (self.next, number));
        if !self.deaf {
            self.index.link_appeared(self.next, self.now);
        }
    }

    fn start_container(&mut self, number: usize, tell: bool) {
        let real = &mut self.pods[number];
        if real.link.is_some() && !real.pod.finished {
            real.pod.running = true;
            real.pod.container_started = Some(self.now);
        }
        if tell {
            self.tell(number);
        }
    }

    fn end_network(&mut self, number: usize) {
        let Some(link) = self.pods[number].link.take() else { return };
        self.pods[number].pod.running = false;
        self.leads.retain(|_, (led, _)| *led != link);
        if !self.deaf {
            self.index.link_ended(link, self.now);
        }
    }

    fn delete(&mut self, number: usize) {
        // Force or not: the network may still be there.
        if !std::mem::replace(&mut self.pods[number].deleted, true) {
            self.told.push(Told::Deleted(self.pods[number].pod.uid.clone()));
        }
    }

    fn tell(&mut self, number: usize) {
        let real = &self.pods[number];
        // Kubelet tells of an address once a container has started on it.
        let mut pod = real.pod.clone();
        if !pod.host_network && pod.container_started.is_none() {
            pod.addresses.clear();
        }
        if !real.deleted {
            self.told.push(Told::Applied(pod));
        }
    }

    fn hear(&mut self) {
        let Some(told) = self.told.get(self.heard).cloned() else { return };
        self.heard += 1;
        match told {
            Told::Applied(pod) => self.index.apply(pod),
            Told::Deleted(uid) => self.index.delete(&uid),
        };
        // Each new claim is looked at before anything else happens to it.
        self.look_at_new();
    }

    /// A list: of now, or from an API server that lags.
    fn list(&mut self, random: &mut fastrand::Rng) {
        self.heard = if self.orderly || random.bool() { self.told.len() } else { random.usize(..=self.told.len()) };
        let mut pods = HashMap::new();
        for told in &self.told[..self.heard] {
            match told {
                Told::Applied(pod) => drop(pods.insert(pod.uid.clone(), pod.clone())),
                Told::Deleted(uid) => drop(pods.remove(uid)),
            }
        }
        self.index.reset(pods.into_values().collect());
        self.look_at_new();
    }

    fn leading_to(&self, address: IpAddr) -> Option<Link> {
        let (index, _) = self.leads.get(&address)?;
        (!self.bridge || self.asked.contains(index)).then_some(Link { index: *index, mac: None })
    }

    fn look_at_new(&mut self) {
        for address in ADDRESSES {
            if self.index.unlooked(address) {
                self.look(address);
            }
        }
    }

    fn look(&mut self, address: IpAddr) {
        if !self.deaf {
            let on_behalf = self.index.claimants(address);
            self.index.looked(address, &on_behalf, self.leading_to(address), self.now);
        }
    }

    fn ask(&mut self, address: IpAddr) {
        self.asked.extend(self.leads.get(&address).map(|(index, _)| index));
        self.look(address);
    }

    fn look_later(&mut self, address: IpAddr, another_answers: bool) {
        if self.deaf {
            return;
        }
        if let Some((address, on_behalf, found)) = self.looked.take() {
            self.index.looked(address, &on_behalf, found, self.now);
        } else {
            self.looked = Some((address, self.index.claimants(address), self.leading_to(address)));
        }
        if let (true, Claim::Pod(pod), Some(link)) =
            (another_answers, self.index.claim(address), self.leading_to(address))
        {
            let other = Link { mac: Some([2; 6]), ..link };
            self.index.looked(address, &[pod.uid.clone()].into(), Some(other), self.now);
            assert!(!matches!(self.index.claim(address), Claim::Pod(_)), "another hardware address answers");
            self.index.looked(address, &[pod.uid.clone()].into(), Some(link), self.now);
            assert_eq!(self.index.claim(address), Claim::Pod(pod), "its own answers again");
        }
    }

    fn lose_and_find(&mut self, random: &mut fastrand::Rng) {
        if !self.deaf && random.bool() {
            self.deaf = true;
            return;
        }
        self.deaf = false;
        self.looked = None;
        self.index.doubt_all(self.now);
        let links = self.pods.iter().filter_map(|real| real.link).collect();
        self.index.links_are(&links, false, self.now);
        ADDRESSES.into_iter().for_each(|address| self.look(address));
    }

    fn check(&self) {
        assert_tidy(&self.index);
        for address in ADDRESSES.into_iter().filter(|_| !self.deaf) {
            if let Claim::Pod(pod) = self.index.claim(address) {
                let real = self.leads.get(&address).map(|(_, number)| self.pods[*number].pod.uid.clone());
                assert_eq!(Some(&pod.uid), real.as_ref(), "{address}");
            }
        }
    }

    /// All is told; then pods that live are served, and of those that are gone nothing is left.
    fn settle(&mut self) {
        let was_deaf = self.deaf;
        self.deaf = false;
        self.index.doubt_all(self.now);
        let links = self.pods.iter().filter_map(|real| real.link).collect();
        self.index.links_are(&links, false, self.now);
        self.looked = None;
        for number in 0..self.pods.len() {
            self.now += LONG_ENOUGH;
            // A container that restarts: what was in doubt is no longer.
            if was_deaf || self.pods[number].pod.container_started.is_some() {
                self.start_container(number, false);
            }
            self.tell(number);
        }
        while self.heard < self.told.len() {
            self.hear();
            self.check();
        }
        for (address, (_, number)) in self.leads.clone() {
            let (pod, deleted) = (self.pods[number].pod.clone(), self.pods[number].deleted);
            if !deleted && !pod.finished && pod.container_started.is_some() && !pod.yields() {
                self.ask(address);
                assert_eq!(self.index.claim(address), Claim::Pod(Arc::new(pod)), "{address}");
            }
        }
        for number in 0..self.pods.len() {
            self.delete(number);
        }
        while self.heard < self.told.len() {
            self.hear();
        }
        assert!(self.index.pods.is_empty() && self.index.claimants.is_empty());
    }
}

// === The plain model ===

/// Every pod as it was last told, every claim's fate in lists, and each answer worked out from the beginning.
#[derive(Default)]
struct Model {
    pods: Vec<Pod>,
    links: Vec<u32>,
    bound: Vec<(PodUid, IpAddr, Link)>,
    /// With the link while it lives, and what a container's start must exceed.
    suspended: Vec<(PodUid, IpAddr, Option<Link>, u64)>,
}

impl Model {
    fn live(random: &mut fastrand::Rng) {
        let (mut model, mut index) = (Self::default(), PodIndex::default());
        model.links = vec![1, 2, 3];
        index.links_are(&[1, 2, 3].into(), true, 0);
        for now in 1..random.u64(5..40) {
            let uid = PodUid::from(["a", "b", "c"][random.usize(..3)]);
            let address = ADDRESSES[random.usize(..2)];
            let link = Link { index: random.u32(1..4), mac: random.bool().then_some([2; 6]) };
            match random.u8(..13) {
                12 => {
                    model.suspend(|_, _, _| true, true, now);
                    index.doubt_all(now);
                }
                0..=4 => {
                    let pod = any_pod(random, uid.clone(), now);
                    model.apply(pod.clone());
                    index.apply(pod);
                }
                5 => {
                    model.pods.retain(|pod| pod.uid != uid);
                    index.delete(&uid);
                }
                6 => {
                    let uids = ["a", "b", "c"].into_iter().filter(|_| random.bool()).collect::<Vec<_>>();
                    let pods = uids.into_iter().map(|uid| any_pod(random, uid.into(), now)).collect::<Vec<_>>();
                    model.pods.retain(|old| pods.iter().any(|pod| pod.uid == old.uid));
                    model.forget();
                    pods.iter().for_each(|pod| model.apply(pod.clone()));
                    index.reset(pods);
                }
                7 => {
                    model.link_ended(link.index, now);
                    index.link_ended(link.index, now);
                }
                _ => {
                    let found = (random.u8(..6) != 0).then_some(link);
                    // Of those that claimed it when the look began, some still do.
                    let mut on_behalf = index.claimants(address);
                    on_behalf.retain(|_| random.u8(..4) != 0);
                    model.looked(address, &on_behalf, found, now);
                    index.looked(address, &on_behalf, found, now);
                }
            }
            model.forget();
            assert_tidy(&index);
            for address in ADDRESSES {
                assert_eq!(index.claim(address), model.claim(address), "{address} at {now}");
            }
        }
    }

    fn claimants(&self, address: IpAddr) -> Vec<&Pod> {
        let claim = |pod: &&Pod| !pod.host_network && !pod.finished && pod.addresses.contains(&address);
        self.pods.iter().filter(claim).collect()
    }

    fn unsuspended(&self, address: IpAddr) -> Vec<&Pod> {
        let mut claimants = self.claimants(address);
        claimants.retain(|pod| !self.suspended.iter().any(|(uid, of, ..)| *uid == pod.uid && *of == address));
        claimants
    }

    fn claim(&self, address: IpAddr) -> Claim {
        let (all, unsuspended) = (self.claimants(address), self.unsuspended(address));
        match (all.len(), unsuspended.len()) {
            (0, _) => Claim::Nobody,
            (_, 0) => Claim::Suspended,
            _ => self.meant(address).map_or(Claim::Disputed, |pod| Claim::Pod(Arc::new(pod.clone()))),
        }
    }

    fn meant(&self, address: IpAddr) -> Option<&Pod> {
        let mut pods = self.unsuspended(address);
        if pods.len() > 1 {
            pods.retain(|pod| pod.running && !pod.terminating);
        }
        if pods.len() == 1 { pods.pop() } else { None }
    }

    fn apply(&mut self, pod: Pod) {
        self.pods.retain(|old| old.uid != pod.uid);
        let started = pod.container_started.unwrap_or_default();
        self.suspended
            .retain(|(uid, of, _, after)| *uid != pod.uid || !pod.addresses.contains(of) || started <= *after);
        self.pods.push(pod);
    }

    /// Forgets the fate of claims that are no more.
    fn forget(&mut self) {
        let claims = ADDRESSES.iter().flat_map(|a| self.claimants(*a).into_iter().map(|pod| (pod.uid.clone(), *a)));
        let claims = claims.collect::<HashSet<_>>();
        self.bound.retain(|(uid, of, _)| claims.contains(&(uid.clone(), *of)));
        self.suspended.retain(|(uid, of, ..)| claims.contains(&(uid.clone(), *of)));
    }

    fn suspend(&mut self, which: impl Fn(&PodUid, IpAddr, Link) -> bool, keeps_link: bool, now: u64) {
        let (suspended, bound) = std::mem::take(&mut self.bound).into_iter().partition(|(u, a, l)| which(u, *a, *l));
        self.bound = bound;
        for (uid, address, link) in Vec::from_iter::<Vec<(PodUid, IpAddr, Link)>>(suspended) {
            let known = self.pods.iter().find(|pod| pod.uid == uid).and_then(|pod| pod.container_started);
            self.suspended.push((uid, address, keeps_link.then_some(link), now.max(known.unwrap_or_default())));
        }
    }

    fn link_ended(&mut self, index: u32, now: u64) {
        self.links.retain(|link| *link != index);
        self.suspend(|_, _, link| link.index == index, false, now);
        for (_, _, was, _) in &mut self.suspended {
            was.take_if(|was| was.index == index);
        }
    }

    fn looked(&mut self, address: IpAddr, on_behalf: &BTreeSet<PodUid>, found: Option<Link>, now: u64) {
        let Some(found) = found.filter(|link| self.links.contains(&link.index)) else { return };
        // Who was meant before the look.
        let meant = self.meant(address).filter(|pod| on_behalf.contains(&pod.uid)).cloned();
        let taken = self.bound.iter().any(|(_, of, link)| *of == address && *link == found);
        self.suspend(|uid, of, link| on_behalf.contains(uid) && of == address && link != found, true, now);
        let back = |(uid, of, was, _): &(PodUid, IpAddr, Option<Link>, u64)| {
            on_behalf.contains(uid) && *of == address && *was == Some(found)
        };
        let returned = self.suspended.iter().filter(|entry| back(entry)).map(|entry| entry.0.clone());
        let returned = returned.collect::<Vec<_>>();
        self.suspended.retain(|entry| !back(entry));
        self.bound.extend(returned.into_iter().map(|uid| (uid, address, found)));
        if let Some(pod) = meant
            && !taken
            && pod.container_started.is_some()
            && !self.bound.iter().any(|(uid, of, _)| *uid == pod.uid && *of == address)
            && !self.suspended.iter().any(|(uid, of, ..)| *uid == pod.uid && *of == address)
        {
            self.bound.push((pod.uid, address, found));
        }
    }
}

fn any_pod(random: &mut fastrand::Rng, uid: PodUid, now: u64) -> Pod {
    let addresses = ADDRESSES[..2].iter().copied().filter(|_| random.bool()).collect();
    Pod {
        uid,
        host_network: random.u8(..8) == 0,
        finished: random.u8(..8) == 0,
        terminating: random.u8(..4) == 0,
        running: random.u8(..4) != 0,
        container_started: random.bool().then(|| random.u64(..=now)),
        addresses,
        ..Pod::sample("", &[])
    }
}
