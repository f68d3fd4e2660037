//! Kubernetes Events on pods that get no credentials, for whoever runs `kubectl describe pod`.
//!
//! Owns what is said (`note`), how often (`memory`), and its writing. To report never waits and never
//! fails; an Event that cannot be written is counted, and nothing depends on it. Invariant: neither a token nor
//! credentials are in an Event. Not kube's `Recorder`: to that, another text for the same reason is a repetition.
//!
//! Source: [Event, events.k8s.io/v1](https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/).

mod memory;
mod note;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

pub use self::note::Cause;
use self::{
    memory::{Key, Memory, Occurrence},
    note::Problem,
};
use crate::{
    clock::{self, Now},
    identity::{Grant, NodeName, Pod, annotations::AnnotationError},
    metrics::Metrics,
};

const REPORTER: &str = "kube2irsa";
/// What we tried to do with the pod, for programs.
const ACTION: &str = "GetCredentials";
/// Events that may wait to be written.
const WAITING: usize = 128;
/// A node writes this many at once, and then one each [`EVERY`].
const BURST: u32 = 5;
const EVERY: Duration = Duration::from_secs(5);
const TIME_LIMIT: Duration = Duration::from_secs(2);
const TRIES: u32 = 3;
/// Between two tries, times the tries so far.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// Where problems of pods are reported.
#[derive(Debug)]
pub struct Events {
    node: NodeName,
    audience: String,
    metrics: Arc<Metrics>,
    memory: Mutex<Memory>,
    queue: mpsc::Sender<Event>,
}

// === impl Events ===

impl Events {
    /// Reports of `node`, whose tokens are for `audience` where nobody says otherwise; and what is to be written.
    #[must_use]
    pub fn new(node: NodeName, audience: String, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Event>) {
        let (queue, reported) = mpsc::channel(WAITING);
        (Self { node, audience, metrics, memory: Mutex::default(), queue }, reported)
    }

    /// The annotations of the pod's service account cannot be meant, or its namespace does not permit the role.
    pub fn invalid(&self, pod: &Pod, error: &AnnotationError) {
        self.report(pod, Problem::invalid(&note::who(pod, error.is_of_pod()), error));
    }

    /// A fetch failed; `renewal`: there are credentials that are still served.
    pub fn failed(&self, grant: &Grant, cause: Cause<'_>, renewal: bool) {
        self.report(&grant.pod, Problem::failed(grant, cause, renewal, &self.audience));
    }

    /// What such a failure is said to be, and what to do.
    #[must_use]
    pub fn words(&self, grant: &Grant, cause: Cause<'_>, renewal: bool) -> String {
        Problem::failed(grant, cause, renewal, &self.audience).note
    }

    /// The role allows only shorter sessions than the service account asks for.
    pub fn shortened(&self, grant: &Grant) {
        self.report(&grant.pod, Problem::shortened(grant));
    }

    fn report(&self, pod: &Pod, problem: Problem) {
        let now = clock::now();
        let key = Key { pod: pod.uid.clone(), reason: problem.reason, which: problem.which };
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(occurrence) = memory.met(key, problem.passing, now) {
            let event = self.event(pod, problem.reason.label(), problem.note, &occurrence, now);
            if self.queue.try_send(event).is_err() {
                self.metrics.events.with_label_values(&["dropped"]).inc();
            }
        }
    }

    fn event(&self, pod: &Pod, reason: &str, note: String, occurrence: &Occurrence, now: Now) -> Event {
        let namespace = Some(pod.namespace.to_string());
        let series = EventSeries { count: occurrence.times, last_observed_time: micro(now.wall) };
        Event {
            metadata: ObjectMeta {
                name: Some(name(&pod.name, occurrence.first)),
                namespace: namespace.clone(),
                ..ObjectMeta::default()
            },
            event_time: Some(micro(occurrence.first)),
            series: occurrence.again.then_some(series),
            reporting_controller: Some(REPORTER.to_owned()),
            // A node's name may be longer than the API lets this be.
            reporting_instance: Some(note::cut(self.node.as_str(), 128).to_owned()),
            action: Some(ACTION.to_owned()),
            reason: Some(reason.to_owned()),
            type_: Some("Warning".to_owned()),
            note: Some(note),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace,
                name: Some(pod.name.to_string()),
                uid: Some(pod.uid.to_string()),
                ..ObjectReference::default()
            }),
            ..Event::default()
        }
    }
}

/// Where all Events are that daemons wrote.
pub const OURS: &str = "/apis/events.k8s.io/v1/events?fieldSelector=reportingController%3Dkube2irsa";

/// What annotations that cannot be meant, or a role that is not permitted, are said to be, and what to do.
#[must_use]
pub fn words_of_invalid(pod: &Pod, error: &AnnotationError) -> String {
    Problem::invalid(&note::who(pod, error.is_of_pod()), error).note
}

/// The same of a service account, whoever uses it.
#[must_use]
pub fn words_of_invalid_account(namespace: &str, account: &str, error: &AnnotationError) -> String {
    Problem::invalid(&format!("ServiceAccount {namespace}/{account}"), error).note
}

/// As the field names its Events: after the object, and when it was first so.
fn name(pod: &str, first: SystemTime) -> String {
    let suffix = format!(".{:x}", first.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos());
    let pod = note::cut(pod, LONGEST_NAME - suffix.len()).trim_end_matches(['-', '.']);
    format!("{pod}{suffix}")
}

fn micro(time: SystemTime) -> MicroTime {
    MicroTime(Timestamp::try_from(time).unwrap_or_default())
}

/// Writes what is reported, one after the other; never ends while somebody can report.
pub async fn write(client: Client, mut reported: mpsc::Receiver<Event>, metrics: Arc<Metrics>) {
    let mut budget = Instant::now();
    let mut failing = false;
    while let Some(event) = reported.recv().await {
        // Ahead of time by a whole burst at most.
        sleep_until(budget.checked_sub(EVERY * (BURST - 1)).unwrap_or(budget)).await;
        budget = budget.max(Instant::now()) + EVERY;
        let written = try_to_write(&client, &event).await;
        metrics.events.with_label_values(&[if written.is_ok() { "written" } else { "failed" }]).inc();
        // What will be missing without the right to write is said once, and not for each.
        if let Err(why) = &written
            && !failing
        {
            tracing::warn!("Events on pods cannot be written: {why}");
        }
        failing = written.is_err();
    }
}

async fn try_to_write(client: &Client, event: &Event) -> Result<(), String> {
    let mut tries = 0;
    loop {
        let why = match timeout(TIME_LIMIT, put(client, event)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) => {
                let why = format!("{} {}", status.code, status.message);
                if !matches!(status.code, 429 | 500..) {
                    return Err(why);
                }
                why
            }
            Ok(Err(_)) => "the API server's answer could not be had".to_owned(),
            Err(_elapsed) => format!("the API server did not answer within {} s", TIME_LIMIT.as_secs()),
        };
        tries += 1;
        if tries == TRIES {
            return Err(why);
        }
        sleep(PAUSE * tries).await;
    }
}

async fn put(client: &Client, event: &Event) -> kube::Result<()> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    if let (Some(series), Some(name)) = (&event.series, &event.metadata.name) {
        let patch = Patch::Merge(json!({ "series": series }));
        match events.patch(name, &PatchParams::default(), &patch).await {
            // The API server keeps an Event for an hour; or it could not be written then.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            patched => return patched.map(drop),
        }
    }
    match events.create(&PostParams::default(), event).await {
        // An earlier try was written, and its answer was lost.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => created.map(drop),
    }
}

#[cfg(test)]
mod tests;
