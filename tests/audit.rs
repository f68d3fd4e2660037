//! What an auditor finds: which pod got which keys of which role, in lines that join with what STS recorded.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sandbox::{
    cloud::ACCOUNT,
    sandbox::{NODE, Pod, Sandbox},
    sts::{Call, Role},
};
use serde_json::{Value, json};
use support::{Daemon, ROLE_NAME, ask, eventually, metric, role_status, with_a_pod, with_an_account};

fn arn(role: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{role}")
}

fn audit_log(sandbox: &Sandbox) -> PathBuf {
    sandbox.directory().join("audit.log")
}

/// The daemon with an audit log in the sandbox's directory.
fn audited(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    let log = audit_log(sandbox);
    Daemon::ready(sandbox, &[&["--audit-log", log.to_str().unwrap()], flags].concat())
}

fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// What the pod gets; none of it but the key's id is in the log.
fn document(pod: &Pod) -> Value {
    let answer = ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
    assert_eq!(answer.status, 200);
    answer.json()
}

fn holds_no_secret(text: &str, document: &Value) {
    for field in ["SecretAccessKey", "Token"] {
        let secret = document[field].as_str().unwrap();
        assert!(!text.contains(&secret[..16]), "{field} is in {text}");
    }
    assert!(!text.contains("eyJ"), "a token is in {text}");
}

/// Each line of a call is a call that STS recorded, and each call of STS has its line.
fn join(lines: &[Value], calls: &[Call]) {
    let of_calls = |line: &&Value| line["requestID"].is_string();
    let lines = lines.iter().filter(of_calls).map(|line| {
        let text = |field: &str| line[field].as_str().map(str::to_owned);
        (
            text("requestID"),
            text("eventName"),
            text("roleArn"),
            text("roleSessionName"),
            text("accessKeyId"),
            text("errorCode"),
        )
    });
    let calls = calls.iter().map(|call| {
        let code = (call.outcome != "Success").then(|| call.outcome.to_owned());
        let (id, action) = (Some(call.request_id.clone()), Some(call.action.clone()));
        (id, action, call.role.clone(), call.session_name.clone(), call.access_key_id.clone(), code)
    });
    let (mut lines, mut calls) = (lines.collect::<Vec<_>>(), calls.collect::<Vec<_>>());
    lines.sort();
    calls.sort();
    assert_eq!(lines, calls);
}

#[test]
fn each_call_of_sts_is_a_line_that_joins_with_what_sts_recorded() {
    let sandbox = with_an_account();
    let _daemon = audited(&sandbox, &[]);
    sandbox.add_service_account("team-b", "refused", "refused").unwrap();
    let trust = sandbox.trust_policy("system:serviceaccount:team-c:other");
    sandbox.cloud.sts.put_role(&arn("refused"), trust).unwrap();
    let refused = sandbox.add_pod("team-b", "refused-0", "refused").unwrap();
    assert_eq!(role_status(&refused), 403);
    let web = support::pod(&sandbox);
    let document = document(&web);

    let lines = lines(&audit_log(&sandbox));
    join(&lines, &sandbox.cloud.sts.calls());
    let [issued] = of(&lines, "issued")[..] else { panic!("{lines:?}") };
    for (field, value) in [
        ("node", json!(NODE)),
        ("namespace", json!("team-a")),
        ("pod", json!("web-0")),
        ("podUid", json!(web.uid)),
        ("serviceAccount", json!("web")),
        ("roleArn", json!(arn("web"))),
        ("accessKeyId", document["AccessKeyId"].clone()),
        ("expiration", document["Expiration"].clone()),
        ("awsRegion", json!("eu-central-1")),
    ] {
        assert_eq!(issued[field], value, "{field}");
    }
    let refusals = of(&lines, "refused");
    assert!(!refusals.is_empty());
    for line in refusals {
        assert_eq!((&line["podUid"], &line["errorCode"]), (&json!(refused.uid), &json!("AccessDenied")));
    }
    let text = fs::read_to_string(audit_log(&sandbox)).unwrap();
    holds_no_secret(&text, &document);
    assert_eq!(fs::metadata(audit_log(&sandbox)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(metric(&sandbox, "kube2irsa_audit_lines_total{result=\"written\"}"), lines.len() as f64);
}

#[test]
fn a_pods_line_is_there_before_the_pod_has_its_credentials() {
    let sandbox = with_an_account();
    let _daemon = audited(&sandbox, &[]);
    for number in 0..20 {
        let pod = sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap();
        let document = document(&pod);
        let lines = lines(&audit_log(&sandbox));
        assert!(lines.iter().any(|line| line["accessKeyId"] == document["AccessKeyId"]), "{number}");
    }
}

#[test]
fn both_hops_and_what_a_namespace_does_not_permit_are_told() {
    let sandbox = with_an_account();
    let (hub, reader) = (arn("web"), arn("reader"));
    let mut role = Role::new(&hub, sandbox.trust_policy("system:serviceaccount:team-a:web"));
    let allow = json!({"Effect": "Allow", "Action": ["sts:AssumeRole", "sts:TagSession"], "Resource": reader});
    role.permissions = Some(json!({"Version": "2012-10-17", "Statement": [allow]}));
    sandbox.cloud.sts.put_role_with(&role).unwrap();
    let trusts = json!({"Effect": "Allow", "Principal": {"AWS": hub}, "Action": ["sts:AssumeRole", "sts:TagSession"]});
    sandbox.cloud.sts.put_role(&reader, json!({"Version": "2012-10-17", "Statement": [trusts]})).unwrap();
    sandbox.annotate(
        "team-a",
        "web",
        &[("eks.amazonaws.com/role-arn", &hub), ("kube2irsa.io/target-role-arn", &reader)],
    );
    let _daemon = audited(&sandbox, &["--region", "eu-central-1"]);
    let _web = support::pod(&sandbox);
    let log = audit_log(&sandbox);
    eventually("it is issued", || !of(&lines(&log), "issued").is_empty());
    let told = lines(&log);
    join(&told, &sandbox.cloud.sts.calls());
    let ([chained], [issued]) = (&of(&told, "chained")[..], &of(&told, "issued")[..]) else { panic!("{told:?}") };
    assert_eq!((&chained["roleArn"], &issued["roleArn"]), (&json!(hub), &json!(reader)));
    assert_eq!(chained["roleSessionName"], issued["roleSessionName"]);

    sandbox
        .cloud
        .kubernetes
        .create_namespace("team-a", &[("kube2irsa.io/permitted-roles", "arn:aws:iam::*:role/none")]);
    eventually("it is told", || !of(&lines(&log), "not_permitted").is_empty());
    let told = lines(&log);
    let [line] = of(&told, "not_permitted")[..] else { panic!("{told:?}") };
    assert_eq!((&line["pod"], &line["accessKeyId"]), (&json!("web-0"), &Value::Null));
}

#[test]
fn of_a_shared_session_each_pod_is_told() {
    let sandbox = with_an_account();
    let _daemon = audited(&sandbox, &["--session-scope", "service-account"]);
    let pods = (0..3).map(|number| sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap());
    let pods = pods.collect::<Vec<_>>();
    let key = document(&pods[0])["AccessKeyId"].clone();
    assert!(pods.iter().all(|pod| document(pod)["AccessKeyId"] == key));
    let lines = lines(&audit_log(&sandbox));
    join(&lines, &sandbox.cloud.sts.calls());
    assert_eq!((of(&lines, "issued").len(), of(&lines, "shared").len()), (1, 2), "{lines:?}");
    let mut uids = lines.iter().map(|line| line["podUid"].as_str().unwrap()).collect::<Vec<_>>();
    let mut expected = pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>();
    uids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(uids, expected);
    assert!(lines.iter().all(|line| line["accessKeyId"] == key && line["roleSessionName"].is_string()));
}

#[test]
fn a_daemon_goes_on_where_the_one_before_ended_and_a_file_that_is_taken_away_is_made_again() {
    let (sandbox, web) = with_a_pod();
    let log = audit_log(&sandbox);
    let daemon = audited(&sandbox, &[]);
    document(&web);
    assert!(daemon.stop().success());
    let daemon = audited(&sandbox, &[]);
    document(&web);
    assert_eq!(of(&lines(&log), "issued").len(), 2);
    fs::remove_file(&log).unwrap();
    let another = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    document(&another);
    let told = lines(&log);
    assert_eq!((told.len(), &told[0]["pod"]), (1, &json!("web-1")));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!daemon.log().contains("audit"), "{}", daemon.log());
}

#[test]
fn standard_output_has_the_lines_and_nothing_else() {
    let (sandbox, web) = with_a_pod();
    let out = sandbox.directory().join("stdout");
    let command = sandbox.daemon(support::daemon_binary()).args(["--audit-log", "-"]);
    let mut daemon = Daemon::of(&sandbox, command.stdout(File::create(&out).unwrap()));
    daemon.wait_until_ready(&sandbox);
    let document = document(&web);
    let lines = lines(&out);
    join(&lines, &sandbox.cloud.sts.calls());
    holds_no_secret(&fs::read_to_string(&out).unwrap(), &document);
}

#[test]
fn a_full_disk_holds_up_nobody_and_loses_nothing() {
    let sandbox = with_an_account();
    let folder = sandbox.directory().join("small");
    fs::create_dir(&folder).unwrap();
    let small = folder.to_str().unwrap().to_owned();
    let script = "mount -t tmpfs -o size=64k,mode=0700 tmpfs \"$1\"; shift; exec \"$@\"";
    let binary = support::daemon_binary().to_str().unwrap();
    let command = sandbox.daemon_under("sh", &["-ec", script, "sh", &small, binary]);
    let mut daemon = Daemon::of(&sandbox, command.arg("--audit-log").arg(folder.join("audit.log")));
    daemon.wait_until_ready(&sandbox);
    // What the daemon sees there.
    let seen = PathBuf::from(format!("/proc/{}/root{small}", daemon.process.id()));
    let log = seen.join("audit.log");
    let first = support::pod(&sandbox);
    document(&first);
    assert_eq!(lines(&log).len(), 1);

    // All but the rest of the log's own page.
    fs::write(seen.join("filler"), vec![b'a'; 1 << 20]).unwrap_err();
    let pods = (1..30).map(|number| sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap());
    let pods = pods.collect::<Vec<_>>();
    pods.iter().for_each(|pod| drop(document(pod)));
    assert!(metric(&sandbox, "kube2irsa_audit_lines_waiting") > 0.0, "the disk was full, else this shows nothing");
    assert_eq!(daemon.log().matches("the audit log cannot be written").count(), 1, "{}", daemon.log());

    fs::remove_file(seen.join("filler")).unwrap();
    eventually("all is written", || metric(&sandbox, "kube2irsa_audit_lines_waiting") == 0.0);
    let text = fs::read_to_string(&log).unwrap();
    let (whole, torn): (Vec<_>, Vec<_>) =
        text.lines().map(serde_json::from_str::<Value>).partition(|line| line.is_ok());
    assert!(torn.len() <= 1, "{text}");
    join(&whole.into_iter().map(Result::unwrap).collect::<Vec<_>>(), &sandbox.cloud.sts.calls());
    assert_eq!(daemon.log().matches("is written to").count(), 1, "{}", daemon.log());
    assert_eq!(metric(&sandbox, "kube2irsa_audit_lines_total{result=\"failed\"}"), 0.0);
}

#[test]
fn a_folder_that_is_not_there_is_a_slip_and_a_file_that_cannot_be_written_is_none() {
    let (sandbox, web) = with_a_pod();
    let nowhere = sandbox.directory().join("nowhere/audit.log");
    let output = sandbox.daemon(support::daemon_binary()).arg("--audit-log").arg(&nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--audit-log"));

    // Nobody can write there, root included.
    let daemon = Daemon::ready(&sandbox, &["--audit-log", "/proc/audit.log"]);
    document(&web);
    assert_eq!(daemon.log().matches("the audit log cannot be written").count(), 1, "{}", daemon.log());
}
