//! Gets and lists: what is shown, of which state, in how many pages.

use sandbox::kubernetes::{NewPod, PodPhase, PodStatus};
use serde_json::{Value, json};

use super::support::{Cluster, pod};

const ACCOUNTS: &str = "/api/v1/namespaces/team-a/serviceaccounts";

#[tokio::test]
async fn an_object_is_shown_whole_and_in_a_list_without_its_kind() {
    let cluster = Cluster::start().await;
    let one = cluster.get(&format!("{ACCOUNTS}/web")).await.json();
    assert_eq!((&one["kind"], &one["apiVersion"]), (&json!("ServiceAccount"), &json!("v1")));
    assert_eq!(one["metadata"]["annotations"], json!({ "role": "reader" }));
    let list = cluster.get(ACCOUNTS).await;
    assert_eq!(list.names(), ["db", "default", "web"]);
    let list = list.json();
    assert_eq!(list["kind"], "ServiceAccountList");
    assert_eq!(list["metadata"], json!({ "resourceVersion": cluster.kubernetes.resource_version().to_string() }));
    assert_eq!(list["items"][2].get("kind"), None);
    assert_eq!(list["items"][2]["metadata"], one["metadata"]);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_each_in_its_own_way() {
    let cluster = Cluster::start().await;
    let pods = "/api/v1/namespaces/team-a/pods";
    let absent = cluster.get(&format!("{pods}/nope")).await;
    absent.refuses(404, "NotFound", r#"pods "nope" not found"#);
    assert_eq!(absent.json()["details"], json!({ "name": "nope", "kind": "pods" }));
    assert_eq!(cluster.get("/api/v1/namespaces/nope/pods").await.names(), Vec::<String>::new());
    for path in [
        "/api/v1/foos",
        "/api/v1/pods/web-1",
        "/api/v1/namespaces/team-a/nodes",
        "/api/v1/namespaces/team-a/pods/web-1/token",
        "/api/v1/namespaces/team-a/serviceaccounts/web/foo",
    ] {
        cluster.get(path).await.refuses(404, "NotFound", "the server could not find the requested resource");
    }
    for path in ["/nothing", "/apis/foo.io/v1/bars"] {
        let answer = cluster.get(path).await;
        assert_eq!((answer.code.as_u16(), answer.text.as_str()), (404, "404 page not found\n"));
    }
}

#[tokio::test]
async fn a_method_that_a_path_has_not_is_not_allowed() {
    let cluster = Cluster::start().await;
    for (method, path) in [
        ("PUT", "/api/v1/pods"),
        ("POST", "/api/v1/pods"),
        ("GET", "/api/v1/namespaces/team-a/serviceaccounts/web/token"),
        ("DELETE", "/api/v1/namespaces/team-a/serviceaccounts/web/token"),
    ] {
        let answer = cluster.call(method, path, &[], "").await;
        answer.refuses(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
    }
}

#[tokio::test]
async fn a_selector_selects_and_one_that_cannot_is_refused() {
    let cluster = Cluster::start().await;
    let kubernetes = &cluster.kubernetes;
    kubernetes.create_pod(pod("a").label("app", "web"));
    kubernetes.create_pod(NewPod::new("team-b", "b").node("node-b").host_network());
    kubernetes.run_pod("team-b", "b", &["10.0.0.9".parse().unwrap()]);
    for (query, names) in [
        ("fieldSelector=spec.nodeName%3Dnode-a", vec!["a"]),
        ("fieldSelector=spec.nodeName!%3Dnode-a", vec!["b"]),
        ("fieldSelector=status.phase%3DRunning,spec.hostNetwork%3Dtrue", vec!["b"]),
        ("fieldSelector=spec.serviceAccountName=web", vec!["a"]),
        ("fieldSelector=status.podIP=10.0.0.9", vec!["b"]),
        // Accepted, and never set.
        ("fieldSelector=status.podIPs=10.0.0.9", vec![]),
        ("fieldSelector=metadata.namespace=team-b,metadata.name=b", vec!["b"]),
        ("labelSelector=app%3Dweb", vec!["a"]),
        ("labelSelector=app", vec!["a"]),
        ("labelSelector=!app", vec!["b"]),
    ] {
        assert_eq!(cluster.get(&format!("/api/v1/pods?{query}")).await.names(), names, "{query}");
    }
    for (path, message) in [
        ("pods?fieldSelector=foo=bar", "field label not supported: foo"),
        ("pods?fieldSelector=foo", "invalid selector: 'foo'; can't understand 'foo'"),
        (
            "serviceaccounts?fieldSelector=foo=bar",
            r#""foo" is not a known field selector: only "metadata.name", "metadata.namespace""#,
        ),
        ("namespaces?fieldSelector=metadata.namespace=bar", "field label not supported: metadata.namespace"),
        ("pods?labelSelector=a===", "unable to parse requirement: found '=', expected: identifier"),
        ("pods?limit=x", r#"strconv.ParseInt: parsing "x": invalid syntax"#),
        (
            "pods?resourceVersion=abc",
            r#"invalid resource version: resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax"#,
        ),
        (
            "pods?continue=e30",
            "invalid continue token: continue key is not valid: server does not recognize this encoded version ",
        ),
    ] {
        cluster.get(&format!("/api/v1/{path}")).await.refuses(400, "BadRequest", message);
    }
}

#[tokio::test]
async fn options_that_contradict_each_other_are_invalid() {
    let cluster = Cluster::start().await;
    for (query, message) in [
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Foo&resourceVersion=1",
            r#"resourceVersionMatch: Unsupported value: "Foo": supported values: "Exact", "NotOlderThan", """#,
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            r#"resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0""#,
        ),
        ("sendInitialEvents=true", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
        (
            "watch=1&sendInitialEvents=true",
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "watch=1&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "watch=1&resourceVersionMatch=Exact",
            r#"[resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided, resourceVersionMatch: Unsupported value: "Exact": supported values: "NotOlderThan"]"#,
        ),
    ] {
        let message = format!(r#"ListOptions.meta.k8s.io "" is invalid: {message}"#);
        let answer = cluster.get(&format!("/api/v1/pods?{query}")).await;
        answer.refuses(422, "Invalid", &message);
        assert_eq!(answer.json()["details"]["kind"], "ListOptions");
    }
}

async fn pages(cluster: &Cluster, path: &str, between: impl Fn(usize)) -> Vec<String> {
    let (mut names, mut token, mut count) = (Vec::new(), String::new(), 0);
    loop {
        let page = cluster.get(&format!("{path}&continue={token}")).await;
        names.extend(page.names());
        match page.json()["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => return names,
        }
        between(count);
        count += 1;
    }
}

#[tokio::test]
async fn pages_make_up_one_list_of_one_moment() {
    let cluster = Cluster::start().await;
    for (namespace, name) in [("team", "c"), ("team-a", "a"), ("team-a", "b"), ("team.b", "d")] {
        cluster.kubernetes.create_pod(NewPod::new(namespace, name));
    }
    let whole = cluster.get("/api/v1/pods").await.names();
    // By namespace and name as etcd orders them: `team-a/` before `team/`.
    assert_eq!(whole, ["a", "b", "d", "c"]);
    let first = cluster.get("/api/v1/pods?limit=3").await.json();
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    let paged = pages(&cluster, "/api/v1/pods?limit=1", |count| {
        cluster.kubernetes.create_pod(NewPod::new("zz", &format!("new-{count}")));
        cluster.kubernetes.delete_pod("team", "c");
    })
    .await;
    assert_eq!(paged, whole);
    let in_namespace = pages(&cluster, "/api/v1/namespaces/team-a/pods?limit=1", |_| {}).await;
    assert_eq!(in_namespace, ["a", "b"]);
}

#[tokio::test]
async fn a_page_of_a_selection_does_not_count_what_remains() {
    let cluster = Cluster::start().await;
    let list = cluster.get(&format!("{ACCOUNTS}?limit=1&fieldSelector=metadata.name!=web")).await.json();
    assert_eq!(list["metadata"]["remainingItemCount"], Value::Null);
    assert!(list["metadata"]["continue"].is_string());
}

#[tokio::test]
async fn a_continuation_of_a_forgotten_moment_is_expired_and_says_how_to_go_on() {
    let cluster = Cluster::start().await;
    let first = cluster.get(&format!("{ACCOUNTS}?limit=1")).await;
    let token = first.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let with_version = cluster.get(&format!("{ACCOUNTS}?limit=1&continue={token}&resourceVersion=5")).await;
    with_version.refuses(400, "BadRequest", "specifying resource version is not allowed when using continue");
    cluster.kubernetes.compact();
    let expired = cluster.get(&format!("{ACCOUNTS}?limit=1&continue={token}")).await;
    assert_eq!((expired.code.as_u16(), &expired.json()["reason"]), (410, &json!("Expired")));
    let token = expired.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(cluster.get(&format!("{ACCOUNTS}?continue={token}")).await.names(), ["default", "web"]);
}

#[tokio::test]
async fn a_resource_version_says_which_state_is_shown() {
    let cluster = Cluster::start().await;
    let kubernetes = &cluster.kubernetes;
    let before = kubernetes.resource_version();
    kubernetes.delete_service_account("team-a", "db");
    let at = |query: &str| format!("{ACCOUNTS}?resourceVersion={before}{query}");
    assert_eq!(cluster.get(&at("&resourceVersionMatch=Exact")).await.names(), ["db", "default", "web"]);
    assert_eq!(cluster.get(&at("&limit=5")).await.names(), ["db", "default", "web"]);
    assert_eq!(cluster.get(&at("&resourceVersionMatch=NotOlderThan")).await.names(), ["default", "web"]);
    assert_eq!(cluster.get(&at("")).await.names(), ["default", "web"]);

    let now = kubernetes.resource_version();
    let future = cluster.get("/api/v1/pods?resourceVersion=99999").await;
    future.refuses(504, "Timeout", &format!("Timeout: Too large resource version: 99999, current: {now}"));
    assert_eq!(future.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(future.headers["retry-after"], "1");

    kubernetes.compact();
    let gone = cluster.get(&at("&resourceVersionMatch=Exact")).await;
    gone.refuses(410, "Expired", "The resourceVersion for the provided list is too old.");
}

#[tokio::test]
async fn a_lagging_cache_shows_at_version_zero_what_is_no_more() {
    let (cluster, _) = Cluster::with_pod().await;
    cluster.kubernetes.faults().freeze_cache();
    cluster.kubernetes.delete_pod("team-a", "web-1");
    assert_eq!(cluster.get("/api/v1/pods?resourceVersion=0").await.names(), ["web-1"]);
    assert_eq!(cluster.get("/api/v1/namespaces/team-a/pods/web-1?resourceVersion=0").await.code, 200);
    assert_eq!(cluster.get("/api/v1/pods").await.names(), Vec::<String>::new());
    assert_eq!(cluster.get("/api/v1/namespaces/team-a/pods/web-1").await.code, 404);
    cluster.kubernetes.faults().thaw_cache();
    assert_eq!(cluster.get("/api/v1/pods?resourceVersion=0").await.names(), Vec::<String>::new());
}

#[tokio::test]
async fn only_the_metadata_is_shown_to_who_asks_for_no_more() {
    let cluster = Cluster::start().await;
    let accept = |kind: &str| format!("application/json;as={kind};g=meta.k8s.io;v=v1");
    let (object, list) = (accept("PartialObjectMetadata"), accept("PartialObjectMetadataList"));
    let get = async |path: &str, accept: &str| cluster.call("GET", path, &[("accept", accept)], "").await;
    let web = format!("{ACCOUNTS}/web");
    let one = get(&web, &object).await.json();
    assert_eq!(one["kind"], "PartialObjectMetadata");
    assert_eq!(one["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(one["metadata"], cluster.get(&web).await.json()["metadata"]);
    let all = get(ACCOUNTS, &list).await.json();
    assert_eq!(all["kind"], "PartialObjectMetadataList");
    assert_eq!(all["items"][2], one);
    get(ACCOUNTS, &object).await.refuses(
        406,
        "NotAcceptable",
        "you requested PartialObjectMetadata, but the requested object is a list (*core.ServiceAccountList)",
    );
    get(&web, &list).await.refuses(
        406,
        "NotAcceptable",
        "you requested PartialObjectMetadataList, but the requested object is not a list (*core.ServiceAccount)",
    );
    get(&web, &accept("Foo")).await.refuses(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    for (path, streams) in [
        (ACCOUNTS, ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"),
        (web.as_str(), ""),
    ] {
        let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        let message = format!("406: Not Acceptable\n\nAvailable representations: {types}{streams}");
        get(path, "application/vnd.kubernetes.cbor").await.refuses(406, "NotAcceptable", &message);
    }
    // What kubectl sends: a table if possible, else the object.
    let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    assert_eq!(get(&web, kubectl).await.json()["kind"], "ServiceAccount");
}

#[tokio::test]
async fn a_pods_status_is_what_its_kubelet_says() {
    let (cluster, uid) = Cluster::with_pod().await;
    let web = "/api/v1/namespaces/team-a/pods/web-1";
    assert_eq!(cluster.get(web).await.json()["status"]["phase"], "Pending");
    cluster.kubernetes.run_pod("team-a", "web-1", &["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
    let pod = cluster.get(web).await.json();
    assert_eq!(pod["metadata"]["uid"], uid.as_str());
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.0.0.1");
    assert_eq!(pod["status"]["podIPs"], json!([{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }]));
    assert!(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].is_string());
    cluster.kubernetes.set_pod_status("team-a", "web-1", PodStatus::new(PodPhase::Failed, &[]));
    let pod = cluster.get(web).await.json();
    assert_eq!(pod["status"].get("podIP"), None);
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
}
