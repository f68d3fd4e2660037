//! The redirect by iptables and ip6tables, of either variant.
//!
//! ```text
//! nat:     PREROUTING  -d ADDR tcp/80 -j KUBE2IRSA              KUBE2IRSA: -d ADDR DNAT to the node's address and our port
//! filter:  INPUT       tcp/<our port> -j KUBE2IRSA-INPUT        KUBE2IRSA-INPUT: accept what was redirected, reset the rest
//! ```
//!
//! for each address ADDR of the family that is served.
//!
//! Before that, a pod that connects in a rush has its further packets dropped until a second or so later: all pods wait in
//! one queue to be accepted, and only the kernel can keep one from filling it. Where it cannot count by address
//! (`xt_hashlimit` is missing), the rule is left out.
//!
//! DNAT to the node's address works also where a pod's interface has none (REDIRECT does not). The
//! accept is for nodes whose own firewall would drop it, and what was not redirected has no business on
//! our port. One table is written in one step, and nothing but our own chains and jumps is touched.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;

use super::{
    Family, Firewall, FirewallError, Redirection, Rush,
    command::{Done, run},
    rivals,
};

/// How long to wait for another program that holds the lock, in seconds.
const LOCK_SECONDS: &str = "5";

pub(super) const NAT: &str = "nat";
pub(super) const FILTER: &str = "filter";
const MANGLE: &str = "mangle";
pub(super) const NAT_CHAIN: &str = "KUBE2IRSA";
pub(super) const INPUT_CHAIN: &str = "KUBE2IRSA-INPUT";
/// What the kernel's table of addresses is named after.
const HASH: &str = "kube2irsa";
/// What is said where the kernel or iptables has no such match, by either variant.
const NO_HASHLIMIT: [&str; 3] = ["hashlimit", "No such file", "RULE_APPEND failed"];
/// The first packet of a connection.
const SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";
/// Chains of kubelet, by which it tells which variant is the node's.
const KUBELETS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// Which of the kernel's two sets of tables a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// That which the system took for its own.
    System,
    /// Those of nftables.
    Nft,
    /// Those of before.
    Legacy,
}

impl Variant {
    /// The one that the node's other programs use, as far as can be seen.
    pub async fn of_the_node() -> Self {
        for variant in [Self::Nft, Self::Legacy] {
            let commands = Commands { family: Family::V4, variant };
            if !commands.may_ask(MANGLE) {
                continue;
            }
            for chain in KUBELETS {
                if commands.list_if_there(MANGLE, chain).await.is_ok_and(|chain| chain.is_some()) {
                    return variant;
                }
            }
        }
        let system = Self::of_command("iptables").await;
        for (variant, command) in [(Self::Nft, "iptables-nft"), (Self::Legacy, "iptables-legacy")] {
            if system == Some(variant) && Self::of_command(command).await.is_some() {
                return variant;
            }
        }
        Self::System
    }

    pub(super) async fn of_command(command: &str) -> Option<Self> {
        let said = run(command, &["--version"], "").await.ok().filter(|done| done.success)?.output;
        Some(if said.contains("nf_tables") { Self::Nft } else { Self::Legacy })
    }

    /// The one that this one's commands do not see; `None` where that cannot be said.
    #[must_use]
    pub fn other(self) -> Option<Self> {
        match self {
            Self::System => None,
            Self::Nft => Some(Self::Legacy),
            Self::Legacy => Some(Self::Nft),
        }
    }
}

/// The commands for one family's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commands {
    /// Whose rules.
    pub family: Family,
    /// In which of the kernel's tables.
    pub variant: Variant,
}

/// Sends pods' requests for addresses of a family to an address of the node, and lets them in.
#[derive(Clone, Debug)]
pub struct Iptables {
    commands: Commands,
    to: SocketAddr,
    addresses: Vec<IpAddr>,
    rush: Option<Rush>,
    accept: Accept,
    /// The first packets of connections that its rules had redirected when they were last looked at.
    redirected: Arc<AtomicU64>,
}

/// When what was redirected is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// Always.
    Always,
    /// Where there are rules that may keep it out.
    BehindFirewall,
    /// As an earlier run left it.
    AsItIs,
}

/// Our chain of a table, and what leads there.
struct Part {
    table: &'static str,
    chain: &'static str,
    /// The chain's rules, as `-S` prints them behind `-A <chain> `.
    rules: Vec<String>,
    /// The chain that every packet passes.
    from: &'static str,
    /// The rules there that jump to ours, in the same form. Without any, the chain is not wanted either.
    jumps: Vec<Jump>,
}

struct Jump {
    rule: String,
    /// Whose packets it takes, so that no rule before it may.
    address: Option<IpAddr>,
}

impl Iptables {
    /// The redirect of the family's addresses; `None` where nothing listens for them.
    #[must_use]
    pub fn redirect(commands: Commands, redirection: &Redirection) -> Option<Self> {
        let (to, addresses) = redirection.of(commands.family)?;
        let rush = Some(redirection.rush);
        Some(Self { commands, to, addresses, rush, accept: Accept::Always, redirected: Arc::default() })
    }

    /// Only what lets in requests that somebody else redirects, behind a firewall of these tables. It is in the tables
    /// that drop a packet that it has to be accepted.
    #[must_use]
    pub fn accept(commands: Commands, redirection: &Redirection) -> Option<Self> {
        let (to, _) = redirection.of(commands.family)?;
        Some(Self::without_redirect(commands, to))
    }

    /// Nothing: to be removed, whatever an earlier run put there.
    #[must_use]
    pub fn leftovers(commands: Commands) -> Self {
        let to = SocketAddr::new(commands.family.unspecified(), 0);
        Self::without_redirect(commands, to)
    }

    /// No redirect, whatever an earlier run put there.
    #[must_use]
    pub fn redirect_left(commands: Commands) -> Self {
        Self { accept: Accept::AsItIs, ..Self::leftovers(commands) }
    }

    fn without_redirect(commands: Commands, to: SocketAddr) -> Self {
        let accept = Accept::BehindFirewall;
        Self { commands, to, addresses: Vec::new(), rush: None, accept, redirected: Arc::default() }
    }

    fn nat(&self) -> Part {
        let length = self.commands.family.address_bits();
        let to = |address: &IpAddr, target: &str| format!("-d {address}/{length} -p tcp -m tcp --dport 80 -j {target}");
        let dnat = format!("DNAT --to-destination {}", self.to);
        Part {
            table: NAT,
            chain: NAT_CHAIN,
            rules: self.addresses.iter().map(|address| to(address, &dnat)).collect(),
            from: "PREROUTING",
            jumps: self
                .addresses
                .iter()
                .map(|address| Jump { rule: to(address, NAT_CHAIN), address: Some(*address) })
                .collect(),
        }
    }

    /// `is_open`: whether all packets are let in anyway.
    fn filter(&self, is_open: bool) -> Part {
        let redirected = "-m conntrack --ctstate DNAT -j ACCEPT";
        let fresh = format!("{SYN} -j REJECT --reject-with tcp-reset");
        let rush = self.rush.map(|Rush { per_second, burst }| {
            let limit = format!("--hashlimit-above {per_second}/sec --hashlimit-burst {burst}");
            // The kernel goes on with the numbers of a table that is there under the name.
            let name = format!("{HASH}-{per_second}-{burst}");
            let redirected = "-m conntrack --ctstate DNAT";
            format!("{SYN} {redirected} -m hashlimit {limit} --hashlimit-mode srcip --hashlimit-name {name} -j DROP")
        });
        let rule = format!("-p tcp -m tcp --dport {} -j {INPUT_CHAIN}", self.to.port());
        let jump = Jump { rule, address: None };
        Part {
            table: FILTER,
            chain: INPUT_CHAIN,
            rules: rush.into_iter().chain([redirected.to_owned(), fresh]).collect(),
            from: "INPUT",
            jumps: if self.accept == Accept::Always || !is_open { vec![jump] } else { Vec::new() },
        }
    }

    /// Looks at what a request needs; each question starts a process.
    async fn present(&self) -> Result<bool, FirewallError> {
        let nat = self.nat();
        if !nat.jumps.is_empty() {
            let Some(chain) = self.commands.list_if_there(nat.table, nat.chain).await? else { return Ok(false) };
            let (rules, packets) = without_counts(&chain);
            self.redirected.store(packets, Ordering::Relaxed);
            if !nat.is_all_of(&rules) || !nat.is_jumped_to(&self.commands.list(nat.table, nat.from).await?) {
                return Ok(false);
            }
        }
        match self.accept {
            Accept::AsItIs => Ok(true),
            Accept::Always => {
                let filter = self.filter(false);
                Ok(self.holds_accept(&filter).await?
                    && self.commands.exist(filter.table, filter.from, &filter.jumps).await?)
            }
            // Tables that nobody uses drop nothing.
            Accept::BehindFirewall if !self.commands.may_ask(FILTER) => Ok(true),
            Accept::BehindFirewall => {
                let listed = match self.commands.list(FILTER, "INPUT").await {
                    Err(FirewallError::Missing { .. }) => return Ok(true),
                    listed => listed?,
                };
                let filter = self.filter(lets_all_in(&listed));
                Ok(filter.is_jumped_to(&listed) && (filter.jumps.is_empty() || self.holds_accept(&filter).await?))
            }
        }
    }

    async fn install(&self) -> Result<(), FirewallError> {
        let Err(error) = self.write().await else { return Ok(()) };
        // Who has not the command has no rules by it.
        if self.accept == Accept::BehindFirewall && matches!(error, FirewallError::Missing { .. }) {
            return Ok(());
        }
        let says = error.to_string();
        if self.rush.is_none() || !NO_HASHLIMIT.iter().any(|words| says.contains(words)) {
            return Err(error);
        }
        Self { rush: None, ..self.clone() }.write().await?;
        tracing::warn!(
            "the kernel does not keep one pod from connecting in a rush (xt_hashlimit is missing?): {error}"
        );
        Ok(())
    }

    /// Whether our chain in `filter` accepts what was redirected and refuses the rest; the limit is left out where it must be.
    async fn holds_accept(&self, filter: &Part) -> Result<bool, FirewallError> {
        let Some(chain) = self.commands.list_if_there(filter.table, filter.chain).await? else { return Ok(false) };
        let (rules, _) = without_counts(&chain);
        let without_limit = Self { rush: None, ..self.clone() }.filter(false);
        Ok(filter.is_all_of(&rules) || without_limit.is_all_of(&rules))
    }

    async fn write(&self) -> Result<(), FirewallError> {
        self.put(&self.nat()).await?;
        if self.accept == Accept::BehindFirewall && !self.commands.may_ask(FILTER) {
            return Ok(());
        }
        let is_open = self.accept == Accept::BehindFirewall && lets_all_in(&self.commands.list(FILTER, "INPUT").await?);
        self.put(&self.filter(is_open)).await
    }

    async fn put(&self, part: &Part) -> Result<(), FirewallError> {
        if part.jumps.is_empty() {
            return self.take_out(part).await;
        }
        let Part { table, chain, from, .. } = part;
        let mut script = format!("*{table}\n:{chain} - [0:0]\n");
        for rule in &part.rules {
            script += &format!("-A {chain} {rule}\n");
        }
        let current = self.commands.list(table, from).await?;
        if !part.is_jumped_to(&current) {
            for old in our_jumps(&current, from, chain) {
                script += &format!("{}\n", old.replacen("-A ", "-D ", 1));
            }
            for jump in part.jumps.iter().rev() {
                script += &format!("-I {from} 1 {}\n", jump.rule);
            }
        }
        self.commands.restore(&(script + "COMMIT\n")).await
    }

    async fn take_out(&self, part: &Part) -> Result<(), FirewallError> {
        let Part { table, chain, from, .. } = part;
        // What was never used holds nothing of ours.
        if !self.commands.may_ask(table) || self.commands.list_if_there(table, chain).await?.is_none() {
            return Ok(());
        }
        let mut script = format!("*{table}\n");
        for jump in our_jumps(&self.commands.list(table, from).await?, from, chain) {
            script += &format!("{}\n", jump.replacen("-A ", "-D ", 1));
        }
        self.commands.restore(&format!("{script}-F {chain}\n-X {chain}\nCOMMIT\n")).await?;
        self.commands.take_out_if_empty(table, from).await
    }

    async fn remove(&self) -> Result<(), FirewallError> {
        self.take_out(&self.nat()).await?;
        if self.accept == Accept::AsItIs { Ok(()) } else { self.take_out(&self.filter(true)).await }
    }
}

// === impl Part ===

impl Part {
    /// Whether our chain, as `-S` prints it, holds these rules and no others: an earlier run may have had others.
    fn is_all_of(&self, listed: &str) -> bool {
        let rules = listed.lines().filter_map(|line| line.strip_prefix(&format!("-A {} ", self.chain)));
        rules.eq(self.rules.iter().map(String::as_str))
    }

    /// Whether the jumps to our chain are these and no others, and no rule before one of them could take its packets.
    fn is_jumped_to(&self, listed: &str) -> bool {
        let lines = self.jumps.iter().map(|jump| format!("-A {} {}", self.from, jump.rule)).collect::<Vec<_>>();
        our_jumps(listed, self.from, self.chain) == lines
            && self.jumps.iter().zip(&lines).all(|(jump, line)| {
                jump.address.is_none_or(|address| {
                    listed
                        .lines()
                        .take_while(|other| other != line)
                        .all(|other| rivals::takes(other, address).is_none())
                })
            })
    }
}

impl Firewall for Iptables {
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
        Some(self.redirected.load(Ordering::Relaxed))
    }
}

/// Rules of chain `from`, as `-S` prints them, that jump to our `chain`.
pub(super) fn our_jumps(listed: &str, from: &str, chain: &str) -> Vec<String> {
    let ours = |line: &&str| line.starts_with(&format!("-A {from} ")) && line.ends_with(&format!(" -j {chain}"));
    listed.lines().filter(ours).map(str::to_owned).collect()
}

/// Rules, as `-v -S` prints them, without their counters, and the packets that all have counted.
pub(super) fn without_counts(listed: &str) -> (String, u64) {
    let (mut rules, mut all) = (String::new(), 0);
    for line in listed.lines() {
        let mut words = line.split(' ');
        let mut without = Vec::new();
        while let Some(word) = words.next() {
            if word != "-c" {
                without.push(word);
                continue;
            }
            // Packets, and bytes.
            all += words.next().and_then(|packets| packets.parse::<u64>().ok()).unwrap_or_default();
            words.next();
        }
        rules += &without.join(" ");
        rules.push('\n');
    }
    (rules, all)
}

/// Whether `INPUT`, as `-S` prints it, has no rule but ours, and nothing is dropped at its end.
pub(super) fn lets_all_in(listed: &str) -> bool {
    let ours = our_jumps(listed, "INPUT", INPUT_CHAIN);
    listed.lines().all(|line| line == "-P INPUT ACCEPT" || ours.iter().any(|jump| jump == line))
}

// === impl Commands ===

impl Commands {
    pub(super) fn name(self, suffix: &str) -> String {
        let family = match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let variant = match self.variant {
            Variant::System => "",
            Variant::Nft => "-nft",
            Variant::Legacy => "-legacy",
        };
        format!("{family}{variant}{suffix}")
    }

    /// Whether rules of this table can be read at all.
    ///
    /// # Errors
    /// Why not.
    pub async fn try_nat(self) -> Result<(), FirewallError> {
        self.list(NAT, "PREROUTING").await.map(drop)
    }

    /// Whether a table can be looked at and stays as it is: to ask the commands of before for one that no program has used
    /// yet brings it into use.
    pub(super) fn may_ask(self, table: &str) -> bool {
        let names = match self.family {
            _ if self.variant != Variant::Legacy => return true,
            Family::V4 => "/proc/net/ip_tables_names",
            Family::V6 => "/proc/net/ip6_tables_names",
        };
        std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == table))
    }

    /// The nft variant makes the chains that every packet passes when they get their first rule, and leaves them when they
    /// lose their last. Empty, they do nothing; and the kernel takes out none that another program has just used.
    async fn take_out_if_empty(self, table: &str, chain: &str) -> Result<(), FirewallError> {
        if self.variant == Variant::Legacy || self.list(table, chain).await? != format!("-P {chain} ACCEPT\n") {
            return Ok(());
        }
        let arguments = ["-w", LOCK_SECONDS, "-t", table, "-X", chain];
        // By the name that says no variant it may be the one of before, which knows no such thing.
        run(&self.name(""), &arguments, "").await.map(drop)
    }

    pub(super) async fn list(self, table: &str, chain: &str) -> Result<String, FirewallError> {
        let (command, arguments) = (self.name(""), ["-w", LOCK_SECONDS, "-t", table, "-S", chain]);
        run(&command, &arguments, "").await?.or_error(&command, &arguments)
    }

    /// With what the rules have counted.
    pub(super) async fn list_if_there(self, table: &str, chain: &str) -> Result<Option<String>, FirewallError> {
        let (command, arguments) = (self.name(""), ["-w", LOCK_SECONDS, "-v", "-t", table, "-S", chain]);
        let listed = run(&command, &arguments, "").await?;
        if says_missing(&listed) { Ok(None) } else { listed.or_error(&command, &arguments).map(Some) }
    }

    /// `-C` says no with status 1; also where the chain is not there.
    async fn exist(self, table: &str, chain: &str, jumps: &[Jump]) -> Result<bool, FirewallError> {
        let command = self.name("");
        for jump in jumps {
            let mut arguments = vec!["-w", LOCK_SECONDS, "-t", table, "-C", chain];
            arguments.extend(jump.rule.split(' '));
            let done = run(&command, &arguments, "").await?;
            match done.code {
                Some(0) => {}
                Some(1) => return Ok(false),
                // The nft variant's answer where a chain is not there.
                Some(2) if says_missing(&done) => return Ok(false),
                _ => return done.or_error(&command, &arguments).map(|_| false),
            }
        }
        Ok(true)
    }

    async fn restore(self, script: &str) -> Result<(), FirewallError> {
        let (command, arguments) = (self.name("-restore"), ["-w", LOCK_SECONDS, "--noflush"]);
        run(&command, &arguments, script).await?.or_error(&command, &arguments).map(drop)
    }
}

/// Whether a command failed because a chain of ours is not there, by the words of either variant. (The nft variant takes
/// one that is not there for one that was made by `nft`.)
fn says_missing(done: &Done) -> bool {
    !done.success
        && ["No chain/target/match", "No such file", "Couldn't load target", "does not exist", "is incompatible"]
            .iter()
            .any(|words| done.output.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> Iptables {
        let addresses = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"].map(|address| address.parse().unwrap());
        let redirection = Redirection {
            addresses: addresses.into(),
            targets: vec!["10.0.0.10:9169".parse().unwrap()],
            rush: Rush { per_second: 1, burst: 1 },
        };
        Iptables::redirect(Commands { family: Family::V4, variant: Variant::System }, &redirection).unwrap()
    }

    fn listed(chain: &str, rules: &[&str]) -> String {
        rules.iter().fold(format!("-P {chain} ACCEPT\n"), |listed, rule| format!("{listed}{rule}\n"))
    }

    #[test]
    fn our_jumps_come_before_every_rule_for_the_same_address() {
        let metadata = "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j KUBE2IRSA";
        let container = "-A PREROUTING -d 169.254.170.2/32 -p tcp -m tcp --dport 80 -j KUBE2IRSA";
        let other = "-A PREROUTING -d 169.254.170.2/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:81";
        let range = "-A PREROUTING -m iprange --dst-range 169.254.170.2-169.254.170.2 -j RETURN";
        let elsewhere =
            "-A PREROUTING -d 169.254.170.23/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:81";
        let kube_proxy = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
        let third = "-A PREROUTING -d 169.254.170.23/32 -p tcp -m tcp --dport 80 -j KUBE2IRSA";
        let prefix = "-A PREROUTING -d 169.254.170.0/24 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:81";
        let all = "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 81";
        for (rules, good) in [
            (&[metadata, container, other][..], true),
            (&[metadata, container, prefix, all], true),
            (&[metadata, prefix, container], false),
            (&[all, metadata, container], false),
            (&[kube_proxy, metadata, container, range], true),
            // It takes nothing of ours.
            (&[elsewhere, metadata, container], true),
            // Before another jump of ours, and still after that for its own address.
            (&[metadata, container, elsewhere], true),
            (&[kube_proxy, other, metadata, container], false),
            (&[metadata, other, container], false),
            (&[metadata, range, container], false),
            (&[metadata], false),
            (&[metadata, container, container], false),
            // What an earlier run left.
            (&[metadata, container, third], false),
            (&[kube_proxy], false),
        ] {
            assert_eq!(redirect().nat().is_jumped_to(&listed("PREROUTING", rules)), good, "{rules:?}");
        }
    }

    #[test]
    fn our_chain_holds_what_this_run_serves_and_nothing_of_an_earlier_one() {
        let metadata =
            "-A KUBE2IRSA -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:9169";
        let container =
            "-A KUBE2IRSA -d 169.254.170.2/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:9169";
        let old = "-A KUBE2IRSA -d 169.254.170.23/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:9169";
        let other_port = container.replace("9169", "9269");
        for (rules, good) in [
            (&[metadata, container][..], true),
            (&[metadata], false),
            (&[metadata, container, old], false),
            (&[metadata, &other_port], false),
            (&[], false),
        ] {
            assert_eq!(redirect().nat().is_all_of(&listed("KUBE2IRSA", rules)), good, "{rules:?}");
        }
    }

    #[test]
    fn counters_are_read_and_make_no_difference() {
        let listed = "-N KUBE2IRSA\n\
            -A KUBE2IRSA -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -c 3 180 -j DNAT --to-destination 10.0.0.10:9169\n\
            -A KUBE2IRSA -d 169.254.170.2/32 -p tcp -m tcp --dport 80 -c 4 240 -j DNAT --to-destination 10.0.0.10:9169\n";
        let (rules, packets) = without_counts(listed);
        assert_eq!(packets, 7);
        assert!(redirect().nat().is_all_of(&rules), "{rules}");
    }

    #[test]
    fn only_jumps_to_our_chain_are_ours() {
        let listed = "-P INPUT ACCEPT\n\
            -A INPUT -p tcp -m tcp --dport 9169 -j KUBE2IRSA-INPUT\n\
            -A INPUT -p tcp -m tcp --dport 9169 -j KUBE2IRSA-INPUT-NOT\n\
            -A INPUT -m comment --comment \" -j KUBE2IRSA-INPUT\" -j ACCEPT\n\
            -A FORWARD -p tcp -j KUBE2IRSA-INPUT\n";
        let expected = ["-A INPUT -p tcp -m tcp --dport 9169 -j KUBE2IRSA-INPUT"];
        assert_eq!(our_jumps(listed, "INPUT", INPUT_CHAIN), expected);
    }
}
