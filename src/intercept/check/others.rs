//! Rules of other programs for the same addresses: kube2iam's and kiam's, say.

use std::net::IpAddr;

use super::{Expected, Facts, Findings, Mark, redirect};
use crate::intercept::{
    iptables::{self, NAT_CHAIN},
    nft,
};

/// The priority of iptables' own `PREROUTING`.
const IPTABLES: i32 = -100;
const REMEDY: &str =
    "another interceptor's (kube2iam, kiam)? Two of them on a node answer one pod each in its own way: remove it";

pub(super) fn look(expected: &Expected, facts: &Facts, findings: &mut Findings) {
    let before = findings.0.len();
    // Our table of nftables comes before all of iptables.
    let by_nft = redirect::all(facts).into_iter().filter(|found| found.by == "nft").map(|found| found.address);
    let by_nft = by_nft.collect::<Vec<_>>();
    for tables in &facts.listing.iptables {
        let Ok(Some(chains)) = &tables.nat else { continue };
        let ours = iptables::our_jumps(&chains.from, "PREROUTING", NAT_CHAIN);
        for address in &expected.addresses {
            let mut ours_was_seen = by_nft.contains(address);
            for rule in chains.from.lines().filter(|rule| iptables::names(rule, *address)) {
                if ours.iter().any(|jump| jump == rule) {
                    ours_was_seen = true;
                } else {
                    tell(ours_was_seen, *address, &tables.commands.name(""), rule, findings);
                }
            }
        }
    }
    match &facts.ruleset {
        Ok(ruleset) => {
            for rule in of_nft(ruleset) {
                for address in expected.addresses.iter().filter(|address| iptables::names(&rule.text, **address)) {
                    let ours = if by_nft.contains(address) { nft::BEFORE_ALL_NAT } else { IPTABLES };
                    let is_after = rule.priority.is_none_or(|priority| priority > ours);
                    tell(is_after, *address, "nft", &format!("{}: {}", rule.place, rule.text), findings);
                }
            }
        }
        Err(error) => findings.unread("others' rules for the same addresses", error),
    }
    if findings.0.len() == before {
        findings.ok("others' rules for the same addresses: none");
    }
}

fn tell(ours_is_first: bool, address: IpAddr, by: &str, rule: &str, findings: &mut Findings) {
    let (mark, place) = if ours_is_first { (Mark::Warn, "after") } else { (Mark::Fail, "before") };
    findings.add(mark, format!("another rule for {address} {place} ours ({by}): {rule}: {REMEDY}"));
}

/// A rule of nftables, of whatever table, that redirects.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    place: String,
    /// Of its chain, where that is one that every packet passes.
    pub(super) priority: Option<i32>,
    text: String,
}

/// Those in tables that are neither ours nor iptables' own.
pub(super) fn of_nft(ruleset: &str) -> Vec<Redirect> {
    let (mut table, mut chain, mut priority) = ("", "", None);
    let mut pods_pass = true;
    let mut redirects = Vec::new();
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            (table, chain) = (name.trim_end_matches(" {"), "");
        } else if let Some(name) = line.strip_prefix("chain ") {
            (chain, priority, pods_pass) = (name.trim_end_matches(" {"), None, true);
        } else if line.starts_with("type nat hook prerouting priority ") {
            priority = line.split_once("priority ").and_then(|(_, rest)| value(rest.split(';').next()?));
        } else if line.starts_with("type ") && line.contains(" hook ") {
            pods_pass = false;
        } else if !chain.is_empty()
            && pods_pass
            && ![format!("inet {}", nft::TABLE).as_str(), "ip nat", "ip6 nat"].contains(&table)
            && line.split(' ').any(|word| ["dnat", "redirect"].contains(&word))
        {
            redirects.push(Redirect { place: format!("{table} {chain}"), priority, text: line.to_owned() });
        }
    }
    redirects
}

/// A priority as `nft` prints it: a number, or a name and what is added to it.
fn value(priority: &str) -> Option<i32> {
    let mut words = priority.split_whitespace();
    let first = words.next()?;
    let named = match first {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        number => number.parse().ok()?,
    };
    let added = match (words.next(), words.next()) {
        (Some("+"), Some(added)) => added.parse().ok()?,
        (Some("-"), Some(added)) => -added.parse::<i32>().ok()?,
        _ => 0,
    };
    Some(named + added)
}
