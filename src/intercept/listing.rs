//! What of ours is on the node, wherever it can be: read, never changed.
//!
//! Invariant: to look leaves the node as it was. No table is brought into use by being asked for.

use std::fmt::{self, Write as _};

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{
    Family, FirewallError, guard, host,
    iptables::{Commands, FILTER, INPUT_CHAIN, NAT, NAT_CHAIN, Variant, our_jumps, without_counts},
    nft, obstacles,
};

/// What was read, or why it was not.
pub(super) type Read<T> = Result<T, FirewallError>;

const DEFAULT_TABLE: u32 = 253;

/// A chain that packets pass, and ours that it may lead to, as `-S` prints them.
#[derive(Debug)]
pub(super) struct Chains {
    pub(super) from: String,
    pub(super) ours: Option<String>,
}

/// What matters of iptables' tables of one family and variant. `None`: no program has used the table yet.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) commands: Commands,
    pub(super) nat: Read<Option<Chains>>,
    pub(super) filter: Read<Option<Chains>>,
    /// `PREROUTING` of the tables that packets pass before `nat`, of the variant that `nft` does not see.
    pub(super) before_nat: Vec<(&'static str, Read<String>)>,
}

/// Everything of ours that a run may have put on the node, and what is beside it.
#[derive(Debug)]
pub(super) struct Listing {
    /// The routing rules of each family; `None` where the node does not have it.
    pub(super) routing: Vec<(Family, Read<Option<Vec<RuleMessage>>>)>,
    /// Our table of nftables.
    pub(super) nft: Read<Option<String>>,
    /// Those for pods on the node's network, by name.
    pub(super) host: Vec<(&'static str, Read<Option<String>>)>,
    /// Those of iptables, each once, whatever names its commands have here.
    pub(super) iptables: Vec<Tables>,
}

// === impl Listing ===

impl Listing {
    /// Reads all.
    pub(super) async fn read() -> Self {
        let mut routing = Vec::new();
        for family in Family::ALL {
            routing.push((family, guard::rules(family).await));
        }
        let mut iptables = Vec::new();
        for variant in variants().await {
            for family in Family::ALL {
                iptables.push(Tables::read(Commands { family, variant }).await);
            }
        }
        let mut host = Vec::new();
        for table in [host::TABLE, host::GUARD_TABLE] {
            host.push((table, host::list(table).await));
        }
        Self { routing, nft: nft::list().await, host, iptables }
    }

    /// All that could not be read.
    pub(super) fn unread(&self) -> impl Iterator<Item = &FirewallError> {
        let routing = self.routing.iter().filter_map(|(_, rules)| rules.as_ref().err());
        let tables = self.iptables.iter().flat_map(|tables| [tables.nat.as_ref().err(), tables.filter.as_ref().err()]);
        routing.chain(self.nft.as_ref().err()).chain(tables.flatten())
    }
}

impl fmt::Display for Listing {
    /// Each rule of ours as the node's own command prints it, below that command.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut group = |command: &str, rules: &str| {
            if rules.is_empty() { Ok(()) } else { writeln!(f, "# {command}\n{}\n", rules.trim_end()) }
        };
        for (family, rules) in &self.routing {
            let rules = rules.iter().flatten().flatten().filter(|rule| guard::is_ours(rule));
            let lines = rules.fold(String::new(), |lines, rule| lines + &words(rule) + "\n");
            group(if *family == Family::V4 { "ip rule" } else { "ip -6 rule" }, &lines)?;
        }
        if let Ok(Some(table)) = &self.nft {
            group("nft --terse list table inet kube2irsa", table)?;
        }
        for (name, table) in &self.host {
            if let Ok(Some(table)) = table {
                group(&format!("nft list table inet {name}"), table)?;
            }
        }
        for tables in &self.iptables {
            for (table, from, chain, chains) in
                [(NAT, "PREROUTING", NAT_CHAIN, &tables.nat), (FILTER, "INPUT", INPUT_CHAIN, &tables.filter)]
            {
                let Ok(Some(chains)) = chains else { continue };
                let mut lines = our_jumps(&chains.from, from, chain).join("\n");
                if let Some(ours) = &chains.ours {
                    // Writing to a string cannot fail.
                    write!(lines, "\n{}", ours.trim_end()).ok();
                }
                group(&format!("{} -t {table} -S", tables.commands.name("")), lines.trim_start())?;
            }
        }
        Ok(())
    }
}

// === impl Tables ===

impl Tables {
    async fn read(commands: Commands) -> Self {
        let read = async |table, from, chain| {
            if !commands.may_ask(table) {
                return Ok(None);
            }
            let ours = commands.list_if_there(table, chain).await?.map(|listed| without_counts(&listed).0);
            Ok(Some(Chains { from: commands.list(table, from).await?, ours }))
        };
        let mut before_nat = Vec::new();
        for table in ["raw", "mangle"] {
            if commands.variant == Variant::Legacy && commands.may_ask(table) {
                before_nat.push((table, commands.list(table, "PREROUTING").await));
            }
        }
        Self {
            commands,
            before_nat,
            nat: read(NAT, "PREROUTING", NAT_CHAIN).await,
            filter: read(FILTER, "INPUT", INPUT_CHAIN).await,
        }
    }
}

/// The names under which each set of tables is to be had here; both where nothing is, so that it is said.
async fn variants() -> Vec<Variant> {
    let system = Variant::of_command("iptables").await;
    let mut variants = Vec::new();
    for (variant, command) in [(Variant::Nft, "iptables-nft"), (Variant::Legacy, "iptables-legacy")] {
        let is_there = Variant::of_command(command).await.is_some();
        variants.push(if !is_there && system == Some(variant) { Variant::System } else { variant });
    }
    variants
}

/// A routing rule in the words of `ip rule`, as far as rules of ours have them, and what commonly is in others'.
pub(super) fn words(rule: &RuleMessage) -> String {
    let attribute = |wanted: fn(&RuleAttribute) -> Option<String>| rule.attributes.iter().find_map(wanted);
    let mut words = format!("{}:\t", obstacles::preference(rule));
    let prefix = |address: Option<String>, length: u8| {
        let address = address?;
        let whole = if address.contains(':') { 128 } else { 32 };
        Some(if length == whole { address } else { format!("{address}/{length}") })
    };
    let source = attribute(|attribute| match attribute {
        RuleAttribute::Source(address) => Some(address.to_string()),
        _ => None,
    });
    let destination = attribute(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(address.to_string()),
        _ => None,
    });
    words += &format!("from {}", prefix(source, rule.header.src_len).unwrap_or_else(|| "all".to_owned()));
    if let Some(destination) = prefix(destination, rule.header.dst_len) {
        words += &format!(" to {destination}");
    }
    let others = rule.attributes.iter().filter_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(format!(" fwmark {mark:#x}")),
        RuleAttribute::Iifname(link) => Some(format!(" iif {link}")),
        RuleAttribute::Oifname(link) => Some(format!(" oif {link}")),
        _ => None,
    });
    words.extend(others);
    words += &match (rule.header.action, obstacles::table(rule)) {
        (RuleAction::ToTable, obstacles::LOCAL_TABLE) => " lookup local".to_owned(),
        (RuleAction::ToTable, guard::MAIN_TABLE) => " lookup main".to_owned(),
        (RuleAction::ToTable, DEFAULT_TABLE) => " lookup default".to_owned(),
        (RuleAction::ToTable, table) => format!(" lookup {table}"),
        (RuleAction::Prohibit, _) => " prohibit".to_owned(),
        (RuleAction::Unreachable, _) => " unreachable".to_owned(),
        (RuleAction::Blackhole, _) => " blackhole".to_owned(),
        (RuleAction::Nop, _) => " nop".to_owned(),
        (action, _) => format!(" {action:?}"),
    };
    if guard::is_ours(rule) {
        words += " proto 169";
    }
    words
}
