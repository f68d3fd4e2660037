//! What was met on which pod, and what of it is worth an Event now. Pure.
//!
//! The same problem of the same pod is told again after [`AGAIN_AFTER`], as an occurrence of the same Event. One
//! that may pass by itself is told once it has lasted for [`LASTING`]. Forgotten by age, which is also how
//! a pod's end forgets it.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use super::note::Reason;
use crate::{clock::Now, identity::PodUid};

const AGAIN_AFTER: Duration = Duration::from_secs(600);
const LASTING: Duration = Duration::from_secs(60);
/// A passing problem that was not met for so long had passed; a failed renewal is repeated each minute at least.
const PASSED: Duration = Duration::from_secs(120);
/// As long as the API server keeps an Event.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Problems that are remembered.
const MOST: usize = 1024;

/// What makes two problems the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) pod: PodUid,
    pub(super) reason: Reason,
    /// Which of those with the reason.
    pub(super) which: String,
}

/// A problem that is to be told now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Occurrence {
    /// When it was first met.
    pub(super) first: SystemTime,
    /// How often since.
    pub(super) times: i32,
    /// It was told before.
    pub(super) again: bool,
}

#[derive(Debug)]
struct Met {
    first: Now,
    last: Instant,
    times: i32,
    told: Option<Instant>,
}

/// What was met.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Key, Met>);

impl Memory {
    /// A problem was met; `None` if there is nothing to tell.
    pub(super) fn met(&mut self, key: Key, passing: bool, now: Now) -> Option<Occurrence> {
        let since = |then| now.monotonic.saturating_duration_since(then);
        self.0.retain(|_, met| since(met.last) < REMEMBERED);
        if passing && self.0.get(&key).is_some_and(|met| since(met.last) > PASSED) {
            self.0.remove(&key);
        }
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, met)| met.last).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        let new = Met { first: now, last: now.monotonic, times: 0, told: None };
        let met = self.0.entry(key).or_insert(new);
        met.last = now.monotonic;
        met.times = met.times.saturating_add(1);
        let ripe = !passing || since(met.first.monotonic) >= LASTING;
        let due = met.told.is_none_or(|told| since(told) >= AGAIN_AFTER);
        (ripe && due).then(|| {
            let again = met.told.replace(now.monotonic).is_some();
            Occurrence { first: met.first.wall, times: met.times, again }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Now);

    impl Clock {
        fn new() -> Self {
            Self(crate::clock::now())
        }

        fn after(&self, seconds: u64) -> Now {
            let since = Duration::from_secs(seconds);
            Now { wall: self.0.wall + since, monotonic: self.0.monotonic + since }
        }
    }

    fn key(pod: &str) -> Key {
        Key { pod: pod.into(), reason: Reason::CredentialsRefused, which: "AccessDenied".to_owned() }
    }

    #[test]
    fn a_problem_is_told_once_and_after_ten_minutes_as_the_same_again() {
        let (mut memory, clock) = (Memory::default(), Clock::new());
        let first = clock.0.wall;
        let told = memory.met(key("1"), false, clock.after(0));
        assert_eq!(told, Some(Occurrence { first, times: 1, again: false }));
        for at in 1..600 {
            assert_eq!(memory.met(key("1"), false, clock.after(at)), None, "{at}");
        }
        let told = memory.met(key("1"), false, clock.after(600));
        assert_eq!(told, Some(Occurrence { first, times: 601, again: true }));
        assert_eq!(memory.met(key("1"), false, clock.after(601)), None);
    }

    #[test]
    fn another_pod_another_reason_and_another_cause_are_other_problems() {
        let (mut memory, clock) = (Memory::default(), Clock::new());
        let another_reason = Key { reason: Reason::RenewalFailing, ..key("1") };
        let another_cause = Key { which: "ValidationError".to_owned(), ..key("1") };
        for key in [key("1"), key("2"), another_reason, another_cause] {
            assert!(memory.met(key.clone(), false, clock.after(0)).is_some());
            assert!(memory.met(key, false, clock.after(1)).is_none());
        }
    }

    #[test]
    fn what_may_pass_is_told_once_it_has_lasted_and_not_if_it_only_comes_back() {
        let (mut memory, clock) = (Memory::default(), Clock::new());
        for at in [0, 4, 8, 56] {
            assert_eq!(memory.met(key("1"), true, clock.after(at)), None, "{at}");
        }
        let told = memory.met(key("1"), true, clock.after(60));
        assert_eq!(told, Some(Occurrence { first: clock.0.wall, times: 5, again: false }));

        assert_eq!(memory.met(key("2"), true, clock.after(60)), None);
        let later = clock.after(60 + 121);
        assert_eq!(memory.met(key("2"), true, later), None, "it had passed");
        assert_eq!(memory.met(key("2"), true, clock.after(60 + 121 + 60)).map(|told| told.first), Some(later.wall));
    }

    #[test]
    fn memory_is_bounded_by_age_and_by_number() {
        let (mut memory, clock) = (Memory::default(), Clock::new());
        for pod in 0..2 * MOST as u64 {
            assert!(memory.met(key(&pod.to_string()), false, clock.after(pod / 100)).is_some());
        }
        assert_eq!(memory.0.len(), MOST);
        // The latest are those that are kept; of those that were met at the same time, any.
        assert!(memory.met(key(&(MOST + 100).to_string()), false, clock.after(30)).is_none());
        assert!(memory.met(key("new"), false, clock.after(3700)).is_some());
        assert_eq!(memory.0.len(), 1);
    }
}
