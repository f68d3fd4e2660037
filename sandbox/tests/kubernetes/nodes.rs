//! Nodes: taints, which a JSON Patch removes, and what is refused.

use serde_json::{Value, json};

use super::support::{Answer, Cluster};

const NODE: &str = "/api/v1/nodes/node-a";

async fn patch(cluster: &Cluster, path: &str, media_type: &str, patch: &Value) -> Answer {
    cluster.call("PATCH", path, &[("content-type", media_type)], &patch.to_string()).await
}

#[tokio::test]
async fn a_taint_is_removed_where_it_is_still_what_the_patch_says() {
    let cluster = Cluster::start().await;
    cluster.kubernetes.create_node("node-a");
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    cluster.kubernetes.taint_node("node-a", &json!([taint("a"), taint("b")]));
    let json_patch = "application/json-patch+json";
    let removal = |place: usize, key: &str| {
        json!([
            {"op": "remove", "path": format!("/spec/taints/{place}")},
            {"op": "test", "path": "/spec/taints/0/key", "value": key},
        ])
    };
    let does_not_apply = "the server rejected our request due to an error in our request";
    for wrong in [removal(0, "a"), removal(1, "b"), removal(2, "a")] {
        patch(&cluster, NODE, json_patch, &wrong).await.refuses(422, "Invalid", does_not_apply);
    }
    assert_eq!(cluster.kubernetes.node_taints("node-a"), json!([taint("a"), taint("b")]), "all of a patch or nothing");
    assert_eq!(patch(&cluster, NODE, json_patch, &removal(0, "b")).await.code, 200);
    assert_eq!(cluster.kubernetes.node_taints("node-a"), json!([taint("b")]));
    let last = json!([{"op": "remove", "path": "/spec/taints/0"}]);
    assert_eq!(patch(&cluster, NODE, json_patch, &last).await.code, 200);
    assert_eq!(cluster.kubernetes.node_taints("node-a"), Value::Null, "no list is stored that holds nothing");

    patch(&cluster, "/api/v1/nodes/nope", json_patch, &last).await.refuses(
        404,
        "NotFound",
        r#"nodes "nope" not found"#,
    );
    let merge = patch(&cluster, NODE, "application/merge-patch+json", &json!({})).await;
    merge.refuses(415, "UnsupportedMediaType", "415: Unsupported Media Type");
    let label = json!([{"op": "remove", "path": "/metadata/labels"}]);
    let not_here = r#"remove of "/metadata/labels" is not taken here"#;
    patch(&cluster, NODE, json_patch, &label).await.refuses(400, "BadRequest", not_here);
}
