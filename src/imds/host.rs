//! Who is at the other end of a connection, where that may be a process on the node's own network.
//!
//! Invariants: an address that is a pod's is never looked into further, so pods with an address pay nothing for those
//! without; of any other the kernel is asked once, when it connects. Who cannot be told is nobody.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    cgroups::{CgroupId, Tree, socket},
    identity::{Directory, Peer, PodUid},
    metrics::Metrics,
};

/// Tells processes on the node's network apart.
#[derive(Debug)]
pub struct HostPeers {
    tree: Arc<Tree>,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    /// One goes through all folders at a time: who waits finds what that one found.
    searching: tokio::sync::Mutex<()>,
    /// Whether the kernel failed to say it the last time.
    failing: AtomicBool,
}

impl HostPeers {
    /// By the cgroups of this tree.
    #[must_use]
    pub fn new(tree: Arc<Tree>, directory: Arc<Directory>, metrics: Arc<Metrics>) -> Self {
        Self { tree, directory, metrics, searching: tokio::sync::Mutex::default(), failing: AtomicBool::new(false) }
    }

    /// Who is at the other end of a connection that `client` meant for `meant`.
    pub async fn peer(&self, client: SocketAddr, meant: SocketAddr) -> Peer {
        let address = Peer::Address(client.ip());
        if self.directory.get(client.ip()).is_some() {
            return address;
        }
        let cgroup = socket::cgroup_of(client, meant);
        self.tell_of_change(cgroup.as_ref().err());
        let (result, peer) = match cgroup {
            // No socket of this network's: a pod's that is not known yet, or one that is closed by now.
            Ok(None) => ("none", address),
            Ok(Some(cgroup)) => match self.pod(cgroup).await {
                Some(uid) => ("pod", Peer::HostPod(uid)),
                None => ("process", Peer::HostProcess),
            },
            Err(_) => ("failed", address),
        };
        self.metrics.host_lookups.with_label_values(&[result]).inc();
        peer
    }

    /// A line when it begins and one when it ends, and not one for each connection.
    fn tell_of_change(&self, error: Option<&io::Error>) {
        match (self.failing.swap(error.is_some(), Ordering::Relaxed), error) {
            (false, Some(error)) => {
                tracing::warn!(%error, "the kernel does not say whose connections on the node's network are: nobody is served there");
            }
            (true, None) => tracing::info!("the kernel says again whose connections on the node's network are"),
            _ => {}
        }
    }

    async fn pod(&self, cgroup: CgroupId) -> Option<PodUid> {
        if let Some(uid) = self.tree.known_pod(cgroup) {
            return Some(uid);
        }
        let _searching = self.searching.lock().await;
        let tree = Arc::clone(&self.tree);
        tokio::task::spawn_blocking(move || tree.pod(cgroup)).await.ok().flatten()
    }
}
