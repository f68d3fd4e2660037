//! The sandbox's network behaves as a node's does. Needs root, and fails without.
#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "clippy takes only the tests themselves for tests, not what they share"
)]

mod branch_interfaces;
mod families;
mod support;

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use sandbox::network::{
    BRIDGE_ADDRESS, KUBERNETES_ADDRESS, METADATA_ADDRESS, NODE_ADDRESS, Namespace, NetworkError, OIDC_ADDRESS,
    PodNetwork, STS_ADDRESS,
};
use support::{SHAPES, echo_peers, link_names, network, run, seen_as};

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 7);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 8);
const STS_NAME: &str = "sts.eu-central-1.amazonaws.com";

#[test]
fn a_pod_reaches_the_metadata_service_as_its_node() {
    for shape in SHAPES {
        let network = network(shape);
        echo_peers(network.outside(), METADATA_ADDRESS, 80);
        let pod = network.add_pod(POD_A).unwrap();
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS, "{shape:?}");
        assert_eq!(seen_as(network.node(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS, "{shape:?}");
    }
}

#[test]
fn a_pod_reaches_the_metadata_service_as_itself_when_the_nodes_rules_are_flushed() {
    for shape in SHAPES {
        let network = network(shape);
        echo_peers(network.outside(), METADATA_ADDRESS, 80);
        let pod = network.add_pod(POD_A).unwrap();
        run(network.node(), "iptables -t nat -F");
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), POD_A, "{shape:?}");
    }
}

#[test]
fn the_services_outside_are_reached() {
    let network = network(PodNetwork::Routed);
    let pod = network.add_pod(POD_A).unwrap();
    for address in [STS_ADDRESS, KUBERNETES_ADDRESS, OIDC_ADDRESS] {
        echo_peers(network.outside(), address, 443);
        assert_eq!(seen_as(pod.namespace(), address, 443).unwrap(), NODE_ADDRESS);
        assert_eq!(seen_as(network.node(), address, 443).unwrap(), NODE_ADDRESS);
    }
}

#[test]
fn pods_reach_each_other_as_themselves() {
    for shape in SHAPES {
        let network = network(shape);
        let (a, b) = (network.add_pod(POD_A).unwrap(), network.add_pod(POD_B).unwrap());
        echo_peers(a.namespace(), Ipv4Addr::UNSPECIFIED, 8080);
        echo_peers(b.namespace(), Ipv4Addr::UNSPECIFIED, 8080);
        assert_eq!(seen_as(a.namespace(), POD_B, 8080).unwrap(), POD_A, "{shape:?}");
        assert_eq!(seen_as(b.namespace(), POD_A, 8080).unwrap(), POD_B, "{shape:?}");
        seen_as(network.node(), POD_A, 8080).unwrap();
    }
}

#[test]
fn a_redirected_connection_arrives_at_the_node_with_the_pods_own_address() {
    for shape in SHAPES {
        let network = network(shape);
        let port = echo_peers(network.node(), NODE_ADDRESS, 0);
        echo_peers(network.outside(), METADATA_ADDRESS, 80);
        let pod = network.add_pod(POD_A).unwrap();
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS, "{shape:?}");
        let rule = "iptables -t nat -A PREROUTING -d 169.254.169.254 -p tcp --dport 80 -j DNAT --to-destination";
        run(network.node(), &format!("{rule} {NODE_ADDRESS}:{port}"));
        assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), POD_A, "{shape:?}");
        // The node's own traffic passes no PREROUTING.
        assert_eq!(seen_as(network.node(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS, "{shape:?}");
    }
}

#[test]
fn an_address_is_another_pods_at_once() {
    for shape in SHAPES {
        let network = network(shape);
        echo_peers(network.outside(), METADATA_ADDRESS, 80);
        let other = network.add_pod(POD_B).unwrap();
        let mut links = Vec::new();
        for round in 0..5 {
            let pod = network.add_pod(POD_A).unwrap();
            echo_peers(pod.namespace(), POD_A, 8080);
            // All that know the address's last pod: the node, a neighbour, and the pod's own way out.
            seen_as(network.node(), POD_A, 8080).unwrap();
            assert_eq!(seen_as(other.namespace(), POD_A, 8080).unwrap(), POD_B);
            assert_eq!(seen_as(pod.namespace(), METADATA_ADDRESS, 80).unwrap(), NODE_ADDRESS);
            assert!(link_names(network.node()).contains(&pod.host_link().to_owned()));
            links.push(pod.host_link().to_owned());
            pod.remove().unwrap();
            assert!(!link_names(network.node()).contains(&links[round]));
        }
        links.dedup();
        assert_eq!(links.len(), 5);
    }
}

#[test]
fn a_pod_cannot_have_anothers_address() {
    let network = network(PodNetwork::Bridge);
    let pod = network.add_pod(POD_A).unwrap();
    assert!(matches!(network.add_pod(POD_A), Err(NetworkError::AddressTaken(IpAddr::V4(POD_A)))));
    for address in [BRIDGE_ADDRESS, NODE_ADDRESS, Ipv4Addr::new(10, 244, 0, 255), Ipv4Addr::new(10, 244, 1, 7)] {
        assert!(matches!(network.add_pod(address), Err(NetworkError::NotAPodAddress(_))), "{address}");
    }
    drop(pod);
    network.add_pod(POD_A).unwrap();
}

#[test]
fn networks_do_not_see_each_other() {
    let threads: Vec<_> = SHAPES
        .repeat(2)
        .into_iter()
        .map(|shape| {
            thread::spawn(move || {
                let network = network(shape);
                let pod = network.add_pod(POD_A).unwrap();
                echo_peers(pod.namespace(), POD_A, 8080);
                (network.add_pod(POD_B).unwrap(), pod, network)
            })
        })
        .collect();
    for thread in threads {
        let (b, _a, _network) = thread.join().unwrap();
        assert_eq!(seen_as(b.namespace(), POD_A, 8080).unwrap(), POD_B);
    }
}

#[test]
fn a_command_resolves_the_names_that_it_is_given() {
    let network = network(PodNetwork::Routed);
    let pod = network.add_pod(POD_A).unwrap();
    let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let (before, hosts) = (mounts(), fs::read_to_string("/etc/hosts").unwrap());

    let getent = |name: &str| {
        pod.namespace()
            .command("getent")
            .args(["hosts", name])
            .names([(STS_NAME, STS_ADDRESS.into())])
            .output()
            .unwrap()
    };
    let found = String::from_utf8(getent(STS_NAME).stdout).unwrap();
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), [&STS_ADDRESS.to_string(), STS_NAME]);
    let asked = Instant::now();
    assert!(!getent("sts.eu-west-1.amazonaws.com").status.success());
    assert!(asked.elapsed() < Duration::from_secs(1), "a name that is not there took {:?}", asked.elapsed());

    assert_eq!(mounts(), before);
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), hosts);
}

#[test]
fn a_command_is_in_its_namespace_and_its_caller_is_not() {
    let network = network(PodNetwork::Bridge);
    let namespace_of_this_thread = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = namespace_of_this_thread();
    assert_eq!(run(network.node(), "ls /sys/class/net"), "cbr0\neth0\nlo\n");
    let inside = run(network.node(), "readlink /proc/self/ns/net");
    assert_ne!(inside.trim(), before.to_str().unwrap());
    assert_eq!(namespace_of_this_thread(), before);

    let read = network.node().command("cat").arg("/etc/hostname").file("/etc/hostname", "a node\n").output().unwrap();
    assert_eq!(read.stdout, b"a node\n");

    let error = network.node().command("no-such-command").output().unwrap_err();
    assert_eq!(error.to_string(), "cannot run no-such-command: entity not found");
    let error = network.node().command("true").file("/no/such/file", "").output().unwrap_err();
    assert!(error.to_string().starts_with("cannot mount over /no/such/file (it must exist): "), "{error}");
}

#[test]
fn settings_are_the_namespaces_own() {
    let (one, other) = (network(PodNetwork::Routed), network(PodNetwork::Routed));
    let forward = |namespace: &Namespace| {
        namespace.enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap().unwrap()
    };
    let here = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!((forward(one.node()).trim(), forward(other.node()).trim()), ("1", "1"));
    one.node().set(&[("ipv4/ip_forward", "0")]).unwrap();
    assert_eq!((forward(one.node()).trim(), forward(other.node()).trim()), ("0", "1"));
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), here);
    let error = one.node().set(&[("ipv4/no_such_setting", "1")]).unwrap_err();
    assert!(error.to_string().starts_with("cannot set /proc/sys/net/ipv4/no_such_setting to 1: "), "{error}");
}

#[test]
fn a_process_ends_with_its_handle_and_not_before() {
    let network = network(PodNetwork::Routed);
    let mut process = network.node().command("sleep").arg("60").spawn().unwrap();
    let status = format!("/proc/{}/status", process.id());
    // Long enough for the thread that started it to have gone, if it did.
    thread::sleep(Duration::from_millis(100));
    assert!(process.try_wait().unwrap().is_none());
    drop(process);
    assert!(fs::metadata(&status).is_err());
    assert!(network.node().command("true").status().unwrap().success());
}

#[tokio::test]
async fn a_socket_of_a_namespace_serves_from_any_runtime() {
    use tokio::io::AsyncReadExt as _;
    let network = network(PodNetwork::Routed);
    let pod = network.add_pod(POD_A).unwrap();
    echo_peers(network.outside(), METADATA_ADDRESS, 80);
    let socket = pod.namespace().enter(tokio::net::TcpSocket::new_v4).unwrap().unwrap();
    let mut stream = socket.connect((METADATA_ADDRESS, 80).into()).await.unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).await.unwrap();
    assert_eq!(seen, NODE_ADDRESS.to_string());
}

#[test]
fn nothing_is_left_of_a_process_that_was_killed() {
    // Its network is made by the test below, in a process of its own.
    let mut maker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_network_until_standard_input_ends", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(maker.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find_map(|line| Some(line.split_once("made: ")?.1.to_owned())).unwrap();
    let [node, pod, process] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    // What is held here, to look into it, stays; what it was connected to must go.
    let (node, pod) = (File::open(node).unwrap(), File::open(pod).unwrap());
    let links = |namespace: &File| -> Vec<String> {
        thread::scope(|scope| {
            let read = || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
            };
            scope.spawn(read).join().unwrap()
        })
    };
    // One pod is held, the other is not.
    assert_eq!(links(&node).len(), 4);
    assert!(fs::metadata(format!("/proc/{process}")).is_ok());

    maker.kill().unwrap();
    maker.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = || (links(&node), fs::metadata(format!("/proc/{process}")).is_ok());
    // Of the node, its loopback link and the link to the pod that is held.
    while left().0.len() > 2 || left().1 {
        assert!(Instant::now() < deadline, "left behind: {:?}", left());
        thread::sleep(Duration::from_millis(20));
    }
    drop(node);
    while links(&pod) != ["lo"] {
        assert!(Instant::now() < deadline, "left behind: {:?}", links(&pod));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "the other half of nothing_is_left_of_a_process_that_was_killed"]
fn a_network_until_standard_input_ends() {
    let network = network(PodNetwork::Routed);
    let (a, _b) = (network.add_pod(POD_A).unwrap(), network.add_pod(POD_B).unwrap());
    let process = a.namespace().command("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let (node, pod) = (network.node().path(), a.namespace().path());
    println!("made: {} {} {}", node.display(), pod.display(), process.id());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_network_with_two_pods_takes_well_under_a_second() {
    for shape in SHAPES {
        // On a busy machine not each time.
        let in_time = (0..10).any(|_| {
            let started = Instant::now();
            let network = network(shape);
            let made = started.elapsed();
            let (_a, b) = (network.add_pod(POD_A).unwrap(), network.add_pod(POD_B).unwrap());
            let added = started.elapsed();
            b.remove().unwrap();
            println!("{shape:?}: node {made:?}, with two pods {added:?}, one removed {:?}", started.elapsed() - added);
            added < Duration::from_secs(1)
        });
        assert!(in_time, "{shape:?}");
    }
}
