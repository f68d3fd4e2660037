//! The addresses of the network: who has which, and of which families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The metadata service's address, outside.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same over IPv6.
pub const METADATA_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Where an agent's container credentials endpoint is, outside: that of ECS, and that of EKS Pod Identity.
pub const CONTAINER_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 170, 2), Ipv4Addr::new(169, 254, 170, 23)];
/// That of EKS Pod Identity over IPv6; ECS has none.
pub const CONTAINER_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23);
/// The address for STS, outside.
pub const STS_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The same over IPv6.
pub const STS_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The address for the Kubernetes API, outside.
pub const KUBERNETES_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
/// The address for the OIDC issuer, outside.
pub const OIDC_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 30);
/// The address for S3, outside.
pub const S3_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 40);
/// The same over IPv6.
pub const S3_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x40);
/// The address for EC2, outside.
pub const EC2_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
/// The same over IPv6.
pub const EC2_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
/// The node's address, on its [`UPLINK`](super::UPLINK).
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// The same over IPv6.
pub const NODE_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10);
/// The pods' addresses.
pub const PODS_PREFIX: &str = "10.244.0.0/24";
/// The same over IPv6.
pub const PODS_PREFIX_V6: &str = "fd00:10:244::/64";
/// The node's address among the pods, with [`PodNetwork::Bridge`](super::PodNetwork::Bridge).
pub const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The same over IPv6.
pub const BRIDGE_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

/// The outside's address on the node's link.
pub(super) const ROUTER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The same over IPv6.
pub(super) const ROUTER_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);

/// The families of the pods' addresses. The node has IPv4 in each, and IPv6 where pods have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// IPv4; IPv6 is switched off in every namespace.
    #[default]
    V4,
    /// Both, and every pod an address of each.
    Dual,
    /// IPv6, as in EKS clusters of that family.
    V6,
}

impl Families {
    /// Whether pods have IPv4 addresses.
    #[must_use]
    pub fn has_v4(self) -> bool {
        self != Self::V6
    }

    /// Whether pods have IPv6 addresses; then the node has one too.
    #[must_use]
    pub fn has_v6(self) -> bool {
        self != Self::V4
    }

    /// The addresses of the pod of this number: 10.244.0.N, fd00:10:244::N, or both.
    #[must_use]
    pub fn pod(self, number: u8) -> PodAddresses {
        let v4 = Ipv4Addr::new(10, 244, 0, number);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number.into());
        match self {
            Self::V4 => v4.into(),
            Self::Dual => (v4, v6).into(),
            Self::V6 => v6.into(),
        }
    }

    /// The node's addresses, in the order of the cluster's families.
    #[must_use]
    pub fn node(self) -> Vec<IpAddr> {
        match self {
            Self::V4 => vec![NODE_ADDRESS.into()],
            Self::Dual => vec![NODE_ADDRESS.into(), NODE_ADDRESS_V6.into()],
            Self::V6 => vec![NODE_ADDRESS_V6.into(), NODE_ADDRESS.into()],
        }
    }
}

/// A pod's addresses: one, or one of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodAddresses {
    /// IPv4 alone.
    V4(Ipv4Addr),
    /// Both.
    Dual(Ipv4Addr, Ipv6Addr),
    /// IPv6 alone.
    V6(Ipv6Addr),
}

impl PodAddresses {
    /// The IPv4 address.
    #[must_use]
    pub fn v4(self) -> Option<Ipv4Addr> {
        match self {
            Self::V4(v4) | Self::Dual(v4, _) => Some(v4),
            Self::V6(_) => None,
        }
    }

    /// The IPv6 address.
    #[must_use]
    pub fn v6(self) -> Option<Ipv6Addr> {
        match self {
            Self::V6(v6) | Self::Dual(_, v6) => Some(v6),
            Self::V4(_) => None,
        }
    }

    /// The first address: `status.podIP`.
    #[must_use]
    pub fn first(self) -> IpAddr {
        match self {
            Self::V4(v4) | Self::Dual(v4, _) => v4.into(),
            Self::V6(v6) => v6.into(),
        }
    }

    /// All of them, IPv4 first: `status.podIPs`.
    #[must_use]
    pub fn to_vec(self) -> Vec<IpAddr> {
        self.v4().map(IpAddr::from).into_iter().chain(self.v6().map(IpAddr::from)).collect()
    }

    /// The first address that a pod of these families cannot have.
    pub(super) fn refused(self, families: Families) -> Option<IpAddr> {
        // The prefixes are the bridge's too.
        let of_pods_v4 = |address: &Ipv4Addr| {
            let (bridge, last) = (BRIDGE_ADDRESS.octets(), address.octets()[3]);
            families.has_v4() && address.octets()[..3] == bridge[..3] && ![0, bridge[3], 255].contains(&last)
        };
        let of_pods_v6 = |address: &Ipv6Addr| {
            let (bridge, segments) = (BRIDGE_ADDRESS_V6.segments(), address.segments());
            // The one that ends in zeros is every router's (RFC 4291, 2.6.1).
            let is_routers = segments[4..] == [0; 4] || *address == BRIDGE_ADDRESS_V6;
            families.has_v6() && segments[..4] == bridge[..4] && !is_routers
        };
        let v4 = self.v4().filter(|address| !of_pods_v4(address)).map(IpAddr::from);
        v4.or_else(|| self.v6().filter(|address| !of_pods_v6(address)).map(IpAddr::from))
    }
}

impl From<Ipv4Addr> for PodAddresses {
    fn from(address: Ipv4Addr) -> Self {
        Self::V4(address)
    }
}

impl From<Ipv6Addr> for PodAddresses {
    fn from(address: Ipv6Addr) -> Self {
        Self::V6(address)
    }
}

impl From<IpAddr> for PodAddresses {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl From<(Ipv4Addr, Ipv6Addr)> for PodAddresses {
    fn from((v4, v6): (Ipv4Addr, Ipv6Addr)) -> Self {
        Self::Dual(v4, v6)
    }
}
