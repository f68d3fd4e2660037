//! What a pod notices while something goes on at its node: it is not known, one daemon follows another, rules are flushed,
//! the daemon starts.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use sandbox::{
    cloud::NODE_ROLE,
    sandbox::{Pod, Sandbox},
};

use crate::{
    place::{Place, UNLIMITED},
    report::{Report, count, largest, milliseconds, percentile},
    support::{Daemon, ROLE_NAME, ask, connect, eventually, http::Connection, rules},
};

const UNKNOWN: usize = 10;
const CLIENTS: usize = 32;
const UPGRADES: usize = 3;
const FLUSHES: usize = 10;
const STARTS: usize = 20;
/// Not all at the same moment of the daemon's own clock.
const BETWEEN_FLUSHES: Duration = Duration::from_millis(130);

pub(crate) fn unknown_address(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    let _daemon = Daemon::ready(&place.sandbox, &[]);
    let pod = place.sandbox.start_pod("team-a", "unknown", "web")?;
    let mut times = Vec::new();
    for status in [503, 404] {
        for _ in 0..UNKNOWN {
            let start = Instant::now();
            let answer = ask(&pod, "GET", ROLE_NAME, &[])?;
            times.push(milliseconds(start.elapsed()));
            ensure!(answer.status == status, "an address that is not known was answered {}", answer.status);
        }
        // Now its address is nobody's.
        place.sandbox.cloud.kubernetes.delete_pod("team-a", "unknown");
        thread::sleep(Duration::from_secs(1));
    }
    report.at_most("unknown address, the latest answer of 20, ms", largest(&times), 950.0);
    Ok(())
}

/// Counts of what clients saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

/// Tells clients to stop, also when what they were watching failed.
struct Stop<'a>(&'a Seen);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// Asks without pause: on one connection for as long as it lasts, or on a new one each time.
    fn ask(&self, pod: &Pod, keeps: bool, path: &str) {
        let mut kept = None;
        while !self.stop.load(Ordering::Relaxed) {
            let answered = one(pod, kept.take(), path);
            let counter = if answered.is_ok() { &self.answered } else { &self.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            kept = answered.ok().flatten().filter(|_| keeps);
        }
    }
}

/// One request, on this connection or a new one, which is given back if it may be used again.
fn one(pod: &Pod, kept: Option<Connection>, path: &str) -> io::Result<Option<Connection>> {
    let mut connection = kept.map_or_else(|| connect(pod), Ok)?;
    connection.send("GET", path, &[])?;
    let answer = connection.answer()?;
    if answer.status != 200 {
        return Err(io::Error::other(answer.status.to_string()));
    }
    Ok((answer.header("connection") != Some("close")).then_some(connection))
}

pub(crate) fn rolling_upgrade(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    // So many connections in a minute use up the ports that there are by default.
    place.pod.network().set(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "1024 65535")])?;
    let start = || Daemon::started(&place.sandbox, &UNLIMITED);
    let mut daemon = Daemon::ready(&place.sandbox, &UNLIMITED);
    eventually("credentials", || ask(&place.pod, "GET", ROLE_NAME, &[]).is_ok_and(|answer| answer.status == 200));
    let seen = Seen::default();
    thread::scope(|scope| {
        let _stop = Stop(&seen);
        for client in 0..CLIENTS {
            let (seen, pod) = (&seen, &place.pod);
            scope.spawn(move || seen.ask(pod, client % 2 == 0, ROLE_NAME));
        }
        for upgrade in 1..=UPGRADES {
            let next = start();
            // Both write to one log.
            for says in ["took over from the daemon that ran here", "handed over to the next daemon"] {
                eventually(says, || next.log().matches(says).count() == upgrade);
            }
            std::mem::replace(&mut daemon, next).stop();
            daemon.wait_until_ready(&place.sandbox);
        }
    });
    report.noted("3 rolling upgrades under load, requests answered", count(seen.answered.into_inner()));
    report.exactly("the same, requests that failed", seen.failed.into_inner(), 0);
    Ok(())
}

pub(crate) fn rules_flushed(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    let node_role = format!("{ROLE_NAME}{NODE_ROLE}");
    let exposed = ask(&place.pod, "GET", &node_role, &[])?;
    ensure!(exposed.status == 200, "without us a pod must get the node's role");
    let _daemon = Daemon::ready(&place.sandbox, &[]);
    let whole = ours(&place.sandbox);
    let before = place.sandbox.cloud.imds.credential_requests();
    let (mut back, seen) = (Vec::new(), Seen::default());
    thread::scope(|scope| -> anyhow::Result<()> {
        let _stop = Stop(&seen);
        for client in 0..3 {
            let (seen, pod, path) = (&seen, &place.pod, &node_role);
            scope.spawn(move || seen.ask(pod, client == 0, path));
        }
        for _ in 0..FLUSHES {
            thread::sleep(BETWEEN_FLUSHES);
            ensure!(place.sandbox.node().command("nft").args(["flush", "ruleset"]).status()?.success());
            let flushed = Instant::now();
            eventually("the rules are back", || ours(&place.sandbox) == whole);
            back.push(milliseconds(flushed.elapsed()));
        }
        Ok(())
    })?;
    let reached = place.sandbox.cloud.imds.credential_requests() - before;
    report.noted("rules flushed 10 times, back after, p50, ms", percentile(&back, 50));
    report.at_most("the same, the longest", largest(&back), 1_000.0);
    report.noted("the same, requests for the node's role meanwhile", count(seen.failed.into_inner()));
    report.exactly("the same, of which reached the real service", usize::try_from(reached)?, 0);
    report.exactly("the same, of which were answered", seen.answered.into_inner(), 0);
    Ok(())
}

/// The lines of the node's rules that are ours.
fn ours(sandbox: &Sandbox) -> Vec<String> {
    let rules = rules(sandbox);
    let is_ours = |line: &&str| ["kube2irsa", "KUBE2IRSA", "prohibit", "dnat"].iter().any(|word| line.contains(word));
    rules.lines().filter(is_ours).map(str::to_owned).collect()
}

pub(crate) fn start(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let daemon = Daemon::ready(&place.sandbox, &[]);
        times.push(milliseconds(start.elapsed()));
        daemon.stop();
    }
    report.at_most("start of the process to ready, p50 of 20, ms", percentile(&times, 50), 500.0);
    report.noted("the same, the longest", largest(&times));
    Ok(())
}
