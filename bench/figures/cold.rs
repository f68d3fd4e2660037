//! Pods whose credentials are not there yet: a thousand callers of one, and a full node at once. And what such a node
//! costs in memory, which is read when all have theirs.

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sandbox::{
    network::PodNetwork,
    sandbox::{METADATA, Pod, Sandbox, get},
    sts::Call,
};

use crate::{
    cluster::{PODS, fill_node, fill_other_namespaces},
    place::{DOCUMENT, Place, UNLIMITED},
    report::{Report, count, largest},
    support::{Daemon, ROLE_NAME, connect, eventually, http::Answer},
};

const CALLERS: usize = 1_000;
/// The defaults of the daemon's flags for STS.
const RATE: usize = 5;
const BURST: usize = 20;
const CONCURRENCY: usize = 16;
/// How long STS takes: so many calls are in flight at the same time.
const EXCHANGE: Duration = Duration::from_millis(500);
const SETTLED: Duration = Duration::from_secs(10);
const KIB: f64 = 1024.0;

pub(crate) fn a_thousand_callers(report: &mut Report) -> anyhow::Result<()> {
    let most = getrlimit(Resource::RLIMIT_NOFILE)?.1;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    for (trusted, what, status) in [("team-a", "answers", 200), ("team-b", "errors", 503)] {
        let place = Place::new()?;
        let sandbox = &place.sandbox;
        // Until its role is named nothing can be fetched, and the connections can be opened.
        let role = sandbox.add_service_account("team-a", "web", "web")?;
        sandbox.cloud.sts.put_role(&role, sandbox.trust_policy(&format!("system:serviceaccount:{trusted}:web")))?;
        sandbox.annotate("team-a", "web", &[]);
        let _daemon = Daemon::ready(sandbox, &UNLIMITED);
        let mut connections =
            (0..CALLERS).map(|_| connect(&place.pod)).collect::<Result<Vec<_>, _>>().context("connections")?;
        sandbox.cloud.sts.faults().hold();
        sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", &role)]);
        eventually("STS is asked", || sandbox.cloud.sts.faults().held() == 1);
        for connection in &mut connections {
            connection.send("GET", DOCUMENT, &[])?;
        }
        sandbox.cloud.sts.faults().release();
        let answers = connections.iter_mut().map(|connection| connection.answer()).collect::<Result<Vec<_>, _>>()?;
        let first = &answers[0];
        let same = |answer: &&Answer| answer.status == status && answer.body == first.body;
        let equal = answers.iter().filter(same).count();
        report.exactly(&format!("1,000 callers of one cold slot, equal {what}"), equal, CALLERS);
        report.exactly("the same, calls of STS", sandbox.cloud.sts.calls().len(), 1);
    }
    Ok(())
}

pub(crate) fn a_full_node(report: &mut Report) -> anyhow::Result<()> {
    let sandbox = Sandbox::new(PodNetwork::Routed, &mut |line| println!("{line}"))?;
    let idle = Daemon::ready(&sandbox, &[]);
    std::thread::sleep(SETTLED);
    let idle_memory = resident(&idle)?;
    idle.stop();
    let pods = fill_node(&sandbox)?;
    fill_other_namespaces(&sandbox);
    sandbox.cloud.kubernetes.compact();
    sandbox.cloud.sts.faults().set_latency(EXCHANGE);
    let start = Instant::now();
    let daemon = Daemon::started(&sandbox, &[]);
    // What the budget lets through, and one call's time.
    let within = Duration::from_secs(((PODS - BURST) / RATE).try_into()?) + EXCHANGE;
    let mut called = 0;
    while called < PODS && start.elapsed() < 2 * within {
        std::thread::sleep(Duration::from_millis(50));
        called = sandbox.cloud.sts.calls().len();
    }
    let took = start.elapsed();
    // The last one's is on its way.
    std::thread::sleep(2 * EXCHANGE);
    let calls = sandbox.cloud.sts.calls();
    report.at_most(
        "250 cold pods at once, seconds until all are fetched",
        took.as_secs_f64(),
        within.as_secs_f64() + 1.0,
    );
    report.exactly("the same, pods that have their own credentials", served(&pods), PODS);
    report.exactly("the same, sessions that were opened", sessions(&calls), PODS);
    report.exactly("the same, calls of STS", calls.len(), PODS);
    report.exactly("the same, of which failed", calls.iter().filter(|call| call.outcome != "Success").count(), 0);
    report.at_most("the same, calls in any second", count(in_a_second(&calls)), count(BURST + RATE));
    report.at_most("the same, calls in flight at once", count(sandbox.cloud.sts.most_in_flight()), count(CONCURRENCY));
    std::thread::sleep(SETTLED);
    let over_idle = (resident(&daemon)? - idle_memory) / KIB;
    report.noted("resident memory of an idle process, MiB", idle_memory / KIB);
    report.at_most("250 pods in 30 namespaces, 50,000 ServiceAccounts: memory over idle, MiB", over_idle, 20.0);
    Ok(())
}

/// How many of the pods get a document, each another one.
fn served(pods: &[Pod]) -> usize {
    let document = |pod: &Pod| {
        let (status, role) = get(pod.network(), METADATA, ROLE_NAME).ok()?;
        let (of_document, document) = get(pod.network(), METADATA, &format!("{ROLE_NAME}{role}")).ok()?;
        ((status, of_document) == (200, 200)).then_some(document)
    };
    pods.iter().filter_map(document).collect::<HashSet<_>>().len()
}

fn sessions(calls: &[Call]) -> usize {
    let opened = calls.iter().filter(|call| call.outcome == "Success");
    opened.map(|call| (&call.role, &call.session_name)).collect::<HashSet<_>>().len()
}

/// The most calls within any second.
fn in_a_second(calls: &[Call]) -> usize {
    let within = |first: &Call| {
        let span = |call: &&Call| call.at >= first.at && call.at - first.at < Duration::from_secs(1);
        count(calls.iter().filter(span).count())
    };
    largest(&calls.iter().map(within).collect::<Vec<_>>()) as usize
}

/// KiB.
fn resident(daemon: &Daemon) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib = line.split_whitespace().next().context("no number")?;
    ensure!(line.ends_with("kB"), "{line}");
    Ok(kib.parse()?)
}
