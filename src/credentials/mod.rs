//! Credentials by pod: fetched before they are asked for, once for however many callers, renewed before they end,
//! served from memory.
//!
//! Owns the cache ([`Store`]) that requests read, and its one writer, the [`refresher`]. It asks
//! [`TokenSource`](crate::token::TokenSource) for tokens and [`Exchange`](crate::sts::Exchange) for
//! credentials. Invariant: a slot is of one service account and one role, of one pod unless sessions are shared, and
//! dies when no pod is entitled to it.

pub mod document;
pub mod refresher;
pub mod schedule;
pub mod slot;
mod standing;
pub mod trace;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use bytes::Bytes;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use tokio::sync::{mpsc, watch};

pub use self::standing::{Figures, Standing};
use self::{
    document::{Document, Form},
    slot::Failure,
    trace::{Held, Report, Trace},
};
use crate::{
    audit::{Audit, SharedSession},
    clock::{self, Now},
    identity::{Grant, PodUid},
};

/// The longest `RoleSessionName` that STS takes.
const LONGEST_SESSION_NAME: usize = 64;
/// Hexadecimal digits of the UID's hash at the session name's end.
const UID_DIGITS: usize = 10;
/// A slot has little left when this part of its life is: in normal running none has, and its renewal is urgent.
const LITTLE: u32 = 4;

/// Whose a session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionScope {
    /// One pod's: CloudTrail tells pods apart.
    #[default]
    Pod,
    /// All pods' of one service account on this node: fewer calls of STS.
    ServiceAccount,
}

impl SessionScope {
    /// `<namespace>.<pod or service account>-<hash of its UID>`, cut so that the hash stays; or what the pod chose.
    #[must_use]
    pub fn session_name(self, grant: &Grant) -> String {
        let Grant { pod, account, wish } = grant;
        if let Some(chosen) = wish.of_pod.as_ref().and_then(|of_pod| of_pod.session_name.as_ref()) {
            return chosen.clone();
        }
        let (name, uid) = match self {
            Self::Pod => (&*pod.name, pod.uid.as_str()),
            Self::ServiceAccount => (pod.service_account.as_str(), account.as_str()),
        };
        let hash = digest::digest(&digest::SHA256, uid.as_bytes());
        let hash = hash.as_ref().iter().take(UID_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect::<String>();
        let allowed = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
        let readable = format!("{}.{name}", pod.namespace);
        let readable = readable.chars().filter(allowed).take(LONGEST_SESSION_NAME - UID_DIGITS - 1);
        format!("{}-{hash}", readable.collect::<String>())
    }

    /// What a session in a second hop is tagged with, under the keys of EKS Pod Identity, which policies know.
    #[must_use]
    pub fn session_tags(self, grant: &Grant) -> Vec<(&'static str, String)> {
        let pod = &grant.pod;
        let mut tags = vec![
            ("kubernetes-namespace", pod.namespace.to_string()),
            ("kubernetes-service-account", pod.service_account.to_string()),
        ];
        if self == Self::Pod {
            tags.push(("kubernetes-pod-name", pod.name.to_string()));
            tags.push(("kubernetes-pod-uid", pod.uid.to_string()));
        }
        tags
    }

    /// Whether two grants share a session.
    fn joins(self, one: &Grant, other: &Grant) -> bool {
        match self {
            Self::Pod => one == other,
            Self::ServiceAccount => one.account == other.account && one.wish == other.wish,
        }
    }
}

/// What a slot offers to its readers.
#[derive(Debug)]
enum View {
    /// Nothing yet; the last fetch met this.
    Pending(Option<Failure>),
    /// This, until it expires.
    Document(Arc<Document>),
    /// A failure that is remembered until then, or until further notice.
    Failed(Failure, Option<Instant>),
    /// Nothing any more.
    Gone,
}

/// Whose a slot is.
#[derive(Default)]
struct Holders {
    /// Those who are entitled to it; one, unless sessions are shared.
    grants: Vec<Arc<Grant>>,
    /// What they share: who joins is told of to the auditor.
    session: Option<SharedSession>,
}

/// The credentials of one session.
pub struct Slot {
    /// Unlike its address in memory, never another's later.
    id: schedule::Key,
    holders: Mutex<Holders>,
    view: ArcSwap<View>,
    changed: watch::Sender<()>,
    /// A `Want` is on its way to the refresher; a second one would say nothing new.
    wanted: AtomicBool,
    /// Seconds since the store was made.
    last_read: AtomicU64,
    /// Somebody asked for its credentials.
    asked: AtomicBool,
    trace: Mutex<Trace>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What came of asking for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The role's document, in the form that was asked for.
    Document(Bytes),
    /// The fetch failed.
    Failed(Failure),
    /// The fetch is still in flight.
    Pending,
    /// The pod has ended, its role has changed, or the slot was given up: ask anew who is asking.
    Gone,
}

/// The credentials of this node's pods.
#[derive(Debug)]
pub struct Store {
    scope: SessionScope,
    audit: Arc<Audit>,
    /// By the grant's address in memory, which cannot be another's while the slot holds the grant. Nobody can choose it,
    /// so that a hash which is cheap will do.
    slots: DashMap<usize, Arc<Slot>, RandomState>,
    /// Held while slots are made and ended.
    making: Mutex<()>,
    commands: mpsc::UnboundedSender<Command>,
    made: Instant,
    next_id: AtomicU64,
}

/// What the refresher is told.
#[derive(Debug)]
enum Command {
    /// A caller found nothing to take.
    Want(Arc<Slot>),
    /// A pod appeared that will ask.
    Foresee(Arc<Slot>),
    /// The slot is no longer in the store.
    Retire(Arc<Slot>),
}

// === impl Store ===

impl Store {
    fn new(scope: SessionScope, audit: Arc<Audit>, commands: mpsc::UnboundedSender<Command>) -> Self {
        let (slots, made) = (DashMap::default(), clock::now().monotonic);
        Self { scope, audit, slots, making: Mutex::default(), commands, made, next_id: AtomicU64::new(0) }
    }

    /// The credentials of `grant`, if they are there now, and whether nobody has asked for them before. Never waits.
    #[must_use]
    pub fn get(&self, grant: &Arc<Grant>, form: Form, now: Now) -> Option<(Bytes, bool)> {
        let slot = self.slots.get(&address(grant))?;
        slot.read(self.age(now));
        match &**slot.view.load() {
            View::Document(document) => document.body(form, now).map(|body| (body, slot.is_asked_first())),
            View::Pending(_) | View::Failed(..) | View::Gone => None,
        }
    }

    /// The credentials of `grant`, fetched if need be; gives up waiting, not the fetch, at `until`.
    /// A permanent failure is said at once.
    pub async fn obtain(&self, grant: &Arc<Grant>, form: Form, until: tokio::time::Instant) -> Outcome {
        let slot = self.slot(grant);
        // Also of what comes when it no longer waits.
        slot.is_asked_first();
        let mut changed = slot.changed.subscribe();
        loop {
            let now = clock::now();
            slot.read(self.age(now));
            let so_far = match &**slot.view.load() {
                View::Document(document) => match document.body(form, now) {
                    Some(body) => return Outcome::Document(body),
                    None => Outcome::Pending,
                },
                View::Failed(Failure::Permanent, until) if until.is_none_or(|until| until > now.monotonic) => {
                    // Tried again later, if somebody asks: the refresher must know that somebody does.
                    self.want(&slot);
                    return Outcome::Failed(Failure::Permanent);
                }
                View::Failed(failure, _) | View::Pending(Some(failure)) => Outcome::Failed(*failure),
                View::Pending(None) => Outcome::Pending,
                View::Gone => return Outcome::Gone,
            };
            self.want(&slot);
            if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return so_far;
            }
        }
    }

    /// This is all that a pod is entitled to from now on: nothing else that it got so far is given any longer.
    /// Of what it is entitled to, the one that `foresee` names is fetched before it is asked for.
    pub fn entitle(&self, pod: &PodUid, grants: &[Arc<Grant>], foresee: Option<&Arc<Grant>>) {
        let making = self.making();
        let mut left = Vec::new();
        self.slots.retain(|grant, slot| {
            let stays = grants.iter().any(|current| address(current) == *grant) || !slot.is_of(*grant, pod);
            if !stays {
                left.push((*grant, Arc::clone(slot)));
            }
            stays
        });
        for (grant, slot) in left {
            self.leave(&making, grant, slot);
        }
        drop(making);
        if let Some(grant) = foresee {
            let _ = self.commands.send(Command::Foresee(self.slot(grant)));
        }
    }

    /// How the session of `grant` stands, if there is one. That somebody looks is no reason to keep it.
    #[must_use]
    pub fn report(&self, grant: &Arc<Grant>, now: Now) -> Option<Report> {
        let slot = self.slots.get(&address(grant)).map(|slot| Arc::clone(&slot))?;
        let held = match &**slot.view.load() {
            View::Document(document) => Held::of(document, now),
            View::Pending(_) | View::Failed(..) | View::Gone => None,
        };
        let trace = slot.trace();
        Some(Report { session_name: self.scope.session_name(grant), held, last: trace.last.clone(), next: trace.next })
    }

    /// What the metrics show.
    #[must_use]
    pub fn figures(&self, now: Now) -> Figures {
        let mut figures = Figures { standings: BTreeMap::new(), low: 0, least_left: 1.0 };
        let mut seen = BTreeSet::new();
        for slot in self.slots.iter().filter(|slot| seen.insert(slot.id)) {
            *figures.standings.entry(slot.standing(now)).or_default() += 1;
            if let View::Document(document) = &**slot.view.load()
                && !document.expires().passed(now)
            {
                let (left, life) = (document.expires().left(now), document.life());
                figures.low += usize::from(left < life / LITTLE);
                figures.least_left = figures.least_left.min(left.as_secs_f64() / life.as_secs_f64());
            }
        }
        figures
    }

    /// How the session of `grant` stands, if there is one.
    #[must_use]
    pub fn standing(&self, grant: &Arc<Grant>, now: Now) -> Option<Standing> {
        self.slots.get(&address(grant)).map(|slot| slot.standing(now))
    }

    fn slot(&self, grant: &Arc<Grant>) -> Arc<Slot> {
        let key = address(grant);
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(&slot);
        }
        let _making = self.making();
        if let Some(slot) = self.slots.get(&key) {
            return Arc::clone(&slot);
        }
        let joined =
            self.slots.iter().find(|slot| slot.holders().grants.iter().any(|other| self.scope.joins(grant, other)));
        let joined = joined.map(|slot| Arc::clone(&slot));
        let slot = joined.unwrap_or_else(|| Slot::new(self.next_id.fetch_add(1, Ordering::Relaxed)));
        // Who comes will read.
        slot.read(self.age(clock::now()));
        let mut holders = slot.holders();
        if let Some(session) = &holders.session {
            self.audit.shared(grant, session);
        }
        holders.grants.push(Arc::clone(grant));
        drop(holders);
        self.slots.insert(key, Arc::clone(&slot));
        slot
    }

    fn want(&self, slot: &Arc<Slot>) {
        if !slot.wanted.swap(true, Ordering::AcqRel) {
            // The refresher outlives the store's readers, or the process is about to end.
            let _ = self.commands.send(Command::Want(Arc::clone(slot)));
        }
    }

    /// A grant is no longer the slot's; the last one's leaving ends it.
    fn leave(&self, _making: &MutexGuard<'_, ()>, grant: usize, slot: Arc<Slot>) {
        let mut holders = slot.holders();
        holders.grants.retain(|other| address(other) != grant);
        let last = holders.grants.is_empty();
        drop(holders);
        if last {
            slot.publish(View::Gone);
            let _ = self.commands.send(Command::Retire(slot));
        }
    }

    /// Takes the grant out, if it is there.
    fn let_go(&self, grant: &Arc<Grant>) {
        let making = self.making();
        if let Some((grant, slot)) = self.slots.remove(&address(grant)) {
            self.leave(&making, grant, slot);
        }
    }

    /// Takes the slot out for all.
    fn remove(&self, slot: &Arc<Slot>) {
        let _making = self.making();
        self.slots.retain(|_, other| !Arc::ptr_eq(other, slot));
        slot.holders().grants.clear();
        slot.publish(View::Gone);
    }

    /// Whether nobody read the slot for as long as `life`.
    fn idle(&self, slot: &Slot, life: Duration, now: Now) -> bool {
        let last_read = Duration::from_secs(slot.last_read.load(Ordering::Relaxed));
        self.age(now).saturating_sub(last_read) > life
    }

    fn age(&self, now: Now) -> Duration {
        now.monotonic.saturating_duration_since(self.made)
    }

    fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(grant: &Arc<Grant>) -> usize {
    Arc::as_ptr(grant).addr()
}

// === impl Slot ===

impl Slot {
    fn new(id: schedule::Key) -> Arc<Self> {
        Arc::new(Self {
            id,
            holders: Mutex::default(),
            view: ArcSwap::from_pointee(View::Pending(None)),
            changed: watch::Sender::new(()),
            wanted: AtomicBool::new(false),
            last_read: AtomicU64::default(),
            asked: AtomicBool::new(false),
            trace: Mutex::default(),
        })
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All who have it now have this session, and so has who joins.
    fn shares(&self, session: SharedSession, audit: &Audit) {
        let mut holders = self.holders();
        holders.grants.iter().for_each(|grant| audit.shared(grant, &session));
        holders.session = Some(session);
    }

    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grants, another one first each time: what the API server says of one pod is not held against the others.
    fn in_turn(&self) -> Vec<Arc<Grant>> {
        let grants = &mut self.holders().grants;
        let in_turn = grants.clone();
        let one = grants.len().min(1);
        grants.rotate_left(one);
        in_turn
    }

    /// How long its sessions are asked to last.
    fn asked_life(&self) -> Option<Duration> {
        self.holders().grants.first().map(|grant| Duration::from_secs(grant.wish.session_seconds.into()))
    }

    fn is_of(&self, grant: usize, pod: &PodUid) -> bool {
        self.holders().grants.iter().any(|other| address(other) == grant && other.pod.uid == *pod)
    }

    fn read(&self, at: Duration) {
        self.last_read.store(at.as_secs(), Ordering::Relaxed);
    }

    /// Whether nobody asked for its credentials before; from now on somebody has.
    fn is_asked_first(&self) -> bool {
        // A look is cheaper than a write, and all but the first need no more.
        !self.asked.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::Relaxed)
    }

    fn standing(&self, now: Now) -> Standing {
        Standing::of(&self.view.load(), self.trace().fault(), now)
    }

    /// What the store has given up stays so.
    fn publish(&self, view: View) {
        // One after the other: the store ends what the refresher writes.
        self.changed.send_if_modified(|()| {
            let same = match (&**self.view.load(), &view) {
                (View::Pending(old), View::Pending(new)) => old == new,
                (View::Document(old), View::Document(new)) => Arc::ptr_eq(old, new),
                (View::Failed(old, old_until), View::Failed(new, until)) => old == new && old_until == until,
                (View::Gone, _) => true,
                _ => false,
            };
            if !same {
                self.view.store(Arc::new(view));
            }
            !same
        });
    }
}

#[cfg(test)]
mod tests;
