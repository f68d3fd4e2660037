//! The chart: what it renders of which values, what it refuses, and that the daemon takes what it is given.
//!
//! What needs Helm is a tier of its own with `tests/installed.rs` (`make test-chart`), for Helm is built and needs Go.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use clap::{ArgAction, CommandFactory as _};
use kube2irsa::cli::Cli;
use serde_json::{Value, json};
use support::{
    chart::{
        DIRECT_MODE, NODE_MODE, container, helm, make, objects, of_kind, render, root, the, try_render, try_render_as,
        variable, variants,
    },
    daemon_binary,
};

/// What the chart sets by itself, from other values.
const OURS: &[&str] =
    &["admin-listen", "admin-socket", "kubeconfig", "node-name", "remove-taint", "state-dir", "token-access"];

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join("daemonset/chart/values.schema.json")).unwrap()).unwrap()
}

/// The values of `flags`, by name, and what each may be.
fn flags() -> BTreeMap<String, Value> {
    serde_json::from_value(schema()["properties"]["flags"]["properties"].clone()).unwrap()
}

#[test]
fn every_flag_of_a_run_is_a_value_and_of_its_kind() {
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    let values = flags();
    let mut known = BTreeSet::new();
    for flag in run.get_arguments() {
        let Some(name) = flag.get_long().filter(|name| *name != "help") else { continue };
        known.insert(name.to_owned());
        let variable = format!("KUBE2IRSA_{}", name.to_uppercase().replace('-', "_"));
        assert_eq!(flag.get_env().unwrap().to_str().unwrap(), variable, "the chart gives it by this name");
        if OURS.contains(&name) {
            continue;
        }
        let value =
            values.get(name).unwrap_or_else(|| panic!("--{name} is no value: daemonset/chart/values.schema.json"));
        let is_switch = matches!(flag.get_action(), ArgAction::SetTrue);
        assert_eq!(value["type"] == "boolean", is_switch, "{name}: {value}");
        // Where the help names each word, so does the schema; whether pods are only observed is a value of its own.
        let words = flag.get_value_names().map(|names| names[0].to_string()).unwrap_or_default();
        let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let words = words.split('|').filter(|word| is_word(word) && *word != "observe").collect::<Vec<_>>();
        if words.len() > 1 {
            assert_eq!(value["enum"], json!(words), "{name}");
        }
    }
    let unknown = values.keys().map(String::as_str).chain(OURS.iter().copied()).filter(|name| !known.contains(*name));
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0], "the daemon has no such flags");
}

#[test]
fn the_chart_has_the_version_of_the_daemon() {
    let chart = &objects(&fs::read_to_string(root().join("daemonset/chart/Chart.yaml")).unwrap())[0];
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn a_copy_of_the_charts_folder_alone_is_whole() {
    let mut folders = vec![root().join("daemonset/chart")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            assert!(!kind.is_symlink(), "{} would lead out of the copy", entry.path().display());
            if kind.is_dir() {
                folders.push(entry.path());
            }
            files += usize::from(kind.is_file());
        }
    }
    assert!(files > 10, "only {files} files were found");
}

/// Each right that the daemon's own ServiceAccount is given: verb, resource.
fn rights(objects: &[Value]) -> BTreeSet<(String, String)> {
    let words = |list: &Value| {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut rights = BTreeSet::new();
    for binding in of_kind(objects, "ClusterRoleBinding") {
        if binding["subjects"][0]["kind"] != "ServiceAccount" {
            continue;
        }
        let role = of_kind(objects, "ClusterRole")
            .into_iter()
            .find(|role| role["metadata"]["name"] == binding["roleRef"]["name"]);
        for rule in role.unwrap()["rules"].as_array().unwrap() {
            for verb in words(&rule["verbs"]) {
                rights.extend(words(&rule["resources"]).into_iter().map(|resource| (verb.clone(), resource)));
            }
        }
    }
    rights
}

#[test]
#[ignore = "run by make test-chart"]
fn the_rights_of_one_way_to_tokens_are_rendered_and_the_daemon_is_told_to_use_that_one() {
    for (version, values) in variants() {
        let objects = render(version, &values);
        let mode = values["mode"].as_str().unwrap_or("run");
        let access = match values["tokenAccess"].as_str() {
            Some("auto") => {
                if version == NODE_MODE {
                    "node"
                } else {
                    "direct"
                }
            }
            Some(named) => named,
            None => panic!(),
        };
        let rights = rights(&objects);
        let has = |verb: &str, resource: &str| rights.contains(&(verb.to_owned(), resource.to_owned()));
        let said = format!("{version} {values} {rights:?}");
        let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
        let named =
            |end: &str| policies.iter().any(|policy| policy["metadata"]["name"].as_str().unwrap().ends_with(end));
        assert_eq!(policies.len(), of_kind(&objects, "ValidatingAdmissionPolicyBinding").len(), "{said}");
        if mode == "remove" {
            assert!(rights.is_empty() && policies.is_empty(), "{said}");
            assert_eq!(variable(&objects, "KUBE2IRSA_TOKEN_ACCESS"), None);
            continue;
        }
        assert_eq!(variable(&objects, "KUBE2IRSA_TOKEN_ACCESS"), Some(access), "{said}");
        let as_node = access == "node";
        assert_eq!(rights.iter().any(|(verb, _)| verb.starts_with("impersonate")), as_node, "{said}");
        assert_eq!(has("list", "pods"), !as_node, "{said}");
        // Tokens: nobody who only observes may ask for any, and nobody may by himself without the policy.
        let asks = (
            has("create", "serviceaccounts/token"),
            has("impersonate-on:associated-node:create", "serviceaccounts/token"),
        );
        assert_eq!(asks, (mode == "run" && !as_node, mode == "run" && as_node), "{said}");
        assert_eq!(named("-direct"), asks.0, "{said}");
        // Nodes are changed by nobody without the policy.
        let taint = values["startupTaint"]["enabled"] == true;
        assert_eq!((has("patch", "nodes"), named("-startup-taint")), (taint, taint), "{said}");
        assert_eq!(variable(&objects, "KUBE2IRSA_REMOVE_TAINT").is_some(), taint, "{said}");
        let node_is_read = taint || values["flags"]["imds-endpoint"] == "off";
        assert_eq!(has("get", "nodes"), !as_node && node_is_read, "{said}");
        assert_eq!(has("create", "events"), mode == "run" && values["events"] != false, "{said}");
        for nobodys in ["secrets", "configmaps", "*"] {
            assert!(rights.iter().all(|(verb, resource)| resource != nobodys && verb != "*"), "{said}");
        }
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn the_daemon_runs_with_what_its_mode_needs_and_nothing_else() {
    for (version, values) in variants() {
        let objects = render(version, &values);
        let mode = values["mode"].as_str().unwrap_or("run");
        let spec = &the(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let context = &container(&objects)["securityContext"];
        let own = if mode == "observe" { "NET_RAW" } else { "NET_ADMIN" };
        let mut added = vec![own];
        if values["legacyIptables"] == true {
            added.push("NET_RAW");
        }
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"], "add": added}), "{values}");
        for (field, value) in [
            ("runAsUser", json!(0)),
            ("privileged", json!(false)),
            ("allowPrivilegeEscalation", json!(false)),
            ("readOnlyRootFilesystem", json!(true)),
            ("seccompProfile", json!({"type": "RuntimeDefault"})),
        ] {
            assert_eq!(context[field], value, "{field} {values}");
        }
        assert_eq!(
            (&spec["hostNetwork"], &spec["hostPID"], &container(&objects)["ports"]),
            (&json!(true), &Value::Null, &Value::Null)
        );
        let token = spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "token");
        assert_eq!((token.is_some(), &spec["automountServiceAccountToken"]), (mode != "remove", &json!(false)));
        // What removes comes to all nodes, and at once, however it is to be otherwise.
        let wanted = match values.get("updateStrategy") {
            _ if mode == "remove" => json!({"maxSurge": "100%", "maxUnavailable": 0}),
            Some(named) => named.clone(),
            None => json!({"maxSurge": 1, "maxUnavailable": 0}),
        };
        let strategy = &the(&objects, "DaemonSet")["spec"]["updateStrategy"];
        assert_eq!(*strategy, json!({"type": "RollingUpdate", "rollingUpdate": wanted}), "{values}");
        for unasked in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
            assert!(of_kind(&objects, unasked).is_empty(), "not every cluster knows its kind");
        }
    }
    let monitored = json!({"metrics": {"enabled": true, "port": 9999, "podMonitor": {"enabled": true, "interval": "30s", "labels": {"release": "p"}}}});
    let monitor = &render(NODE_MODE, &monitored);
    let monitor = the(monitor, "PodMonitor");
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(
        (&endpoint["interval"], &endpoint["relabelings"][1]["replacement"]),
        (&json!("30s"), &json!("[$1]:9999"))
    );
}

#[test]
#[ignore = "run by make test-chart"]
fn pods_on_the_nodes_network_keep_its_role_until_another_value_is_chosen() {
    for (mode, said) in [
        ("run", Value::Null),
        ("run", json!("off")),
        ("run", json!("deny")),
        ("run", json!("serve")),
        ("run", json!("auto")),
        ("observe", json!("serve")),
        ("remove", json!("serve")),
    ] {
        let mut values = json!({"mode": mode, "tokenAccess": "node"});
        if said != Value::Null {
            values["flags"]["host-network"] = said.clone();
        }
        let objects = render(NODE_MODE, &values);
        let container = container(&objects);
        let given = variable(&objects, "KUBE2IRSA_HOST_NETWORK");
        assert_eq!(given, (mode == "run").then(|| said.as_str().unwrap_or("off")), "{values}");
        let tells = mode == "run" && ["deny", "serve", "auto"].iter().any(|word| said == *word);
        let mount = json!({"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true});
        let volume = json!({"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}});
        let spec = &the(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let has = |list: &Value, one: &Value| list.as_array().unwrap().contains(one);
        assert_eq!(
            (has(&container["volumeMounts"], &mount), has(&spec["volumes"], &volume)),
            (tells, tells),
            "{values}"
        );
        let resources = &container["resources"];
        // The class Guaranteed: both are there, and each request is its limit.
        let is_guaranteed = ["cpu", "memory"].iter().all(|what| resources["limits"][what].is_string())
            && resources["limits"] == resources["requests"];
        assert_eq!(is_guaranteed, tells, "{values}: {resources}");
        assert_eq!(spec["containers"].as_array().unwrap().len(), 1, "or the class would be another");
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn whatever_the_release_is_called_rights_and_policies_are_for_its_own_service_account() {
    let everything = json!({"startupTaint": {"enabled": true}, "admission": {"podsOfOwnNodeOnly": true}});
    for (release, named, name) in [
        ("kube2irsa", "", "kube2irsa"),
        ("aws", "", "aws-kube2irsa"),
        ("my-kube2irsa", "", "my-kube2irsa"),
        ("aws", "roles", "roles"),
    ] {
        for version in [NODE_MODE, DIRECT_MODE] {
            let mut values = everything.clone();
            values["fullnameOverride"] = json!(named);
            let objects = try_render_as((release, "platform"), version, &values).unwrap();
            let account = the(&objects, "ServiceAccount");
            assert_eq!(
                (&account["metadata"]["name"], &account["metadata"]["namespace"]),
                (&json!(name), &json!("platform"))
            );
            assert_eq!(the(&objects, "DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"], name);
            for binding in of_kind(&objects, "ClusterRoleBinding") {
                let subject = &binding["subjects"][0];
                let own = json!({"kind": "ServiceAccount", "name": name, "namespace": "platform"});
                assert!(*subject == own || subject["name"] == "system:nodes", "{binding}");
            }
            let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
            assert_eq!(policies.len(), if version == NODE_MODE { 1 } else { 3 });
            let own = format!("request.userInfo.username == 'system:serviceaccount:platform:{name}'");
            for policy in policies {
                assert_eq!(policy["spec"]["matchConditions"], json!([{"name": "kube2irsa", "expression": own}]));
            }
        }
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn values_that_cannot_be_meant_are_refused_and_named() {
    let cases = [
        (json!({"mod": "run"}), "mod"),
        (json!({"mode": "off"}), "mode"),
        (json!({"tokenAccess": "both"}), "tokenAccess"),
        (json!({"flags": {"regon": "eu-central-1"}}), "regon"),
        (json!({"flags": {"token-access": "direct"}}), "token-access"),
        (json!({"flags": {"intercept": "observe"}}), "intercept"),
        (json!({"flags": {"sts-rate": "fast"}}), "sts-rate"),
        (json!({"flags": {"require-imdsv2": "yes"}}), "require-imdsv2"),
        (json!({"flags": {"worker-threads": 1.5}}), "worker-threads"),
        (json!({"image": {"digest": "latest"}}), "digest"),
        (json!({"metrics": {"port": 0}}), "port"),
        (json!({"metrics": {"serviceMonitor": {"enabled": true}}}), "serviceMonitor"),
        (json!({"metrics": {"podMonitor": {"enabled": true}}}), "metrics.podMonitor needs metrics.enabled"),
        (
            json!({"updateStrategy": {"maxSurge": 1, "maxUnavailable": 1}}),
            "one of maxSurge and maxUnavailable must be 0",
        ),
        (json!({"updateStrategy": {"maxSurge": "0%"}}), "one of maxSurge and maxUnavailable must be 0"),
        (json!({"updateStrategy": {"maxSurge": "half"}}), "maxSurge"),
        (json!({"admission": {"forbiddenNamespaces": "kube-system"}}), "forbiddenNamespaces"),
        (json!({"admission": {"exemptServiceAccounts": ["aws-node"]}}), "exemptServiceAccounts"),
        (json!({"flags": {"host-network": false}}), "host-network"),
        (json!({"flags": {"legacy-source": "node"}}), "legacy-source"),
        (json!({"legacyIdentity": {"roleArn": "kube2irsa"}}), "roleArn"),
        (json!({"stateDir": "run"}), "stateDir"),
        // Which Helm read of 012345678901, without quotes.
        (json!({"flags": {"aws-account": 12_345_678_901_u64}}), "aws-account"),
        (json!({"podLabels": {"app.kubernetes.io/instance": "other"}}), "podLabels"),
        (json!({"metrics": {"podMonitor": {"labels": {"helm.sh/chart": "other"}}}}), "podMonitor"),
        (json!({"extraEnv": [{"name": "KUBE2IRSA_TOKEN_ACCESS", "value": "direct"}]}), "extraEnv"),
        (json!({"extraArgs": ["--token-access", "direct"]}), "extraArgs"),
    ];
    for (values, named) in cases {
        let error = try_render(NODE_MODE, &values).map(|_| ()).unwrap_err();
        assert!(error.contains(named), "{values}: {error}");
    }
    let old = try_render("1.31.9", &json!({})).unwrap_err();
    assert!(old.contains(">=1.32.0-0"), "{old}");
    // As EKS and others write it.
    assert_eq!(variable(&render("v1.36.2-eks-0a1b2c3", &json!({})), "KUBE2IRSA_TOKEN_ACCESS"), Some("node"));
}

/// A value of each flag that is not its default.
fn all_flags() -> Value {
    let text = |name: &str| match name {
        "listen" => "0.0.0.0:9000",
        "imds-endpoint" => "http://192.0.2.1",
        "sts-endpoint" => "https://sts.example.com",
        "allow-path" => "/latest/meta-data/local-ipv4",
        "annotation-prefix" => "example.com",
        "aws-partition" => "aws-cn",
        "container-endpoints" => "169.254.170.2,fd00:ec2::23",
        "ca-bundle" => "/dev/null",
        "region" => "eu-central-1",
        "legacy-base-role-arn" => "arn:aws:iam::111122223333:role/team/",
        _ => "text",
    };
    let value = |(name, schema): (&String, &Value)| {
        let value = match (&schema["enum"], schema["type"].as_str(), &schema["maximum"]) {
            // The other one needs a role, which is no flag.
            _ if name == "legacy-identity" => json!("node"),
            // Where nothing is redirected there is nothing to say of pods on the node's network.
            _ if name == "intercept" => json!("nft"),
            (Value::Array(words), ..) => words.last().unwrap().clone(),
            (_, Some("boolean"), _) => json!(true),
            (_, _, most @ Value::Number(_)) => most.clone(),
            _ => json!(text(name)),
        };
        (name.clone(), value)
    };
    Value::Object(flags().iter().map(value).collect())
}

/// How the daemon answers what the chart gives it and one more flag, which cannot be meant, so that it does not start.
fn complaints(objects: &[Value], host: &str, wrong: &[&str]) -> String {
    let container = container(objects);
    let mut command = Command::new(daemon_binary());
    command.env_clear().env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT", "443");
    for variable in container["env"].as_array().unwrap() {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            None => variable["value"].as_str().unwrap().replace("$(HOST_IP)", host),
            Some("spec.nodeName") => "node-1".to_owned(),
            Some("status.hostIP") => host.to_owned(),
            Some(other) => panic!("{other}"),
        };
        command.env(variable["name"].as_str().unwrap(), value);
    }
    command.args(container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
    let output = command.args(wrong).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "run by make test-chart"]
fn the_daemon_takes_all_that_it_is_given() {
    let mut variants = variants();
    let complete = json!({"flags": all_flags(), "metrics": {"enabled": true}, "startupTaint": {"enabled": true}});
    variants.push((NODE_MODE, complete));
    for (version, values) in variants {
        let objects = render(version, &values);
        // The one after it shows that it would be said.
        let (wrong, said) = if values["mode"] == "remove" {
            (["--log-format", "xml"], "--log-format \"xml\": must be text or json")
        } else {
            (["--worker-threads", "0"], "--worker-threads 0: is not a number of threads from 1 to 64")
        };
        for host in ["10.0.0.10", "fd00:10::10"] {
            let complaints = complaints(&objects, host, &wrong);
            let others = complaints.lines().filter(|line| !line.contains("--ca-bundle /dev/null")).collect::<Vec<_>>();
            assert_eq!(others, [format!("kube2irsa: {said}")], "{values}");
        }
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn a_role_of_the_daemons_own_comes_with_a_token_for_sts_alone_and_nobody_has_one_unasked() {
    let role = "arn:aws:iam::111122223333:role/kube2irsa";
    let values = |mode: &str| {
        let flags =
            json!({"legacy-annotations": true, "legacy-source": "assume-role", "legacy-identity": "web-identity"});
        json!({"mode": mode, "flags": flags, "legacyIdentity": {"roleArn": role}})
    };
    for (values, has) in [(json!({}), false), (values("run"), true), (values("remove"), false)] {
        let objects = render(NODE_MODE, &values);
        let spec = &the(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let named = |list: &Value| list.as_array().unwrap().iter().find(|one| one["name"] == "own-identity").cloned();
        assert_eq!(variable(&objects, "AWS_ROLE_ARN"), has.then_some(role));
        let mount = named(&container(&objects)["volumeMounts"]);
        let file = mount.map(|mount| format!("{}/token", mount["mountPath"].as_str().unwrap()));
        assert_eq!(variable(&objects, "AWS_WEB_IDENTITY_TOKEN_FILE"), file.as_deref());
        let token = json!({"path": "token", "audience": "sts.amazonaws.com", "expirationSeconds": 3600});
        let volume = named(&spec["volumes"]).map(|volume| volume["projected"]["sources"].clone());
        assert_eq!(volume, has.then(|| json!([{"serviceAccountToken": token}])), "{values}");
        if has {
            let said = complaints(&objects, "10.0.0.10", &["--worker-threads", "0"]);
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn flags_arrive_as_they_were_written() {
    let flags = json!({"max-connections": 1_000_000, "sts-rate": 0.5, "require-imdsv2": false, "cluster-name": "007", "allow-path": "/a,/b"});
    let objects = render(NODE_MODE, &json!({"flags": flags}));
    for (name, value) in [
        ("MAX_CONNECTIONS", "1000000"),
        ("STS_RATE", "0.5"),
        ("REQUIRE_IMDSV2", "false"),
        ("CLUSTER_NAME", "007"),
        ("ALLOW_PATH", "/a,/b"),
    ] {
        assert_eq!(variable(&objects, &format!("KUBE2IRSA_{name}")), Some(value));
    }
    // As a file and `--set` make them of what is written without quotes: `--set` has no fractions.
    let (account, most) = (111_122_223_333_u64, 9_007_199_254_740_991_u64);
    for (written, arrives) in [
        (json!({"aws-account": account, "cluster-name": most}), ["111122223333", "9007199254740991", "1.5"]),
        (json!({"aws-account": "012345678901", "cluster-name": "7"}), ["012345678901", "7", "1.5"]),
    ] {
        let mut flags = written;
        flags["sts-rate"] = json!("1.5");
        let objects = render(NODE_MODE, &json!({"flags": flags, "image": {"tag": 20_261_126}}));
        for (name, value) in ["AWS_ACCOUNT", "CLUSTER_NAME", "STS_RATE"].into_iter().zip(arrives) {
            assert_eq!(variable(&objects, &format!("KUBE2IRSA_{name}")), Some(value));
        }
        assert_eq!(container(&objects)["image"], "kube2irsa:20261126");
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn helm_finds_no_fault_and_says_what_comes_of_it() {
    for (version, access) in [(NODE_MODE, "node"), (DIRECT_MODE, "direct")] {
        for mode in ["run", "observe", "remove"] {
            let values = format!(
                "mode={mode},tokenAccess={access},startupTaint.enabled=true,metrics.enabled=true,metrics.podMonitor.enabled=true"
            );
            let linted = helm(&["lint", "--strict", "--kube-version", version, "--set", &values, "daemonset/chart"]);
            assert!(linted.status.success(), "{linted:?}");
            let dry = ["--namespace", "kube2irsa", "--dry-run=client", "--set", &values];
            let installed = helm(&[&["install", "kube2irsa", "daemonset/chart"][..], &dry].concat());
            assert!(installed.status.success(), "{installed:?}");
            let said = String::from_utf8(installed.stdout).unwrap();
            let (_, notes) = said.split_once("NOTES:").unwrap();
            assert_eq!(notes.contains("THE NODE'S ROLE"), mode == "remove", "{notes}");
            assert_eq!(notes.contains("ANY POD OF THE CLUSTER"), mode == "run" && access == "direct", "{notes}");
        }
    }
}

#[test]
#[ignore = "run by make test-chart"]
fn alerts_and_dashboard_are_those_that_stand_beside_the_chart() {
    let values =
        json!({"metrics": {"rules": {"enabled": true, "labels": {"release": "p"}}, "dashboard": {"enabled": true}}});
    let all = render(NODE_MODE, &values);
    let beside = |name: &str| fs::read_to_string(root().join("daemonset").join(name)).unwrap();
    let rule = the(&all, "PrometheusRule");
    assert_eq!(rule["spec"], objects(&beside("alerts.yaml"))[0]);
    assert_eq!(rule["metadata"]["labels"]["release"], "p");
    let dashboard = the(&all, "ConfigMap");
    let shown: Value = serde_json::from_str(dashboard["data"]["kube2irsa.json"].as_str().unwrap()).unwrap();
    assert_eq!(shown, serde_json::from_str::<Value>(&beside("dashboard.json")).unwrap());
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
}

#[test]
#[ignore = "run by make test-chart"]
fn the_manifests_that_are_checked_in_are_those_that_the_chart_renders() {
    let rendered = tempfile::tempdir().unwrap();
    make(&["manifests", &format!("MANIFESTS={}", rendered.path().display())]);
    let files = |folder: &std::path::Path| {
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        let named = files.map(|file| (file.file_name().unwrap().to_owned(), fs::read_to_string(&file).unwrap()));
        named.collect::<BTreeMap<_, _>>()
    };
    let checked_in = files(&root().join("daemonset/manifests"));
    assert_eq!(checked_in.len(), 7);
    assert!(checked_in == files(rendered.path()), "make manifests");
}
