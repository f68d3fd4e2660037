use std::{fs, time::SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::identity::{Target, Wish};

fn role(name: &str) -> RoleArn {
    format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap()
}

fn grant(target: Option<RoleArn>) -> Grant {
    let target = target.map(|role| Target { role, external_id: None });
    let wish =
        Wish { role: role("web"), target, audience: None, session_seconds: 3600, regional_sts: None, of_pod: None };
    Grant { pod: Arc::new(Pod::sample("uid-1", &[])), account: "sa".into(), wish }
}

fn issued(at: u64) -> Issued {
    Issued { access_key_id: "ASIAEXAMPLE".to_owned(), expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(at) }
}

/// The lines that come of it.
async fn lines(record: impl FnOnce(&Audit)) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let metrics = Arc::new(Metrics::new().unwrap());
    let audit = Audit::to(Destination::File(file.clone()), "node-1".into(), metrics).unwrap();
    record(&audit);
    audit.end(Duration::from_secs(30)).await;
    let text = fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn call<'a>(action: Action, role: &'a RoleArn, result: Result<&'a Issued, &'a crate::sts::ExchangeError>) -> Call<'a> {
    Call { action, role, result, request_id: Some("id-1"), region: Some("eu-central-1"), endpoint: None }
}

#[tokio::test]
async fn a_line_has_the_names_that_cloudtrail_has() {
    let (role, issued) = (role("web"), issued(1_767_225_600));
    let lines =
        lines(|audit| audit.called(&grant(None), "session", &call(Action::WebIdentity, &role, Ok(&issued)))).await;
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let mut line = line.clone();
    let time = line.as_object_mut().unwrap().remove("time").unwrap();
    assert!(time.as_str().unwrap().ends_with('Z'));
    assert_eq!(
        line,
        json!({
            "event": "issued",
            "node": "node-1",
            "namespace": "team-a",
            "pod": "uid-1",
            "podUid": "uid-1",
            "serviceAccount": "web",
            "roleArn": "arn:aws:iam::111122223333:role/web",
            "roleSessionName": "session",
            "accessKeyId": "ASIAEXAMPLE",
            "expiration": "2026-01-01T00:00:00Z",
            "eventName": "AssumeRoleWithWebIdentity",
            "requestID": "id-1",
            "awsRegion": "eu-central-1",
        })
    );
}

#[tokio::test]
async fn the_first_of_two_roles_is_told_apart_from_what_a_pod_gets() {
    let (first, target, issued) = (role("web"), role("reader"), issued(1_767_225_600));
    let grant = grant(Some(target.clone()));
    let lines = lines(|audit| {
        audit.called(&grant, "session", &call(Action::WebIdentity, &first, Ok(&issued)));
        audit.called(&grant, "session", &call(Action::AssumeRole, &target, Ok(&issued)));
    })
    .await;
    let told = lines.iter().map(|line| (&line["event"], &line["roleArn"], &line["eventName"])).collect::<Vec<_>>();
    let expected = [
        (&json!("chained"), &json!(first.as_str()), &json!("AssumeRoleWithWebIdentity")),
        (&json!("issued"), &json!(target.as_str()), &json!("AssumeRole")),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn refusals_are_told_and_what_passes_is_not() {
    let role = role("web");
    let error = |class, code: &str| crate::sts::ExchangeError {
        action: Action::WebIdentity,
        role: role.clone(),
        class,
        code: code.to_owned(),
        message: "words".to_owned(),
    };
    let (refused, throttled) = (error(Class::Permanent, "AccessDenied"), error(Class::Throttled, "Throttling"));
    let lines = lines(|audit| {
        audit.called(&grant(None), "session", &call(Action::WebIdentity, &role, Err(&throttled)));
        audit.called(&grant(None), "session", &call(Action::WebIdentity, &role, Err(&refused)));
        audit.not_permitted(&grant(None).pod, &role);
    })
    .await;
    let told = lines.iter().map(|line| (&line["event"], &line["errorCode"], &line["requestID"])).collect::<Vec<_>>();
    let expected = [
        (&json!("refused"), &json!("AccessDenied"), &json!("id-1")),
        (&json!("not_permitted"), &Value::Null, &Value::Null),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn nobody_can_write_a_line_by_a_name() {
    let hostile = "a\"}\n{\"event\":\"issued\",\u{2028}\u{0}\"";
    let (role, issued) = (role("web"), issued(1_767_225_600));
    let pod = Pod { name: hostile.into(), service_account: hostile.into(), ..Pod::sample("uid-1", &[]) };
    let grant = Grant { pod: Arc::new(pod), ..grant(None) };
    let lines = lines(|audit| audit.called(&grant, hostile, &call(Action::WebIdentity, &role, Ok(&issued)))).await;
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    for field in ["pod", "serviceAccount", "roleSessionName"] {
        assert_eq!(line[field], hostile, "{field}");
    }
}

#[tokio::test]
async fn a_shared_session_is_told_of_each_further_pod_while_it_lasts() {
    let soon = clock::now().unix_seconds() + 3600;
    let session = |until| SharedSession::new(issued(until), "session".to_owned(), "uid-1".into());
    let other = Grant { pod: Arc::new(Pod::sample("uid-2", &[])), ..grant(None) };
    let lines = lines(|audit| {
        audit.shared(&grant(None), &session(soon));
        audit.shared(&other, &session(soon));
        audit.shared(&other, &session(1000));
    })
    .await;
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&line["event"], &line["podUid"]), (&json!("shared"), &json!("uid-2")));
    assert_eq!((&line["accessKeyId"], &line["roleSessionName"]), (&json!("ASIAEXAMPLE"), &json!("session")));
}
