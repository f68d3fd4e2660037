//! The watch of this node's pods: the shell between the API server and the directory.
//!
//! Owns the slim form in which pods are read. A pod whose form we do not understand is taken out of the
//! directory (nobody is served on its address) and never stops the watch.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use serde::Deserialize;

use super::{
    collection::{Collection, News},
    directory::Directory,
    index::Pod,
    legacy::PodAnnotations,
    names::NodeName,
};
use crate::{clock, metrics::Metrics};

/// A pod that was read.
#[derive(Deserialize)]
#[serde(try_from = "SlimPod")]
pub(super) struct ReadPod(pub(super) Pod);

/// A pod as the API server sends it, but for what we do not need.
#[derive(Deserialize)]
struct SlimPod {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    annotations: Option<PodAnnotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Volume {
    projected: Option<Projected>,
}

#[derive(Deserialize)]
struct Projected {
    sources: Option<Vec<Source>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    service_account_token: Option<ProjectedToken>,
}

#[derive(Deserialize)]
struct ProjectedToken {
    /// Without one the token is for the API server.
    audience: Option<String>,
}

#[derive(Default, Deserialize)]
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

#[derive(Deserialize)]
struct PodIp {
    ip: IpAddr,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(default)]
    state: ContainerState,
    #[serde(default)]
    last_state: ContainerState,
}

#[derive(Default, Deserialize)]
struct ContainerState {
    running: Option<Started>,
    terminated: Option<Started>,
}

#[derive(Deserialize)]
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

// === impl ReadPod ===

/// The pod's form is not what we know.
#[derive(Debug, thiserror::Error)]
#[error("{0} is missing")]
struct Missing(&'static str);

impl TryFrom<SlimPod> for ReadPod {
    type Error = Missing;

    fn try_from(SlimPod { metadata, mut spec, status }: SlimPod) -> Result<Self, Missing> {
        let start_time = status.start_time.or(metadata.creation_timestamp).ok_or(Missing("its time"))?;
        let start_time = u64::try_from(start_time.0.as_second()).unwrap_or_default();
        let account = spec.service_account_name.take().filter(|name| !name.is_empty());
        let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses);
        Ok(Self(Pod {
            uid: metadata.uid.into(),
            namespace: metadata.namespace.into(),
            name: Arc::from(metadata.name),
            service_account: account.ok_or(Missing("its service account"))?.into(),
            host_network: spec.host_network,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: metadata.deletion_timestamp.is_some(),
            container_started: containers.clone().filter_map(ContainerStatus::started).max(),
            running: containers.any(|container| container.state.running.is_some()),
            addresses: status.pod_ips.iter().map(|pod_ip| pod_ip.ip.to_canonical()).collect(),
            // Not ahead of our clock, which may have been set back: no session token could be as young.
            started: start_time.min(clock::now().unix_seconds()),
            start_time,
            token_audiences: spec.token_audiences(),
            legacy: metadata.annotations.and_then(PodAnnotations::kept),
        }))
    }
}

/// More than a node has.
const PAGE: u32 = 500;

/// The pods of a node, as the API server has them; of those, the ones that `also` selects.
pub(super) fn pods_of(client: Client, node: &NodeName, also: &str, metrics: Arc<Metrics>) -> Collection {
    let fields = Some(format!("spec.nodeName={node}{also}"));
    let path = "/api/v1/pods".to_owned();
    Collection { client, path, resource: "pods", fields, metadata_only: false, page: PAGE, metrics }
}

/// Keeps the directory's pods as the API server has them; never ends.
pub async fn pods(client: Client, node: NodeName, directory: Arc<Directory>, metrics: Arc<Metrics>) {
    // What is not known yet may be there already: nobody is told for certain that they are unknown.
    let interrupted = || directory.pods_may_lag();
    let heard = |news| match news {
        News::All(pods) => directory.reset_pods(pods),
        News::Changed(pod) => directory.apply_pod(pod),
        News::Unreadable(pod) | News::Gone(pod) => directory.delete_pod(&pod.uid.into()),
        News::UpToDate => directory.pods_are_up_to_date(),
    };
    pods_of(client, &node, "", metrics).follow(|ReadPod(pod)| pod, interrupted, heard).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(pod: serde_json::Value) -> Option<Pod> {
        serde_json::from_value::<ReadPod>(pod).ok().map(|ReadPod(pod)| pod)
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
}
