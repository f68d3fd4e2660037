//! The directory: address → pod and role, as requests read it.
//!
//! Owns the one place where pods and service accounts meet. The watches write to it; a request reads
//! one map entry, which was made when something changed. It does no I/O.
//! Invariant: an entry names a pod and a role only while both are known for certain.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dashmap::DashMap;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    binding::Binding,
    index::{Changed, Claim, Pod, PodIndex},
    names::{Namespace, NotARoleArn, PodUid, RoleArn, ServiceAccountName, ServiceAccountUid},
};

mod linked;

/// How often it is looked again which link leads to an address while somebody waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The role of a pod's service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not known yet: the namespace's service accounts are still being read.
    Unknown,
    /// The service account names none.
    None,
    /// The service account names something that is no role.
    Invalid(NotARoleArn),
    /// This one.
    Granted(Arc<Grant>),
}

/// What a pod is entitled to. Two grants are the same when pod UID, role and account are.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The role to assume.
    pub role: RoleArn,
    /// The service account that names it.
    pub account: ServiceAccountUid,
}

impl PartialEq for Grant {
    fn eq(&self, other: &Self) -> bool {
        self.pod.uid == other.pod.uid && self.role == other.role && self.account == other.account
    }
}

impl Eq for Grant {}

/// A pod that may ask, and what it is entitled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its service account's role.
    pub role: Role,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One pod's.
    Caller(Arc<Caller>),
    /// Nobody's for now.
    Withheld(Unidentified),
}

/// Why nobody could be found behind an address in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unidentified {
    /// It may be that of a pod which we do not know yet: worth asking again.
    NotYet,
    /// Several pods claim it.
    Disputed,
    /// Its pod's link ended or changed.
    Suspended,
    /// Its pod is known, but the link that leads there cannot be said to be the pod's.
    Unbound,
    /// All pods of this node are known, and it is none of theirs.
    Nobody,
}

impl Unidentified {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NotYet => "not_yet_known",
            Self::Disputed => "disputed",
            Self::Suspended => "suspended",
            Self::Unbound => "unbound",
            Self::Nobody => "unknown",
        }
    }
}

/// A service account as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.uid`.
    pub uid: ServiceAccountUid,
    /// The `role-arn` annotation.
    pub role_arn: Option<String>,
}

impl ServiceAccount {
    fn role(&self, pod: &Arc<Pod>) -> Role {
        match self.role_arn.as_deref() {
            // The EKS webhook takes an empty value for none.
            None | Some("") => Role::None,
            Some(text) => match text.parse() {
                Ok(role) => Role::Granted(Arc::new(Grant { pod: Arc::clone(pod), role, account: self.uid.clone() })),
                Err(error) => Role::Invalid(error),
            },
        }
    }
}

/// Called with a pod to which nothing that it got so far may be given any longer.
type OnRevoked = Box<dyn Fn(&PodUid) + Send + Sync>;

/// Address → pod and role.
pub struct Directory {
    entries: DashMap<IpAddr, Entry>,
    state: Mutex<State>,
    version: watch::Sender<u64>,
    namespaces: watch::Sender<BTreeSet<Namespace>>,
    wanted: Notify,
    on_revoked: OnRevoked,
}

#[derive(Default)]
struct State {
    index: PodIndex,
    /// Addresses to be looked at.
    wanted: BTreeSet<IpAddr>,
    pods_synced: bool,
    accounts: HashMap<Namespace, Accounts>,
}

#[derive(Default)]
struct Accounts {
    synced: bool,
    by_name: HashMap<ServiceAccountName, ServiceAccount>,
}

/// What the metrics show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Pods that are known.
    pub pods: usize,
    /// Addresses that several pods claim.
    pub disputed: usize,
    /// Addresses whose pod is suspended.
    pub suspended: usize,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("addresses", &self.entries.len()).finish_non_exhaustive()
    }
}

// === impl Directory ===

impl Directory {
    /// An empty directory. `on_revoked` is called, briefly and under a lock, with each pod that ended
    /// or whose role changed.
    #[must_use]
    pub fn new(binding: Binding, on_revoked: impl Fn(&PodUid) + Send + Sync + 'static) -> Self {
        Self {
            entries: DashMap::new(),
            state: Mutex::new(State { index: PodIndex::new(binding), ..State::default() }),
            wanted: Notify::new(),
            version: watch::Sender::new(0),
            namespaces: watch::Sender::default(),
            on_revoked: Box::new(on_revoked),
        }
    }

    /// What is known of `address` now; it must be canonical.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<Entry> {
        self.entries.get(&address).map(|entry| entry.value().clone())
    }

    /// Who is behind `address`, waiting until `deadline` for a pod or a role that is not known yet.
    ///
    /// # Errors
    /// Why it could not be said.
    pub async fn identify(&self, address: IpAddr, deadline: Instant) -> Result<Arc<Caller>, Unidentified> {
        if let Some(caller) = self.identified(address) {
            return Ok(caller);
        }
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            if let Some(caller) = self.identified(address) {
                return Ok(caller);
            }
            self.look_again(|claimed, _| claimed == address);
            let now = Instant::now();
            if now >= deadline {
                return Err(self.unidentified(address));
            }
            // Time is up or something changed: either way it is looked again.
            let _ = tokio::time::timeout_at(deadline.min(now + LOOK_AGAIN), version.changed()).await;
        }
    }

    /// Who is behind `address` now, if that and the role are known.
    #[must_use]
    pub fn identified(&self, address: IpAddr) -> Option<Arc<Caller>> {
        match self.entries.get(&address)?.value() {
            Entry::Caller(caller) if caller.role != Role::Unknown => Some(Arc::clone(caller)),
            Entry::Caller(_) | Entry::Withheld(_) => None,
        }
    }

    fn unidentified(&self, address: IpAddr) -> Unidentified {
        match self.get(address) {
            Some(Entry::Withheld(why)) => why,
            Some(Entry::Caller(_)) => Unidentified::NotYet,
            None => {
                let state = self.state();
                if state.pods_synced && !state.index.awaits_addresses() {
                    Unidentified::Nobody
                } else {
                    Unidentified::NotYet
                }
            }
        }
    }

    /// Whether the grant's pod is alive and still entitled to it.
    #[must_use]
    pub fn entitled(&self, grant: &Grant) -> bool {
        let state = self.state();
        state
            .index
            .get(&grant.pod.uid)
            .is_some_and(|pod| !pod.finished && matches!(state.role(pod), Role::Granted(current) if *current == *grant))
    }

    /// Whether pods and the service accounts of their namespaces have been read.
    #[must_use]
    pub fn synced(&self) -> bool {
        let state = self.state();
        state.pods_synced
            && self.namespaces.borrow().iter().all(|namespace| state.accounts.get(namespace).is_some_and(|a| a.synced))
    }

    /// The namespaces whose service accounts we need to know.
    #[must_use]
    pub fn namespaces(&self) -> watch::Receiver<BTreeSet<Namespace>> {
        self.namespaces.subscribe()
    }

    /// What the metrics show.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let state = self.state();
        let (disputed, suspended) = state.index.withheld();
        Figures { pods: state.index.pods().count(), disputed, suspended }
    }

    // What the watches write.

    /// A pod appeared or changed.
    pub fn apply_pod(&self, pod: Pod) {
        let mut state = self.state();
        let changed = state.index.apply(pod);
        self.publish(&mut state, &changed);
    }

    /// A pod is gone.
    pub fn delete_pod(&self, uid: &PodUid) {
        let mut state = self.state();
        let changed = state.index.delete(uid);
        self.publish(&mut state, &changed);
    }

    /// These are all the pods of this node.
    pub fn reset_pods(&self, pods: Vec<Pod>) {
        let mut state = self.state();
        let changed = state.index.reset(pods);
        state.pods_synced = true;
        self.publish(&mut state, &changed);
    }

    /// A service account appeared or changed.
    pub fn apply_account(&self, namespace: &Namespace, name: ServiceAccountName, account: ServiceAccount) {
        let mut state = self.state();
        state.accounts.entry(namespace.clone()).or_default().by_name.insert(name, account);
        self.publish_namespace(&mut state, namespace);
    }

    /// A service account is gone; a later one of the same name has another UID and stays.
    pub fn delete_account(&self, namespace: &Namespace, name: &ServiceAccountName, uid: &ServiceAccountUid) {
        let mut state = self.state();
        if let Some(accounts) = state.accounts.get_mut(namespace)
            && accounts.by_name.get(name).is_some_and(|account| account.uid == *uid)
        {
            accounts.by_name.remove(name);
        }
        self.publish_namespace(&mut state, namespace);
    }

    /// These are all the service accounts of a namespace.
    pub fn reset_accounts(&self, namespace: &Namespace, accounts: HashMap<ServiceAccountName, ServiceAccount>) {
        let mut state = self.state();
        state.accounts.insert(namespace.clone(), Accounts { synced: true, by_name: accounts });
        self.publish_namespace(&mut state, namespace);
    }

    /// A namespace's service accounts are no longer watched.
    pub fn forget_accounts(&self, namespace: &Namespace) {
        let mut state = self.state();
        state.accounts.remove(namespace);
        self.publish_namespace(&mut state, namespace);
    }

    fn publish_namespace(&self, state: &mut MutexGuard<'_, State>, namespace: &Namespace) {
        let pods = state.index.pods().filter(|pod| pod.namespace == *namespace);
        let addresses = pods.flat_map(|pod| pod.addresses.iter().copied()).collect();
        self.publish(state, &Changed { addresses, ..Changed::default() });
    }

    fn publish(&self, state: &mut MutexGuard<'_, State>, changed: &Changed) {
        for address in &changed.addresses {
            let new = match state.index.claim(*address) {
                Claim::Nobody => None,
                Claim::Disputed => Some(Entry::Withheld(Unidentified::Disputed)),
                Claim::Suspended => Some(Entry::Withheld(Unidentified::Suspended)),
                Claim::Unbound => Some(Entry::Withheld(Unidentified::Unbound)),
                Claim::Pod(pod) => Some(Entry::Caller(Arc::new(Caller { role: state.role(&pod), pod }))),
            };
            let old = self.get(*address);
            if old == new {
                continue;
            }
            match &new {
                Some(entry) => self.entries.insert(*address, entry.clone()),
                None => self.entries.remove(address).map(|(_, entry)| entry),
            };
            if let (Some(Entry::Caller(old)), Some(Entry::Caller(new))) = (old, new)
                && old.pod.uid == new.pod.uid
                && old.role != new.role
            {
                (self.on_revoked)(&old.pod.uid);
            }
        }
        for uid in &changed.gone {
            (self.on_revoked)(uid);
        }
        let unlooked = changed.addresses.iter().copied().filter(|address| state.index.unlooked(*address));
        let unlooked = unlooked.collect::<Vec<_>>();
        self.want(state, unlooked);
        let namespaces = state.index.pods().filter(|pod| !pod.host_network && !pod.finished);
        let namespaces = namespaces.map(|pod| pod.namespace.clone()).collect::<BTreeSet<_>>();
        self.namespaces.send_if_modified(|wanted| {
            let modified = *wanted != namespaces;
            *wanted = namespaces;
            modified
        });
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn role(&self, pod: &Arc<Pod>) -> Role {
        match self.accounts.get(&pod.namespace) {
            Some(accounts) if accounts.synced => {
                accounts.by_name.get(&pod.service_account).map_or(Role::None, |account| account.role(pod))
            }
            Some(_) | None => Role::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
