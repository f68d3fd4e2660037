use netlink_packet_route::{
    route::RouteProtocol,
    rule::{RuleAttribute, RuleMessage},
};

use super::{facts::listens_at, others::of_nft, *};
use crate::intercept::{
    iptables::{Commands, Variant},
    listing::{Chains, Listing, Tables},
};

const NFT: &str = "table inet kube2irsa {
	chain prerouting {
		type nat hook prerouting priority dstnat - 10; policy accept;
		ip daddr 169.254.169.254 tcp dport 80 counter packets 7 bytes 420 dnat ip to 10.0.0.10:9169
		ip6 daddr fd00:ec2::254 tcp dport 80 counter packets 0 bytes 0 dnat ip6 to [fd00:10::10]:9169
	}
	chain incoming {
		type filter hook input priority filter - 10; policy accept;
		meta nfproto ipv4 tcp dport 9169 tcp flags syn / fin,syn,rst,ack ct status ! dnat reject with tcp reset
	}
}
";
const JUMP: &str = "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j KUBE2IRSA\n";
const DNAT: &str = "-N KUBE2IRSA\n\
    -A KUBE2IRSA -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:9169\n";

fn rule(preference: u32, action: RuleAction, attributes: Vec<RuleAttribute>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.action = action;
    message.attributes = attributes;
    message.attributes.push(RuleAttribute::Priority(preference));
    message
}

fn guard_of(address: &str) -> Vec<RuleMessage> {
    let address = address.parse::<IpAddr>().unwrap();
    let ours = || vec![RuleAttribute::Destination(address), RuleAttribute::Protocol(RouteProtocol::Other(169))];
    let lo = RuleAttribute::Iifname("lo".to_owned());
    let mut rules = vec![
        rule(0, RuleAction::ToTable, vec![RuleAttribute::Table(255)]),
        rule(1, RuleAction::ToTable, [ours(), vec![lo, RuleAttribute::Table(254)]].concat()),
        rule(2, RuleAction::Prohibit, ours()),
    ];
    for rule in &mut rules[1..] {
        rule.header.dst_len = if address.is_ipv4() { 32 } else { 128 };
    }
    rules
}

fn expected() -> Expected {
    Expected {
        host_network: Some(HostPods::Off),
        wanted: Some(Wanted::Auto),
        listen: vec!["0.0.0.0:9169".parse().unwrap(), "[::]:9169".parse().unwrap()],
        addresses: ["169.254.169.254", "fd00:ec2::254"].map(|address| address.parse().unwrap()).into(),
        admin: "127.0.0.1:9170".parse().unwrap(),
    }
}

fn iptables(nat: &str, ours: Option<&str>) -> Tables {
    let chains =
        |from: &str, ours: Option<&str>| Ok(Some(Chains { from: from.to_owned(), ours: ours.map(str::to_owned) }));
    Tables {
        commands: Commands { family: Family::V4, variant: Variant::Nft },
        nat: chains(nat, ours),
        filter: chains("-P INPUT ACCEPT\n", None),
        before_nat: Vec::new(),
    }
}

fn facts() -> Facts {
    Facts {
        listing: Listing {
            routing: vec![
                (Family::V4, Ok(Some(guard_of("169.254.169.254")))),
                (Family::V6, Ok(Some(guard_of("fd00:ec2::254")))),
            ],
            nft: Ok(Some(NFT.to_owned())),
            host: Vec::new(),
            iptables: vec![iptables("-P PREROUTING ACCEPT\n", None)],
        },
        own_tables: Own { variant: Variant::Nft, system: Some(Variant::Nft) },
        ruleset: Ok(NFT.to_owned()),
        own: ["127.0.0.1", "10.0.0.10", "fd00:10::10"].map(|address| address.parse().unwrap()).into(),
        listening: Ok(vec!["0.0.0.0:9169".parse().unwrap(), "[::]:9169".parse().unwrap()]),
        links: Ok(Vec::new()),
        cilium: false,
        readiness: Ok(Vec::new()),
    }
}

fn denied<T>() -> Result<T, FirewallError> {
    Err(FirewallError::Command { command: "nft".to_owned(), output: "Operation not permitted".to_owned() })
}

/// What is found that is not well, after a change of a node where all is.
fn after(change: impl FnOnce(&mut Expected, &mut Facts)) -> Vec<String> {
    let (mut expected, mut facts) = (expected(), facts());
    change(&mut expected, &mut facts);
    let findings = findings(&expected, &facts);
    findings.iter().filter(|finding| finding.mark != Mark::Ok).map(ToString::to_string).collect()
}

fn is_all(found: &[String], wanted: &[&str]) {
    let are = found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| found.starts_with(wanted));
    assert!(are, "{found:#?}");
}

#[test]
fn where_all_is_well_nothing_else_is_said() {
    is_all(&after(|_, _| {}), &[]);
}

#[test]
fn the_guard_is_looked_at_address_by_address() {
    let missing = after(|_, facts| facts.listing.routing[0].1 = Ok(Some(Vec::new())));
    is_all(&missing, &["[fail] guard of 169.254.169.254: both rules are missing"]);
    let cut = after(|_, facts| facts.listing.routing[1].1.as_mut().unwrap().as_mut().unwrap().truncate(2));
    is_all(&cut, &["[fail] guard of fd00:ec2::254: the rule is missing that refuses it to pods"]);
    let none = after(|_, facts| facts.listing.routing[1].1 = Ok(None));
    is_all(&none, &[]);
    let unread = after(|_, facts| facts.listing.routing[0].1 = denied());
    is_all(&unread, &["[?]    guard (IPv4): cannot be seen"]);
    let local = after(|_, facts| facts.own.push("169.254.169.254".parse().unwrap()));
    is_all(&local, &["[warn] guard of 169.254.169.254: whole, but the address is the node's own"]);
}

#[test]
fn anothers_routing_rule_before_the_guard_is_a_way_out() {
    let found = after(|_, facts| {
        let marked = rule(1, RuleAction::ToTable, vec![RuleAttribute::FwMark(7), RuleAttribute::Table(100)]);
        facts.listing.routing[0].1.as_mut().unwrap().as_mut().unwrap().insert(1, marked);
    });
    is_all(
        &found,
        &["[fail] guard (IPv4): another's rule comes before it, and packets may leave by that: 1: from all fwmark 0x7"],
    );
    // By the link of one pod, and by that of the node itself.
    for (link, place, found) in [
        (
            "veth1",
            2,
            &[
                "[fail] guard (IPv4): another's rule comes before it, and packets may leave by that: 1: from all iif veth1",
            ][..],
        ),
        ("veth1", 1, &["[fail] guard (IPv4): another's rule comes before it"]),
        ("veth1", 3, &[]),
        ("lo", 2, &[]),
    ] {
        let by_link = vec![RuleAttribute::Iifname(link.to_owned()), RuleAttribute::Table(100)];
        let said = after(|_, facts| {
            let rules = facts.listing.routing[0].1.as_mut().unwrap().as_mut().unwrap();
            rules.insert(place, rule(1, RuleAction::ToTable, by_link));
        });
        is_all(&said, found);
    }
    let found = after(|_, facts| {
        let link = RuleAttribute::Iifname("eni1".to_owned());
        let rules = facts.listing.routing[0].1.as_mut().unwrap().as_mut().unwrap();
        rules.remove(0);
        rules.push(rule(10, RuleAction::ToTable, vec![link, RuleAttribute::Table(101)]));
        rules.push(rule(20, RuleAction::ToTable, vec![RuleAttribute::Table(255)]));
    });
    is_all(&found, &["[fail] in the way: the routing rule 10 (iif eni1)"]);
}

#[test]
fn a_redirect_is_whole_and_leads_to_somebody() {
    let gone = after(|_, facts| facts.listing.nft = Ok(None));
    is_all(&gone, &["[fail] redirect of 169.254.169.254: missing", "[fail] redirect of fd00:ec2::254: missing"]);
    let half =
        after(|_, facts| facts.listing.nft = Ok(Some(NFT.replace("ip6 daddr fd00:ec2::254", "ip6 daddr fd00::1"))));
    is_all(&half, &["[fail] redirect of fd00:ec2::254: missing", "[warn] redirect of fd00::1: by nft, though"]);
    let alone = after(|_, facts| facts.listening = Ok(vec!["[::]:9169".parse().unwrap()]));
    is_all(&alone, &["[fail] redirect of 169.254.169.254: by nft, to 10.0.0.10:9169, where nobody listens"]);
    let unread = after(|_, facts| facts.listening = Err("no".to_owned()));
    assert_eq!(unread.iter().filter(|line| line.starts_with("[?]")).count(), 2, "{unread:?}");
    let moved = after(|_, facts| facts.own.retain(|own| own.to_string() != "10.0.0.10"));
    is_all(
        &moved,
        &["[fail] redirect of 169.254.169.254: by nft, to 10.0.0.10:9169, which is no address of this node"],
    );
    let other_port = after(|expected, _| expected.listen[0].set_port(9269));
    is_all(
        &other_port,
        &["[fail] redirect of 169.254.169.254: by nft, to 10.0.0.10:9169, and --listen says 0.0.0.0:9269"],
    );
    let unread = after(|_, facts| facts.listing.nft = denied());
    assert!(unread[0].starts_with("[?]    redirect by nftables: cannot be seen"), "{unread:?}");
    // Nothing of IPv6 is there to be redirected to.
    let v4_only = after(|_, facts| {
        facts.own.pop();
        facts.listing.nft = Ok(Some(NFT.lines().filter(|line| !line.contains("ip6")).collect::<Vec<_>>().join("\n")));
    });
    is_all(&v4_only, &[]);
}

#[test]
fn iptables_redirects_where_a_jump_leads_to_its_rule() {
    let v4 = |nat: &str, ours: Option<&str>| {
        let (nat, ours) = (format!("-P PREROUTING ACCEPT\n{nat}"), ours.map(str::to_owned));
        after(move |expected, facts| {
            expected.addresses.pop();
            facts.listing.nft = Ok(None);
            facts.listing.iptables = vec![iptables(&nat, ours.as_deref())];
        })
    };
    is_all(&v4("", Some(DNAT)), &["[fail] redirect of 169.254.169.254: missing"]);
    is_all(&v4(JUMP, Some("-N KUBE2IRSA\n")), &["[fail] redirect of 169.254.169.254: missing"]);
    is_all(&v4(JUMP, None), &["[fail] redirect of 169.254.169.254: missing"]);
    is_all(&v4(JUMP, Some(DNAT)), &["[fail] input: iptables-nft has rules for INPUT, and ours is missing"]);
    // An earlier run's, beside that of nftables.
    let both = after(|_, facts| facts.listing.iptables = vec![iptables(JUMP, Some(DNAT))]);
    assert!(
        both.iter().any(|line| line.starts_with("[warn] redirect of 169.254.169.254: a second one, by iptables-nft")),
        "{both:?}"
    );
}

#[test]
fn others_redirects_of_nftables_are_told_by_their_place() {
    let ruleset = format!(
        "{NFT}table ip nat {{
	chain PREROUTING {{
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 169.254.169.254 tcp dport 80 counter packets 0 bytes 0 dnat to 10.0.0.1:8181
	}}
}}
table ip other {{
	chain pre {{
		type nat hook prerouting priority dstnat - 11; policy accept;
		ip daddr 169.254.169.254 tcp dport 80 redirect to :8181
	}}
	chain out {{
		type nat hook output priority -300; policy accept;
		ip daddr 169.254.169.254 tcp dport 80 redirect to :8181
	}}
	chain jumped-to {{
		ip daddr 169.254.169.254 dnat to 10.0.0.1
	}}
}}
"
    );
    let found = of_nft(&ruleset);
    let priorities = found.iter().map(|redirect| redirect.priority).collect::<Vec<_>>();
    assert_eq!(priorities, [Some(-111), None], "{found:?}");
    let found = after(|_, facts| facts.ruleset = Ok(ruleset));
    is_all(
        &found,
        &[
            "[fail] another rule for 169.254.169.254 before ours (nft): ip other pre: ip daddr",
            "[warn] another rule for 169.254.169.254 after ours (nft): ip other jumped-to: ip daddr",
        ],
    );
    let unread = after(|_, facts| facts.ruleset = denied());
    is_all(&unread, &["[?]    others' rules for the same addresses: cannot be seen"]);
}

#[test]
fn what_takes_or_loses_the_packets_before_ours_is_told_however_it_names_them() {
    let other = |family: &str, hook: &str, rule: &str| {
        let ruleset =
            format!("{NFT}table {family} o {{\n\tchain c {{\n\t\ttype {hook}; policy accept;\n\t\t{rule}\n\t}}\n}}\n");
        after(|_, facts| facts.ruleset = Ok(ruleset))
    };
    let (nat, raw) = ("nat hook prerouting priority -120", "filter hook prerouting priority raw");
    let before = "[fail] another rule for 169.254.169.254 before ours (nft): ip o c";
    let perhaps = "[warn] another rule before ours (nft) may take the packets for 169.254.169.254 first: ip o c";
    let loses =
        "[fail] packets for 169.254.169.254 are dropped, or never redirected, by another's rule before ours (nft)";
    for (hook, rule, found) in [
        (nat, "ip daddr 169.254.0.0/16 tcp dport 80 redirect to :81", &[before][..]),
        (nat, "tcp dport 80 redirect to :81", &[before]),
        (nat, "ip daddr @s tcp dport 80 redirect to :81", &[perhaps]),
        (nat, "iifname \"cni0\" tcp dport 80 dnat to 10.0.0.1", &[perhaps]),
        (nat, "fib daddr type local dnat to 10.0.0.1", &[]),
        ("nat hook prerouting priority dstnat", "tcp dport 80 redirect to :81", &[]),
        (raw, "ip daddr 169.254.169.0/24 counter notrack", &[loses]),
        (raw, "ip daddr 169.254.169.254 drop", &[loses]),
        (raw, "ct state invalid drop", &[]),
        ("filter hook prerouting priority filter", "ip daddr 169.254.169.254 drop", &[]),
        ("filter hook prerouting priority mangle", "ip daddr 169.254.169.254 drop", &[loses]),
        ("filter hook prerouting priority mangle", "ip daddr 169.254.169.254 notrack", &[]),
        ("filter hook forward priority raw", "ip daddr 169.254.169.254 drop", &[]),
    ] {
        let said = other("ip", hook, rule);
        assert!(
            said.len() == found.len() && said.iter().zip(found).all(|(said, found)| said.starts_with(found)),
            "{rule}: {said:#?}"
        );
    }
    assert_eq!(other("inet", nat, "tcp dport 80 redirect to :81").len(), 2, "both families");
    let legacy = after(|_, facts| {
        let rule = "-P PREROUTING ACCEPT\n-A PREROUTING -d 169.254.169.254/32 -j NOTRACK\n".to_owned();
        facts.listing.iptables[0].before_nat.push(("raw", Ok(rule)));
    });
    is_all(&legacy, &["[fail] packets for 169.254.169.254 are dropped, or never redirected"]);
}

#[test]
fn what_is_not_let_in_by_another_variant_than_the_nodes_is_no_fault_of_the_daemons() {
    let input = |variant, rules: &str| {
        let filter = Chains { from: rules.to_owned(), ours: None };
        after(move |_, facts| {
            let mut tables = iptables("-P PREROUTING ACCEPT\n", None);
            tables.commands.variant = variant;
            tables.filter = Ok(Some(filter));
            facts.listing.iptables = vec![tables];
        })
    };
    let docker = "-P INPUT ACCEPT\n-A INPUT -i docker0 -j ACCEPT\n";
    is_all(&input(Variant::Nft, docker), &["[fail] input: iptables-nft has rules for INPUT, and ours is missing"]);
    is_all(&input(Variant::Legacy, docker), &[]);
    let warned = "[warn] input: iptables-legacy, whose tables are not the node's own, may keep";
    is_all(&input(Variant::Legacy, "-P INPUT DROP\n"), &[warned]);
    is_all(&input(Variant::Legacy, "-P INPUT ACCEPT\n-A INPUT -p tcp -j REJECT\n"), &[warned]);
    is_all(&input(Variant::Legacy, "-P INPUT ACCEPT\n-A INPUT -p udp -j DROP\n"), &[]);
}

#[test]
fn legacy_tables_that_need_a_right_are_unknown_only_where_they_are_the_nodes_own() {
    let denied = |own: Variant| {
        after(move |_, facts| {
            let mut tables = iptables("-P PREROUTING ACCEPT\n", None);
            tables.commands.variant = Variant::Legacy;
            tables.nat = Err(FirewallError::Command {
                command: "iptables-legacy -w 5 -t nat -S".to_owned(),
                output: "can't initialize iptables table `nat': Permission denied".to_owned(),
            });
            facts.listing.iptables = vec![tables];
            facts.own_tables.variant = own;
        })
    };
    is_all(
        &denied(Variant::Nft),
        &["[warn] redirect by iptables-legacy: not looked at: iptables-legacy needs NET_RAW"],
    );
    is_all(&denied(Variant::Legacy), &["[?]    redirect by iptables-legacy: cannot be seen"]);
}

#[test]
fn where_nothing_is_wanted_what_is_there_is_wrong() {
    let left = after(|expected, _| expected.wanted = None);
    is_all(&left, &["[fail] rules: an earlier run's are there"]);
    let none = after(|expected, facts| {
        expected.wanted = None;
        facts.listing.routing.clear();
        facts.listing.nft = Ok(None);
    });
    is_all(&none, &[]);
    let unread = after(|expected, facts| {
        expected.wanted = None;
        facts.listing.routing.clear();
        facts.listing.nft = denied();
    });
    is_all(&unread, &["[?]    rules of ours: cannot be seen"]);
}

#[test]
fn what_the_daemon_says_counts() {
    let lacks =
        after(|_, facts| facts.readiness = Ok(vec!["arrival: packets are redirected and do not arrive".to_owned()]));
    is_all(&lacks, &["[fail] daemon: not ready: arrival: packets"]);
    let nobody = after(|_, facts| facts.readiness = Err("Connection refused".to_owned()));
    is_all(&nobody, &["[fail] daemon: nobody answers at 127.0.0.1:9170"]);
}

#[test]
fn a_bridge_and_lax_links_let_a_pod_be_taken_for_another() {
    let link = |name: &str, index, kind, controller, reverse_path| Link {
        name: name.to_owned(),
        index,
        kind,
        controller,
        reverse_path,
    };
    let links = vec![
        link("eth0", 1, Kind::Other, None, Some(0)),
        link("cni0", 2, Kind::Bridge, None, Some(0)),
        link("veth1", 3, Kind::Veth, Some(2), Some(0)),
        link("docker0", 4, Kind::Bridge, None, Some(0)),
        link("cali1", 5, Kind::Veth, None, Some(1)),
        link("cali2", 6, Kind::Veth, None, Some(2)),
        link("cali3", 7, Kind::Veth, None, None),
    ];
    let found = after(|_, facts| facts.links = Ok(links));
    is_all(&found, &["[warn] bridge cni0 (links on it: 1)", "[warn] pods' links: cali2 and 1 more let packets in"]);
}

#[test]
fn listening_sockets_are_read_as_the_kernel_writes_them() {
    let v4 =
        "   0: 0A00000A:23D1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
    let v6 =
        "   1: 000000FD000000001000000010000000:23D1 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1 0";
    if cfg!(target_endian = "little") {
        assert_eq!(listens_at(v4), Some("10.0.0.10:9169".parse().unwrap()));
        assert_eq!(listens_at(v6), Some("[fd00::10:0:10]:9169".parse().unwrap()));
    }
    assert_eq!(listens_at(&v4.replace(" 0A ", " 01 ")), None, "a connection");
    assert_eq!(listens_at("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"), None);
}
