//! The end of the interception on a node: guard and redirect are taken out, and nobody is served.
//!
//! [`once`] is an operator's, after the daemon was stopped. [`stay`] is a DaemonSet's, whose pods are started again when they
//! end: it takes over from a daemon that runs, as the next one would, keeps the rules out, and idles. Whoever follows it takes
//! over from it in the same way, so either may come first.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::watch;

use super::{listeners, once_ours, succession};
use crate::{
    admin::{self, Admin, socket::Socket},
    config::Removal,
    drain,
    imds::key,
    intercept::{
        self,
        handover::{self, End, Offer, Predecessor, RulesLock, Successor},
    },
    local_socket,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// Between two looks at whether anything is there again.
const INTERVAL: Duration = Duration::from_secs(30);
/// Between two tries to take out what could not be.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// What another daemon holds is held for longer.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Takes out the rules, and what daemons left in the state directory.
///
/// # Errors
/// All that could not be taken out, a line each; nothing is taken out while a daemon runs, which would put it back.
pub async fn once(removal: &Removal) -> anyhow::Result<()> {
    let Removal { state_dir, admin_socket, .. } = removal;
    // Without a state directory no daemon runs with it.
    let lock = match tokio::time::timeout(A_MOMENT, RulesLock::acquire(state_dir)).await {
        Ok(lock) => lock.ok(),
        Err(_elapsed) => anyhow::bail!(
            "not removed: a daemon runs on this node, and would put the rules back: stop it first, or take over from it \
             (`rules remove --stay`)"
        ),
    };
    if let Err(problems) = remove().await {
        let problems = problems.iter().map(|problem| format!("not removed: {problem}")).collect::<Vec<_>>();
        anyhow::bail!("{}", problems.join("\n"));
    }
    // One that redirects nothing (`--intercept observe`, `none`) writes no rules, and needs its files.
    if handover::is_offered(state_dir).await {
        return Ok(());
    }
    let _in_the_way = local_socket::remove_dead(admin_socket).await;
    forget(state_dir).with_context(|| format!("not removed: --state-dir {}", state_dir.display()))?;
    drop(lock);
    Ok(())
}

/// Takes out the rules and keeps them out until `stop`; then also what daemons left in the state directory.
///
/// # Errors
/// When it cannot listen, or when the daemon that took over from it has ended: to be started again.
pub async fn stay(removal: Removal, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Removal { admin_listen, admin_socket, state_dir, .. } = removal;
    let metrics = Arc::new(Metrics::new()?);
    let readiness = Arc::new(Readiness::default());
    readiness.lacks(Condition::Rules, "not taken out yet");
    let admin = Arc::new(Admin::new(Arc::clone(&metrics), Arc::clone(&readiness)));
    let admin_socket = Socket::serve(admin_socket, Arc::clone(&admin), Arc::clone(&metrics));
    // Without it there is no lock and no hand-over, which is said; rules can be taken out all the same.
    let _ = DirBuilder::new().recursive(true).mode(0o700).create(&state_dir);
    let mut stop = std::pin::pin!(stop);
    let ports = [admin_listen];
    let mut predecessor = tokio::select! {
        predecessor = listeners::predecessor(&state_dir, &ports) => predecessor,
        () = stop.as_mut() => return Ok(()),
    };
    let listener = listeners::bind("--admin-listen", admin_listen, predecessor.as_mut())?;
    let offer = Offer::new(&state_dir, [&listener])?;
    let owns = watch::Sender::new(predecessor.is_none());
    let tried = watch::Sender::new(false);
    // No daemon is here whose files those in the state directory are.
    let alone = AtomicBool::new(predecessor.is_none());
    let (_drain, watcher) = drain::channel();

    let successor = tokio::select! {
        () = stop.as_mut() => None,
        successor = succeed(predecessor, &offer, &owns, &tried, &alone, &metrics) => Some(successor?),
        () = keep_out(&state_dir, owns.subscribe(), &tried, &readiness, &metrics) => None,
        () = once_ours(owns.subscribe(), watcher, admin::serve(listener, admin)) => None,
    };
    let Some(successor) = successor else {
        drop(admin_socket);
        // What belongs to a daemon that goes on, or is about to, stays.
        if *owns.borrow() && alone.load(Ordering::Relaxed) && !offer.is_asked() {
            forget(&state_dir).with_context(|| format!("--state-dir {}", state_dir.display()))?;
        }
        return Ok(());
    };
    tracing::info!("handed over to the next daemon; nothing is left to do but to wait for the signal to stop");
    tokio::select! {
        () = stop => Ok(()),
        () = successor.ended() => anyhow::bail!("the daemon that took over has ended"),
    }
}

/// Takes over from the daemon before, and hands over to the next.
async fn succeed(
    predecessor: Option<Predecessor>,
    offer: &Offer,
    owns: &watch::Sender<bool>,
    tried: &watch::Sender<bool>,
    alone: &AtomicBool,
    metrics: &Metrics,
) -> anyhow::Result<Successor> {
    // As long as the connection is open, the one before knows that somebody is here.
    let (mut _before, mut place) = (None, None);
    if let Some(mut predecessor) = predecessor {
        tracing::info!("a daemon is running here; it is taken over from");
        predecessor.take().await;
        owns.send_replace(true);
        // What could not be taken out refuses pods: no reason to go on serving them.
        let mut tries = tried.subscribe();
        let end = tokio::select! {
            _ = tries.wait_for(|tried| *tried) => None,
            end = predecessor.ended() => Some(end),
        };
        anyhow::ensure!(
            end != Some(End::WentOn),
            "the daemon that ran here waited no longer for this one, and goes on"
        );
        place = offer.take_place().ok();
        predecessor.stop().await;
        _before = Some(predecessor);
        alone.store(true, Ordering::Relaxed);
        tracing::info!("took over from the daemon that ran here");
    }
    Ok(succession::make(offer, place, owns, metrics).await)
}

/// Keeps the rules out while they are ours; never ends.
async fn keep_out(
    state_dir: &Path,
    mut owns: watch::Receiver<bool>,
    tried: &watch::Sender<bool>,
    readiness: &Readiness,
    metrics: &Metrics,
) {
    loop {
        if owns.wait_for(|owns| *owns).await.is_err() {
            return std::future::pending().await;
        }
        // No lock is no reason to leave them.
        let lock = succession::lock(state_dir).await.inspect_err(|error| {
            tracing::warn!(%error, "--state-dir {}: no lock for the rules", state_dir.display());
        });
        tokio::select! {
            () = remove_again_and_again(tried, readiness, metrics) => {}
            Ok(_) = owns.wait_for(|owns| !owns) => {}
        }
        drop(lock);
    }
}

async fn remove_again_and_again(tried: &watch::Sender<bool>, readiness: &Readiness, metrics: &Metrics) {
    let mut told = None;
    loop {
        let problem = remove().await.err().map(|problems| problems.join("; "));
        match &problem {
            None => readiness.holds(Condition::Rules),
            Some(problem) => readiness.lacks(Condition::Rules, format!("not taken out: {problem}")),
        }
        if told.as_ref() != Some(&problem) {
            match &problem {
                None => tracing::warn!(
                    "guard and redirect are taken out and kept out: pods of this node reach the real metadata service, \
                     and the node's role"
                ),
                Some(problem) => tracing::error!("rules are not taken out, and it is tried again: {problem}"),
            }
        }
        metrics.intercept.reset();
        metrics.intercept.with_label_values(&["remove"]).set(1);
        tried.send_replace(true);
        tokio::time::sleep(if problem.is_none() { INTERVAL } else { TRY_AGAIN }).await;
        told = Some(problem);
    }
}

async fn remove() -> Result<(), Vec<String>> {
    intercept::remove_all().await.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// Takes what daemons leave in the state directory out of it, and the directory too if it is empty then and no mount.
fn forget(state_dir: &Path) -> io::Result<()> {
    local_socket::remove_leftovers(&state_dir.join(handover::SOCKET), Duration::ZERO)?;
    let files = key::FILES.iter().chain([&handover::SOCKET]).map(|name| state_dir.join(name));
    for file in files.collect::<Vec<PathBuf>>() {
        local_socket::remove(&file)?;
    }
    let _not_ours = fs::remove_dir(state_dir);
    Ok(())
}
