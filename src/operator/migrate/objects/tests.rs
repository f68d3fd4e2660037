use serde_json::json;

use super::*;

fn cluster(objects: Value) -> Cluster {
    Cluster::of(vec![serde_json::from_value(json!({ "kind": "List", "items": objects })).unwrap()])
}

fn pod(name: &str, owner: Option<(&str, &str)>, role: &str) -> Value {
    let owners = owner.map(|(kind, name)| json!([{ "kind": kind, "name": name, "controller": true }]));
    json!({
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "a", "ownerReferences": owners,
            "annotations": { "iam.amazonaws.com/role": role },
        },
        "spec": { "serviceAccountName": "web", "hostNetwork": null },
    })
}

#[test]
fn what_something_else_makes_counts_once() {
    let found = cluster(json!([
        pod("alone", None, "r"),
        pod("web-1-x", Some(("ReplicaSet", "web-1")), "r"),
        pod("web-1-y", Some(("ReplicaSet", "web-1")), "edited"),
        pod("mirror", Some(("Node", "node-1")), "r"),
        pod("roll-1-x", Some(("Rollout", "roll")), "r"),
        pod("roll-1-y", Some(("Rollout", "roll")), "r"),
        { "kind": "ReplicaSet", "metadata": { "name": "web-1", "namespace": "a",
            "ownerReferences": [{ "kind": "Deployment", "name": "web", "controller": true }] },
          "spec": { "template": { "metadata": { "annotations": { "iam.amazonaws.com/role": "r" } } } } },
        { "kind": "Deployment", "metadata": { "name": "web", "namespace": "a" }, "spec": { "template": {
            "metadata": { "annotations": { "iam.amazonaws.com/role": "r" } }, "spec": { "serviceAccount": "old" } } } },
        { "kind": "CronJob", "metadata": { "name": "night" }, "spec": { "jobTemplate": { "spec": { "template": {
            "metadata": { "annotations": null }, "spec": { "hostNetwork": true } } } } } },
    ]));
    let workloads = found.workloads.iter().map(|it| (it.to_string(), it.account.as_str(), it.owner.as_deref()));
    assert_eq!(
        workloads.collect::<Vec<_>>(),
        [
            ("CronJob default/night".to_owned(), "default", None),
            ("Deployment a/web".to_owned(), "old", None),
            ("Pod a/alone".to_owned(), "web", None),
            ("Pod a/roll-1-y".to_owned(), "web", Some("Rollout a/roll")),
        ]
    );
    let edited = found.edited_pods.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(edited, ["Pod a/web-1-y"]);
}

#[test]
fn a_service_account_is_bound_by_its_name_or_as_the_user_it_is() {
    let found = cluster(json!([
        { "kind": "RoleBinding", "metadata": { "name": "b", "namespace": "a" }, "roleRef": { "name": "r" }, "subjects": [
            { "kind": "ServiceAccount", "name": "web" },
            { "kind": "ServiceAccount", "name": "web", "namespace": "b" },
            { "kind": "User", "name": "system:serviceaccount:c:web" },
            { "kind": "Group", "name": "system:serviceaccounts" },
        ] },
        { "kind": "ClusterRoleBinding", "metadata": { "name": "c" }, "roleRef": { "name": "r" }, "subjects": null },
    ]));
    let bound = |binding: &Binding| binding.accounts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(found.bindings.iter().map(bound).collect::<Vec<_>>(), [vec![], vec!["a/web", "b/web", "c/web"]]);
}
