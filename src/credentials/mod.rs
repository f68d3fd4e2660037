//! Credentials by pod: fetched once for however many callers, renewed before they end, served from memory.
//!
//! Owns the cache ([`Store`]) that requests read, and its one writer, the [`refresher`]. It asks
//! [`TokenSource`](crate::token::TokenSource) for tokens and [`Exchange`](crate::sts::Exchange) for
//! credentials. Invariant: a slot belongs to one pod UID and one role, and dies with either.

pub mod document;
pub mod refresher;
pub mod slot;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::{mpsc, watch};

use self::{document::Document, slot::Failure};
use crate::{
    clock::{self, Now},
    identity::{Grant, Pod, PodUid},
};

/// The longest `RoleSessionName` that STS takes.
const LONGEST_SESSION_NAME: usize = 64;
/// Hexadecimal digits of the pod UID's hash at the session name's end.
const UID_DIGITS: usize = 10;

/// `<namespace>.<pod>-<hash of the UID>`, cut so that the hash stays: CloudTrail tells pods apart.
#[must_use]
pub fn session_name(pod: &Pod) -> String {
    let hash = digest::digest(&digest::SHA256, pod.uid.as_str().as_bytes());
    let hash = hash.as_ref().iter().take(UID_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect::<String>();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    let readable = format!("{}.{}", pod.namespace, pod.name);
    let readable = readable.chars().filter(allowed).take(LONGEST_SESSION_NAME - UID_DIGITS - 1);
    format!("{}-{hash}", readable.collect::<String>())
}

/// What a slot offers to its readers.
#[derive(Debug)]
enum View {
    /// Nothing yet; the last fetch met this.
    Pending(Option<Failure>),
    /// This, until it expires.
    Document(Arc<Document>),
    /// A failure that is remembered until then.
    Failed(Failure, Instant),
    /// Nothing any more.
    Gone,
}

/// One pod's credentials for one role.
pub struct Slot {
    /// Unlike its address in memory, never another's later.
    id: u64,
    grant: Arc<Grant>,
    view: ArcSwap<View>,
    changed: watch::Sender<()>,
    /// A `Want` is on its way to the refresher; a second one would say nothing new.
    wanted: AtomicBool,
    /// Seconds since the store was made.
    last_read: AtomicU64,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("pod", &self.grant.pod.uid)
            .field("role", self.grant.role())
            .finish_non_exhaustive()
    }
}

/// What came of asking for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The role's document.
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
    slots: DashMap<PodUid, Arc<Slot>>,
    commands: mpsc::UnboundedSender<Command>,
    made: Instant,
    next_id: AtomicU64,
}

/// What the refresher is told.
#[derive(Debug)]
enum Command {
    /// A caller found nothing to take.
    Want(Arc<Slot>),
    /// The slot is no longer in the store.
    Retire(Arc<Slot>),
}

// === impl Store ===

impl Store {
    fn new(commands: mpsc::UnboundedSender<Command>) -> Self {
        Self { slots: DashMap::new(), commands, made: clock::now().monotonic, next_id: AtomicU64::new(0) }
    }

    /// The credentials of `grant`, if they are there now. Never waits.
    #[must_use]
    pub fn get(&self, grant: &Arc<Grant>, now: Now) -> Option<Bytes> {
        let slot = self.slots.get(&grant.pod.uid)?;
        if slot.grant != *grant {
            return None;
        }
        slot.read(self.age(now));
        match &**slot.view.load() {
            View::Document(document) => document.body(now),
            View::Pending(_) | View::Failed(..) | View::Gone => None,
        }
    }

    /// The credentials of `grant`, fetched if need be; gives up waiting, not the fetch, at `until`.
    /// A permanent failure is said at once.
    pub async fn obtain(&self, grant: &Arc<Grant>, until: tokio::time::Instant) -> Outcome {
        let slot = self.slot(grant);
        let mut changed = slot.changed.subscribe();
        loop {
            let now = clock::now();
            let so_far = match &**slot.view.load() {
                View::Document(document) => match document.body(now) {
                    Some(body) => {
                        slot.read(self.age(now));
                        return Outcome::Document(body);
                    }
                    None => Outcome::Pending,
                },
                View::Failed(Failure::Permanent, remembered) if *remembered > now.monotonic => {
                    // Said again later, if somebody asks: the refresher must know that somebody does.
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

    /// The pod has ended or its role has changed: nothing that it got so far is given any longer.
    pub fn retire(&self, uid: &PodUid) {
        if let Some((_, slot)) = self.slots.remove(uid) {
            self.end(slot);
        }
    }

    /// Slots that there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn slot(&self, grant: &Arc<Grant>) -> Arc<Slot> {
        let new = || {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            Slot::new(id, grant, self.age(clock::now()).as_secs())
        };
        let mut entry = self.slots.entry(grant.pod.uid.clone()).or_insert_with(new);
        if entry.grant == *grant {
            return Arc::clone(&entry);
        }
        let old = std::mem::replace(&mut *entry, new());
        let new = Arc::clone(&entry);
        drop(entry);
        self.end(old);
        new
    }

    fn want(&self, slot: &Arc<Slot>) {
        if !slot.wanted.swap(true, Ordering::AcqRel) {
            // The refresher outlives the store's readers, or the process is about to end.
            let _ = self.commands.send(Command::Want(Arc::clone(slot)));
        }
    }

    fn end(&self, slot: Arc<Slot>) {
        slot.publish(View::Gone);
        let _ = self.commands.send(Command::Retire(slot));
    }

    /// Takes out this very slot, not a later one of the same pod.
    fn remove(&self, slot: &Arc<Slot>) {
        self.slots.remove_if(&slot.grant.pod.uid, |_, current| Arc::ptr_eq(current, slot));
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
}

// === impl Slot ===

impl Slot {
    fn new(id: u64, grant: &Arc<Grant>, last_read: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            grant: Arc::clone(grant),
            view: ArcSwap::from_pointee(View::Pending(None)),
            changed: watch::Sender::new(()),
            wanted: AtomicBool::new(false),
            last_read: AtomicU64::new(last_read),
        })
    }

    fn read(&self, at: Duration) {
        self.last_read.store(at.as_secs(), Ordering::Relaxed);
    }

    fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests;
