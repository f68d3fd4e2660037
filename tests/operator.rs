//! What an operator sees: metrics, and the daemon's words about its flags.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::process::Command;

use support::{Daemon, admin, ask, daemon_binary, role_status, sandbox};

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
            assert!(name.starts_with("kube2irsa_") && typed.iter().any(|typed| name.starts_with(typed)), "{line}");
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
        "kube2irsa_pods 2",
        "kube2irsa_service_account_watches 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
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
