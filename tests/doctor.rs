//! `kube2irsa doctor`: each fault that is planted in a sandbox is found by its id, and nothing else; in a healthy one nothing is.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{collections::BTreeSet, fs};

use sandbox::{
    cloud::{ACCOUNT, REGION},
    imds::HttpTokens,
    kubernetes::{ContainerState, Grant, Kubernetes, NewPod, PodPhase, PodStatus, Resource},
    network::{OIDC_ADDRESS, STS_ADDRESS},
    sandbox::{DAEMON, DAEMON_POD, DAEMON_USER, NODE, Sandbox, daemon_rights, daemon_set},
};
use serde_json::{Value, json};
use support::{
    Daemon, daemon_binary,
    node::{as_operator, assert_shown, operators_kubeconfig, sh},
    with_a_pod,
};

const ROLE: &str = "arn:aws:iam::111122223333:role/web";
const ROLE_ARN: &str = "eks.amazonaws.com/role-arn";
const SECRET: &str = "a-secret-that-must-not-be-told";

/// What is looked at.
const CLUSTER: &[&str] = &["--kubeconfig"];
const ON_NODE: &[&str] = &["--node"];
const BOTH: &[&str] = &["--node", "--kubeconfig"];

/// A fault: what it is, what is looked at, which ids are new by it, how it is made and undone.
struct Fault {
    of: &'static [&'static str],
    ids: &'static [&'static str],
    plant: fn(&Sandbox),
    undo: fn(&Sandbox),
}

fn kubernetes(sandbox: &Sandbox) -> &Kubernetes {
    &sandbox.cloud.kubernetes
}

/// The DaemonSet with these variables besides.
fn told(sandbox: &Sandbox, variables: &[(&str, &str)]) {
    let mut set = daemon_set();
    let env = set.pointer_mut("/spec/template/spec/containers/0/env").unwrap().as_array_mut().unwrap();
    env.extend(variables.iter().map(|(name, value)| json!({"name": name, "value": value})));
    kubernetes(sandbox).restore(Resource::DaemonSets, set);
}

/// A DaemonSet of another program.
fn add_set(sandbox: &Sandbox, name: &str, image: &str) {
    let container = json!({"name": "main", "image": image});
    let set = json!({
        "metadata": {"name": name, "namespace": "kube-system", "uid": "d0000000-0000-4000-8000-000000000002"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [container]}}},
    });
    kubernetes(sandbox).restore(Resource::DaemonSets, set);
}

/// A running pod of `team-a/web` with this environment.
fn add_pod(sandbox: &Sandbox, env: Value) {
    let pod = json!({
        "metadata": {"name": "web-9", "namespace": "team-a", "uid": "b0000000-0000-4000-8000-000000000001"},
        "spec": {"serviceAccountName": "web", "nodeName": NODE, "containers": [{"name": "main", "image": "i", "env": env}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.99"}],
            "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]},
    });
    kubernetes(sandbox).restore(Resource::Pods, pod);
}

fn remove_pod(sandbox: &Sandbox) {
    kubernetes(sandbox).remove(Resource::Pods, "team-a", "web-9");
}

fn regrant(sandbox: &Sandbox, also: &[Grant]) {
    kubernetes(sandbox).revoke(DAEMON_USER);
    for grant in daemon_rights().iter().chain(also) {
        kubernetes(sandbox).grant(DAEMON_USER, grant.clone());
    }
}

fn annotate(sandbox: &Sandbox, annotations: &[(&str, &str)]) {
    sandbox.annotate("team-a", "web", annotations);
}

fn as_before(sandbox: &Sandbox) {
    annotate(sandbox, &[(ROLE_ARN, ROLE)]);
}

/// In the cluster, and on the node while the daemon runs.
const FAULTS: &[Fault] = &[
    Fault {
        of: CLUSTER,
        ids: &["daemon-missing"],
        plant: |sandbox| kubernetes(sandbox).remove(Resource::DaemonSets, DAEMON, DAEMON),
        undo: |sandbox| told(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["daemon-not-on-node"],
        plant: |sandbox| kubernetes(sandbox).create_node("node-2"),
        undo: |sandbox| kubernetes(sandbox).remove(Resource::Nodes, "", "node-2"),
    },
    Fault {
        of: CLUSTER,
        ids: &["daemon-not-ready"],
        plant: |sandbox| {
            let status =
                PodStatus { container: Some(ContainerState::Waiting), ..PodStatus::new(PodPhase::Running, &[]) };
            kubernetes(sandbox).set_pod_status(DAEMON, DAEMON_POD, status);
        },
        undo: |sandbox| kubernetes(sandbox).run_pod(DAEMON, DAEMON_POD, &["10.0.0.10".parse().unwrap()]),
    },
    Fault {
        of: CLUSTER,
        ids: &["daemon-versions"],
        plant: |sandbox| {
            kubernetes(sandbox).create_node("node-2");
            kubernetes(sandbox).restore(
                Resource::Pods,
                json!({
                    "metadata": {"name": "next", "namespace": DAEMON, "uid": "b0000000-0000-4000-8000-000000000002",
                        "labels": {"app.kubernetes.io/name": DAEMON}},
                    "spec": {"serviceAccountName": DAEMON, "nodeName": "node-2", "hostNetwork": true,
                        "containers": [{"name": DAEMON, "image": "example.com/main:next"}]},
                    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
                }),
            );
        },
        undo: |sandbox| {
            kubernetes(sandbox).remove(Resource::Pods, DAEMON, "next");
            kubernetes(sandbox).remove(Resource::Nodes, "", "node-2");
        },
    },
    Fault {
        of: CLUSTER,
        ids: &["daemon-serves-nobody"],
        plant: |sandbox| told(sandbox, &[("KUBE2IRSA_INTERCEPT", "observe")]),
        undo: |sandbox| told(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["foreign-interceptor"],
        plant: |sandbox| add_set(sandbox, "kube2iam", "jtblin/kube2iam:0.11.2"),
        undo: |sandbox| kubernetes(sandbox).remove(Resource::DaemonSets, "kube-system", "kube2iam"),
    },
    Fault {
        of: CLUSTER,
        ids: &["foreign-interceptor"],
        plant: |sandbox| add_set(sandbox, "kiam-agent", "quay.io/uswitch/kiam:v4.2"),
        undo: |sandbox| kubernetes(sandbox).remove(Resource::DaemonSets, "kube-system", "kiam-agent"),
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-identity-agent"],
        plant: |sandbox| {
            add_set(sandbox, "eks-pod-identity-agent", "x.dkr.ecr.y.amazonaws.com/eks/eks-pod-identity-agent:0.1.32")
        },
        undo: |sandbox| kubernetes(sandbox).remove(Resource::DaemonSets, "kube-system", "eks-pod-identity-agent"),
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-identity-conflict"],
        plant: |sandbox| {
            add_set(sandbox, "eks-pod-identity-agent", "x.dkr.ecr.y.amazonaws.com/eks/eks-pod-identity-agent:0.1.32");
            told(sandbox, &[("KUBE2IRSA_CONTAINER_ENDPOINTS", "169.254.170.2,169.254.170.23")]);
        },
        undo: |sandbox| {
            kubernetes(sandbox).remove(Resource::DaemonSets, "kube-system", "eks-pod-identity-agent");
            told(sandbox, &[]);
        },
    },
    Fault {
        of: CLUSTER,
        ids: &["rights-missing"],
        plant: |sandbox| {
            kubernetes(sandbox).revoke(DAEMON_USER);
            for grant in daemon_rights().into_iter().filter(|grant| grant.resource != "namespaces") {
                kubernetes(sandbox).grant(DAEMON_USER, grant);
            }
        },
        undo: |sandbox| regrant(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["rights-events"],
        plant: |sandbox| {
            kubernetes(sandbox).revoke(DAEMON_USER);
            for grant in daemon_rights().into_iter().filter(|grant| grant.resource != "events") {
                kubernetes(sandbox).grant(DAEMON_USER, grant);
            }
        },
        undo: |sandbox| regrant(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["rights-of-both-modes"],
        plant: |sandbox| regrant(sandbox, &[Grant::new(&["list"], "pods")]),
        undo: |sandbox| regrant(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["rights-too-wide"],
        plant: |sandbox| regrant(sandbox, &[Grant::new(&["get"], "secrets")]),
        undo: |sandbox| regrant(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["token-kube-system"],
        plant: |sandbox| {
            kubernetes(sandbox).create_namespace("kube-system", &[]);
            let tokens = Grant::new(&["create"], "serviceaccounts/token");
            regrant(sandbox, &[tokens.namespace("kube-system")]);
        },
        undo: |sandbox| regrant(sandbox, &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["token-any-audience", "token-unbound"],
        plant: |sandbox| {
            let tokens = Grant::new(&["create"], "serviceaccounts/token");
            regrant(sandbox, &[tokens.namespace(DAEMON)]);
        },
        undo: |sandbox| regrant(sandbox, &[]),
    },
    // Direct mode, without its policy.
    Fault {
        of: CLUSTER,
        ids: &["token-any-audience", "token-kube-system", "token-mode", "token-unbound"],
        plant: |sandbox| {
            told(sandbox, &[("KUBE2IRSA_TOKEN_ACCESS", "direct")]);
            let rights = [Grant::new(&["list", "watch"], "pods"), Grant::new(&["create"], "serviceaccounts/token")];
            regrant(sandbox, &rights);
        },
        undo: |sandbox| {
            told(sandbox, &[]);
            regrant(sandbox, &[]);
        },
    },
    Fault {
        of: CLUSTER,
        ids: &["audience-not-granted"],
        plant: |sandbox| annotate(sandbox, &[(ROLE_ARN, ROLE), ("eks.amazonaws.com/audience", "vault.example.com")]),
        undo: as_before,
    },
    Fault {
        of: CLUSTER,
        ids: &["kubernetes-version"],
        plant: |sandbox| kubernetes(sandbox).set_version(31),
        undo: |sandbox| kubernetes(sandbox).set_version(36),
    },
    Fault {
        of: CLUSTER,
        ids: &["clock-skew"],
        plant: |sandbox| sandbox.cloud.sts.faults().set_clock_skew(-300),
        undo: |sandbox| sandbox.cloud.sts.faults().set_clock_skew(0),
    },
    Fault {
        of: CLUSTER,
        ids: &["issuer-not-reachable"],
        plant: |sandbox| drop(sh(sandbox, &format!("ip route add unreachable {OIDC_ADDRESS}"))),
        undo: |sandbox| drop(sh(sandbox, &format!("ip route del unreachable {OIDC_ADDRESS}"))),
    },
    Fault {
        of: BOTH,
        ids: &["sts-unreachable"],
        plant: |sandbox| drop(sh(sandbox, &format!("ip route add unreachable {STS_ADDRESS}"))),
        undo: |sandbox| drop(sh(sandbox, &format!("ip route del unreachable {STS_ADDRESS}"))),
    },
    Fault {
        of: CLUSTER,
        ids: &["account-annotation"],
        plant: |sandbox| annotate(sandbox, &[(ROLE_ARN, "web")]),
        undo: as_before,
    },
    Fault {
        of: CLUSTER,
        ids: &["account-role-not-permitted"],
        plant: |sandbox| {
            let other = format!("arn:aws:iam::{ACCOUNT}:role/other-*");
            kubernetes(sandbox).create_namespace("team-a", &[("kube2irsa.io/permitted-roles", &other)]);
        },
        undo: |sandbox| kubernetes(sandbox).create_namespace("team-a", &[]),
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-account-missing"],
        plant: |sandbox| {
            let pod = NewPod::new("team-a", "web-9").service_account("nobody").node(NODE);
            kubernetes(sandbox).create_pod(pod);
        },
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-duplicate-address"],
        plant: |sandbox| {
            for name in ["web-9", "other"] {
                kubernetes(sandbox).create_pod(NewPod::new("team-a", name).node(NODE));
                kubernetes(sandbox).run_pod("team-a", name, &["10.244.0.98".parse().unwrap()]);
            }
        },
        undo: |sandbox| {
            remove_pod(sandbox);
            kubernetes(sandbox).delete_pod("team-a", "other");
        },
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-host-network"],
        plant: |sandbox| {
            told(sandbox, &[("KUBE2IRSA_HOST_NETWORK", "off")]);
            let pod = NewPod::new("team-a", "web-9").service_account("web").node(NODE).host_network();
            kubernetes(sandbox).create_pod(pod);
        },
        undo: |sandbox| {
            told(sandbox, &[]);
            remove_pod(sandbox);
        },
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-proxy"],
        plant: |sandbox| {
            let proxy = format!("http://user:{SECRET}@proxy.example.com:3128");
            add_pod(sandbox, json!([{"name": "HTTP_PROXY", "value": proxy}, {"name": "NO_PROXY", "value": ".svc"}]));
        },
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-metadata-disabled"],
        plant: |sandbox| add_pod(sandbox, json!([{"name": "AWS_EC2_METADATA_DISABLED", "value": "true"}])),
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-static-keys"],
        plant: |sandbox| {
            let [id, key] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
            add_pod(sandbox, json!([{"name": id, "value": SECRET}, {"name": key, "value": SECRET}]));
        },
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-own-token"],
        plant: |sandbox| {
            let file = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";
            add_pod(sandbox, json!([{"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": file}]));
        },
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-other-endpoint"],
        plant: |sandbox| {
            let url = "http://169.254.170.23/v1/credentials";
            add_pod(sandbox, json!([{"name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": url}]));
        },
        undo: remove_pod,
    },
    Fault {
        of: CLUSTER,
        ids: &["pod-skip-containers"],
        plant: |sandbox| {
            let pod = NewPod::new("team-a", "web-9").service_account("web").node(NODE);
            kubernetes(sandbox).create_pod(pod.annotation("eks.amazonaws.com/skip-containers", "sidecar"));
        },
        undo: remove_pod,
    },
    Fault {
        of: ON_NODE,
        ids: &["node-metadata-v1"],
        plant: |sandbox| sandbox.cloud.imds.set_http_tokens(HttpTokens::Optional),
        undo: |sandbox| sandbox.cloud.imds.set_http_tokens(HttpTokens::Required),
    },
    Fault {
        of: ON_NODE,
        ids: &["node-metadata-silent"],
        plant: |sandbox| sandbox.cloud.imds.set_down(true),
        undo: |sandbox| sandbox.cloud.imds.set_down(false),
    },
];

/// On the node, after the daemon was killed: it would put its rules back.
const FAULTS_WITHOUT_A_DAEMON: &[Fault] = &[
    Fault {
        of: ON_NODE,
        ids: &["node-foreign-rules"],
        plant: |sandbox| drop(sh(sandbox, &kube2iam("-A"))),
        undo: |sandbox| drop(sh(sandbox, &kube2iam("-D"))),
    },
    Fault {
        of: ON_NODE,
        ids: &["node-obstacle"],
        plant: |sandbox| {
            drop(sh(
                sandbox,
                "ip link add vlan7 type veth peer name vlan8; ip rule del pref 0; ip rule add pref 9 iif vlan7 lookup 107; ip rule add pref 10 lookup local",
            ))
        },
        undo: |sandbox| {
            drop(sh(
                sandbox,
                "ip rule add pref 0 lookup local; ip rule del pref 10; ip rule del pref 9; ip link del vlan7",
            ))
        },
    },
    Fault {
        of: ON_NODE,
        ids: &["node-guard", "node-guard-passed"],
        plant: |sandbox| drop(sh(sandbox, "ip rule del pref 2 to 169.254.169.254")),
        // The last: only a daemon makes it anew.
        undo: |_| {},
    },
];

/// The rule by which kube2iam takes pods' requests.
fn kube2iam(how: &str) -> String {
    format!(
        "iptables -t nat {how} PREROUTING -p tcp -d 169.254.169.254 --dport 80 -i cali+ -j DNAT --to-destination 10.0.0.10:8181"
    )
}

/// A cluster in which all is well, seen by an administrator.
fn healthy() -> (Sandbox, sandbox::sandbox::Pod, Daemon) {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.imds.set_http_tokens(HttpTokens::Required);
    operators_kubeconfig(&sandbox);
    let daemon = Daemon::ready(&sandbox, &["--host-network", "off"]);
    (sandbox, web, daemon)
}

/// What the doctor says, and its exit code.
fn doctor(sandbox: &Sandbox, of: &[&str], output: &str) -> (Option<i32>, String) {
    let [kubeconfig, certificates] = [sandbox.directory().join("operator"), sandbox.ca_file()];
    let mut arguments = vec!["doctor"];
    for flag in of {
        arguments.push(flag);
        if *flag == "--kubeconfig" {
            arguments.push(kubeconfig.to_str().unwrap());
        }
    }
    arguments.extend(["--region", REGION, "--host-network", "off", "-o", output, "--ca-bundle"]);
    arguments.push(certificates.to_str().unwrap());
    let (code, text, errors) = as_operator(sandbox, &arguments);
    assert!(!text.contains(SECRET) && !text.contains("eyJ"), "{text}");
    (code, text + &errors)
}

/// All that was said, for programs, and the ids of what was found.
fn found(sandbox: &Sandbox, of: &[&str]) -> (Value, BTreeSet<String>) {
    let (code, said) = doctor(sandbox, of, "json");
    let said = serde_json::from_str::<Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(code, Some(i32::from(said["well"] == false)), "{said:#}");
    let findings = said["findings"].as_array().unwrap();
    let ids = findings.iter().map(|finding| finding["id"].as_str().unwrap().to_owned()).collect();
    (said, ids)
}

fn each_is_found(sandbox: &Sandbox, faults: &[Fault], before: &BTreeSet<String>) {
    for Fault { of, ids, plant, undo } in faults {
        plant(sandbox);
        let (said, now) = found(sandbox, of);
        let new = now.difference(before).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(&new, ids, "{said:#}");
        undo(sandbox);
    }
}

#[test]
fn each_fault_is_found_and_nothing_else_and_none_where_all_is_well() {
    let (sandbox, _web, daemon) = healthy();
    let none = BTreeSet::new();
    for of in [CLUSTER, ON_NODE, BOTH] {
        let (said, ids) = found(&sandbox, of);
        println!("{}", doctor(&sandbox, of, "text").1);
        assert_eq!(ids, none, "{said:#}");
    }
    each_is_found(&sandbox, FAULTS, &none);
    let (said, ids) = found(&sandbox, BOTH);
    assert_eq!(ids, none, "each was undone: {said:#}");

    daemon.kill();
    let (said, killed) = found(&sandbox, ON_NODE);
    assert_eq!(killed, ["node-daemon", "node-redirect"].map(str::to_owned).into(), "{said:#}");
    each_is_found(&sandbox, FAULTS_WITHOUT_A_DAEMON, &killed);
    let planted = FAULTS.iter().chain(FAULTS_WITHOUT_A_DAEMON).map(|fault| fault.ids.len()).sum::<usize>();
    assert!(planted >= 20);
}

#[test]
fn the_page_for_operators_shows_a_cluster_with_some_faults() {
    let (sandbox, _web, _daemon) = healthy();
    add_set(&sandbox, "kube2iam", "jtblin/kube2iam:0.11.2");
    sandbox.annotate("team-a", "worker", &[(ROLE_ARN, "arn:aws:iam::111122223333:user/worker")]);
    let proxy = format!("http://user:{SECRET}@proxy.example.com:3128");
    add_pod(
        &sandbox,
        json!([{"name": "HTTP_PROXY", "value": proxy}, {"name": "NO_PROXY", "value": ".svc,10.0.0.0/8"}]),
    );
    let skipping = NewPod::new("team-a", "web-1").service_account("web").node(NODE);
    kubernetes(&sandbox).create_pod(skipping.annotation("eks.amazonaws.com/skip-containers", "sidecar"));
    let (code, said) = doctor(&sandbox, CLUSTER, "text");
    assert_eq!(code, Some(1), "{said}");
    // How long that took is another time each time.
    let (before, rest) = said.split_once("answers in ").unwrap();
    let (_, after) = rest.split_once(" ms").unwrap();
    assert_shown("docs/doctor.md", "tests/doctor.rs", &format!("{before}answers in 24 ms{after}"));
}

#[test]
fn what_cannot_be_looked_at_is_said_to_be_so() {
    let (sandbox, _web, _daemon) = healthy();
    // Who may see little: the daemon itself.
    fs::copy(sandbox.kubeconfig(), sandbox.directory().join("operator")).unwrap();
    let (said, ids) = found(&sandbox, CLUSTER);
    assert_eq!(ids, ["cluster-not-seen".to_owned()].into(), "{said:#}");
    assert_eq!(said["well"], false, "{said:#}");
    let unseen = said["not_looked_at"].as_array().unwrap();
    let whats = unseen.iter().map(|unseen| unseen["what"].as_str().unwrap()).collect::<Vec<_>>();
    for what in
        ["pods", "nodes", "DaemonSets", "what the daemon may do (it takes the right to impersonate its ServiceAccount)"]
    {
        assert!(whats.contains(&what), "{what}: {whats:?}");
    }
    // Nobody to ask.
    sandbox.cloud.stop_api();
    let (code, said) = doctor(&sandbox, CLUSTER, "text");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("the API server cannot be asked"), "{said}");
    let (_, said) = doctor(&sandbox, BOTH, "text");
    assert!(said.contains("NOT LOOKED AT") && said.contains("the API server:"), "{said}");
}

#[test]
fn flags_that_cannot_be_meant_are_all_told() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(daemon_binary()).arg("doctor").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, part) in [
        (&["--kubeconfig", "/nonexistent"][..], "--kubeconfig /nonexistent"),
        (&["--node", "--imds-endpoint", "x"], "--imds-endpoint"),
        (&["--node", "--listen", "x"], "--listen"),
        (&["--node", "--ca-bundle", "/nonexistent"], "--ca-bundle"),
    ] {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(part), "{part}: {said}");
    }
}
