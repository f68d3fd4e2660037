//! The sandbox's Kubernetes API answers as a real API server does: the same requests to both, and the same
//! answers, but for UIDs, versions and times. A tier with `apiserver.rs` (`make test-apiserver`).
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "support/apiserver.rs"]
mod server;
mod support;

use http::{Request, header::ACCEPT};
use kube::client::Body;
use sandbox::sandbox::{DAEMON, NODE, Sandbox};
use serde_json::{Value, json};
use server::{Answer, ApiServer, Caller, bound, for_sts};
use support::{eventually, sandbox};

const ACCOUNTS: &str = "/api/v1/namespaces/team-a/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/team-a/pods";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team-a/events";
const OTHER_NODE: &str = "node-2";

/// One of the two servers with a cluster on it, and what it has answered.
struct Server<'a> {
    sandbox: &'a Sandbox,
    api: ApiServer,
    daemon_token: String,
    uid: String,
    transcript: Vec<String>,
}

/// Runs the test on both, and compares what they answered.
fn on_both(test: impl Fn(&mut Server<'_>)) {
    let sandbox = sandbox();
    let transcripts = [ApiServer::start(&sandbox), ApiServer::of_sandbox(&sandbox)].map(|api| {
        let daemon_token = api.add_daemon(&sandbox);
        api.add_node(&sandbox, OTHER_NODE);
        // On a real cluster a controller makes the default account.
        let accounts = ["db", "default", "unused", "web"].map(|name| (name, Value::Null));
        api.add_namespace(&sandbox, "team-a", &accounts);
        let uid = api.add_pod(&sandbox, ("team-a", "web-0"), "web", NODE, Some("10.244.0.1"));
        api.add_pod(&sandbox, ("team-a", "web-1"), "web", OTHER_NODE, Some("10.244.1.1"));
        api.add_pod(&sandbox, ("team-a", "host-0"), "db", OTHER_NODE, None);
        let mut server = Server { sandbox: &sandbox, api, daemon_token, uid, transcript: Vec::new() };
        test(&mut server);
        server.transcript
    });
    let [real, ours] = &transcripts;
    let differ = real.iter().zip(ours).filter(|(real, ours)| real != ours);
    let differ = differ.map(|(real, ours)| format!("real: {real}\nours: {ours}")).collect::<Vec<_>>();
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
    assert!(real.len() == ours.len() && !real.is_empty());
}

impl Server<'_> {
    fn call(&self, caller: Caller<'_>, method: &str, path: &str, body: &Value) -> Answer {
        self.api.call(self.sandbox, caller, method, path, body)
    }

    fn get(&self, path: &str) -> Answer {
        self.call(self.api.admin(), "GET", path, &Value::Null)
    }

    /// A refusal in full; of an object what is no matter of this cluster's own.
    fn note(&mut self, what: &str, Answer(code, object): &Answer) {
        let said = match object["kind"].as_str() {
            Some("Status") => object.to_string(),
            Some("TokenRequest") => object["spec"].to_string(),
            _ => match object["items"].as_array() {
                Some(items) => {
                    let names = items.iter().map(|item| item["metadata"]["name"].to_string()).collect::<Vec<_>>();
                    let more = object["metadata"]["continue"].is_string();
                    let remain = &object["metadata"]["remainingItemCount"];
                    format!("{} {} {more} {remain}", object["kind"], names.join(" "))
                }
                None => format!("{} {}", object["kind"], object["metadata"]["name"]),
            },
        };
        self.transcript.push(format!("{}: {code} {}", without_accidents(what), without_accidents(&said)));
    }

    fn note_get(&mut self, path: &str) {
        let answer = self.get(path);
        self.note(path, &answer);
    }

    fn note_token(&mut self, what: &str, account: &str, request: &Value) {
        let answer = self.api.token(self.sandbox, self.api.admin(), ("team-a", account), request);
        self.note(&format!("{what} {request}"), &answer);
    }

    fn note_events(&mut self, what: &str, events: &[Value]) {
        for event in events {
            let object = &event["object"];
            let metadata = &object["metadata"];
            let said = format!(
                "{} {} {} {} {}",
                event["type"], object["kind"], metadata["name"], object["status"]["podIP"], object["message"]
            );
            self.transcript.push(format!("{what}: {} {}", without_accidents(&said), metadata["annotations"]));
        }
        self.transcript.push(format!("{what}: {} events", events.len()));
    }

    fn version(&self) -> String {
        self.get(PODS).accepted()["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }
}

/// UIDs, versions and continuations are each server's own.
fn without_accidents(text: &str) -> String {
    let hex = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let parts = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
    let parts = parts.map(|part| {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        match word {
            word if word.len() == 36 && hex(word) => part.replace(word, "UID"),
            word if word.len() > 60 => part.replace(word, "LONG"),
            word if word.len() < 9 && word.len() > 1 && word.bytes().all(|b| b.is_ascii_digit()) => {
                part.replace(word, "NUMBER")
            }
            _ => part.to_owned(),
        }
    });
    parts.collect()
}

#[test]
#[ignore = "run by make test-apiserver"]
fn lists_selectors_and_options() {
    on_both(|server| {
        let mut token = String::new();
        loop {
            let path = format!("{ACCOUNTS}?limit=1&continue={token}");
            let page = server.get(&path);
            server.note("page", &page);
            match page.accepted()["metadata"]["continue"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        for query in [
            "limit=2",
            "limit=1&fieldSelector=metadata.name!%3Dweb-0",
            "fieldSelector=spec.nodeName%3Dnode-1",
            "fieldSelector=spec.nodeName!%3Dnode-1",
            "fieldSelector=status.phase%3DRunning,spec.hostNetwork%3Dfalse",
            "fieldSelector=spec.hostNetwork%3Dtrue",
            "fieldSelector=spec.serviceAccountName=web",
            "fieldSelector=status.podIP=10.244.1.1",
            "fieldSelector=status.podIPs=10.244.1.1",
            "labelSelector=!app",
            "labelSelector=app",
            "labelSelector=a===",
            "fieldSelector=foo=bar",
            "fieldSelector=foo",
            "limit=x",
            "resourceVersion=abc",
            "continue=e30",
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Foo&resourceVersion=1",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "sendInitialEvents=true",
            "watch=1&sendInitialEvents=true",
            "watch=1&resourceVersionMatch=NotOlderThan",
            "watch=1&resourceVersionMatch=Exact",
        ] {
            server.note_get(&format!("{PODS}?{query}"));
        }
        for path in [
            format!("{PODS}/nope"),
            format!("{ACCOUNTS}/nope"),
            format!("{ACCOUNTS}?fieldSelector=foo=bar"),
            "/api/v1/namespaces/nope".to_owned(),
            "/api/v1/namespaces?fieldSelector=metadata.namespace=bar".to_owned(),
            "/api/v1/namespaces/team-a/foos".to_owned(),
            "/api/v1/nodes/node-1".to_owned(),
        ] {
            server.note_get(&path);
        }
        for (path, accept) in [
            (ACCOUNTS, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            (ACCOUNTS, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            (ACCOUNTS, "text/html"),
            ("/openid/v1/jwks", "application/json"),
        ] {
            let request = Request::get(path).header(ACCEPT, accept).body(Body::empty()).unwrap();
            let answer = server.api.answer(server.sandbox, server.api.admin(), request);
            server.note(accept, &answer);
        }
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn watches_bookmarks_status_updates_and_forgotten_history() {
    on_both(|server| {
        let version = server.version();
        let path =
            format!("{PODS}?watch=1&resourceVersion={version}&timeoutSeconds=20&fieldSelector=spec.nodeName%3Dnode-1");
        let events = server.api.watch(server.sandbox, &path, 4, || {
            server.api.add_pod(server.sandbox, ("team-a", "later"), "web", NODE, Some("10.244.0.9"));
            server.api.add_pod(server.sandbox, ("team-a", "not-here"), "web", OTHER_NODE, Some("10.244.1.9"));
            server.api.delete_pod(server.sandbox, "team-a", "later");
        });
        server.note_events("as it happens", &events);
        // Again, from history.
        let events = server.api.watch(server.sandbox, &path, 4, || {});
        server.note_events("from history", &events);
        let path = format!("{ACCOUNTS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=20");
        let events = server.api.watch(server.sandbox, &path, 5, || {});
        server.note_events("initial events", &events);
        let version = server.version();
        let path = format!("{ACCOUNTS}?watch=1&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=8");
        let events = server.api.watch(server.sandbox, &path, 2, || {
            server.api.add_namespace(server.sandbox, "team-a", &[("late", Value::Null)]);
        });
        server.note_events("an event and the last bookmark", &events);

        let page = server.get(&format!("{ACCOUNTS}?limit=1")).accepted();
        let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
        server.note_get(&format!("{ACCOUNTS}?limit=1&continue={token}&resourceVersion=5"));
        server.api.add_namespace(server.sandbox, "team-a", &[("later", Value::Null)]);
        server.api.compact(server.sandbox);
        server.note_get(&format!("{ACCOUNTS}?limit=1&continue={token}"));
        let events = server.api.watch(server.sandbox, &format!("{PODS}?watch=1&resourceVersion={version}"), 2, || {});
        server.note_events("forgotten", &events);
        let future = format!("{PODS}?resourceVersion=99999999");
        let answer = server.get(&future).1;
        server.transcript.push(format!("{} {} {}", answer["code"], answer["reason"], answer["details"]));
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn token_requests_and_each_refusal() {
    on_both(|server| {
        let uid = server.uid.clone();
        let to = |kind: &str, api_version: &str, name: &str| json!({"spec": {"boundObjectRef": {"kind": kind, "apiVersion": api_version, "name": name}}});
        for (account, request) in [
            ("web", for_sts("web-0", &uid)),
            ("nope", json!({})),
            ("web", json!({"metadata": {"uid": "x"}})),
            ("web", json!({"metadata": {"name": "other"}})),
            ("web", json!({"metadata": {"namespace": "other"}})),
            ("web", json!({"spec": {"expirationSeconds": 599}})),
            ("web", json!({"spec": {"expirationSeconds": -1}})),
            ("web", json!({"spec": {"expirationSeconds": 4_294_967_297_i64}})),
            ("web", json!({"spec": {"expirationSeconds": "x"}})),
            ("web", json!({"spec": {"audiences": "x"}})),
            ("web", json!({"spec": {"audiences": ["a"], "boundObjectRef": bound("nope", "")}})),
            ("web", json!({"spec": {"audiences": ["a"], "boundObjectRef": bound("", "")}})),
            ("web", json!({"spec": {"audiences": ["a"], "boundObjectRef": bound("web-0", "u")}})),
            ("db", for_sts("web-0", &uid)),
            ("web", to("Node", "v1", "nope")),
            ("web", to("Secret", "v1", "nope")),
            ("web", to("Deployment", "apps/v1", "nope")),
            ("web", to("ConfigMap", "v1", "nope")),
            ("web", json!({"kind": "Pod", "apiVersion": "v1"})),
            ("web", json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1"})),
            ("web", json!([])),
        ] {
            server.note_token(account, account, &request);
        }
        let nowhere = "/api/v1/namespaces/zz/serviceaccounts/web/token";
        let answer = server.call(server.api.admin(), "POST", nowhere, &json!({}));
        server.note(nowhere, &answer);
        // A later pod of the same name is another.
        server.api.delete_pod(server.sandbox, "team-a", "web-0");
        server.note_token("gone", "web", &for_sts("web-0", &uid));
        server.api.add_pod(server.sandbox, ("team-a", "web-0"), "web", NODE, Some("10.244.0.1"));
        server.note_token("another", "web", &for_sts("web-0", &uid));
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn impersonation_and_what_a_node_may() {
    on_both(|server| {
        if server.api.url != server.sandbox.cloud.api_url() {
            server.api.apply(server.sandbox, "node.yaml");
        }
        let uid = server.uid.clone();
        let token = server.daemon_token.clone();
        let answer = server.api.token(server.sandbox, server.api.admin(), (DAEMON, DAEMON), &json!({}));
        let unbound = server.api.issued(answer);
        let as_node = Caller { token: &token, impersonates: Some("system:node:node-1") };
        let may = || server.api.token(server.sandbox, as_node, ("team-a", "web"), &for_sts("web-0", &uid)).0 == 201;
        eventually("the rights are in force", may);
        let elsewhere = server.get(&format!("{PODS}/web-1")).accepted()["metadata"]["uid"].as_str().unwrap().to_owned();
        let mut for_api = for_sts("web-0", &uid);
        for_api["spec"]["audiences"] = json!(["kubernetes"]);
        let mut for_two = for_sts("web-0", &uid);
        for_two["spec"]["audiences"] = json!(["sts.amazonaws.com", "kubernetes"]);
        let as_node_and = [
            None,
            Some("system:node:node-1"),
            Some("system:node:node-2"),
            Some("jane"),
            Some("system:serviceaccount:team-a:web"),
        ];
        for (whose, token) in [("ours", &token), ("unbound", &unbound)] {
            for impersonates in as_node_and {
                let caller = Caller { token, impersonates };
                for path in [
                    "/api/v1/pods",
                    "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1",
                    "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2",
                    "/api/v1/nodes",
                    "/api/v1/nodes/node-1",
                    "/api/v1/namespaces/team-a/pods/web-0",
                    "/api/v1/namespaces/team-a/serviceaccounts",
                    "/api/v1/namespaces/team-a/serviceaccounts/web",
                    "/metrics",
                ] {
                    let answer = server.call(caller, "GET", path, &Value::Null);
                    server.note(&format!("{whose} as {impersonates:?} {path}"), &answer);
                }
                for (account, request) in [
                    ("web", for_sts("web-0", &uid)),
                    ("web", for_sts("web-0", "")),
                    ("web", for_sts("web-0", "u")),
                    ("web", for_sts("nope", "u")),
                    ("web", for_sts("web-1", &elsewhere)),
                    ("web", json!({})),
                    ("web", for_api.clone()),
                    ("web", for_two.clone()),
                    ("unused", for_sts("web-0", &uid)),
                ] {
                    let answer = server.api.token(server.sandbox, caller, ("team-a", account), &request);
                    server.note(
                        &format!("{whose} as {impersonates:?} {account} {}", without_accidents(&request.to_string())),
                        &answer,
                    );
                }
            }
        }
        let request = Request::get(PODS).header("impersonate-group", "system:nodes").body(Body::empty()).unwrap();
        let answer = server.api.answer(server.sandbox, server.api.admin(), request);
        server.note("a group alone", &answer);
    });
}

/// An Event as the daemon writes it.
fn event(name: &str, pod_uid: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "team-a"},
        "eventTime": "2026-11-25T12:00:00.123456Z",
        "reportingController": "kube2irsa",
        "reportingInstance": NODE,
        "action": "GetCredentials",
        "reason": "CredentialsRefused",
        "type": "Warning",
        "note": "what is wrong, and what to do",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "team-a", "name": "web-0", "uid": pod_uid},
    })
}

#[test]
#[ignore = "run by make test-apiserver"]
fn events_are_written_once_patched_as_series_and_refused_for_each_fault() {
    on_both(|server| {
        let uid = server.uid.clone();
        let admin = |server: &Server<'_>, method: &str, path: &str, body: &Value| {
            server.call(server.api.admin(), method, path, body)
        };
        let good = event("web-0.1", &uid);
        let written = admin(server, "POST", EVENTS, &good).accepted();
        let content = |event: &Value| {
            let mut event = event.clone();
            let metadata = event["metadata"].as_object_mut().unwrap();
            metadata.retain(|field, _| ["name", "namespace"].contains(&field.as_str()));
            without_accidents(&event.to_string())
        };
        server.transcript.push(content(&written));
        let path = format!("{EVENTS}/web-0.1");
        let series =
            |count: i64| json!({"series": {"count": count, "lastObservedTime": "2026-11-25T12:10:00.000001Z"}});
        let patched = admin(server, "PATCH", &path, &series(2)).accepted();
        server.transcript.push(content(&patched));
        let read = admin(server, "GET", &path, &Value::Null).accepted();
        server.transcript.push(content(&read));
        assert_eq!(read["metadata"]["uid"], written["metadata"]["uid"]);
        assert_ne!(read["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);

        let with = |pointer: &str, value: Value| {
            let mut event = event("web-0.2", &uid);
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            let parent = event.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            match value {
                Value::Null => parent.remove(field),
                value => parent.insert(field.to_owned(), value),
            };
            event
        };
        for (path, body) in [
            (EVENTS, good.clone()),
            (EVENTS, json!({})),
            (EVENTS, with("/metadata/name", Value::Null)),
            (EVENTS, with("/metadata/name", json!("Web_0"))),
            (EVENTS, with("/metadata/namespace", json!("team-b"))),
            (EVENTS, with("/eventTime", Value::Null)),
            (EVENTS, with("/eventTime", json!("x"))),
            (EVENTS, with("/eventTime", json!("2026-11-25T12:00:00Z"))),
            (EVENTS, with("/reportingController", Value::Null)),
            (EVENTS, with("/reportingController", json!("kube2irsa/x/y"))),
            (EVENTS, with("/reportingInstance", Value::Null)),
            (EVENTS, with("/reportingInstance", json!("n".repeat(129)))),
            (EVENTS, with("/action", Value::Null)),
            (EVENTS, with("/action", json!("a".repeat(129)))),
            (EVENTS, with("/reason", Value::Null)),
            (EVENTS, with("/reason", json!("r".repeat(129)))),
            (EVENTS, with("/type", Value::Null)),
            (EVENTS, with("/type", json!("Error"))),
            (EVENTS, with("/note", json!("n".repeat(1025)))),
            (EVENTS, with("/note", json!(5))),
            (EVENTS, with("/regarding", Value::Null)),
            (EVENTS, with("/regarding", json!("x"))),
            (EVENTS, with("/regarding/uid", json!(5))),
            (EVENTS, with("/regarding/namespace", Value::Null)),
            (EVENTS, with("/series", json!({"count": 1}))),
            (EVENTS, with("/series", json!({"count": "x"}))),
            (EVENTS, with("/deprecatedCount", json!(2))),
            (EVENTS, with("/deprecatedSource", json!({"component": "kube2irsa"}))),
            (EVENTS, with("/deprecatedFirstTimestamp", json!("2026-11-25T12:00:00Z"))),
            (EVENTS, with("/kind", json!("Pod"))),
            (EVENTS, with("/apiVersion", json!("v1"))),
            (EVENTS, json!([])),
            ("/apis/events.k8s.io/v1/namespaces/nope/events", with("/metadata/namespace", json!("nope"))),
            ("/apis/events.k8s.io/v1/events", good.clone()),
            ("/apis/events.k8s.io/v2/namespaces/team-a/events", good.clone()),
            ("/apis/events.k8s.io/v1/namespaces/team-a/foos", good.clone()),
            (path.as_str(), good.clone()),
        ] {
            let answer = admin(server, "POST", path, &body);
            server.note(&format!("{path} {body}"), &answer);
        }
        // What a real server lets pass.
        for (name, pointer, value) in [
            ("web-0.3", "/note", json!("n".repeat(1024))),
            ("web-0.4", "/note", Value::Null),
            ("web-0.5", "/regarding/namespace", json!("team-b")),
            ("web-0.6", "/metadata/namespace", Value::Null),
            ("web-0.7", "/series", series(2)["series"].clone()),
            ("web-0.8", "/type", json!("Normal")),
        ] {
            let mut event = with(pointer, value);
            event["metadata"]["name"] = name.into();
            let answer = admin(server, "POST", EVENTS, &event);
            server.note(name, &answer);
        }
        let nobody = format!("{EVENTS}/nope");
        for (path, patch) in [
            (&path, series(1)),
            (&path, json!({"series": {"count": 3, "lastObservedTime": null}})),
            (&path, json!({"note": "another"})),
            (&path, json!({"reason": "Another"})),
            (&path, json!({"type": "Normal"})),
            (&path, json!({"action": "Another"})),
            (&path, json!({"eventTime": "2026-11-25T12:00:00.123457Z"})),
            (&path, json!({"reportingController": "another"})),
            (&path, json!({"reportingInstance": "another"})),
            (&path, json!({"regarding": {"uid": "another"}})),
            (&path, json!({"metadata": {"name": "another"}})),
            (&path, json!({"metadata": {"uid": "another"}})),
            (&path, json!({"metadata": {"resourceVersion": "1"}})),
            (&path, json!([])),
            (&path, json!({})),
            (&path, series(3)),
            (&nobody, series(2)),
        ] {
            let answer = admin(server, "PATCH", path, &patch);
            server.note(&format!("{path} {patch}"), &answer);
        }
        for query in [
            "",
            "?limit=2",
            "?fieldSelector=regarding.name%3Dweb-0,type%3DNormal",
            "?fieldSelector=regarding.uid=x",
            "?fieldSelector=reportingController%3Dkube2irsa,reason!%3DCredentialsRefused",
            "?fieldSelector=involvedObject.name%3Dweb-0",
        ] {
            server.note_get(&format!("{EVENTS}{query}"));
        }
        for path in [&nobody, "/apis/events.k8s.io/v1/events?fieldSelector=metadata.namespace%3Dteam-a"] {
            server.note_get(path);
        }
        let body = Body::from(series(4).to_string().into_bytes());
        let request = Request::patch(&path).header("content-type", "text/plain").body(body).unwrap();
        let answer = server.api.answer(server.sandbox, server.api.admin(), request);
        server.note("a patch of another type", &answer);
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn events_are_for_who_may_write_them() {
    on_both(|server| {
        let uid = server.uid.clone();
        if server.api.url != server.sandbox.cloud.api_url() {
            server.api.apply(server.sandbox, "node.yaml");
        }
        let token = server.daemon_token.clone();
        let ourselves = Caller { token: &token, impersonates: None };
        let create = |server: &Server<'_>, caller, name: &str| server.call(caller, "POST", EVENTS, &event(name, &uid));
        eventually("the rights are in force", || create(server, ourselves, "web-0.1").0 != 403);
        let web = server.api.token(server.sandbox, server.api.admin(), ("team-a", "web"), &json!({}));
        let web = server.api.issued(web);
        let as_node = Caller { token: &token, impersonates: Some("system:node:node-1") };
        for (who, caller) in [
            ("ourselves", ourselves),
            ("as our node", as_node),
            ("a pod's account", Caller { token: &web, impersonates: None }),
        ] {
            let path = format!("{EVENTS}/web-0.1");
            let series = json!({"series": {"count": 2, "lastObservedTime": "2026-11-25T12:10:00.000001Z"}});
            for (method, path, body) in [
                ("POST", EVENTS, event("web-0.1", &uid)),
                ("POST", EVENTS, event("web-0.2", &uid)),
                ("PATCH", &path, series),
                ("GET", &path, Value::Null),
                ("GET", EVENTS, Value::Null),
            ] {
                let answer = server.call(caller, method, path, &body);
                server.note(&format!("{who} {method} {path}"), &answer);
            }
        }
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn taints_are_removed_where_they_are_still_what_the_patch_says_and_not_otherwise() {
    on_both(|server| {
        let path = "/api/v1/nodes/node-1";
        let taints = json!([
            {"key": "a", "effect": "NoSchedule"},
            {"key": "kube2irsa.io/not-ready", "effect": "NoSchedule"},
            {"key": "b", "value": "c", "effect": "NoExecute"},
        ]);
        let test = |at: &str, value: Value| json!({"op": "test", "path": at, "value": value});
        let remove = |place: &str| json!({"op": "remove", "path": format!("/spec/taints/{place}")});
        let ours = || test("/spec/taints/1/key", json!("kube2irsa.io/not-ready"));
        let admin = server.api.admin().token.to_owned();
        let admin = Caller { token: &admin, impersonates: None };
        for patch in [
            json!([ours(), remove("1")]),
            json!([remove("2"), ours(), remove("1"), remove("0")]),
            json!([test("/spec/taints/0/key", json!("kube2irsa.io/not-ready")), remove("0")]),
            json!([remove("0"), ours(), remove("1")]),
            json!([test("/spec/taints/3/key", json!("kube2irsa.io/not-ready")), remove("3")]),
            json!([test("/spec/taints/1", taints[1].clone()), remove("1")]),
            json!([test("/spec/taints/1", json!({"key": "kube2irsa.io/not-ready"})), remove("1")]),
            json!([test("/spec/nowhere/1/key", json!("x"))]),
            json!([remove("3")]),
            json!([remove("x")]),
            json!([ours()]),
            json!([]),
            json!({}),
            json!("x"),
        ] {
            server.api.taint_node(server.sandbox, NODE, &taints);
            let answer = server.api.json_patch(server.sandbox, admin, path, &patch);
            server.note(&patch.to_string(), &answer);
            let left = server.get(path).accepted()["spec"]["taints"].to_string();
            server.transcript.push(format!("{patch} leaves {left}"));
        }
        let good = json!([ours(), remove("1")]);
        let nobody = server.api.json_patch(server.sandbox, admin, "/api/v1/nodes/nope", &good);
        server.note("nope", &nobody);
        let body = Body::from(good.to_string().into_bytes());
        let request = Request::patch(path).header("content-type", "text/plain").body(body).unwrap();
        let answer = server.api.answer(server.sandbox, admin, request);
        server.note("a patch of another type", &answer);
        let token = server.daemon_token.clone();
        let answer = server.api.json_patch(server.sandbox, Caller { token: &token, impersonates: None }, path, &good);
        server.note("without the right", &answer);
    });
}

#[test]
#[ignore = "run by make test-apiserver"]
fn what_a_caller_may_do_and_what_administrators_do_in_others_names() {
    const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    on_both(|server| {
        if server.api.url != server.sandbox.cloud.api_url() {
            server.api.apply(server.sandbox, "node.yaml");
        }
        let (uid, token) = (server.uid.clone(), server.daemon_token.clone());
        let admin = server.api.admin().token.to_owned();
        let as_node = Caller { token: &token, impersonates: Some("system:node:node-1") };
        let may = || server.api.token(server.sandbox, as_node, ("team-a", "web"), &for_sts("web-0", &uid)).0 == 201;
        eventually("the rights are in force", may);
        let daemon = "system:serviceaccount:kube2irsa:kube2irsa";
        let callers = [
            ("ourselves", Caller { token: &token, impersonates: None }),
            ("an administrator", Caller { token: &admin, impersonates: None }),
            ("an administrator as us", Caller { token: &admin, impersonates: Some(daemon) }),
            (
                "an administrator as another",
                Caller { token: &admin, impersonates: Some("system:serviceaccount:team-a:web") },
            ),
            ("an administrator as jane", Caller { token: &admin, impersonates: Some("jane") }),
        ];
        let of = |verb: &str, group: &str, resource: &str, subresource: &str| json!({"spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource, "subresource": subresource}}});
        for (who, caller) in callers {
            for review in [
                of("list", "", "pods", ""),
                of("list", "", "serviceaccounts", ""),
                of("create", "", "serviceaccounts", "token"),
                of("impersonate-on:associated-node:create", "", "serviceaccounts", "token"),
                of("impersonate:associated-node", "authentication.k8s.io", "nodes", ""),
                of("get", "", "secrets", ""),
                of("*", "*", "*", ""),
                of("create", "events.k8s.io", "events", ""),
            ] {
                let Answer(code, answer) = server.call(caller, "POST", REVIEWS, &review);
                let said = format!("{who} {review}: {code} {} {}", answer["kind"], answer["status"]["allowed"]);
                server.transcript.push(said);
            }
            // What is refused is refused before it is found that there is no such thing.
            for (namespace, account, request) in [
                ("team-a", "nobody", json!({"spec": {"audiences": ["a"]}})),
                ("team-a", "web", for_sts("nobody", "00000000-0000-4000-8000-000000000000")),
                ("nowhere", "web", for_sts("nobody", "00000000-0000-4000-8000-000000000000")),
            ] {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token?dryRun=All");
                let answer = server.call(caller, "POST", &path, &request);
                server.note(&format!("{who} {path}"), &answer);
            }
            for path in [
                PODS,
                "/apis/apps/v1/daemonsets?fieldSelector=spec.x=y",
                "/apis/apps/v1/namespaces/team-a/daemonsets/nope",
            ] {
                let answer = server.call(caller, "GET", path, &Value::Null);
                server.note(&format!("{who} {path}"), &answer);
            }
        }
        for body in [json!({}), json!({"spec": {}}), json!({"spec": {"resourceAttributes": 7}}), json!("x")] {
            let answer = server.call(callers[1].1, "POST", REVIEWS, &body);
            server.note(&format!("a review of {body}"), &answer);
        }
        let answer = server.call(callers[1].1, "GET", REVIEWS, &Value::Null);
        server.note("reviews", &answer);
    });
}
