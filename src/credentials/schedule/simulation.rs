//! A node in injected time: the schedule, pods that ask, and an STS that answers, fails or is away.
//!
//! Plays the refresher's part. After whatever happens it looks whether the schedule keeps its promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    super::{
        document::{Document, Form},
        slot::{Event, Failure, Priority, State},
    },
    Key, Limits, Schedule, Turn,
};
use crate::{clock::Now, sts::Session};

/// What STS does with calls that end now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Good,
    Fails(Failure),
}

/// What the node's pods have seen and done.
#[derive(Debug, Default)]
struct Pod {
    last_read: Option<Instant>,
    /// When the credentials that it was given last end, on both clocks.
    ends: Option<(Instant, SystemTime)>,
    /// It found nothing since the last fetch failed.
    asked_since_failure: bool,
}

pub(super) struct Simulation {
    pub(super) random: fastrand::Rng,
    pub(super) now: Now,
    pub(super) answer: Answer,
    pub(super) latency: Duration,
    pub(super) life: Duration,
    /// Whom STS refuses in any case.
    pub(super) refused: BTreeSet<Key>,
    /// When each fetch began.
    pub(super) fetched: Vec<Instant>,
    /// When each call of STS was made: some fetches make two.
    calls: Vec<Instant>,
    limits: Limits,
    schedule: Schedule,
    pods: BTreeMap<Key, Pod>,
    fetches: BTreeSet<(Instant, Key)>,
}

impl Simulation {
    pub(super) fn new(random: fastrand::Rng, limits: Limits) -> Self {
        let now = Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000), monotonic: Instant::now() };
        Self {
            random,
            now,
            answer: Answer::Good,
            latency: Duration::from_millis(200),
            life: Duration::from_secs(3600),
            refused: BTreeSet::new(),
            fetched: Vec::new(),
            calls: Vec::new(),
            limits,
            schedule: Schedule::new(limits, now),
            pods: BTreeMap::new(),
            fetches: BTreeSet::new(),
        }
    }

    /// A pod appears.
    pub(super) fn foresee(&mut self, key: Key) {
        self.pods.entry(key).or_default().last_read = Some(self.now.monotonic);
        self.happens(key, Event::Foreseen);
    }

    /// A pod asks: what is left of the life of what it is given, or why it is given nothing.
    pub(super) fn ask(&mut self, key: Key) -> Result<f64, Option<Failure>> {
        let pod = self.pods.entry(key).or_default();
        pod.last_read = Some(self.now.monotonic);
        if let Some(document) = self.document(key)
            && document.body(Form::Metadata, self.now).is_some()
        {
            let (monotonic, wall) = self.pods[&key].ends.unwrap();
            assert!(self.now.monotonic < monotonic && self.now.wall < wall, "expired credentials are served");
            return Ok(document.expires().left(self.now).as_secs_f64() / document.life().as_secs_f64());
        }
        self.pods.entry(key).or_default().asked_since_failure = true;
        self.happens(key, Event::Wanted);
        match self.schedule.state(key) {
            Some(State::Failed { failure, .. }) => Err(Some(*failure)),
            Some(State::Fetching { after, .. }) => Err(*after),
            _ => Err(None),
        }
    }

    /// A pod ends, or its role changes.
    pub(super) fn retire(&mut self, key: Key) {
        if self.pods.remove(&key).is_some() {
            self.happens(key, Event::Retired);
        }
        assert!(self.schedule.state(key).is_none());
    }

    /// The wall clock is set.
    pub(super) fn step_wall(&mut self, wall: SystemTime) {
        self.now.wall = wall;
        for key in self.schedule.all() {
            self.due(key);
        }
        self.settle();
    }

    /// Time passes, with all that is due in it.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        loop {
            let until = self.settle();
            assert!(until.is_none_or(|until| until > self.now.monotonic), "it would spin");
            let ends = self.fetches.first().map(|(at, _)| *at);
            let next = [until, ends].into_iter().flatten().min().filter(|next| *next <= end).unwrap_or(end);
            let passed = next - self.now.monotonic;
            self.now = Now { monotonic: next, wall: self.now.wall + passed };
            while let Some((at, key)) = self.fetches.first().copied()
                && at <= self.now.monotonic
            {
                self.fetches.remove(&(at, key));
                self.fetched(key);
            }
            let timer = self.schedule.timers.first();
            assert!(timer.is_none_or(|(at, _)| *at >= self.now.monotonic), "a timer was slept through");
            for key in self.schedule.due(self.now) {
                self.due(key);
            }
            if next == end {
                self.settle();
                return;
            }
        }
    }

    pub(super) fn pods(&self) -> Vec<Key> {
        self.pods.keys().copied().collect()
    }

    pub(super) fn served(&self, key: Key) -> bool {
        self.document(key).is_some_and(|document| document.body(Form::Metadata, self.now).is_some())
    }

    fn document(&self, key: Key) -> Option<Arc<Document>> {
        match self.schedule.state(key)? {
            State::Fresh { document, .. } | State::Renewing { document, .. } => Some(Arc::clone(document)),
            _ => None,
        }
    }

    fn happens(&mut self, key: Key, event: Event) {
        let chance = self.random.f64();
        self.schedule.step(key, event, self.now, chance);
        self.settle();
    }

    fn due(&mut self, key: Key) {
        let failed = matches!(self.schedule.state(key), Some(State::Failed { .. }));
        let life = self.document(key).map(|document| document.life()).or_else(|| failed.then_some(ASKED_LIFE));
        let idle = life.is_some_and(|life| self.idle(key, life));
        let chance = self.random.f64();
        if matches!(self.schedule.step(key, Event::Due { idle }, self.now, chance), State::Gone) {
            assert!(idle, "given up though it is read");
            self.pods.remove(&key);
        }
    }

    fn idle(&self, key: Key, life: Duration) -> bool {
        let read = self.pods.get(&key).and_then(|pod| pod.last_read);
        read.is_none_or(|read| self.now.monotonic - read > life)
    }

    fn fetched(&mut self, key: Key) {
        let session = Session {
            access_key_id: "ASIA".to_owned(),
            secret_access_key: "s".into(),
            session_token: "t".into(),
            expiration: self.now.wall + self.life,
            shortened: false,
        };
        let calls = self.random.u32(1..=2);
        self.calls.extend((1..calls).map(|_| self.now.monotonic));
        let refused = self.refused.contains(&key);
        let answer = if refused { Answer::Fails(Failure::Permanent) } else { self.answer };
        self.schedule.ended(key, calls, answer == Answer::Fails(Failure::Throttled), self.now);
        let event = match answer {
            Answer::Good => {
                let ends = Some((self.now.monotonic + self.life, session.expiration));
                self.pods.entry(key).and_modify(|pod| pod.ends = ends);
                let role = "arn:aws:iam::111122223333:role/web".parse().unwrap();
                Event::Fetched(Arc::new(Document::new(&session, &role, self.now).unwrap()))
            }
            Answer::Fails(failure) => Event::Refused(failure),
        };
        self.pods.entry(key).and_modify(|pod| pod.asked_since_failure = false);
        let chance = self.random.f64();
        self.schedule.step(key, event, self.now, chance);
    }

    /// Starts what may start.
    fn settle(&mut self) -> Option<Instant> {
        let until = loop {
            match self.schedule.next(self.now) {
                Turn::Wait(until) => break until,
                Turn::Fetch(key) => self.started(key),
            }
        };
        self.look();
        until
    }

    fn started(&mut self, key: Key) {
        let waiting = self.waiting();
        assert!(self.pods.contains_key(&key), "a fetch for a pod that is gone");
        assert!(self.fetches.iter().all(|(_, other)| *other != key), "a second fetch in flight");
        let document = self.document(key);
        let late = document.as_ref().is_some_and(|d| d.expires().left(self.now) <= d.life() / 4);
        let first = waiting.values().min();
        assert!(late || waiting.get(&key) == first, "{:?} before {first:?}", waiting.get(&key));
        self.fetches.insert((self.now.monotonic + self.latency, key));
        assert!(self.fetches.len() <= self.limits.in_flight, "too many in flight");
        self.fetched.push(self.now.monotonic);
        self.calls.push(self.now.monotonic);
        // Within any time no more than the burst and what the rate gives, but for what fetches in flight turned out
        // to need.
        let burst = f64::from(self.limits.burst) + self.limits.in_flight as f64;
        for (number, at) in (1_u32..).zip(self.calls.iter().rev().take(24)) {
            let since = self.now.monotonic - *at;
            let may = burst + self.limits.per_second * since.as_secs_f64();
            assert!(f64::from(number) <= may + 1e-6, "{number} calls in {since:?}, not {may}");
        }
    }

    /// Those that need a fetch and have none in flight.
    fn waiting(&self) -> BTreeMap<Key, Priority> {
        let in_flight = self.fetches.iter().map(|(_, key)| *key).collect::<BTreeSet<_>>();
        let needs = |key: Key| match self.schedule.state(key)? {
            State::Fetching { priority, .. } => Some(*priority),
            State::Renewing { document, .. } if document.expires().passed(self.now) => Some(Priority::Expired),
            State::Renewing { .. } => Some(Priority::Renewal),
            _ => None,
        };
        let waiting = self.pods.keys().filter(|key| !in_flight.contains(key));
        waiting.filter_map(|key| Some((*key, needs(*key)?))).collect()
    }

    /// No slot is without the fetch that it needs, and of a pod that is gone there is nothing.
    fn look(&self) {
        let waiting = self.waiting();
        assert_eq!(self.schedule.queued(), waiting.len(), "what waits is what is needed");
        let known = self.pods.keys().filter(|key| self.schedule.state(**key).is_some()).count();
        assert_eq!(self.schedule.slots.len(), known, "something of a pod that is gone");
        let mut timers = BTreeSet::new();
        for (key, pod) in &self.pods {
            let timer = match self.schedule.state(*key) {
                Some(State::Fresh { document, due, .. }) => {
                    assert!(due.monotonic <= document.expires().monotonic, "renewed after the end");
                    assert!(document.expires().monotonic <= self.now.monotonic + document.life());
                    Some(due.monotonic)
                }
                Some(State::Failed { failure, until, again, .. }) => {
                    let longest = if *failure == Failure::Permanent { 30 } else { 4 };
                    assert!(*until <= self.now.monotonic + Duration::from_secs(longest), "{failure:?}");
                    let by_itself = *failure != Failure::Permanent || pod.asked_since_failure;
                    assert_eq!(again.is_some(), by_itself, "{failure:?}");
                    again.map(|(at, _)| at)
                }
                Some(State::Fetching { .. } | State::Renewing { .. }) | None => None,
                Some(state @ (State::Empty | State::Gone)) => panic!("{state:?}"),
            };
            if let Some(at) = timer {
                assert!(at > self.now.monotonic, "late");
                assert!(at <= self.now.monotonic + Duration::from_secs(60).max(self.life.max(LONGEST_LIFE)));
                timers.insert((at, *key));
            }
        }
        assert_eq!(self.schedule.timers, timers);
    }
}

/// What sessions are asked to last.
const ASKED_LIFE: Duration = Duration::from_secs(3600);
/// The longest that is tried.
pub(super) const LONGEST_LIFE: Duration = Duration::from_secs(43_200);
