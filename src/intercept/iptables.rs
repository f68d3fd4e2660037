//! The redirect by iptables.
//!
//! ```text
//! nat:     PREROUTING  -d ADDR tcp/80 -j KUBE2IRSA              KUBE2IRSA: -d ADDR DNAT to the node's address and our port
//! filter:  INPUT       tcp/<our port> -j KUBE2IRSA-INPUT        KUBE2IRSA-INPUT: accept what was redirected, reset the rest
//! ```
//!
//! for each address ADDR that is served.
//!
//! Before that, a pod that connects in a rush has its further packets dropped until a second or so later: all pods wait in
//! one queue to be accepted, and only the kernel can keep one from filling it. Where it cannot count by address
//! (`xt_hashlimit` is missing), the rule is left out.
//!
//! DNAT to the node's address works also where a pod's interface has none (REDIRECT does not). The
//! accept is for nodes whose own firewall would drop it, and what was not redirected has no business on
//! our port. One table is written in one step, and nothing but our own chains and jumps is touched.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    process::Stdio,
};

use futures::future::BoxFuture;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{Firewall, FirewallError};

const IPTABLES: &str = "iptables";
const RESTORE: &str = "iptables-restore";
/// How long to wait for another program that holds the lock, in seconds.
const LOCK_SECONDS: &str = "5";

const NAT_CHAIN: &str = "KUBE2IRSA";
const INPUT_CHAIN: &str = "KUBE2IRSA-INPUT";
/// What the kernel's table of addresses is named after.
const HASH: &str = "kube2irsa";
/// What is said where the kernel or iptables has no such match, by either variant.
const NO_HASHLIMIT: [&str; 3] = ["hashlimit", "No such file", "RULE_APPEND failed"];
/// The first packet of a connection.
const SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";

/// Sends pods' requests for these addresses to `to`.
#[derive(Clone, Debug)]
pub struct Iptables {
    to: SocketAddrV4,
    addresses: Vec<Ipv4Addr>,
    rush: Option<Rush>,
}

/// How many connections one address may begin.
#[derive(Clone, Copy, Debug)]
pub struct Rush {
    /// In a second, in the long run.
    pub per_second: u32,
    /// At once after a rest.
    pub burst: u32,
}

/// Our chain of a table, and what leads there.
struct Part {
    table: &'static str,
    chain: &'static str,
    /// The chain's rules, as `-S` prints them behind `-A <chain> `.
    rules: Vec<String>,
    /// The chain that every packet passes.
    from: &'static str,
    /// The rules there that jump to ours, in the same form.
    jumps: Vec<Jump>,
}

struct Jump {
    rule: String,
    /// Whose packets it takes, so that no rule before it may.
    address: Option<Ipv4Addr>,
}

impl Iptables {
    /// The redirect from these addresses to this one of the node and our port on it. Only IPv4 is redirected.
    #[must_use]
    pub fn new(to: SocketAddrV4, addresses: &[IpAddr], rush: Option<Rush>) -> Self {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        Self { to, addresses: addresses.iter().filter_map(v4).collect(), rush }
    }

    fn nat(&self) -> Part {
        let to = |address: &Ipv4Addr, target: &str| format!("-d {address}/32 -p tcp -m tcp --dport 80 -j {target}");
        let dnat = format!("DNAT --to-destination {}", self.to);
        Part {
            table: "nat",
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

    fn filter(&self) -> Part {
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
        Part {
            table: "filter",
            chain: INPUT_CHAIN,
            rules: rush.into_iter().chain([redirected.to_owned(), fresh]).collect(),
            from: "INPUT",
            jumps: vec![Jump { rule, address: None }],
        }
    }

    /// Looks at what a request needs; each look starts a process. The contents of the chain in `filter` only
    /// matter behind a host's own firewall, and are gone with its jump when that is flushed.
    async fn present(&self) -> Result<bool, FirewallError> {
        let (nat, filter) = (self.nat(), self.filter());
        let Some(chain) = list_if_there(nat.table, nat.chain).await? else { return Ok(false) };
        Ok(nat.is_all_of(&chain)
            && nat.is_jumped_to(&list(nat.table, nat.from).await?)
            && exist(filter.table, filter.from, &filter.jumps).await?)
    }

    async fn install(&self) -> Result<(), FirewallError> {
        let Err(error) = self.write().await else { return Ok(()) };
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

    async fn write(&self) -> Result<(), FirewallError> {
        for part in [self.nat(), self.filter()] {
            let Part { table, chain, from, .. } = part;
            let mut script = format!("*{table}\n:{chain} - [0:0]\n");
            for rule in &part.rules {
                script += &format!("-A {chain} {rule}\n");
            }
            let current = list(table, from).await?;
            if !part.is_jumped_to(&current) {
                for old in our_jumps(&current, from, chain) {
                    script += &format!("{}\n", old.replacen("-A ", "-D ", 1));
                }
                for jump in part.jumps.iter().rev() {
                    script += &format!("-I {from} 1 {}\n", jump.rule);
                }
            }
            restore(&(script + "COMMIT\n")).await?;
        }
        Ok(())
    }

    async fn remove(&self) -> Result<(), FirewallError> {
        for Part { table, chain, from, .. } in [self.nat(), self.filter()] {
            if list_if_there(table, chain).await?.is_none() {
                continue;
            }
            let mut script = format!("*{table}\n");
            for jump in our_jumps(&list(table, from).await?, from, chain) {
                script += &format!("{}\n", jump.replacen("-A ", "-D ", 1));
            }
            restore(&format!("{script}-F {chain}\n-X {chain}\nCOMMIT\n")).await?;
        }
        Ok(())
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
                    listed.lines().take_while(|other| other != line).all(|other| !names(other, address))
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
}

/// Rules of chain `from`, as `-S` prints them, that jump to our `chain`.
fn our_jumps(listed: &str, from: &str, chain: &str) -> Vec<String> {
    let ours = |line: &&str| line.starts_with(&format!("-A {from} ")) && line.ends_with(&format!(" -j {chain}"));
    listed.lines().filter(ours).map(str::to_owned).collect()
}

/// Whether a rule is for this very address, as another interceptor's would be. Rules for other addresses, and jumps for
/// all, are left before ours: some CNI plugins insist on the first place, and do nothing with these packets.
fn names(rule: &str, address: Ipv4Addr) -> bool {
    let address = address.to_string();
    rule.split(|c: char| !c.is_ascii_digit() && c != '.').any(|word| word == address)
}

async fn list(table: &str, chain: &str) -> Result<String, FirewallError> {
    let arguments = ["-w", LOCK_SECONDS, "-t", table, "-S", chain];
    run(IPTABLES, &arguments, "").await?.or_error(IPTABLES, &arguments)
}

async fn list_if_there(table: &str, chain: &str) -> Result<Option<String>, FirewallError> {
    let arguments = ["-w", LOCK_SECONDS, "-t", table, "-S", chain];
    let listed = run(IPTABLES, &arguments, "").await?;
    if listed.says_missing() { Ok(None) } else { listed.or_error(IPTABLES, &arguments).map(Some) }
}

/// `-C` says no with status 1; also where the chain is not there.
async fn exist(table: &str, chain: &str, jumps: &[Jump]) -> Result<bool, FirewallError> {
    for jump in jumps {
        let mut arguments = vec!["-w", LOCK_SECONDS, "-t", table, "-C", chain];
        arguments.extend(jump.rule.split(' '));
        let done = run(IPTABLES, &arguments, "").await?;
        match done.code {
            Some(0) => {}
            Some(1) => return Ok(false),
            // The nft variant's answer where a chain is not there.
            Some(2) if done.says_missing() => return Ok(false),
            _ => return done.or_error(IPTABLES, &arguments).map(|_| false),
        }
    }
    Ok(true)
}

async fn restore(script: &str) -> Result<(), FirewallError> {
    let arguments = ["-w", LOCK_SECONDS, "--noflush"];
    run(RESTORE, &arguments, script).await?.or_error(RESTORE, &arguments).map(drop)
}

struct Done {
    success: bool,
    code: Option<i32>,
    output: String,
}

impl Done {
    /// Whether it failed because a chain of ours is not there, by the words of either variant. (The nft variant takes one
    /// that is not there for one that was made by `nft`.)
    fn says_missing(&self) -> bool {
        !self.success
            && ["No chain/target/match", "No such file", "Couldn't load target", "does not exist", "is incompatible"]
                .iter()
                .any(|words| self.output.contains(words))
    }

    fn or_error(self, command: &str, arguments: &[&str]) -> Result<String, FirewallError> {
        if self.success {
            return Ok(self.output);
        }
        let output = self.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        Err(FirewallError::Command { command: format!("{command} {}", arguments.join(" ")), output })
    }
}

async fn run(command: &'static str, arguments: &[&str], input: &str) -> Result<Done, FirewallError> {
    let failed = |error| FirewallError::Missing { command, error };
    let mut child = Command::new(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that does not read says why by its status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    Ok(Done {
        success: output.status.success(),
        code: output.status.code(),
        output: String::from_utf8_lossy(text).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> Iptables {
        let addresses = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"].map(|address| address.parse().unwrap());
        Iptables::new("10.0.0.10:9169".parse().unwrap(), &addresses, None)
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
        for (rules, good) in [
            (&[metadata, container, other][..], true),
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
