//! Start, stop, and start again: the node's rules are the same each time, and after the removal what they were before.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::env;

use sandbox::{
    network::{Families, PodNetwork},
    sandbox::Sandbox,
};
use support::{
    Daemon,
    node::{KUBE_PROXY, KUBE_PROXY_NFT, everything, kube2irsa_rules, sh},
};

/// How often for each way; a command of its own does more (`make test-starts`).
const STARTS: &str = "KUBE2IRSA_STARTS";

fn dual_stack() -> Sandbox {
    Sandbox::with_families(PodNetwork::Routed, Families::Dual, &mut |line| println!("{line}")).unwrap()
}

/// Rules of kube-proxy and kubelet, in a variant of iptables for both families, and in a table of nftables.
fn other_programs_rules(sandbox: &Sandbox, variant: &str) {
    for family in ["iptables", "ip6tables"] {
        sh(sandbox, &format!("{family}-{variant}-restore --noflush <<'E'\n{KUBE_PROXY}E\n"));
    }
    sh(sandbox, &format!("nft -f - <<'E'\n{KUBE_PROXY_NFT}E\n"));
}

fn remove(sandbox: &Sandbox) {
    let state_dir = sandbox.state_dir();
    let arguments = ["remove", "--state-dir", state_dir.to_str().unwrap()];
    assert_eq!(kube2irsa_rules(sandbox, &arguments), (Some(0), String::new(), String::new()));
}

fn each_start_is_the_same(backend: &str, variant: &str, is_installed: fn(&str) -> bool) {
    let sandbox = dual_stack();
    other_programs_rules(&sandbox, variant);
    let before = everything(&sandbox);
    let starts = env::var(STARTS).map_or(5, |times| times.parse().unwrap());
    let mut installed = None;
    let mut removals = 0;
    for start in 1..=starts {
        let daemon = Daemon::ready(&sandbox, &["--intercept", backend]);
        let now = everything(&sandbox);
        let installed = installed.get_or_insert_with(|| now.clone());
        assert!(is_installed(&now), "{now}");
        assert_eq!(now, *installed, "start {start}");
        assert!(daemon.stop().success());
        assert_eq!(everything(&sandbox), *installed, "stop {start}");
        // Every other time the next one finds what this one left.
        if start % 2 == 0 || start == starts {
            remove(&sandbox);
            assert_eq!(everything(&sandbox), before, "removal after start {start}");
            assert!(!sandbox.state_dir().exists());
            removals += 1;
        }
    }
    println!("{backend} ({variant}): {starts} starts, {removals} removals: the same rules each time, and none left");
}

#[test]
fn by_nftables() {
    each_start_is_the_same("nft", "nft", |rules| rules.contains("dnat ip6 to"));
}

#[test]
fn by_iptables_of_nftables() {
    each_start_is_the_same("iptables", "nft", |rules| rules.matches("-A KUBE2IRSA -d ").count() == 3);
}

#[test]
fn by_iptables_of_before() {
    each_start_is_the_same("iptables", "legacy", |rules| {
        rules.split("# iptables-legacy-save").nth(1).unwrap().matches("-A KUBE2IRSA -d ").count() == 3
    });
}

/// On a node that has none of these rules, the nft variant of iptables makes tables and chains; of those it can only take
/// out the chains.
#[test]
fn on_a_node_without_others_rules_nothing_is_left_but_iptables_own_empty_tables() {
    let sandbox = dual_stack();
    let before = everything(&sandbox);
    assert!(Daemon::ready(&sandbox, &["--intercept", "nft"]).stop().success());
    remove(&sandbox);
    assert_eq!(everything(&sandbox), before, "nftables");
    assert!(Daemon::ready(&sandbox, &["--intercept", "iptables"]).stop().success());
    remove(&sandbox);
    let mut after = everything(&sandbox);
    let listed = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
    for empty in [listed, "table ip filter {\n}\n", "table ip6 filter {\n}\n"] {
        after = after.replace(empty, "");
    }
    assert_eq!(after, before, "iptables");
}
