//! Each way to redirect, on each shape of pod network and beside what else there may be on a node. Each test shows first
//! that a pod gets the node's role without us, and counts what the real service handed out.
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
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    cloud::NODE_ROLE,
    network::{Families, Namespace, PodNetwork},
    sandbox::{METADATA, METADATA_V6, Pod, Sandbox},
};
use support::{Daemon, PATIENCE, ROLE_NAME, admin, eventually, http::Connection, metric, rules, sandbox_of};

/// A way to redirect, and what makes the daemon take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

const WAYS: [Way; 3] = [Way::Nft, Way::IptablesNft, Way::IptablesLegacy];

impl Way {
    fn flags(self) -> [&'static str; 2] {
        ["--intercept", if self == Self::Nft { "nft" } else { "iptables" }]
    }

    /// Makes the node one whose kubelet uses the variant.
    fn prepare(self, sandbox: &Sandbox) {
        if self == Self::IptablesLegacy {
            run(sandbox.node(), "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT");
        }
    }

    /// What is to be found on the node when it is taken.
    fn is_in_force(self, sandbox: &Sandbox) -> bool {
        let found = match self {
            Self::Nft => "nft list table inet kube2irsa | grep -q dnat",
            Self::IptablesNft => "iptables-nft -t nat -S KUBE2IRSA | grep -q DNAT",
            Self::IptablesLegacy => "iptables-legacy -t nat -S KUBE2IRSA | grep -q DNAT",
        };
        sandbox.node().command("sh").args(["-c", found]).status().unwrap().success()
    }
}

fn run(namespace: &Namespace, script: &str) {
    let output = namespace.command("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The metadata service's addresses that a pod can reach.
fn services(families: Families) -> Vec<SocketAddr> {
    let v4 = families.has_v4().then_some(METADATA);
    v4.into_iter().chain(families.has_v6().then_some(METADATA_V6)).collect()
}

fn ask(namespace: &Namespace, service: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut connection = Connection::open(namespace, service)?;
    connection.send("GET", path, &[])?;
    let answer = connection.answer()?;
    Ok((answer.status, answer.text().to_owned()))
}

fn node_role_path() -> String {
    format!("{ROLE_NAME}{NODE_ROLE}")
}

fn gets_the_node_role(namespace: &Namespace, service: SocketAddr) -> bool {
    ask(namespace, service, &node_role_path()).is_ok_and(|(status, text)| status == 200 && text.contains("AccessKeyId"))
}

/// A pod with a role, which has got the node's without us.
fn exposed_pod(sandbox: &Sandbox) -> Pod {
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    for service in services(sandbox.families()) {
        assert!(gets_the_node_role(web.network(), service), "without us a pod must get the node's role by {service}");
        assert!(gets_the_node_role(sandbox.node(), service));
    }
    web
}

/// The pod is served as itself by all that it can reach, and as the node by none.
fn is_served(sandbox: &Sandbox, web: &Pod) {
    let before = sandbox.cloud.imds.credential_requests();
    for service in services(sandbox.families()) {
        let role = ask(web.network(), service, ROLE_NAME).unwrap_or_else(|error| panic!("{service}: {error}"));
        assert_eq!(role, (200, "web".to_owned()), "{service}");
        let (status, document) = ask(web.network(), service, &format!("{ROLE_NAME}web")).unwrap();
        assert!(status == 200 && document.contains("SecretAccessKey"), "{service}: {status}");
        assert_eq!(ask(web.network(), service, &node_role_path()).unwrap().0, 404, "{service}");
    }
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
    for service in services(sandbox.families()) {
        assert!(gets_the_node_role(sandbox.node(), service), "the node itself goes on as ever");
    }
}

/// While there is no redirect, the pod gets nothing, and then its own again.
fn outlives_a_flush(sandbox: &Sandbox, web: &Pod) {
    let flush = "nft flush ruleset; for i in iptables-legacy ip6tables-legacy; do $i -t nat -F; $i -F; done";
    for service in services(sandbox.families()) {
        let before = sandbox.cloud.imds.credential_requests();
        run(sandbox.node(), flush);
        eventually("the redirect is back", || {
            assert!(!gets_the_node_role(web.network(), service), "{service}");
            ask(web.network(), service, ROLE_NAME).is_ok_and(|answer| answer == (200, "web".to_owned()))
        });
        assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
    }
}

fn serves_every_shape(way: Way) {
    for shape in [PodNetwork::Routed, PodNetwork::Bridge] {
        for families in [Families::V4, Families::Dual, Families::V6] {
            println!("{way:?} {shape:?} {families:?}");
            let sandbox = sandbox_of(shape, families);
            way.prepare(&sandbox);
            let web = exposed_pod(&sandbox);
            let before = rules(&sandbox);
            let daemon = Daemon::ready(&sandbox, &way.flags());
            assert!(way.is_in_force(&sandbox), "{}", daemon.log());
            is_served(&sandbox, &web);
            outlives_a_flush(&sandbox, &web);
            assert!(daemon.stop().success());
            for service in services(families) {
                assert!(ask(web.network(), service, ROLE_NAME).is_err(), "nobody listens");
            }
            run(sandbox.node(), &format!("{} rules remove", support::daemon_binary().display()));
            // The flush took what was the node's own.
            let after = rules(&sandbox);
            let added =
                after.lines().filter(|line| line.starts_with("-A") || line.contains("lookup")).collect::<Vec<_>>();
            assert!(added.iter().all(|line| before.contains(line)), "{added:?}");
            assert!(!after.to_lowercase().contains("kube2irsa") && !after.contains("prohibit"), "{after}");
        }
    }
}

#[test]
fn nftables_serves_pods_on_every_shape_of_network() {
    serves_every_shape(Way::Nft);
}

#[test]
fn iptables_serves_pods_on_every_shape_of_network() {
    serves_every_shape(Way::IptablesNft);
}

#[test]
fn iptables_of_before_serves_pods_on_every_shape_of_network() {
    serves_every_shape(Way::IptablesLegacy);
}

/// What other programs put on a node, and still packets come.
const NEIGHBOURS: [(&str, &str); 4] = [
    (
        "masquerading of all that leaves",
        "$v4 -t nat -A POSTROUTING -j MASQUERADE; $v6 -t nat -A POSTROUTING -j MASQUERADE",
    ),
    (
        "kube-proxy by iptables, at the first place",
        "for i in $v4 $v6; do
            $i -t nat -N KUBE-SERVICES; $i -t nat -N KUBE-NODEPORTS; $i -t nat -N KUBE-POSTROUTING
            $i -t nat -I PREROUTING 1 -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
            $i -t nat -I POSTROUTING 1 -j KUBE-POSTROUTING
            $i -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
            $i -t nat -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
            $i -N KUBE-FIREWALL; $i -I INPUT 1 -j KUBE-FIREWALL
            $i -A KUBE-FIREWALL -m conntrack --ctstate INVALID -j DROP
        done",
    ),
    (
        "kube-proxy by nftables",
        "nft -f - <<'END'
        table ip kube-proxy {
            map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : drop } }
            chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept
                ip daddr . meta l4proto . th dport vmap @services
            }
            chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept
                meta mark & 0x4000 == 0x4000 masquerade
            }
            chain filter-input { type filter hook input priority -110; policy accept
                ct state new ip daddr . meta l4proto . th dport vmap @services
            }
        }
END",
    ),
    (
        "a firewall that lets in nothing but answers",
        "for i in $v4 $v6; do
            $i -A INPUT -i lo -j ACCEPT; $i -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        done
        $v6 -A INPUT -p ipv6-icmp -j ACCEPT; $v4 -P INPUT DROP; $v6 -P INPUT DROP",
    ),
];

fn serves_beside_others(way: Way) {
    for (what, script) in NEIGHBOURS {
        println!("{way:?}: {what}");
        let sandbox = sandbox_of(PodNetwork::Routed, Families::Dual);
        way.prepare(&sandbox);
        let variant = if way == Way::IptablesLegacy { "-legacy" } else { "" };
        let web = exposed_pod(&sandbox);
        run(sandbox.node(), &format!("v4=iptables{variant}; v6=ip6tables{variant}\n{script}"));
        let before = rules_alone(&sandbox);
        let daemon = Daemon::ready(&sandbox, &way.flags());
        is_served(&sandbox, &web);
        assert!(daemon.stop().success());
        run(sandbox.node(), &format!("{} rules remove", support::daemon_binary().display()));
        assert_eq!(rules_alone(&sandbox), before);
    }
}

/// All rules, without the tables that iptables makes for what is to be put there.
fn rules_alone(sandbox: &Sandbox) -> String {
    let is_rule = |line: &&str| !line.starts_with('*') && *line != "COMMIT";
    rules(sandbox).lines().filter(is_rule).collect::<Vec<_>>().join("\n")
}

#[test]
fn nftables_serves_beside_kube_proxy_masquerading_and_a_firewall() {
    serves_beside_others(Way::Nft);
}

#[test]
fn iptables_serves_beside_kube_proxy_masquerading_and_a_firewall() {
    serves_beside_others(Way::IptablesNft);
}

#[test]
fn iptables_of_before_serves_beside_kube_proxy_masquerading_and_a_firewall() {
    serves_beside_others(Way::IptablesLegacy);
}

#[test]
fn auto_takes_iptables_where_nftables_cannot_be_had_and_says_why() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    // A node with the one command and without the other.
    let path = sandbox.directory().join("bin");
    std::fs::create_dir(&path).unwrap();
    for command in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
        std::os::unix::fs::symlink(format!("/usr/sbin/{command}"), path.join(command)).unwrap();
    }
    let daemon = Daemon::ready_in(&sandbox, &[("PATH", path.to_str().unwrap())], &[]);
    is_served(&sandbox, &web);
    assert!(metric(&sandbox, "kube2irsa_intercept_info{backend=\"iptables\"}") > 0.0);
    let log = daemon.log();
    assert!(log.contains("nft does not work here: redirect: nft is not installed"), "{log}");
    assert!(log.contains("redirected by iptables"), "{log}");
}

#[test]
fn what_the_other_way_left_is_taken_out() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::Dual);
    let web = exposed_pod(&sandbox);
    for (way, port) in [(Way::IptablesNft, "9269"), (Way::Nft, "9169"), (Way::IptablesNft, "9369")] {
        let listen = format!("0.0.0.0:{port},[::]:{port}");
        let daemon = Daemon::ready(&sandbox, &[&way.flags()[..], &["--listen", &listen]].concat());
        is_served(&sandbox, &web);
        assert_eq!(WAYS.map(|other| other.is_in_force(&sandbox)), WAYS.map(|other| other == way), "{way:?}");
        assert!(daemon.stop().success());
    }
}

/// Why the daemon is not ready, once it is not.
fn reason(sandbox: &Sandbox, expected: &str) {
    eventually(expected, || support::admin_if_up(sandbox, "/readyz").is_some_and(|text| text.contains(expected)));
    assert_eq!(admin(sandbox, "/readyz").0, 503);
}

#[test]
fn a_firewall_that_drops_what_is_redirected_is_noticed() {
    for way in WAYS {
        a_firewall_is_noticed(way);
    }
}

fn a_firewall_is_noticed(way: Way) {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    way.prepare(&sandbox);
    let web = exposed_pod(&sandbox);
    let mut daemon = Daemon::ready(&sandbox, &way.flags());
    is_served(&sandbox, &web);
    run(
        sandbox.node(),
        "nft add table inet firewall; nft add chain inet firewall in '{ type filter hook input priority 0; }'
        nft add rule inet firewall in tcp dport 9169 drop",
    );
    let before = sandbox.cloud.imds.credential_requests();
    let end = Instant::now() + PATIENCE;
    while admin(&sandbox, "/readyz").0 == 200 && Instant::now() < end {
        assert!(!gets_the_node_role(web.network(), METADATA));
    }
    reason(&sandbox, "arrival: packets are redirected and do not arrive");
    assert!(metric(&sandbox, "kube2irsa_intercept_obstacle{kind=\"lost\"}") > 0.0);
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");

    run(sandbox.node(), "nft insert rule inet firewall in ct status dnat accept");
    eventually("one comes", || ask(web.network(), METADATA, ROLE_NAME).is_ok());
    daemon.wait_until_ready(&sandbox);
}

#[test]
fn routing_rules_that_lead_pods_packets_elsewhere_are_named() {
    let sandbox = sandbox_of(PodNetwork::BranchInterfaces, Families::V4);
    let web = exposed_pod(&sandbox);
    let link = web.host_link();
    let mut daemon = Daemon::started(&sandbox, &[]);
    reason(&sandbox, &format!("the routing rule 10 (iif {link}) comes before"));
    let before = sandbox.cloud.imds.credential_requests();
    assert!(ask(web.network(), METADATA, ROLE_NAME).is_err(), "it was not to arrive");
    assert!(!gets_the_node_role(web.network(), METADATA));
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");

    // The standard mode.
    run(sandbox.node(), "ip rule add pref 0 lookup local; ip rule del pref 20");
    // Packets were lost, and until one comes it is not known that none is.
    is_served(&sandbox, &web);
    daemon.wait_until_ready(&sandbox);
}

#[test]
fn where_cilium_is_found_packets_must_first_come() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    run(sandbox.node(), "ip link add cilium_host type veth peer name cilium_net");
    let mut daemon = Daemon::started(&sandbox, &[]);
    reason(&sandbox, "arrival: there is a link cilium_host");
    is_served(&sandbox, &web);
    daemon.wait_until_ready(&sandbox);
    assert!(daemon.stop().success());
    Daemon::ready(&sandbox, &["--intercept", "nft"]);
}

/// Ends what asks without pause, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks for the node's role without pause, on new connections and on one that is kept, until it is told to stop; says how
/// often it had it.
fn ask_for_the_node_role(web: &Namespace, stop: &AtomicBool) -> (u64, u64) {
    let (mut asked, mut had) = (0, 0);
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        asked += 2;
        had += u64::from(gets_the_node_role(web, METADATA));
        let connection = kept.take().or_else(|| Connection::open(web, METADATA).ok());
        if let Some(mut connection) = connection {
            let answer = connection.send("GET", &node_role_path(), &[]).and_then(|()| connection.answer());
            if let Ok(answer) = answer {
                had += u64::from(answer.status == 200);
                kept = Some(connection);
            }
        }
    }
    (asked, had)
}

/// What takes our rules away, and whether the guard as well.
const FLUSHES: [(&str, &str, bool); 6] = [
    // Ours may be there again before the second.
    ("iptables -t nat -F", "iptables -t nat -F; iptables -t nat -X || true", false),
    ("nft flush ruleset", "nft flush ruleset", false),
    (
        "delete of our chain",
        "nft delete table inet kube2irsa || \
            printf '*nat\\n-F PREROUTING\\n-F KUBE2IRSA\\n-X KUBE2IRSA\\nCOMMIT\\n' | iptables-restore --noflush",
        false,
    ),
    ("another's restore", "printf '*nat\\n-A POSTROUTING -o eth0 -j MASQUERADE\\nCOMMIT\\n' | iptables-restore", false),
    ("ip rule flush", "ip rule flush; ip rule add pref 32766 lookup main", true),
    (
        "ip rule flush and nft flush ruleset",
        "ip rule flush & nft flush ruleset; ip rule add pref 32766 lookup main; wait",
        true,
    ),
];

/// How often all of them are done: `make test-flushes` does it a hundred times.
fn flushes() -> usize {
    std::env::var("KUBE2IRSA_FLUSHES").map_or(3, |flushes| flushes.parse().unwrap())
}

fn flushed_under_load(way: Way) {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let daemon = Daemon::ready(&sandbox, &way.flags());
    let whole = rules(&sandbox);
    let ours = |rules: &str| {
        let is_ours = |line: &&str| {
            line.to_lowercase().contains("kube2irsa") || line.contains("prohibit") || line.contains("dnat")
        };
        rules.lines().filter(is_ours).map(str::to_owned).collect::<Vec<_>>()
    };
    for (what, script, takes_the_guard) in FLUSHES {
        let stop = AtomicBool::new(false);
        let mut back = Vec::new();
        let before = sandbox.cloud.imds.credential_requests();
        let (asked, had) = thread::scope(|scope| {
            let askers = [(); 3].map(|()| scope.spawn(|| ask_for_the_node_role(web.network(), &stop)));
            let stopped = Stop(&stop);
            for _ in 0..flushes() {
                // Not all at the same moment of the daemon's own clock.
                thread::sleep(Duration::from_millis(130));
                run(sandbox.node(), script);
                let flushed = Instant::now();
                while ours(&rules(&sandbox)) != ours(&whole) {
                    let now = rules(&sandbox);
                    assert!(flushed.elapsed() < PATIENCE, "{what}: not back: {now}\n{}", daemon.log());
                }
                back.push(flushed.elapsed());
            }
            drop(stopped);
            askers
                .map(|asker| asker.join().unwrap())
                .into_iter()
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        });
        back.sort_unstable();
        let handed_out = sandbox.cloud.imds.credential_requests() - before;
        println!(
            "{way:?}: {what}: {} times, back after {:?} (median), {:?} (worst); of {asked} requests {handed_out} reached the \
             real service",
            back.len(),
            back[back.len() / 2],
            back[back.len() - 1],
        );
        if !takes_the_guard {
            assert_eq!((handed_out, had), (0, 0), "{what}");
        }
        eventually("it is served", || ask(web.network(), METADATA, ROLE_NAME).is_ok_and(|(status, _)| status == 200));
    }
}

#[test]
fn a_flush_under_load_lets_no_request_through_the_guard_and_nftables_is_put_back() {
    flushed_under_load(Way::Nft);
}

#[test]
fn a_flush_under_load_lets_no_request_through_the_guard_and_iptables_is_put_back() {
    flushed_under_load(Way::IptablesNft);
}

/// A directory with commands that never end.
fn hanging(sandbox: &Sandbox, commands: &[&str]) -> String {
    let path = sandbox.directory().join("hanging");
    std::fs::create_dir(&path).unwrap();
    for command in commands {
        let file = path.join(command);
        std::fs::write(&file, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path.display())
}

#[test]
fn the_guard_waits_for_no_command() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let path = hanging(&sandbox, &["nft", "iptables", "iptables-nft", "iptables-legacy", "ip6tables"]);
    let _daemon = Daemon::started_in(&sandbox, &[("PATH", &path)], &[]);
    let stands = || rules(&sandbox).contains("to 169.254.169.254 prohibit");
    eventually("it stands", stands);
    for _ in 0..3 {
        assert!(!gets_the_node_role(web.network(), METADATA));
        run(sandbox.node(), "ip rule flush; ip rule add pref 32766 lookup main");
        let flushed = Instant::now();
        eventually("it stands again", stands);
        println!("the guard was back after {:?}", flushed.elapsed());
    }
}

#[test]
fn auto_does_not_wait_for_an_nft_that_hangs() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let path = hanging(&sandbox, &["nft"]);
    let daemon = Daemon::ready_in(&sandbox, &[("PATH", &path)], &[]);
    is_served(&sandbox, &web);
    assert!(daemon.log().contains("nft does not work here: no result within"), "{}", daemon.log());
}

#[test]
fn when_the_nodes_address_changes_the_redirect_follows() {
    for way in [Way::Nft, Way::IptablesNft] {
        let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
        let web = exposed_pod(&sandbox);
        let _daemon = Daemon::ready(&sandbox, &way.flags());
        is_served(&sandbox, &web);
        run(
            sandbox.node(),
            "ip addr add 10.0.0.11/24 dev eth0; ip addr del 10.0.0.10/24 dev eth0; ip addr add 10.0.0.11/24 dev eth0 || true
            ip route replace default via 10.0.0.1; ip route replace 169.254.169.254 dev eth0",
        );
        eventually("it leads to the new address", || {
            let rules = rules(&sandbox);
            rules.contains("10.0.0.11:9169") && !rules.contains("10.0.0.10:9169")
        });
        assert_eq!(ask(web.network(), METADATA, ROLE_NAME).unwrap(), (200, "web".to_owned()));
    }
}

#[test]
fn what_is_redirected_to_an_address_that_another_machine_has_now_does_not_leave_the_node() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let daemon = Daemon::ready(&sandbox, &Way::Nft.flags());
    is_served(&sandbox, &web);
    // Nobody is there to make the redirect follow.
    daemon.kill();
    run(
        sandbox.node(),
        "ip addr add 10.0.0.11/24 dev eth0; ip addr del 10.0.0.10/24 dev eth0; ip addr add 10.0.0.11/24 dev eth0 || true
        ip route replace default via 10.0.0.1",
    );
    run(sandbox.outside(), "ip addr add 10.0.0.10/24 dev vpc0; ip route replace 10.244.0.0/24 via 10.0.0.11");
    let _other = sandbox.outside().enter(|| std::net::TcpListener::bind("10.0.0.10:9169")).unwrap().unwrap();
    let reaches_it = || Connection::open(web.network(), METADATA).is_ok();
    assert!(!reaches_it());
    run(sandbox.node(), "nft flush chain inet kube2irsa forwarded");
    assert!(reaches_it(), "without our rule it does, or this proves nothing");
}

#[test]
fn what_another_makes_of_our_table_is_not_taken_for_ours() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "nft"]);
    // Also in the very moment in which it was put back.
    for _ in 0..20 {
        run(
            sandbox.node(),
            "nft delete table inet kube2irsa || true
            until nft flush chain inet kube2irsa prerouting 2>/dev/null; do :; done",
        );
    }
    eventually("it is whole", || rules(&sandbox).contains("dnat ip to"));
    is_served(&sandbox, &web);
}

#[test]
fn trouble_with_a_firewalls_tables_takes_no_redirect_away() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V4);
    let web = exposed_pod(&sandbox);
    let before = "nft flush ruleset; nft add table ip nat
        nft 'add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; }'
        nft add rule ip nat POSTROUTING oifname eth0 masquerade
        nft 'add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; }'
        nft add set ip nat s '{ type ipv4_addr; }'
        nft add rule ip nat PREROUTING ip daddr @s tcp dport 1 dnat to 10.0.0.10:1
        nft add table ip filter; nft 'add chain ip filter INPUT { type filter hook input priority 0; }'
        nft add set ip filter s '{ type ipv4_addr; }'; nft add rule ip filter INPUT ip saddr @s drop";
    run(sandbox.node(), before);
    let _daemon = Daemon::ready(&sandbox, &[]);
    is_served(&sandbox, &web);
    assert!(metric(&sandbox, "kube2irsa_intercept_info{backend=\"nft\"}") > 0.0);
}
