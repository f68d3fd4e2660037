//! What the cluster is, and what it was: objects, resource versions, history.
//!
//! One revision counts all writes, as etcd's does. The state at any revision since the last
//! compaction can be read, and each watcher hears of every change of its resource, in order, once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{lock, resource::Resource};

/// Where an object is; the namespace is empty for what has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        let namespace = if resource.namespaced() { namespace } else { "" };
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Where an object says that it is.
    pub(super) fn of(resource: Resource, object: &Value) -> Self {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Self::new(resource, text("/metadata/namespace"), text("/metadata/name"))
    }
}

/// One write: what was there before, and what is there after it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

/// What a watcher hears.
#[derive(Clone, Debug)]
pub(super) enum Signal {
    /// An object that was there when the watch began.
    Present(Arc<Value>),
    /// A write.
    Change(Arc<Change>),
    /// A write that was heard before.
    Replay(Arc<Change>),
    /// Nothing that the watcher selects was written up to this revision.
    Bookmark { revision: u64, initial_events_end: bool },
    /// A line as it stands, for faults.
    Line(String),
    /// The same, and the end.
    Last(String),
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// With what is there; then a bookmark, if asked for.
    Present { bookmark: bool },
    /// After a revision.
    After(u64),
    /// Now.
    Now,
}

/// The objects at one revision, in the order of their keys.
pub(super) struct Snapshot {
    pub(super) revision: u64,
    pub(super) objects: BTreeMap<Key, Arc<Value>>,
}

/// A revision that cannot be read any more, and the oldest that can.
#[derive(Debug)]
pub(super) struct Compacted {
    pub(super) oldest: u64,
}

/// The cluster's state.
#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    revision: u64,
    compacted: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Arc<Change>>,
    watchers: Vec<(Resource, mpsc::UnboundedSender<Signal>)>,
}

// === impl Store ===

impl Store {
    pub(super) fn new() -> Self {
        let state =
            State { revision: 1, compacted: 1, objects: BTreeMap::new(), history: Vec::new(), watchers: Vec::new() };
        Self { state: Mutex::new(state), revision: watch::Sender::new(1) }
    }

    pub(super) fn revision(&self) -> u64 {
        lock(&self.state).revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        lock(&self.state).objects.get(key).cloned()
    }

    /// Replaces the object at `key` by what `change` makes of it; `None` deletes it.
    /// A change that leaves everything as it was is no write, as in the API server.
    pub(super) fn write(&self, key: &Key, change: impl FnOnce(Option<&Value>) -> Option<Value>) {
        let mut state = lock(&self.state);
        let before = state.objects.get(key).cloned();
        let after = change(before.as_deref());
        if after.as_ref() == before.as_deref() {
            return;
        }
        state.revision += 1;
        let revision = state.revision;
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            Arc::new(object)
        });
        match &after {
            Some(object) => state.objects.insert(key.clone(), object.clone()),
            None => state.objects.remove(key),
        };
        let change = Arc::new(Change { revision, key: key.clone(), before, after });
        state.history.push(change.clone());
        state.tell(key.resource, &Signal::Change(change));
        self.revision.send_replace(revision);
    }

    /// The state of a namespace, or of all if it is empty, at a revision, or now.
    pub(super) fn snapshot(&self, resource: Resource, namespace: &str, at: Option<u64>) -> Result<Snapshot, Compacted> {
        let first = Key::new(resource, namespace, "");
        let within =
            |key: &Key| key.resource == resource && (first.namespace.is_empty() || key.namespace == first.namespace);
        let state = lock(&self.state);
        let revision = at.unwrap_or(state.revision);
        if revision < state.compacted {
            return Err(Compacted { oldest: state.compacted });
        }
        let mut objects = state
            .objects
            .range(&first..)
            .take_while(|(key, _)| within(key))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect::<BTreeMap<_, _>>();
        for change in state.history.iter().rev().take_while(|change| change.revision > revision) {
            if within(&change.key) {
                match &change.before {
                    Some(object) => objects.insert(change.key.clone(), object.clone()),
                    None => objects.remove(&change.key),
                };
            }
        }
        Ok(Snapshot { revision, objects })
    }

    /// A watcher of a resource, and the signals that begin its life.
    pub(super) fn watch(&self, resource: Resource, start: Start) -> Result<mpsc::UnboundedReceiver<Signal>, Compacted> {
        let mut state = lock(&self.state);
        let (signals, receiver) = mpsc::unbounded_channel();
        match start {
            Start::Now => {}
            Start::Present { bookmark } => {
                for (_, object) in state.objects.iter().filter(|(key, _)| key.resource == resource) {
                    signals.send(Signal::Present(object.clone())).ok();
                }
                if bookmark {
                    let end = Signal::Bookmark { revision: state.revision, initial_events_end: true };
                    signals.send(end).ok();
                }
            }
            Start::After(revision) => {
                if revision < state.compacted {
                    return Err(Compacted { oldest: state.compacted });
                }
                for change in state.history.iter().filter(|change| change.revision > revision) {
                    if change.key.resource == resource {
                        signals.send(Signal::Change(change.clone())).ok();
                    }
                }
            }
        }
        state.watchers.push((resource, signals));
        Ok(receiver)
    }

    /// Sends a signal to the open watches of a resource, or of all.
    pub(super) fn tell(&self, resource: Option<Resource>, signal: &Signal) {
        let mut state = lock(&self.state);
        match resource {
            Some(resource) => state.tell(resource, signal),
            None => state.watchers.retain(|(_, watcher)| watcher.send(signal.clone()).is_ok()),
        }
    }

    /// Sends a bookmark of the present revision to every open watch.
    pub(super) fn bookmark(&self) {
        let mut state = lock(&self.state);
        let signal = Signal::Bookmark { revision: state.revision, initial_events_end: false };
        state.watchers.retain(|(_, watcher)| watcher.send(signal.clone()).is_ok());
    }

    /// Sends what was written after a revision and up to another to every open watch once more.
    pub(super) fn replay(&self, after: u64, up_to: u64) {
        let mut state = lock(&self.state);
        let replayed = |change: &&Arc<Change>| change.revision > after && change.revision <= up_to;
        let changes = state.history.iter().filter(replayed).cloned().collect::<Vec<_>>();
        for change in changes {
            state.tell(change.key.resource, &Signal::Replay(change.clone()));
        }
    }

    /// Forgets all history. The compaction is itself a write, as the API server's is.
    pub(super) fn compact(&self) {
        let mut state = lock(&self.state);
        state.revision += 1;
        state.compacted = state.revision;
        state.history.clear();
        self.revision.send_replace(state.revision);
    }

    /// Forgets the history up to a revision, as an API server does every five minutes with what is older than that.
    pub(super) fn compact_to(&self, revision: u64) {
        let mut state = lock(&self.state);
        state.compacted = state.compacted.max(revision.min(state.revision));
        let compacted = state.compacted;
        state.history.retain(|change| change.revision > compacted);
    }

    /// Waits until the state is at least as new as `revision`; the present revision, if that is never.
    pub(super) async fn reached(&self, revision: u64) -> Result<(), u64> {
        /// The API server's own patience (`blockTimeout` of its watch cache).
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
        let mut revisions = self.revision.subscribe();
        let reached = revisions.wait_for(|now| *now >= revision);
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.revision()),
        }
    }
}

// === impl State ===

impl State {
    fn tell(&mut self, resource: Resource, signal: &Signal) {
        self.watchers.retain(|(of, watcher)| *of != resource || watcher.send(signal.clone()).is_ok());
    }
}
