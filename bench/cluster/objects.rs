//! What the cluster is full of, in the sizes that clusters have.

use sandbox::{
    cloud::ACCOUNT,
    sandbox::{NODE, Pod},
};
use serde_json::{Value, json};

use super::{ACCOUNTS, CLUSTER_ACCOUNTS, CLUSTER_NODES, NAMESPACES, PODS};

pub(crate) fn team(namespace: usize) -> String {
    format!("team-{namespace:04}")
}

pub(crate) fn app(number: usize) -> String {
    format!("payments-api-{number:04}")
}

pub(crate) fn role(namespace: &str, name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{namespace}-{name}")
}

fn uid(kind: u8, at: usize) -> String {
    format!("{kind:08x}-5d0c-4c3e-9f1a-{at:012x}")
}

/// Of all the cluster's; the first are those of this node's namespaces.
pub(crate) fn account_at(at: usize, revision: usize) -> Value {
    account(at / ACCOUNTS, at % ACCOUNTS, revision)
}

/// A service account as Helm leaves it; three of five name a role, those that pods here use all do.
pub(crate) fn account(namespace: usize, number: usize, revision: usize) -> Value {
    let (in_namespace, name) = (team(namespace), app(number));
    let mut account = json!({
        "metadata": {
            "name": name,
            "namespace": in_namespace,
            "uid": uid(1, namespace * CLUSTER_ACCOUNTS + number),
            "creationTimestamp": "2026-03-04T10:11:12Z",
            "labels": {
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/name": "payments-api",
                "app.kubernetes.io/version": format!("1.{revision}.0"),
                "helm.sh/chart": "payments-api-4.2.1",
            },
            "annotations": {
                "meta.helm.sh/release-name": name,
                "meta.helm.sh/release-namespace": in_namespace,
            },
            "managedFields": [{
                "manager": "helm",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2026-03-04T10:11:12Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": { "f:metadata": {
                    "f:annotations": {
                        ".": {},
                        "f:eks.amazonaws.com/role-arn": {},
                        "f:meta.helm.sh/release-name": {},
                        "f:meta.helm.sh/release-namespace": {},
                    },
                    "f:labels": {
                        ".": {},
                        "f:app.kubernetes.io/instance": {},
                        "f:app.kubernetes.io/managed-by": {},
                        "f:app.kubernetes.io/name": {},
                        "f:app.kubernetes.io/version": {},
                        "f:helm.sh/chart": {},
                    },
                } },
            }],
        },
        "automountServiceAccountToken": true,
    });
    if number <= PODS / NAMESPACES || number % 5 < 3 {
        account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] = role(&in_namespace, &name).into();
    }
    account
}

/// A pod of another node, in any of the cluster's namespaces: what of it is selected by. Nothing of it may be sent.
pub(crate) fn pod_elsewhere(at: usize, revision: usize) -> Value {
    let namespace = at % (CLUSTER_ACCOUNTS / ACCOUNTS);
    json!({
        "metadata": {
            "name": format!("elsewhere-7d4b9c6f5d-{at:06}"),
            "namespace": team(namespace),
            "uid": uid(2, at),
            "creationTimestamp": "2026-03-04T10:11:12Z",
            "generation": revision,
        },
        "spec": { "nodeName": format!("ip-10-0-{}", at % CLUSTER_NODES), "serviceAccountName": app(at % ACCOUNTS) },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.2.3" }] },
    })
}

/// A pod of this node as a Deployment makes it and kubelet fills it in: two containers, one of them a sidecar.
pub(crate) fn pod_here(pod: &Pod, app: &str, restarts: usize) -> Value {
    let address = pod.address().to_string();
    let variables = |names: &[&str]| {
        let variable =
            |name: &&str| json!({ "name": name, "value": format!("https://{}.internal:8443", name.to_lowercase()) });
        names.iter().map(variable).collect::<Value>()
    };
    let container = |name: &str| {
        json!({
            "name": name,
            "image": format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com/{name}:1.42.0"),
            "imagePullPolicy": "IfNotPresent",
            "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
            "env": variables(&["ORDERS_URL", "LEDGER_URL", "RATES_URL", "AUDIT_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"]),
            "resources": { "limits": { "memory": "512Mi" }, "requests": { "cpu": "250m", "memory": "512Mi" } },
            "livenessProbe": { "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" },
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 },
            "readinessProbe": { "httpGet": { "path": "/ready", "port": "http", "scheme": "HTTP" },
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3 },
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true, "runAsNonRoot": true },
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "volumeMounts": [
                { "name": "config", "mountPath": "/etc/payments", "readOnly": true },
                { "name": "tmp", "mountPath": "/tmp" },
                { "name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true },
            ],
        })
    };
    let container_fields = json!({
        ".": {}, "f:env": { ".": {},
            "k:{\"name\":\"AUDIT_URL\"}": { ".": {}, "f:name": {}, "f:value": {} },
            "k:{\"name\":\"LEDGER_URL\"}": { ".": {}, "f:name": {}, "f:value": {} },
            "k:{\"name\":\"ORDERS_URL\"}": { ".": {}, "f:name": {}, "f:value": {} },
            "k:{\"name\":\"OTEL_EXPORTER_OTLP_ENDPOINT\"}": { ".": {}, "f:name": {}, "f:value": {} },
            "k:{\"name\":\"RATES_URL\"}": { ".": {}, "f:name": {}, "f:value": {} } },
        "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
        "f:livenessProbe": { ".": {}, "f:failureThreshold": {}, "f:httpGet": { ".": {}, "f:path": {}, "f:port": {}, "f:scheme": {} },
            "f:periodSeconds": {}, "f:successThreshold": {}, "f:timeoutSeconds": {} },
        "f:ports": { ".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {}, "f:name": {}, "f:protocol": {} } },
        "f:resources": { ".": {}, "f:limits": { ".": {}, "f:memory": {} }, "f:requests": { ".": {}, "f:cpu": {}, "f:memory": {} } },
        "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
    });
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-03-04T10:11:20Z",
            "observedGeneration": 1 })
    };
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let conditions = conditions.map(condition);
    let status = |name: &str| {
        json!({
            "name": name,
            "image": format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com/{name}:1.42.0"),
            "imageID": format!("{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com/{name}@sha256:{:064x}", 7),
            "containerID": format!("containerd://{:064x}", 9),
            "lastState": {}, "ready": true, "started": true, "restartCount": restarts,
            "state": { "running": { "startedAt": "2026-03-04T10:11:18Z" } },
        })
    };
    json!({
        "metadata": {
            "name": pod.name,
            "generateName": format!("{app}-7d4b9c6f5d-"),
            "namespace": pod.namespace,
            "uid": pod.uid,
            "generation": 1,
            "creationTimestamp": "2026-03-04T10:11:12Z",
            "labels": { "app.kubernetes.io/instance": app, "app.kubernetes.io/name": "payments-api", "pod-template-hash": "7d4b9c6f5d" },
            "annotations": { "prometheus.io/port": "8080", "prometheus.io/scrape": "true", "checksum/config": format!("{:064x}", 11) },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d4b9c6f5d"),
                "uid": uid(3, 1), "controller": true, "blockOwnerDeletion": true }],
            "managedFields": [
                { "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                    "time": "2026-03-04T10:11:12Z", "fieldsType": "FieldsV1", "fieldsV1": {
                        "f:metadata": { "f:annotations": { ".": {}, "f:checksum/config": {}, "f:prometheus.io/port": {} },
                            "f:generateName": {}, "f:labels": { ".": {}, "f:app.kubernetes.io/name": {}, "f:pod-template-hash": {} } },
                        "f:spec": { "f:containers": { "k:{\"name\":\"main\"}": container_fields, "k:{\"name\":\"proxy\"}": container_fields },
                            "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:serviceAccountName": {} } } },
                { "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "subresource": "status",
                    "time": "2026-03-04T10:11:20Z", "fieldsType": "FieldsV1", "fieldsV1": { "f:status": {
                        "f:conditions": { "k:{\"type\":\"ContainersReady\"}": { ".": {}, "f:status": {}, "f:type": {} },
                            "k:{\"type\":\"Initialized\"}": { ".": {}, "f:status": {}, "f:type": {} },
                            "k:{\"type\":\"Ready\"}": { ".": {}, "f:status": {}, "f:type": {} } },
                        "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {} } } },
            ],
        },
        "spec": {
            "serviceAccountName": app, "serviceAccount": app, "nodeName": NODE,
            "containers": [container("main"), container("proxy")],
            "volumes": [
                { "name": "config", "configMap": { "name": format!("{app}-config"), "defaultMode": 420 } },
                { "name": "tmp", "emptyDir": {} },
                { "name": "kube-api-access", "projected": { "defaultMode": 420, "sources": [
                    { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } } ] } },
            ],
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler", "priority": 0, "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority", "securityContext": {},
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable", "startTime": "2026-03-04T10:11:12Z",
            "hostIP": "10.0.0.2", "hostIPs": [{ "ip": "10.0.0.2" }], "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": conditions,
            "containerStatuses": [status("main"), status("proxy")],
        },
    })
}
