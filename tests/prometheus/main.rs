//! What Prometheus and Grafana make of kube2irsa: the real Prometheus reads its metrics, its alerts and its dashboard.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod cases;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use kube2irsa::metrics::Metrics;
use sandbox::{
    cloud::ACCOUNT,
    sandbox::{Pod, Sandbox},
};
use serde_json::{Value, json};
use server::{Prometheus, assert_known, file, promtool};
use support::{Daemon, ROLE_NAME, admin, ask, eventually, metric, role_status, sandbox};

const ALERTS: &str = "daemonset/alerts.yaml";
const DASHBOARD: &str = "daemonset/dashboard.json";

/// A node with a pod of each kind: one that is served, one without a role, one that STS refuses and one whose annotation
/// cannot be meant.
fn all_kinds() -> (Sandbox, Vec<Pod>) {
    let sandbox = sandbox();
    for name in ["web", "denied"] {
        sandbox.add_service_account("team-a", name, name).unwrap();
    }
    let denied = format!("arn:aws:iam::{ACCOUNT}:role/denied");
    sandbox.cloud.sts.put_role(&denied, sandbox.trust_policy("system:serviceaccount:team-b:denied")).unwrap();
    sandbox.annotate("team-a", "plain", &[]);
    sandbox.annotate("team-a", "wrong", &[("eks.amazonaws.com/role-arn", "web")]);
    let pods = ["web", "denied", "plain", "wrong"].map(|name| sandbox.add_pod("team-a", &format!("{name}-0"), name));
    (sandbox, pods.into_iter().map(Result::unwrap).collect())
}

/// Each asks for its role, and for its document.
fn all_ask(pods: &[Pod]) {
    for pod in pods {
        role_status(pod);
        let _closed = ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]);
    }
}

#[test]
fn a_real_prometheus_has_data_for_every_panel_and_evaluates_every_alert() {
    let (sandbox, pods) = all_kinds();
    // So that there is always something to renew.
    sandbox.cloud.sts.set_max_life(Some(Duration::from_secs(20)));
    let _daemon = Daemon::ready(&sandbox, &[]);
    let prometheus = Prometheus::started(&sandbox);
    eventually("each pod is counted by what it gets", || {
        let classes = ["served", "refused_by_aws", "no_role", "invalid", "exempt"];
        classes.iter().all(|class| metric(&sandbox, &format!("kube2irsa_pods{{credentials=\"{class}\"}}")) == 1.0)
    });

    let said = promtool(&["check", "metrics"], &admin(&sandbox, "/metrics").1);
    assert!(said.is_empty(), "{said}");

    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file(DASHBOARD)).unwrap()).unwrap();
    for query in queries(&dashboard) {
        assert_known(&query);
        let filled = query.replace("$__rate_interval", "30s").replace("$node", ".*");
        assert!(!filled.contains('$'), "{query}");
        eventually(&query, || {
            all_ask(&pods);
            prometheus.query(&filled).iter().any(|value| !value.is_nan())
        });
    }

    let rules = || prometheus.api("/api/v1/rules?type=alert");
    for alert in alerts(&rules()) {
        assert_known(alert["query"].as_str().unwrap());
    }
    // The two that are wrong with this node, and nothing else once a busy machine has kept up with each scrape and renewal.
    let mut pending = Vec::new();
    eventually("every alert is evaluated, and those two begin that should", || {
        let all = alerts(&rules());
        let evaluated = all.iter().all(|alert| alert["health"] == "ok");
        pending = all.into_iter().filter(|alert| alert["state"] != "inactive").collect();
        let mut names = pending.iter().map(|alert| alert["name"].as_str().unwrap()).collect::<Vec<_>>();
        names.sort_unstable();
        evaluated && names == ["Kube2irsaPodsInvalid", "Kube2irsaPodsRefusedByAws"]
    });
    for alert in &pending {
        let summary = alert["alerts"][0]["annotations"]["summary"].as_str().unwrap();
        assert!(summary.contains("1 pods") && !summary.contains("error"), "{summary}");
    }
}

#[test]
fn every_alert_fires_when_it_should_and_rests_when_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tests.json");
    let tests = cases::ALL.iter().map(|case| {
        let fired = format!("count_over_time(ALERTS{{alertname=\"{}\",alertstate=\"firing\"}}[3h])", case.alert);
        let series = case.series.iter().map(|(series, values)| json!({"series": series, "values": values}));
        case.series.iter().for_each(|(series, _)| assert_known(series));
        json!({
            "name": format!("{}: {}", case.alert, case.what),
            "interval": "1m",
            "input_series": series.collect::<Vec<_>>(),
            "promql_expr_test": [{
                "expr": format!("(sum({fired}) or vector(0)) > bool 0"),
                "eval_time": "130m",
                "exp_samples": [{"labels": "{}", "value": u8::from(case.fires)}],
            }],
        })
    });
    let tests = tests.collect::<Vec<_>>();
    // JSON is YAML.
    let all = json!({"rule_files": [file(ALERTS)], "evaluation_interval": "1m", "tests": tests});
    fs::write(&path, all.to_string()).unwrap();
    promtool(&["test", "rules", path.to_str().unwrap()], "");
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_rests_and_says_what_to_do() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &file(ALERTS)], "");
    let text = fs::read_to_string(file(ALERTS)).unwrap();
    let runbook = fs::read_to_string(file("docs/operations.md")).unwrap();
    let alerts = text.split("- alert: ").skip(1).map(|alert| alert.split_once('\n').unwrap());
    let alerts = alerts.collect::<Vec<_>>();
    let names = alerts.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>();
    for fires in [true, false] {
        let tried =
            cases::ALL.iter().filter(|case| case.fires == fires).map(|case| case.alert).collect::<BTreeSet<_>>();
        assert_eq!(tried, names, "alerts with a case in which it fires: {fires}");
    }
    for (name, alert) in alerts {
        let anchor = format!("docs/operations.md#{}", name.to_lowercase());
        assert!(
            alert
                .trim_end()
                .lines()
                .any(|line| line.trim_start().starts_with("runbook_url:") && line.ends_with(&anchor))
        );
        assert!(alert.contains("summary:") && alert.contains("description:"), "{name}");
        let heading = format!("### {name}");
        assert!(runbook.lines().any(|line| line == heading), "docs/operations.md: {heading}");
        assert!(
            ["critical", "warning"].iter().any(|severity| alert.contains(&format!("severity: {severity}"))),
            "{name}"
        );
    }
}

#[test]
fn files_that_alerts_name_are_there() {
    let text = fs::read_to_string(file(ALERTS)).unwrap();
    let words = text.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    let named = words.filter(|word| ["daemonset/", "docs/"].iter().any(|folder| word.starts_with(folder)));
    let named = named.collect::<BTreeSet<_>>();
    assert!(named.len() > 3, "{named:?}");
    for name in named {
        assert!(Path::new(&file(name)).exists(), "{name}");
    }
}

#[test]
fn each_class_of_pods_that_get_none_has_an_alert_and_counts_on_the_dashboard() {
    let mut metrics = Metrics::SECTIONS.iter().flat_map(|(_, metrics)| *metrics);
    let pods = metrics.find(|metric| metric.name == "kube2irsa_pods").unwrap();
    let get_some_or_want_none = ["served", "fetching", "on_request", "no_role", "exempt"];
    let get_none = pods.labels[0].values.iter().filter(|class| !get_some_or_want_none.contains(class));
    let get_none = get_none.copied().collect::<BTreeSet<_>>();
    let alerts = fs::read_to_string(file(ALERTS)).unwrap();
    for class in &get_none {
        assert!(alerts.contains(&format!("kube2irsa_pods{{credentials=\"{class}\"}}")), "{class}");
    }
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file(DASHBOARD)).unwrap()).unwrap();
    for title in ["Pods that get none", "Pods that get none, by node", "Whose fault"] {
        let panel = dashboard["panels"].as_array().unwrap().iter().find(|panel| panel["title"] == title).unwrap();
        let query = panel["targets"][0]["expr"].as_str().unwrap();
        let (_, classes) = query.split_once("credentials=~\"").unwrap();
        let counted = classes.split('"').next().unwrap().split('|').collect::<BTreeSet<_>>();
        assert_eq!(counted, get_none, "{title}");
    }
}

#[test]
fn the_dashboard_shows_first_whether_pods_get_credentials_and_can_be_read() {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file(DASHBOARD)).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let first = panels.iter().find(|panel| panel["type"] != "row").unwrap();
    assert_eq!(first["title"], "Pods that get credentials");
    let ids = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "{} lies over another panel", panel["title"]);
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert!(["datasource", "node"].contains(&variable["name"].as_str().unwrap()));
    }
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
    }
}

/// What the panels of a dashboard ask for, and its variables.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert!(queries.len() > 30, "{queries:?}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let values = variable["definition"].as_str().and_then(|definition| definition.strip_prefix("label_values("));
        queries.extend(values.map(|values| values.split_once(',').unwrap().0.to_owned()));
    }
    queries
}

fn alerts(rules: &Value) -> Vec<Value> {
    let groups = rules["groups"].as_array().unwrap();
    let alerts = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect::<Vec<_>>();
    assert!(!alerts.is_empty());
    alerts
}
