//! The admin socket: a unix socket of this process alone, so that whoever asks there hears of no other daemon of the node.
//!
//! Owns who may ask (root, and who we run as), how many at once and for how long, and the name: taken over at once when we
//! start, made again when it was taken away, and removed at the end if it is still ours. A directory that cannot be written to
//! costs the socket alone, until it can.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::server::conn::http1;
use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Admin, PAUSE, Way, speak};
use crate::{
    local_socket::{self, Name},
    metrics::{Metrics, StateUse},
};

/// Connections at once; more wait.
const MOST_CONNECTIONS: usize = 32;
/// A connection's time: one request, and its answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether the name is still ours, or can be had.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The admin socket, for as long as this is there.
#[derive(Debug)]
pub struct Socket {
    held: Arc<Mutex<Held>>,
    keeper: JoinHandle<()>,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Name(Name),
    /// For good.
    Ended,
}

// === impl Socket ===

impl Socket {
    /// Serves at `path` from now on, or from when that can be had; whoever serves there so far is not found any longer.
    #[must_use]
    pub fn serve(path: PathBuf, admin: Arc<Admin>, metrics: Arc<Metrics>) -> Self {
        let held = Arc::new(Mutex::new(Held::Nothing));
        let first = take(&path, &held, &metrics);
        let keeper = tokio::spawn(keep(path, first, Arc::clone(&held), admin, metrics));
        Self { held, keeper }
    }

    /// Never returns, unless there is nobody left to serve.
    pub fn ended(&mut self) -> impl Future<Output = ()> {
        let keeper = &mut self.keeper;
        async {
            let _panicked = keeper.await;
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.keeper.abort();
        let held = std::mem::replace(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner), Held::Ended);
        if let Held::Name(name) = held {
            name.give_up();
        }
    }
}

async fn keep(
    path: PathBuf,
    first: Option<UnixListener>,
    held: Arc<Mutex<Held>>,
    admin: Arc<Admin>,
    metrics: Arc<Metrics>,
) {
    let (mut listener, connections) = (first, Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        if let Some(listener) = listener.take() {
            tokio::select! {
                () = accept(&listener, &connections, &admin) => {}
                () = until_lost(&held) => {}
            }
        } else {
            sleep(LOOK_AGAIN).await;
        }
        // The next daemon may have it; if that ends, it is ours again.
        if !local_socket::is_answered(&path).await {
            listener = take(&path, &held, &metrics);
        }
    }
}

fn take(path: &Path, held: &Mutex<Held>, metrics: &Metrics) -> Option<UnixListener> {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*held, Held::Ended) {
        return None;
    }
    match local_socket::take(path) {
        Ok((listener, name)) => {
            *held = Held::Name(name);
            if metrics.lacks_state_dir(StateUse::AdminSocket, false) {
                tracing::info!(path = %path.display(), "the admin socket is there");
            }
            Some(listener)
        }
        Err(error) => {
            *held = Held::Nothing;
            if !metrics.lacks_state_dir(StateUse::AdminSocket, true) {
                tracing::warn!(%error, "--admin-socket {}: cannot be had, and is tried again", path.display());
            }
            None
        }
    }
}

async fn until_lost(held: &Mutex<Held>) {
    let is_ours = || match &*held.lock().unwrap_or_else(PoisonError::into_inner) {
        Held::Name(name) => name.is_ours(),
        Held::Nothing | Held::Ended => false,
    };
    while is_ours() {
        sleep(LOOK_AGAIN).await;
    }
}

async fn accept(listener: &UnixListener, connections: &Arc<Semaphore>, admin: &Arc<Admin>) {
    loop {
        // It is never closed.
        let Ok(turn) = Arc::clone(connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an operator's connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        if !may_ask(&stream) {
            continue;
        }
        let admin = Arc::clone(admin);
        tokio::spawn(async move {
            let mut connection = http1::Builder::new();
            connection.keep_alive(false).header_read_timeout(None);
            if timeout(TIME_LIMIT, speak(stream, connection, Way::Socket, admin)).await.is_err() {
                tracing::debug!("an operator's connection took too long");
            }
            drop(turn);
        });
    }
}

/// The file's mode says the same; but a mode can be changed.
fn may_ask(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
