//! The listening sockets, of a daemon before us or our own, and what leads pods to them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    imds::limits::Limits,
    intercept::{
        self, Rush,
        handover::{Found, Predecessor},
        plan::Wanted,
        reconcile::Interception,
    },
};

/// How long a daemon that ran here before and hangs may hold what we need.
const SILENCE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions whether it lives.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted. All pods share them, and one that connects in a rush must not fill them: then the
/// kernel drops whoever else comes, who tries again after a second. As many as Linux lets us have by default.
const BACKLOG: u32 = 4096;
/// The kernel's share of what a client has not read, of each connection.
const SEND_BUFFER: u32 = 32 * 1024;
/// How long what was sent may stay unacknowledged, also once the connection is closed.
const UNACKNOWLEDGED_MILLISECONDS: u32 = 20_000;

/// The daemon that runs here already. One that does not answer is given time to die, if it is in our way.
pub(super) async fn predecessor(state_dir: &Path, listen: &[SocketAddr]) -> Option<Predecessor> {
    let limit = Instant::now() + SILENCE_PATIENCE;
    loop {
        match Predecessor::ask(state_dir).await {
            Found::Nobody => return None,
            Found::Predecessor(predecessor) => return Some(predecessor),
            Found::Silent if Instant::now() > limit || listen.iter().all(is_free) => return None,
            Found::Silent => {
                tracing::warn!("a daemon runs here that does not answer; waiting for its end");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

pub(super) fn bind(flag: &str, address: SocketAddr, before: Option<&mut Predecessor>) -> anyhow::Result<TcpListener> {
    if let Some(listener) = before.and_then(|predecessor| predecessor.listener(address)) {
        return Ok(listener);
    }
    let bind = || {
        let socket = socket(address)?;
        // What a connection inherits: answers are small, and what nobody reads must not stay in the kernel.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MILLISECONDS)?;
        // Connections of a daemon before us may still be in the kernel.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("{flag} {address}: cannot listen there"))
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        return TcpSocket::new_v4();
    }
    let socket = TcpSocket::new_v6()?;
    // IPv4 has a socket of its own, of which the kernel tells where a connection was meant to go.
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    Ok(socket)
}

fn is_free(address: &SocketAddr) -> bool {
    socket(*address).and_then(|socket| socket.bind(*address)).is_ok()
}

/// The listeners for pods: without that of IPv6 where the node has none and no address was named.
pub(super) fn for_pods(
    addresses: &[SocketAddr],
    mut before: Option<&mut Predecessor>,
) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let is_lacking = |error: io::Error| error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
        if address.is_ipv6() && address.ip().is_unspecified() && TcpSocket::new_v6().is_err_and(is_lacking) {
            tracing::info!("--listen {address}: this node has no IPv6");
            continue;
        }
        listeners.push(bind("--listen", *address, before.as_deref_mut())?);
    }
    Ok(listeners)
}

pub(super) fn interception(
    wanted: Wanted,
    listening: &[SocketAddr],
    container: &[IpAddr],
    limits: &Limits,
) -> anyhow::Result<Interception> {
    // A connection takes a turn as a request does; but one pod alone must not fill the queue.
    let rush = Rush { per_second: limits.requests_per_second, burst: limits.request_burst.min(BACKLOG * 3 / 8) };
    // What is there now may change; what was never there is an operator's mistake.
    anyhow::ensure!(
        !intercept::targets(listening).is_empty(),
        "--listen: the node's own address cannot be found; name it instead"
    );
    Ok(Interception {
        addresses: intercept::addresses(container),
        listening: listening.to_vec(),
        rush,
        wanted,
        host: None,
    })
}
