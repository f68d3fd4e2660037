//! What can be made to go wrong does go wrong, for whom it should, and stops when told.

use std::time::{Duration, Instant};

use http::StatusCode;
use sandbox::kubernetes::{Fault, Resource, Target};
use serde_json::json;
use tokio::time::timeout;

use super::support::{Cluster, event, pod};

const PODS: &str = "/api/v1/pods";
const ACCOUNTS: &str = "/api/v1/namespaces/team-a/serviceaccounts";

#[tokio::test]
async fn a_fault_strikes_as_often_as_it_is_told_and_only_its_target() {
    let cluster = Cluster::start().await;
    let faults = cluster.kubernetes.faults();
    let list_pods = Target::any().verb("list").resource("pods");
    faults.inject_times(list_pods, Fault::Answer(StatusCode::SERVICE_UNAVAILABLE), 2);
    for _ in 0..2 {
        let answer = cluster.get(PODS).await;
        assert_eq!((answer.code.as_u16(), &answer.json()["reason"]), (503, &json!("ServiceUnavailable")));
        assert_eq!(cluster.get(ACCOUNTS).await.code, 200);
    }
    assert_eq!(cluster.get(PODS).await.code, 200);

    faults.inject(Target::any().resource("serviceaccounts/token"), Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR));
    for _ in 0..3 {
        assert_eq!(cluster.token("web", &json!({})).await.code, 500);
    }
    assert_eq!(cluster.get(&format!("{ACCOUNTS}/web")).await.code, 200);
    faults.clear();
    assert_eq!(cluster.token("web", &json!({})).await.code, 201);
}

#[tokio::test]
async fn flow_control_refuses_in_plain_text_and_says_when_to_come_back() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.faults().inject_times(Target::any(), Fault::TooManyRequests { retry_after: 7 }, 1);
    let answer = cluster.get(PODS).await;
    assert_eq!((answer.code.as_u16(), &answer.headers["retry-after"]), (429, &"7".parse().unwrap()));
    assert_eq!(answer.text, "Too many requests, please try again later.\n");
}

#[tokio::test]
async fn a_stalled_request_is_answered_when_the_faults_are_cleared() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.faults().inject(Target::any(), Fault::Stall);
    let mut call = Box::pin(cluster.get(PODS));
    assert!(timeout(Duration::from_millis(300), &mut call).await.is_err(), "answered");
    cluster.kubernetes.faults().clear();
    assert_eq!(call.await.code, 200);
}

#[tokio::test]
async fn a_delayed_request_is_late() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.faults().inject_times(Target::any(), Fault::Delay(Duration::from_millis(300)), 1);
    let begun = Instant::now();
    assert_eq!(cluster.get(PODS).await.code, 200);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_cut_watch_breaks_off_and_an_ended_one_ends() {
    let cluster = Cluster::start().await;
    let path = format!("{PODS}?watch=1");
    let mut cut = cluster.watch(&path).await;
    cluster.kubernetes.faults().cut_watches();
    assert!(cut.line().await.is_err());
    let mut ended = cluster.watch(&path).await;
    cluster.kubernetes.faults().end_watches();
    assert_eq!(ended.line().await.unwrap(), None);
    cluster.watches_open(0).await;
}

#[tokio::test]
async fn a_held_watch_is_silent_and_then_tells_everything_in_order() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.watch(&format!("{PODS}?watch=1")).await;
    cluster.kubernetes.faults().hold_watches();
    cluster.kubernetes.create_pod(pod("a"));
    cluster.kubernetes.create_pod(pod("b"));
    cluster.kubernetes.delete_pod("team-a", "a");
    watch.is_silent().await;
    assert_eq!(cluster.get(PODS).await.names(), ["b"], "only watches are held");
    cluster.kubernetes.faults().release_watches();
    for (kind, name) in [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")] {
        assert_eq!(watch.heard().await, event(kind, name));
    }
}

#[tokio::test]
async fn stale_events_are_told_again_as_they_were() {
    let cluster = Cluster::start().await;
    let before = cluster.kubernetes.resource_version();
    cluster.kubernetes.create_pod(pod("a"));
    cluster.kubernetes.delete_pod("team-a", "a");
    let now = cluster.kubernetes.resource_version();
    let mut watch = cluster.watch(&format!("{PODS}?watch=1&resourceVersion={now}")).await;
    cluster.kubernetes.faults().replay_events(before);
    let stale = watch.event().await;
    assert_eq!((&stale["type"], &stale["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    assert!(stale["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() < now);
    assert_eq!(watch.heard().await, event("DELETED", "a"));
}

#[tokio::test]
async fn a_malformed_object_is_listed_and_watched_like_any_other() {
    let cluster = Cluster::start().await;
    let on_node = "fieldSelector=spec.nodeName=node-a";
    let mut watch = cluster.watch(&format!("{PODS}?watch=1&{on_node}")).await;
    let content = json!({ "spec": { "nodeName": "node-a" }, "status": { "podIPs": "10.0.0.1" } });
    cluster.kubernetes.faults().inject_malformed(Resource::Pods, "team-a", "bad", content);
    let heard = watch.event().await;
    assert_eq!(heard["object"]["status"]["podIPs"], "10.0.0.1");
    assert!(heard["object"]["metadata"]["uid"].is_string());
    let list = cluster.get(&format!("{PODS}?{on_node}")).await;
    assert_eq!(list.names(), ["bad"]);
    assert!(serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(heard["object"].clone()).is_err());
    cluster.kubernetes.delete_pod("team-a", "bad");
    assert_eq!(watch.heard().await, event("DELETED", "bad"));
}

#[tokio::test]
async fn garbage_is_a_line_that_is_no_json() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.watch(&format!("{PODS}?watch=1")).await;
    cluster.kubernetes.faults().inject_garbage(Resource::Pods);
    let line = watch.line().await.unwrap().unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&line).is_err());
}
