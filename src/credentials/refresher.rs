//! The refresher: the one writer of all slots.
//!
//! Owns every fetch, so that a caller who leaves cancels nothing, and every timer. At most
//! [`CONCURRENT_FETCHES`] are in flight; those that a caller waits for go first. A panic in one fetch is
//! that slot's transient error; a panic of the refresher itself ends the process.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
};

use super::{
    Command, Document, Slot, Store, View, session_name,
    slot::{Event, Failure, State, Step},
};
use crate::{
    clock,
    identity::Grant,
    metrics::Metrics,
    sts::{Class, Exchange, ExchangeError, Session},
    token::{TokenError, TokenSource},
};

/// Fetches in flight at once.
const CONCURRENT_FETCHES: usize = 16;

/// Whether a pod is still alive and entitled to this.
type Entitled = Box<dyn Fn(&Grant) -> bool + Send + Sync>;

/// A slot's id.
type Key = u64;

/// The one writer of all slots.
pub struct Refresher {
    store: Arc<Store>,
    commands: mpsc::UnboundedReceiver<Command>,
    fetcher: Arc<Fetcher>,
    entitled: Entitled,
    metrics: Arc<Metrics>,
    slots: HashMap<Key, Tracked>,
    timers: BTreeSet<(Instant, Key)>,
    asked: VecDeque<Key>,
    renewals: VecDeque<Key>,
    fetches: JoinSet<Result<Arc<Document>, Failure>>,
    in_flight: HashMap<Id, Key>,
}

struct Tracked {
    slot: Arc<Slot>,
    state: State,
}

struct Fetcher {
    tokens: Arc<dyn TokenSource>,
    exchange: Arc<dyn Exchange>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Refresher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refresher").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

// === impl Refresher ===

impl Refresher {
    /// A store and its writer. `entitled` is asked before each fetch.
    pub fn new(
        tokens: Arc<dyn TokenSource>,
        exchange: Arc<dyn Exchange>,
        entitled: impl Fn(&Grant) -> bool + Send + Sync + 'static,
        metrics: Arc<Metrics>,
        channel: Channel,
    ) -> Self {
        Self {
            store: channel.store,
            commands: channel.commands,
            fetcher: Arc::new(Fetcher { tokens, exchange, metrics: Arc::clone(&metrics) }),
            entitled: Box::new(entitled),
            metrics,
            slots: HashMap::new(),
            timers: BTreeSet::new(),
            asked: VecDeque::new(),
            renewals: VecDeque::new(),
            fetches: JoinSet::new(),
            in_flight: HashMap::new(),
        }
    }

    /// Writes until the store's last user is gone, which is never while the process serves.
    pub async fn run(mut self) {
        loop {
            self.start_fetches();
            let next = self.timers.first().map(|(at, _)| *at);
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Want(slot)) => self.wanted(slot),
                    Some(Command::Retire(slot)) => self.step(slot.id, Event::Retired),
                    None => return,
                },
                Some(fetched) = self.fetches.join_next_with_id() => self.fetched(fetched),
                () = sleep_until(next) => self.due(),
            }
        }
    }

    fn wanted(&mut self, slot: Arc<Slot>) {
        // From here on a further caller's wish is a new one.
        slot.wanted.store(false, Ordering::Release);
        if matches!(**slot.view.load(), View::Gone) {
            return;
        }
        let key = slot.id;
        self.slots.entry(key).or_insert(Tracked { slot, state: State::Empty });
        self.step(key, Event::Wanted);
    }

    fn due(&mut self) {
        let now = clock::now();
        while let Some((at, key)) = self.timers.first().copied()
            && at <= now.monotonic
        {
            self.timers.remove(&(at, key));
            let idle = self.slots.get(&key).is_some_and(|tracked| match &tracked.state {
                State::Fresh { document, .. } => self.store.idle(&tracked.slot, document.life(), now),
                _ => false,
            });
            self.step(key, Event::Due { idle });
        }
    }

    fn fetched(&mut self, fetched: Result<(Id, Result<Arc<Document>, Failure>), JoinError>) {
        let (id, result) = match fetched {
            Ok((id, result)) => (id, result),
            Err(error) => {
                tracing::error!("a fetch panicked; its pod's next request starts another");
                (error.id(), Err(Failure::Transient))
            }
        };
        if let Some(key) = self.in_flight.remove(&id) {
            self.step(key, result.map_or_else(Event::Refused, Event::Fetched));
        }
    }

    fn step(&mut self, key: Key, event: Event) {
        let Some(tracked) = self.slots.get_mut(&key) else { return };
        let now = clock::now();
        let (state, step) = std::mem::replace(&mut tracked.state, State::Gone).step(event, now, fastrand::f64());
        tracked.state = state;
        match step {
            Step::Rest => {}
            Step::Wake(at) => {
                self.timers.insert((at, key));
            }
            Step::Fetch if matches!(tracked.state, State::Renewing { .. }) => self.renewals.push_back(key),
            Step::Fetch => self.asked.push_back(key),
        }
        self.publish(key);
    }

    fn publish(&mut self, key: Key) {
        let Some(Tracked { slot, state }) = self.slots.get(&key) else { return };
        match state {
            State::Empty => slot.publish_if_new(View::Pending(None)),
            State::Fetching { after, .. } => slot.publish_if_new(View::Pending(*after)),
            State::Fresh { document, .. } | State::Renewing { document, .. } => {
                slot.publish_if_new(View::Document(Arc::clone(document)));
            }
            State::Failed { failure, until, .. } => slot.publish_if_new(View::Failed(*failure, *until)),
            State::Gone => {
                self.store.remove(slot);
                self.slots.remove(&key);
                self.timers.retain(|(_, other)| *other != key);
                self.asked.retain(|other| *other != key);
                self.renewals.retain(|other| *other != key);
                self.in_flight.retain(|_, other| *other != key);
            }
        }
        self.metrics.slots.set(i64::try_from(self.slots.len()).unwrap_or(i64::MAX));
    }

    fn start_fetches(&mut self) {
        while self.fetches.len() < CONCURRENT_FETCHES {
            let Some(key) = self.asked.pop_front().or_else(|| self.renewals.pop_front()) else { return };
            let Some(tracked) = self.slots.get(&key) else { continue };
            let grant = Arc::clone(&tracked.slot.grant);
            if (self.entitled)(&grant) {
                let fetch = self.fetches.spawn(Arc::clone(&self.fetcher).fetch(grant));
                self.in_flight.insert(fetch.id(), key);
            } else {
                self.step(key, Event::Retired);
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Slot {
    fn publish_if_new(&self, view: View) {
        let same = match (&**self.view.load(), &view) {
            (View::Pending(old), View::Pending(new)) => old == new,
            (View::Document(old), View::Document(new)) => Arc::ptr_eq(old, new),
            (View::Failed(old, old_until), View::Failed(new, until)) => old == new && old_until == until,
            // What the store has given up stays so.
            (View::Gone, _) => true,
            _ => false,
        };
        if !same {
            self.publish(view);
        }
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
    fn failure(&self) -> Failure {
        let transient = match self {
            Self::Token(error) => error.is_transient(),
            Self::Exchange(error) => error.class != Class::Permanent,
            Self::Clock => true,
        };
        if transient { Failure::Transient } else { Failure::Permanent }
    }
}

impl Fetcher {
    async fn fetch(self: Arc<Self>, grant: Arc<Grant>) -> Result<Arc<Document>, Failure> {
        self.try_fetch(&grant).await.map(Arc::new).map_err(|error| {
            let (pod, role) = (&grant.pod, grant.role());
            tracing::warn!(
                namespace = %pod.namespace, service_account = %pod.service_account, pod = %pod.name, %role,
                "service account {}/{} got no credentials: {error}", pod.namespace, pod.service_account
            );
            error.failure()
        })
    }

    async fn try_fetch(&self, grant: &Grant) -> Result<Document, FetchError> {
        let session_name = session_name(&grant.pod);
        let mut token = self.token(grant).await?;
        let session = match self.exchange(grant, &session_name, &token).await {
            Err(error) if error.class == Class::TokenExpired => {
                token = self.token(grant).await?;
                self.exchange(grant, &session_name, &token).await
            }
            first => first,
        }?;
        Document::new(&session, clock::now()).ok_or(FetchError::Clock)
    }

    async fn token(&self, grant: &Grant) -> Result<SecretString, TokenError> {
        let token = self.tokens.token(grant).await;
        let result = token.as_ref().map_or_else(TokenError::label, |_| "ok");
        self.metrics.token_requests.with_label_values(&[result]).inc();
        token
    }

    async fn exchange(
        &self,
        grant: &Grant,
        session_name: &str,
        token: &SecretString,
    ) -> Result<Session, ExchangeError> {
        let start = clock::now();
        let session = self.exchange.exchange(&grant.wish, session_name, token).await;
        self.metrics.exchange_seconds.observe(clock::now().monotonic.duration_since(start.monotonic).as_secs_f64());
        let result = session.as_ref().map_or_else(ExchangeError::label, |_| "ok");
        self.metrics.exchanges.with_label_values(&[result]).inc();
        session
    }
}

/// A store and the way to its writer, made before either can run.
#[derive(Debug)]
pub struct Channel {
    store: Arc<Store>,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Channel {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        let (sender, commands) = mpsc::unbounded_channel();
        Self { store: Arc::new(Store::new(sender)), commands }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }
}

impl Default for Channel {
    fn default() -> Self {
        Self::new()
    }
}
