//! Events: what clients may write, and what is refused.

use serde_json::{Value, json};

use super::support::{Answer, Cluster, event};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team-a/events";

fn web_event(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "eventTime": "2026-11-25T12:00:00.123456Z",
        "reportingController": "kube2irsa",
        "reportingInstance": "node-a",
        "action": "GetCredentials",
        "reason": "CredentialsRefused",
        "type": "Warning",
        "note": "what is wrong, and what to do",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "team-a", "name": "web-1"},
    })
}

async fn create(cluster: &Cluster, event: &Value) -> Answer {
    cluster.call("POST", EVENTS, &[("content-type", "application/json")], &event.to_string()).await
}

async fn patch(cluster: &Cluster, name: &str, patch: &Value) -> Answer {
    let merge = [("content-type", "application/merge-patch+json")];
    cluster.call("PATCH", &format!("{EVENTS}/{name}"), &merge, &patch.to_string()).await
}

#[tokio::test]
async fn an_event_is_created_once_goes_on_as_a_series_and_is_read_listed_and_watched() {
    let (cluster, _) = Cluster::with_pod().await;
    let mut watch = cluster.watch(&format!("{EVENTS}?watch=1")).await;
    assert_eq!(create(&cluster, &web_event("web-1.1")).await.code, 201);
    let exists = create(&cluster, &web_event("web-1.1")).await;
    exists.refuses(409, "AlreadyExists", r#"events.events.k8s.io "web-1.1" already exists"#);
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-11-25T12:10:00.000001Z"}});
    assert_eq!(patch(&cluster, "web-1.1", &series).await.code, 200);
    let nope = patch(&cluster, "nope", &series).await;
    nope.refuses(404, "NotFound", r#"events.events.k8s.io "nope" not found"#);
    assert_eq!(watch.heard().await, event("ADDED", "web-1.1"));
    assert_eq!(watch.heard().await, event("MODIFIED", "web-1.1"));

    let read = cluster.get(&format!("{EVENTS}/web-1.1")).await.json();
    assert_eq!((&read["apiVersion"], &read["series"]["count"]), (&json!("events.k8s.io/v1"), &json!(2)));
    assert_eq!(cluster.get(&format!("{EVENTS}?fieldSelector=regarding.name%3Dweb-1")).await.names(), ["web-1.1"]);
    assert!(cluster.get(&format!("{EVENTS}?fieldSelector=type%3DNormal")).await.names().is_empty());
}

#[tokio::test]
async fn an_event_that_a_real_server_refuses_is_refused_in_its_words() {
    let cluster = Cluster::start().await;
    for (field, value, why) in [
        ("eventTime", Value::Null, "eventTime: Required value"),
        ("action", Value::Null, "action: Required value"),
        ("reason", Value::Null, "reason: Required value"),
        ("reportingInstance", Value::Null, "reportingInstance: Required value"),
        ("type", json!("Error"), r#"type: Invalid value: "": has invalid value: Error"#),
        ("note", json!("n".repeat(1025)), r#"message: Invalid value: "": can have at most 1024 characters"#),
        ("regarding", Value::Null, r#"involvedObject.namespace: Invalid value: "": does not match event.namespace"#),
    ] {
        let mut event = web_event("web-1.1");
        event[field] = value;
        let refused = create(&cluster, &event).await;
        refused.refuses(422, "Invalid", &format!(r#"Event "web-1.1" is invalid: {why}"#));
    }
    create(&cluster, &web_event("web-1.1")).await;
    let another = patch(&cluster, "web-1.1", &json!({"note": "another"})).await;
    let why = r#"Event "web-1.1" is invalid: message: Invalid value: "another": field is immutable"#;
    another.refuses(422, "Invalid", why);
}
