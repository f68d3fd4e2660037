//! One daemon after the other on the same node: when the next one takes over, and what each does meanwhile.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
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
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// How often it is looked whether all is prepared.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
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
}

impl Succession {
    /// Takes over, and hands over when it is time: then `handed_over` is told. Ends when the one that took over does.
    pub(super) async fn run(self, handed_over: oneshot::Sender<()>) {
        let Self { predecessor, offer, owns, directory, store, readiness } = self;
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
        match offer.make(&owns).await {
            Ok(successor) => {
                let _ = handed_over.send(());
                successor.ended().await;
            }
            Err(error) => {
                tracing::warn!(%error, "an upgrade will refuse connections: the sockets cannot be offered");
                std::future::pending().await
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

/// Keeps the rules while they are ours; never ends unless the state directory cannot be used.
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
        let lock = match RulesLock::acquire(&state_dir).await {
            Ok(lock) => lock,
            Err(error) => {
                tracing::error!(%error, "--state-dir {}: no lock for the rules", state_dir.display());
                return;
            }
        };
        tokio::select! {
            () = reconcile::keep(&interception, &readiness, &metrics) => {}
            Ok(_) = owns.wait_for(|owns| !owns) => {}
        }
        drop(lock);
    }
}
