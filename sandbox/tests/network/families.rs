//! With IPv6 a node and its pods behave as they do with IPv4, and without it there is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use sandbox::{
    client::Report,
    cloud::NODE_ROLE,
    kubernetes::Grant,
    network::{
        BRIDGE_ADDRESS_V6, CONTAINER_ADDRESS_V6, Families, METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS,
        NODE_ADDRESS_V6, Network, NetworkError, Pod, PodNetwork,
    },
    sandbox::{DAEMON_USER, METADATA, METADATA_V6, Sandbox, get},
};

use crate::support::{SHAPES, echo_peers, link_names, network, network_with, run, seen_as};

/// The pods' numbers.
const A: u8 = 7;
const B: u8 = 8;
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

/// Each shape with each of the families that have IPv6.
fn with_v6() -> impl Iterator<Item = (PodNetwork, Families)> {
    SHAPES.into_iter().flat_map(|shape| [(shape, Families::Dual), (shape, Families::V6)])
}

fn add_pod(network: &Network, number: u8) -> Pod {
    network.add_pod(network.families().pod(number)).unwrap()
}

fn v6(number: u8) -> Ipv6Addr {
    Families::V6.pod(number).v6().unwrap()
}

/// With a service account team-a/web.
fn sandbox(shape: PodNetwork, families: Families) -> Sandbox {
    let sandbox = Sandbox::with_families(shape, families, &mut |line| eprintln!("{line}")).unwrap();
    sandbox.annotate("team-a", "web", &[]);
    sandbox
}

#[test]
fn an_unmodified_client_gets_the_nodes_role_over_ipv6() {
    for (shape, families) in with_v6() {
        let sandbox = sandbox(shape, families);
        let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();

        assert_eq!(get(web.network(), METADATA_V6, CREDENTIALS).unwrap(), (200, NODE_ROLE.to_owned()), "{shape:?}");
        let (status, document) = get(web.network(), METADATA_V6, &format!("{CREDENTIALS}{NODE_ROLE}")).unwrap();
        assert!(status == 200 && document.contains("AccessKeyId"), "{shape:?} {families:?}: {status} {document}");
        assert_eq!(sandbox.cloud.imds.credential_requests(), 1);
        let peers = sandbox.cloud.imds.requests().into_iter().map(|request| request.peer.unwrap().ip());
        assert!(peers.eq([IpAddr::from(NODE_ADDRESS_V6); 2]), "{shape:?} {families:?}");
        // It is the service that is at the other address too.
        sandbox.cloud.imds.set_down(true);
        assert_eq!(get(sandbox.node(), METADATA_V6, CREDENTIALS).unwrap().0, 503);
        assert_eq!(get(sandbox.node(), METADATA, CREDENTIALS).unwrap().0, 503);
        sandbox.cloud.imds.set_down(false);

        let agent = (CONTAINER_ADDRESS_V6, 80).into();
        assert_eq!(get(web.network(), agent, "/v1/credentials").unwrap().0, 200, "{shape:?} {families:?}");
        assert_eq!(sandbox.cloud.agent.credential_requests(), 1);

        let client = sandbox
            .in_pod(&web, env!("CARGO_BIN_EXE_sandbox"))
            .arg("--client")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6");
        let report: Report = serde_json::from_slice(&client.output().unwrap().stdout).unwrap();
        let arn = report.arn.as_deref().unwrap_or_default();
        assert!(arn.contains("assumed-role/node/"), "{shape:?} {families:?}: {report:?}");
        let tokens = sandbox.cloud.imds.requests();
        assert!(tokens.iter().all(|request| request.peer.unwrap().is_ipv6() || request.status == 503), "{tokens:?}");
    }
}

#[test]
fn the_api_server_shows_a_pod_with_the_addresses_that_it_has() {
    for (families, addresses) in [
        (Families::V4, &["10.244.0.10"][..]),
        (Families::Dual, &["10.244.0.10", "fd00:10:244::a"]),
        (Families::V6, &["fd00:10:244::a"]),
    ] {
        let sandbox = sandbox(PodNetwork::Routed, families);
        let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
        assert_eq!(pod_ips(&sandbox), addresses);
        assert_eq!(web.addresses().to_vec().iter().map(ToString::to_string).collect::<Vec<_>>(), addresses);
        assert_eq!(web.address().to_string(), addresses[0]);
        // All of them are the next pod's.
        let all = web.addresses();
        sandbox.remove_pod(web).unwrap();
        let next = sandbox.add_pod_at("team-a", "web-0", "web", all).unwrap();
        assert_eq!(pod_ips(&sandbox), addresses);
        assert_eq!(sandbox.renew_network(next).unwrap().addresses(), all);
    }
}

/// What the status of team-a/web-0 says, asked for from the node with the daemon's kubeconfig.
fn pod_ips(sandbox: &Sandbox) -> Vec<String> {
    sandbox.cloud.kubernetes.grant(DAEMON_USER, Grant::new(&["get"], "pods"));
    let kubeconfig = Kubeconfig::read_from(sandbox.kubeconfig()).unwrap();
    let status = sandbox.node().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            let pods = Api::<core::v1::Pod>::namespaced(Client::try_from(config).unwrap(), "team-a");
            pods.get("web-0").await.unwrap().status.unwrap()
        })
    });
    let status = status.unwrap();
    let ips = status.pod_ips.unwrap().into_iter().map(|pod_ip| pod_ip.ip).collect::<Vec<_>>();
    assert_eq!(status.pod_ip.as_ref(), ips.first());
    ips
}

#[test]
fn a_dual_pod_reaches_the_metadata_service_with_both_families_and_a_v6_pod_with_one() {
    for (shape, families) in with_v6() {
        let network = network_with(shape, families);
        echo_peers(network.outside(), METADATA_ADDRESS, 80);
        echo_peers(network.outside(), METADATA_ADDRESS_V6, 80);
        let pod = add_pod(&network, A);
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6, "{shape:?}");
        let over_v4 = seen_as(pod.namespace(), METADATA_ADDRESS, 80);
        match families {
            Families::Dual => assert_eq!(over_v4.unwrap(), NODE_ADDRESS, "{shape:?}"),
            _ => assert_eq!(over_v4.unwrap_err().kind(), std::io::ErrorKind::NetworkUnreachable, "{shape:?}"),
        }
        // The node has both.
        assert_eq!(seen_as(network.node(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS, "{shape:?}");
        assert_eq!(seen_as(network.node(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6, "{shape:?}");

        run(network.node(), "ip6tables -t nat -F");
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), v6(A), "{shape:?} {families:?}");
    }
}

#[test]
fn pods_reach_each_other_as_themselves_over_ipv6() {
    for (shape, families) in with_v6() {
        let network = network_with(shape, families);
        let (a, b) = (add_pod(&network, A), add_pod(&network, B));
        echo_peers(a.namespace(), Ipv6Addr::UNSPECIFIED, 8080);
        echo_peers(b.namespace(), Ipv6Addr::UNSPECIFIED, 8080);
        assert_eq!(seen_as(a.namespace(), v6(B), 8080).unwrap(), v6(A), "{shape:?} {families:?}");
        assert_eq!(seen_as(b.namespace(), v6(A), 8080).unwrap(), v6(B), "{shape:?} {families:?}");
        seen_as(network.node(), v6(A), 8080).unwrap();
    }
}

#[test]
fn a_redirected_connection_arrives_at_the_node_with_the_pods_own_ipv6_address() {
    for (shape, families) in with_v6() {
        let network = network_with(shape, families);
        let port = echo_peers(network.node(), NODE_ADDRESS_V6, 0);
        echo_peers(network.outside(), METADATA_ADDRESS_V6, 80);
        let pod = add_pod(&network, A);
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6, "{shape:?}");
        let rule = "ip6tables -t nat -A PREROUTING -d fd00:ec2::254 -p tcp --dport 80 -j DNAT --to-destination";
        run(network.node(), &format!("{rule} [{NODE_ADDRESS_V6}]:{port}"));
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), v6(A), "{shape:?} {families:?}");
        assert_eq!(seen_as(network.node(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6, "{shape:?}");
    }
}

#[test]
fn an_ipv6_address_is_another_pods_at_once() {
    for (shape, families) in with_v6() {
        let network = network_with(shape, families);
        echo_peers(network.outside(), METADATA_ADDRESS_V6, 80);
        let other = add_pod(&network, B);
        let mut links = Vec::new();
        for round in 0..5 {
            let pod = add_pod(&network, A);
            echo_peers(pod.namespace(), v6(A), 8080);
            // All that know the address's last pod: a neighbour, the node, and the pod's own way out.
            assert_eq!(seen_as(other.namespace(), v6(A), 8080).unwrap(), v6(B), "{shape:?} {families:?}");
            seen_as(network.node(), v6(A), 8080).unwrap();
            assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS_V6, 80).unwrap(), NODE_ADDRESS_V6);
            links.push(pod.host_link().to_owned());
            pod.remove().unwrap();
            assert!(!link_names(network.node()).contains(&links[round]));
        }
        links.dedup();
        assert_eq!(links.len(), 5);
    }
}

#[test]
fn a_pod_cannot_have_anothers_ipv6_address_nor_one_of_a_family_that_is_not_there() {
    let network = network_with(PodNetwork::Bridge, Families::Dual);
    let (v4, other_v4) = (Ipv4Addr::new(10, 244, 0, A), Ipv4Addr::new(10, 244, 0, B));
    let pod = network.add_pod((v4, v6(A))).unwrap();
    assert_eq!((pod.address(), pod.address_v6()), (v4.into(), Some(v6(A))));
    assert_eq!(pod.addresses().to_vec(), [IpAddr::from(v4), v6(A).into()]);
    let taken =
        |address: IpAddr, refused| matches!(refused, Err(NetworkError::AddressTaken(taken)) if taken == address);
    assert!(taken(v6(A).into(), network.add_pod(v6(A))));
    assert!(taken(v6(A).into(), network.add_pod((other_v4, v6(A)))));
    assert!(taken(v4.into(), network.add_pod((v4, v6(B)))));
    // What was asked for together with it is still free.
    network.add_pod((other_v4, v6(B))).unwrap();
    pod.remove().unwrap();
    network.add_pod(v6(A)).unwrap();
    for address in [BRIDGE_ADDRESS_V6, NODE_ADDRESS_V6, v6(0), "fd00:10:245::7".parse().unwrap()] {
        assert!(matches!(network.add_pod(address), Err(NetworkError::NotAPodAddress(_))), "{address}");
    }

    let network = network_with(PodNetwork::Routed, Families::V6);
    assert!(matches!(network.add_pod(v4), Err(NetworkError::NotAPodAddress(_))));
    let network = self::network(PodNetwork::Routed);
    assert!(matches!(network.add_pod((v4, v6(A))), Err(NetworkError::NotAPodAddress(_))));
    network.add_pod(v4).unwrap();
}

#[test]
fn without_ipv6_no_link_has_an_address_of_it() {
    for shape in SHAPES {
        let network = network(shape);
        let pod = network.add_pod(Ipv4Addr::new(10, 244, 0, A)).unwrap();
        for namespace in [network.outside(), network.node(), pod.namespace()] {
            assert_eq!(run(namespace, "ip -6 addr"), "", "{shape:?}");
        }
        assert!(!run(network.node(), "iptables -t nat -S").is_empty());
    }
}
