//! A plan as the files that carry it out. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    objects::MADE_BY,
    page,
    plan::{AccountChange, Cleanup, Plan, permitted_roles},
};
use crate::identity::RoleArn;

/// A file, by its path in the folder.
pub(super) type Files = BTreeMap<String, String>;

/// All files of a plan.
pub(super) fn files(plan: &Plan) -> Result<Files, serde_saphyr::ser::Error> {
    let mut files =
        Files::from([("PLAN.md".to_owned(), page::page(plan)), ("kube2irsa.yaml".to_owned(), yaml(&[values(plan)])?)]);
    for change in &plan.roles {
        files.insert(trust_file(&change.role), format!("{}\n", change.trust_policy.trim_end()));
        if let Some(permissions) = &change.permissions {
            files.insert(permissions_file(&change.role), format!("{}\n", permissions.trim_end()));
        }
    }
    let is_new = |change: &&AccountChange| change.in_place_of.is_some();
    let new = plan.service_accounts.iter().filter(is_new).map(account).collect::<Vec<_>>();
    let there = plan.service_accounts.iter().filter(|change| !is_new(change)).map(account).collect::<Vec<_>>();
    let bindings = plan.bindings.iter().map(binding).collect::<Vec<_>>();
    let namespaces = plan.namespaces.iter().map(namespace).collect::<Vec<_>>();
    for (file, objects) in [(NEW_ACCOUNTS, new), (ACCOUNTS, there), (BINDINGS, bindings), (NAMESPACES, namespaces)] {
        if !objects.is_empty() {
            files.insert(file.to_owned(), yaml(&objects)?);
        }
    }
    for change in &plan.workloads {
        let patch = of_pods(&change.kind, json!({ "spec": { "serviceAccountName": change.account } }));
        files.insert(patch_file("3-workloads", &change.kind, &change.namespace, &change.name), yaml(&[patch])?);
    }
    for change in &plan.cleanup {
        files.insert(patch_file("7-cleanup", &change.kind, &change.namespace, &change.name), yaml(&[cleanup(change)])?);
    }
    Ok(files)
}

pub(super) const NEW_ACCOUNTS: &str = "2-cluster/new-serviceaccounts.yaml";
pub(super) const ACCOUNTS: &str = "2-cluster/serviceaccounts.yaml";
pub(super) const BINDINGS: &str = "2-cluster/bindings.yaml";
pub(super) const NAMESPACES: &str = "2-cluster/namespaces.yaml";

/// Names are unique in an account, whatever their paths.
pub(super) fn trust_file(role: &str) -> String {
    aws_file(role, "trust")
}

pub(super) fn permissions_file(role: &str) -> String {
    aws_file(role, "permissions")
}

fn aws_file(role: &str, what: &str) -> String {
    let parsed = role.parse::<RoleArn>();
    let (account, name) = parsed.as_ref().map_or(("", role), |role| (role.account(), role.name()));
    format!("1-aws/{account}/{name}.{what}.json")
}

pub(super) fn patch_file(folder: &str, kind: &str, namespace: &str, name: &str) -> String {
    let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("{folder}/{namespace}{}-{name}.yaml", kind.to_lowercase())
}

/// A patch of what makes pods, of the pods that it makes.
pub(super) fn of_pods(kind: &str, pod: Value) -> Value {
    match kind {
        "Namespace" => pod,
        "CronJob" => json!({ "spec": { "jobTemplate": { "spec": { "template": pod } } } }),
        _ => json!({ "spec": { "template": pod } }),
    }
}

fn cleanup(change: &Cleanup) -> Value {
    let annotations =
        change.annotations.keys().map(|key| (key.clone(), Value::Null)).collect::<serde_json::Map<_, _>>();
    of_pods(&change.kind, json!({ "metadata": { "annotations": annotations } }))
}

fn account(change: &AccountChange) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "namespace": change.namespace, "name": change.name, "annotations": change.annotations },
    });
    if change.in_place_of.is_some() {
        let (key, value) = MADE_BY;
        object["metadata"]["labels"] = json!({ key: value });
    }
    if !change.image_pull_secrets.is_empty() {
        let secrets = change.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        object["imagePullSecrets"] = Value::from(secrets);
    }
    if let Some(automount) = change.automount_service_account_token {
        object["automountServiceAccountToken"] = Value::from(automount);
    }
    object
}

fn binding(copy: &super::plan::BindingCopy) -> Value {
    let subject = json!({ "kind": "ServiceAccount", "namespace": copy.account_namespace, "name": copy.account });
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": if copy.namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": { "name": copy.name },
        "roleRef": copy.role_ref,
        "subjects": [subject],
    });
    if !copy.namespace.is_empty() {
        object["metadata"]["namespace"] = Value::from(copy.namespace.clone());
    }
    object
}

fn namespace(change: &super::plan::NamespaceChange) -> Value {
    let (key, value) = permitted_roles(change);
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": change.name, "annotations": { key: value } } })
}

/// The chart's values for the time of two daemons.
pub(super) fn values(plan: &Plan) -> Value {
    let mut values = json!({
        "mode": "observe",
        // No old daemon reaches pods on the node's network: they keep what they have.
        "flags": { "host-network": "off" },
        "nodeSelector": { page::SERVED_BY_US: "true" },
    });
    if let Some(policy) = plan.namespace_policy {
        values["flags"]["namespace-policy"] = Value::from(policy);
    }
    let system = plan.exempt_accounts();
    if !system.is_empty() {
        values["admission"] = json!({ "exemptServiceAccounts": system });
    }
    values
}

fn yaml(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let documents = objects.iter().map(serde_saphyr::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(documents.iter().map(|text| format!("{}\n", text.trim_end())).collect::<Vec<_>>().join("---\n"))
}
