//! A cluster of manifests, on which the files of a plan are carried out as `kubectl` would.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::reference::{Annotations, annotations};

pub(crate) type Key = (String, String, String);

#[derive(Clone, Default)]
pub(crate) struct Objects(pub(crate) BTreeMap<Key, Value>);

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/migrate").join(name)
}

/// All documents of a file.
pub(crate) fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All files below a folder, by their paths in it.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut all = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else {
                all.insert(entry.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), entry);
            }
        }
    }
    all
}

fn merge(object: &mut Value, patch: &Value) {
    match patch {
        Value::Object(members) => {
            if !object.is_object() {
                *object = json!({});
            }
            for (key, value) in members {
                if value.is_null() {
                    object.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut object[key], value);
                }
            }
        }
        other => *object = other.clone(),
    }
}

impl Objects {
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let mut objects = Self::default();
        let files = paths
            .iter()
            .flat_map(|path| if path.is_dir() { files(path).into_values().collect() } else { vec![path.clone()] });
        for document in files.flat_map(|file| documents(&file)) {
            let items = document["items"].as_array().cloned().unwrap_or_else(|| vec![document.clone()]);
            for object in items {
                objects.apply(&object);
            }
        }
        objects
    }

    pub(crate) fn apply(&mut self, object: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of_cluster = ["Namespace", "ClusterRole", "ClusterRoleBinding"].iter().any(|kind| object["kind"] == *kind);
        let namespace = text(&object["metadata"]["namespace"]);
        let namespace = if of_cluster || !namespace.is_empty() { namespace } else { "default".to_owned() };
        let key = (text(&object["kind"]), namespace, text(&object["metadata"]["name"]));
        merge(self.0.entry(key).or_default(), object);
    }

    /// What a plan's folder says, as far as these steps.
    pub(crate) fn carry_out(&mut self, folder: &Path, with_cleanup: bool) {
        for (name, file) in files(folder) {
            if name.starts_with("2-cluster/") {
                documents(&file).iter().for_each(|object| self.apply(object));
            }
        }
        for (name, file) in files(folder) {
            let step = name.split('/').next().unwrap();
            if step == "3-workloads" || with_cleanup && step == "7-cleanup" {
                let parts = name.trim_end_matches(".yaml").split('/').skip(1).collect::<Vec<_>>();
                let (namespace, last) =
                    if let [namespace, last] = parts[..] { (namespace, last) } else { ("", parts[0]) };
                let (kind, name) = last.split_once('-').unwrap();
                let is_it = |key: &&Key| key.0.to_lowercase() == kind && key.1 == namespace && key.2 == name;
                let key = self.0.keys().find(is_it).unwrap_or_else(|| panic!("{last} is not there")).clone();
                merge(self.0.get_mut(&key).unwrap(), &documents(&file)[0]);
            }
        }
    }

    pub(crate) fn annotations(&self, kind: &str, namespace: &str, name: &str) -> Annotations {
        self.0.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned())).map(annotations).unwrap_or_default()
    }

    /// Each workload: its key, its pods' annotations, its service account, and whether it is on the node's network.
    pub(crate) fn workloads(&self) -> Vec<(Key, Annotations, String, bool)> {
        let pods = self.0.iter().filter_map(|(key, object)| {
            let pod = match key.0.as_str() {
                "Pod" => object,
                "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
                _ => &object["spec"]["template"],
            };
            let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned();
            let is_pod = pod["spec"]["containers"].is_array();
            let is_daemon = pod.to_string().contains("kube2iam:") || pod.to_string().contains("kiam:");
            let host = pod["spec"]["hostNetwork"] == true;
            (is_pod && !is_daemon).then(|| (key.clone(), annotations(pod), account, host))
        });
        pods.collect()
    }

    pub(crate) fn to_json(&self) -> String {
        json!({ "apiVersion": "v1", "kind": "List", "items": self.0.values().collect::<Vec<_>>() }).to_string()
    }
}
