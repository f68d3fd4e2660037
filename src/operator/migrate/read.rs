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

/// Whatever has a kind; other documents (values of a chart, say) are passed over.
fn documents(text: &str) -> Result<Vec<Object>, String> {
    let documents = serde_saphyr::from_multiple::<Value>(text).map_err(|error| first_line(&error.to_string()))?;
    let is_object = |document: &Value| document.get("kind").is_some_and(Value::is_string);
    let read = |document| serde_json::from_value::<Object>(document).map_err(|error| error.to_string());
    documents.into_iter().filter(is_object).map(read).collect()
}

fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().to_owned()
}
