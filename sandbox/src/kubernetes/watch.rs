//! Watches: what changes, as long as the client listens.
//!
//! A watch shows its own selection of the cluster: an object that begins to match is `ADDED`, one
//! that no longer does is `DELETED`, as it last matched, with the version of the change.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    accept::Form,
    faults::{Faults, Watches},
    options::{ListOptions, parse_version},
    random,
    resource::Resource,
    status::{Status, json_response},
    store::{Change, Key, Signal, Start, Store},
};
use crate::http::Body;

/// How long before its end a watch gets its last bookmark.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Begins a watch; `guard` is dropped when it ends.
pub(super) async fn watch(
    store: Arc<Store>,
    faults: &Faults,
    resource: Resource,
    namespace: String,
    options: ListOptions,
    form: Form,
    guard: impl Send + 'static,
) -> Result<Response<Body>, Status> {
    // One that is no number is the only error that is not an event.
    let version = parse_version(&options.version).map_err(Status::unclassified)?;
    let end = Instant::now() + lifetime(&options);
    let (after, start) = match (options.send_initial_events, version) {
        (Some(true), _) => (0, Start::Present { bookmark: options.bookmarks }),
        (_, 0) => (0, Start::Now),
        (_, version) => (version, Start::After(version)),
    };
    if options.send_initial_events == Some(true)
        && let Err(now) = store.reached(version).await
    {
        return Ok(error_event(&Status::too_large_resource_version(version, now)));
    }
    let signals = match store.watch(resource, start) {
        Ok(signals) => signals,
        Err(compacted) => {
            let message = format!("too old resource version: {version} ({})", compacted.oldest);
            return Ok(error_event(&Status::expired(message)));
        }
    };
    let (lines, body) = mpsc::channel(16);
    // Events cannot be shown as lists: a real server accepts such a watch, and ends it at once.
    if form != Form::MetadataList {
        let watches = faults.watches();
        let begun = *watches.borrow();
        let watch = Watch {
            selection: Selection { resource, namespace, options, after, form },
            store,
            signals,
            interval: faults.bookmark_interval(),
            watches,
            begun,
            end,
            lines,
        };
        tokio::spawn(async move {
            watch.run().await;
            drop(guard);
        });
    }
    Ok(stream(body))
}

/// The client's time, or between half an hour and an hour, as a server's `--min-request-timeout` makes it.
fn lifetime(options: &ListOptions) -> Duration {
    let seconds = match options.timeout_seconds {
        None | Some(0) => 1800 + u64::from(u16::from_be_bytes(random())) % 1800,
        Some(seconds) => seconds,
    };
    Duration::from_secs(seconds)
}

fn error_event(status: &Status) -> Response<Body> {
    json_response(StatusCode::OK, &json!({ "type": "ERROR", "object": status.object() }))
}

/// What of the cluster a watch shows, and how.
struct Selection {
    resource: Resource,
    namespace: String,
    options: ListOptions,
    /// Changes up to this one are known to the client.
    after: u64,
    form: Form,
}

struct Watch {
    selection: Selection,
    store: Arc<Store>,
    signals: mpsc::UnboundedReceiver<Signal>,
    interval: Duration,
    watches: watch::Receiver<Watches>,
    /// As it was when the watch was accepted.
    begun: Watches,
    end: Instant,
    lines: mpsc::Sender<Result<Bytes, io::Error>>,
}

// === impl Watch ===

impl Watch {
    async fn run(mut self) {
        let mut bookmark = self.next_bookmark(Instant::now());
        loop {
            let now = *self.watches.borrow_and_update();
            if now.cut != self.begun.cut {
                self.lines.send(Err(io::ErrorKind::ConnectionReset.into())).await.ok();
                return;
            }
            if now.ended != self.begun.ended {
                return;
            }
            let mut last = false;
            let line = tokio::select! {
                biased;
                () = self.lines.closed() => return,
                () = sleep_until(self.end) => return,
                changed = self.watches.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                signal = self.signals.recv(), if !now.held => match signal {
                    Some(signal) => {
                        last = matches!(signal, Signal::Last(_));
                        self.selection.line(&signal)
                    }
                    None => return,
                },
                () = sleep_until(bookmark.unwrap_or(self.end)), if !now.held && bookmark.is_some() => {
                    let revision = self.store.revision();
                    // What was written up to then has been sent, or else is sent first.
                    if !self.signals.is_empty() {
                        continue;
                    }
                    bookmark = self.next_bookmark(Instant::now());
                    self.selection.line(&Signal::Bookmark { revision, initial_events_end: false })
                }
            };
            let Some(mut line) = line else { continue };
            let torn = now.torn != self.begun.torn;
            if torn {
                line.truncate(line.len() / 2);
            }
            if self.lines.send(Ok(line)).await.is_err() || last {
                return;
            }
            if torn {
                // What was sent is to arrive before the end.
                sleep(Duration::from_millis(50)).await;
                self.lines.send(Err(io::ErrorKind::ConnectionReset.into())).await.ok();
                return;
            }
        }
    }

    /// Once an interval, and shortly before the end.
    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        let next = (now + self.interval).min(self.end.checked_sub(LAST_BOOKMARK)?);
        (self.selection.options.bookmarks && next > now).then_some(next)
    }
}

// === impl Selection ===

impl Selection {
    /// The line that a signal is to this watch; `None` if it is nothing to it.
    fn line(&self, signal: &Signal) -> Option<Bytes> {
        let (kind, object) = match signal {
            Signal::Present(object) => {
                let key = Key::of(self.resource, object);
                ("ADDED", self.selects(&key, object).then(|| object.as_ref().clone())?)
            }
            Signal::Change(change) if change.revision <= self.after => return None,
            Signal::Change(change) | Signal::Replay(change) => self.event(change)?,
            Signal::Bookmark { .. } if !self.options.bookmarks => return None,
            Signal::Bookmark { revision, initial_events_end } => {
                let mut object = self.resource.empty_object();
                object["metadata"] = json!({ "resourceVersion": revision.to_string() });
                if *initial_events_end {
                    object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
                }
                ("BOOKMARK", object)
            }
            Signal::Line(line) | Signal::Last(line) => return Some(line.clone().into()),
        };
        let object = self.form.object(self.resource, &object).ok()?;
        Some(format!("{}\n", json!({ "type": kind, "object": object })).into())
    }

    fn event(&self, change: &Change) -> Option<(&'static str, Value)> {
        let selected = |object: &&Arc<Value>| self.selects(&change.key, object);
        match (change.before.as_ref().filter(selected), change.after.as_ref().filter(selected)) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", after.as_ref().clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", after.as_ref().clone())),
            (Some(before), None) => {
                let mut object = before.as_ref().clone();
                object["metadata"]["resourceVersion"] = change.revision.to_string().into();
                Some(("DELETED", object))
            }
        }
    }

    fn selects(&self, key: &Key, object: &Value) -> bool {
        (self.namespace.is_empty() || !self.resource.namespaced() || key.namespace == self.namespace)
            && self.options.fields.matches(self.resource, object)
            && self.options.labels.matches(object)
    }
}

/// A body of lines, as they come.
struct Lines(mpsc::Receiver<Result<Bytes, io::Error>>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| line.map(Frame::data)))
    }
}

fn stream(lines: mpsc::Receiver<Result<Bytes, io::Error>>) -> Response<Body> {
    let mut response = Response::new(Lines(lines).boxed());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
