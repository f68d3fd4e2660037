//! The redirect and the guard: how pods' requests come to us, and why they come nowhere else.
//!
//! Owns every rule that we put on the node and the name that marks it as ours; foreign rules are never
//! touched. Invariant: the guard stands from before the redirect until an operator removes both, so that
//! while the redirect is gone, or we are, a pod gets refused and never the node's role.

pub mod guard;
pub mod handover;
pub mod iptables;
pub mod original;
pub mod reconcile;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use futures::future::BoxFuture;

/// The metadata service over IPv4.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The metadata service over IPv6.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The metadata addresses that pods are kept from.
pub const METADATA: [IpAddr; 2] = [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)];

/// A part of the interception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Routing rules that refuse pods the real service.
    Guard,
    /// NAT rules that bring pods' requests to us.
    Redirect,
}

impl Part {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Redirect => "redirect",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A command is not installed.
    #[error("{command} is not installed: {error}")]
    Missing {
        /// The command.
        command: &'static str,
        /// What starting it said.
        error: std::io::Error,
    },
    /// A command failed.
    #[error("{command} failed: {output}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// What it printed.
        output: String,
    },
    /// The kernel refused a routing rule.
    #[error("a routing rule could not be {what}: {error}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: String,
    },
}

/// One set of rules of ours on the node.
pub trait Firewall: Send + Sync {
    /// Whether all of it is in place.
    fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>>;
    /// Puts all of it in place; what is there stays or is replaced in one step.
    fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>>;
    /// Takes all of it out, also what an earlier run with other addresses or ports left.
    fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>>;
}

/// The node's own address on the way to the metadata service: where redirected requests can be sent.
///
/// # Errors
/// When the node has no route there.
pub fn node_address() -> std::io::Result<Ipv4Addr> {
    // Connecting a UDP socket asks the kernel for a route and sends nothing.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddrV4::new(METADATA_V4, 80))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(std::io::Error::from(std::io::ErrorKind::AddrNotAvailable)),
    }
}

/// Takes every rule of ours out of the node, whoever put it there: what can be taken out, also if something
/// cannot.
///
/// # Errors
/// All that could not be taken out.
pub async fn remove_all() -> Result<(), Vec<FirewallError>> {
    let redirect = iptables::Iptables::new(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), None);
    let (redirect, guard) = (redirect.remove().await, guard::Guard.remove().await);
    let errors = [redirect, guard].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
