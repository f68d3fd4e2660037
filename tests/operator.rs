//! What an operator sees: metrics, and the daemon's words about its flags.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{process::Command, time::Duration};

use http::StatusCode;
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Fault, Target},
    sts,
};
use support::{
    Daemon, admin, ask, daemon_binary, eventually, metric, pod, role_status, sandbox, total, with_a_pod,
    with_an_account,
};

#[test]
fn metrics_are_prometheus_text_without_names_of_pods_or_roles() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web-role").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200);
    ask(&web, "GET", "/nothing", &[]).unwrap();
    let (status, text) = admin(&sandbox, "/metrics");
    assert_eq!(status, 200);
    let mut typed = Vec::new();
    let mut samples = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            typed.push(name.to_owned());
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let name = series.split('{').next().unwrap();
            assert!(
                ["kube2irsa_", "process_"].iter().any(|prefix| name.starts_with(prefix))
                    && typed.iter().any(|typed| name.starts_with(typed)),
                "{line}"
            );
            assert!(series.ends_with('}') || !series.contains('{'), "{line}");
            samples += 1;
        }
    }
    assert!(samples > 30, "{text}");
    for secret in ["team-a", "web-0", "web-role", &web.uid, &web.address().to_string()] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    for line in [
        "kube2irsa_requests_total{kind=\"role_name\",status=\"200\"} 1",
        "kube2irsa_requests_total{kind=\"other\",status=\"404\"} 1",
        "kube2irsa_sts_exchanges_total{action=\"web_identity\",result=\"ok\"} 1",
        "kube2irsa_token_access_info{mode=\"node\"} 1",
        "kube2irsa_excess_rights 0",
        "kube2irsa_intercept_info{backend=\"nft\"} 1",
        "kube2irsa_pods{credentials=\"served\"} 1",
        "kube2irsa_pods{credentials=\"exempt\"} 1",
        "kube2irsa_sessions{state=\"good\"} 1",
        "kube2irsa_rules_present{part=\"guard\"} 1",
        "kube2irsa_rules_present{part=\"redirect\"} 1",
        "kube2irsa_service_account_watches 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

#[test]
fn each_pod_is_counted_by_what_it_gets_and_why_it_gets_nothing() {
    let sandbox = with_an_account();
    let daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    let pods = |class: &str| metric(&sandbox, &format!("kube2irsa_pods{{credentials=\"{class}\"}}"));
    let sessions = |state: &str| metric(&sandbox, &format!("kube2irsa_sessions{{state=\"{state}\"}}"));
    assert_eq!(
        (pods("exempt"), total(&sandbox, "kube2irsa_pods")),
        (1.0, 1.0),
        "the daemon's own, with the node's address"
    );
    assert_eq!(metric(&sandbox, "kube2irsa_session_life_left_min_ratio"), 1.0, "nothing is served");

    let kubernetes = sandbox.cloud.kubernetes.faults();
    let tokens = || Target::any().verb("create").resource("serviceaccounts/token");
    kubernetes.inject(tokens(), Fault::Answer(StatusCode::BAD_REQUEST));
    let web = pod(&sandbox);
    eventually("the API server refuses", || {
        role_status(&web);
        (pods("refused_by_kubernetes"), sessions("refused_by_kubernetes")) == (1.0, 1.0)
    });
    kubernetes.clear();
    sandbox.cloud.sts.faults().fail(sts::Fault::ServiceUnavailable, sts::Which::All);
    eventually("STS fails", || {
        role_status(&web);
        (pods("failing"), sessions("failing")) == (1.0, 1.0)
    });
    sandbox.cloud.sts.faults().clear();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    eventually("AWS refuses", || {
        role_status(&web);
        (pods("refused_by_aws"), sessions("refused_by_aws")) == (1.0, 1.0)
    });
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-a:web")).unwrap();
    sandbox.cloud.sts.set_max_life(Some(Duration::from_secs(20)));
    eventually("it is served", || role_status(&web) == 200 && (pods("served"), sessions("good")) == (1.0, 1.0));

    // What fails now fails to be renewed.
    sandbox.cloud.sts.faults().fail(sts::Fault::ServiceUnavailable, sts::Which::All);
    eventually("it is served, and not renewed", || (pods("served"), sessions("renewal_failing")) == (1.0, 1.0));
    let left = metric(&sandbox, "kube2irsa_session_life_left_min_ratio");
    assert!(left > 0.0 && left <= 0.6, "{left}");
    eventually("little is left", || metric(&sandbox, "kube2irsa_sessions_low") == 1.0);
    sandbox.cloud.sts.faults().clear();
    eventually("it is renewed", || sessions("good") == 1.0 && metric(&sandbox, "kube2irsa_sessions_low") == 0.0);
    assert_eq!(total(&sandbox, "kube2irsa_pods"), 2.0, "{}", daemon.log());
}

#[test]
fn an_answer_is_timed_by_where_it_came_from() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let answers = || {
        ["cache", "prefetch", "sts", "none"].map(|source| {
            metric(&sandbox, &format!("kube2irsa_credential_request_duration_seconds_count{{source=\"{source}\"}}"))
        })
    };
    let web = pod(&sandbox);
    eventually("its credentials are there", || metric(&sandbox, "kube2irsa_sessions{state=\"good\"}") == 1.0);
    assert_eq!(answers(), [0.0; 4]);
    for _ in 0..3 {
        assert_eq!(role_status(&web), 200);
    }
    assert_eq!(answers(), [2.0, 1.0, 0.0, 0.0], "the first one was there before it asked");

    sandbox.cloud.sts.faults().set_latency(Duration::from_millis(300));
    sandbox.add_service_account("team-a", "slow", "slow").unwrap();
    let slow = sandbox.add_pod("team-a", "slow-0", "slow").unwrap();
    assert_eq!(role_status(&slow), 200);
    assert_eq!(answers(), [2.0, 1.0, 1.0, 0.0], "it waited for STS");
    let waited = metric(&sandbox, "kube2irsa_credential_request_duration_seconds_sum{source=\"sts\"}");
    assert!(waited > 0.1, "{waited}");

    sandbox.cloud.sts.faults().fail(sts::Fault::ServiceUnavailable, sts::Which::All);
    sandbox.add_service_account("team-a", "none", "none").unwrap();
    let none = sandbox.add_pod("team-a", "none-0", "none").unwrap();
    assert_eq!(role_status(&none), 503);
    assert_eq!(answers(), [2.0, 1.0, 1.0, 1.0]);
    sandbox.annotate("team-a", "plain", &[]);
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    assert_eq!(role_status(&plain), 404);
    assert_eq!(answers(), [2.0, 1.0, 1.0, 1.0], "who has no role waits for nothing");
}

#[test]
fn the_budget_of_calls_and_what_waits_for_it_are_shown() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &["--sts-rate", "0.1", "--sts-burst", "1"]);
    assert_eq!(metric(&sandbox, "kube2irsa_sts_budget_limit_calls"), 1.0);
    eventually("it is all there", || metric(&sandbox, "kube2irsa_sts_budget_calls") == 1.0);
    let _pods = ["web-0", "web-1", "web-2"].map(|name| sandbox.add_pod("team-a", name, "web").unwrap());
    eventually("one is fetched, and two wait", || {
        metric(&sandbox, "kube2irsa_credential_fetches{state=\"queued\"}") == 2.0
            && metric(&sandbox, "kube2irsa_sts_budget_calls") < 1.0
    });
}

#[test]
fn the_silence_of_the_api_server_is_shown() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.kubernetes.faults().bookmark_every(Duration::from_millis(100));
    let _daemon = Daemon::ready(&sandbox, &[]);
    let silence =
        |resource: &str| metric(&sandbox, &format!("kube2irsa_watch_silence_seconds{{resource=\"{resource}\"}}"));
    sandbox.cloud.kubernetes.faults().bookmark_every(Duration::from_millis(100));
    assert_eq!(role_status(&web), 200);
    eventually("bookmarks are heard", || silence("pods") < 1.0 && silence("serviceaccounts") < 1.0);
    sandbox.cloud.kubernetes.faults().hold_watches();
    eventually("it is silent", || silence("pods") > 2.0 && silence("serviceaccounts") > 2.0);
    sandbox.cloud.kubernetes.faults().release_watches();
    eventually("it is heard again", || silence("pods") < 1.0 && silence("serviceaccounts") < 1.0);
}

#[test]
fn all_that_is_wrong_with_the_flags_is_said_at_once_with_exit_64() {
    let run = |arguments: &[&str]| {
        let output = Command::new(daemon_binary()).args(arguments).env_clear().output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said, _) = run(&["run", "--listen", "here", "--log-format", "xml", "--imds-endpoint", "off"]);
    assert_eq!(code, Some(64));
    for flag in ["--node-name", "--listen", "--log-format", "--region", "--kubeconfig"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("kube2irsa: {flag}"))), "{flag}: {said}");
    }
    assert_eq!(said.lines().count(), 5, "{said}");
    assert_eq!(run(&["run", "--no-such-flag"]).0, Some(64));
    assert_eq!(run(&[]).0, Some(64));
    let (code, _, help) = run(&["run", "--help"]);
    assert_eq!(code, Some(0));
    for flag in [
        "node-name",
        "kubeconfig",
        "listen",
        "admin-listen",
        "admin-socket",
        "region",
        "sts-endpoint",
        "imds-endpoint",
        "token-audience",
        "aws-account",
        "aws-partition",
        "token-access",
        "state-dir",
        "audit-log",
        "intercept",
        "ca-bundle",
        "log-format",
        "log-level",
    ] {
        let variable = format!("KUBE2IRSA_{}", flag.to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("--{flag} ")) && help.contains(&variable), "{flag}: {help}");
    }
    assert!(help.contains("--remove-taint") && help.contains("KUBE2IRSA_REMOVE_TAINT"), "{help}");
}

#[test]
fn flags_can_be_given_in_the_environment() {
    let output = Command::new(daemon_binary())
        .arg("run")
        .env_clear()
        .env("KUBE2IRSA_NODE_NAME", "node-1")
        .env("KUBE2IRSA_REGION", "Europe")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--region") && !said.contains("--node-name"), "{said}");
}

#[test]
fn logs_are_json_where_that_is_wanted() {
    let sandbox = sandbox();
    let daemon = Daemon::ready(&sandbox, &["--log-format", "json"]);
    let log = daemon.log();
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>();
    assert!(events.iter().any(|event| event["message"] == "listening" && event["level"] == "INFO"), "{log}");
}
