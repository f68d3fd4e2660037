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
use foldhash::fast::RandomState;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{
    annotations::AnnotationError,
    binding::Binding,
    caller::{Caller, Grant, Role, Roles, ServiceAccount, Unidentified},
    index::{Changed, Claim, Pod, PodIndex},
    legacy::Legacy,
    names::{Namespace, PodUid, ServiceAccountName, ServiceAccountUid},
    policy::{Demands, Forbids, NamespacePolicy},
};

pub mod found;
mod host;
mod linked;
mod named;

pub use host::{HostPods, Reach};
pub use named::LegacyFigures;

/// The share of a caller's time after which an unknown address is looked up.
const LOOK_UP_AFTER: f64 = 0.44;
/// Look-ups that may wait their turn.
const LOOKUPS_WAITING: usize = 8;
/// How often it is looked again which link leads to an address while somebody waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One pod's.
    Caller(Arc<Caller>),
    /// Nobody's for now.
    Withheld(Unidentified),
}

/// Called with a pod and the roles that it has from now on.
type OnEntitled = Box<dyn Fn(&PodUid, &Roles) + Send + Sync>;

/// Called with a pod that gets nothing until somebody mends what is wrong.
type OnInvalid = Box<dyn Fn(&Pod, &AnnotationError) + Send + Sync>;

/// Address → pod and role.
pub struct Directory {
    /// Only the API server's news put addresses in: no pod can choose them, so that a hash which is cheap will do.
    entries: DashMap<IpAddr, Entry, RandomState>,
    /// Those of pods on the node's network.
    on_host: DashMap<PodUid, Arc<Caller>>,
    state: Mutex<State>,
    version: watch::Sender<u64>,
    namespaces: watch::Sender<BTreeSet<Namespace>>,
    lookups: mpsc::Sender<IpAddr>,
    wanted: Notify,
    on_entitled: OnEntitled,
    on_invalid: OnInvalid,
}

#[derive(Default)]
struct State {
    index: PodIndex,
    host_pods: HostPods,
    /// Ours, where we are one of them.
    own_pod: Option<PodUid>,
    /// The roles of pods that may ask: one and the same grant for as long as nothing about it changes.
    roles: HashMap<PodUid, Roles>,
    /// Addresses to be looked at.
    wanted: BTreeSet<IpAddr>,
    pods_synced: bool,
    /// The watch broke and has said nothing since.
    pods_may_lag: bool,
    /// How often it was told that a pod ends or is gone, or what all pods are.
    ends: u64,
    accounts: HashMap<Namespace, Accounts>,
    policy: NamespacePolicy,
    /// How the roles are read that pods name, where they may.
    legacy: Option<Legacy>,
    /// What namespaces demand, of those that are known.
    demands: HashMap<Namespace, Demands>,
}

#[derive(Default)]
struct Accounts {
    synced: bool,
    by_name: HashMap<ServiceAccountName, ServiceAccount>,
}

/// What the metrics show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Addresses that several pods claim.
    pub disputed: usize,
    /// Addresses whose pod is suspended.
    pub suspended: usize,
    /// Pods whose service account's annotations cannot be meant, or name a role that is not permitted.
    pub invalid: usize,
    /// Pods that name a role themselves, where that is heeded.
    pub legacy: Option<LegacyFigures>,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("addresses", &self.entries.len()).finish_non_exhaustive()
    }
}

// === impl Directory ===

impl Directory {
    /// An empty directory, and the addresses that it wants to be looked up. `on_entitled` is called, briefly
    /// and under a lock, when a pod becomes entitled to something or to something else, or ends; so is `on_invalid`
    /// when its role begins to be invalid.
    #[must_use]
    pub fn new(
        binding: Binding,
        policy: NamespacePolicy,
        on_entitled: impl Fn(&PodUid, &Roles) + Send + Sync + 'static,
        on_invalid: impl Fn(&Pod, &AnnotationError) + Send + Sync + 'static,
    ) -> (Self, mpsc::Receiver<IpAddr>) {
        let (lookups, asked) = mpsc::channel(LOOKUPS_WAITING);
        let directory = Self {
            entries: DashMap::default(),
            on_host: DashMap::new(),
            state: Mutex::new(State { index: PodIndex::new(binding), policy, ..State::default() }),
            wanted: Notify::new(),
            version: watch::Sender::new(0),
            namespaces: watch::Sender::default(),
            lookups,
            on_entitled: Box::new(on_entitled),
            on_invalid: Box::new(on_invalid),
        };
        (directory, asked)
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
        if is_link_local(address) && self.get(address).is_none() {
            // Nothing that could still be heard of would change it.
            return Err(Unidentified::LinkLocal);
        }
        let mut version = self.version.subscribe();
        let look_up_at = Instant::now() + (deadline - Instant::now()).mul_f64(LOOK_UP_AFTER);
        let mut looked_up = false;
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
            if now >= look_up_at && !std::mem::replace(&mut looked_up, true) && self.get(address).is_none() {
                // A queue that is full is a limit too.
                let _ = self.lookups.try_send(address);
            }
            let next = if looked_up { deadline } else { look_up_at };
            // Time is up or something changed: either way it is looked again.
            let _ = tokio::time::timeout_at(next.min(now + LOOK_AGAIN), version.changed()).await;
        }
    }

    /// Who is behind `address` now, if that and the role are known.
    #[must_use]
    pub fn identified(&self, address: IpAddr) -> Option<Arc<Caller>> {
        match self.entries.get(&address)?.value() {
            Entry::Caller(caller) if caller.roles.main != Role::Unknown => Some(Arc::clone(caller)),
            Entry::Caller(_) | Entry::Withheld(_) => None,
        }
    }

    fn unidentified(&self, address: IpAddr) -> Unidentified {
        match self.get(address) {
            Some(Entry::Withheld(why)) => why,
            Some(Entry::Caller(_)) => Unidentified::NotYet,
            None => {
                let state = self.state();
                if state.pods_synced && !state.pods_may_lag && !state.index.awaits_addresses() {
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
        state.roles.get(&grant.pod.uid).is_some_and(|roles| roles.grants().any(|current| **current == *grant))
    }

    /// Whether pods and the service accounts of their namespaces have been read.
    #[must_use]
    pub fn synced(&self) -> bool {
        let state = self.state();
        state.pods_synced
            && self.namespaces.borrow().iter().all(|namespace| {
                state.accounts.get(namespace).is_some_and(|accounts| accounts.synced)
                    && (!state.reads_namespaces() || state.demands.contains_key(namespace))
            })
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
        let is_invalid = |pod: &&Arc<Pod>| state.roles(pod).all().any(|role| matches!(role, Role::Invalid(_)));
        let invalid = state.index.pods().filter(is_invalid).count();
        Figures { disputed, suspended, invalid, legacy: state.legacy_figures() }
    }

    /// Tells of each pod what becomes of its requests, its main role, and whether that is withheld from it, for its address
    /// cannot be told to be this pod's; briefly and under a lock.
    pub fn each_pod(&self, mut tell: impl FnMut(Reach, &Role, bool)) {
        let state = self.state();
        for pod in state.index.pods() {
            let reach = state.reach(pod);
            tell(reach, &state.roles(pod).main, reach == Reach::Address && state.index.is_withheld(pod));
        }
    }

    // What the watches write.

    /// A pod appeared or changed.
    pub fn apply_pod(&self, pod: Pod) {
        let mut state = self.state();
        state.ends += u64::from(pod.finished || pod.terminating);
        let pod = state.keep(pod);
        let changed = state.index.apply(pod);
        state.pods_may_lag = false;
        self.publish(&mut state, &changed);
    }

    /// How many ends of pods were told of; to be read before a look-up.
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.state().ends
    }

    /// A look-up found this pod. It counts only if no pod ended since `ends` was read: the watch may have told of
    /// its end already, and would not do so again.
    pub fn found_pod(&self, pod: Pod, ends: u64) {
        let mut state = self.state();
        if state.ends == ends {
            let mut pod = state.keep(pod);
            // What a pod says may have changed since, and the watch told of that.
            if let Some(known) = state.index.get(&pod.uid) {
                pod.legacy.clone_from(&known.legacy);
            }
            let changed = state.index.apply(pod);
            self.publish(&mut state, &changed);
        }
    }

    /// A pod is gone.
    pub fn delete_pod(&self, uid: &PodUid) {
        let mut state = self.state();
        let changed = state.index.delete(uid);
        state.pods_may_lag = false;
        state.ends += 1;
        self.publish(&mut state, &changed);
    }

    /// These are all the pods of this node.
    pub fn reset_pods(&self, pods: Vec<Pod>) {
        let mut state = self.state();
        let pods = pods.into_iter().map(|pod| state.keep(pod)).collect();
        let changed = state.index.reset(pods);
        state.pods_synced = true;
        state.pods_may_lag = false;
        state.ends += 1;
        self.publish(&mut state, &changed);
    }

    /// The watch of pods broke: what is known stays, and what is not known may exist.
    pub fn pods_may_lag(&self) {
        self.state().pods_may_lag = true;
    }

    /// The watch of pods has told of all that happened.
    pub fn pods_are_up_to_date(&self) {
        self.state().pods_may_lag = false;
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

    /// A service account that cannot be read: nothing that it said before holds.
    pub fn withhold_account(&self, namespace: &Namespace, name: &ServiceAccountName) {
        let mut state = self.state();
        if let Some(accounts) = state.accounts.get_mut(namespace) {
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

    /// What a namespace demands.
    pub fn apply_demands(&self, namespace: &Namespace, demands: Demands) {
        let mut state = self.state();
        state.demands.insert(namespace.clone(), demands);
        self.publish_namespace(&mut state, namespace);
    }

    /// A namespace is no longer watched, nor are its service accounts.
    pub fn forget_namespace(&self, namespace: &Namespace) {
        let mut state = self.state();
        state.accounts.remove(namespace);
        state.demands.remove(namespace);
        self.publish_namespace(&mut state, namespace);
    }

    fn publish_namespace(&self, state: &mut MutexGuard<'_, State>, namespace: &Namespace) {
        self.publish_pods(state, |pod| pod.namespace == *namespace);
    }

    fn publish_pods(&self, state: &mut MutexGuard<'_, State>, which: impl Fn(&Pod) -> bool) {
        let mut changed = Changed::default();
        for pod in state.index.pods().filter(|pod| which(pod)) {
            changed.pods.insert(pod.uid.clone());
            changed.addresses.extend(&pod.addresses);
        }
        self.publish(state, &changed);
    }

    fn publish(&self, state: &mut MutexGuard<'_, State>, changed: &Changed) {
        let before = changed.pods.iter().map(|uid| (uid, state.update_roles(uid))).collect::<Vec<_>>();
        for address in &changed.addresses {
            let new = match state.index.claim(*address) {
                Claim::Nobody => None,
                Claim::Disputed => Some(Entry::Withheld(Unidentified::Disputed)),
                Claim::Suspended => Some(Entry::Withheld(Unidentified::Suspended)),
                Claim::Unbound => Some(Entry::Withheld(Unidentified::Unbound)),
                Claim::Pod(pod) => Some(Entry::Caller(Arc::new(state.caller(pod)))),
            };
            if self.get(*address) == new {
                continue;
            }
            match new {
                Some(entry) => self.entries.insert(*address, entry),
                None => self.entries.remove(address).map(|(_, entry)| entry),
            };
        }
        self.publish_host_pods(state, &changed.pods);
        let none = Roles::default();
        for (uid, before) in &before {
            let roles = state.roles.get(*uid).unwrap_or(&none);
            if !before.grants().eq(roles.grants()) {
                (self.on_entitled)(uid, roles);
            }
            if let Some(pod) = state.index.get(uid) {
                self.tell_what_is_invalid(pod, before, roles);
            }
        }
        let unlooked = changed.addresses.iter().copied().filter(|address| state.index.unlooked(*address));
        let unlooked = unlooked.collect::<Vec<_>>();
        self.want(state, unlooked);
        let namespaces = state.index.pods().filter(|pod| state.may_have_roles(pod));
        let namespaces = namespaces.map(|pod| pod.namespace.clone()).collect::<BTreeSet<_>>();
        self.namespaces.send_if_modified(|wanted| {
            let modified = *wanted != namespaces;
            *wanted = namespaces;
            modified
        });
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Says once, when it comes into force, what an operator has to mend.
    fn tell_what_is_invalid(&self, pod: &Pod, before: &Roles, roles: &Roles) {
        for role in roles.all() {
            if let Role::Invalid(error) = role
                && !before.all().any(|before| before == role)
            {
                let who = if error.is_of_pod() {
                    format!("pod {}/{}", pod.namespace, pod.name)
                } else {
                    format!("service account {}/{}", pod.namespace, pod.service_account)
                };
                tracing::warn!(
                    namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name,
                    "{who} {}: {error}", error.consequence()
                );
                (self.on_invalid)(pod, error);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

// === impl State ===

impl State {
    fn may_have_roles(&self, pod: &Pod) -> bool {
        pod.may_ask() || self.host_pods == HostPods::Served && pod.is_on_host()
    }

    /// Reads a pod's roles anew; what they were.
    fn update_roles(&mut self, uid: &PodUid) -> Roles {
        let old = self.roles.remove(uid).unwrap_or_default();
        let unchanged = |grant: &Arc<Grant>| old.grants().find(|before| *before == grant).cloned();
        let new = self.index.get(uid).filter(|pod| self.may_have_roles(pod)).map(|pod| {
            self.read_roles(pod).map(|role| match role {
                Role::Granted(grant) => Role::Granted(unchanged(&grant).unwrap_or(grant)),
                other => other,
            })
        });
        self.roles.extend(new.map(|roles| (uid.clone(), roles)));
        old
    }

    fn caller(&self, pod: Arc<Pod>) -> Caller {
        let account = self.accounts.get(&pod.namespace).and_then(|of| of.by_name.get(&pod.service_account));
        let of_namespace = match self.demands.get(&pod.namespace) {
            Some(demands) => demands.require_imdsv2,
            // Not known yet.
            None => self.reads_namespaces(),
        };
        let require_imdsv2 = of_namespace || account.is_some_and(|account| account.require_imdsv2);
        Caller { roles: self.roles(&pod), pod, require_imdsv2 }
    }

    fn roles(&self, pod: &Arc<Pod>) -> Roles {
        self.roles.get(&pod.uid).cloned().unwrap_or_else(|| self.read_roles(pod))
    }

    fn reads_namespaces(&self) -> bool {
        self.policy != NamespacePolicy::Off || self.legacy.is_some()
    }

    /// A role counts only if its namespace permits every role on the way there.
    fn read_roles(&self, pod: &Arc<Pod>) -> Roles {
        let roles = self.roles_of_account(pod);
        let roles = if roles.main == Role::None { self.roles_of_pod(pod) } else { roles };
        if !self.reads_namespaces() || roles.grants().next().is_none() {
            return roles;
        }
        let Some(demands) = self.demands.get(&pod.namespace) else { return Roles::default() };
        let permits = |arn: &str| self.policy.permits(demands.permitted.as_ref(), arn);
        roles.map(|role| {
            let Role::Granted(grant) = &role else { return role };
            let refused = grant.wish.hops().find(|hop| !permits(hop.as_str()));
            let refused = refused.map(|hop| (hop, Forbids::PermittedRoles));
            let Some((refused, by)) = refused.or_else(|| self.refused_to_pod(grant, demands)) else { return role };
            let (namespace, role) = (pod.namespace.clone(), refused.clone());
            Role::Invalid(AnnotationError::NotPermitted { namespace, role, by })
        })
    }

    fn roles_of_account(&self, pod: &Arc<Pod>) -> Roles {
        match self.accounts.get(&pod.namespace) {
            // A pod cannot be made without its service account: one that is not there is not there yet, or no more.
            Some(accounts) if accounts.synced => {
                accounts.by_name.get(&pod.service_account).map(|account| account.roles(pod)).unwrap_or_default()
            }
            Some(_) | None => Roles::default(),
        }
    }
}

#[cfg(test)]
mod tests;
