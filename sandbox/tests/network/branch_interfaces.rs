//! What the VPC CNI's branch interfaces in strict mode do to a redirect to the node.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use sandbox::network::{
    Families, METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS, NODE_ADDRESS_V6, Namespace, PodNetwork, STS_ADDRESS,
};

use crate::support::{echo_peers, network, network_with, run, seen_as};

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 7);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 8);

/// Nothing comes back, neither an answer nor a refusal.
fn is_lost(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> bool {
    let server = SocketAddr::new(address.into(), port);
    let connected = namespace.enter(|| TcpStream::connect_timeout(&server, Duration::from_secs(2))).unwrap();
    connected.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

#[test]
fn a_pod_with_a_branch_interface_reaches_the_outside_and_not_its_node() {
    let network = network(PodNetwork::BranchInterfaces);
    echo_peers(network.outside(), METADATA_ADDRESS, 80);
    echo_peers(network.outside(), STS_ADDRESS, 443);
    let port = echo_peers(network.node(), NODE_ADDRESS, 0);
    let pod = network.add_pod(POD_A).unwrap();
    assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS);
    assert_eq!(seen_as(pod.namespace(), STS_ADDRESS, 443).unwrap(), NODE_ADDRESS);
    assert!(is_lost(pod.namespace(), NODE_ADDRESS, port));
    // A redirect to the node ends in the same way.
    let rule = "iptables -t nat -A PREROUTING -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to-destination";
    run(network.node(), &format!("{rule} {NODE_ADDRESS}:{port}"));
    assert!(is_lost(pod.namespace(), METADATA_ADDRESS, 80));
    assert_eq!(seen_as(network.node(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS);
    assert_eq!(seen_as(network.node(), NODE_ADDRESS, port).unwrap(), NODE_ADDRESS);
}

#[test]
fn it_is_the_order_of_the_rules_that_keeps_it_from_its_node() {
    let network = network(PodNetwork::BranchInterfaces);
    let port = echo_peers(network.node(), NODE_ADDRESS, 0);
    let pod = network.add_pod(POD_A).unwrap();
    assert!(is_lost(pod.namespace(), NODE_ADDRESS, port));
    run(network.node(), "ip rule add pref 5 lookup local");
    assert_eq!(seen_as(pod.namespace(), NODE_ADDRESS, port).unwrap(), POD_A);
}

#[test]
fn nothing_of_a_branch_interface_is_left_when_its_pod_is_removed() {
    let network = network(PodNetwork::BranchInterfaces);
    echo_peers(network.outside(), METADATA_ADDRESS, 80);
    let state = || (run(network.node(), "ip rule"), run(network.node(), "ip route show table all"));
    let other = network.add_pod(POD_B).unwrap();
    let before = state();
    for _ in 0..3 {
        let pod = network.add_pod(POD_A).unwrap();
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS);
        assert_eq!(seen_as(other.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS);
        pod.remove().unwrap();
        assert_eq!(state(), before);
    }
}

#[test]
fn over_ipv6_a_pod_is_a_routed_one() {
    let network = network_with(PodNetwork::BranchInterfaces, Families::Dual);
    let port = echo_peers(network.node(), NODE_ADDRESS_V6, 0);
    echo_peers(network.outside(), METADATA_ADDRESS_V6, 80);
    for addresses in [Families::Dual.pod(7), Families::V6.pod(7)] {
        let pod = network.add_pod(addresses).unwrap();
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6);
        assert_eq!(Some(seen_as(pod.namespace(), NODE_ADDRESS_V6, port).unwrap()), addresses.v6().map(IpAddr::from));
        pod.remove().unwrap();
    }
}
