//! TokenRequest: what is given, and each refusal.

use std::time::Duration;

use sandbox::kubernetes::{Corruption, NewPod};
use serde_json::{Value, json};

use super::support::{Answer, Cluster, claims, pod};

fn bound(name: &str, uid: &str) -> Value {
    json!({ "spec": { "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid } } })
}

#[track_caller]
fn token(answer: &Answer) -> String {
    assert_eq!(answer.code, 201, "{}", answer.text);
    answer.json()["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pods_token_says_whose_it_is_and_where_and_until_when() {
    let (cluster, pod_uid) = Cluster::with_pod().await;
    let account = cluster.get("/api/v1/namespaces/team-a/serviceaccounts/web").await.json();
    let account_uid = &account["metadata"]["uid"];
    let node = cluster.get("/api/v1/nodes/node-a").await.json();
    let mut request = bound("web-1", &pod_uid);
    request["spec"]["audiences"] = json!(["sts.amazonaws.com"]);
    request["spec"]["expirationSeconds"] = json!(900);
    request["metadata"] = json!({ "uid": account_uid });
    let answer = cluster.token("web", &request).await;
    let token = token(&answer);

    let answer = answer.json();
    assert_eq!((&answer["kind"], &answer["apiVersion"]), (&json!("TokenRequest"), &json!("authentication.k8s.io/v1")));
    assert_eq!((&answer["metadata"]["name"], &answer["metadata"]["uid"]), (&json!("web"), account_uid));
    assert_eq!(answer["spec"]["boundObjectRef"]["uid"], pod_uid.as_str());

    let verified = cluster.issuer.verify(&token).unwrap();
    let issued = verified["iat"].as_i64().unwrap();
    assert_eq!(verified["jti"].as_str().unwrap().len(), 36);
    let expected = json!({
        "aud": ["sts.amazonaws.com"],
        "exp": issued + 900,
        "iat": issued,
        "iss": "https://issuer.test",
        "jti": verified["jti"],
        "kubernetes.io": {
            "namespace": "team-a",
            "node": { "name": "node-a", "uid": node["metadata"]["uid"] },
            "pod": { "name": "web-1", "uid": pod_uid },
            "serviceaccount": { "name": "web", "uid": account_uid },
        },
        "nbf": issued,
        "sub": "system:serviceaccount:team-a:web",
    });
    assert_eq!(verified, expected);
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!(
        (header.alg, header.kid),
        (jsonwebtoken::Algorithm::RS256, cluster.issuer.jwks()["keys"][0]["kid"].as_str().map(str::to_owned))
    );
}

#[tokio::test]
async fn what_is_not_asked_for_is_defaulted() {
    let cluster = Cluster::start().await;
    let answer = cluster.token("web", &json!({})).await;
    let claims = claims(&token(&answer));
    assert_eq!(claims["aud"], json!(["https://issuer.test"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert_eq!(claims["kubernetes.io"].get("pod"), None);
    assert_eq!(claims["kubernetes.io"].get("node"), None);
    assert_eq!(
        answer.json()["spec"],
        json!({ "audiences": ["https://issuer.test"], "expirationSeconds": 3600, "boundObjectRef": null })
    );
}

#[tokio::test]
async fn the_tokens_that_kubelet_projects_live_for_a_year_and_warn() {
    let (cluster, uid) = Cluster::with_pod().await;
    let mut request = bound("web-1", &uid);
    request["spec"]["expirationSeconds"] = json!(3607);
    let extended = claims(&token(&cluster.token("web", &request).await));
    let issued = extended["iat"].as_i64().unwrap();
    assert_eq!(extended["exp"], issued + 365 * 24 * 3600);
    assert_eq!(extended["kubernetes.io"]["warnafter"], issued + 3607);
    request["spec"]["audiences"] = json!(["sts.amazonaws.com"]);
    let plain = claims(&token(&cluster.token("web", &request).await));
    assert_eq!(plain["exp"], plain["iat"].as_i64().unwrap() + 3607);
}

#[tokio::test]
async fn a_life_too_short_or_too_long_is_invalid() {
    let cluster = Cluster::start().await;
    for (seconds, detail) in [
        (599_i64, "may not specify a duration less than 10 minutes"),
        (-1, "may not specify a duration less than 10 minutes"),
        (4_294_967_297, "may not specify a duration larger than 2^32 seconds"),
    ] {
        let answer = cluster.token("web", &json!({ "spec": { "expirationSeconds": seconds } })).await;
        let message = format!(
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {seconds}: {detail}"
        );
        answer.refuses(422, "Invalid", &message);
        let cause = json!({
            "reason": "FieldValueInvalid",
            "message": format!("Invalid value: {seconds}: {detail}"),
            "field": "spec.expirationSeconds",
        });
        assert_eq!(answer.json()["details"]["causes"], json!([cause]));
    }
    for seconds in [600_i64, 4_294_967_296] {
        let answer = cluster.token("web", &json!({ "spec": { "expirationSeconds": seconds } })).await;
        assert_eq!(answer.code, 201, "{seconds}");
    }
}

#[tokio::test]
async fn an_absent_account_is_not_found_and_another_of_its_name_a_conflict() {
    let cluster = Cluster::start().await;
    let absent = cluster.token("nope", &json!({})).await;
    absent.refuses(404, "NotFound", r#"serviceaccounts "nope" not found"#);
    let headers = [("content-type", "application/json")];
    let nowhere = cluster.call("POST", "/api/v1/namespaces/zz/serviceaccounts/web/token", &headers, "{}").await;
    nowhere.refuses(404, "NotFound", r#"namespaces "zz" not found"#);
    let account = cluster.get("/api/v1/namespaces/team-a/serviceaccounts/web").await.json();
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let conflict = cluster.token("web", &json!({ "metadata": { "uid": "x" } })).await;
    let message = format!(
        "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"web\": the UID in the token request (x) does not match the UID of the service account ({uid})"
    );
    conflict.refuses(409, "Conflict", &message);
    let details = json!({ "name": "web", "group": "authentication.k8s.io", "kind": "TokenRequest" });
    assert_eq!(conflict.json()["details"], details);
}

#[tokio::test]
async fn a_body_that_names_something_else_is_refused() {
    let cluster = Cluster::start().await;
    cluster.token("web", &json!({ "metadata": { "name": "other" } })).await.refuses(
        422,
        "Invalid",
        r#"TokenRequest.authentication.k8s.io "web" is invalid: metadata.name: Invalid value: "other": must match the service account name if specified"#,
    );
    cluster.token("web", &json!({ "metadata": { "namespace": "other" } })).await.refuses(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
    );
}

#[tokio::test]
async fn a_token_is_bound_to_a_pod_of_its_account_and_to_no_other() {
    let (cluster, uid) = Cluster::with_pod().await;
    assert_eq!(cluster.token("web", &bound("web-1", &uid)).await.code, 201);
    assert_eq!(cluster.token("web", &bound("web-1", "")).await.code, 201);
    cluster.token("web", &bound("nope", "")).await.refuses(404, "NotFound", r#"pods "nope" not found"#);
    cluster.token("web", &bound("", "")).await.refuses(400, "BadRequest", "Name parameter required.");
    let conflict = cluster.token("web", &bound("web-1", "u")).await;
    conflict.refuses(
        409,
        "Conflict",
        r#"Operation cannot be fulfilled on Pod "web-1": the UID in the bound object reference (u) does not match the UID in record. The object might have been deleted and then recreated"#,
    );
    assert_eq!(conflict.json()["details"], json!({ "name": "web-1", "kind": "Pod" }));
    cluster.token("db", &bound("web-1", &uid)).await.refuses(
        400,
        "BadRequest",
        r#"cannot bind token for serviceaccount "db" to pod running with different serviceaccount name."#,
    );
    // The same name in another namespace is another pod.
    cluster.kubernetes.create_pod(NewPod::new("team-b", "elsewhere").service_account("web"));
    cluster.token("web", &bound("elsewhere", "")).await.refuses(404, "NotFound", r#"pods "elsewhere" not found"#);
}

#[tokio::test]
async fn a_token_is_bound_to_a_node_but_not_to_just_anything() {
    let cluster = Cluster::start().await;
    let to = |kind: &str, api_version: &str| json!({ "spec": { "boundObjectRef": { "kind": kind, "apiVersion": api_version, "name": "n" } } });
    cluster.token("web", &to("Node", "v1")).await.refuses(404, "NotFound", r#"nodes "n" not found"#);
    cluster.token("web", &to("Secret", "v1")).await.refuses(404, "NotFound", r#"secrets "n" not found"#);
    for (kind, api_version, gvk) in
        [("Deployment", "apps/v1", "apps/v1, Kind=Deployment"), ("ConfigMap", "v1", "/v1, Kind=ConfigMap")]
    {
        let message = format!("cannot bind token to object of type {gvk}");
        cluster.token("web", &to(kind, api_version)).await.refuses(400, "BadRequest", &message);
    }
    cluster.kubernetes.create_node("n");
    let claims = claims(&token(&cluster.token("web", &to("Node", "v1")).await));
    assert_eq!(claims["kubernetes.io"]["node"]["name"], "n");
    assert_eq!(claims["kubernetes.io"].get("pod"), None);
}

#[tokio::test]
async fn a_pod_that_terminates_gets_tokens_until_it_is_gone() {
    let (cluster, uid) = Cluster::with_pod().await;
    cluster.kubernetes.start_deleting_pod("team-a", "web-1", Duration::from_secs(30));
    assert_eq!(cluster.token("web", &bound("web-1", &uid)).await.code, 201);
    cluster.kubernetes.delete_pod("team-a", "web-1");
    assert_eq!(cluster.token("web", &bound("web-1", &uid)).await.code, 404);
    cluster.kubernetes.create_pod(pod("web-1"));
    assert_eq!(cluster.token("web", &bound("web-1", &uid)).await.code, 409);
}

#[tokio::test]
async fn a_body_that_is_no_token_request_is_refused() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/team-a/serviceaccounts/web/token";
    for body in [
        "",
        "not json",
        "[]",
        r#"{"kind":"Pod","apiVersion":"v1"}"#,
        r#"{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1beta1"}"#,
        r#"{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1"}"#,
        r#"{"metadata":5}"#,
        r#"{"spec":5}"#,
        r#"{"spec":{"boundObjectRef":5}}"#,
        r#"{"spec":{"audiences":"x"}}"#,
        r#"{"spec":{"expirationSeconds":"x"}}"#,
    ] {
        let answer = cluster.call("POST", path, &[("content-type", "application/json")], body).await;
        assert_eq!((answer.code.as_u16(), &answer.json()["reason"]), (400, &json!("BadRequest")), "{body}");
    }
    let text = cluster.call("POST", path, &[("content-type", "text/plain")], "{}").await;
    text.refuses(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    assert_eq!(cluster.call("POST", path, &[], "{}").await.code, 201, "no content type means JSON");
}

#[tokio::test]
async fn a_corrupted_token_is_wrong_in_just_one_way() {
    let (cluster, uid) = Cluster::with_pod().await;
    let faults = cluster.kubernetes.faults();
    let request = bound("web-1", &uid);
    let corrupted = async |corruption: Corruption| {
        faults.corrupt_tokens(Some(corruption));
        token(&cluster.token("web", &request).await)
    };
    let audience = corrupted(Corruption::Audience("x".into())).await;
    assert_eq!(cluster.issuer.verify(&audience).unwrap()["aud"], json!(["x"]));
    let subject = corrupted(Corruption::Subject("system:serviceaccount:a:b".into())).await;
    assert_eq!(cluster.issuer.verify(&subject).unwrap()["sub"], "system:serviceaccount:a:b");

    let expired = corrupted(Corruption::Expired).await;
    let forged = corrupted(Corruption::Signature).await;
    let foreign = corrupted(Corruption::Issuer("https://x".into())).await;
    for (token, why) in [(&expired, "ExpiredSignature"), (&forged, "InvalidSignature"), (&foreign, "InvalidIssuer")] {
        assert!(cluster.issuer.verify(token).unwrap_err().to_string().contains(why), "{why}");
    }
    faults.corrupt_tokens(None);
    let right = claims(&token(&cluster.token("web", &request).await));
    for (claim, token) in [("aud", &audience), ("sub", &subject), ("iss", &foreign)] {
        let corrupted = claims(token);
        for other in ["aud", "sub", "iss", "kubernetes.io"].into_iter().filter(|other| *other != claim) {
            assert_eq!(corrupted[other], right[other], "{claim}: {other}");
        }
        assert_ne!(corrupted[claim], right[claim]);
    }
    // Corruption is of what is asked for, not of what the cluster itself hands out.
    faults.corrupt_tokens(Some(Corruption::Signature));
    let own = cluster.kubernetes.service_account_token("team-a", "web", None).unwrap();
    assert!(cluster.issuer.verify(&own).is_ok());
}
