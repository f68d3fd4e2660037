//! The life of one pod's credentials for one role, as a state machine. Pure: no tokio, no I/O, no clock.
//!
//! Owns when to fetch, when to renew and how long a failure is remembered. The refresher is the only one
//! that steps it. Invariant: at most one fetch is in flight, and a good document is never given up for a
//! failed renewal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::document::Document;
use crate::clock::Now;

/// Pauses after failures double from the first to the longest.
const TRANSIENT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
const PERMANENT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// After a failed renewal nobody waits yet; a twentieth of the life is the limit for short ones.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a failure means for those who ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Worth asking again soon.
    Transient,
    /// Stays until somebody mends something.
    Permanent,
}

/// Where a slot stands.
#[derive(Clone, Debug)]
pub enum State {
    /// Nobody has asked yet.
    Empty,
    /// The first fetch, or one after failures, is in flight.
    Fetching {
        /// What the last one met.
        after: Option<Failure>,
        /// Failures in a row.
        failures: u32,
    },
    /// Credentials to serve; renewed when due.
    Fresh {
        /// What is served.
        document: Arc<Document>,
        /// When to fetch the next.
        due: Instant,
        /// Failed renewals in a row.
        failures: u32,
    },
    /// Credentials to serve while their successor is fetched.
    Renewing {
        /// What is served.
        document: Arc<Document>,
        /// Failed renewals in a row.
        failures: u32,
    },
    /// The last fetch failed; remembered for a while.
    Failed {
        /// What it means.
        failure: Failure,
        /// Until when it is not tried again.
        until: Instant,
        /// Failures in a row.
        failures: u32,
        /// Somebody asked meanwhile: it is tried again then.
        wanted: bool,
    },
    /// The pod or its role is gone, or nobody reads it any longer.
    Gone,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A caller found nothing to take.
    Wanted,
    /// The time asked for has come. `idle`: nobody read the slot for a whole life.
    Due {
        /// Nobody read the slot for a whole life.
        idle: bool,
    },
    /// The fetch brought this.
    Fetched(Arc<Document>),
    /// The fetch failed.
    Refused(Failure),
    /// The pod or its role is gone.
    Retired,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Start a fetch.
    Fetch,
    /// Say `Due` at this time.
    Wake(Instant),
}

impl State {
    /// The next state. `chance` in 0..1 spreads what would otherwise coincide.
    #[must_use]
    pub fn step(self, event: Event, now: Now, chance: f64) -> (Self, Step) {
        match (self, event) {
            (Self::Gone, _) | (_, Event::Retired) => (Self::Gone, Step::Rest),

            (Self::Empty, Event::Wanted) => (Self::Fetching { after: None, failures: 0 }, Step::Fetch),
            (Self::Fresh { document, failures, .. }, Event::Wanted) if document.expires().passed(now) => {
                (Self::Fetching { after: None, failures }, Step::Fetch)
            }
            (Self::Failed { failure, until, failures, .. }, Event::Wanted) if until <= now.monotonic => {
                (Self::Fetching { after: Some(failure), failures }, Step::Fetch)
            }
            (Self::Failed { failure, until, failures, .. }, Event::Wanted) => {
                (Self::Failed { failure, until, failures, wanted: true }, Step::Wake(until))
            }

            (Self::Fresh { due, .. }, Event::Due { idle: true }) if due <= now.monotonic => (Self::Gone, Step::Rest),
            (Self::Fresh { document, due, failures }, Event::Due { idle: false }) if due <= now.monotonic => {
                (Self::Renewing { document, failures }, Step::Fetch)
            }
            (Self::Failed { failure, until, failures, wanted: true }, Event::Due { .. }) if until <= now.monotonic => {
                (Self::Fetching { after: Some(failure), failures }, Step::Fetch)
            }

            (Self::Fetching { .. } | Self::Renewing { .. }, Event::Fetched(document)) => {
                let jitter = document.life().mul_f64(chance / 10.0);
                let due = now.monotonic + document.expires().left(now).saturating_sub(document.life() / 2 + jitter);
                (Self::Fresh { document, due, failures: 0 }, Step::Wake(due))
            }
            (Self::Renewing { document, failures }, Event::Refused(_)) if !document.expires().passed(now) => {
                let longest = (document.life() / 20).min(RENEWAL.1);
                let pause = pause((RENEWAL.0.min(longest), longest), failures, chance);
                let due = now.monotonic + pause.min(document.expires().left(now));
                (Self::Fresh { document, due, failures: failures.saturating_add(1) }, Step::Wake(due))
            }
            (Self::Fetching { failures, .. } | Self::Renewing { failures, .. }, Event::Refused(failure)) => {
                let limits = match failure {
                    Failure::Transient => TRANSIENT,
                    Failure::Permanent => PERMANENT,
                };
                let until = now.monotonic + pause(limits, failures, chance);
                (Self::Failed { failure, until, failures: failures.saturating_add(1), wanted: false }, Step::Rest)
            }

            // A timer that was set for an earlier state, a caller who asks while the answer is on its way.
            (state, Event::Wanted | Event::Due { .. } | Event::Fetched(_) | Event::Refused(_)) => (state, Step::Rest),
        }
    }
}

/// From half of the pause up to all of it: what failed together does not come back together.
fn pause((first, longest): (Duration, Duration), failures: u32, chance: f64) -> Duration {
    let full = first.saturating_mul(1 << failures.min(16)).min(longest);
    full.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests;
