//! `rules check`: what of the interception is as it should be on this node, in words for an operator.
//!
//! Pure: [`facts`] are read from the node, findings follow from them. Nothing is changed, and what could not be read is
//! said to be unknown, never to be well.

mod facts;
mod host;
mod others;
mod redirect;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_route::rule::RuleAction;

pub use self::facts::Facts;
use self::facts::{Kind, Link};
use super::{
    Family, FirewallError, guard, listing,
    obstacles::{self, Obstacle},
    plan::Wanted,
    unseen::{NEEDS_RAW, Own},
};
use crate::identity::HostPods;

/// What the daemon on this node is meant to do.
#[derive(Clone, Debug)]
pub struct Expected {
    /// How pods' requests are redirected; `None`: nothing is to be on the node.
    pub wanted: Option<Wanted>,
    /// What is to become of pods on the node's network; `None`: what is best.
    pub host_network: Option<HostPods>,
    /// Where the daemon listens for pods.
    pub listen: Vec<SocketAddr>,
    /// The addresses whose requests come to it.
    pub addresses: Vec<IpAddr>,
    /// Where it tells operators whether it is ready.
    pub admin: SocketAddr,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// To be known.
    Warn,
    /// Wrong.
    Fail,
    /// It could not be seen how it is.
    Unknown,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The routing rules that keep pods from the real service.
    Guard,
    /// The redirect to the daemon, and what lets it in.
    Redirect,
    /// What keeps redirected packets from arriving.
    Obstacles,
    /// Rules of other programs for the same addresses.
    Others,
    /// Pods on the node's network.
    HostNetwork,
    /// The daemon.
    Daemon,
    /// Whether a pod can send from another's address.
    Addresses,
    /// Rules where none are wanted.
    Leftovers,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// About what.
    pub subject: Subject,
    /// How it is.
    pub mark: Mark,
    /// What.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Ok => "[ok]  ",
            Mark::Warn => "[warn]",
            Mark::Fail => "[fail]",
            Mark::Unknown => "[?]   ",
        };
        write!(f, "{mark} {}", self.text)
    }
}

/// Whether nothing is wrong or unknown.
#[must_use]
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| matches!(finding.mark, Mark::Ok | Mark::Warn))
}

/// What follows from the facts.
#[must_use]
pub fn findings(expected: &Expected, facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings { of: Subject::Leftovers, list: Vec::new() };
    let Some(wanted) = expected.wanted else {
        nothing_wanted(facts, &mut findings);
        daemon(expected, facts, findings.about(Subject::Daemon));
        return findings.list;
    };
    guard_of_each(expected, facts, findings.about(Subject::Guard));
    redirect::look(wanted, expected, facts, findings.about(Subject::Redirect));
    in_the_way(wanted, facts, findings.about(Subject::Obstacles));
    others::look(expected, facts, findings.about(Subject::Others));
    host::look(expected.host_network, facts, findings.about(Subject::HostNetwork));
    daemon(expected, facts, findings.about(Subject::Daemon));
    forged_addresses(facts, findings.about(Subject::Addresses));
    findings.list
}

struct Findings {
    /// What those that are added now are about.
    of: Subject,
    list: Vec<Finding>,
}

// === impl Findings ===

impl Findings {
    fn about(&mut self, subject: Subject) -> &mut Self {
        self.of = subject;
        self
    }

    /// What follows from two facts is said once.
    fn add(&mut self, mark: Mark, text: impl Into<String>) {
        let finding = Finding { subject: self.of, mark, text: text.into() };
        if !self.list.contains(&finding) {
            self.list.push(finding);
        }
    }

    fn ok(&mut self, text: impl Into<String>) {
        self.add(Mark::Ok, text);
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.add(Mark::Warn, text);
    }

    fn fail(&mut self, text: impl Into<String>) {
        self.add(Mark::Fail, text);
    }

    fn unknown(&mut self, what: &str, why: impl fmt::Display) {
        self.add(Mark::Unknown, format!("{what}: cannot be seen: {why}"));
    }

    /// What is not installed may have been, and its rules may be there; but where all else is well, nobody needs it. Nor
    /// tables of another variant than the node's own, for which there is no right.
    fn unread(&mut self, what: &str, error: &FirewallError, own: Own) {
        match error {
            FirewallError::Missing { command, .. } => {
                self.warn(format!("{what}: not looked at, for {command} is not installed"));
            }
            error => match own.lacks_right(error) {
                Some(command) => self.warn(format!("{what}: not looked at: {command} {NEEDS_RAW}")),
                None => self.unknown(what, error),
            },
        }
    }
}

/// With `--intercept observe` or `none`.
fn nothing_wanted(facts: &Facts, findings: &mut Findings) {
    for error in facts.listing.unread() {
        findings.unread("rules of ours", error, facts.own_tables);
    }
    let left = facts.listing.to_string();
    let rules = left.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    if rules > 0 {
        findings.fail(format!(
            "rules: an earlier run's are there ({rules} lines; `rules show`), and --intercept wants none: `rules remove`"
        ));
    } else {
        findings.ok("rules: none, as --intercept says; nothing keeps pods from the node's role");
    }
}

fn guard_of_each(expected: &Expected, facts: &Facts, findings: &mut Findings) {
    for (family, rules) in &facts.listing.routing {
        let addresses = expected.addresses.iter().filter(|address| Family::of(**address) == *family);
        let rules = match rules {
            Ok(Some(rules)) => rules,
            Ok(None) => {
                findings.ok(format!("guard: this node has no {family}, and nothing to be kept from"));
                continue;
            }
            Err(error) => {
                findings.unknown(&format!("guard ({family})"), error);
                continue;
            }
        };
        // In the kernel's order.
        let ours = rules.iter().rposition(guard::is_ours).unwrap_or_default();
        let before = rules.iter().take(ours).filter(|rule| {
            let leads_on = matches!(rule.header.action, RuleAction::ToTable | RuleAction::Goto);
            leads_on
                && !guard::is_ours(rule)
                && obstacles::table(rule) != obstacles::LOCAL_TABLE
                // What comes by it is the node's own.
                && obstacles::link(rule) != Some(guard::LOOPBACK)
        });
        let before = before.collect::<Vec<_>>();
        for address in addresses {
            match guard::lacks(rules, *address) {
                Some(lacks) => findings.fail(format!("guard of {address}: {lacks}")),
                None if facts.own.contains(address) => findings.warn(format!(
                    "guard of {address}: whole, but the address is the node's own (EKS Pod Identity's agent?), and \
                     only the redirect keeps pods from it"
                )),
                None if !before.is_empty() => findings.ok(format!("guard of {address}: its rules are there")),
                None => findings.ok(format!("guard of {address}: whole, pods are refused the real service")),
            }
        }
        for rule in before {
            let rule = listing::words(rule).replace('\t', " ");
            findings.fail(format!(
                "guard ({family}): another's rule comes before it, and packets may leave by that: {rule}"
            ));
        }
    }
}

fn in_the_way(wanted: Wanted, facts: &Facts, findings: &mut Findings) {
    let mut obstacles = Vec::new();
    for (_, rules) in &facts.listing.routing {
        for obstacle in obstacles::before_local(rules.as_ref().ok().and_then(Option::as_deref).unwrap_or_default()) {
            if !obstacles.contains(&obstacle) {
                obstacles.push(obstacle);
            }
        }
    }
    for obstacle in &obstacles {
        // Who named the way knows the node.
        let mark = if wanted == Wanted::Auto { Mark::Fail } else { Mark::Warn };
        findings.add(mark, format!("in the way: {obstacle}"));
    }
    // Whether something has arrived is known to the daemon, which is not ready until then.
    if facts.cilium {
        findings.warn(format!("in the way? {}", Obstacle::Cilium));
    }
    if obstacles.is_empty() && !facts.cilium {
        findings.ok("in the way: no routing rule by link comes before the node's own addresses, and no Cilium");
    }
}

fn daemon(expected: &Expected, facts: &Facts, findings: &mut Findings) {
    let admin = expected.admin;
    match &facts.readiness {
        Ok(lacks) if lacks.is_empty() => findings.ok(format!("daemon: {admin} says that it is ready")),
        Ok(lacks) => {
            for lack in lacks {
                findings.fail(format!("daemon: not ready: {lack}"));
            }
        }
        Err(why) => findings.fail(format!("daemon: nobody answers at {admin} (--admin-listen): {why}")),
    }
}

/// Where a pod can send from another's address.
fn forged_addresses(facts: &Facts, findings: &mut Findings) {
    let links = match &facts.links {
        Ok(links) => links,
        Err(why) => return findings.unknown("pods' links", why),
    };
    for bridge in links.iter().filter(|link| link.kind == Kind::Bridge) {
        let ports = links.iter().filter(|link| link.controller == Some(bridge.index)).count();
        if ports > 0 {
            findings.warn(format!(
                "bridge {} (links on it: {ports}): a pod with NET_RAW can answer for another's address on it, and be taken for that \
                 pod: drop that capability, or use a network with a link for each pod",
                bridge.name
            ));
        }
    }
    let is_routed =
        |link: &&Link| link.kind == Kind::Veth && link.controller.is_none() && !link.name.starts_with("cilium");
    let routed = links.iter().filter(is_routed).collect::<Vec<_>>();
    let strict = |link: &&&Link| link.reverse_path == Some(1);
    let lax = routed.iter().filter(|link| !strict(link)).map(|link| link.name.as_str()).collect::<Vec<_>>();
    if let [first, others @ ..] = lax.as_slice() {
        findings.warn(format!(
            "pods' links: {first}{} let packets in that bear another pod's address (rp_filter is not 1); their answers go to \
             that pod, so no connection comes about",
            if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) }
        ));
    } else if !routed.is_empty() {
        findings.ok(format!("pods' links: {} routed ones let in no other pod's address (rp_filter)", routed.len()));
    }
}
