//! The sandbox's network: a node, its pods, and what is outside of them, each in a network namespace of its own.
//!
//! Owns namespaces, links, addresses, routes and the masquerading that a node has *without* kube2irsa. Installs nothing of
//! kube2irsa's: the daemon's redirect and guard meet here what they meet on a real node.
//!
//! Invariant: nothing outlives the process, however it ends. Namespaces have no name and no mount, only this process's
//! file descriptors; what runs in them is killed with this process; files over `/etc` are in the child's own mount
//! namespace, on a file system in memory.
//!
//! Everything here blocks for some milliseconds and works on threads of its own: the caller's thread never changes its
//! namespace, so it may be a runtime's. IPv4 only, with IPv6 switched off in every namespace, unless
//! other [`Families`] are asked for.

mod addresses;
mod command;
mod link;
mod namespace;
mod pod;
mod topology;

use std::{io, net::IpAddr, path::PathBuf};

pub use addresses::{
    BRIDGE_ADDRESS, BRIDGE_ADDRESS_V6, CONTAINER_ADDRESS_V6, CONTAINER_ADDRESSES, EC2_ADDRESS, EC2_ADDRESS_V6,
    Families, KUBERNETES_ADDRESS, METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS, NODE_ADDRESS_V6, OIDC_ADDRESS,
    PODS_PREFIX, PODS_PREFIX_V6, PodAddresses, S3_ADDRESS, S3_ADDRESS_V6, STS_ADDRESS, STS_ADDRESS_V6,
};
pub use command::{Command, Process};
pub use namespace::Namespace;
pub use pod::Pod;
pub use topology::{Network, PodNetwork, UPLINK};

/// What can go wrong while a network is made, changed or used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a namespace.
    #[error(
        "cannot {action} (it needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN; a container must be privileged): {source}"
    )]
    Namespace {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A kernel setting could not be written.
    #[error("cannot set {} to {value}: {source}", path.display())]
    Sysctl {
        /// The setting's file.
        path: PathBuf,
        /// What it should have become.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A file could not be put in the place of another, for a command.
    #[error("cannot mount over {} (it must exist): {source}", path.display())]
    Mount {
        /// The place.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A command could not be started.
    #[error("cannot run {program}: {source}")]
    Spawn {
        /// The command.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A command that sets up the network failed.
    #[error("{program} failed: {reason}")]
    SetUp {
        /// The command.
        program: &'static str,
        /// What it said, on one line.
        reason: String,
    },
    /// A link did not come up.
    #[error("a link does not come up ({}): {source}", path.display())]
    LinkState {
        /// The attribute that tells.
        path: PathBuf,
        /// Why it could not be read, or that it took too long.
        source: io::Error,
    },
    /// Not an address that a pod can have.
    #[error(
        "{0} is no address for a pod: it must be in {PODS_PREFIX} or {PODS_PREFIX_V6}, of a family that the network has, and not the network's, the bridge's or the broadcast address"
    )]
    NotAPodAddress(IpAddr),
    /// Another pod has the address.
    #[error("another pod has {0}: remove it first")]
    AddressTaken(IpAddr),
}
