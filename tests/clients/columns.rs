//! What is tried with each client, and what must come of it.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use sandbox::{
    cloud::{ACCOUNT, INSTANCE_ID, NODE_ROLE},
    sts::{Fault, Which},
};

use crate::{
    catalogue::Client,
    cluster::{Cluster, NAMESPACE, Rounds, Run, for_each, is_well, role},
    support::Daemon,
    wire::{Traffic, Wire},
};

/// What a client may take, however slow the machine and however patient the client.
const LIMIT: Duration = Duration::from_secs(120);
/// How many are tried at once: as many as do not keep each other from answering in time on two cores.
const AT_ONCE: usize = 3;
/// How often a client is tried that is to be in time.
const TRIES: u32 = 3;
/// How long sessions live where they are to be renewed: as short as STS opens them. With shorter ones the test would be of
/// what no client meets: botocore and the SDK for C++ go on with keys for up to five minutes without a look at their end.
pub(crate) const LIFE: Duration = Duration::from_secs(900);
/// How often, and how far apart, a client asks meanwhile, and a little longer.
const THROUGH_A_LIFE: Rounds = Rounds { count: 101, pause: Duration::from_secs(10) };
/// How long STS is away.
pub(crate) const OUTAGE: Duration = Duration::from_secs(40);
/// How often, and how far apart, a client asks while STS is away and comes back, until it was answered well often enough.
const ENDLESS: Rounds = Rounds { count: 10_000, pause: Duration::from_secs(1) };
const ENOUGH: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// STS answers at once, to a pod whose credentials nobody has asked for before.
    Cold0,
    /// It takes 0.7 s.
    Cold700,
    /// It takes 1.7 s.
    Cold1700,
    /// Sessions end while the client lives.
    Renewal,
    /// STS is away when the client starts, and comes back.
    Outage,
    /// Only version 2 of the service's protocol is answered.
    V2Required,
    /// The service account has no role.
    NoRole,
}

/// What came of one client in one column.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) client: &'static Client,
    /// `Err`: what is not as it should be.
    pub(crate) verdict: Result<(), String>,
    /// What there is to tell.
    pub(crate) told: String,
    pub(crate) traffic: Traffic,
}

impl Column {
    pub(crate) const ALL: [Self; 7] =
        [Self::Cold0, Self::Cold700, Self::Cold1700, Self::Renewal, Self::Outage, Self::V2Required, Self::NoRole];

    /// Whether the time that it took is what there is to tell.
    pub(crate) fn is_timed(self) -> bool {
        matches!(self, Self::Cold0 | Self::Cold700 | Self::Cold1700)
    }

    /// Tries all these clients.
    pub(crate) fn run(self, clients: &[&'static Client]) -> Vec<Cell> {
        let cells = match self {
            Self::Cold0 => cold_in_time(clients, Duration::ZERO),
            Self::Cold700 => cold_in_time(clients, Duration::from_millis(700)),
            Self::Cold1700 => cold_in_time(clients, Duration::from_millis(1700)),
            Self::Renewal => renewal(clients),
            Self::Outage => outage(clients),
            Self::V2Required => cold(clients, AT_ONCE, Duration::ZERO, &["--require-imdsv2"]),
            Self::NoRole => no_role(clients),
        };
        for cell in &cells {
            println!("{self} {cell}");
        }
        cells
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cold0 => "cold start",
            Self::Cold700 => "cold start, STS 0.7 s",
            Self::Cold1700 => "cold start, STS 1.7 s",
            Self::Renewal => "renewal",
            Self::Outage => "STS away, then back",
            Self::V2Required => "v2 required",
            Self::NoRole => "no role",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.client.name;
        match &self.verdict {
            Ok(()) => write!(f, "{name}: {} [{}]", self.told, self.traffic.story()),
            Err(error) => {
                write!(f, "{name}: NOT AS IT SHOULD BE: {error} [{}]", self.traffic.story())?;
                self.traffic.exchanges.iter().try_for_each(|exchange| write!(f, "\n    {exchange}"))
            }
        }
    }
}

/// Without us each client gets the node's role: it does look at the metadata service.
pub(crate) fn without_us(clients: &[&'static Client]) -> Vec<(&'static Client, Result<(), String>)> {
    let cluster = Cluster::new(clients);
    let node = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{NODE_ROLE}/{INSTANCE_ID}");
    for_each(clients, AT_ONCE, |client| {
        let pod = cluster.pod(client);
        let run = cluster.start(client, &pod, Rounds::ONE).end(LIMIT);
        is_only(&cluster.identities(client, &run), &node, &run)
    })
}

/// A pod that nobody knew before; its service account becomes known, and STS is asked, with the client's first packet.
fn cold(clients: &[&'static Client], at_once: usize, latency: Duration, flags: &[&str]) -> Vec<Cell> {
    let cluster = Cluster::new(clients);
    let _daemon = Daemon::ready(&cluster.sandbox, flags);
    cluster.sandbox.cloud.sts.faults().set_latency(latency);
    let cells = for_each(clients, at_once, |client| {
        let pod = cluster.pod(client);
        let kubernetes = cluster.sandbox.cloud.kubernetes.clone();
        let wire = Wire::tap(&pod, move || {
            kubernetes.apply_service_account(NAMESPACE, client.name, &[("eks.amazonaws.com/role-arn", &role(client))]);
        });
        let run = cluster.start(client, &pod, Rounds::ONE).end(LIMIT);
        let traffic = wire.end();
        let verdict = is_its_own(&cluster, client, &run);
        let told = match traffic.span() {
            Some(span) if verdict.is_ok() => format!("{:.2} s", span.as_secs_f64()),
            _ => run.last_words(),
        };
        (verdict, told, traffic)
    });
    collect(cells)
}

/// The same, and what is late is tried again, alone: the machine may have been busy with other things.
fn cold_in_time(clients: &[&'static Client], latency: Duration) -> Vec<Cell> {
    let mut cells = cold(clients, AT_ONCE, latency, &[]);
    for _ in 1..TRIES {
        for cell in cells.iter_mut().filter(|cell| cell.verdict.is_err()) {
            println!("tried again: {cell}");
            *cell = cold(&[cell.client], 1, latency, &[]).remove(0);
        }
    }
    cells
}

/// Long enough for a pod's credentials to be there before it asks.
const FETCHED_AHEAD: Duration = Duration::from_secs(3);

/// The shortest sessions, and a process that goes on for longer.
fn renewal(clients: &[&'static Client]) -> Vec<Cell> {
    let clients = living(clients);
    let cluster = Cluster::new(&clients);
    let shortest = ("kube2irsa.io/session-duration", &*LIFE.as_secs().to_string());
    clients.iter().for_each(|client| cluster.annotate(client, &[shortest]));
    // So many pods at once are more than a node's share of STS has for them within a second; the start is not tried here.
    let _daemon = Daemon::ready(&cluster.sandbox, &["--sts-rate", "100", "--sts-burst", "100"]);
    let cells = for_each(&clients, clients.len(), |client| {
        let pod = cluster.pod(client);
        let wire = Wire::tap(&pod, || ());
        thread::sleep(FETCHED_AHEAD);
        let run = cluster.start(client, &pod, THROUGH_A_LIFE).end(LIFE + 4 * LIMIT);
        let traffic = wire.end();
        let failures = run.errors();
        let span = span(&run);
        let verdict = if failures > 0 {
            Err(format!("{failures} of {} failed: {}", run.lines.len(), run.last_words()))
        } else if span < LIFE {
            Err(format!("it did not outlive a session: {}", run.last_words()))
        } else {
            is_its_own(&cluster, client, &run)
        };
        let told = format!("credentials {} times in {} s", traffic.keys(), span.as_secs());
        (verdict, told, traffic)
    });
    collect(cells)
}

/// STS answers nobody when the client starts, and is back later: the same process goes on, or the next one does.
fn outage(clients: &[&'static Client]) -> Vec<Cell> {
    let cluster = Cluster::new(clients);
    let faults = cluster.sandbox.cloud.sts.faults();
    faults.fail_action("AssumeRoleWithWebIdentity", Fault::ServiceUnavailable, Which::All);
    clients.iter().for_each(|client| cluster.annotate(client, &[]));
    let _daemon = Daemon::ready(&cluster.sandbox, &[]);
    let back = Instant::now() + OUTAGE;
    let cells = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(back.saturating_duration_since(Instant::now()));
            faults.clear();
        });
        for_each(clients, clients.len(), |client| {
            let pod = cluster.pod(client);
            let (wire, tapped) = (Wire::tap(&pod, || ()), Instant::now());
            let run = cluster.start(client, &pod, ENDLESS).end_when(OUTAGE + LIMIT, |lines| {
                client.lives && lines.iter().filter(|(_, line)| is_well(line)).count() >= ENOUGH
            });
            let traffic = wire.end();
            if traffic.contact.is_none_or(|contact| tapped + contact >= back) {
                return (Err("it did not start while STS was away".to_owned()), run.last_words(), traffic);
            }
            let well = if client.lives { run.first_well() } else { run.succeeded().then(Instant::now) };
            if let Some(at) = well {
                let after = at.saturating_duration_since(back).as_secs_f64();
                let errors = run.errors();
                let told = format!("the same process is well, {after:.1} s after STS ({errors} errors before)");
                return (is_only_its_own(&cluster, client, &run), told, traffic);
            }
            let first = format!("after {:.0} s: {}", run.took.as_secs_f64(), run.last_words());
            if client.lives {
                return (Err(run.last_words()), first, traffic);
            }
            thread::sleep(back.saturating_duration_since(Instant::now()));
            let next = || cluster.start(client, &pod, Rounds::ONE).end(LIMIT);
            let mut last = next();
            while !last.succeeded() && back.elapsed() < LIMIT {
                thread::sleep(ENDLESS.pause);
                last = next();
            }
            let after = back.elapsed().as_secs_f64();
            let told = format!("a later process is well, {after:.1} s after STS (the first failed {first})");
            (is_its_own(&cluster, client, &last), told, traffic)
        })
    });
    collect(cells)
}

/// A pod that is to get nothing, and gets nothing.
fn no_role(clients: &[&'static Client]) -> Vec<Cell> {
    let cluster = Cluster::new(clients);
    clients.iter().for_each(|client| cluster.sandbox.annotate(NAMESPACE, client.name, &[]));
    let _daemon = Daemon::ready(&cluster.sandbox, &[]);
    let cells = for_each(clients, AT_ONCE, |client| {
        let pod = cluster.pod(client);
        let wire = Wire::tap(&pod, || ());
        let run = cluster.start(client, &pod, Rounds::ONE).end(LIMIT);
        let traffic = wire.end();
        let identities = cluster.identities(client, &run);
        let verdict = if identities.is_empty() && !run.succeeded() && run.status.is_some() {
            Ok(())
        } else {
            Err(format!("{identities:?}: {}", run.last_words()))
        };
        (verdict, format!("after {:.1} s: {}", run.took.as_secs_f64(), run.last_words()), traffic)
    });
    collect(cells)
}

fn living(clients: &[&'static Client]) -> Vec<&'static Client> {
    clients.iter().copied().filter(|client| client.lives).collect()
}

/// A verdict, what there is to tell, and what was said on the wire.
type Seen = (Result<(), String>, String, Traffic);

fn collect(cells: Vec<(&'static Client, Seen)>) -> Vec<Cell> {
    let cell = |(client, (verdict, told, traffic))| Cell { client, verdict, told, traffic };
    cells.into_iter().map(cell).collect()
}

/// Between the first line and the last.
fn span(run: &Run) -> Duration {
    match (run.lines.first(), run.lines.last()) {
        (Some((first, _)), Some((last, _))) => *last - *first,
        _ => Duration::ZERO,
    }
}

/// It ended well, and was the session of its own pod all along.
fn is_its_own(cluster: &Cluster, client: &Client, run: &Run) -> Result<(), String> {
    is_only_its_own(cluster, client, run)?;
    if run.succeeded() { Ok(()) } else { Err(run.last_words()) }
}

fn is_only_its_own(cluster: &Cluster, client: &Client, run: &Run) -> Result<(), String> {
    let session = cluster.session(client).ok_or_else(|| format!("STS opened no session: {}", run.last_words()))?;
    assert!(session.contains(&format!("/{NAMESPACE}.{}-0-", client.name)), "{session}");
    is_only(&cluster.identities(client, run), &session, run)
}

fn is_only(identities: &[String], wanted: &str, run: &Run) -> Result<(), String> {
    match identities.iter().find(|identity| *identity != wanted) {
        Some(other) => Err(format!("it is {other} and should be {wanted}")),
        None if identities.is_empty() => Err(run.last_words()),
        None => Ok(()),
    }
}
