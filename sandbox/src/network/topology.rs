//! The network's shape: what is outside, the node, its pods.
//!
//! ```text
//! outside                      node                               pod
//! lo 169.254.169.254,          eth0 10.0.0.10 ── forwards,        eth0 10.244.0.x
//!    169.254.170.2, .23,       │                 masquerades         │
//!    192.0.2.10, …, .40        │                                     │
//! vpc0 10.0.0.1 ───────────────┘                    veth1 ───────────┘
//! ```
//!
//! As on EC2: the node has the metadata service on its link, the outside routes the pods' addresses to the node (they are
//! addresses of the VPC), and the node masquerades what pods send out by its uplink. So without kube2irsa a
//! pod reaches the metadata service as the node, and it still reaches it, as itself, when the node's rules are flushed:
//! only then can a test of the guard fail.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs, io, mem,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Namespace, NetworkError, command::mount_over};

/// The metadata service's address, outside.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where an agent's container credentials endpoint is, outside: that of ECS, and that of EKS Pod Identity.
pub const CONTAINER_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 170, 2), Ipv4Addr::new(169, 254, 170, 23)];
/// The address for STS, outside.
pub const STS_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The address for the Kubernetes API, outside.
pub const KUBERNETES_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
/// The address for the OIDC issuer, outside.
pub const OIDC_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 30);
/// The address for S3, outside.
pub const S3_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 40);
/// The node's address, on its [`UPLINK`].
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// The node's link to the outside.
pub const UPLINK: &str = "eth0";
/// The pods' addresses.
pub const PODS_PREFIX: &str = "10.244.0.0/24";
/// The node's address among the pods, with [`PodNetwork::Bridge`].
pub const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// The outside's end of the node's link.
const ROUTER_LINK: &str = "vpc0";
/// The outside's address on the node's link.
const ROUTER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The bridge, as kubenet names it.
const BRIDGE: &str = "cbr0";
/// A routed pod's gateway: nobody has this address, and the neighbour entry makes that no matter.
const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The hardware address of every routed pod's host-side link.
const GATEWAY_HARDWARE_ADDRESS: &str = "ee:ee:ee:ee:ee:ee";

/// How long a link may take to come up: some milliseconds, on a machine that has them.
const LINK_WAIT: Duration = Duration::from_secs(5);
/// A link's attribute, and its value when the link sends.
const LINK_UP: (&str, &str) = ("operstate", "up");
/// The same of a bridge's port: `BR_STATE_FORWARDING`.
const PORT_FORWARDS: (&str, &str) = ("brport/state", "3");

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodNetwork {
    /// One bridge that has an address; the pods' links are its ports (kubenet, flannel, the bridge plugin).
    Bridge,
    /// A link without an address and a /32 route for each pod, which has a gateway of 169.254.1.1 (Calico, the VPC CNI).
    #[default]
    Routed,
}

/// A node, what is outside of it, and its pods.
#[derive(Debug)]
pub struct Network {
    outside: Namespace,
    node: Namespace,
    shape: PodNetwork,
    links: AtomicU32,
    taken: Arc<Mutex<HashSet<Ipv4Addr>>>,
}

impl Network {
    /// Makes the outside and the node, without pods.
    ///
    /// # Errors
    /// When the kernel, `ip` or `iptables-restore` refuses something.
    pub fn new(shape: PodNetwork) -> Result<Self, NetworkError> {
        let (outside, node) = (Namespace::new()?, Namespace::new()?);
        for namespace in [&outside, &node] {
            without_ipv6(namespace)?;
        }
        // Reverse path checks as the CNIs set them; before the links are made, which inherit the default.
        node.set(&[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "1")])?;
        let mut batch = format!(
            "link set lo up\n\
             link add {ROUTER_LINK} type veth peer name {UPLINK} netns {}\n\
             addr add {ROUTER_ADDRESS}/24 dev {ROUTER_LINK}\n\
             link set {ROUTER_LINK} up\n\
             route add {PODS_PREFIX} via {NODE_ADDRESS}\n",
            node.path().display()
        );
        let [ecs, pod_identity] = CONTAINER_ADDRESSES;
        let addresses =
            [METADATA_ADDRESS, ecs, pod_identity, STS_ADDRESS, KUBERNETES_ADDRESS, OIDC_ADDRESS, S3_ADDRESS];
        for address in addresses {
            // Writing to a string cannot fail.
            writeln!(batch, "addr add {address}/32 dev lo").ok();
        }
        ip(&outside, &batch)?;
        let mut batch = format!(
            "link set lo up\n\
             addr add {NODE_ADDRESS}/24 dev {UPLINK}\n\
             link set {UPLINK} up\n\
             route add default via {ROUTER_ADDRESS}\n\
             route add {METADATA_ADDRESS} dev {UPLINK}\n"
        );
        if shape == PodNetwork::Bridge {
            batch += &format!(
                "link add {BRIDGE} type bridge forward_delay 0\n\
                 addr add {BRIDGE_ADDRESS}/24 dev {BRIDGE}\n\
                 link set {BRIDGE} up\n"
            );
        }
        ip(&node, &batch)?;
        wait_for(&outside, ROUTER_LINK, LINK_UP)?;
        let masquerade = format!("*nat\n-A POSTROUTING -s {PODS_PREFIX} -o {UPLINK} -j MASQUERADE\nCOMMIT\n");
        node.run("iptables-restore", &["--wait", "--noflush"], &masquerade)?;
        Ok(Self { outside, node, shape, links: AtomicU32::new(0), taken: Arc::default() })
    }

    /// Where the metadata service, STS, the Kubernetes API and the OIDC issuer are.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// The node: where the daemon runs.
    #[must_use]
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// How pods are connected.
    #[must_use]
    pub fn shape(&self) -> PodNetwork {
        self.shape
    }

    /// Adds a pod, with an address of [`PODS_PREFIX`].
    ///
    /// # Errors
    /// When a pod cannot have the address, another pod has it, or the kernel or `ip` refuses something.
    pub fn add_pod(&self, address: Ipv4Addr) -> Result<Pod, NetworkError> {
        // The prefix is the bridge's too.
        let (bridge, last) = (BRIDGE_ADDRESS.octets(), address.octets()[3]);
        if address.octets()[..3] != bridge[..3] || [0, bridge[3], 255].contains(&last) {
            return Err(NetworkError::NotAPodAddress(address));
        }
        if !self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(address) {
            return Err(NetworkError::AddressTaken(address));
        }
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let [_, a, b, c] = number.to_be_bytes();
        // Of its own for each pod, also on an address that another had before.
        let hardware_address = format!("02:00:00:{a:02x}:{b:02x}:{c:02x}");
        let link = format!("veth{number}");
        let namespace = Namespace::new().inspect_err(|_| {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        })?;
        // From here on its drop takes back what was done.
        let pod =
            Pod { address, namespace, link, hardware_address, node: self.node.clone(), taken: Arc::clone(&self.taken) };
        without_ipv6(&pod.namespace)?;
        match self.shape {
            PodNetwork::Bridge => pod.connect_to_bridge()?,
            PodNetwork::Routed => pod.connect_by_route()?,
        }
        Ok(pod)
    }
}

/// A pod's network. Dropped, it is removed.
#[derive(Debug)]
pub struct Pod {
    address: Ipv4Addr,
    namespace: Namespace,
    link: String,
    hardware_address: String,
    node: Namespace,
    taken: Arc<Mutex<HashSet<Ipv4Addr>>>,
}

impl Pod {
    /// The pod's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
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

    /// Removes the pod's link and, unless something still runs in it, its namespace. The address is free afterwards.
    ///
    /// # Errors
    /// When the link cannot be removed.
    pub fn remove(mut self) -> Result<(), NetworkError> {
        self.take_back()
    }

    fn connect_to_bridge(&self) -> Result<(), NetworkError> {
        let Self { address, namespace, link, hardware_address, node, .. } = self;
        ip(
            node,
            &format!(
                "link add {link} type veth peer name eth0 address {hardware_address} netns {}\n\
                 link set {link} master {BRIDGE} up\n",
                namespace.path().display()
            ),
        )?;
        ip(
            namespace,
            &format!(
                "link set lo up\n\
                 addr add {address}/24 dev eth0\n\
                 link set eth0 up\n\
                 route add default via {BRIDGE_ADDRESS}\n"
            ),
        )?;
        wait_for(node, link, PORT_FORWARDS)?;
        // It came up with its first port.
        wait_for(node, BRIDGE, LINK_UP)?;
        // Those who knew the address's last pod are told, as the bridge plugin does: with this setting, to set the
        // hardware address is to announce it, also when it stays the same.
        namespace.set(&[("ipv4/conf/eth0/arp_notify", "1")])?;
        ip(namespace, &format!("link set eth0 address {hardware_address}\n"))
    }

    fn connect_by_route(&self) -> Result<(), NetworkError> {
        let Self { address, namespace, link, hardware_address, node, .. } = self;
        ip(
            node,
            &format!(
                "link add {link} address {GATEWAY_HARDWARE_ADDRESS} type veth \
                 peer name eth0 address {hardware_address} netns {}\n\
                 link set {link} up\n",
                namespace.path().display()
            ),
        )?;
        ip(
            namespace,
            &format!(
                "link set lo up\n\
                 addr add {address}/32 dev eth0\n\
                 link set eth0 up\n\
                 route add {GATEWAY_ADDRESS} dev eth0 scope link\n\
                 neigh add {GATEWAY_ADDRESS} lladdr {GATEWAY_HARDWARE_ADDRESS} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_ADDRESS} dev eth0\n"
            ),
        )?;
        wait_for(node, link, LINK_UP)?;
        ip(node, &format!("route add {address}/32 dev {link} scope link\n"))
    }

    fn take_back(&mut self) -> Result<(), NetworkError> {
        // Once only, also when it fails.
        let link = mem::take(&mut self.link);
        if link.is_empty() {
            return Ok(());
        }
        // The kernel removes a namespace some time after its end; the link must be gone now.
        let removed = ip(&self.node, &format!("link delete {link}\n"));
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address);
        removed
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            tracing::warn!(address = %self.address, %error, "cannot remove a pod's link");
        }
    }
}

/// Waits until a link sends. The kernel lets the end of a pair that was up first send only some time after the other is
/// up too; what it should have sent until then, such as the question for a neighbour, is lost, and repeated after a second.
fn wait_for(namespace: &Namespace, link: &str, (attribute, wanted): (&str, &str)) -> Result<(), NetworkError> {
    let directory = Path::new("/sys/class/net").join(link);
    let (path, carrier) = (directory.join(attribute), directory.join("carrier"));
    let unreadable = |source| NetworkError::LinkState { path: path.clone(), source };
    namespace.enter(|| {
        mount_over(&BTreeMap::new())?;
        let deadline = Instant::now() + LINK_WAIT;
        // To be asked for the carrier makes the kernel (from 6.8 on) process its changes now; else a bridge's take a second.
        fs::read(&carrier).ok();
        while fs::read_to_string(&path).map_err(unreadable)?.trim() != wanted {
            if Instant::now() > deadline {
                return Err(unreadable(io::ErrorKind::TimedOut.into()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?
}

fn ip(namespace: &Namespace, batch: &str) -> Result<(), NetworkError> {
    namespace.run("ip", &["-batch", "-"], batch)
}

fn without_ipv6(namespace: &Namespace) -> Result<(), NetworkError> {
    // Not there where the kernel has none.
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    namespace.set(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])
}
