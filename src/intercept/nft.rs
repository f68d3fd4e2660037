//! The redirect by nftables: a table of our own, written and replaced in one step.
//!
//! Invariant: in its hook it comes before every rule of iptables, of either variant, and before those of kube-proxy, and
//! the first to redirect a packet is the one. It survives a flush of iptables' tables, and nobody else writes in it.
//!
//! What drops a packet in a table of its own drops it for all: the accept for a host's own firewall has to be in that
//! one's table, and is [`super::iptables`]'s affair.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use futures::future::BoxFuture;

use super::{Family, Firewall, FirewallError, Redirection, command::run};

const NFT: &str = "nft";
/// Our table, in the kernel's and every listing.
pub(super) const TABLE: &str = "kube2irsa";
/// Before what `dstnat` means (-100).
pub(super) const BEFORE_ALL_NAT: i32 = -110;
/// Before what `filter` means (0).
const BEFORE_ALL_FILTERS: i32 = -10;

/// Our table. Its form, as the kernel took it, is known from when it was installed: each version of `nft` prints it in
/// its own way.
#[derive(Debug)]
pub struct Nft {
    script: String,
    /// What redirects and nothing else, in the words of every version.
    wanted: Vec<[String; 2]>,
    installed: Mutex<Option<String>>,
    redirected: Mutex<Option<u64>>,
}

impl Nft {
    /// The redirect of all addresses for which something listens.
    #[must_use]
    pub fn new(redirection: &Redirection) -> Self {
        let (script, wanted) = (script(redirection), wanted(redirection));
        Self { script, wanted, installed: Mutex::default(), redirected: Mutex::default() }
    }

    /// No table, whatever an earlier run put there.
    #[must_use]
    pub fn none() -> Self {
        let (script, wanted) = (String::new(), Vec::new());
        Self { script, wanted, installed: Mutex::default(), redirected: Mutex::default() }
    }

    async fn present(&self) -> Result<bool, FirewallError> {
        if self.wanted.is_empty() {
            // Who has not the command has no table by it.
            return Ok(matches!(list().await, Ok(None) | Err(FirewallError::Missing { .. })));
        }
        let Some(listed) = list().await? else { return Ok(false) };
        *self.redirected.lock().unwrap_or_else(PoisonError::into_inner) = Some(packets(&listed));
        let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(installed.as_ref().is_some_and(|installed| *installed == without_counts(&listed)))
    }

    async fn install(&self) -> Result<(), FirewallError> {
        if self.wanted.is_empty() {
            return match self.remove().await {
                Err(FirewallError::Missing { .. }) => Ok(()),
                removed => removed,
            };
        }
        apply(&format!("{}{}", delete(), self.script)).await?;
        // Another may have changed it meanwhile: that is not to be taken for ours.
        let listed =
            list().await?.map(|listed| without_counts(&listed)).filter(|listed| redirects(listed, &self.wanted));
        *self.installed.lock().unwrap_or_else(PoisonError::into_inner) = listed;
        Ok(())
    }

    async fn remove(&self) -> Result<(), FirewallError> {
        if list().await?.is_some() { apply(&delete()).await } else { Ok(()) }
    }
}

impl Firewall for Nft {
    fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>> {
        Box::pin(Self::present(self))
    }

    fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::install(self))
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::remove(self))
    }

    fn redirected(&self) -> Option<u64> {
        *self.redirected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes the table, also where it is not there.
fn delete() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

fn script(redirection: &Redirection) -> String {
    // Writing to a string cannot fail.
    let mut sets = String::new();
    let mut redirects = String::new();
    let mut input = String::new();
    let mut elsewhere = String::new();
    let super::Rush { per_second, burst } = redirection.rush;
    for family in Family::ALL {
        let Some((to, addresses)) = redirection.of(family) else { continue };
        let (ip, kind) = match family {
            Family::V4 => ("ip", "ipv4"),
            Family::V6 => ("ip6", "ipv6"),
        };
        for address in addresses {
            writeln!(redirects, "{ip} daddr {address} tcp dport 80 counter dnat {ip} to {to}").ok();
            // An address that the node has no more may be another machine's.
            writeln!(elsewhere, "meta nfproto {kind} ct status dnat ct original {ip} daddr {address} drop").ok();
        }
        let to_us = format!("meta nfproto {kind} tcp dport {} tcp flags & (fin|syn|rst|ack) == syn", to.port());
        writeln!(sets, "set {kind}_rush {{ type {kind}_addr; size 65535; flags dynamic,timeout; timeout 1m; }}").ok();
        writeln!(
            input,
            "{to_us} ct status dnat update @{kind}_rush {{ {ip} saddr limit rate over {per_second}/second burst {burst} packets }} counter drop\n\
             {to_us} ct status ! dnat reject with tcp reset"
        )
        .ok();
    }
    format!(
        "table inet {TABLE} {{\n\
         {sets}\
         chain prerouting {{\ntype nat hook prerouting priority {BEFORE_ALL_NAT}; policy accept;\n{redirects}}}\n\
         chain incoming {{\ntype filter hook input priority {BEFORE_ALL_FILTERS}; policy accept;\n{input}}}\n\
         chain forwarded {{\ntype filter hook forward priority {BEFORE_ALL_FILTERS}; policy accept;\n{elsewhere}}}\n\
         }}\n"
    )
}

/// What each rule that redirects has to say.
fn wanted(redirection: &Redirection) -> Vec<[String; 2]> {
    let of = |family| {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let (to, addresses) = redirection.of(family)?;
        let rule = move |address| [format!("{ip} daddr {address} tcp dport 80 "), format!(" dnat {ip} to {to}")];
        Some(addresses.into_iter().map(rule))
    };
    Family::ALL.into_iter().filter_map(of).flatten().collect()
}

/// Whether a table redirects what is wanted, and nothing else; and refuses what was not redirected.
fn redirects(listed: &str, wanted: &[[String; 2]]) -> bool {
    let rules = listed.lines().filter(|line| line.contains(" dnat ip")).collect::<Vec<_>>();
    let is_there = |parts: &[String; 2]| rules.iter().any(|rule| parts.iter().all(|part| rule.contains(part)));
    rules.len() == wanted.len() && wanted.iter().all(is_there) && listed.contains("reject with tcp reset")
}

/// Our table as it is; without what the kernel counts by address.
pub(super) async fn list() -> Result<Option<String>, FirewallError> {
    let arguments = ["--terse", "list", "table", "inet", TABLE];
    let listed = run(NFT, &arguments, "").await?;
    if !listed.success && listed.output.contains("No such file") {
        return Ok(None);
    }
    listed.or_error(NFT, &arguments).map(Some)
}

/// All tables as they are, without counts and what is in sets.
pub(super) async fn list_all() -> Result<String, FirewallError> {
    let arguments = ["--stateless", "--terse", "list", "ruleset"];
    run(NFT, &arguments, "").await?.or_error(NFT, &arguments)
}

async fn apply(script: &str) -> Result<(), FirewallError> {
    let arguments = ["-f", "-"];
    run(NFT, &arguments, script).await?.or_error(NFT, &arguments).map(drop)
}

/// The first packets of connections that were redirected.
fn packets(listed: &str) -> u64 {
    let redirects = listed.lines().filter(|line| line.contains(" dnat ip"));
    let counted = redirects.filter_map(|line| line.split_once("counter packets "));
    counted.filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// What was listed, but for what the counters say.
pub(super) fn without_counts(listed: &str) -> String {
    let mut words = listed.split(' ');
    let mut without = Vec::new();
    while let Some(word) = words.next() {
        without.push(word);
        if word == "counter" {
            // packets N bytes N
            for counted in words.by_ref().take(4).step_by(2) {
                without.push(counted);
            }
        }
    }
    without.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "ip daddr 169.254.169.254 tcp dport 80 counter packets 7 bytes 420 dnat ip to 10.0.0.10:9169\n\
        \t\tip6 daddr fd00:ec2::254 tcp dport 80 counter packets 5 bytes 400 dnat ip6 to [fd00:10::10]:9169\n\
        \t\ttcp dport 9169 ct status dnat update @ipv4_rush { ip saddr limit rate over 2000/second burst 1536 packets } \
        counter packets 3 bytes 180 drop\n";

    #[test]
    fn counters_are_read_and_make_no_difference() {
        assert_eq!(packets(LISTED), 12);
        let later = LISTED.replace("packets 7 bytes 420", "packets 12345 bytes 999999");
        assert_eq!(without_counts(LISTED), without_counts(&later));
        for other in [LISTED.replace("9169", "9269"), LISTED.replace("169.254.169.254", "169.254.170.2")] {
            assert_ne!(without_counts(LISTED), without_counts(&other));
        }
    }
}
