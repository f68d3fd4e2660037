//! The chart, rendered by the real Helm, which is built once from what `tests/helm/go.mod` names.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use serde_json::{Value, json};

/// Versions of clusters for which `auto` is the one or the other.
pub const NODE_MODE: &str = "1.36.0";
pub const DIRECT_MODE: &str = "1.35.9";

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn chart() -> PathBuf {
    root().join("daemonset/chart")
}

/// `make` has the one rule by which it is built.
pub fn make(arguments: &[&str]) {
    let made = Command::new("make").current_dir(root()).arg("--silent").args(arguments).status().unwrap();
    assert!(made.success(), "make {arguments:?}");
}

pub fn helm(arguments: &[&str]) -> Output {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        make(&["target/tools/bin/helm"]);
        root().join("target/tools/bin/helm")
    });
    Command::new(binary).current_dir(root()).args(arguments).output().unwrap()
}

/// The chart with these values, for a cluster of this version, as release `kube2irsa` in a namespace of that name.
pub fn try_render(version: &str, values: &Value) -> Result<Vec<Value>, String> {
    try_render_as(("kube2irsa", "kube2irsa"), version, values)
}

/// The same of another release, in another namespace.
pub fn try_render_as((release, namespace): (&str, &str), version: &str, values: &Value) -> Result<Vec<Value>, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(&mut file, values).unwrap();
    let file = file.path().to_str().unwrap();
    let arguments = ["template", release, "daemonset/chart", "-n", namespace, "--kube-version", version, "-f", file];
    let output = helm(&arguments);
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(objects(&String::from_utf8(output.stdout).unwrap()))
}

#[track_caller]
pub fn render(version: &str, values: &Value) -> Vec<Value> {
    try_render(version, values).unwrap_or_else(|error| panic!("{values}: {error}"))
}

/// The objects of a file of YAML.
pub fn objects(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// Those of a file of `daemonset/manifests/`.
pub fn manifest(name: &str) -> Vec<Value> {
    objects(&fs::read_to_string(root().join("daemonset/manifests").join(name)).unwrap())
}

pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The only one of its kind.
#[track_caller]
pub fn the<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let all = of_kind(objects, kind);
    let [one] = all.as_slice() else { panic!("{} of {kind}", all.len()) };
    one
}

/// The daemon's container.
pub fn container(objects: &[Value]) -> &Value {
    &the(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
}

/// What stands in its environment by this name.
pub fn variable<'a>(objects: &'a [Value], name: &str) -> Option<&'a str> {
    container(objects)["env"].as_array().unwrap().iter().find(|one| one["name"] == name)?["value"].as_str()
}

/// Values that differ in what matters, each for a cluster of either mode: `(version, values)`.
pub fn variants() -> Vec<(&'static str, Value)> {
    let values = [
        json!({}),
        json!({"mode": "observe"}),
        json!({"mode": "remove"}),
        json!({"startupTaint": {"enabled": true}}),
        json!({"mode": "observe", "startupTaint": {"enabled": true}}),
        json!({
            "mode": "remove",
            "startupTaint": {"enabled": true},
            "metrics": {"enabled": true},
            "updateStrategy": {"type": "OnDelete", "maxSurge": 0, "maxUnavailable": 0},
        }),
        json!({"events": false, "legacyIptables": true, "admission": {"forbiddenNamespaces": []}}),
        json!({"admission": {"podsOfOwnNodeOnly": true, "forbiddenNamespaces": ["kube-system", "kube-node-lease"]}}),
        json!({"additionalAudiences": ["sts.amazonaws.com.cn"], "flags": {"token-audience": "aws"}}),
        json!({"flags": {"imds-endpoint": "off", "region": "eu-central-1"}}),
        json!({"flags": {"host-network": "serve"}, "admission": {"exemptServiceAccounts": ["kube-system/aws-node"]}}),
        json!({"updateStrategy": {"maxSurge": 0, "maxUnavailable": "10%"}, "fullnameOverride": "roles"}),
        json!({
            "image": {"repository": "registry.example.com/kube2irsa", "digest": format!("sha256:{}", "0".repeat(64))},
            "imagePullSecrets": [{"name": "registry"}],
            "metrics": {"enabled": true, "port": 9999},
            "seLinuxOptions": {"type": "spc_t"},
            "podLabels": {"team": "platform"},
            "podAnnotations": {"a": "b"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
            "namespace": {"create": true},
        }),
    ];
    let of = |version: &'static str, access: &str, values: &Value| {
        let mut values = values.clone();
        values["tokenAccess"] = json!(access);
        (version, values)
    };
    let each = values.iter().flat_map(|values| [NODE_MODE, DIRECT_MODE].map(|version| of(version, "auto", values)));
    each.chain([of(NODE_MODE, "direct", &values[0]), of(DIRECT_MODE, "node", &values[0])]).collect()
}
