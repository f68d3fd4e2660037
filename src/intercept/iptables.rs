//! The redirect by iptables.
//!
//! ```text
//! nat:     PREROUTING  -d 169.254.169.254 tcp/80 -j KUBE2IRSA   KUBE2IRSA: DNAT to the node's address and our port
//! filter:  INPUT       tcp/<our port> -j KUBE2IRSA-INPUT        KUBE2IRSA-INPUT: accept what was redirected, reset the rest
//! ```
//!
//! Before that, a pod that connects in a rush has its further packets dropped until a second or so later: all pods wait in
//! one queue to be accepted, and only the kernel can keep one from filling it. Where it cannot count by address
//! (`xt_hashlimit` is missing), the rule is left out.
//!
//! DNAT to the node's address works also where a pod's interface has none (REDIRECT does not). The
//! accept is for nodes whose own firewall would drop it, and what was not redirected has no business on
//! our port. One table is written in one step, and nothing but our own chains and jumps is touched.

use std::{net::SocketAddrV4, process::Stdio};

use futures::future::BoxFuture;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{Firewall, FirewallError, METADATA_V4};

const IPTABLES: &str = "iptables";
const RESTORE: &str = "iptables-restore";
/// How long to wait for another program that holds the lock, in seconds.
const LOCK_SECONDS: &str = "5";

const NAT_CHAIN: &str = "KUBE2IRSA";
const INPUT_CHAIN: &str = "KUBE2IRSA-INPUT";
/// The name of the kernel's table of addresses.
const HASH: &str = "kube2irsa";
/// The first packet of a connection.
const SYN: &str = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN";

/// Sends pods' requests for the metadata service to `to`.
#[derive(Clone, Copy, Debug)]
pub struct Iptables {
    to: SocketAddrV4,
    rush: Option<Rush>,
}

/// How many connections one address may begin.
#[derive(Clone, Copy, Debug)]
pub struct Rush {
    /// In a second, in the long run.
    pub per_second: u32,
    /// At once after a rest.
    pub burst: usize,
}

/// A rule of ours outside our own chains.
struct Jump {
    table: &'static str,
    from: &'static str,
    rule: String,
}

impl Iptables {
    /// The redirect to this address of the node and our port on it.
    #[must_use]
    pub fn new(to: SocketAddrV4, rush: Option<Rush>) -> Self {
        Self { to, rush }
    }

    fn jumps(self) -> [Jump; 2] {
        let port = self.to.port();
        [
            Jump {
                table: "nat",
                from: "PREROUTING",
                rule: format!("-d {METADATA_V4}/32 -p tcp -m tcp --dport 80 -j {NAT_CHAIN}"),
            },
            Jump { table: "filter", from: "INPUT", rule: format!("-p tcp -m tcp --dport {port} -j {INPUT_CHAIN}") },
        ]
    }

    fn chain(self, table: &str) -> (&'static str, Vec<String>) {
        match table {
            "nat" => {
                let rule = format!("-d {METADATA_V4}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {}", self.to);
                (NAT_CHAIN, vec![rule])
            }
            _ => {
                let redirected = "-m conntrack --ctstate DNAT -j ACCEPT";
                let fresh = format!("{SYN} -j REJECT --reject-with tcp-reset");
                let rush = self.rush.map(|Rush { per_second, burst }| {
                    let limit = format!("--hashlimit-above {per_second}/sec --hashlimit-burst {burst}");
                    format!("{SYN} -m hashlimit {limit} --hashlimit-mode srcip --hashlimit-name {HASH} -j DROP")
                });
                (INPUT_CHAIN, rush.into_iter().chain([redirected.to_owned(), fresh]).collect())
            }
        }
    }

    /// Looks at what a request needs; each look starts a process. The contents of the chain in `filter` only
    /// matter behind a host's own firewall, and are gone with its jump when that is flushed.
    async fn present(self) -> Result<bool, FirewallError> {
        let (chain, rules) = self.chain("nat");
        for rule in &rules {
            if !exists("nat", chain, rule).await? {
                return Ok(false);
            }
        }
        let [nat, filter] = self.jumps();
        Ok(exists(filter.table, filter.from, &filter.rule).await?
            && comes_first(&list(nat.table, nat.from).await?, &format!("-A {} {}", nat.from, nat.rule)))
    }

    async fn install(self) -> Result<(), FirewallError> {
        let Err(error) = self.write().await else { return Ok(()) };
        if self.rush.is_none() {
            return Err(error);
        }
        Self { rush: None, ..self }.write().await?;
        tracing::warn!(
            "the kernel does not keep one pod from connecting in a rush (xt_hashlimit is missing?): {error}"
        );
        Ok(())
    }

    async fn write(self) -> Result<(), FirewallError> {
        for jump in self.jumps() {
            let Jump { table, from, rule } = &jump;
            let (chain, rules) = self.chain(table);
            let mut script = format!("*{table}\n:{chain} - [0:0]\n");
            for rule in rules {
                script += &format!("-A {chain} {rule}\n");
            }
            let current = list(table, from).await?;
            let jumps = our_jumps(&current, from, chain);
            let jump = format!("-A {from} {rule}");
            if jumps != [jump.clone()] || !comes_first(&current, &jump) {
                for old in jumps {
                    script += &format!("{}\n", old.replacen("-A ", "-D ", 1));
                }
                script += &format!("-I {from} 1 {rule}\n");
            }
            restore(&(script + "COMMIT\n")).await?;
        }
        Ok(())
    }

    async fn remove(self) -> Result<(), FirewallError> {
        for Jump { table, from, .. } in self.jumps() {
            let (chain, _) = self.chain(table);
            let arguments = ["-w", LOCK_SECONDS, "-t", table, "-S", chain];
            let ours = run(IPTABLES, &arguments, "").await?;
            if !ours.success {
                if ours.says_missing() {
                    continue;
                }
                return ours.or_error(IPTABLES, &arguments).map(drop);
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

impl Firewall for Iptables {
    fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>> {
        Box::pin(Self::present(*self))
    }

    fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::install(*self))
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::remove(*self))
    }
}

/// Rules of chain `from`, as `-S` prints them, that jump to our `chain`.
fn our_jumps(listed: &str, from: &str, chain: &str) -> Vec<String> {
    let ours = |line: &&str| line.starts_with(&format!("-A {from} ")) && line.ends_with(&format!(" -j {chain}"));
    listed.lines().filter(ours).map(str::to_owned).collect()
}

/// Whether no rule before our `jump` could take its packets: one for the metadata service's very address, as
/// another interceptor would put there. Rules for other addresses, and jumps for all, are left before ours:
/// some CNI plugins insist on the first place, and do nothing with these packets.
fn comes_first(listed: &str, jump: &str) -> bool {
    let address = METADATA_V4.to_string();
    listed.lines().take_while(|line| *line != jump).all(|line| !line.contains(&address))
        && listed.lines().any(|line| line == jump)
}

async fn list(table: &str, chain: &str) -> Result<String, FirewallError> {
    let arguments = ["-w", LOCK_SECONDS, "-t", table, "-S", chain];
    run(IPTABLES, &arguments, "").await?.or_error(IPTABLES, &arguments)
}

/// `-C` says no with status 1; also where the chain is not there.
async fn exists(table: &str, chain: &str, rule: &str) -> Result<bool, FirewallError> {
    let mut arguments = vec!["-w", LOCK_SECONDS, "-t", table, "-C", chain];
    arguments.extend(rule.split(' '));
    let done = run(IPTABLES, &arguments, "").await?;
    match done.code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        // The nft variant's answer where a chain is not there.
        Some(2) if done.says_missing() => Ok(false),
        _ => done.or_error(IPTABLES, &arguments).map(|_| false),
    }
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
    /// Whether it failed because a chain of ours is not there, by the words of either variant.
    fn says_missing(&self) -> bool {
        ["No chain/target/match", "No such file", "Couldn't load target", "does not exist"]
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

    #[test]
    fn our_jump_comes_before_every_rule_for_the_same_address() {
        let jump = "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j KUBE2IRSA";
        let other = "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:81";
        let kube_proxy = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
        let listed = |rules: &[&str]| format!("-P PREROUTING ACCEPT\n{}\n", rules.join("\n"));
        assert!(comes_first(&listed(&[jump, other]), jump));
        assert!(comes_first(&listed(&[kube_proxy, jump, other]), jump));
        assert!(!comes_first(&listed(&[kube_proxy, other, jump]), jump));
        assert!(!comes_first(&listed(&[kube_proxy]), jump));
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
