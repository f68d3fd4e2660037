//! Which fetch is made next, and when: all slots' states, their timers, one queue and the budget. Pure: no
//! tokio, no I/O, no clock.
//!
//! Owns the order (how urgent, then first come; renewals by whose credentials end first) and the limits: so many
//! fetches in flight, so many calls of STS a second. Invariants: no slot has two fetches in flight; no fetch waits
//! while both limits allow one; of a slot that is gone nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    LITTLE,
    slot::{Event, Priority, State, Step},
};
use crate::clock::Now;

/// A slot's name here: never another's later.
pub type Key = u64;

/// What a node may ask of STS.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Fetches in flight at once.
    pub in_flight: usize,
    /// Calls of STS a second, in the long run.
    pub per_second: f64,
    /// Calls at once after a rest.
    pub burst: u32,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Make this slot's fetch; then ask again.
    Fetch(Key),
    /// Nothing, until something happens or at the latest until then.
    Wait(Option<Instant>),
}

/// All slots, and what is to be done about them.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    budget: Budget,
    slots: HashMap<Key, Slot>,
    timers: BTreeSet<(Instant, Key)>,
    /// The most urgent first; within one priority, the earliest.
    queues: BTreeMap<Priority, BTreeSet<(Instant, Key)>>,
    in_flight: HashSet<Key>,
    /// The last fetch that was started is a renewal.
    renewed_last: bool,
}

#[derive(Debug)]
struct Slot {
    state: State,
    timer: Option<Instant>,
    queued: Option<(Priority, Instant)>,
}

// === impl Schedule ===

impl Schedule {
    /// No slots yet, and a full budget.
    #[must_use]
    pub fn new(limits: Limits, now: Now) -> Self {
        Self {
            limits,
            budget: Budget {
                per_second: limits.per_second,
                burst: f64::from(limits.burst),
                calls: f64::from(limits.burst),
                at: now.monotonic,
            },
            slots: HashMap::new(),
            timers: BTreeSet::new(),
            queues: BTreeMap::new(),
            in_flight: HashSet::new(),
            renewed_last: false,
        }
    }

    /// Calls of STS that may be made at once now; below zero if more were made.
    #[must_use]
    pub fn calls_left(&self, now: Now) -> f64 {
        self.budget.at(now)
    }

    /// Fetches that wait for their turn.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queues.values().map(BTreeSet::len).sum()
    }

    /// All slots: each is to be told `Due` when a clock was stepped.
    #[must_use]
    pub fn all(&self) -> Vec<Key> {
        self.slots.keys().copied().collect()
    }

    /// The slots whose time has come: each is to be told `Due`.
    pub fn due(&mut self, now: Now) -> Vec<Key> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now.monotonic).map(|(_, key)| *key);
        let due = due.collect::<Vec<_>>();
        for key in &due {
            self.set_timer(*key, None);
        }
        due
    }

    /// What happened to a slot, and its state then. One that is not known yet begins empty.
    pub fn step(&mut self, key: Key, event: Event, now: Now, chance: f64) -> State {
        if !self.slots.contains_key(&key) && !matches!(event, Event::Wanted | Event::Foreseen) {
            return State::Gone;
        }
        let slot = self.slots.entry(key).or_insert(Slot { state: State::Empty, timer: None, queued: None });
        let (state, step) = std::mem::replace(&mut slot.state, State::Gone).step(event, now, chance);
        slot.state = state.clone();
        match step {
            Step::Rest => {}
            Step::Wake(at) => self.set_timer(key, Some(at)),
            Step::Fetch(priority) => {
                self.set_timer(key, None);
                if !self.in_flight.contains(&key) {
                    self.set_queued(key, Some((priority, urgent(&state, now))));
                }
            }
        }
        if matches!(state, State::Gone) {
            self.set_timer(key, None);
            self.set_queued(key, None);
            self.slots.remove(&key);
        }
        state
    }

    /// A slot's state.
    #[must_use]
    pub fn state(&self, key: Key) -> Option<&State> {
        self.slots.get(&key).map(|slot| &slot.state)
    }

    /// What is to be done now.
    pub fn next(&mut self, now: Now) -> Turn {
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some((priority, key)) = self.first(now).filter(|_| self.in_flight.len() < self.limits.in_flight) else {
            return Turn::Wait(timer);
        };
        if let Err(at) = self.budget.take(now) {
            return Turn::Wait(Some(timer.map_or(at, |timer| timer.min(at))));
        }
        self.set_queued(key, None);
        self.in_flight.insert(key);
        self.renewed_last = priority == Priority::Renewal;
        Turn::Fetch(key)
    }

    /// A fetch ended, after that many calls of STS; whether STS asked for fewer.
    pub fn ended(&mut self, key: Key, calls: u32, throttled: bool, now: Now) {
        self.in_flight.remove(&key);
        // One was paid for when it began.
        self.budget.charge(f64::from(calls) - 1.0, now);
        if throttled {
            self.budget.empty(now);
        }
    }

    /// Renewals come late in the order; but those whose credentials have not a quarter of their life left take turns
    /// with all others: neither can keep the other waiting until its end, however often it fails.
    fn first(&self, now: Now) -> Option<(Priority, Key)> {
        let first = |(priority, queue): (&Priority, &BTreeSet<_>)| Some((*priority, *queue.first()?));
        let mut firsts = self.queues.iter().filter_map(first);
        let late = |(priority, (urgent, _)): &(Priority, (Instant, Key))| {
            *priority == Priority::Renewal && *urgent <= now.monotonic
        };
        let late = firsts.clone().find(late).filter(|_| !self.renewed_last);
        late.or_else(|| firsts.next()).map(|(priority, (_, key))| (priority, key))
    }

    fn set_timer(&mut self, key: Key, timer: Option<Instant>) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        if let Some(before) = std::mem::replace(&mut slot.timer, timer) {
            self.timers.remove(&(before, key));
        }
        self.timers.extend(timer.map(|at| (at, key)));
    }

    fn set_queued(&mut self, key: Key, queued: Option<(Priority, Instant)>) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        if let Some((priority, at)) = std::mem::replace(&mut slot.queued, queued) {
            self.queues.entry(priority).or_default().remove(&(at, key));
        }
        if let Some((priority, at)) = queued {
            self.queues.entry(priority).or_default().insert((at, key));
        }
    }
}

/// A slot's place in its queue: renewals by when a quarter of their credentials' life is left, others by when they
/// came.
fn urgent(state: &State, now: Now) -> Instant {
    match state {
        State::Renewing { document, .. } => {
            now.monotonic + document.expires().left(now).saturating_sub(document.life() / LITTLE)
        }
        _ => now.monotonic,
    }
}

// === impl Budget ===

/// Calls of STS that may be made: a bucket that fills by so many a second. It may be overdrawn by calls that a
/// fetch turned out to need.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    burst: f64,
    calls: f64,
    at: Instant,
}

impl Budget {
    /// One call, or when there will be one.
    fn take(&mut self, now: Now) -> Result<(), Instant> {
        self.refill(now);
        if self.calls >= 1.0 {
            self.calls -= 1.0;
            return Ok(());
        }
        // Rounded up, or one could be woken just before.
        let wait = Duration::from_secs_f64((1.0 - self.calls) / self.per_second) + Duration::from_millis(1);
        Err(now.monotonic + wait)
    }

    fn charge(&mut self, calls: f64, now: Now) {
        self.refill(now);
        self.calls = (self.calls - calls).min(self.burst);
    }

    fn empty(&mut self, now: Now) {
        self.refill(now);
        self.calls = self.calls.min(0.0);
    }

    fn refill(&mut self, now: Now) {
        self.calls = self.at(now);
        self.at = now.monotonic;
    }

    fn at(&self, now: Now) -> f64 {
        let passed = now.monotonic.saturating_duration_since(self.at).as_secs_f64();
        (self.calls + passed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod simulation;
