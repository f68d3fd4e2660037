//! `--intercept observe`: who contacts the metadata service is named, and nothing is changed for anybody.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use sandbox::{
    cloud::NODE_ROLE,
    network::{CONTAINER_ADDRESSES, Families, METADATA_ADDRESS, Namespace, PodNetwork},
    sandbox::{LISTEN, METADATA, METADATA_V6, Pod, Sandbox, wait_until_ready},
};
use socket2::{Domain, Protocol, Socket, Type};
use support::{
    Daemon, PATIENCE, ROLE_NAME, admin, admin_if_up, daemon_binary, eventually, http::Connection, metric, rules,
    sandbox,
};

const OBSERVE: [&str; 2] = ["--intercept", "observe"];

fn services(sandbox: &Sandbox) -> Vec<SocketAddr> {
    let v4 = sandbox.families().has_v4().then_some(METADATA);
    v4.into_iter().chain(sandbox.families().has_v6().then_some(METADATA_V6)).collect()
}

/// Asks for the node's credentials as an SDK would, on one connection.
fn node_credentials(namespace: &Namespace, service: SocketAddr) -> io::Result<()> {
    let mut connection = Connection::open(namespace, service)?;
    connection.send("GET", &format!("{ROLE_NAME}{NODE_ROLE}"), &[])?;
    let answer = connection.answer()?;
    if answer.status == 200 && answer.text().contains("AccessKeyId") {
        Ok(())
    } else {
        Err(io::Error::other(format!("{}", answer.status)))
    }
}

/// How often the pod was named with these words, of a contact to that address.
fn named(daemon: &Daemon, pod: &Pod, to: SocketAddr, what: &str) -> usize {
    let head = format!("pod {}/{} of service account ", pod.namespace, pod.name);
    let says = format!("contacts {}: {what}", to.ip());
    daemon.log().lines().filter(|line| line.contains(&head) && line.contains(&says)).count()
}

fn connections(sandbox: &Sandbox, outcome: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_observed_connections_total{{outcome=\"{outcome}\"}}"))
}

fn pods(sandbox: &Sandbox, outcome: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_observed_pods{{outcome=\"{outcome}\"}}"))
}

#[test]
fn pods_are_named_with_what_they_would_get_and_nothing_changes() {
    thread::scope(|scope| {
        for shape in [PodNetwork::Routed, PodNetwork::Bridge] {
            for families in [Families::V4, Families::Dual] {
                scope.spawn(move || {
                    let sandbox = Sandbox::with_families(shape, families, &mut |line| println!("{line}")).unwrap();
                    pods_are_named_and_nothing_changes(&sandbox);
                });
            }
        }
    });
}

fn pods_are_named_and_nothing_changes(sandbox: &Sandbox) {
    let arn = sandbox.add_service_account("team-a", "web", "web").unwrap();
    sandbox.annotate("team-a", "plain", &[]);
    sandbox.annotate("team-a", "wrong", &[("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/x")]);
    sandbox.cloud.kubernetes.create_namespace("team-b", &[("kube2irsa.io/permitted-roles", "")]);
    let refused_arn = sandbox.add_service_account("team-b", "refused", "refused").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    let wrong = sandbox.add_pod("team-a", "wrong-0", "wrong").unwrap();
    let refused = sandbox.add_pod("team-b", "refused-0", "refused").unwrap();
    let silent = sandbox.add_pod("team-a", "silent-0", "web").unwrap();
    let before = rules(sandbox);
    let daemon = Daemon::ready(sandbox, &OBSERVE);

    let would = [
        (&web, format!("it would get {arn}")),
        (&plain, "it would get no role: its service account names none".to_owned()),
        (&wrong, "it would get no role: annotation eks.amazonaws.com/role-arn".to_owned()),
        (&refused, format!("it would get no role: namespace team-b does not permit {refused_arn}")),
    ];
    for _ in 0..2 {
        for service in services(sandbox) {
            for (pod, _) in &would {
                node_credentials(pod.network(), service).unwrap();
            }
            node_credentials(sandbox.node(), service).unwrap();
        }
    }
    for service in services(sandbox) {
        for (pod, what) in &would {
            eventually(what, || named(&daemon, pod, service, what) > 0);
            assert_eq!(named(&daemon, pod, service, ""), 1, "once is enough: {}", daemon.log());
        }
    }
    let each = 2.0 * if sandbox.families().has_v6() { 2.0 } else { 1.0 };
    // Whatever else was seen before it is told of before it.
    forge(&web, [Ipv4Addr::new(11, 0, 0, 1)]);
    eventually("an address that is no pod's is told of", || connections(sandbox, "unidentified") > 0.0);
    for (outcome, connected, seen) in
        [("role", each, 1.0), ("no_role", each, 1.0), ("invalid", 2.0 * each, 2.0), ("unidentified", 1.0, 1.0)]
    {
        assert_eq!(connections(sandbox, outcome), connected, "{outcome}: {}", daemon.log());
        assert_eq!(pods(sandbox, outcome), seen, "{outcome}");
    }
    let log = daemon.log();
    let contacts = log.lines().filter(|line| line.contains(" contacts ")).count();
    assert_eq!(contacts, 4 * services(sandbox).len() + 1, "the node itself is not seen: {log}");
    assert!(!log.contains(&silent.name), "{log}");

    assert_eq!(rules(sandbox), before);
    let refused = Connection::open(sandbox.node(), LISTEN).err().map(|error| error.kind());
    assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused), "nothing listens for pods");
    assert!(sandbox.cloud.sts.calls().is_empty());
    let written = sandbox.cloud.kubernetes.requests().into_iter().filter(|request| request.verb == "create");
    let written = written.map(|request| request.resource).collect::<Vec<_>>();
    assert!(written.is_empty(), "no token, no Event: {written:?}");
    assert!(daemon.stop().success());
    assert_eq!(rules(sandbox), before);
}

#[test]
fn a_pod_that_would_get_something_else_is_named_again() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "web", &[]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &OBSERVE);
    node_credentials(web.network(), METADATA).unwrap();
    eventually("it is named", || named(&daemon, &web, METADATA, "it would get no role") == 1);
    let arn = sandbox.add_service_account("team-a", "web", "web").unwrap();
    eventually("it is named again", || {
        node_credentials(web.network(), METADATA).unwrap();
        named(&daemon, &web, METADATA, &format!("it would get {arn}")) == 1
    });
    assert_eq!((pods(&sandbox, "role"), pods(&sandbox, "no_role")), (1.0, 0.0));
}

#[test]
fn a_pod_that_becomes_known_after_its_contact_is_named() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &OBSERVE);
    let early = sandbox.start_pod("team-a", "early-0", "web").unwrap();
    for _ in 0..3 {
        node_credentials(early.network(), METADATA).unwrap();
    }
    sandbox.cloud.kubernetes.run_pod("team-a", "early-0", &early.addresses().to_vec());
    eventually("it is named", || named(&daemon, &early, METADATA, "it would get arn:") == 1);
    assert_eq!((connections(&sandbox, "role"), connections(&sandbox, "unidentified")), (3.0, 0.0));
}

/// The kernel shows a packet on a bridge's port as one for the node where the port lends the bridge its address.
#[test]
fn a_connection_that_is_seen_on_a_bridge_and_on_its_port_is_counted_once() {
    let sandbox = support::sandbox_with(PodNetwork::Bridge);
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let same = "cat /sys/class/net/cbr0/address /sys/class/net/veth*/address | sort | uniq -d | grep -q :";
    assert!(sandbox.node().command("sh").args(["-c", same]).status().unwrap().success(), "or this proves nothing");
    let _daemon = Daemon::ready(&sandbox, &OBSERVE);
    for count in 1..=20_u8 {
        node_credentials(web.network(), METADATA).unwrap();
        eventually("it is counted", || connections(&sandbox, "role") >= f64::from(count));
    }
    assert_eq!(connections(&sandbox, "role"), 20.0);
}

/// As where Cilium's or Calico's programs send it on from there.
#[test]
fn what_a_program_on_the_link_takes_from_it_is_seen() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &OBSERVE);
    // A program of one instruction: return TC_ACT_SHOT.
    let take = "link=$(ls /sys/class/net | grep veth); tc qdisc add dev $link clsact; \
        tc filter add dev $link ingress bpf direct-action bytecode '1,6 0 0 2'";
    let taken = sandbox.node().command("sh").args(["-ec", take]).output().unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert!(Connection::open(web.network(), METADATA).is_err(), "or this proves nothing");
    eventually("it is named", || named(&daemon, &web, METADATA, "it would get arn:") == 1);
}

#[test]
fn the_container_endpoints_addresses_are_observed_as_far_as_they_would_be_served() {
    let [ecs, pod_identity] = CONTAINER_ADDRESSES.map(|address| SocketAddr::new(address.into(), 80));
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    for (flags, seen) in [(&[][..], [1, 0]), (&["--container-endpoints", "off"], [1, 0])] {
        let daemon = Daemon::ready(&sandbox, &[&OBSERVE, flags].concat());
        for service in [ecs, pod_identity] {
            Connection::open(web.network(), service).ok();
        }
        // Also to another port, and by UDP: nobody would be redirected.
        Connection::open(web.network(), SocketAddr::new(METADATA.ip(), 81)).ok();
        let udp = || std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", METADATA).unwrap();
        web.network().enter(udp).unwrap();
        node_credentials(web.network(), METADATA).unwrap();
        let connected = if flags.is_empty() { 2.0 } else { 1.0 };
        eventually("all is counted", || connections(&sandbox, "role") >= connected);
        assert_eq!(connections(&sandbox, "role"), connected);
        // The log goes on in one file.
        let named = [ecs, pod_identity].map(|service| named(&daemon, &web, service, "it would get arn:"));
        assert_eq!(named, seen);
        assert!(daemon.stop().success());
    }
}

#[test]
fn it_needs_one_capability_and_without_it_is_not_ready_and_says_so() {
    let sandbox = sandbox();
    let log = sandbox.directory().join("limited.log");
    let with = |capabilities: &str| {
        let limits = [format!("--bounding-set={capabilities}"), format!("--inh-caps={capabilities}")];
        let arguments = [&limits[0], &limits[1], daemon_binary().to_str().unwrap()];
        let command = sandbox.daemon_under("setpriv", &arguments).args(OBSERVE);
        command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap()
    };
    let mut enough = with("-all,+net_raw");
    wait_until_ready(sandbox.node(), &mut enough, PATIENCE).unwrap();
    drop(enough);
    let _not_enough = with("-net_raw");
    let says = "observation: no packet socket to see pods' packets (it needs the capability NET_RAW)";
    let lacks = || admin_if_up(&sandbox, "/readyz").unwrap_or_default();
    eventually("it is not ready for that alone", || lacks().starts_with(says) && lacks().lines().count() == 1);
    assert_eq!(admin(&sandbox, "/readyz").0, 503);
    assert_eq!(admin(&sandbox, "/healthz").0, 200);
    let log = std::fs::read_to_string(log).unwrap();
    let errors = log.lines().filter(|line| line.contains("ERROR")).collect::<Vec<_>>();
    assert!(errors.len() == 1 && errors[0].contains("capability NET_RAW"), "{log}");
}

/// Sends first packets to the metadata service under made-up addresses.
fn forge(pod: &Pod, sources: impl IntoIterator<Item = Ipv4Addr>) {
    let socket = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    let socket = pod.network().enter(socket).unwrap();
    for source in sources {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        packet.extend(source.octets());
        packet.extend(METADATA_ADDRESS.octets());
        packet.extend([0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        // The queue may be full.
        while socket.send_to(&packet, &METADATA.into()).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_rush_under_made_up_addresses_is_bounded_and_keeps_nobody_else_from_being_named() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let bad = sandbox.add_pod("team-a", "bad-0", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let daemon = Daemon::ready(&sandbox, &OBSERVE);
    forge(
        &bad,
        [web.address()].into_iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }),
    );
    eventually("what is forged is seen", || connections(&sandbox, "role") == 1.0);
    let before = resident(&daemon);
    forge(&bad, (0..50_000_u32).map(|number| Ipv4Addr::from_bits(0x0b00_0000 + number)));
    eventually("the pod is named all the same", || {
        node_credentials(bad.network(), METADATA).unwrap();
        named(&daemon, &bad, METADATA, "it would get arn:") == 1
    });
    eventually("those that are no pod's are named", || daemon.log().contains("no pod of this node's has this address"));
    let grown = resident(&daemon).saturating_sub(before);
    println!("{grown} KiB more, {} connections", connections(&sandbox, "unidentified"));
    assert!(grown < 4096, "{grown} KiB");
    assert!(connections(&sandbox, "unidentified") > 256.0);
    let log = daemon.log();
    let named = log.lines().filter(|line| line.contains("11.0.") && line.contains(" contacts ")).count();
    assert!((1..=256).contains(&named), "{named}");
    assert_eq!(log.lines().filter(|line| line.contains("not all are named")).count(), 1);
}

fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn one_daemon_follows_the_other_from_redirecting_to_observing_and_back() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let redirects = Daemon::ready(&sandbox, &[]);
    assert_eq!(support::role_status(&web), 200);
    let installed = rules(&sandbox);

    let observes = Daemon::started(&sandbox, &OBSERVE);
    eventually("it has handed over", || redirects.log().contains("handed over to the next daemon"));
    assert!(redirects.stop().success());
    eventually("it says that rules are there", || observes.log().contains("rules of an earlier run"));
    assert_eq!(rules(&sandbox), installed);
    let error = support::connect(&web).err().map(|error| error.kind());
    assert_eq!(error, Some(io::ErrorKind::ConnectionRefused), "never the node's role");
    eventually("it is seen", || named(&observes, &web, METADATA, "it would get arn:") == 1);

    let offer = sandbox.state_dir().join("handover.sock");
    eventually("it can be followed", || std::os::unix::net::UnixStream::connect(&offer).is_ok());
    let redirects = Daemon::started(&sandbox, &[]);
    eventually("it has taken over", || redirects.log().matches("took over from the daemon that ran here").count() == 2);
    assert!(observes.stop().success());
    assert_eq!(support::role_status(&web), 200);
    assert_eq!(rules(&sandbox), installed);
}
