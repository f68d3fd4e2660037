//! Who is at the other end of a connection, as far as the kernel tells: an address, or a pod by its cgroup.

use std::{fmt, net::IpAddr};

use super::names::PodUid;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Whoever has this address, which is canonical.
    Address(IpAddr),
    /// The pod on the node's network with this UID.
    HostPod(PodUid),
    /// A process on the node's network that cannot be told to be a pod's.
    HostProcess,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::HostPod(uid) => write!(f, "pod {uid} on the node's network"),
            Self::HostProcess => f.write_str("a process on the node's network"),
        }
    }
}
