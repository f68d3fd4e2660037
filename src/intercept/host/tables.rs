//! The two tables, as they are written and read.

use std::fmt::Write as _;

use super::matches::Matches;
use crate::{
    cgroups::Tree,
    intercept::{
        Family, FirewallError, Redirection,
        command::run,
        nft::{BEFORE_ALL_NAT, without_counts},
    },
};

pub(in crate::intercept) const TABLE: &str = "kube2irsa_host";
pub(in crate::intercept) const GUARD_TABLE: &str = "kube2irsa_host_guard";
/// After what was redirected has its new address (-100), before what `filter` means (0).
const BEFORE_ALL_FILTERS: i32 = -10;

/// What is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scripts {
    /// The table that stays.
    pub(super) redirect: String,
    /// The one that is a process's.
    pub(super) guard: String,
}

pub(super) fn scripts(redirection: &Redirection, matches: &Matches) -> Scripts {
    let (mut chains, mut hook) = (String::new(), String::new());
    for family in Family::ALL {
        let (Some((to, _)), Some(their)) = (redirection.of(family), their(redirection, family)) else { continue };
        let ip = ip(family);
        // Writing to a string cannot fail.
        write!(chains, "chain to_us_{ip} {{\nmeta l4proto tcp counter dnat {ip} to {to}\n}}\n").ok();
        write_chain(&mut chains, &format!("pods_{ip}"), matches, &format!("goto to_us_{ip}"));
        writeln!(hook, "{their} tcp dport 80 jump pods_{ip}").ok();
    }
    let hook = format!("type nat hook output priority {BEFORE_ALL_NAT}; policy accept;\n{hook}");
    let refusal = refusal(redirection, matches);
    let redirect = format!("table inet {TABLE} {{\n{chains}chain outgoing {{\n{hook}}}\n{refusal}}}\n");
    // In one line: what reads it takes each for all.
    let guard = format!("table inet {GUARD_TABLE} {{\nflags owner\n{refusal}}}");
    let guard = guard.replace("{\n", "{ ").replace(";\n", "\n").replace('\n', "; ") + "\n";
    Scripts { redirect, guard }
}

/// What is not redirected: connections from before, other ports, and all while the redirect is gone.
fn refusal(redirection: &Redirection, matches: &Matches) -> String {
    let mut chains = "chain refused {\nmeta l4proto tcp counter reject with tcp reset\n\
        counter reject with icmpx type admin-prohibited\n}\n"
        .to_owned();
    write_chain(&mut chains, "pods", matches, "goto refused");
    write!(chains, "chain guard {{\ntype filter hook output priority {BEFORE_ALL_FILTERS}; policy accept;\n").ok();
    for their in Family::ALL.into_iter().filter_map(|family| their(redirection, family)) {
        writeln!(chains, "{their} jump pods").ok();
    }
    chains + "}\n"
}

/// A chain that does this with whom is meant.
fn write_chain(to: &mut String, name: &str, Matches { exempt, meant }: &Matches, does: &str) {
    writeln!(to, "chain {name} {{").ok();
    for exempt in exempt {
        writeln!(to, "{exempt} return").ok();
    }
    for meant in meant {
        writeln!(to, "{meant} {does}").ok();
    }
    *to += "}\n";
}

/// The addresses of a family that are served.
fn their(redirection: &Redirection, family: Family) -> Option<String> {
    let addresses = redirection.addresses.iter().filter(|address| Family::of(**address) == family);
    let addresses = addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!addresses.is_empty()).then(|| format!("{} daddr {{ {addresses} }}", ip(family)))
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A table as it is, without counts.
pub(in crate::intercept) async fn list(table: &str) -> Result<Option<String>, FirewallError> {
    let arguments = ["list", "table", "inet", table];
    let listed = run("nft", &arguments, "").await?;
    if !listed.success && listed.output.contains("No such file") {
        return Ok(None);
    }
    listed.or_error("nft", &arguments).map(|listed| Some(without_counts(&listed)))
}

/// Writes the table anew, in one step.
pub(super) async fn write(script: &str) -> Result<(), FirewallError> {
    apply(&["-f", "-"], &format!("{}{script}", delete(TABLE))).await
}

pub(super) async fn remove(table: &str) -> Result<(), FirewallError> {
    apply(&["-f", "-"], &delete(table)).await
}

/// Whether nft and the kernel know cgroups; nothing is changed.
pub(super) async fn try_match(tree: &Tree) -> Result<(), FirewallError> {
    let place = tree.mount().strip_prefix("/sys/fs/cgroup").ok().and_then(|below| below.to_str());
    let path = match place {
        Some("") | None => ".",
        Some(below) => below,
    };
    let rule = format!("socket cgroupv2 level 1 \"{path}\" counter");
    let chain = format!("chain c {{\ntype nat hook output priority {BEFORE_ALL_NAT};\n{rule}\n}}\n");
    apply(&["--check", "-f", "-"], &format!("{}table inet {TABLE} {{\n{chain}}}\n", delete(TABLE))).await
}

fn delete(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

async fn apply(arguments: &[&str], script: &str) -> Result<(), FirewallError> {
    run("nft", arguments, script).await?.or_error("nft", arguments).map(drop)
}
