//! A collection of objects in the API server, followed: listed once, watched from there, and listed anew when its
//! place in history is lost.
//!
//! Owns requests, pauses, and what an interruption means. Of an object it knows the identity alone. Invariant: no
//! object stops the others; of one that cannot be read it is said which it is, so that nothing older stands.
//!
//! Source: [Kubernetes API Concepts](https://kubernetes.io/docs/reference/using-api/api-concepts/).

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::AsyncBufReadExt as _;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::Request,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    clock,
    metrics::{Heard, Metrics},
};

/// Pauses between attempts to reach the API server double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that ends after this long starts again with the first pause.
const GOOD_AFTER: Duration = Duration::from_secs(30);
/// The server ends a watch after this many seconds.
const WATCH_SECONDS: u32 = 290;

/// What is followed.
pub(super) struct Collection {
    pub(super) client: Client,
    /// As in `/api/v1/pods`.
    pub(super) path: String,
    /// The resource, as a metric's label.
    pub(super) resource: &'static str,
    /// Which of its objects.
    pub(super) fields: Option<String>,
    /// Whether their metadata is all that is asked for.
    pub(super) metadata_only: bool,
    /// How many are listed at once.
    pub(super) page: u32,
    pub(super) metrics: Arc<Metrics>,
}

/// News of a collection.
pub(super) enum News<T> {
    /// These are all objects, but for those that cannot be read.
    All(Vec<T>),
    /// An object appeared or changed.
    Changed(T),
    /// An object appeared or changed, and cannot be read.
    Unreadable(Identity),
    /// An object is no more.
    Gone(Identity),
    /// All that happened so far was told.
    UpToDate,
}

/// What every object can be told from others by.
#[derive(Deserialize)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) uid: String,
}

/// A page of a list. The resource version is unset in the request, so that a lagging cache cannot answer it.
#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    r#continue: Option<String>,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: Value,
}

/// Why it did not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Interruption {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] kube::Error),
    /// The connection broke, or was silent for too long.
    #[error("the connection broke")]
    Connection(#[from] io::Error),
    /// A watch was silent from its beginning for too long, without a bookmark even. So is one from a place that the
    /// history is yet to reach, where it went back with a restored backup.
    #[error("nothing was heard at all")]
    Silent,
    /// The API server ended the watch with an error.
    #[error("the API server ended it: {code} {message}")]
    Ended {
        /// As an HTTP status.
        code: u64,
        /// The server's words.
        message: String,
    },
    /// Nobody knows what the API server said. The parser's own words may hold it.
    #[error("the answer is not understood")]
    NotUnderstood,
}

// === impl Interruption ===

impl Interruption {
    /// Whether only a list can tell what happened since. A refusal that is not of rights nor of load is of the place,
    /// whatever its code (410, as a rule): to repeat it would be in vain.
    fn loses_place(&self) -> bool {
        match self {
            Self::Request(kube::Error::Api(status)) => !matches!(status.code, 401 | 403 | 429 | 500..),
            Self::Ended { code, .. } => !matches!(code, 401 | 403 | 429 | 500..),
            Self::Silent | Self::NotUnderstood => true,
            Self::Request(_) | Self::Connection(_) => false,
        }
    }
}

impl From<serde_json::Error> for Interruption {
    fn from(_: serde_json::Error) -> Self {
        Self::NotUnderstood
    }
}

// === impl Collection ===

impl Collection {
    /// Tells of all objects, of which `keep` takes what is needed, and of what becomes of them; never ends.
    /// `interrupted` is called when nothing is heard for a while.
    pub(super) async fn follow<T: DeserializeOwned, U>(
        &self,
        keep: impl Fn(T) -> U,
        interrupted: impl Fn(),
        mut heard: impl FnMut(News<U>),
    ) {
        let errors = self.metrics.watch_errors.with_label_values(&[self.resource]);
        let sign = self.metrics.watch_silence.begin(self.resource);
        let mut pauses = Pauses::default();
        let (mut place, mut told) = (None, String::new());
        loop {
            let begun = clock::now().monotonic;
            let ended = self.go_on(&mut place, &sign, &keep, &mut heard).await;
            let good = begun.elapsed() >= GOOD_AFTER;
            if good {
                told.clear();
            }
            match ended {
                Ok(()) if good => continue,
                // So a server ends watches that shuts down: no error, and not to be repeated without pause.
                Ok(()) => {}
                Err(error) => {
                    errors.inc();
                    interrupted();
                    let why = why(&error);
                    if told != why {
                        tracing::warn!(path = self.path, "the watch broke, and is tried until it goes on: {why}");
                        told = why;
                    }
                    if error.loses_place() {
                        place = None;
                    }
                }
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    /// Until the end of a watch; `place` is the resource version up to which all was heard.
    async fn go_on<T: DeserializeOwned, U>(
        &self,
        place: &mut Option<String>,
        sign: &Heard,
        keep: &impl Fn(T) -> U,
        heard: &mut impl FnMut(News<U>),
    ) -> Result<(), Interruption> {
        let place = match place {
            Some(place) => place,
            None => {
                let (objects, version) = self.list(keep).await?;
                sign.now();
                heard(News::All(objects));
                place.insert(version)
            }
        };
        self.watch(place, sign, keep, heard).await
    }

    /// What is kept of all objects that can be read, and the resource version at which they were so.
    pub(super) async fn list<T: DeserializeOwned, U>(
        &self,
        keep: impl Fn(T) -> U,
    ) -> Result<(Vec<U>, String), Interruption> {
        let request = Request::new(&self.path);
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(self.page);
        let mut objects = Vec::new();
        loop {
            let request = if self.metadata_only { request.list_metadata(&params) } else { request.list(&params) };
            let text = self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
            let page = match serde_json::from_str::<Page<T>>(&text) {
                Ok(page) => page,
                Err(_) => self.readable(serde_json::from_str(&text)?),
            };
            objects.extend(page.items.into_iter().flatten().map(&keep));
            match page.metadata.r#continue.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok((objects, page.metadata.resource_version)),
            }
        }
    }

    /// One by one, where they cannot be read all at once.
    fn readable<T: DeserializeOwned>(&self, page: Page<Value>) -> Page<T> {
        let items = page.items.into_iter().flatten().filter_map(|object| {
            let read = T::deserialize(&object).ok();
            if read.is_none() {
                self.unreadable(&object["metadata"]["namespace"], &object["metadata"]["name"]);
            }
            read
        });
        Page { items: Some(items.collect()), metadata: page.metadata }
    }

    async fn watch<T: DeserializeOwned, U>(
        &self,
        place: &mut String,
        sign: &Heard,
        keep: &impl Fn(T) -> U,
        heard: &mut impl FnMut(News<U>),
    ) -> Result<(), Interruption> {
        let request = Request::new(&self.path);
        let params = WatchParams { field_selector: self.fields.clone(), ..WatchParams::default() };
        let params = params.timeout(WATCH_SECONDS);
        let request =
            if self.metadata_only { request.watch_metadata(&params, place) } else { request.watch(&params, place) };
        let stream = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
        let mut stream = std::pin::pin!(stream);
        sign.now();
        let stale = self.metrics.stale_events.with_label_values(&[self.resource]);
        let (mut line, mut silent) = (Vec::new(), true);
        let broken =
            |error: io::Error, silent| if silent && timed_out(&error) { Interruption::Silent } else { error.into() };
        while stream.read_until(b'\n', &mut line).await.map_err(|error| broken(error, silent))? > 0 {
            silent = false;
            sign.now();
            if line.last() != Some(&b'\n') {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let Line { r#type, object } = serde_json::from_slice(&line)?;
            line.clear();
            if r#type == "ERROR" {
                let message = object["message"].as_str().unwrap_or_default().to_owned();
                return Err(Interruption::Ended { code: object["code"].as_u64().unwrap_or_default(), message });
            }
            let version = object["metadata"]["resourceVersion"].as_str().ok_or(Interruption::NotUnderstood)?;
            let is_newer = is_newer(version, place);
            if !is_newer && r#type != "BOOKMARK" {
                stale.inc();
                continue;
            }
            // Where nothing is written a bookmark names the place that we are at.
            let version = if is_newer { version.to_owned() } else { place.clone() };
            match r#type.as_str() {
                "BOOKMARK" => heard(News::UpToDate),
                "DELETED" => heard(News::Gone(Identity::deserialize(&object["metadata"])?)),
                "ADDED" | "MODIFIED" => match T::deserialize(&object) {
                    Ok(read) => heard(News::Changed(keep(read))),
                    Err(_) => {
                        self.unreadable(&object["metadata"]["namespace"], &object["metadata"]["name"]);
                        heard(News::Unreadable(Identity::deserialize(&object["metadata"])?));
                    }
                },
                _ => return Err(Interruption::NotUnderstood),
            }
            *place = version;
        }
        Ok(())
    }

    fn unreadable(&self, namespace: &Value, name: &Value) {
        self.metrics.unreadable_objects.inc();
        let name = [namespace, name].map(|part| part.as_str().unwrap_or("?")).join("/");
        tracing::warn!(resource = self.resource, name, "cannot be read: who depends on it is not served");
    }
}

/// What is wrong, and what is at the bottom of it.
fn why(error: &Interruption) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.last().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Whether the cause is a silence for too long.
fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let mut causes = chain.filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

/// Whether one resource version is later than another. They are numbers that can be compared
/// ([KEP-5504](https://kep.k8s.io/5504)), and within one watch grow from event to event.
fn is_newer(version: &str, place: &str) -> bool {
    match (version.parse::<u64>(), place.parse::<u64>()) {
        (Ok(version), Ok(place)) => version > place,
        _ => true,
    }
}

/// Pauses between attempts.
#[derive(Default)]
struct Pauses {
    last: Option<(Duration, Instant)>,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let now = clock::now().monotonic;
        let pause = match self.last {
            Some((last, at)) if now.duration_since(at) < last + GOOD_AFTER => (last * 2).min(LONGEST_PAUSE),
            Some(_) | None => FIRST_PAUSE,
        };
        self.last = Some((pause, now));
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut pauses = Pauses::default();
        assert!(pauses.next() <= FIRST_PAUSE);
        for _ in 0..10 {
            assert!(pauses.next() <= LONGEST_PAUSE);
        }
        assert_eq!(pauses.last.unwrap().0, LONGEST_PAUSE);
    }

    #[test]
    fn versions_are_compared_as_numbers_and_what_is_none_is_new() {
        for (version, place, newer) in
            [("10", "9", true), ("9", "10", false), ("9", "9", false), ("a", "9", true), ("9", "", true)]
        {
            assert_eq!(is_newer(version, place), newer, "{version} {place}");
        }
    }
}
