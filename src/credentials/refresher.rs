//! The refresher: the one writer of all slots.
//!
//! Owns every fetch, so that a caller who leaves cancels nothing. What is fetched when, the
//! [`Schedule`] says. A panic in one fetch is that slot's transient error; a panic of the refresher itself ends
//! the process.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
};

use super::{
    Command, Document, SessionScope, Slot, Store, View,
    schedule::{Key, Limits, Schedule, Turn},
    slot::{Event, Failure, Priority, State},
    trace::{Attempt, Missed, Next, Stage},
};
use crate::{
    audit::{Audit, SharedSession},
    clock,
    events::{Cause, Events},
    identity::Grant,
    metrics::Metrics,
    sts::{Ask, Call, Class, Exchange, ExchangeError},
    token::{TokenError, TokenSource},
};

/// How often it is looked whether a clock was stepped.
const LOOK_AT_CLOCKS: Duration = Duration::from_secs(5);

/// What [`Slot::meets`] is told of credentials that are good for less time than was asked for.
const SHORTENED: &str = "shortened";

/// Whether a pod is still alive and entitled to this.
type Entitled = Box<dyn Fn(&Grant) -> bool + Send + Sync>;

/// The one writer of all slots.
pub struct Refresher {
    store: Arc<Store>,
    commands: mpsc::UnboundedReceiver<Command>,
    fetcher: Arc<Fetcher>,
    entitled: Entitled,
    metrics: Arc<Metrics>,
    schedule: Schedule,
    slots: HashMap<Key, Arc<Slot>>,
    fetches: JoinSet<Fetched>,
    in_flight: HashMap<Id, (Key, AbortHandle)>,
}

/// What came of a fetch.
struct Fetched {
    result: Result<Arc<Document>, Failure>,
    /// Calls of STS that it took.
    calls: u32,
}

struct Fetcher {
    tokens: Arc<dyn TokenSource>,
    exchange: Arc<dyn Exchange>,
    scope: SessionScope,
    events: Arc<Events>,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Refresher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refresher").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

// === impl Refresher ===

impl Refresher {
    /// The writer of the channel's store. `entitled` is asked before each fetch.
    pub fn new(
        tokens: Arc<dyn TokenSource>,
        exchange: Arc<dyn Exchange>,
        limits: Limits,
        entitled: impl Fn(&Grant) -> bool + Send + Sync + 'static,
        events: Arc<Events>,
        metrics: Arc<Metrics>,
        channel: Channel,
    ) -> Self {
        let (scope, audit) = (channel.store.scope, Arc::clone(&channel.store.audit));
        metrics.sts_budget_limit.set(limits.burst.into());
        Self {
            store: channel.store,
            commands: channel.commands,
            fetcher: Arc::new(Fetcher { tokens, exchange, scope, events, audit, metrics: Arc::clone(&metrics) }),
            entitled: Box::new(entitled),
            metrics,
            schedule: Schedule::new(limits, clock::now()),
            slots: HashMap::new(),
            fetches: JoinSet::new(),
            in_flight: HashMap::new(),
        }
    }

    /// Writes; never ends, since it has the store, which can always tell it more.
    pub async fn run(mut self) {
        let mut clocks = tokio::time::interval(LOOK_AT_CLOCKS);
        clocks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked = clock::now();
        loop {
            let next = self.start_fetches();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Want(slot)) => self.asked(slot, Event::Wanted),
                    Some(Command::Foresee(slot)) => self.asked(slot, Event::Foreseen),
                    Some(Command::Retire(slot)) => self.step(slot.id, Event::Retired),
                    None => return,
                },
                Some(fetched) = self.fetches.join_next_with_id() => self.fetched(fetched),
                () = sleep_until(next) => {
                    let due = self.schedule.due(clock::now());
                    self.due(due);
                }
                _ = clocks.tick() => {
                    let before = std::mem::replace(&mut looked, clock::now());
                    if looked.stepped_since(before) {
                        tracing::warn!("the clock was set or the machine slept: all credentials are looked at");
                        self.due(self.schedule.all());
                    }
                }
            }
        }
    }

    fn asked(&mut self, slot: Arc<Slot>, event: Event) {
        if matches!(event, Event::Wanted) {
            // From here on a further caller's wish is a new one.
            slot.wanted.store(false, Ordering::Release);
        }
        if matches!(**slot.view.load(), View::Gone) {
            return;
        }
        let key = slot.id;
        self.slots.entry(key).or_insert(slot);
        self.step(key, event);
    }

    fn due(&mut self, keys: Vec<Key>) {
        let now = clock::now();
        for key in keys {
            let idle = self.slots.get(&key).is_some_and(|slot| {
                let life = match self.schedule.state(key) {
                    Some(State::Fresh { document, .. }) => Some(document.life()),
                    // As long as it would live.
                    Some(State::Failed { .. }) => slot.asked_life(),
                    _ => None,
                };
                life.is_some_and(|life| self.store.idle(slot, life, now))
            });
            self.step(key, Event::Due { idle });
        }
    }

    fn fetched(&mut self, fetched: Result<(Id, Fetched), JoinError>) {
        let (id, Fetched { result, calls }) = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("a fetch panicked; it is made again");
                }
                (error.id(), Fetched { result: Err(Failure::Transient), calls: 1 })
            }
        };
        let Some((key, _)) = self.in_flight.remove(&id) else { return };
        let throttled = matches!(result, Err(Failure::Throttled));
        self.schedule.ended(key, calls, throttled, clock::now());
        self.step(key, result.map_or_else(Event::Refused, Event::Fetched));
    }

    fn step(&mut self, key: Key, event: Event) {
        let now = clock::now();
        let state = self.schedule.step(key, event, now, fastrand::f64());
        let Some(slot) = self.slots.get(&key) else { return };
        slot.trace().next = Next::of(&state, now);
        slot.publish(match state {
            State::Empty => View::Pending(None),
            // Nobody waits for what is tried again after it was permanent.
            State::Fetching { after: Some(Failure::Permanent), priority, .. } if priority != Priority::Asked => {
                View::Failed(Failure::Permanent, None)
            }
            State::Fetching { after, .. } => View::Pending(after),
            State::Fresh { document, .. } | State::Renewing { document, .. } => View::Document(document),
            State::Failed { failure, until, .. } => View::Failed(failure, Some(until)),
            State::Gone => {
                // What it would bring is for nobody.
                self.in_flight.values().filter(|(of, _)| *of == key).for_each(|(_, fetch)| fetch.abort());
                self.store.remove(slot);
                self.slots.remove(&key);
                return;
            }
        });
    }

    /// Starts what may be started; until when nothing more is to be done.
    fn start_fetches(&mut self) -> Option<Instant> {
        loop {
            match self.schedule.next(clock::now()) {
                Turn::Wait(until) => {
                    self.note_budget();
                    return until;
                }
                Turn::Fetch(key) => self.start_fetch(key),
            }
        }
    }

    /// Each few seconds at least, for the budget grows by itself.
    fn note_budget(&self) {
        let fetches = [("queued", self.schedule.queued()), ("in_flight", self.in_flight.len())];
        for (state, count) in fetches {
            self.metrics.fetches.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.metrics.sts_budget.set(self.schedule.calls_left(clock::now()));
    }

    fn start_fetch(&mut self, key: Key) {
        let slot = self.slots.get(&key).map(Arc::clone);
        let grants = slot.as_ref().map(|slot| slot.in_turn()).unwrap_or_default();
        let (entitled, ended): (Vec<_>, Vec<_>) = grants.into_iter().partition(|grant| (self.entitled)(grant));
        // Their pods asked while they ended.
        ended.iter().for_each(|grant| self.store.let_go(grant));
        let (Some(slot), Some(grant)) = (slot, entitled.into_iter().next()) else {
            self.schedule.ended(key, 0, false, clock::now());
            self.step(key, Event::Retired);
            return;
        };
        let renewal = matches!(self.schedule.state(key), Some(State::Renewing { .. }));
        let fetch = self.fetches.spawn(Arc::clone(&self.fetcher).fetch(slot, grant, renewal));
        self.in_flight.insert(fetch.id(), (key, fetch));
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

// === impl Fetcher ===

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("STS refused the exchange: {0}")]
    Exchange(#[from] ExchangeError),
    #[error("the credentials that STS gave have expired by this node's clock: set the clock")]
    Clock,
}

impl FetchError {
    /// What is the same problem, however AWS words it this time.
    fn kind(&self) -> String {
        match self {
            Self::Token(error) => format!("token {}", error.label()),
            Self::Exchange(error) => format!("{} {} {}", error.action, error.role, error.code),
            Self::Clock => "clock".to_owned(),
        }
    }

    fn cause(&self) -> Cause<'_> {
        match self {
            Self::Token(error) => Cause::Token(error),
            Self::Exchange(error) => Cause::Exchange(error),
            Self::Clock => Cause::Clock,
        }
    }

    fn stage(&self) -> Stage {
        match self {
            Self::Token(_) => Stage::Token,
            Self::Exchange(_) | Self::Clock => Stage::Exchange,
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::Token(error) => error.label(),
            Self::Exchange(error) => &error.code,
            Self::Clock => "Clock",
        }
    }

    fn failure(&self) -> Failure {
        match self {
            Self::Token(error) if error.is_transient() => Failure::Transient,
            Self::Token(_) => Failure::Permanent,
            Self::Exchange(error) => match error.class {
                Class::Permanent => Failure::Permanent,
                Class::Throttled => Failure::Throttled,
                Class::Transient | Class::TokenExpired => Failure::Transient,
            },
            Self::Clock => Failure::Transient,
        }
    }
}

impl Fetcher {
    async fn fetch(self: Arc<Self>, slot: Arc<Slot>, grant: Arc<Grant>, renewal: bool) -> Fetched {
        let calls = AtomicU32::new(0);
        let fetched = self.try_fetch(&slot, &grant, &calls).await;
        let mut missed = None;
        let result = fetched.map(Arc::new).map_err(|error| {
            tell_of(&slot, &grant, &error, renewal);
            let sharing = slot.holders().grants.clone();
            // The next try is made with the token of another.
            let of_pod = matches!(&error, FetchError::Token(error) if error.is_of_pod()) && sharing.len() > 1;
            let concerned = if of_pod { std::slice::from_ref(&grant) } else { &sharing };
            concerned.iter().for_each(|grant| self.events.failed(grant, error.cause(), renewal));
            let failure = if of_pod { Failure::Transient } else { error.failure() };
            missed = Some(Missed {
                stage: error.stage(),
                may_pass: failure != Failure::Permanent,
                code: error.code().to_owned(),
                words: self.events.words(&grant, error.cause(), renewal),
            });
            failure
        });
        slot.trace().last = Some(Attempt { at: clock::now().wall, pod: Arc::clone(&grant.pod), missed });
        Fetched { result, calls: calls.into_inner() }
    }

    async fn try_fetch(&self, slot: &Slot, grant: &Grant, calls: &AtomicU32) -> Result<Document, FetchError> {
        let (session_name, tags) = (self.scope.session_name(grant), self.scope.session_tags(grant));
        let told = |call: Call<'_>| {
            calls.fetch_add(1, Ordering::Relaxed);
            self.audit.called(grant, &session_name, &call);
        };
        let ask = Ask { wish: &grant.wish, session_name: &session_name, tags: &tags, token: None, told: &told };
        let session = if grant.wish.takes_token() {
            let token = self.token(grant).await?;
            match self.exchange.exchange(Ask { token: Some(&token), ..ask }).await {
                Err(error) if error.class == Class::TokenExpired => {
                    let token = self.token(grant).await?;
                    self.exchange.exchange(Ask { token: Some(&token), ..ask }).await
                }
                first => first,
            }
        } else {
            self.exchange.exchange(ask).await
        };
        if let (Ok(session), SessionScope::ServiceAccount) = (&session, self.scope) {
            let shared = SharedSession::new(session.issued(), session_name.clone(), grant.pod.uid.clone());
            slot.shares(shared, &self.audit);
        }
        // In the audit log before it is served.
        self.audit.written().await;
        let session = session?;
        let document = Document::new(&session, grant.role(), clock::now()).ok_or(FetchError::Clock)?;
        tell_of_success(slot, grant, session.shortened);
        if session.shortened {
            slot.holders().grants.iter().for_each(|grant| self.events.shortened(grant));
        }
        Ok(document)
    }

    async fn token(&self, grant: &Grant) -> Result<SecretString, TokenError> {
        let start = clock::now();
        let token = self.tokens.token(grant).await;
        let took = clock::now().monotonic.duration_since(start.monotonic);
        self.metrics.token_request_seconds.observe(took.as_secs_f64());
        let result = token.as_ref().map_or_else(TokenError::label, |_| "ok");
        self.metrics.token_requests.with_label_values(&[result]).inc();
        token
    }
}

/// A failure is a line in the log when it begins or becomes another one, and not each time that it is met.
fn tell_of(slot: &Slot, grant: &Grant, error: &FetchError, renewal: bool) {
    let (pod, role) = (&grant.pod, grant.role());
    let what = if renewal { "'s credentials are not renewed" } else { " got no credentials" };
    match slot.trace().tell(Some(error.kind())) {
        Some(_) => tracing::warn!(
            namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name, %role,
            "{}{what}: {error}", grant.by()
        ),
        None => tracing::debug!(
            namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name, %role,
            "{}{what}, as before: {error}", grant.by()
        ),
    }
}

/// So is its end, and that sessions are shorter than was asked for.
fn tell_of_success(slot: &Slot, grant: &Grant, shortened: bool) {
    let (pod, role) = (&grant.pod, grant.role());
    match slot.trace().tell(shortened.then(|| SHORTENED.to_owned())) {
        Some(_) if shortened => tracing::warn!(
            namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name, %role,
            "{} gets shorter sessions than it asks for: the role does not allow {} s",
            grant.by(), grant.wish.session_seconds
        ),
        Some(Some(before)) if before != SHORTENED => tracing::info!(
            namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name, %role,
            "{} gets credentials again", grant.by()
        ),
        Some(_) | None => {}
    }
}

/// A store and the way to its writer, made before either can run.
#[derive(Debug)]
pub struct Channel {
    store: Arc<Store>,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Channel {
    /// An empty store, whose sessions are told to the auditor.
    #[must_use]
    pub fn new(scope: SessionScope, audit: Arc<Audit>) -> Self {
        let (sender, commands) = mpsc::unbounded_channel();
        Self { store: Arc::new(Store::new(scope, audit, sender)), commands }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }
}
