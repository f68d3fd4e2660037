//! The redirect and the guard: how pods' requests come to us, and why they come nowhere else.
//!
//! Owns every rule that we put on the node and the name that marks it as ours; foreign rules are never
//! touched. Invariant: the guard stands from before the redirect until an operator removes both, so that
//! while the redirect is gone, or we are, a pod gets refused and never the node's role.

mod announcements;
pub mod check;
mod command;
pub mod guard;
pub mod handover;
pub mod host;
pub mod iptables;
mod listing;
pub mod nft;
pub mod obstacles;
pub mod original;
pub mod plan;
pub mod reconcile;
pub mod rivals;
mod unseen;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;

use self::unseen::Own;

/// The metadata service over IPv4.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The metadata service over IPv6.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The metadata addresses that pods are kept from.
pub const METADATA: [IpAddr; 2] = [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)];
/// Where SDKs look for `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`: the container endpoint of ECS.
pub const CONTAINER: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
/// The container endpoint of EKS Pod Identity over IPv4.
pub const POD_IDENTITY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23));
/// The container endpoint of EKS Pod Identity over IPv6.
pub const POD_IDENTITY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23));

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address's.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The metadata service's address in it.
    #[must_use]
    pub fn metadata(self) -> IpAddr {
        match self {
            Self::V4 => METADATA_V4.into(),
            Self::V6 => METADATA_V6.into(),
        }
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The length of the prefix that is one address.
    fn address_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What is redirected, and where to.
#[derive(Clone, Debug)]
pub struct Redirection {
    /// The addresses whose requests come to us.
    pub addresses: Arc<[IpAddr]>,
    /// Addresses of the node's own with our ports, one of each family for which something listens.
    pub targets: Vec<SocketAddr>,
    /// How many connections one pod may begin.
    pub rush: Rush,
}

impl Redirection {
    /// Where requests of a family are sent, and those for which addresses.
    fn of(&self, family: Family) -> Option<(SocketAddr, Vec<IpAddr>)> {
        let to = self.targets.iter().copied().find(|target| Family::of(target.ip()) == family)?;
        Some((to, self.addresses.iter().copied().filter(|address| Family::of(*address) == family).collect()))
    }
}

/// How many connections one address may begin.
#[derive(Clone, Copy, Debug)]
pub struct Rush {
    /// In a second, in the long run.
    pub per_second: u32,
    /// At once after a rest.
    pub burst: u32,
}

/// A part of the interception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Routing rules that refuse pods the real service.
    Guard,
    /// NAT rules that bring pods' requests to us.
    Redirect,
    /// What lets them in, where a firewall of the node's own would not.
    Input,
    /// A redirect that an earlier run left, which must not come back.
    Leftover,
    /// What brings pods on the node's network to us.
    HostRedirect,
}

impl Part {
    /// Whether pods are served without it, most of the time.
    #[must_use]
    pub fn is_beside(self) -> bool {
        matches!(self, Self::Input | Self::Leftover)
    }

    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Redirect => "redirect",
            Self::Input => "input",
            Self::Leftover => "leftover",
            Self::HostRedirect => "host_redirect",
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
        command: String,
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
    /// How many packets it had redirected when it was last looked at, where it counts them.
    fn redirected(&self) -> Option<u64> {
        None
    }
}

/// All addresses whose requests come to us: those of the metadata service, and these of the container endpoint.
#[must_use]
pub fn addresses(container: &[IpAddr]) -> Arc<[IpAddr]> {
    METADATA.iter().chain(container).copied().collect()
}

/// An address of the node's own, where redirected requests can be sent: that on the way to the metadata service, or else
/// any that others can reach. `None` where the node has none of the family.
#[must_use]
pub fn node_address(family: Family) -> Option<IpAddr> {
    // Connecting a UDP socket asks the kernel for a route and sends nothing.
    let on_the_way = || {
        let socket = std::net::UdpSocket::bind((family.unspecified(), 0)).ok()?;
        socket.connect((family.metadata(), 80)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    let any = || {
        let mut addresses = own_addresses().ok()?.into_iter();
        addresses.find(|address| Family::of(*address) == family && can_be_reached(address))
    };
    on_the_way().filter(can_be_reached).or_else(any)
}

fn can_be_reached(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified() && !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

/// The addresses of the node's links.
fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

/// Every rule of ours on the node, each group below the command that prints it; empty if there is none. The second: what
/// could not be looked at.
pub async fn show() -> (String, Vec<String>) {
    let listing = listing::Listing::read().await;
    (listing.to_string(), listing.unread().map(ToString::to_string).collect())
}

/// Where redirected requests are sent: addresses of the node's own, which packets from pods can reach, for what listens at
/// these. A family in which it has none is refused by the guard.
#[must_use]
pub fn targets(listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let target = |listening: &SocketAddr| {
        let own = Some(listening.ip()).filter(|ip| !ip.is_unspecified());
        let own = own.or_else(|| node_address(Family::of(listening.ip())))?;
        Some(SocketAddr::new(own, listening.port()))
    };
    listening.iter().filter_map(target).collect()
}

/// Takes every rule of ours out of the node, whoever put it there: what can be taken out, also if something
/// cannot. What [`unseen`] tells of is left.
///
/// # Errors
/// All that could not be taken out.
pub async fn remove_all() -> Result<(), Vec<FirewallError>> {
    let own = Own::read().await;
    let mut errors = Vec::new();
    // What is ours is known by its name and mark, whatever addresses it is for.
    for leftover in plan::everything() {
        match leftover.remove().await {
            Ok(()) => {}
            // The same rules by another of its names, and by IPv6's, which come together.
            Err(FirewallError::Missing { command, .. }) if !["nft", "iptables"].contains(&command.as_str()) => {}
            Err(FirewallError::Missing { command, .. })
                if command == "iptables" && nft_sees_none_of_iptables().await => {}
            Err(error) if own.lacks_right(&error).is_some() => {}
            Err(error) => errors.push(error),
        }
    }
    errors.extend(guard::Guard::new(Arc::default()).remove().await.err());
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Without iptables: its tables of nftables are seen by `nft` too.
async fn nft_sees_none_of_iptables() -> bool {
    nft::list_all().await.is_ok_and(|ruleset| !ruleset.contains(&format!("chain {}", iptables::NAT_CHAIN)))
}

/// In which tables rules of ours could be that [`remove_all`] can neither see nor need fail for: only a run with other rights
/// or commands can have left some.
pub async fn unseen() -> Vec<String> {
    let own = Own::read().await;
    let mut unseen = Vec::new();
    if own.system.is_none() && nft_sees_none_of_iptables().await {
        unseen.push("legacy iptables, for iptables is not installed".to_owned());
    }
    let listing = listing::Listing::read().await;
    let commands = listing.unread().filter_map(|error| own.lacks_right(error));
    for text in commands.map(|command| format!("{command} ({})", unseen::NEEDS_RAW)) {
        if !unseen.contains(&text) {
            unseen.push(text);
        }
    }
    unseen
}
