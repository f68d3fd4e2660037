//! The network's shape: what is outside, the node, its pods.
//!
//! ```text
//! outside                      node                               pod
//! lo 169.254.169.254,          eth0 10.0.0.10 ── forwards,        eth0 10.244.0.x
//!    169.254.170.2, .23,       │                 masquerades         │
//!    192.0.2.10, …, .50        │                                     │
//! vpc0 10.0.0.1 ───────────────┘                    veth1 ───────────┘
//! ```
//!
//! As on EC2: the node has the metadata service on its link, the outside routes the pods' addresses to the node (they are
//! addresses of the VPC), and the node masquerades what pods send out by its uplink. So without kube2irsa a
//! pod reaches the metadata service as the node, and it still reaches it, as itself, when the node's rules are flushed:
//! only then can a test of the guard fail. With IPv6 all of it is there a second time ([`Families`]).

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{
    BRIDGE_ADDRESS, BRIDGE_ADDRESS_V6, CONTAINER_ADDRESS_V6, CONTAINER_ADDRESSES, EC2_ADDRESS, EC2_ADDRESS_V6,
    Families, KUBERNETES_ADDRESS, METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS, NODE_ADDRESS_V6, Namespace,
    NetworkError, OIDC_ADDRESS, PODS_PREFIX, PODS_PREFIX_V6, Pod, PodAddresses, S3_ADDRESS, S3_ADDRESS_V6, STS_ADDRESS,
    STS_ADDRESS_V6,
    addresses::{ROUTER_ADDRESS, ROUTER_ADDRESS_V6},
    link::{LINK_UP, ip, prepare, wait_for, wait_for_addresses},
    pod::Taken,
};

/// The node's link to the outside.
pub const UPLINK: &str = "eth0";

/// The outside's end of the node's link.
const ROUTER_LINK: &str = "vpc0";
/// The bridge, as kubenet names it.
pub(super) const BRIDGE: &str = "cbr0";

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodNetwork {
    /// One bridge that has an address; the pods' links are its ports (kubenet, flannel, the bridge plugin).
    Bridge,
    /// A link without an address and a host route for each pod, which has a gateway of 169.254.1.1 (Calico, the VPC CNI)
    /// or of the link's own link-local address (Calico).
    #[default]
    Routed,
    /// The same, and what a pod sends is routed by a table of its own before the node looks whether it is for itself: a
    /// redirect to the node's address ends nowhere. With security groups for pods, the VPC CNI does so to branch
    /// interfaces in its strict mode; here the uplink is in their place, and IPv6 is as with [`PodNetwork::Routed`].
    BranchInterfaces,
}

/// A node, what is outside of it, and its pods.
#[derive(Debug)]
pub struct Network {
    outside: Namespace,
    node: Namespace,
    shape: PodNetwork,
    families: Families,
    links: AtomicU32,
    taken: Taken,
}

impl Network {
    /// Makes the outside and the node, without pods; IPv4 only.
    ///
    /// # Errors
    /// When the kernel, `ip` or `iptables-restore` refuses something.
    pub fn new(shape: PodNetwork) -> Result<Self, NetworkError> {
        Self::with_families(shape, Families::V4)
    }

    /// The same with these families.
    ///
    /// # Errors
    /// As [`Network::new`]; also when the kernel has no IPv6 and it is wanted.
    pub fn with_families(shape: PodNetwork, families: Families) -> Result<Self, NetworkError> {
        let (outside, node) = (Namespace::new()?, Namespace::new()?);
        for namespace in [&outside, &node] {
            prepare(namespace, families)?;
        }
        // Reverse path checks as the CNIs set them; before the links are made, which inherit the default.
        node.set(&[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "1")])?;
        if families.has_v6() {
            node.set(&[("ipv6/conf/all/forwarding", "1")])?;
        }
        ip(&outside, &outside_batch(&node, families))?;
        ip(&node, &node_batch(shape, families))?;
        wait_for(&outside, ROUTER_LINK, LINK_UP)?;
        if families.has_v6() {
            wait_for_addresses(&outside, ROUTER_LINK)?;
            wait_for_addresses(&node, UPLINK)?;
        }
        for (there, program, prefix) in [
            (families.has_v4(), "iptables-restore", PODS_PREFIX),
            (families.has_v6(), "ip6tables-restore", PODS_PREFIX_V6),
        ] {
            if there {
                let masquerade = format!("*nat\n-A POSTROUTING -s {prefix} -o {UPLINK} -j MASQUERADE\nCOMMIT\n");
                node.run(program, &["--wait", "--noflush"], &masquerade)?;
            }
        }
        Ok(Self { outside, node, shape, families, links: AtomicU32::new(0), taken: Arc::default() })
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

    /// Which addresses pods can have.
    #[must_use]
    pub fn families(&self) -> Families {
        self.families
    }

    /// Adds a pod, with an address of [`PODS_PREFIX`], of [`PODS_PREFIX_V6`], or one of each.
    ///
    /// # Errors
    /// When a pod cannot have an address, another pod has it, or the kernel or `ip` refuses something.
    pub fn add_pod(&self, addresses: impl Into<PodAddresses>) -> Result<Pod, NetworkError> {
        let addresses = addresses.into();
        if let Some(address) = addresses.refused(self.families) {
            return Err(NetworkError::NotAPodAddress(address));
        }
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        Pod::connect(addresses, (self.shape, self.families), &self.node, number, &self.taken)
    }
}

/// The link to the node, and the addresses of all that is outside.
fn outside_batch(node: &Namespace, families: Families) -> String {
    let mut batch = format!(
        "link set lo up\n\
         link add {ROUTER_LINK} type veth peer name {UPLINK} netns {}\n\
         addr add {ROUTER_ADDRESS}/24 dev {ROUTER_LINK}\n\
         link set {ROUTER_LINK} up\n\
         route add {PODS_PREFIX} via {NODE_ADDRESS}\n",
        node.path().display()
    );
    let [ecs, pod_identity] = CONTAINER_ADDRESSES;
    for address in
        [METADATA_ADDRESS, ecs, pod_identity, STS_ADDRESS, KUBERNETES_ADDRESS, OIDC_ADDRESS, S3_ADDRESS, EC2_ADDRESS]
    {
        // Writing to a string cannot fail.
        writeln!(batch, "addr add {address}/32 dev lo").ok();
    }
    if families.has_v6() {
        // The metadata service is on the link itself: neighbours are not answered for an address of another link.
        batch += &format!(
            "addr add {ROUTER_ADDRESS_V6}/64 dev {ROUTER_LINK}\n\
             addr add {METADATA_ADDRESS_V6}/128 dev {ROUTER_LINK}\n\
             route add {PODS_PREFIX_V6} via {NODE_ADDRESS_V6}\n"
        );
        for address in [CONTAINER_ADDRESS_V6, STS_ADDRESS_V6, S3_ADDRESS_V6, EC2_ADDRESS_V6] {
            writeln!(batch, "addr add {address}/128 dev lo nodad").ok();
        }
    }
    batch
}

/// The node's addresses, routes and rules, and its bridge.
fn node_batch(shape: PodNetwork, families: Families) -> String {
    let mut batch = format!(
        "link set lo up\n\
         addr add {NODE_ADDRESS}/24 dev {UPLINK}\n\
         link set {UPLINK} up\n\
         route add default via {ROUTER_ADDRESS}\n\
         route add {METADATA_ADDRESS} dev {UPLINK}\n"
    );
    if families.has_v6() {
        batch += &format!(
            "addr add {NODE_ADDRESS_V6}/64 dev {UPLINK}\n\
             route add default via {ROUTER_ADDRESS_V6}\n\
             route add {METADATA_ADDRESS_V6} dev {UPLINK}\n"
        );
    }
    if shape == PodNetwork::BranchInterfaces {
        batch += "rule add pref 20 lookup local\nrule del pref 0\n";
    }
    if shape == PodNetwork::Bridge {
        batch += &format!("link add {BRIDGE} type bridge forward_delay 0\nlink set {BRIDGE} up\n");
        if families.has_v4() {
            writeln!(batch, "addr add {BRIDGE_ADDRESS}/24 dev {BRIDGE}").ok();
        }
        if families.has_v6() {
            writeln!(batch, "addr add {BRIDGE_ADDRESS_V6}/64 dev {BRIDGE}").ok();
        }
    }
    batch
}
