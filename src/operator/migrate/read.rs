//! What is read: a live cluster, or files of manifests. The only part that does I/O.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::objects::Object;
use crate::operator::{OperatorError, cluster};

/// Where the API server has what matters, and the kind of it.
const COLLECTIONS: [(&str, &str); 12] = [
    ("/api/v1/namespaces", "Namespace"),
    ("/api/v1/serviceaccounts", "ServiceAccount"),
    ("/api/v1/pods", "Pod"),
    ("/api/v1/replicationcontrollers", "ReplicationController"),
    ("/apis/apps/v1/deployments", "Deployment"),
    ("/apis/apps/v1/statefulsets", "StatefulSet"),
    ("/apis/apps/v1/daemonsets", "DaemonSet"),
    ("/apis/apps/v1/replicasets", "ReplicaSet"),
    ("/apis/batch/v1/jobs", "Job"),
    ("/apis/batch/v1/cronjobs", "CronJob"),
    ("/apis/rbac.authorization.k8s.io/v1/rolebindings", "RoleBinding"),
    ("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "ClusterRoleBinding"),
];

/// All that matters in a live cluster.
pub(super) async fn live(cluster: &cluster::Cluster) -> Result<Vec<Object>, OperatorError> {
    let mut objects = Vec::new();
    for (path, kind) in COLLECTIONS {
        let found = cluster.list::<Object>(path).await.map_err(|error| cluster::unavailable(path, &error))?;
        objects.extend(found.into_iter().map(|object| object.of_kind(kind)));
    }
    Ok(objects)
}

/// The issuer of the cluster's tokens.
pub(super) async fn issuer(cluster: &cluster::Cluster) -> Result<String, OperatorError> {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let document = cluster.get::<Value>(DISCOVERY).await.map_err(|error| cluster::unavailable(DISCOVERY, &error))?;
    let issuer = document.get("issuer").and_then(Value::as_str).map(str::to_owned);
    issuer.ok_or_else(|| OperatorError::Unavailable(format!("{DISCOVERY} names no issuer")))
}

/// All objects in these files, and in those of these folders and below that end in `.yaml`, `.yml` or `.json`.
pub(super) fn manifests(paths: &[PathBuf]) -> Result<Vec<Object>, OperatorError> {
    let mut objects = Vec::new();
    for path in paths {
        let mut files = Vec::new();
        collect(path, true, &mut files).map_err(|error| unreadable(path, &error.to_string()))?;
        if files.is_empty() {
            return Err(unreadable(path, "there is no .yaml, .yml or .json in it"));
        }
        for file in files {
            let text = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error.to_string()))?;
            objects.extend(documents(&text).map_err(|error| unreadable(&file, &error))?);
        }
    }
    Ok(objects)
}

fn unreadable(path: &Path, why: &str) -> OperatorError {
    OperatorError::usage(format!("--manifests {}: {why}", path.display()))
}

fn collect(path: &Path, is_named: bool, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if fs::metadata(path)?.is_dir() {
        let mut entries = fs::read_dir(path)?.map(|entry| entry.map(|it| it.path())).collect::<Result<Vec<_>, _>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| collect(entry, false, files));
    }
    let is_manifest = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|it| end == *it));
    if is_named || is_manifest {
        files.push(path.to_owned());
    }
    Ok(())
}

/// Groups of the API that have these kinds, or had them once; the first has no name.
const GROUPS: [&str; 5] = ["", "apps", "batch", "extensions", "rbac.authorization.k8s.io"];

/// What is of the kinds that matter, in lists too; all else (values of a chart, objects of others' kinds) is passed over. What
/// cannot be read is named, and not quoted: there may be a secret in it.
fn documents(text: &str) -> Result<Vec<Object>, String> {
    let documents = serde_saphyr::from_multiple::<Value>(text).map_err(|error| first_line(&error.to_string()))?;
    let (mut objects, mut open) = (Vec::new(), documents);
    while let Some(mut document) = open.pop() {
        let text = |key: &str| document.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, name, version) = (text("/kind"), text("/metadata/name"), text("/apiVersion"));
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if !GROUPS.contains(&group) {
            continue;
        }
        if let (Some(kind), Some(Value::Array(items))) = (kind.strip_suffix("List"), document.get_mut("items")) {
            for mut item in std::mem::take(items) {
                if let (Some(item), false) = (item.as_object_mut(), kind.is_empty()) {
                    item.entry("kind").or_insert_with(|| kind.into());
                }
                open.push(item);
            }
        } else if COLLECTIONS.iter().any(|(_, known)| *known == kind) {
            let object = serde_json::from_value::<Object>(document);
            objects.push(object.map_err(|_| format!("{kind} {name} is not as Kubernetes has it"))?);
        }
    }
    // What was taken off the end comes in the order of the file again.
    objects.reverse();
    Ok(objects)
}

fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_kinds_that_do_not_matter_are_passed_over_in_lists_too() {
        let objects = documents(
            "kind: Thing\nspec: {serviceAccount: {create: true}}\n---\nkind: List\nitems: [{kind: Thing, spec: {template: \
             text}}, {kind: ServiceAccount, metadata: {name: a}}]\n---\nkind: ServiceAccountList\nitems: [{metadata: {name: \
             b}}]\n---\napiVersion: batch.example.com/v1\nkind: Job\nspec: {template: text}\n---\nvalues: 1\n",
        );
        let names = objects.unwrap().into_iter().map(|object| object.metadata.name).collect::<Vec<_>>();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_not_quoted() {
        let error = documents("kind: Deployment\nmetadata: {name: web}\nspec: {template: hunter2}\n").unwrap_err();
        assert_eq!(error, "Deployment web is not as Kubernetes has it");
    }
}
