//! `kube2irsa rules show` and `rules check`: what an operator is told of a node, which stays as it is.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use sandbox::{
    network::{Families, PodNetwork},
    sandbox::Sandbox,
};
use support::{
    Daemon, daemon_binary, eventually,
    node::{everything, kube2irsa_rules, sh},
    sandbox, sandbox_with,
};

fn with_families(shape: PodNetwork, families: Families) -> Sandbox {
    Sandbox::with_families(shape, families, &mut |line| println!("{line}")).unwrap()
}

/// The answer, after which nothing on the node is different.
fn check(sandbox: &Sandbox, flags: &[&str]) -> (Option<i32>, String) {
    let before = everything(sandbox);
    let (code, said, errors) = kube2irsa_rules(sandbox, &[&["check"], flags].concat());
    assert_eq!(everything(sandbox), before, "a check changes nothing");
    println!("{said}{errors}");
    (code, said)
}

/// What is wrong or unknown.
fn wrong(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.starts_with("[fail]") || line.starts_with("[?]")).collect()
}

fn is_found(sandbox: &Sandbox, flags: &[&str], found: &str) {
    let (code, said) = check(sandbox, flags);
    assert_eq!(code, Some(1), "{said}");
    assert!(wrong(&said).iter().any(|line| line.contains(found)), "{found}: {said}");
}

#[test]
fn a_node_where_all_is_well() {
    for families in [Families::V4, Families::Dual] {
        let sandbox = with_families(PodNetwork::Routed, families);
        let _pod = sandbox.add_pod("team-a", "web-0", "web").unwrap();
        for (backend, by) in [("nft", "nft"), ("iptables", "iptables-nft")] {
            let daemon = Daemon::ready(&sandbox, &["--intercept", backend]);
            let (code, said) = check(&sandbox, &[]);
            assert_eq!((code, wrong(&said).as_slice()), (Some(0), &[][..]), "{said}");
            for address in ["169.254.169.254", "169.254.170.2"] {
                let line =
                    format!("[ok]   redirect of {address}: by {by}, to 10.0.0.10:9169, where somebody listens\n");
                assert!(said.contains(&line), "{said}");
                assert!(said.contains(&format!("[ok]   guard of {address}")), "{said}");
            }
            let v6 = said.contains("[ok]   redirect of fd00:ec2::254: by");
            assert_eq!(v6, families == Families::Dual, "{said}");
            assert!(said.contains("[ok]   daemon: 127.0.0.1:9170 says that it is ready"), "{said}");
            assert!(said.contains("routed ones let in no other pod's address"), "{said}");
            let (_, other) =
                [("nft", "iptables"), ("iptables", "nft")].into_iter().find(|(of, _)| *of == backend).unwrap();
            is_found(&sandbox, &["--intercept", other], "the other way");
            is_found(&sandbox, &["--listen", "0.0.0.0:9269"], "--listen says 0.0.0.0:9269");
            is_found(&sandbox, &["--intercept", "none"], "rules remove");
            assert!(daemon.stop().success());
        }
    }
}

#[test]
fn a_node_on_which_nothing_was_installed() {
    let sandbox = sandbox();
    is_found(&sandbox, &[], "guard of 169.254.169.254: both rules are missing");
    is_found(&sandbox, &[], "redirect of 169.254.169.254: missing");
    is_found(&sandbox, &[], "daemon: nobody answers at 127.0.0.1:9170");
    // Nothing is wanted, but for somebody who serves.
    let (_, said) = check(&sandbox, &["--intercept", "none"]);
    assert_eq!(wrong(&said).len(), 1, "{said}");
    // Another program uses one table of before; no other comes into use.
    sh(&sandbox, "iptables-legacy -t mangle -N OTHER");
    is_found(&sandbox, &[], "redirect of 169.254.169.254: missing");
    let before = everything(&sandbox);
    let (code, said, _) = kube2irsa_rules(&sandbox, &["show"]);
    assert_eq!((code, said.as_str()), (Some(0), "no rules of kube2irsa on this node\n"));
    assert_eq!(kube2irsa_rules(&sandbox, &["remove", "--state-dir", "/nowhere"]).0, Some(0));
    assert_eq!(everything(&sandbox), before);
}

#[test]
fn each_rule_that_is_missing_is_found() {
    let sandbox = sandbox();
    let stopped = |backend| assert!(Daemon::ready(&sandbox, &["--intercept", backend]).stop().success());
    stopped("nft");
    is_found(&sandbox, &[], "where nobody listens: pods are refused until the daemon runs");
    let again = |undo: &str, found: &str, backend: &'static str| {
        sh(&sandbox, undo);
        is_found(&sandbox, &[], found);
        stopped(backend);
        let (_, said) = check(&sandbox, &[]);
        assert!(!said.contains(found), "it was put back: {said}");
    };
    let refuses = "ip rule del pref 2 to 169.254.169.254";
    again(refuses, "guard of 169.254.169.254: the rule is missing that refuses it to pods", "nft");
    let lets = "ip -6 rule del pref 1 to fd00:ec2::254";
    again(lets, "guard of fd00:ec2::254: the rule is missing that lets the node itself go on", "nft");
    again("nft delete table inet kube2irsa", "redirect of 169.254.169.254: missing", "nft");
    again("nft flush chain inet kube2irsa incoming", "refuses pods port 9169 itself", "nft");
    let later = "nft list table inet kube2irsa | sed 's/dstnat - 10/dstnat + 10/' > $$.nft;
        nft delete table inet kube2irsa; nft -f $$.nft; rm $$.nft";
    again(later, "lost its place", "nft");

    stopped("iptables");
    let (_, said) = check(&sandbox, &[]);
    assert!(said.contains("by iptables-nft, to 10.0.0.10:9169, where nobody"), "{said}");
    again("iptables -t nat -F PREROUTING", "redirect of 169.254.169.254: missing", "iptables");
    again("iptables -t nat -F KUBE2IRSA", "redirect of 169.254.170.2: missing", "iptables");
    again("iptables -F INPUT", "ours is missing that lets redirected requests in to port 9169", "iptables");
    again("iptables -F KUBE2IRSA-INPUT", "ours is missing that lets redirected requests in", "iptables");
}

#[test]
fn a_firewall_of_the_nodes_own_has_to_let_redirected_requests_in() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "nft"]);
    let (code, _) = check(&sandbox, &[]);
    assert_eq!(code, Some(0));
    sh(&sandbox, "iptables -A INPUT -p tcp --dport 22 -j ACCEPT");
    eventually("the accept is there", || everything(&sandbox).contains("-j KUBE2IRSA-INPUT"));
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn anothers_rule_for_the_same_address_is_named_and_wrong_where_it_comes_first() {
    let sandbox = sandbox();
    let stopped = |backend| assert!(Daemon::ready(&sandbox, &["--intercept", backend]).stop().success());
    let of_kube2iam = "-t nat -I PREROUTING 1 -i eni+ -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181";
    stopped("iptables");
    sh(&sandbox, &format!("iptables {of_kube2iam}"));
    is_found(&sandbox, &[], "another rule for 169.254.169.254 before ours (iptables-nft)");
    stopped("iptables");
    let (_, said) = check(&sandbox, &[]);
    assert!(said.contains("[warn] another rule for 169.254.169.254 after ours (iptables-nft)"), "{said}");
    sh(&sandbox, "iptables -t nat -F PREROUTING");

    // What comes by nftables comes before all of that.
    stopped("nft");
    sh(&sandbox, &format!("iptables {of_kube2iam}"));
    let (_, said) = check(&sandbox, &[]);
    assert!(said.contains("[warn] another rule for 169.254.169.254 after ours (iptables-nft)"), "{said}");
    let table = |priority| {
        let chain = format!("type nat hook prerouting priority {priority};");
        let rule = "ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.10:8181";
        format!("nft -f - <<'E'\ntable ip other {{\nchain c {{\n{chain}\n{rule}\n}}\n}}\nE\n")
    };
    sh(&sandbox, &table("dstnat + 5"));
    let (_, said) = check(&sandbox, &[]);
    assert!(said.contains("[warn] another rule for 169.254.169.254 after ours (nft): ip other c: "), "{said}");
    sh(&sandbox, &format!("nft delete table ip other; {}", table("dstnat - 20")));
    is_found(&sandbox, &[], "another rule for 169.254.169.254 before ours (nft): ip other c: ");
}

#[test]
fn a_routing_rule_in_the_way_is_named() {
    let sandbox = sandbox();
    sh(&sandbox, "ip rule add pref 10 iif eth0 lookup 100; ip rule add pref 20 lookup local; ip rule del pref 0");
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "nft"]);
    is_found(&sandbox, &[], "in the way: the routing rule 10 (iif eth0)");
    let (code, said) = check(&sandbox, &["--intercept", "nft"]);
    assert_eq!(code, Some(0), "who names the way knows the node: {said}");
    assert!(said.contains("[warn] in the way: the routing rule 10 (iif eth0)"), "{said}");
    sh(&sandbox, "ip rule add pref 0 fwmark 7 lookup 100");
    is_found(
        &sandbox,
        &["--intercept", "nft"],
        "another's rule comes before it, and packets may leave by that: 0: from all fwmark 0x7",
    );
}

#[test]
fn a_routing_rule_by_a_pods_link_before_the_guard_is_a_way_out() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sh(&sandbox, "ip rule add pref 1 iif pod-link lookup 100");
    let found = "guard (IPv4): another's rule comes before it, and packets may leave by that: 1: from all iif pod-link";
    is_found(&sandbox, &[], found);
    assert!(
        !check(&sandbox, &[]).1.contains("guard of 169.254.169.254: whole"),
        "nobody is refused by rules that come later"
    );
    sh(&sandbox, "ip rule del pref 1 iif pod-link; ip rule add pref 3 iif pod-link lookup 100");
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn packets_that_are_lost_before_they_are_redirected_are_told_of() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &[]);
    for by in ["iptables-nft", "iptables-legacy"] {
        for (table, rule) in [("raw", "-d 169.254.0.0/16 -j NOTRACK"), ("mangle", "-d 169.254.169.254 -j DROP")] {
            sh(&sandbox, &format!("{by} -t {table} -I PREROUTING {rule}"));
            is_found(&sandbox, &[], "packets for 169.254.169.254 are dropped, or never redirected, by another's rule");
            sh(&sandbox, &format!("{by} -t {table} -F PREROUTING"));
        }
    }
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
    sh(
        &sandbox,
        "nft 'table ip o { chain c { type nat hook prerouting priority -120; tcp dport 80 redirect to :81; }; }'",
    );
    is_found(&sandbox, &[], "another rule for 169.254.169.254 before ours (nft): ip o c: tcp dport 80 redirect to :81");
}

#[test]
fn legacy_tables_of_others_are_no_fault_with_and_without_the_right_to_see_them() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sh(&sandbox, "iptables-legacy -A INPUT -i docker0 -j ACCEPT; iptables-legacy -t nat -N OTHER");
    let (code, said) = check(&sandbox, &[]);
    assert_eq!((code, wrong(&said).as_slice()), (Some(0), &[][..]), "{said}");
    let rights = ["--bounding-set", "-all,+net_admin", "--inh-caps", "-all", "--ambient-caps", "-all"];
    let command = sandbox.node().command("setpriv").args(rights).arg(daemon_binary()).args(["rules", "check"]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), wrong(&said).as_slice()), (Some(0), &[][..]), "{said}");
    assert!(
        said.contains("[warn] redirect by iptables-legacy: not looked at: iptables-legacy needs NET_RAW"),
        "{said}"
    );
    sh(&sandbox, "iptables-legacy -P INPUT DROP");
    let (_, said) = check(&sandbox, &[]);
    assert!(said.contains("[warn] input: iptables-legacy, whose tables are not the node's own, may keep"), "{said}");
}

#[test]
fn where_pods_can_send_from_each_others_addresses_it_is_said() {
    let sandbox = sandbox_with(PodNetwork::Bridge);
    let _pods = ["a", "b"].map(|name| sandbox.add_pod("team-a", name, "web").unwrap());
    let _daemon = Daemon::ready(&sandbox, &[]);
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("[warn] bridge cbr0 (links on it: 2): a pod with NET_RAW can answer for another's address"),
        "{said}"
    );

    let sandbox = sandbox_with(PodNetwork::Routed);
    sandbox.node().set(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")]).unwrap();
    let _pod = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("let packets in that bear another pod's address (rp_filter is not 1)"), "{said}");
    assert!(!said.contains("bridge"), "{said}");
}

#[test]
fn what_cannot_be_read_is_said_and_is_not_well() {
    let sandbox = sandbox();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let check = |command: sandbox::network::Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let node = sandbox.node();
    let command = node.command(daemon_binary()).args(["rules", "check"]).env("PATH", "/nowhere");
    let (code, said) = check(command);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("[warn] redirect by nftables: not looked at, for nft is not installed"), "{said}");
    assert!(said.contains("[warn] redirect by iptables-nft: not looked at"), "{said}");

    let without_rights = ["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let command = node.command("setpriv").args(without_rights).arg(daemon_binary()).args(["rules", "check"]);
    let (code, said) = check(command);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("[?]    redirect by nftables: cannot be seen"), "{said}");
    assert!(said.contains("[ok]   guard of 169.254.169.254: whole"), "that needs no right: {said}");
    let command = node.command("setpriv").args(without_rights).arg(daemon_binary()).args(["rules", "show"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("not looked at: nft --terse list table"));
}

#[test]
fn rules_are_shown_as_the_nodes_own_commands_print_them() {
    let sandbox = with_families(PodNetwork::Routed, Families::Dual);
    for backend in ["nft", "iptables"] {
        assert!(Daemon::ready(&sandbox, &["--intercept", backend]).stop().success());
        let before = everything(&sandbox);
        let (code, said, errors) = kube2irsa_rules(&sandbox, &["show"]);
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        assert_eq!(everything(&sandbox), before);
        let printed = sh(
            &sandbox,
            "ip rule | grep 'proto 169'; ip -6 rule | grep 'proto 169';
            for command in iptables-nft ip6tables-nft; do
                $command -t nat -S | grep -e 'KUBE2IRSA' ; $command -S | grep -e 'KUBE2IRSA'
            done
            nft --terse list table inet kube2irsa; true",
        );
        for line in printed.lines() {
            assert!(said.lines().any(|other| other == line), "{line}: {said}");
        }
        let rules = |text: &str| text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        assert_eq!(rules(&said), rules(&printed), "and nothing else: {said}");
    }
}

#[test]
fn rules_of_the_variant_that_is_not_the_systems_are_shown_and_checked_too() {
    let sandbox = sandbox();
    sh(&sandbox, "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT");
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "iptables"]);
    let (code, said) = check(&sandbox, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("redirect of 169.254.169.254: by iptables-legacy, to 10.0.0.10:9169, where"), "{said}");
    let (_, said, _) = kube2irsa_rules(&sandbox, &["show"]);
    assert!(said.contains("# iptables-legacy -t nat -S\n-A PREROUTING -d 169.254.169.254/32"), "{said}");
}
