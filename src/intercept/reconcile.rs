//! Keeps guard and redirect in place: looks whenever the kernel announces a change of rules, and once in a while in any
//! case, and puts back what is missing. Takes the first way to redirect that works.
//!
//! The guard comes first and waits for nothing: what redirects may hang, and is looked after beside it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::BoxStream};
use prometheus::IntGauge;
use tokio::sync::watch;

use super::{
    Firewall, FirewallError, Part, Redirection, Rush, announcements,
    guard::Guard,
    host::{self, HostInterception},
    obstacles::{self, Arrival, Obstacle},
    plan::{self, Backend, Wanted},
};
use crate::{
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// Where a flush of rules is announced to nobody; a look takes milliseconds.
const INTERVAL: Duration = Duration::from_millis(800);
/// Where it is.
const LONG_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at routing rules that change without pause, and at tables.
const ROUTING_PAUSE: Duration = Duration::from_millis(20);
const TABLES_PAUSE: Duration = Duration::from_millis(200);
/// A command that hangs must not leave us believing that all is well.
const TIME_LIMIT: Duration = Duration::from_secs(15);
/// How long a way may take to be put in place, before the next one is tried.
const WAY_TIME_LIMIT: Duration = Duration::from_secs(10);
/// How often rules are written that are not there afterwards, before it is said that they cannot be had.
const WRITTEN_AT_MOST: u32 = 3;
/// How long what is beside the redirect may keep it waiting.
const BESIDE_TIME_LIMIT: Duration = Duration::from_secs(2);

/// What keeps pods' requests coming here, and nowhere else.
#[derive(Debug)]
pub struct Interception {
    /// The addresses whose requests come to us.
    pub addresses: Arc<[IpAddr]>,
    /// Where we listen for them.
    pub listening: Vec<SocketAddr>,
    /// How many connections one pod may begin.
    pub rush: Rush,
    /// How they are redirected.
    pub wanted: Wanted,
    /// How those of pods on the node's network are, if they are.
    pub host: Option<HostInterception>,
}

/// Puts all in place, and then keeps it there; never ends.
pub async fn keep(interception: &Interception, readiness: &Readiness, metrics: &Metrics) {
    let (stands, mut stood) = watch::channel(false);
    let redirect = async {
        // It would be of use also without the guard.
        let _ = tokio::time::timeout(TIME_LIMIT, stood.wait_for(|stands| *stands)).await;
        keep_redirect(interception, readiness, metrics).await;
    };
    let host = async {
        match &interception.host {
            Some(host) => host::keep(host, || redirection(interception), readiness, metrics).await,
            None => remove_host_rules(readiness).await,
        }
    };
    tokio::join!(keep_guard(&interception.addresses, readiness, metrics, stands), redirect, host);
}

/// What is redirected now: an address of the node's may go, and then be another machine's.
fn redirection(interception: &Interception) -> Redirection {
    Redirection {
        addresses: Arc::clone(&interception.addresses),
        targets: super::targets(&interception.listening),
        rush: interception.rush,
    }
}

/// An earlier run's would lead to nobody who knows whose they are.
async fn remove_host_rules(readiness: &Readiness) {
    readiness.holds(Condition::HostNetwork);
    while let Err(error) = host::Leftover.install().await {
        tracing::warn!(%error, "rules for pods on the node's network are left from an earlier run, and tried again");
        tokio::time::sleep(LONG_INTERVAL).await;
    }
}

async fn keep_guard(addresses: &Arc<[IpAddr]>, readiness: &Readiness, metrics: &Metrics, stands: watch::Sender<bool>) {
    let guard = Guard::new(Arc::clone(addresses));
    let mut health = Health::new(Condition::Guard, Some(metrics.rules_present.with_label_values(&["guard"])));
    let mut announcements = None;
    loop {
        announcements = announcements.or_else(|| announcements::routing_rules().ok());
        let look = async {
            if *stands.borrow() { restore(Part::Guard, &guard, metrics).await } else { put(Part::Guard, &guard).await }
        };
        let is_well = health.tell(limited(TIME_LIMIT, look).await, readiness);
        if is_well {
            stands.send_replace(true);
        }
        tokio::time::sleep(ROUTING_PAUSE).await;
        next(&mut announcements, is_well).await;
    }
}

async fn keep_redirect(interception: &Interception, readiness: &Readiness, metrics: &Metrics) {
    let mut keeper = Keeper {
        interception,
        targets: Vec::new(),
        backends: Vec::new(),
        chosen: None,
        is_well_beside: true,
        arrival: Arrival::default(),
        told: Vec::new(),
        metrics,
    };
    let mut health = Health::new(Condition::Rules, Some(metrics.rules_present.with_label_values(&["redirect"])));
    let (mut announcements, mut obstacles_seen) = (None, None::<Instant>);
    loop {
        if let (None, Some(backend)) = (&announcements, keeper.backend()) {
            announcements = announcements::of_tables(backend.tables).ok();
        }
        let is_well = health.tell(keeper.look().await, readiness);
        if obstacles_seen.is_none_or(|seen| seen.elapsed() >= INTERVAL) {
            keeper.look_for_obstacles(readiness).await;
            obstacles_seen = Some(Instant::now());
        }
        tokio::time::sleep(TABLES_PAUSE).await;
        let is_announced = keeper.backend().is_some_and(|backend| backend.is_announced);
        // What changed before there was somebody to listen is seen by the next look.
        next(&mut announcements, is_well && is_announced).await;
    }
}

/// Returns when it is time to look again. `is_quiet`: whether nothing needs to be seen but what is announced.
async fn next(announcements: &mut Option<BoxStream<'static, ()>>, is_quiet: bool) {
    let Some(stream) = announcements else { return tokio::time::sleep(INTERVAL).await };
    let interval = if is_quiet { LONG_INTERVAL } else { INTERVAL };
    if let Ok(None) = tokio::time::timeout(interval, stream.next()).await {
        // The socket is gone; until there is another there is still the clock.
        *announcements = None;
    }
}

async fn limited<T>(limit: Duration, look: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let elapsed = |_| Err(format!("no result within {} s", limit.as_secs()));
    tokio::time::timeout(limit, look).await.unwrap_or_else(elapsed)
}

/// Whether rules are in place, as it was told last.
pub(super) struct Health {
    condition: Condition,
    was_well: bool,
    /// Where that is told too, but where "well" may be that there is nothing to put in place.
    present: Option<IntGauge>,
}

impl Health {
    pub(super) fn new(condition: Condition, present: Option<IntGauge>) -> Self {
        Self { condition, was_well: true, present }
    }

    pub(super) fn tell(&mut self, look: Result<(), String>, readiness: &Readiness) -> bool {
        let was_well = std::mem::replace(&mut self.was_well, look.is_ok());
        if let Some(present) = &self.present {
            present.set(look.is_ok().into());
        }
        match look {
            Ok(()) => {
                if !was_well {
                    tracing::info!("{} in place again", self.condition.name());
                }
                readiness.holds(self.condition);
            }
            Err(problem) => {
                if was_well {
                    tracing::error!("rules are not in place, and tried again: {problem}");
                }
                readiness.lacks(self.condition, problem);
            }
        }
        self.was_well
    }
}

struct Keeper<'a> {
    interception: &'a Interception,
    /// The node's addresses that are redirected to.
    targets: Vec<SocketAddr>,
    backends: Vec<Backend>,
    /// The way that worked.
    chosen: Option<usize>,
    /// Whether nothing is known to be wrong with what is beside the redirect.
    is_well_beside: bool,
    arrival: Arrival,
    /// The obstacles that the log tells of.
    told: Vec<Obstacle>,
    metrics: &'a Metrics,
}

impl Keeper<'_> {
    fn backend(&self) -> Option<&Backend> {
        self.backends.get(self.chosen?)
    }

    async fn look(&mut self) -> Result<(), String> {
        let redirection = redirection(self.interception);
        let targets = redirection.targets.clone();
        if targets.is_empty() {
            return Err("the node has no address of its own to redirect to: --listen must name one".to_owned());
        }
        if targets != self.targets {
            if !self.targets.is_empty() {
                tracing::info!(?targets, "the node's addresses changed");
            }
            let planned = async { Ok(plan::backends(self.interception.wanted, &redirection).await) };
            self.backends = limited(TIME_LIMIT, planned).await?;
            (self.targets, self.chosen) = (redirection.targets, None);
        }
        match self.chosen {
            None => self.begin().await,
            Some(chosen) => {
                let mut beside = Ok(());
                let backend = self.backends.get(chosen).map(|backend| &backend.parts).into_iter().flatten();
                for (part, firewall) in backend {
                    let limit = if part.is_beside() { BESIDE_TIME_LIMIT } else { TIME_LIMIT };
                    let restored = limited(limit, restore(*part, firewall.as_ref(), self.metrics)).await;
                    if part.is_beside() { beside = beside.and(restored) } else { restored? }
                }
                self.tell_of_what_is_beside(beside);
                Ok(())
            }
        }
    }

    /// All is written anew the first time, also what is there: an earlier run may have had another port.
    async fn begin(&mut self) -> Result<(), String> {
        let mut problems = Vec::new();
        for (index, backend) in self.backends.iter().enumerate() {
            match limited(WAY_TIME_LIMIT, install(backend)).await {
                Ok(beside) => {
                    for problem in &problems {
                        tracing::info!("{problem}");
                    }
                    tracing::info!("pods' requests are redirected by {}", backend.name);
                    self.metrics.intercept.reset();
                    self.metrics.intercept.with_label_values(&[backend.name]).set(1);
                    self.chosen = Some(index);
                    self.tell_of_what_is_beside(beside);
                    return Ok(());
                }
                Err(problem) => problems.push(format!("{} does not work here: {problem}", backend.name)),
            }
        }
        Err(problems.join("; "))
    }

    /// It matters only behind a firewall, or where another redirect comes back; whether packets come is seen by themselves.
    fn tell_of_what_is_beside(&mut self, result: Result<(), String>) {
        let was_well = std::mem::replace(&mut self.is_well_beside, result.is_ok());
        self.metrics.rules_present.with_label_values(&["beside"]).set(result.is_ok().into());
        if let (true, Err(problem)) = (was_well, result) {
            tracing::warn!("not all is in place beside the redirect, and tried again: {problem}");
        }
    }

    async fn look_for_obstacles(&mut self, readiness: &Readiness) {
        let arrived = self.metrics.arrived();
        let mut obstacles = obstacles::look(arrived > 0).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "it cannot be seen whether something is in the way of pods' packets");
            Vec::new()
        });
        let parts = self.backend().map(|backend| &backend.parts).into_iter().flatten();
        let redirected = parts.filter_map(|(_, firewall)| firewall.redirected()).sum();
        if self.arrival.look(redirected, arrived, Instant::now()) {
            obstacles.push(Obstacle::Lost);
        }
        for kind in Obstacle::KINDS {
            let is_there = obstacles.iter().any(|obstacle| obstacle.label() == kind);
            self.metrics.obstacles.with_label_values(&[kind]).set(is_there.into());
        }
        for obstacle in obstacles.iter().filter(|obstacle| !self.told.contains(obstacle)) {
            tracing::warn!("{obstacle}");
        }
        // Who named the way knows the node.
        let matter = |obstacle: &&Obstacle| obstacle.is_certain() || self.interception.wanted == Wanted::Auto;
        let reasons = obstacles.iter().filter(matter).map(ToString::to_string).collect::<Vec<_>>();
        if reasons.is_empty() {
            readiness.holds(Condition::Arrival);
        } else {
            readiness.lacks(Condition::Arrival, reasons.join("; "));
        }
        self.told = obstacles;
    }
}

/// The guard has a condition of its own, by whose name it is told.
fn named(part: Part, error: &FirewallError) -> String {
    if part == Part::Guard { error.to_string() } else { format!("{part}: {error}") }
}

async fn put(part: Part, firewall: &dyn Firewall) -> Result<(), String> {
    let named = |error| named(part, &error);
    for _ in 0..WRITTEN_AT_MOST {
        firewall.install().await.map_err(named)?;
        if firewall.present().await.map_err(named)? {
            return Ok(());
        }
        // Another program may have flushed all in between: that says nothing of the way.
        tokio::time::sleep(TABLES_PAUSE).await;
    }
    Err(format!("{part}: put in place, and not there"))
}

async fn restore(part: Part, firewall: &dyn Firewall, metrics: &Metrics) -> Result<(), String> {
    let named = |error| named(part, &error);
    if firewall.present().await.map_err(named)? {
        return Ok(());
    }
    tracing::warn!(%part, "rules of ours were missing; they are put back");
    firewall.install().await.map_err(named)?;
    metrics.rules_restored.with_label_values(&[part.label()]).inc();
    Ok(())
}

/// Puts all of it in place, and takes out what would be beside it; where that cannot be done, nothing of it stays. Says
/// whether what is beside the redirect is there too.
async fn install(backend: &Backend) -> Result<Result<(), String>, String> {
    let mut beside = Ok(());
    for (part, firewall) in &backend.parts {
        if part.is_beside() {
            beside = beside.and(limited(BESIDE_TIME_LIMIT, put(*part, firewall.as_ref())).await);
            continue;
        }
        match put(*part, firewall.as_ref()).await {
            Ok(()) => {}
            Err(problem) => {
                for (_, firewall) in &backend.parts {
                    // It may never have been there.
                    let _: Result<(), FirewallError> = firewall.remove().await;
                }
                return Err(problem);
            }
        }
    }
    for other in &backend.others {
        let removed = async {
            match other.remove().await {
                // What is not installed has put nothing there.
                Ok(()) | Err(FirewallError::Missing { .. }) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        };
        if let Err(problem) = limited(BESIDE_TIME_LIMIT, removed).await {
            tracing::warn!("what an earlier run may have left could not be taken out: {problem}");
        }
    }
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use futures::future::BoxFuture;

    use super::*;

    /// Rules of which each of the first so many is flushed by another program as soon as it is written.
    struct Flushed(Mutex<u32>);

    impl Firewall for Flushed {
        fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>> {
            let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_there = *left == 0;
            *left = left.saturating_sub(1);
            Box::pin(async move { Ok(is_there) })
        }

        fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
            Box::pin(async { Ok(()) })
        }

        fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn a_flush_in_the_middle_is_no_reason_to_say_that_a_way_does_not_work() {
        for flushes in [0, 1, WRITTEN_AT_MOST - 1] {
            assert_eq!(put(Part::Redirect, &Flushed(Mutex::new(flushes))).await, Ok(()));
        }
        assert!(put(Part::Redirect, &Flushed(Mutex::new(WRITTEN_AT_MOST))).await.is_err(), "nor is it tried for ever");
    }
}
