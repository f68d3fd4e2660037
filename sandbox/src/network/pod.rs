//! A pod's network: its namespace, its addresses, and the link that leads to it.

use std::{
    collections::HashSet,
    fmt::Write as _,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    BRIDGE_ADDRESS, BRIDGE_ADDRESS_V6, Families, Namespace, NetworkError, PodAddresses, PodNetwork,
    addresses::ROUTER_ADDRESS,
    link::{LINK_UP, PORT_FORWARDS, ip, prepare, wait_for, wait_for_addresses},
    topology::{BRIDGE, UPLINK},
};

/// A routed pod's gateway: nobody has this address, and the neighbour entry makes that no matter.
const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same over IPv6: what the host-side link makes of its hardware address.
const GATEWAY_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// The hardware address of every routed pod's host-side link.
const GATEWAY_HARDWARE_ADDRESS: &str = "ee:ee:ee:ee:ee:ee";

/// The first of the branch interfaces' tables: the VPC CNI's is a hundred more than the interface's VLAN.
const FIRST_TABLE: u32 = 101;

/// The addresses that pods of a network have.
pub(super) type Taken = Arc<Mutex<HashSet<IpAddr>>>;

/// A pod's network. Dropped, it is removed.
#[derive(Debug)]
pub struct Pod {
    addresses: PodAddresses,
    namespace: Namespace,
    link: String,
    hardware_address: String,
    /// The table that routes what the pod sends over IPv4, before all others.
    table: Option<u32>,
    node: Namespace,
    taken: Taken,
}

impl Pod {
    /// A pod that is connected as `shape` says, by the link of this number.
    pub(super) fn connect(
        addresses: PodAddresses,
        (shape, families): (PodNetwork, Families),
        node: &Namespace,
        number: u32,
        taken: &Taken,
    ) -> Result<Self, NetworkError> {
        take(addresses, taken)?;
        let namespace = Namespace::new().inspect_err(|_| give_back(addresses, taken))?;
        let [_, a, b, c] = number.to_be_bytes();
        // From here on its drop takes back what was done.
        let pod = Self {
            addresses,
            namespace,
            link: format!("veth{number}"),
            // Of its own for each pod, also on an address that another had before.
            hardware_address: format!("02:00:00:{a:02x}:{b:02x}:{c:02x}"),
            table: addresses.v4().filter(|_| shape == PodNetwork::BranchInterfaces).map(|_| FIRST_TABLE + number),
            node: node.clone(),
            taken: Arc::clone(taken),
        };
        prepare(&pod.namespace, families)?;
        match shape {
            PodNetwork::Bridge => pod.connect_to_bridge()?,
            PodNetwork::Routed | PodNetwork::BranchInterfaces => pod.connect_by_route()?,
        }
        Ok(pod)
    }

    /// The pod's first address: the IPv4 one, where it has one.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.addresses.first()
    }

    /// The pod's IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.addresses.v6()
    }

    /// All of the pod's addresses.
    #[must_use]
    pub fn addresses(&self) -> PodAddresses {
        self.addresses
    }

    /// The pod's network namespace. Its link is `eth0`.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The hardware address of the pod's link, in the way `ip` writes it. No two pods of a network have the same.
    #[must_use]
    pub fn hardware_address(&self) -> &str {
        &self.hardware_address
    }

    /// The name of the link on the node that leads to the pod. No two pods of a network have the same, one after the
    /// other neither.
    #[must_use]
    pub fn host_link(&self) -> &str {
        &self.link
    }

    /// Removes the pod's link and, unless something still runs in it, its namespace. The addresses are free afterwards.
    ///
    /// # Errors
    /// When the link cannot be removed.
    pub fn remove(mut self) -> Result<(), NetworkError> {
        self.take_back()
    }

    fn connect_to_bridge(&self) -> Result<(), NetworkError> {
        let Self { addresses, namespace, link, hardware_address, node, .. } = self;
        ip(
            node,
            &format!(
                "link add {link} type veth peer name eth0 address {hardware_address} netns {}\n\
                 link set {link} master {BRIDGE} up\n",
                namespace.path().display()
            ),
        )?;
        let mut batch = String::from("link set lo up\nlink set eth0 up\n");
        // Those who knew the address's last pod are told, as the bridge plugin does: with these settings, to set the
        // hardware address is to announce it, also when it stays the same.
        let mut announces = Vec::new();
        // Writing to a string cannot fail.
        if let Some(address) = addresses.v4() {
            writeln!(batch, "addr add {address}/24 dev eth0\nroute add default via {BRIDGE_ADDRESS}").ok();
            announces.push(("ipv4/conf/eth0/arp_notify", "1"));
        }
        if let Some(address) = addresses.v6() {
            writeln!(batch, "addr add {address}/64 dev eth0\nroute add default via {BRIDGE_ADDRESS_V6}").ok();
            announces.push(("ipv6/conf/eth0/ndisc_notify", "1"));
        }
        ip(namespace, &batch)?;
        wait_for(node, link, PORT_FORWARDS)?;
        // It came up with its first port.
        wait_for(node, BRIDGE, LINK_UP)?;
        if addresses.v6().is_some() {
            wait_for_addresses(namespace, "eth0")?;
            wait_for_addresses(node, BRIDGE)?;
        }
        namespace.set(&announces)?;
        ip(namespace, &format!("link set eth0 address {hardware_address}\n"))
    }

    fn connect_by_route(&self) -> Result<(), NetworkError> {
        let Self { addresses, namespace, link, hardware_address, table, node, .. } = self;
        ip(
            node,
            &format!(
                "link add {link} address {GATEWAY_HARDWARE_ADDRESS} type veth \
                 peer name eth0 address {hardware_address} netns {}\n\
                 link set {link} up\n",
                namespace.path().display()
            ),
        )?;
        let mut batch = String::from("link set lo up\nlink set eth0 up\n");
        let mut routes = String::new();
        if let Some(address) = addresses.v4() {
            batch += &format!(
                "addr add {address}/32 dev eth0\n\
                 route add {GATEWAY_ADDRESS} dev eth0 scope link\n\
                 neigh add {GATEWAY_ADDRESS} lladdr {GATEWAY_HARDWARE_ADDRESS} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_ADDRESS} dev eth0\n"
            );
            routes += &format!("route add {address}/32 dev {link} scope link\n");
            if let Some(table) = table {
                routes += &format!(
                    "route add default via {ROUTER_ADDRESS} dev {UPLINK} table {table}\n\
                     route add {address}/32 dev {link} scope link table {table}\n\
                     rule add pref 10 iif {link} lookup {table}\n"
                );
            }
        }
        if let Some(address) = addresses.v6() {
            batch += &format!(
                "addr add {address}/128 dev eth0\n\
                 neigh add {GATEWAY_ADDRESS_V6} lladdr {GATEWAY_HARDWARE_ADDRESS} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_ADDRESS_V6} dev eth0\n"
            );
            routes += &format!("route add {address}/128 dev {link}\n");
        }
        ip(namespace, &batch)?;
        wait_for(node, link, LINK_UP)?;
        if addresses.v6().is_some() {
            wait_for_addresses(namespace, "eth0")?;
            wait_for_addresses(node, link)?;
        }
        ip(node, &routes)
    }

    fn take_back(&mut self) -> Result<(), NetworkError> {
        // Once only, also when it fails.
        let link = mem::take(&mut self.link);
        if link.is_empty() {
            return Ok(());
        }
        // The kernel removes a namespace some time after its end; the link must be gone now.
        let mut batch = format!("link delete {link}\n");
        if let Some(table) = self.table {
            // What does not lead to the link stays behind.
            writeln!(batch, "rule del pref 10 iif {link}\nroute del default table {table}").ok();
        }
        let removed = ip(&self.node, &batch);
        give_back(self.addresses, &self.taken);
        removed
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            tracing::warn!(address = %self.address(), %error, "cannot remove a pod's link");
        }
    }
}

/// All of the addresses, or none.
fn take(addresses: PodAddresses, taken: &Taken) -> Result<(), NetworkError> {
    let (mut taken, addresses) = (taken.lock().unwrap_or_else(PoisonError::into_inner), addresses.to_vec());
    if let Some(address) = addresses.iter().find(|address| taken.contains(address)) {
        return Err(NetworkError::AddressTaken(*address));
    }
    taken.extend(addresses);
    Ok(())
}

fn give_back(addresses: PodAddresses, taken: &Taken) {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    taken.retain(|address| !addresses.to_vec().contains(address));
}
