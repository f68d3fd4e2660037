//! By what means pods' requests are redirected on this node: those that may be tried, in their order.

use super::{
    Family, Firewall, Part, Redirection,
    iptables::{Commands, Iptables, Variant},
    nft::{self, Nft},
};

/// A way to redirect.
pub struct Backend {
    /// Its name, as a flag's value and a metric's label.
    pub name: &'static str,
    /// What it puts on the node.
    pub parts: Vec<(Part, Box<dyn Firewall>)>,
    /// What another way, or an earlier run, may have left, which is taken out once this one is in place.
    pub others: Vec<Box<dyn Firewall>>,
    /// The tables of nftables whose changes matter to it.
    pub tables: &'static [&'static str],
    /// Whether all that changes in them is announced.
    pub is_announced: bool,
}

/// What may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// nftables where it works, or else iptables.
    Auto,
    /// By nftables only.
    Nft,
    /// By iptables only.
    Iptables,
}

/// The ways to do what is wanted on this node, the best first.
pub async fn backends(wanted: Wanted, redirection: &Redirection) -> Vec<Backend> {
    let variant = Variant::of_the_node().await;
    let mut backends = Vec::new();
    if wanted != Wanted::Iptables {
        backends.push(nft(variant, redirection));
    }
    if wanted != Wanted::Nft {
        backends.push(iptables(variant, redirection).await);
    }
    backends
}

/// Everything that any run may have put on a node but for the guard, to be removed.
pub(super) fn everything() -> Vec<Box<dyn Firewall>> {
    let mut all: Vec<Box<dyn Firewall>> = vec![Box::new(Nft::none()), Box::new(super::host::Leftover)];
    for family in Family::ALL {
        for variant in [Variant::System, Variant::Nft, Variant::Legacy] {
            all.push(Box::new(Iptables::leftovers(Commands { family, variant })));
        }
    }
    all
}

fn nft(variant: Variant, redirection: &Redirection) -> Backend {
    let mut parts: Vec<(Part, Box<dyn Firewall>)> = vec![(Part::Redirect, Box::new(Nft::new(redirection)))];
    let mut others = redirects_of_the_other(variant);
    for family in Family::ALL {
        let commands = Commands { family, variant };
        match Iptables::accept(commands, redirection) {
            Some(accept) => parts.push((Part::Input, Box::new(accept))),
            None => others.push(Box::new(Iptables::leftovers(commands))),
        }
    }
    Backend { name: "nft", parts, others, tables: &[nft::TABLE, "filter"], is_announced: is_announced(variant) }
}

async fn iptables(variant: Variant, redirection: &Redirection) -> Backend {
    let mut parts: Vec<(Part, Box<dyn Firewall>)> = Vec::new();
    let mut others = redirects_of_the_other(variant);
    for family in Family::ALL {
        let commands = Commands { family, variant };
        let redirect = Iptables::redirect(commands, redirection);
        // A node that lacks what IPv6 needs is served by IPv4.
        if family == Family::V6
            && let (Some(_), Err(error)) = (&redirect, commands.try_nat().await)
        {
            tracing::warn!(%error, "pods' requests over IPv6 are not redirected, and the guard refuses them");
            continue;
        }
        match redirect {
            Some(redirect) => parts.push((Part::Redirect, Box::new(redirect))),
            None => others.push(Box::new(Iptables::leftovers(commands))),
        }
    }
    // It would come first, and may come back with what somebody else has saved.
    parts.push((Part::Leftover, Box::new(Nft::none())));
    let is_announced = is_announced(variant);
    Backend { name: "iptables", parts, others, tables: &[nft::TABLE, "nat", "filter"], is_announced }
}

/// What lets packets in stays: which variant is the node's is a guess.
fn redirects_of_the_other(variant: Variant) -> Vec<Box<dyn Firewall>> {
    let Some(variant) = variant.other() else { return Vec::new() };
    let leftovers = |family| Box::new(Iptables::redirect_left(Commands { family, variant })) as Box<dyn Firewall>;
    Family::ALL.into_iter().map(leftovers).collect()
}

/// The kernel tells nobody of changes in the tables of before nftables.
fn is_announced(variant: Variant) -> bool {
    variant == Variant::Nft
}
