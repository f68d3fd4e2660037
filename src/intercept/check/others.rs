//! Rules of other programs for the same addresses: kube2iam's and kiam's, say.

use std::net::IpAddr;

use super::{Expected, Facts, Findings, Mark, redirect};
use crate::intercept::{
    Family,
    iptables::{self, NAT_CHAIN},
    nft,
    rivals::{self, Reach},
};

/// The priority of iptables' own `PREROUTING`.
const IPTABLES: i32 = -100;
/// That of the kernel's own tracking of connections.
const TRACKING: i32 = -200;
const REMEDY: &str =
    "another interceptor's (kube2iam, kiam)? Two of them on a node answer one pod each in its own way: remove it";

pub(super) fn look(expected: &Expected, facts: &Facts, findings: &mut Findings) {
    let before = findings.list.len();
    // Our table of nftables comes before all of iptables.
    let by_nft = redirect::all(facts).into_iter().filter(|found| found.by == "nft").map(|found| found.address);
    let by_nft = by_nft.collect::<Vec<_>>();
    of_iptables(expected, facts, &by_nft, findings);
    match &facts.ruleset {
        Ok(ruleset) => {
            for rule in of_nft(ruleset) {
                for address in &expected.addresses {
                    let ours = if by_nft.contains(address) { nft::BEFORE_ALL_NAT } else { IPTABLES };
                    rule.tell(*address, ours, findings);
                }
            }
        }
        Err(error) => findings.unread("others' rules for the same addresses", error, facts.own_tables),
    }
    if findings.list.len() == before {
        findings.ok("others' rules for the same addresses: none");
    }
}

fn of_iptables(expected: &Expected, facts: &Facts, by_nft: &[IpAddr], findings: &mut Findings) {
    for tables in &facts.listing.iptables {
        let name = tables.commands.name("");
        let addresses = || expected.addresses.iter().filter(|address| Family::of(**address) == tables.commands.family);
        for (table, rules) in &tables.before_nat {
            // Why not is said of the tables where rules of ours can be.
            let Ok(rules) = rules else { continue };
            for address in addresses() {
                for rule in rules.lines().filter(|rule| rivals::loses(rule, *address).is_some()) {
                    loses(Mark::Fail, *address, &format!("{name} -t {table}"), rule, findings);
                }
            }
        }
        let Ok(Some(chains)) = &tables.nat else { continue };
        let ours = iptables::our_jumps(&chains.from, "PREROUTING", NAT_CHAIN);
        for address in addresses() {
            let mut ours_was_seen = by_nft.contains(address);
            for rule in chains.from.lines() {
                match rivals::takes(rule, *address) {
                    None => {}
                    Some(_) if ours.iter().any(|jump| jump == rule) => ours_was_seen = true,
                    // What comes to a rule for all is what ours has left.
                    Some(Reach::All | Reach::Perhaps) if ours_was_seen => {}
                    Some(_) => tell(ours_was_seen, *address, &name, rule, findings),
                }
            }
        }
    }
}

fn tell(ours_is_first: bool, address: IpAddr, by: &str, rule: &str, findings: &mut Findings) {
    let (mark, place) = if ours_is_first { (Mark::Warn, "after") } else { (Mark::Fail, "before") };
    findings.add(mark, format!("another rule for {address} {place} ours ({by}): {rule}: {REMEDY}"));
}

fn loses(mark: Mark, address: IpAddr, by: &str, rule: &str, findings: &mut Findings) {
    findings.add(
        mark,
        format!("packets for {address} are dropped, or never redirected, by another's rule before ours ({by}): {rule}"),
    );
}

/// A rule of nftables, of whatever table, that redirects, drops or does not track.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    place: String,
    /// Of its chain, where that is one that every packet passes.
    pub(super) priority: Option<i32>,
    verdict: &'static str,
    text: String,
}

const REDIRECTS: [&str; 2] = ["dnat", "redirect"];
const NO_TRACK: &str = "notrack";
const VERDICTS: [&str; 5] = [REDIRECTS[0], REDIRECTS[1], "drop", NO_TRACK, "tproxy"];

// === impl Rule ===

impl Rule {
    fn tell(&self, address: IpAddr, ours: i32, findings: &mut Findings) {
        let other = if address.is_ipv4() { "ip6 " } else { "ip " };
        if self.place.starts_with(other) {
            return;
        }
        let Some(reach) = rivals::reaches(&self.text, self.verdict, address) else { return };
        let last = if self.verdict == NO_TRACK { TRACKING } else { ours };
        let is_before = self.priority.is_some_and(|priority| priority <= last);
        let rule = format!("{}: {}", self.place, self.text);
        let redirects = REDIRECTS.contains(&self.verdict);
        match reach {
            Reach::Named if redirects => tell(!is_before, address, "nft", &rule, findings),
            _ if !is_before => {}
            Reach::Perhaps => {
                findings
                    .warn(format!("another rule before ours (nft) may take the packets for {address} first: {rule}"));
            }
            Reach::All if redirects => tell(false, address, "nft", &rule, findings),
            Reach::Named | Reach::All => loses(Mark::Fail, address, "nft", &rule, findings),
        }
    }
}

/// Those in tables that are neither ours nor iptables' own of redirects.
pub(super) fn of_nft(ruleset: &str) -> Vec<Rule> {
    let (mut table, mut chain, mut priority) = ("", "", None);
    let mut pods_pass = true;
    let mut rules = Vec::new();
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            (table, chain) = (name.trim_end_matches(" {"), "");
        } else if let Some(name) = line.strip_prefix("chain ") {
            (chain, priority, pods_pass) = (name.trim_end_matches(" {"), None, true);
        } else if line.starts_with("type ") && line.contains(" hook prerouting priority ") {
            priority = line.split_once("priority ").and_then(|(_, rest)| value(rest.split(';').next()?));
        } else if line.starts_with("type ") && line.contains(" hook ") {
            pods_pass = false;
        } else if !chain.is_empty()
            && pods_pass
            && ["ip ", "ip6 ", "inet "].iter().any(|family| table.starts_with(family))
            && ![format!("inet {}", nft::TABLE).as_str(), "ip nat", "ip6 nat"].contains(&table)
            && let Some(verdict) = VERDICTS.into_iter().find(|verdict| line.split(' ').any(|word| word == *verdict))
        {
            rules.push(Rule { place: format!("{table} {chain}"), priority, verdict, text: line.to_owned() });
        }
    }
    rules
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
