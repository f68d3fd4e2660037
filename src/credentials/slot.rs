//! The life of one pod's credentials for one role, as a state machine. Pure: no tokio, no I/O, no clock.
//!
//! Owns when to fetch, how urgently, when to renew and how long a failure is remembered. The
//! [`Schedule`](super::schedule::Schedule) is the only one that steps it. Invariant: a good document is never
//! given up for a failed renewal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::document::Document;
use crate::clock::{Deadline, Now};

/// Pauses after failures double from the first to the longest, here while somebody asks.
const TRANSIENT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
const PERMANENT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Whether or not somebody asks: of all slots together, the budget takes care.
const THROTTLED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// While nobody asks. What is permanent is not tried again then.
const UNASKED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After a failed renewal nobody waits yet; a twentieth of the life is the limit for short ones.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a failure means for those who ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Worth asking again soon.
    Transient,
    /// Worth asking again soon, but less often.
    Throttled,
    /// Stays until somebody mends something.
    Permanent,
}

/// How urgent a fetch is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A caller waits.
    Asked,
    /// There is nothing to serve, but nobody waits now.
    Expired,
    /// What is served needs a successor.
    Renewal,
    /// Nobody has asked yet.
    Prefetch,
}

/// Where a slot stands.
#[derive(Clone, Debug)]
pub enum State {
    /// Nobody has asked yet.
    Empty,
    /// The first fetch, or one after failures, is to be made or in flight.
    Fetching {
        /// How urgently.
        priority: Priority,
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
        due: Deadline,
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
        /// Until when it is not tried again if somebody asks.
        until: Instant,
        /// When and how urgently it is tried again by itself.
        again: Option<(Instant, Priority)>,
        /// Failures in a row.
        failures: u32,
    },
    /// The pod or its role is gone, or nobody reads it any longer.
    Gone,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A caller found nothing to take.
    Wanted,
    /// A pod with this role appeared.
    Foreseen,
    /// The time asked for has come, or a clock was stepped. `idle`: nobody read the slot for a whole life.
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
    /// Make a fetch, unless one is in flight.
    Fetch(Priority),
    /// Say `Due` at this time.
    Wake(Instant),
}

impl State {
    /// The next state. `chance` in 0..1 spreads what would otherwise coincide.
    #[must_use]
    pub fn step(self, event: Event, now: Now, chance: f64) -> (Self, Step) {
        match (self, event) {
            (Self::Gone, _) | (_, Event::Retired) => (Self::Gone, Step::Rest),

            (Self::Empty, Event::Foreseen) => fetch(Priority::Prefetch, None, 0),
            (Self::Empty, Event::Wanted) => fetch(Priority::Asked, None, 0),
            // Who asks after a permanent failure is told of it, and does not wait for the next try.
            (Self::Fetching { priority, after, failures }, Event::Wanted)
                if priority != Priority::Asked && after != Some(Failure::Permanent) =>
            {
                fetch(Priority::Asked, after, failures)
            }
            (Self::Fresh { document, failures, .. } | Self::Renewing { document, failures }, Event::Wanted)
                if document.expires().passed(now) =>
            {
                fetch(Priority::Asked, None, failures)
            }
            (Self::Failed { failure, until, failures, .. }, Event::Wanted) if until <= now.monotonic => {
                fetch(Priority::Asked, Some(failure), failures)
            }
            (Self::Failed { failure, until, failures, .. }, Event::Wanted) => {
                let priority = if failure == Failure::Permanent { Priority::Expired } else { Priority::Asked };
                (Self::Failed { failure, until, again: Some((until, priority)), failures }, Step::Wake(until))
            }

            (Self::Fresh { due, .. }, Event::Due { idle: true }) if due.passed(now) => (Self::Gone, Step::Rest),
            (Self::Failed { .. }, Event::Due { idle: true }) => (Self::Gone, Step::Rest),
            (Self::Fresh { document, due, failures }, Event::Due { idle: false }) if due.passed(now) => {
                renew(document, failures, now)
            }
            // A clock was stepped: if it still waits for its turn, that may have become more urgent.
            (Self::Renewing { document, failures }, Event::Due { .. }) => renew(document, failures, now),
            (Self::Failed { failure, again: Some((at, priority)), failures, .. }, Event::Due { idle: false })
                if at <= now.monotonic =>
            {
                fetch(priority, Some(failure), failures)
            }

            (Self::Fetching { .. } | Self::Renewing { .. }, Event::Fetched(document)) => {
                let jitter = document.life().mul_f64(chance / 10.0);
                let rest = document.expires().left(now).saturating_sub(document.life() / 2 + jitter);
                let due = now.after(rest);
                (Self::Fresh { document, due, failures: 0 }, Step::Wake(due.monotonic))
            }
            (Self::Renewing { document, failures }, Event::Refused(_)) if !document.expires().passed(now) => {
                let longest = (document.life() / 20).min(RENEWAL.1);
                let pause = pause((RENEWAL.0.min(longest), longest), failures, chance);
                let due = now.after(pause.min(document.expires().left(now)));
                (Self::Fresh { document, due, failures: failures.saturating_add(1) }, Step::Wake(due.monotonic))
            }
            (Self::Renewing { failures, .. }, Event::Refused(failure)) => {
                refused(failure, Priority::Expired, failures, now, chance)
            }
            (Self::Fetching { priority, failures, .. }, Event::Refused(failure)) => {
                refused(failure, priority.max(Priority::Expired), failures, now, chance)
            }

            // A timer that was set for an earlier state, a caller who asks while the answer is on its way.
            (state, Event::Wanted | Event::Foreseen | Event::Due { .. } | Event::Fetched(_) | Event::Refused(_)) => {
                (state, Step::Rest)
            }
        }
    }
}

fn fetch(priority: Priority, after: Option<Failure>, failures: u32) -> (State, Step) {
    (State::Fetching { priority, after, failures }, Step::Fetch(priority))
}

fn renew(document: Arc<Document>, failures: u32, now: Now) -> (State, Step) {
    let priority = if document.expires().passed(now) { Priority::Expired } else { Priority::Renewal };
    (State::Renewing { document, failures }, Step::Fetch(priority))
}

fn refused(failure: Failure, priority: Priority, failures: u32, now: Now, chance: f64) -> (State, Step) {
    let (asked, unasked) = match failure {
        Failure::Transient => (TRANSIENT, Some(UNASKED)),
        Failure::Throttled => (THROTTLED, Some(THROTTLED)),
        Failure::Permanent => (PERMANENT, None),
    };
    let after = |limits| now.monotonic + pause(limits, failures, chance);
    let (until, again) = (after(asked), unasked.map(after));
    let step = again.map_or(Step::Rest, Step::Wake);
    let again = again.map(|at| (at, priority));
    (State::Failed { failure, until, again, failures: failures.saturating_add(1) }, step)
}

/// From half of the pause up to all of it: what failed together does not come back together.
fn pause((first, longest): (Duration, Duration), failures: u32, chance: f64) -> Duration {
    let full = first.saturating_mul(1 << failures.min(16)).min(longest);
    full.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests;
