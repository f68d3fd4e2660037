//! What keeps packets from coming where the redirect sends them, as far as it can be seen from the node.

use std::{
    fmt,
    time::{Duration, Instant},
};

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{
    Family, FirewallError,
    guard::{self, LOOPBACK},
};

/// The kernel's table of the node's own addresses.
pub(super) const LOCAL_TABLE: u32 = 255;
/// A link that Cilium makes on every node.
const CILIUM: &str = "cilium_host";
/// A client tries again after one second, and after two more.
const LONGEST_WAY: Duration = Duration::from_secs(5);
/// What one client sends that is refused for a reason of its own.
const ONE_CLIENTS_TRIES: u64 = 3;
/// If nobody tries for so long, it is not known any more.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A routing rule sends what comes by a link elsewhere, before it can be found to be for the node itself.
    RoutingRule {
        /// The link.
        link: String,
        /// The rule's preference.
        preference: u32,
    },
    /// Cilium may lead packets of pods past everything.
    Cilium,
    /// Packets are redirected, and none has arrived.
    Lost,
}

impl Obstacle {
    /// The kinds, as a metric's label.
    pub const KINDS: [&str; 3] = ["routing_rule", "cilium", "lost"];

    /// As a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        let [routing_rule, cilium, lost] = Self::KINDS;
        match self {
            Self::RoutingRule { .. } => routing_rule,
            Self::Cilium => cilium,
            Self::Lost => lost,
        }
    }

    /// Whether it has been seen that packets do not come; otherwise it is to be expected.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoutingRule { link, preference } => write!(
                f,
                "the routing rule {preference} (iif {link}) comes before that for the node's own addresses: what is \
                 redirected from there does not arrive (security groups for pods: POD_SECURITY_GROUP_ENFORCING_MODE=standard)"
            ),
            Self::Cilium => write!(
                f,
                "there is a link {CILIUM}, and nothing has arrived yet: with eBPF host routing pods' packets pass no \
                 redirect. Where Cilium routes by the host's own stack, name --intercept nft or iptables; otherwise \
                 --intercept none and a CiliumLocalRedirectPolicy"
            ),
            Self::Lost => write!(
                f,
                "packets are redirected and do not arrive: a firewall of the node (INPUT) drops them, or a routing rule \
                 leads them elsewhere"
            ),
        }
    }
}

/// Whether what is redirected arrives: pure.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    redirected: u64,
    arrived: u64,
    missing: Option<Missing>,
    is_lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    since: Instant,
    last: Instant,
    redirected: u64,
}

impl Arrival {
    /// So many packets had been redirected by `now`, and so many connections had arrived. Says whether they get lost.
    pub(super) fn look(&mut self, redirected: u64, arrived: u64, now: Instant) -> bool {
        // Counters begin anew with their rule.
        if arrived != self.arrived || redirected < self.redirected {
            *self = Self { redirected, arrived, ..Self::default() };
        } else if redirected > self.redirected {
            let missing = self.missing.get_or_insert(Missing { since: now, last: now, redirected });
            missing.last = now;
            self.is_lost |= now.duration_since(missing.since) >= LONGEST_WAY
                && redirected >= missing.redirected + ONE_CLIENTS_TRIES;
            self.redirected = redirected;
        } else if self.missing.is_some_and(|missing| now.duration_since(missing.last) >= FORGOTTEN) {
            *self = Self { redirected, arrived, ..Self::default() };
        }
        self.is_lost
    }
}

/// What is to be seen on the node; `arrived` says whether anything has arrived.
///
/// # Errors
/// When the kernel does not tell its routing rules.
pub(super) async fn look(arrived: bool) -> Result<Vec<Obstacle>, FirewallError> {
    let mut obstacles = Vec::new();
    for family in Family::ALL {
        for obstacle in before_local(&guard::rules(family).await?.unwrap_or_default()) {
            let is_there = |link: &str| nix::net::if_::if_nametoindex(link).is_ok();
            let matters = matches!(&obstacle, Obstacle::RoutingRule { link, .. } if is_there(link));
            if matters && !obstacles.contains(&obstacle) {
                obstacles.push(obstacle);
            }
        }
    }
    if !arrived && is_cilium_here() {
        obstacles.push(Obstacle::Cilium);
    }
    Ok(obstacles)
}

/// Whether Cilium has been on the node since it started.
pub(super) fn is_cilium_here() -> bool {
    nix::net::if_::if_nametoindex(CILIUM).is_ok()
}

/// Rules for what comes by a link that are looked at before the node's own addresses.
pub(super) fn before_local(rules: &[RuleMessage]) -> impl Iterator<Item = Obstacle> {
    let local = rules.iter().filter(|rule| table(rule) == LOCAL_TABLE && link(rule).is_none()).map(preference).min();
    rules.iter().filter_map(move |rule| {
        let link = link(rule).filter(|link| *link != LOOPBACK)?;
        // What it is limited to is not what pods' packets are by then.
        if rule
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, RuleAttribute::Destination(_) | RuleAttribute::FwMark(1..)))
        {
            return None;
        }
        let preference = preference(rule);
        let leads_elsewhere = rule.header.action == RuleAction::ToTable && table(rule) != LOCAL_TABLE;
        (leads_elsewhere && local.is_none_or(|local| preference < local))
            .then(|| Obstacle::RoutingRule { link: link.to_owned(), preference })
    })
}

pub(super) fn preference(rule: &RuleMessage) -> u32 {
    let preference = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(preference) => Some(*preference),
        _ => None,
    });
    // Not told where it is 0.
    preference.unwrap_or_default()
}

pub(super) fn table(rule: &RuleMessage) -> u32 {
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(rule.header.table))
}

pub(super) fn link(rule: &RuleMessage) -> Option<&str> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(link) => Some(link.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_lost_when_more_are_redirected_for_a_while_and_none_arrives() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut arrival = Arrival::default();
        assert!(!arrival.look(0, 0, at(0)));
        assert!(!arrival.look(1, 0, at(1)), "it may be on its way");
        assert!(!arrival.look(3, 0, at(20)), "a client that gave up");
        assert!(arrival.look(4, 0, at(21)), "another");
        assert!(arrival.look(4, 0, at(80)), "it stays so");
        assert!(!arrival.look(5, 1, at(81)), "one came");
        assert!(!arrival.look(9, 1, at(82)));
        assert!(!arrival.look(0, 1, at(90)), "the rule was written anew");
        assert!(!arrival.look(1, 1, at(91)));
        assert!(!arrival.look(2, 2, at(99)));
        assert!(!arrival.look(3, 2, at(100)) && arrival.look(9, 2, at(110)));
        assert!(!arrival.look(9, 2, at(170)), "nobody has tried for a minute");
        assert!(!arrival.look(10, 2, at(171)));
    }
}
