//! What can be made to go wrong, and for which requests.
//!
//! A fault strikes after authentication and before authorisation, where a real server's flow
//! control stands. Faults of watches strike those that are open; faults of tokens, those made after.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    lock, objects,
    resource::Resource,
    status::{Status, typed_response},
    store::{Key, Signal, Store},
};
use crate::http::Body;

/// Which requests a fault strikes.
#[derive(Clone, Debug, Default)]
pub struct Target {
    verb: Option<String>,
    resource: Option<String>,
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answered with this status, and a `Status` object that fits it.
    Answer(StatusCode),
    /// Refused by flow control: 429, `Retry-After` in seconds, a body of plain text.
    TooManyRequests {
        /// Seconds.
        retry_after: u64,
    },
    /// Accepted and not answered until the faults are cleared; then answered as if nothing had been.
    Stall,
    /// Answered late.
    Delay(Duration),
    /// Answered after all history was compacted: what continues a list or watches on gets 410.
    Compaction,
}

/// What is wrong with a token that a TokenRequest is answered with. The rest of the answer stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// Another audience, alone.
    Audience(String),
    /// Another `sub`.
    Subject(String),
    /// Expired a minute ago and more than any leeway.
    Expired,
    /// A signature that no key of the issuer made.
    Signature,
    /// Another `iss`.
    Issuer(String),
}

/// The switches.
#[derive(Debug)]
pub struct Faults {
    store: Arc<Store>,
    rules: Mutex<Vec<Rule>>,
    /// Counts how often the faults were cleared, so that what is stalled hears of it.
    cleared: watch::Sender<u64>,
    watches: watch::Sender<Watches>,
    bookmark_interval: Mutex<Duration>,
    cache: Mutex<Option<u64>>,
    corruption: Mutex<Option<Corruption>>,
}

#[derive(Debug)]
struct Rule {
    target: Target,
    fault: Fault,
    times: Option<usize>,
}

/// What is being done to open watches; the counters grow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watches {
    pub(super) held: bool,
    pub(super) cut: u64,
    pub(super) ended: u64,
    pub(super) torn: u64,
}

// === impl Target ===

impl Target {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with a verb of Kubernetes: `get`, `list`, `watch`, `create`.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.to_owned());
        self
    }

    /// Requests for a resource, with its subresource: `pods`, `serviceaccounts/token`.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    fn hits(&self, verb: &str, resource: &str) -> bool {
        self.verb.as_deref().is_none_or(|wanted| wanted == verb)
            && self.resource.as_deref().is_none_or(|wanted| wanted == resource)
    }
}

// === impl Faults ===

impl Faults {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            rules: Mutex::default(),
            cleared: watch::Sender::default(),
            watches: watch::Sender::default(),
            // As the API server's watch cache: roughly every minute.
            bookmark_interval: Mutex::new(Duration::from_secs(60)),
            cache: Mutex::default(),
            corruption: Mutex::default(),
        }
    }

    /// Strikes every request of the target from now on. Of several faults the oldest strikes first.
    pub fn inject(&self, target: Target, fault: Fault) {
        lock(&self.rules).push(Rule { target, fault, times: None });
    }

    /// Strikes the next `times` requests of the target.
    pub fn inject_times(&self, target: Target, fault: Fault, times: usize) {
        lock(&self.rules).push(Rule { target, fault, times: Some(times) });
    }

    /// No more faults of requests; what is stalled goes on.
    pub fn clear(&self) {
        lock(&self.rules).clear();
        self.cleared.send_modify(|count| *count += 1);
    }

    /// Breaks off every open watch in the middle of its connection.
    pub fn cut_watches(&self) {
        self.watches.send_modify(|watches| watches.cut += 1);
    }

    /// Breaks off every open watch in the middle of the next event that it sends.
    pub fn tear_next_event(&self) {
        self.watches.send_modify(|watches| watches.torn += 1);
    }

    /// Sends every open watch of a resource an `ERROR` event, and ends it then, as a real server does.
    pub fn fail_watches(&self, resource: Resource, code: StatusCode) {
        let event = json!({ "type": "ERROR", "object": Status::fault(code).object() });
        self.store.tell(Some(resource), &Signal::Last(format!("{event}\n")));
    }

    /// Ends every open watch as a server does when its time is up.
    pub fn end_watches(&self) {
        self.watches.send_modify(|watches| watches.ended += 1);
    }

    /// Watches go silent, those that are opened later too: connections stay, nothing is sent.
    pub fn hold_watches(&self) {
        self.watches.send_modify(|watches| watches.held = true);
    }

    /// What was held back is sent, in order.
    pub fn release_watches(&self) {
        self.watches.send_modify(|watches| watches.held = false);
    }

    /// Sends every watch that allows it a bookmark now.
    pub fn bookmark(&self) {
        self.store.bookmark();
    }

    /// How often watches opened from now on get bookmarks; a minute, if not told otherwise.
    pub fn bookmark_every(&self, interval: Duration) {
        *lock(&self.bookmark_interval) = interval;
    }

    /// Sends what was written after a resource version to the open watches once more, as it was then.
    pub fn replay_events(&self, after: u64) {
        self.store.replay(after, u64::MAX);
    }

    /// The same, but no more than what was written up to another resource version: it ends in the past.
    pub fn replay_events_between(&self, after: u64, up_to: u64) {
        self.store.replay(after, up_to);
    }

    /// Writes an object that carries `content` beside its name, uid and version, and that no typed
    /// client need be able to parse. Lists and watches show it like any other.
    pub fn inject_malformed(&self, resource: Resource, namespace: &str, name: &str, content: Value) {
        let key = Key::new(resource, namespace, name);
        self.store.write(&key, |_| {
            let mut object = if content.is_object() { content } else { Value::Object(serde_json::Map::new()) };
            let metadata = objects::metadata(&key, &[], &[]);
            match object.get_mut("metadata").and_then(Value::as_object_mut) {
                Some(given) => {
                    for (field, value) in metadata.as_object().into_iter().flatten() {
                        given.entry(field.clone()).or_insert_with(|| value.clone());
                    }
                }
                None => object["metadata"] = metadata,
            }
            Some(object)
        });
    }

    /// Writes a line that is no JSON into every open watch of a resource.
    pub fn inject_garbage(&self, resource: Resource) {
        self.store.tell(Some(resource), &Signal::Line("{\"type\":\"ADDED\",\"object\":{\n".to_owned()));
    }

    /// From now on the server's cache lags: what is asked for at resource version 0 is shown as it is now.
    pub fn freeze_cache(&self) {
        *lock(&self.cache) = Some(self.store.revision());
    }

    /// The server's cache catches up.
    pub fn thaw_cache(&self) {
        *lock(&self.cache) = None;
    }

    /// Makes the tokens that are handed out wrong; `None` makes them right again.
    pub fn corrupt_tokens(&self, corruption: Option<Corruption>) {
        *lock(&self.corruption) = corruption;
    }

    pub(super) fn corruption(&self) -> Option<Corruption> {
        lock(&self.corruption).clone()
    }

    pub(super) fn lagging(&self) -> Option<u64> {
        *lock(&self.cache)
    }

    pub(super) fn bookmark_interval(&self) -> Duration {
        *lock(&self.bookmark_interval)
    }

    pub(super) fn watches(&self) -> watch::Receiver<Watches> {
        self.watches.subscribe()
    }

    /// Lets a fault strike a request; the answer, if the fault is one.
    pub(super) async fn strike(&self, verb: &str, resource: &str) -> Option<Response<Body>> {
        let mut cleared = self.cleared.subscribe();
        match self.next(verb, resource)? {
            Fault::Answer(code) => {
                let mut response = Status::fault(code).response();
                if code == StatusCode::SERVICE_UNAVAILABLE {
                    // As a server does that is shutting down: another one may answer at once.
                    response.headers_mut().insert(header::RETRY_AFTER, 1.into());
                }
                Some(response)
            }
            Fault::TooManyRequests { retry_after } => {
                let body = "Too many requests, please try again later.\n".to_owned();
                let mut response = typed_response(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", body);
                response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
                Some(response)
            }
            Fault::Stall => {
                cleared.changed().await.ok();
                None
            }
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                None
            }
            Fault::Compaction => {
                self.store.compact();
                None
            }
        }
    }

    fn next(&self, verb: &str, resource: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let at = rules.iter().position(|rule| rule.target.hits(verb, resource) && rule.times != Some(0))?;
        let rule = rules.get_mut(at)?;
        rule.times = rule.times.map(|times| times - 1);
        let fault = rule.fault.clone();
        rules.retain(|rule| rule.times != Some(0));
        Some(fault)
    }
}
