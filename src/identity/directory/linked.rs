//! What the watch of links writes to the directory, and what it is asked to look at.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{MutexGuard, PoisonError},
};

use super::{Directory, State};
use crate::identity::{
    binding::{Link, Reason},
    index::Changed,
    names::PodUid,
};

impl Directory {
    /// These are all the links there are; why claims were suspended thereby.
    pub fn links_are(&self, all: &BTreeSet<u32>, first: bool, now: u64) -> Vec<Reason> {
        self.change(|state| state.index.links_are(all, first, now))
    }

    /// There is a link.
    pub fn link_appeared(&self, index: u32, now: u64) {
        self.state().index.link_appeared(index, now);
    }

    /// A link is no more; why claims were suspended thereby.
    pub fn link_ended(&self, index: u32, now: u64) -> Vec<Reason> {
        self.change(|state| state.index.link_ended(index, now))
    }

    /// A link no longer leads to what it led to; why claims were suspended thereby.
    pub fn link_left(&self, index: u32, now: u64) -> Vec<Reason> {
        self.change(|state| state.index.link_left(index, now))
    }

    /// News of links was lost.
    pub fn doubt_all(&self, now: u64) {
        self.change(|state| state.index.doubt_all(now));
    }

    /// This link was found to lead to `address`, when it was looked on behalf of these claimants; why claims
    /// were suspended thereby.
    pub fn looked(&self, address: IpAddr, on_behalf: &BTreeSet<PodUid>, found: Option<Link>, now: u64) -> Vec<Reason> {
        self.change(|state| state.index.looked(address, on_behalf, found, now))
    }

    /// Which addresses are to be looked at, each on behalf of whom; they are not named again.
    #[must_use]
    pub fn wanted(&self) -> Vec<(IpAddr, BTreeSet<PodUid>)> {
        let mut state = self.state();
        let wanted = std::mem::take(&mut state.wanted);
        wanted.into_iter().map(|address| (address, state.index.claimants(address))).collect()
    }

    /// Waits until there are addresses to be looked at.
    pub async fn something_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Asks that the claimed addresses for which `which` holds, with the links that they are bound to, be looked at.
    pub fn look_again(&self, which: impl Fn(IpAddr, Option<Link>) -> bool) {
        let mut state = self.state();
        let addresses = state.index.addresses().filter(|(address, link)| which(*address, *link));
        let addresses = addresses.map(|(address, _)| address).collect::<Vec<_>>();
        self.want(&mut state, addresses);
    }

    pub(super) fn want(&self, state: &mut MutexGuard<'_, State>, addresses: impl IntoIterator<Item = IpAddr>) {
        let before = state.wanted.len();
        state.wanted.extend(addresses);
        if state.wanted.len() > before {
            self.wanted.notify_one();
        }
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Changed) -> Vec<Reason> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        if !changed.addresses.is_empty() {
            self.publish(&mut state, &changed);
        }
        changed.suspended
    }
}
