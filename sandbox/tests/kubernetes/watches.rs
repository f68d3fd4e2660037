//! Watches: what is heard, in which order, from where on, and how it ends.

use std::time::Duration;

use sandbox::kubernetes::Resource;
use serde_json::json;

use super::support::{Cluster, event, eventually, pod};

const PODS: &str = "/api/v1/namespaces/team-a/pods?watch=1";
const ACCOUNTS: &str = "/api/v1/namespaces/team-a/serviceaccounts?watch=1";

#[tokio::test]
async fn every_change_is_heard_once_in_order_with_its_version() {
    let cluster = Cluster::start().await;
    let kubernetes = &cluster.kubernetes;
    let mut watch = cluster.watch(&format!("{PODS}&resourceVersion={}", kubernetes.resource_version())).await;
    kubernetes.create_pod(pod("a"));
    kubernetes.run_pod("team-a", "a", &["10.0.0.1".parse().unwrap()]);
    kubernetes.start_deleting_pod("team-a", "a", Duration::from_secs(30));
    kubernetes.delete_pod("team-a", "a");
    let mut last = 0;
    for (kind, phase) in
        [("ADDED", "Pending"), ("MODIFIED", "Running"), ("MODIFIED", "Running"), ("DELETED", "Running")]
    {
        let event = watch.event().await;
        assert_eq!((&event["type"], &event["object"]["status"]["phase"]), (&json!(kind), &json!(phase)));
        assert_eq!(event["object"]["kind"], "Pod");
        let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(version > last);
        last = version;
    }
    assert_eq!(last, kubernetes.resource_version());
}

#[tokio::test]
async fn a_change_that_changes_nothing_is_not_heard() {
    let cluster = Cluster::start().await;
    let kubernetes = &cluster.kubernetes;
    let version = kubernetes.resource_version();
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    kubernetes.apply_service_account("team-a", "web", &[("role", "reader")]);
    assert_eq!(kubernetes.resource_version(), version);
    kubernetes.apply_service_account("team-a", "web", &[("role", "writer")]);
    let event = watch.event().await;
    assert_eq!(event["type"], "MODIFIED");
    assert_eq!(event["object"]["metadata"]["annotations"], json!({ "role": "writer" }));
}

#[tokio::test]
async fn what_begins_to_match_is_added_and_what_ceases_to_is_deleted() {
    let (cluster, _) = Cluster::with_pod().await;
    let kubernetes = &cluster.kubernetes;
    let version = kubernetes.resource_version();
    let path = format!("{PODS}&resourceVersion={version}&fieldSelector=spec.nodeName=node-a,status.phase=Running");
    let mut watch = cluster.watch(&path).await;
    kubernetes.create_pod(pod("other").node("node-b"));
    kubernetes.run_pod("team-a", "other", &[]);
    kubernetes.run_pod("team-a", "web-1", &["10.0.0.1".parse().unwrap()]);
    assert_eq!(watch.heard().await, event("ADDED", "web-1"));
    kubernetes.set_pod_status("team-a", "web-1", Default::default());
    let event = watch.event().await;
    assert_eq!(event["type"], "DELETED");
    // As it last matched, with the version of the change.
    assert_eq!(event["object"]["status"]["phase"], "Running");
    let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(version, kubernetes.resource_version().to_string());
    kubernetes.delete_pod("team-a", "web-1");
    watch.is_silent().await;
}

#[tokio::test]
async fn a_watch_of_a_namespace_hears_of_no_other() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    cluster.kubernetes.apply_service_account("team-b", "b", &[]);
    cluster.kubernetes.create_pod(pod("a"));
    cluster.kubernetes.apply_service_account("team-a", "new", &[]);
    assert_eq!(watch.heard().await, event("ADDED", "new"));
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let cluster = Cluster::start().await;
    for version in ["", "&resourceVersion=0", "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"] {
        let mut watch = cluster.watch(&format!("{ACCOUNTS}&allowWatchBookmarks=true{version}")).await;
        for name in ["db", "default", "web"] {
            assert_eq!(watch.heard().await, event("ADDED", name), "{version}");
        }
        let end = watch.event().await;
        let version = cluster.kubernetes.resource_version().to_string();
        let metadata = json!({ "resourceVersion": version, "annotations": { "k8s.io/initial-events-end": "true" } });
        assert_eq!(end["type"], "BOOKMARK");
        assert_eq!(end["object"], json!({ "kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata }));
    }
    let mut without_bookmarks = cluster.watch(ACCOUNTS).await;
    for name in ["db", "default", "web"] {
        assert_eq!(without_bookmarks.heard().await, event("ADDED", name));
    }
    without_bookmarks.is_silent().await;
}

#[tokio::test]
async fn a_watch_that_wants_no_initial_events_begins_now() {
    let cluster = Cluster::start().await;
    let path = format!("{ACCOUNTS}&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=0");
    let mut watch = cluster.watch(&path).await;
    cluster.kubernetes.apply_service_account("team-a", "new", &[]);
    assert_eq!(watch.heard().await, event("ADDED", "new"));
}

#[tokio::test]
async fn a_watch_from_a_version_hears_what_was_written_since() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    cluster.kubernetes.apply_service_account("team-a", "new", &[]);
    cluster.kubernetes.delete_service_account("team-a", "new");
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    assert_eq!(watch.heard().await, event("ADDED", "new"));
    assert_eq!(watch.heard().await, event("DELETED", "new"));
}

#[tokio::test]
async fn a_watch_from_a_version_to_come_hears_what_is_written_after_it() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version() + 1;
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    cluster.kubernetes.apply_service_account("team-a", "known", &[]);
    cluster.kubernetes.apply_service_account("team-a", "new", &[]);
    assert_eq!(watch.heard().await, event("ADDED", "new"));
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_an_error_event_and_the_end() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    cluster.kubernetes.compact();
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    let error = watch.event().await;
    assert_eq!(error["type"], "ERROR");
    assert_eq!((&error["object"]["code"], &error["object"]["reason"]), (&json!(410), &json!("Expired")));
    let message = format!("too old resource version: {version} ({})", cluster.kubernetes.resource_version());
    assert_eq!(error["object"]["message"], message);
    assert_eq!(watch.line().await.unwrap(), None);
    cluster.watches_open(0).await;
}

#[tokio::test]
async fn an_open_watch_misses_nothing_when_history_is_forgotten() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    let mut watch = cluster.watch(&format!("{ACCOUNTS}&resourceVersion={version}")).await;
    cluster.kubernetes.apply_service_account("team-a", "new", &[]);
    cluster.kubernetes.compact();
    cluster.kubernetes.delete_service_account("team-a", "new");
    assert_eq!(watch.heard().await, event("ADDED", "new"));
    assert_eq!(watch.heard().await, event("DELETED", "new"));
}

#[tokio::test]
async fn a_version_that_is_no_number_is_an_error_without_a_reason() {
    let cluster = Cluster::start().await;
    let answer = cluster.get(&format!("{PODS}&resourceVersion=abc")).await;
    let message = r#"resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax"#;
    answer.refuses(500, "", message);
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up_after_a_last_bookmark() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    let path = format!("{ACCOUNTS}&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=3");
    let mut watch = cluster.watch(&path).await;
    let bookmark = watch.event().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"], json!({ "resourceVersion": version.to_string() }));
    assert_eq!(watch.line().await.unwrap(), None);
}

#[tokio::test]
async fn a_bookmark_comes_to_who_allows_it_and_carries_the_latest_version() {
    let cluster = Cluster::start().await;
    let version = cluster.kubernetes.resource_version();
    let path = format!("{ACCOUNTS}&resourceVersion={version}");
    let mut with = cluster.watch(&format!("{path}&allowWatchBookmarks=true")).await;
    let mut without = cluster.watch(&path).await;
    cluster.watches_open(2).await;
    // Another resource's write moves the version on.
    cluster.kubernetes.create_pod(pod("a"));
    cluster.kubernetes.faults().bookmark();
    let bookmark = with.event().await;
    let version = cluster.kubernetes.resource_version().to_string();
    assert_eq!(bookmark["object"]["metadata"], json!({ "resourceVersion": version }));
    without.is_silent().await;

    cluster.kubernetes.faults().bookmark_every(Duration::from_millis(20));
    let mut often = cluster.watch(&format!("{path}&allowWatchBookmarks=true")).await;
    for _ in 0..2 {
        assert_eq!(often.event().await["type"], "BOOKMARK");
    }
}

#[tokio::test]
async fn a_watch_of_metadata_shows_no_more_than_that() {
    let cluster = Cluster::start().await;
    let accept = [("accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")];
    let path = "/api/v1/namespaces?watch=1&allowWatchBookmarks=true";
    let mut watch = cluster.watch_as(path, &accept).await;
    let added = watch.event().await;
    assert_eq!(added["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(added["object"]["metadata"]["name"], "team-a");
    assert_eq!(added["object"].get("status"), None);
    let bookmark = watch.event().await;
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("PartialObjectMetadata")));
    // As a real server: accepted, and over at once.
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    assert_eq!(cluster.watch_as(path, &accept).await.line().await.unwrap(), None);
}

#[tokio::test]
async fn open_watches_are_counted_until_their_client_leaves() {
    let cluster = Cluster::start().await;
    let watch = cluster.watch(ACCOUNTS).await;
    let open = cluster.kubernetes.open_watches();
    assert_eq!((open.len(), open[0].resource.as_str()), (1, Resource::ServiceAccounts.name()));
    drop(watch);
    eventually(|| cluster.kubernetes.open_watches().is_empty()).await;
}
