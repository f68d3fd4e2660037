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
    os::unix::fs::{PermissionsExt as _, symlink},
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

/// The whole lines: of one that is being written a reader may see a part.
fn lines(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// What the pod gets; none of it but the key's id is in the log.
fn document(pod: &Pod) -> Value {
    let mut document = Value::Null;
    eventually("it is served", || {
        let answer = ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
        let is_served = answer.status == 200;
        if is_served {
            document = answer.json();
        }
        is_served
    });
    document
}

/// How often a line of credentials was not written in time: on a busy machine that may be, if it is said.
fn delays(daemon: &Daemon) -> usize {
    daemon.log().matches("takes the audit log slowly").count()
}

fn holds_no_secret(text: &str, document: &Value) {
    for field in ["SecretAccessKey", "Token"] {
        let secret = document[field].as_str().unwrap();
        assert!(!text.contains(&secret[..16]), "{field} is in {text}");
    }
    assert!(!text.contains("eyJ"), "a token is in {text}");
}

/// What joins a line with a call.
type Key = [Option<String>; 6];

fn keys_of_lines(lines: &[Value]) -> Vec<Key> {
    const FIELDS: [&str; 6] = ["requestID", "eventName", "roleArn", "roleSessionName", "accessKeyId", "errorCode"];
    let of_calls = lines.iter().filter(|line| line["requestID"].is_string());
    let mut keys = of_calls.map(|line| FIELDS.map(|field| line[field].as_str().map(str::to_owned))).collect::<Vec<_>>();
    keys.sort();
    keys
}

fn keys_of_calls(calls: &[Call]) -> Vec<Key> {
    let mut keys = calls
        .iter()
        .map(|call| {
            let code = (call.outcome != "Success").then(|| call.outcome.to_owned());
            let (id, action) = (Some(call.request_id.clone()), Some(call.action.clone()));
            [id, action, call.role.clone(), call.session_name.clone(), call.access_key_id.clone(), code]
        })
        .collect::<Vec<_>>();
    keys.sort();
    keys
}

/// The lines, once each line of a call is a call that STS recorded, and each call of STS has its line: of one that is just
/// being made there is the one before the other.
fn joined(sandbox: &Sandbox, log: &Path) -> Vec<Value> {
    let mut told = Vec::new();
    eventually("lines and calls join", || {
        told = lines(log);
        let (of_lines, of_calls) = (keys_of_lines(&told), keys_of_calls(&sandbox.cloud.sts.calls()));
        if of_lines != of_calls {
            println!("lines: {of_lines:?}\ncalls: {of_calls:?}");
        }
        of_lines == of_calls
    });
    told
}

#[test]
fn each_call_of_sts_is_a_line_that_joins_with_what_sts_recorded() {
    let sandbox = with_an_account();
    let _daemon = audited(&sandbox, &[]);
    sandbox.add_service_account("team-b", "refused", "refused").unwrap();
    let trust = sandbox.trust_policy("system:serviceaccount:team-c:other");
    sandbox.cloud.sts.put_role(&arn("refused"), trust).unwrap();
    let refused = sandbox.add_pod("team-b", "refused-0", "refused").unwrap();
    eventually("it is refused", || role_status(&refused) == 403);
    let web = support::pod(&sandbox);
    let document = document(&web);

    let lines = joined(&sandbox, &audit_log(&sandbox));
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
    eventually("each is counted", || {
        let written = metric(&sandbox, "kube2irsa_audit_lines_total{result=\"written\"}");
        written == crate::lines(&audit_log(&sandbox)).len() as f64
    });
}

#[test]
fn a_pods_line_is_there_before_the_pod_has_its_credentials() {
    let sandbox = with_an_account();
    let daemon = audited(&sandbox, &[]);
    for number in 0..20 {
        let pod = sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap();
        let document = document(&pod);
        let is_there = || {
            let lines = lines(&audit_log(&sandbox));
            lines.iter().any(|line| line["accessKeyId"] == document["AccessKeyId"])
        };
        assert!(is_there() || delays(&daemon) > 0, "{number}: {}", daemon.log());
        eventually("it is there", is_there);
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
    let told = joined(&sandbox, &log);
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
    let log = audit_log(&sandbox);
    eventually("each pod is told of", || lines(&log).len() >= pods.len());
    let lines = joined(&sandbox, &log);
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
    eventually("both are told of", || of(&lines(&log), "issued").len() == 2);
    fs::remove_file(&log).unwrap();
    let another = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    document(&another);
    eventually("it is there again", || !lines(&log).is_empty());
    let told = lines(&log);
    assert_eq!((told.len(), &told[0]["pod"]), (1, &json!("web-1")));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    // Slow it may have been, and well again.
    let log = daemon.log();
    let troubles = log.lines().filter(|line| line.contains("audit log"));
    let delays = ["takes the audit log slowly", "again; 0 lines were lost"];
    assert!(troubles.into_iter().all(|line| delays.iter().any(|delay| line.contains(delay))), "{log}");
}

#[test]
fn standard_output_has_the_lines_and_nothing_else() {
    let (sandbox, web) = with_a_pod();
    let out = sandbox.directory().join("stdout");
    let command = sandbox.daemon(support::daemon_binary()).args(["--audit-log", "-"]);
    let mut daemon = Daemon::of(&sandbox, command.stdout(File::create(&out).unwrap()));
    daemon.wait_until_ready(&sandbox);
    let document = document(&web);
    joined(&sandbox, &out);
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
    eventually("it is told of", || lines(&log).len() == 1);

    // All but the rest of the log's own page.
    fs::write(seen.join("filler"), vec![b'a'; 1 << 20]).unwrap_err();
    let pods = (1..30).map(|number| sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap());
    let pods = pods.collect::<Vec<_>>();
    pods.iter().for_each(|pod| drop(document(pod)));
    assert!(metric(&sandbox, "kube2irsa_audit_lines_waiting") > 0.0, "the disk was full, else this shows nothing");
    let failures = || daemon.log().matches("the audit log cannot be written").count();
    eventually("it is said", || failures() == 1);

    fs::remove_file(seen.join("filler")).unwrap();
    eventually("all is written", || metric(&sandbox, "kube2irsa_audit_lines_waiting") == 0.0);
    let text = fs::read_to_string(&log).unwrap();
    let (whole, torn): (Vec<_>, Vec<_>) =
        text.lines().map(serde_json::from_str::<Value>).partition(|line| line.is_ok());
    assert!(torn.len() <= 1, "{text}");
    let whole = whole.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(keys_of_lines(&whole), keys_of_calls(&sandbox.cloud.sts.calls()));
    let ends = daemon.log().matches("is written to").count();
    assert!(failures() == 1 && (1..=1 + delays(&daemon)).contains(&ends), "{}", daemon.log());
    assert_eq!(metric(&sandbox, "kube2irsa_audit_lines_total{result=\"failed\"}"), 0.0);
}

#[test]
fn a_link_is_not_followed_and_a_file_that_others_can_read_is_told_of_once() {
    let (sandbox, web) = with_a_pod();
    let (log, target) = (audit_log(&sandbox), sandbox.directory().join("target"));
    fs::write(&target, "").unwrap();
    symlink(&target, &log).unwrap();
    let daemon = audited(&sandbox, &[]);
    document(&web);
    eventually("it is said", || daemon.log().contains("it is a link, which is not followed"));
    assert_eq!(fs::read_to_string(&target).unwrap(), "");

    let put_file = || {
        fs::write(&target, "").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&target, &log).unwrap();
    };
    put_file();
    eventually("what waited is there", || !lines(&log).is_empty());
    let warnings = || daemon.log().matches("can be read or written by others (mode 0644)").count();
    assert_eq!(warnings(), 1, "{}", daemon.log());
    put_file();
    let another = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    document(&another);
    eventually("it is there", || lines(&log).iter().any(|line| line["pod"] == "web-1"));
    assert_eq!(warnings(), 1, "{}", daemon.log());
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
    eventually("it is said once", || daemon.log().matches("the audit log cannot be written").count() == 1);
}
