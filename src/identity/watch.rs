//! The watch of this node's pods: the shell between the API server and the directory.
//!
//! Owns the slim form in which pods are read. A pod whose form we do not understand is taken out of the
//! directory (nobody is served on its address) and never stops the watch.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    directory::Directory,
    index::Pod,
    metadata,
    names::{NodeName, PodUid},
};
use crate::metrics::Metrics;

/// Pauses between attempts to reach the API server double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A watch that broke after this long starts again with the first pause.
const GOOD_AFTER: Duration = Duration::from_secs(30);
/// The server ends a watch after this many seconds; the client notices a dead one 5 s later.
const WATCH_SECONDS: u32 = 290;

/// A pod as the API server sends it, but for what we do not need.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SlimPod {
    #[serde(default, deserialize_with = "metadata::read")]
    metadata: ObjectMeta,
    spec: Lenient<Spec>,
    #[serde(default)]
    status: Lenient<Status>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Parsed(T),
    Other(IgnoredAny),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Deserialize)]
struct Volume {
    projected: Option<Projected>,
}

#[derive(Clone, Debug, Deserialize)]
struct Projected {
    sources: Option<Vec<Source>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    service_account_token: Option<ProjectedToken>,
}

#[derive(Clone, Debug, Deserialize)]
struct ProjectedToken {
    /// Without one the token is for the API server.
    audience: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    start_time: Option<Time>,
    #[serde(default, rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    #[serde(default)]
    container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(default)]
    state: ContainerState,
    #[serde(default)]
    last_state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ContainerState {
    running: Option<Started>,
    terminated: Option<Started>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Started {
    started_at: Option<Time>,
}

impl ContainerStatus {
    fn started(&self) -> Option<u64> {
        let states = [&self.state.running, &self.state.terminated, &self.last_state.terminated];
        let times = states.into_iter().flatten().filter_map(|state| state.started_at.as_ref());
        times.filter_map(|time| u64::try_from(time.0.as_second()).ok()).max()
    }
}

impl Spec {
    fn token_audiences(&mut self) -> Vec<String> {
        let projected = self.volumes.drain(..).filter_map(|volume| volume.projected);
        let sources = projected.filter_map(|projected| projected.sources).flatten();
        sources.filter_map(|source| source.service_account_token?.audience).collect()
    }
}

impl<T: Default> Default for Lenient<T> {
    fn default() -> Self {
        Self::Parsed(T::default())
    }
}

// === impl SlimPod ===

impl SlimPod {
    fn uid(&self) -> Option<PodUid> {
        self.metadata.uid.as_deref().map(PodUid::from)
    }

    /// `None` where the pod's form is not what we know.
    pub(super) fn read(self) -> Option<Pod> {
        let (Lenient::Parsed(mut spec), Lenient::Parsed(status)) = (self.spec, self.status) else { return None };
        let started = status.start_time.or(self.metadata.creation_timestamp)?;
        let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses);
        Some(Pod {
            uid: self.metadata.uid?.into(),
            namespace: self.metadata.namespace?.into(),
            name: Arc::from(self.metadata.name?),
            service_account: spec.service_account_name.take().filter(|name| !name.is_empty())?.into(),
            host_network: spec.host_network,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: self.metadata.deletion_timestamp.is_some(),
            container_started: containers.clone().filter_map(ContainerStatus::started).max(),
            running: containers.any(|container| container.state.running.is_some()),
            addresses: status.pod_ips.iter().map(|pod_ip| pod_ip.ip.to_canonical()).collect(),
            started: u64::try_from(started.0.as_second()).unwrap_or_default(),
            token_audiences: spec.token_audiences(),
        })
    }
}

impl Resource for SlimPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Keeps the directory's pods as the API server has them; never ends.
pub async fn pods(client: Client, node: NodeName, directory: Arc<Directory>, metrics: Arc<Metrics>) {
    let config = config().fields(&format!("spec.nodeName={node}"));
    let watch = watcher::watcher(Api::<SlimPod>::all(client), config);
    // What is not known yet may be there already: nobody is told for certain that they are unknown.
    let broken = || directory.pods_may_lag();
    let mut events = std::pin::pin!(events(watch, "pods", &metrics, broken));
    let read = |pod: SlimPod| {
        let uid = pod.uid();
        pod.read().ok_or_else(|| {
            metrics.unreadable_objects.inc();
            tracing::warn!(?uid, "a pod of this node has a form that we do not understand; it is not served");
            uid
        })
    };
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => listed.extend(read(pod)),
            Event::InitDone => directory.reset_pods(std::mem::take(&mut listed)),
            Event::Apply(pod) => match read(pod) {
                Ok(pod) => directory.apply_pod(pod),
                Err(Some(uid)) => directory.delete_pod(&uid),
                Err(None) => {}
            },
            Event::Delete(pod) => {
                if let Some(uid) = pod.uid() {
                    directory.delete_pod(&uid);
                }
            }
        }
    }
}

/// How we watch: list in pages with the resource version unset, so that a lagging API server cannot name
/// dead pods' addresses; then watch with bookmarks.
pub(super) fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// The events of a watch; its errors are counted, logged and waited out.
pub(super) fn events<K: Clone>(
    watch: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    resource: &'static str,
    metrics: &Metrics,
    broken: impl Fn(),
) -> impl Stream<Item = Event<K>> {
    let errors = metrics.watch_errors.with_label_values(&[resource]);
    watch.backoff(Pauses::default()).filter_map(move |event| {
        let event = event
            .inspect_err(|error| {
                errors.inc();
                broken();
                tracing::warn!(resource, %error, "the watch broke; it is resumed");
            })
            .ok();
        async move { event }
    })
}

/// Pauses between attempts.
///
/// `reset` does nothing: kube's watcher calls it for the event that only announces a list, so that an API
/// server that is away would be asked at the first pause for ever. What ends a series is time.
#[derive(Default)]
struct Pauses {
    last: Option<(Duration, Instant)>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = crate::clock::now().monotonic;
        let pause = match self.last {
            Some((last, at)) if now.duration_since(at) < last + GOOD_AFTER => (last * 2).min(LONGEST_PAUSE),
            Some(_) | None => FIRST_PAUSE,
        };
        self.last = Some((pause, now));
        Some(pause.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(pod: serde_json::Value) -> Option<Pod> {
        serde_json::from_value::<SlimPod>(pod).unwrap().read()
    }

    #[test]
    fn a_pod_is_read_as_the_api_server_sends_it() {
        let pod = read(json!({
            "metadata": {"name": "web-0", "namespace": "team-a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubelet"}]},
            "spec": {"serviceAccountName": "web", "containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:05Z", "podIP": "10.0.0.1",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::ffff:10.0.0.2"}, {"ip": "fd00::1"}],
                "containerStatuses": [{"name": "c", "state": {"running": {"startedAt": "2026-01-01T00:00:06Z"}}}]},
        }))
        .unwrap();
        assert_eq!(pod.addresses, ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!((pod.started, pod.running, pod.terminating, pod.finished), (1_767_225_605, true, false, false));
        assert_eq!(pod.container_started, Some(1_767_225_606));
        assert_eq!((pod.service_account.as_str(), pod.namespace.as_str()), ("web", "team-a"));
    }

    #[test]
    fn the_audiences_of_a_pods_own_tokens_are_read_and_all_other_volumes_ignored() {
        let token = |audience: serde_json::Value| json!({"serviceAccountToken": {"audience": audience, "path": "t"}});
        let volumes = json!([
            {"name": "a", "emptyDir": {}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "c"}}, token(json!(null))]}},
            {"name": "c", "projected": {"defaultMode": 420, "sources": [token(json!("sts.amazonaws.com"))]}},
            {"name": "d", "projected": {"sources": null}},
        ]);
        let metadata = json!({"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let pod = json!({"metadata": metadata, "spec": {"serviceAccountName": "a", "volumes": volumes}});
        assert_eq!(read(pod).unwrap().token_audiences, ["sts.amazonaws.com"]);
    }

    #[test]
    fn the_newest_start_of_any_container_counts_whatever_became_of_it() {
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
        let started = |containers: serde_json::Value, init: serde_json::Value| {
            read(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": at(0)},
                "spec": {"serviceAccountName": "a"},
                "status": {"containerStatuses": containers, "initContainerStatuses": init},
            }))
            .unwrap()
            .container_started
            .map(|unix| unix - 1_767_225_600)
        };
        assert_eq!(started(json!([{"state": {"waiting": {}}}]), json!([])), None);
        let init = json!([{"state": {"terminated": {"exitCode": 0, "startedAt": at(5), "finishedAt": at(7)}}}]);
        assert_eq!(started(json!([{"state": {"waiting": {}}}]), init.clone()), Some(5));
        let restarted = json!([
            {"state": {"waiting": {}}, "lastState": {"terminated": {"startedAt": at(9), "finishedAt": at(20)}}},
            {"state": {"running": {"startedAt": at(8)}}},
        ]);
        assert_eq!(started(restarted, init), Some(9));
    }

    #[test]
    fn a_pod_of_an_unknown_form_is_not_read_and_does_no_harm() {
        let metadata = json!({"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
        for (spec, status) in [
            (json!({"serviceAccountName": 7}), json!({})),
            (json!("spec"), json!({})),
            (json!({"serviceAccountName": ""}), json!({})),
            (json!({"serviceAccountName": "a"}), json!({"podIPs": [{"ip": "not an address"}]})),
            (json!({"serviceAccountName": "a"}), json!({"startTime": "yesterday"})),
        ] {
            assert_eq!(read(json!({"metadata": metadata, "spec": spec, "status": status})), None, "{spec} {status}");
        }
    }

    #[test]
    fn pauses_grow_to_the_longest_whatever_is_reset() {
        let mut pauses = Pauses::default();
        for _ in 0..10 {
            pauses.reset();
            assert!(pauses.next().unwrap() <= LONGEST_PAUSE);
        }
        assert_eq!(pauses.last.unwrap().0, LONGEST_PAUSE);
    }
}
