//! Sources that are no pod's of this node: a pod of another node, and the way out to IPv4 of a cluster of IPv6.

use std::net::{Ipv4Addr, SocketAddr};

use sandbox::{
    network::{CONTAINER_ADDRESSES, Namespace},
    sandbox::{LISTEN, METADATA, Sandbox},
};

use super::{
    SHAPES, UNKNOWN, forged, gets_the_node_role, pod, resets_by, role, role_from, sh,
    support::{Daemon, eventually, http::Connection, metric, sandbox, sandbox_with},
};

/// Another node of the same network, and a pod of it that has made this node its way to the metadata service. The
/// networks of pods are flat: every node routes to every pod.
struct OtherNode {
    node: Namespace,
    pod: Namespace,
}

const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);

impl OtherNode {
    fn new(sandbox: &Sandbox) -> Self {
        let (node, pod) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        sh(
            sandbox.node(),
            &format!(
                "ip link add eth1 type veth peer name eth0 netns {}; ip addr add {HERE}/24 dev eth1; ip link set eth1 up",
                node.path().display()
            ),
        );
        // It forwards whatever its pod sends.
        node.set(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/eth0/rp_filter", "0"),
        ])
        .unwrap();
        sh(
            &node,
            &format!(
                "ip link set lo up; ip addr add {THERE}/24 dev eth0; ip link set eth0 up; ip route add default via {HERE}; \
                 ip link add veth0 type veth peer name eth0 netns {}; ip link set veth0 up",
                pod.path().display()
            ),
        );
        sh(
            &pod,
            &format!(
                "ip link set lo up; ip link set eth0 up; ip route add {THERE} dev eth0; ip route add default via {THERE}"
            ),
        );
        Self { node, pod }
    }

    /// Its pod has this address.
    fn pod_has(&self, sandbox: &Sandbox, address: Ipv4Addr) {
        sh(&self.pod, &format!("ip addr add {address}/32 dev eth0"));
        sh(&self.node, &format!("ip route add {address}/32 dev veth0"));
        sh(sandbox.node(), &format!("ip route replace {address}/32 via {THERE}"));
        sh(sandbox.outside(), &format!("ip route replace {address}/32 via 10.0.0.10"));
    }
}

#[test]
fn a_pod_of_another_node_gets_nothing_here() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let web = pod(&sandbox, "web");
        let other = OtherNode::new(&sandbox);
        let address = Ipv4Addr::new(10, 244, 1, 5);
        other.pod_has(&sandbox, address);
        assert!(gets_the_node_role(&other.pod, METADATA), "without us it must get this node's role");

        let _daemon = Daemon::ready(&sandbox, &[]);
        let before = sandbox.cloud.imds.credential_requests();
        assert_eq!(role_from(&other.pod, address).unwrap(), Err(404), "{shape:?}");
        assert_eq!(metric(&sandbox, UNKNOWN), 1.0);
        assert!(!gets_the_node_role(&other.pod, METADATA));
        let direct = Connection::open(&other.pod, LISTEN).err().unwrap();
        assert_eq!(direct.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(sandbox.cloud.imds.credential_requests(), before);
        assert_eq!(role(&web), Ok("web".to_owned()));
    }
}

#[test]
fn a_pod_of_another_node_that_forges_the_address_of_one_of_this_node_is_not_heard_or_that_one_gets_the_answer() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let web = pod(&sandbox, "web");
        let _daemon = Daemon::ready(&sandbox, &[]);
        let other = OtherNode::new(&sandbox);
        other.pod_has(&sandbox, Ipv4Addr::new(10, 244, 1, 5));
        sh(&other.pod, &format!("ip addr add {}/32 dev lo", web.addresses().v4().unwrap()));
        // Strict, as by default, and loose, as some networks need it where a node has several links.
        for (reverse_path, answered) in [("1", false), ("2", true)] {
            sandbox.node().set(&[("ipv4/conf/eth1/rp_filter", reverse_path)]).unwrap();
            let before = resets_by(&web);
            let (answer, packets) = forged(&sandbox, &other.pod, web.addresses().v4().unwrap());
            assert!(answer.is_none() && packets > 0, "{shape:?}: {answer:?}, {packets} packets");
            assert_eq!(resets_by(&web) > before, answered, "{shape:?}: {reverse_path}");
        }
        assert_eq!(role(&web), Ok("web".to_owned()));
    }
}

#[test]
fn a_pod_of_another_node_on_an_address_that_was_a_pods_of_this_one_gets_nothing_whatever_is_known_of_that() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let web = pod(&sandbox, "web");
        let _daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!(role(&web), Ok("web".to_owned()));
        let other = OtherNode::new(&sandbox);
        let address = web.addresses().v4().unwrap();
        sandbox.cloud.kubernetes.faults().hold_watches();
        sandbox.remove_network(web).unwrap();
        other.pod_has(&sandbox, address);
        for _ in 0..3 {
            assert_eq!(
                role_from(&other.pod, address).unwrap(),
                Err(503),
                "{shape:?}: the API server has it here still"
            );
        }
        sandbox.cloud.kubernetes.delete_pod("team-a", "web");
        sandbox.cloud.kubernetes.faults().release_watches();
        eventually("it is no pod's of this node", || role_from(&other.pod, address).unwrap() == Err(404));
    }
}

#[test]
fn a_pod_of_ipv6_that_asks_from_a_link_local_address_is_told_at_once_and_the_operator_what_to_do() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.start_pod("team-a", "web", "web").unwrap();
    // What the API server knows of a pod in such a cluster, and its way out to IPv4: not a pod's address, and the same
    // on every node.
    sandbox.cloud.kubernetes.run_pod("team-a", "web", &["2001:db8::5".parse().unwrap()]);
    let source = Ipv4Addr::new(169, 254, 172, 2);
    sh(
        sandbox.node(),
        &format!(
            "ip link add egress type veth peer name v4if0 netns {}; ip link set egress up; \
             ip addr add 169.254.172.1/32 dev egress; ip route add {source}/32 dev egress; \
             iptables -w -t nat -A POSTROUTING -s {source} -j MASQUERADE",
            web.network().path().display()
        ),
    );
    sh(
        web.network(),
        &format!(
            "ip addr add {source}/22 dev v4if0; ip link set v4if0 up; ip route replace default via 169.254.172.1 dev v4if0"
        ),
    );
    assert!(gets_the_node_role(web.network(), METADATA), "without us it must get the node's role");

    let daemon = Daemon::ready(&sandbox, &[]);
    for _ in 0..2 {
        assert_eq!(role(&web), Err(404));
    }
    assert_eq!(metric(&sandbox, "kube2irsa_unidentified_requests_total{reason=\"link_local\"}"), 2.0);
    assert_eq!(metric(&sandbox, "kube2irsa_lookups_total{result=\"nobody\"}"), 0.0, "the API server is not asked");
    assert!(!gets_the_node_role(web.network(), METADATA));
    let log = daemon.log();
    assert_eq!(log.matches("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6").count(), 1, "{log}");

    let host = CONTAINER_ADDRESSES[0];
    let mut connection = Connection::open(web.network(), SocketAddr::from((host, 80))).unwrap();
    connection.send_bytes(format!("GET /v1/credentials HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let answer = connection.answer().unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (404, &"LinkLocalCaller".into()));
}
