//! Keeps guard and redirect in place: looks whenever the kernel announces a change of rules, and once in a while in any
//! case, and puts back what is missing. Takes the first way to redirect that works.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream::BoxStream};

use super::{
    Firewall, FirewallError, Part, Redirection,
    announcements::{self, Changed},
    guard::Guard,
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
/// Between two looks at tables that change without pause.
const PAUSE: Duration = Duration::from_millis(200);
/// A command that hangs must not leave us believing that all is well.
const TIME_LIMIT: Duration = Duration::from_secs(15);
/// Announcements that count as one.
const LARGEST_CHUNK: usize = 1024;

/// What keeps pods' requests coming here, and nowhere else.
#[derive(Debug)]
pub struct Interception {
    /// The guard.
    pub guard: Guard,
    /// What is redirected.
    pub redirection: Redirection,
    /// How.
    pub wanted: Wanted,
}

/// Puts all in place, and then keeps it there; never ends.
pub async fn keep(interception: &Interception, readiness: &Readiness, metrics: &Metrics) {
    let backends = plan::backends(interception.wanted, &interception.redirection).await;
    let mut keeper = Keeper { interception, chosen: None, arrival: Arrival::default(), told: Vec::new(), metrics };
    let mut announcements = None;
    let mut was_well = true;
    let mut due = vec![Changed::Routing, Changed::Tables];
    let mut tables_seen = Instant::now();
    loop {
        let result = tokio::time::timeout(TIME_LIMIT, keeper.look(&backends, &due)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_elapsed) => Some(format!("no result within {} s", TIME_LIMIT.as_secs())),
        };
        match &problem {
            None => {
                if !was_well {
                    tracing::info!("rules are in place");
                }
                readiness.holds(Condition::Rules);
            }
            Some(problem) => {
                if was_well {
                    tracing::error!("rules are not in place, and tried again: {problem}");
                }
                readiness.lacks(Condition::Rules, problem);
            }
        }
        was_well = problem.is_none();
        keeper.look_for_obstacles(readiness).await;
        if due.contains(&Changed::Tables) {
            tables_seen = Instant::now();
        }
        let is_announced = keeper.chosen.is_some_and(|backend| backend.is_announced);
        if let (None, Some(backend)) = (&announcements, keeper.chosen) {
            // What changed before is seen by the next look, which comes soon the first time.
            announcements = listen(backend);
            due = vec![Changed::Routing, Changed::Tables];
            continue;
        }
        let interval = if was_well && is_announced && announcements.is_some() { LONG_INTERVAL } else { INTERVAL };
        due = next(&mut announcements, interval).await;
        if due == [Changed::Tables] {
            tokio::time::sleep(PAUSE.saturating_sub(tables_seen.elapsed())).await;
        }
    }
}

type Announcements = BoxStream<'static, Vec<Changed>>;

fn listen(backend: &Backend) -> Option<Announcements> {
    match announcements::listen(backend.tables) {
        Ok(announcements) => Some(announcements.ready_chunks(LARGEST_CHUNK).boxed()),
        Err(error) => {
            tracing::debug!(%error, "the kernel's announcements cannot be heard");
            None
        }
    }
}

/// What is to be looked at next, when it is.
async fn next(announcements: &mut Option<Announcements>, interval: Duration) -> Vec<Changed> {
    let announced = async {
        match announcements {
            Some(announcements) => announcements.next().await,
            None => std::future::pending().await,
        }
    };
    let mut changed = match tokio::time::timeout(interval, announced).await {
        Ok(Some(changed)) => changed,
        // The socket is gone; until there is another there is still the clock.
        Ok(None) => {
            *announcements = None;
            tokio::time::sleep(INTERVAL).await;
            vec![Changed::Routing, Changed::Tables]
        }
        Err(_elapsed) => vec![Changed::Routing, Changed::Tables],
    };
    changed.sort_unstable();
    changed.dedup();
    changed
}

struct Keeper<'a> {
    interception: &'a Interception,
    /// The way that worked.
    chosen: Option<&'a Backend>,
    arrival: Arrival,
    /// The obstacles that the log tells of.
    told: Vec<Obstacle>,
    metrics: &'a Metrics,
}

impl<'a> Keeper<'a> {
    async fn look(&mut self, backends: &'a [Backend], due: &[Changed]) -> Result<(), String> {
        let Some(chosen) = self.chosen else { return self.begin(backends).await };
        if due.contains(&Changed::Routing) {
            self.restore(Part::Guard, &self.interception.guard).await?;
        }
        if due.contains(&Changed::Tables) {
            for (part, firewall) in &chosen.parts {
                self.restore(*part, firewall.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// All is written anew the first time, also what is there: an earlier run may have had another port.
    async fn begin(&mut self, backends: &'a [Backend]) -> Result<(), String> {
        put(Part::Guard, &self.interception.guard).await?;
        let mut problems = Vec::new();
        for backend in backends {
            match install(backend).await {
                Ok(()) => {
                    for problem in &problems {
                        tracing::info!("{problem}");
                    }
                    tracing::info!("pods' requests are redirected by {}", backend.name);
                    self.metrics.intercept.reset();
                    self.metrics.intercept.with_label_values(&[backend.name]).set(1);
                    self.chosen = Some(backend);
                    return Ok(());
                }
                Err(problem) => problems.push(format!("{} does not work here: {problem}", backend.name)),
            }
        }
        Err(problems.join("; "))
    }

    async fn restore(&self, part: Part, firewall: &dyn Firewall) -> Result<(), String> {
        let named = |error| format!("{part}: {error}");
        if firewall.present().await.map_err(named)? {
            return Ok(());
        }
        tracing::warn!(%part, "rules of ours were missing; they are put back");
        firewall.install().await.map_err(named)?;
        self.metrics.rules_restored.with_label_values(&[part.label()]).inc();
        Ok(())
    }

    async fn look_for_obstacles(&mut self, readiness: &Readiness) {
        let arrived = self.metrics.redirected_connections.get();
        let mut obstacles = obstacles::look(arrived > 0).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "it cannot be seen whether something is in the way of pods' packets");
            Vec::new()
        });
        let parts = self.chosen.iter().flat_map(|backend| &backend.parts);
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

async fn put(part: Part, firewall: &dyn Firewall) -> Result<(), String> {
    let named = |error: FirewallError| format!("{part}: {error}");
    firewall.install().await.map_err(named)?;
    if firewall.present().await.map_err(named)? { Ok(()) } else { Err(format!("{part}: put in place, and not there")) }
}

/// Puts all of it in place, and takes out what would be beside it; where that cannot be done, nothing of it stays.
async fn install(backend: &Backend) -> Result<(), String> {
    for (part, firewall) in &backend.parts {
        if let Err(problem) = put(*part, firewall.as_ref()).await {
            for (_, firewall) in &backend.parts {
                // It may never have been there.
                let _: Result<(), FirewallError> = firewall.remove().await;
            }
            return Err(problem);
        }
    }
    for other in &backend.others {
        match other.remove().await {
            // What is not installed has put nothing there.
            Ok(()) | Err(FirewallError::Missing { .. }) => {}
            Err(error) => tracing::warn!(%error, "what an earlier run may have left could not be taken out"),
        }
    }
    Ok(())
}
