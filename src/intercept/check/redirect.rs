//! The redirect: by which way, whether all of it is there, and where it leads.

use std::net::{IpAddr, SocketAddr};

use super::{Expected, Facts, Findings};
use crate::intercept::{
    Family, can_be_reached,
    iptables::{self, NAT_CHAIN},
    listing::Tables,
    nft,
    plan::Wanted,
    rivals,
};

/// A redirect that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// `nft`, or the command of iptables.
    pub(super) by: String,
    pub(super) address: IpAddr,
    pub(super) to: SocketAddr,
}

pub(super) fn look(wanted: Wanted, expected: &Expected, facts: &Facts, findings: &mut Findings) {
    if let Err(error) = &facts.listing.nft {
        findings.unread("redirect by nftables", error, facts.own_tables);
    }
    for tables in &facts.listing.iptables {
        for error in [tables.nat.as_ref().err(), tables.filter.as_ref().err()].into_iter().flatten() {
            findings.unread(&format!("redirect by {}", tables.commands.name("")), error, facts.own_tables);
        }
    }
    let found = all(facts);
    for address in &expected.addresses {
        let family = Family::of(*address);
        let listen = expected.listen.iter().find(|listen| Family::of(listen.ip()) == family);
        let is_target = |own: &IpAddr| Family::of(*own) == family && can_be_reached(own);
        let has_target = listen.is_some_and(|listen| !listen.ip().is_unspecified() || facts.own.iter().any(is_target));
        let ways = found.iter().filter(|found| found.address == *address).collect::<Vec<_>>();
        match (ways.as_slice(), listen.filter(|_| has_target)) {
            ([], None) => {
                findings.ok(format!(
                    "redirect of {address}: none, for nothing listens for {family} here: the guard alone refuses it"
                ));
            }
            ([], Some(_)) => {
                findings.fail(format!("redirect of {address}: missing: the guard alone refuses pods"));
            }
            ([first, others @ ..], listen) => {
                leads_here(first, listen, facts, findings);
                is_wanted(wanted, first, findings);
                for other in others {
                    findings.warn(format!(
                        "redirect of {address}: a second one, by {}, to {}: an earlier run left it, and the daemon takes it \
                         out when it starts",
                        other.by, other.to
                    ));
                }
            }
        }
    }
    foreign(expected, &found, findings);
    lets_in(facts, &found, findings);
}

/// An earlier run's, for what is not served any more.
fn foreign(expected: &Expected, found: &[Found], findings: &mut Findings) {
    for Found { by, address, .. } in found.iter().filter(|found| !expected.addresses.contains(&found.address)) {
        findings.warn(format!(
            "redirect of {address}: by {by}, though --container-endpoints does not name it: an earlier run's, which the \
             daemon takes out when it starts"
        ));
    }
}

fn leads_here(found: &Found, listen: Option<&SocketAddr>, facts: &Facts, findings: &mut Findings) {
    let Found { by, address, to } = found;
    let text = format!("redirect of {address}: by {by}, to {to}");
    if !facts.own.contains(&to.ip()) {
        return findings.fail(format!("{text}, which is no address of this node"));
    }
    if let Some(listen) = listen
        && (listen.port() != to.port() || !listen.ip().is_unspecified() && listen.ip() != to.ip())
    {
        return findings.fail(format!("{text}, and --listen says {listen}"));
    }
    match &facts.listening {
        Err(why) => findings.unknown(&format!("{text}; whether somebody listens there"), why),
        Ok(listening) if listening.iter().any(|at| takes(*at, *to)) => {
            findings.ok(format!("{text}, where somebody listens"));
        }
        Ok(_) => findings.fail(format!("{text}, where nobody listens: pods are refused until the daemon runs")),
    }
}

fn takes(listening: SocketAddr, to: SocketAddr) -> bool {
    listening.port() == to.port()
        && Family::of(listening.ip()) == Family::of(to.ip())
        && (listening.ip().is_unspecified() || listening.ip() == to.ip())
}

fn is_wanted(wanted: Wanted, found: &Found, findings: &mut Findings) {
    let by_nft = found.by == "nft";
    let as_wanted = match wanted {
        Wanted::Auto => true,
        Wanted::Nft => by_nft,
        Wanted::Iptables => !by_nft,
    };
    if !as_wanted {
        findings.fail(format!("redirect of {}: by {}, and --intercept wants the other way", found.address, found.by));
    }
}

/// All that redirect pods, by our table of nftables first, which comes first.
pub(super) fn all(facts: &Facts) -> Vec<Found> {
    let mut found = Vec::new();
    if let Ok(Some(table)) = &facts.listing.nft {
        found.extend(table.lines().filter_map(by_nft));
    }
    for tables in &facts.listing.iptables {
        found.extend(by_iptables(tables));
    }
    found
}

fn by_nft(line: &str) -> Option<Found> {
    let words = line.split_whitespace().collect::<Vec<_>>();
    let after = |word: &str| words.iter().position(|other| *other == word).and_then(|at| words.get(at + 1)).copied();
    let is_dnat = words.contains(&"dnat") && after("dport") == Some("80");
    let (address, to) = (after("daddr")?.parse().ok()?, after("to")?.parse().ok()?);
    is_dnat.then(|| Found { by: "nft".to_owned(), address, to })
}

/// Rules of our chain to which a jump leads.
fn by_iptables(tables: &Tables) -> Vec<Found> {
    let Ok(Some(chains)) = &tables.nat else { return Vec::new() };
    let jumps = iptables::our_jumps(&chains.from, "PREROUTING", NAT_CHAIN);
    let rules = chains.ours.iter().flat_map(|ours| ours.lines());
    let found = rules.filter_map(|rule| {
        let words = rule.split(' ').collect::<Vec<_>>();
        let after =
            |word: &str| words.iter().position(|other| *other == word).and_then(|at| words.get(at + 1)).copied();
        let address = after("-d")?.split('/').next()?.parse().ok()?;
        let is_led_to = jumps.iter().any(|jump| rivals::takes(jump, address).is_some());
        let to = after("--to-destination")?.parse().ok()?;
        is_led_to.then(|| Found { by: tables.commands.name(""), address, to })
    });
    found.collect()
}

/// What lets redirected packets in, and nothing else.
fn lets_in(facts: &Facts, found: &[Found], findings: &mut Findings) {
    if let Ok(Some(table)) = &facts.listing.nft {
        for port in ports(found.iter().filter(|found| found.by == "nft")) {
            let rejects =
                |line: &str| line.contains(&format!("dport {port} ")) && line.contains("reject with tcp reset");
            if !table.lines().any(rejects) {
                findings.fail(format!("input: the rule of our table is missing that refuses pods port {port} itself"));
            }
        }
        if !table.contains(&format!("hook prerouting priority dstnat - {}", -100 - nft::BEFORE_ALL_NAT)) {
            findings.fail("redirect: our table of nftables has lost its place before all others' rules");
        }
    }
    for tables in &facts.listing.iptables {
        let Ok(Some(chains)) = &tables.filter else { continue };
        let family = tables.commands.family;
        let here = found.iter().filter(|found| Family::of(found.address) == family).collect::<Vec<_>>();
        let name = tables.commands.name("");
        let jumps = iptables::our_jumps(&chains.from, "INPUT", iptables::INPUT_CHAIN);
        let redirects = here.iter().any(|found| found.by == name);
        // The daemon lets in what it redirects in the tables that are the node's own.
        let is_own = redirects || tables.commands.variant == facts.own_tables.variant;
        let is_needed = redirects || !iptables::lets_all_in(&chains.from);
        for port in ports(here.iter().copied()) {
            let is_there = jumps.iter().any(|jump| jump.contains(&format!("--dport {port} ")));
            let accepts = chains.ours.as_ref().is_some_and(|ours| ours.contains("DNAT -j ACCEPT"));
            if is_there && accepts {
                continue;
            }
            if is_own && is_needed {
                findings.fail(format!(
                    "input: {name} has rules for INPUT, and ours is missing that lets redirected requests in to port {port}"
                ));
            } else if let Some(rule) = chains.from.lines().find(|rule| rivals::may_keep_out(rule, port)) {
                findings.warn(format!(
                    "input: {name}, whose tables are not the node's own, may keep redirected requests from port {port}: {rule}"
                ));
            }
        }
    }
}

fn ports<'a>(found: impl Iterator<Item = &'a Found>) -> Vec<u16> {
    let mut ports = found.map(|found| found.to.port()).collect::<Vec<_>>();
    ports.sort_unstable();
    ports.dedup();
    ports
}
