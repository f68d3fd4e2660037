//! Memory, watches and traffic of the real daemon on a node with 250 pods: in a cluster of this node alone, in a
//! large one, and in one whose service accounts are all in this node's namespaces. Writes `bench/scale.md`.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../cluster/mod.rs"]
mod cluster;
#[path = "../machine.rs"]
mod machine;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use cluster::{
    ACCOUNTS, CLUSTER_ACCOUNTS, CLUSTER_NODES, CLUSTER_PODS, NAMESPACES, PODS,
    objects::{account, account_at, app, pod_elsewhere, pod_here},
};
use nix::sys::signal::Signal;
use sandbox::{
    cloud::KUBERNETES_PORT,
    kubernetes::{Kubernetes, Resource},
    network::{PodNetwork, Process},
    sandbox::{METADATA, Pod, Sandbox, get, wait_until_ready},
};
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const READY: Duration = Duration::from_secs(60);
const FETCHED: Duration = Duration::from_secs(300);
/// What was asked for is done, and what is freed late is free.
const SETTLED: Duration = Duration::from_secs(10);
/// Changes elsewhere in the cluster: 20 a second, every fourth of them of a service account.
const TICK: Duration = Duration::from_millis(50);
const TICKS_A_SECOND: usize = 20;
/// How often an API server forgets what is older than that.
const COMPACTION: Duration = Duration::from_secs(300);
const KIB: f64 = 1024.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cluster {
    /// No pod but the daemon's.
    Idle,
    /// This node's pods and the service accounts of their namespaces.
    Small,
    /// And everything elsewhere.
    Large,
    /// And as many service accounts again, in this node's namespaces.
    Worst,
}

/// In the order of the table.
type Figures = Vec<(String, f64)>;

fn main() -> anyhow::Result<()> {
    let (mut minutes, mut clusters) = (5, Vec::new());
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--minutes" => minutes = arguments.next().context("--minutes: a number is missing")?.parse::<u64>()?,
            "small" => clusters.push(Cluster::Small),
            "large" => clusters.push(Cluster::Large),
            "worst" => clusters.push(Cluster::Worst),
            other => bail!("{other}: try --minutes N, small, large, worst"),
        }
    }
    let all = clusters.is_empty();
    if all {
        clusters = vec![Cluster::Small, Cluster::Large, Cluster::Worst];
    }
    clusters.push(Cluster::Idle);
    clusters.sort();

    let mut bench = Bench::new()?;
    let mut table = Vec::new();
    for cluster in clusters {
        println!("{cluster:?} …");
        bench.fill(cluster)?;
        table.push((cluster, bench.measure(cluster, Duration::from_secs(60 * minutes))?));
    }
    let table = self::table(&table, minutes)?;
    print!("{table}");
    if all {
        fs::write(machine::SCALE, format!("{}\n```text\n{table}```\n", machine::described()?))?;
    }
    Ok(())
}

struct Bench {
    sandbox: Sandbox,
    pods: Vec<Pod>,
    filled: Cluster,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let sandbox = Sandbox::new(PodNetwork::Routed, &mut |line| println!("{line}"))?;
        Ok(Self { sandbox, pods: Vec::new(), filled: Cluster::Idle })
    }

    fn kubernetes(&self) -> &Kubernetes {
        &self.sandbox.cloud.kubernetes
    }

    /// Adds what `cluster` has and the one before it has not.
    fn fill(&mut self, cluster: Cluster) -> anyhow::Result<()> {
        if self.filled < Cluster::Small && cluster >= Cluster::Small {
            self.pods = cluster::fill_node(&self.sandbox)?;
        }
        let kubernetes = self.kubernetes();
        if self.filled < Cluster::Large && cluster >= Cluster::Large {
            cluster::fill_other_namespaces(&self.sandbox);
            for node in 0..CLUSTER_NODES {
                kubernetes.create_node(&format!("ip-10-0-{node}"));
            }
            for at in 0..CLUSTER_PODS {
                kubernetes.restore(Resource::Pods, pod_elsewhere(at, 0));
            }
        }
        if self.filled < Cluster::Worst && cluster >= Cluster::Worst {
            for at in NAMESPACES * ACCOUNTS..CLUSTER_ACCOUNTS {
                let number = ACCOUNTS + at / NAMESPACES;
                kubernetes.restore(Resource::ServiceAccounts, account(at % NAMESPACES, number, 0));
            }
        }
        kubernetes.compact();
        self.filled = self.filled.max(cluster);
        Ok(())
    }

    fn measure(&self, cluster: Cluster, window: Duration) -> anyhow::Result<Figures> {
        let mut figures = Figures::new();
        let (requests, sent) = (self.kubernetes().requests().len(), self.kubernetes().bytes_sent());
        let command = self.sandbox.daemon(Path::new(env!("CARGO_BIN_EXE_kube2irsa")));
        let mut daemon = command.stderr(Stdio::null()).spawn()?;
        let wire = received(daemon.id())?;
        wait_until_ready(self.sandbox.node(), &mut daemon, READY).map_err(anyhow::Error::msg)?;
        std::thread::sleep(SETTLED);
        self.memory("ready", &daemon, &mut figures)?;
        self.traffic("until ready", &["list", "watch"], requests, &sent, 1.0, &mut figures);
        figures.push(("wire, KiB, until ready".to_owned(), (received(daemon.id())? - wire) / KIB));
        if cluster == Cluster::Idle {
            return Ok(figures);
        }

        for pod in &self.pods {
            fetch(pod)?;
        }
        std::thread::sleep(SETTLED);
        self.memory("250 documents", &daemon, &mut figures)?;
        self.traffic("until 250 documents", &["create"], requests, &sent, 1.0, &mut figures);

        let (requests, sent) = (self.kubernetes().requests().len(), self.kubernetes().bytes_sent());
        let (wire, cpu) = (received(daemon.id())?, cpu_seconds(daemon.id())?);
        self.churn(cluster, window);
        let hours = window.as_secs_f64() / 3600.0;
        self.traffic("an hour", &["list", "watch", "create"], requests, &sent, hours, &mut figures);
        figures.push(("wire, KiB, an hour".to_owned(), (received(daemon.id())? - wire) / KIB / hours));
        figures.push(("CPU, s, an hour".to_owned(), (cpu_seconds(daemon.id())? - cpu) / hours));
        self.memory("at the end", &daemon, &mut figures)?;
        daemon.signal(Signal::SIGTERM)?;
        daemon.wait()?;
        Ok(figures)
    }

    /// What happens elsewhere, 20 times a second, and a little here.
    fn churn(&self, cluster: Cluster, window: Duration) {
        let kubernetes = self.kubernetes();
        let begin = Instant::now();
        let mut compactions = VecDeque::from([(begin, kubernetes.resource_version())]);
        let ticks = window.as_millis() / TICK.as_millis();
        for tick in 0..usize::try_from(ticks).unwrap_or(usize::MAX) {
            let next = begin + TICK * u32::try_from(tick).unwrap_or(u32::MAX);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let revision = tick + 1;
            if cluster >= Cluster::Large {
                if tick % 4 == 0 {
                    let elsewhere = CLUSTER_ACCOUNTS - NAMESPACES * ACCOUNTS;
                    let at = NAMESPACES * ACCOUNTS + tick * 7 % elsewhere;
                    kubernetes.restore(Resource::ServiceAccounts, account_at(at, revision));
                } else {
                    kubernetes.restore(Resource::Pods, pod_elsewhere(tick * 31 % CLUSTER_PODS, revision));
                }
            }
            if tick % (10 * TICKS_A_SECOND) == 0 {
                let at = tick / (10 * TICKS_A_SECOND) % PODS;
                kubernetes.restore(Resource::Pods, pod_here(&self.pods[at], &app(at / NAMESPACES), revision));
            }
            if tick % (60 * TICKS_A_SECOND) == 0 {
                // One that no pod here uses.
                let at = tick / (60 * TICKS_A_SECOND) % NAMESPACES;
                kubernetes.restore(Resource::ServiceAccounts, account(at, ACCOUNTS - 1, revision));
            }
            if compactions.back().is_some_and(|(at, _)| at.elapsed() >= COMPACTION) {
                compactions.push_back((Instant::now(), kubernetes.resource_version()));
                if let Some((_, before)) = compactions.pop_front() {
                    kubernetes.compact_to(before);
                }
            }
        }
    }

    fn memory(&self, when: &str, daemon: &Process, figures: &mut Figures) -> anyhow::Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.id()))?;
        for (name, field) in [("RSS", "VmRSS"), ("RSS, anonymous", "RssAnon"), ("RSS, peak", "VmHWM")] {
            figures.push((format!("{name}, KiB, {when}"), field_of(&status, field)?));
        }
        figures.push((format!("threads, {when}"), field_of(&status, "Threads")?));
        figures.push((format!("connections to the API server, {when}"), connections(daemon.id())?));
        let watches = self.kubernetes().open_watches();
        for resource in ["pods", "serviceaccounts", "namespaces"] {
            let open = watches.iter().filter(|watch| watch.resource == resource).count();
            figures.push((format!("watches of {resource}, {when}"), number(open)));
        }
        Ok(())
    }

    /// Requests of these verbs and bytes of their bodies since then, divided by `by`.
    fn traffic(
        &self,
        when: &str,
        verbs: &[&str],
        requests: usize,
        sent: &BTreeMap<(String, String), u64>,
        by: f64,
        figures: &mut Figures,
    ) {
        let mut counts = BTreeMap::new();
        for request in self.kubernetes().requests().into_iter().skip(requests) {
            if verbs.contains(&request.verb.as_str()) {
                *counts.entry((request.verb, request.resource)).or_insert(0) += 1;
            }
        }
        for ((verb, resource), count) in counts {
            figures.push((format!("{verb} {resource}, requests, {when}"), number(count) / by));
        }
        for (of, now) in self.kubernetes().bytes_sent() {
            let more = now - sent.get(&of).copied().unwrap_or_default();
            if more > 0 && verbs.contains(&of.0.as_str()) {
                let more = f64::from(u32::try_from(more).unwrap_or(u32::MAX)) / KIB / by;
                figures.push((format!("{} {}, KiB, {when}", of.0, of.1), more));
            }
        }
    }
}

/// Asks as a pod does, until it gets its credentials.
fn fetch(pod: &Pod) -> anyhow::Result<()> {
    let deadline = Instant::now() + FETCHED;
    while Instant::now() < deadline {
        if let Ok((200, role)) = get(pod.network(), METADATA, ROLES)
            && let Ok((200, _)) = get(pod.network(), METADATA, &format!("{ROLES}{role}"))
        {
            return Ok(());
        }
    }
    bail!("no credentials for {}/{}", pod.namespace, pod.name)
}

/// A field of `/proc/PID/status` or the like, without its unit.
fn field_of(text: &str, field: &str) -> anyhow::Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value =
        value.and_then(|value| value.split_whitespace().next()).with_context(|| format!("{field} is missing"))?;
    Ok(value.parse()?)
}

/// TCP connections that are established with the API server.
fn connections(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let port = format!(":{KUBERNETES_PORT:04X}");
    let open = text.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&port)) && fields.next() == Some("01")
    });
    Ok(number(open.count()))
}

/// Bytes that came to the node from outside, of all its connections and with all headers.
fn received(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(sandbox::network::UPLINK)?.strip_prefix(':'));
    let bytes = line.and_then(|line| line.split_whitespace().next()).context("the uplink is missing")?;
    Ok(bytes.parse()?)
}

/// Time on a CPU, user and system, of all threads.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().context("schedstat is empty")?.parse::<f64>()? / 1e9;
    }
    Ok(total)
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn table(figures: &[(Cluster, Figures)], minutes: u64) -> anyhow::Result<String> {
    let get = |figures: &Figures, name: &str| figures.iter().find(|(of, _)| of == name).map(|(_, figure)| *figure);
    let by = |cluster: Cluster| figures.iter().find(|(of, _)| *of == cluster).map(|(_, figures)| figures);
    let mut names = Vec::new();
    for (name, _) in figures.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let clusters = [Cluster::Idle, Cluster::Small, Cluster::Large, Cluster::Worst];
    let mut text = String::new();
    let mut row = |name: &str, cells: [String; 5]| {
        let cells = cells.iter().map(|cell| format!("{cell:>10}")).collect::<String>();
        writeln!(text, "{}", format!("{name:<58}{cells}").trim_end())
    };
    row("", ["idle", "small", "large", "worst", "large:small"].map(str::to_owned))?;
    let format = |figure: Option<f64>| figure.map(|figure| format!("{figure:.1}").trim_end_matches(".0").to_owned());
    for name in names {
        let of = |cluster| by(cluster).and_then(|figures| get(figures, name));
        let ratio = of(Cluster::Large).zip(of(Cluster::Small)).map(|(large, small)| format!("{:.2}", large / small));
        let [idle, small, large, worst] = clusters.map(|cluster| format(of(cluster)).unwrap_or_default());
        row(name, [idle, small, large, worst, ratio.unwrap_or_default()])?;
    }
    let rss = |cluster, name| by(cluster).and_then(|figures| get(figures, name));
    let over = |cluster: Cluster| {
        let end = rss(cluster, "RSS, KiB, at the end")?;
        Some((end - rss(Cluster::Idle, "RSS, KiB, ready")?) / KIB)
    };
    let [_, small, large, worst] = clusters.map(|cluster| format(over(cluster)).unwrap_or_default());
    row("RSS over idle, MiB (may be 20)", [String::new(), small, large, worst, String::new()])?;
    let account_bytes = account(0, 0, 0).to_string().len();
    writeln!(
        text,
        "{PODS} pods in {NAMESPACES} namespaces of {ACCOUNTS} service accounts each, {account_bytes} bytes an account"
    )?;
    writeln!(text, "an hour: by what {minutes} minutes showed")?;
    Ok(text)
}
