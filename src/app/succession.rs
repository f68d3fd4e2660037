//! One daemon after the other on the same node: when the next one takes over, and what each does meanwhile.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    clock,
    credentials::{Standing, Store},
    identity::Directory,
    intercept::{
        handover::{End, Made, Offer, Place, Predecessor, RulesLock, Successor},
        reconcile::{self, Interception},
    },
    metrics::{Metrics, StateUse},
    readiness::{Condition, Readiness},
};

/// How often it is looked whether all is prepared.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often that is tried which the state directory did not let us do: on a full disk, say.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// What is looked after by whose turn it is.
const RULES: [Condition; 3] = [Condition::Guard, Condition::Rules, Condition::HostNetwork];
/// How long another daemon may hold the lock for the rules.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How long credentials may take that are fetched for the pods of the node: a full node's, at the default rate, take
/// under a minute.
const FETCHING_LIMIT: Duration = Duration::from_secs(120);

/// A daemon's place between the one before it and the one after it.
pub(super) struct Succession {
    pub(super) predecessor: Option<Predecessor>,
    pub(super) offer: Offer,
    /// Whether the rules are ours.
    pub(super) owns: Arc<watch::Sender<bool>>,
    /// Whether we accept connections: not before the rules are in place, for the one before may have to go on.
    pub(super) serves: Arc<watch::Sender<bool>>,
    pub(super) directory: Arc<Directory>,
    pub(super) store: Arc<Store>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) metrics: Arc<Metrics>,
}

impl Succession {
    /// Takes over, and hands over when it is time: `turn` is told of what ends our own. Ends when nobody serves.
    pub(super) async fn run(self, turn: oneshot::Sender<Turn>) {
        let Self { predecessor, offer, owns, serves, directory, store, readiness, metrics } = self;
        // As long as the connection is open, the one before knows that somebody serves.
        let (mut _before, mut place) = (None, None);
        if let Some(mut predecessor) = predecessor {
            tracing::info!("a daemon is running here; it goes on until this one is ready");
            tokio::select! {
                () = prepared(&directory, &store, &readiness) => predecessor.take().await,
                _ = predecessor.ended() => drop(serves.send_replace(true)),
            }
            owns.send_replace(true);
            let end = tokio::select! {
                () = until(|| !RULES.iter().any(|condition| readiness.is_lacking(*condition))) => None,
                end = predecessor.ended() => Some(end),
            };
            if end == Some(End::WentOn) {
                let _ = turn.send(Turn::Missed);
                return std::future::pending().await;
            }
            place = offer.take_place().ok();
            serves.send_replace(true);
            predecessor.stop().await;
            _before = Some(predecessor);
            tracing::info!("took over from the daemon that ran here");
        }
        let successor = make(&offer, place, &owns, &metrics).await;
        let _ = turn.send(Turn::Over);
        successor.ended().await;
    }
}

/// What ends a daemon's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The next one serves.
    Over,
    /// The one before waited no longer for us to serve, and goes on.
    Missed,
}

/// Makes the offer until the next daemon serves, also if somebody takes it away.
pub(super) async fn make(
    offer: &Offer,
    place: Option<Place>,
    owns: &watch::Sender<bool>,
    metrics: &Metrics,
) -> Successor {
    let mut place = place;
    loop {
        let here = match place.take() {
            Some(place) => place,
            None => open(offer, metrics).await,
        };
        match offer.make(&here, owns).await {
            Made::Taken(successor) => return successor,
            Made::Lost => tracing::warn!("the offer of the sockets was taken away; it is made again"),
        }
    }
}

/// Where the next daemon will find our sockets, as soon as it can be had.
async fn open(offer: &Offer, metrics: &Metrics) -> Place {
    loop {
        match offer.open().await {
            Ok(place) => {
                if metrics.lacks_state_dir(StateUse::HandOver, false) {
                    tracing::info!("the sockets are offered to the next daemon");
                }
                return place;
            }
            Err(error) => {
                if !metrics.lacks_state_dir(StateUse::HandOver, true) {
                    tracing::warn!(%error, "the sockets cannot be offered: an upgrade now would refuse connections");
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// Returns when pods can be served as well as by the daemon before.
async fn prepared(directory: &Directory, store: &Store, readiness: &Readiness) {
    until(|| directory.synced() && readiness.lacks_nothing_but(&[&RULES[..], &[Condition::Arrival]].concat())).await;
    let limit = Instant::now() + FETCHING_LIMIT;
    let fetching = || store.figures(clock::now()).standings.contains_key(&Standing::Fetching);
    until(|| !fetching() || Instant::now() > limit).await;
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Keeps the rules while they are ours; never ends.
pub(super) async fn keep_rules(
    interception: Interception,
    state_dir: PathBuf,
    mut owns: watch::Receiver<bool>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
) {
    loop {
        // Without the sender the daemon is at its end.
        if owns.wait_for(|owns| *owns).await.is_err() {
            return std::future::pending().await;
        }
        // What we gave up may have been taken away.
        for condition in RULES {
            readiness.lacks(condition, "not in place yet");
        }
        // No lock is no reason to leave pods to the node's role. A daemon that cannot be handed over to writes the same.
        let lock = lock(&state_dir).await.inspect_err(|error| {
            tracing::warn!(%error, "--state-dir {}: the rules are kept without a lock", state_dir.display());
        });
        metrics.lacks_state_dir(StateUse::RulesLock, lock.is_err());
        tokio::select! {
            () = reconcile::keep(&interception, &readiness, &metrics) => {}
            () = hold(lock, &state_dir, &metrics) => {}
            Ok(_) = owns.wait_for(|owns| !owns) => {}
        }
    }
}

/// The lock for the rules. Who gave it up does so at once; who hangs with it does not write.
pub(super) async fn lock(state_dir: &Path) -> io::Result<RulesLock> {
    match tokio::time::timeout(LOCK_PATIENCE, RulesLock::acquire(state_dir)).await {
        Ok(lock) => lock,
        Err(_elapsed) => Err(io::Error::other("another daemon holds it")),
    }
}

/// Holds the lock, as soon as it can be had, and that of the directory that is there.
async fn hold(lock: io::Result<RulesLock>, state_dir: &Path, metrics: &Metrics) {
    let mut lock = lock;
    loop {
        tokio::time::sleep(TRY_AGAIN).await;
        if !lock.as_ref().is_ok_and(|lock| lock.is_of(state_dir)) {
            lock = RulesLock::acquire(state_dir).await;
            metrics.lacks_state_dir(StateUse::RulesLock, lock.is_err());
        }
    }
}
