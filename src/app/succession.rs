//! One daemon after the other on the same node: when the next one takes over, and what each does meanwhile.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    clock,
    credentials::Store,
    identity::Directory,
    intercept::{
        handover::{Offer, Predecessor, RulesLock},
        reconcile::{self, Interception},
    },
    metrics::{Metrics, StateUse},
    readiness::{Condition, Readiness},
};

/// How often it is looked whether all is prepared.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often that is tried which the state directory did not let us do: on a full disk, say.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// How long credentials may take that are fetched for the pods of the node: a full node's, at the default rate, take
/// under a minute.
const FETCHING_LIMIT: Duration = Duration::from_secs(120);

/// A daemon's place between the one before it and the one after it.
pub(super) struct Succession {
    pub(super) predecessor: Option<Predecessor>,
    pub(super) offer: Offer,
    /// Whether pods and rules are ours.
    pub(super) owns: Arc<watch::Sender<bool>>,
    pub(super) directory: Arc<Directory>,
    pub(super) store: Arc<Store>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) metrics: Arc<Metrics>,
}

impl Succession {
    /// Takes over, and hands over when it is time: then `handed_over` is told. Ends when the one that took over does.
    pub(super) async fn run(self, handed_over: oneshot::Sender<()>) {
        let Self { predecessor, offer, owns, directory, store, readiness, metrics } = self;
        // As long as the connection is open, the one before knows that somebody serves.
        let mut _before = None;
        if let Some(mut predecessor) = predecessor {
            tracing::info!("a daemon is running here; it goes on until this one is ready");
            tokio::select! {
                () = prepared(&directory, &store, &readiness) => predecessor.take().await,
                () = predecessor.died() => {}
            }
            owns.send_replace(true);
            tokio::select! {
                () = until(|| !readiness.is_lacking(Condition::Rules)) => predecessor.stop().await,
                () = predecessor.died() => {}
            }
            _before = Some(predecessor);
            tracing::info!("took over from the daemon that ran here");
        }
        let place = open(&offer, &metrics).await;
        let successor = offer.make(place, &owns).await;
        let _ = handed_over.send(());
        successor.ended().await;
    }
}

/// Where the next daemon will find our sockets, as soon as it can be had.
pub(super) async fn open(offer: &Offer, metrics: &Metrics) -> UnixListener {
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
    until(|| directory.synced() && readiness.lacks_nothing_but(&[Condition::Rules, Condition::Arrival])).await;
    let limit = Instant::now() + FETCHING_LIMIT;
    until(|| store.figures(clock::now()).pending == 0 || Instant::now() > limit).await;
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
        // No lock is no reason to leave pods to the node's role. A daemon that cannot be handed over to writes the same.
        let lock = RulesLock::acquire(&state_dir).await.inspect_err(|error| {
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

/// Holds the lock, as soon as it can be had.
async fn hold(lock: io::Result<RulesLock>, state_dir: &Path, metrics: &Metrics) {
    let mut lock = lock;
    while lock.is_err() {
        tokio::time::sleep(TRY_AGAIN).await;
        lock = RulesLock::acquire(state_dir).await;
        metrics.lacks_state_dir(StateUse::RulesLock, lock.is_err());
    }
    std::future::pending().await
}
