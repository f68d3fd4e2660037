//! A bad API server: nothing stops, nothing is lost, and who was served goes on being served.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use http::StatusCode;
use sandbox::{
    kubernetes::{Fault, Faults, NewPod, Resource, Target},
    sandbox::{NODE, Pod, Sandbox},
};
use serde_json::json;
use support::{Daemon, ROLE_NAME, ask, eventually, metric, role_status, sandbox};

const RESOURCES: [&str; 3] = ["pods", "serviceaccounts", "namespaces"];
/// The server may need a while to see that a watch was left.
const SETTLED: Duration = Duration::from_millis(300);
/// A change is in force within a second, and a busy machine adds to it.
const SOON: Duration = Duration::from_secs(5);
/// More than one page of a list.
const MORE_THAN_A_PAGE: usize = 501;

/// `steady` asks without pause; `web` is what changes are tried on. Their namespaces are not the same.
struct Cluster {
    sandbox: Sandbox,
    steady: Pod,
    web: Pod,
    daemon: Daemon,
}

impl Cluster {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// `prepare` comes before the daemon's start.
    fn with(prepare: impl Fn(&Sandbox)) -> Self {
        let sandbox = sandbox();
        sandbox.add_service_account("team-s", "steady", "steady").unwrap();
        sandbox.add_service_account("team-a", "web", "web").unwrap();
        let steady = sandbox.add_pod("team-s", "steady-0", "steady").unwrap();
        let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
        prepare(&sandbox);
        let daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
        eventually("both are served", || role_status(&steady) == 200 && role_status(&web) == 200);
        Self { sandbox, steady, web, daemon }
    }

    fn faults(&self) -> &Faults {
        self.sandbox.cloud.kubernetes.faults()
    }

    /// Does it while `steady` asks for its role and its credentials, and gets both each time.
    fn while_steady_is_served(&self, deed: impl FnOnce()) {
        let over = AtomicBool::new(false);
        let document = format!("{ROLE_NAME}steady");
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let (mut requests, mut failed) = (0, Vec::new());
                while !over.load(Ordering::Relaxed) {
                    let name = ask(&self.steady, "GET", ROLE_NAME, &[]);
                    let served = name.as_ref().is_ok_and(|name| name.status == 200 && name.text() == "steady");
                    failed.extend((!served).then_some(name));
                    let keys = ask(&self.steady, "GET", &document, &[]);
                    failed.extend((!keys.as_ref().is_ok_and(|keys| keys.status == 200)).then_some(keys));
                    requests += 2;
                    // A pod has only so many ports.
                    thread::sleep(Duration::from_millis(2));
                }
                (requests, failed)
            });
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(deed));
            over.store(true, Ordering::Relaxed);
            let (requests, failed) = asked.join().unwrap();
            if let Err(panic) = done {
                println!("{}", self.daemon.log());
                std::panic::resume_unwind(panic);
            }
            assert!(requests > 0 && failed.is_empty(), "{} of {requests} failed: {:?}", failed.len(), failed.first());
            println!("{requests} requests, none failed");
        });
    }

    /// What changes from now on is in force soon, whatever it is.
    fn hears_of_changes(&self) {
        let kubernetes = &self.sandbox.cloud.kubernetes;
        let mut settled = Instant::now();
        eventually("all is watched", || {
            let open = kubernetes.open_watches();
            let count = |resource: &str| open.iter().filter(|watch| watch.resource == resource).count();
            if RESOURCES.map(count) != [1, 2, 2] {
                settled = Instant::now();
            }
            settled.elapsed() >= SETTLED
        });
        eventually("it is served", || role_status(&self.web) == 200);
        let role = ask(&self.web, "GET", ROLE_NAME, &[]).unwrap().text().to_owned();
        let next = format!("{role}x");
        self.sandbox.add_service_account("team-a", "web", &next).unwrap();
        self.soon("the new role", || self.role() == Ok(next.clone()));
        let old = ask(&self.web, "GET", &format!("{ROLE_NAME}{role}"), &[]).unwrap();
        assert_eq!(old.status, 404, "the old role's credentials");

        let permit = |globs| kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", globs)]);
        permit("arn:aws:iam::*:role/other");
        self.soon("the namespace's refusal", || self.role() == Err(403));
        permit("arn:aws:iam::*:role/*");
        self.soon("the namespace's permission", || self.role() == Ok(next.clone()));

        let later = self.sandbox.add_pod("team-s", &format!("later-{next}"), "steady").unwrap();
        self.soon("the later pod", || role_status(&later) == 200);
        self.sandbox.remove_pod(later).unwrap();
    }

    fn role(&self) -> Result<String, u16> {
        let answer = ask(&self.web, "GET", ROLE_NAME, &[]).unwrap();
        if answer.status == 200 { Ok(answer.text().to_owned()) } else { Err(answer.status) }
    }

    fn soon(&self, what: &str, holds: impl FnMut() -> bool) {
        let start = Instant::now();
        eventually(what, holds);
        assert!(start.elapsed() < SOON, "{what}: {:?}\n{}", start.elapsed(), self.daemon.log());
    }

    /// Lists of a resource so far.
    fn lists(&self, resource: &str) -> usize {
        let requests = self.sandbox.cloud.kubernetes.requests();
        requests.iter().filter(|request| request.verb == "list" && request.resource == resource).count()
    }

    fn counted(&self, metric_name: &str, resource: &str) -> f64 {
        metric(&self.sandbox, &format!("kube2irsa_{metric_name}{{resource=\"{resource}\"}}"))
    }

    /// The fault befalls the API server; it shows in the metric of each of these resources, and does no harm.
    fn survives(&self, metric_name: &str, resources: &[&str], fault: impl FnOnce()) {
        let before = resources.iter().map(|resource| self.counted(metric_name, resource)).collect::<Vec<_>>();
        self.while_steady_is_served(|| {
            fault();
            for (resource, before) in resources.iter().zip(before) {
                eventually(&format!("{metric_name} of {resource}"), || self.counted(metric_name, resource) > before);
            }
            self.hears_of_changes();
        });
    }
}

fn watches_of(resource: &str) -> Target {
    Target::any().verb("watch").resource(resource)
}

#[test]
fn a_watch_whose_history_is_gone_is_begun_anew_by_a_list() {
    let cluster = Cluster::new();
    cluster.survives("watch_errors_total", &RESOURCES, || {
        cluster.sandbox.cloud.kubernetes.compact();
        cluster.faults().cut_watches();
    });
    // The same as a status instead of an event; no watch will ever go on from there.
    for (resource, code) in
        RESOURCES.into_iter().zip([StatusCode::GONE, StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND])
    {
        let lists = cluster.lists(resource);
        cluster.survives("watch_errors_total", &[resource], || {
            cluster.faults().inject(watches_of(resource), Fault::Answer(code));
            cluster.faults().cut_watches();
            eventually("it lists anew", || cluster.lists(resource) > lists);
            cluster.faults().clear();
        });
    }
}

#[test]
fn a_list_whose_next_page_is_gone_is_begun_anew() {
    let cluster = Cluster::with(|sandbox| {
        for number in 0..MORE_THAN_A_PAGE {
            sandbox.annotate("team-a", &format!("account-{number}"), &[]);
            let pod = NewPod::new("team-a", &format!("pod-{number}")).node(NODE).host_network();
            sandbox.cloud.kubernetes.create_pod(pod);
        }
    });
    for resource in ["pods", "serviceaccounts"] {
        cluster.survives("watch_errors_total", &[resource], || {
            let lists = || Target::any().verb("list").resource(resource);
            cluster.faults().inject_times(watches_of(resource), Fault::Answer(StatusCode::GONE), 1);
            // Accounts of two namespaces are listed at once: both first pages come before the second one.
            let first_pages = if resource == "pods" { 1 } else { 2 };
            cluster.faults().inject_times(lists(), Fault::Delay(Duration::from_millis(100)), first_pages);
            cluster.faults().inject_times(lists(), Fault::Compaction, 1);
            if resource == "serviceaccounts" {
                cluster.faults().inject_times(watches_of(resource), Fault::Answer(StatusCode::GONE), 1);
            }
            cluster.faults().cut_watches();
        });
        let continued = cluster.sandbox.cloud.kubernetes.requests();
        assert!(continued.iter().any(|request| request.resource == resource && request.query.contains("continue=")));
    }
}

#[test]
fn a_watch_that_is_cut_in_the_middle_of_an_event_goes_on_with_that_event() {
    let cluster = Cluster::new();
    let kubernetes = &cluster.sandbox.cloud.kubernetes;
    cluster.survives("watch_errors_total", &["pods"], || {
        cluster.faults().tear_next_event();
        let later = cluster.sandbox.add_pod("team-s", "torn", "steady").unwrap();
        eventually("the pod of the torn event is served", || role_status(&later) == 200);
    });
    cluster.survives("watch_errors_total", &["serviceaccounts"], || {
        cluster.faults().tear_next_event();
        cluster.sandbox.add_service_account("team-a", "web", "torn").unwrap();
        eventually("the role of the torn event", || cluster.role() == Ok("torn".to_owned()));
    });
    cluster.survives("watch_errors_total", &["namespaces"], || {
        cluster.faults().tear_next_event();
        kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", "none")]);
        eventually("the refusal of the torn event", || cluster.role() == Err(403));
        kubernetes.create_namespace("team-a", &[]);
    });
}

#[test]
fn watches_that_are_cut_or_reset_go_on() {
    let cluster = Cluster::new();
    cluster.survives("watch_errors_total", &RESOURCES, || cluster.faults().cut_watches());
    cluster.survives("watch_errors_total", &RESOURCES, || cluster.sandbox.cloud.reset_api_connections());
    // The end of a watch's time is no error.
    let before = RESOURCES.map(|resource| cluster.counted("watch_errors_total", resource));
    cluster.while_steady_is_served(|| {
        cluster.faults().end_watches();
        cluster.hears_of_changes();
    });
    assert_eq!(RESOURCES.map(|resource| cluster.counted("watch_errors_total", resource)), before);
}

#[test]
fn what_is_sent_again_counts_once_and_what_is_old_does_not_count() {
    let cluster = Cluster::new();
    let (sandbox, kubernetes) = (&cluster.sandbox, &cluster.sandbox.cloud.kubernetes);
    // Bookmarks may be of one version: that is no fault.
    (0..3).for_each(|_| cluster.faults().bookmark());
    cluster.hears_of_changes();
    assert_eq!(RESOURCES.map(|resource| cluster.counted("stale_events_total", resource)), [0.0; 3]);
    cluster.survives("stale_events_total", &RESOURCES, || cluster.faults().replay_events(0));

    // An old role, alone; and an old permission.
    let (start, role) = (kubernetes.resource_version(), cluster.role().unwrap());
    sandbox.add_service_account("team-a", "web", "old").unwrap();
    kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", "none")]);
    let old = kubernetes.resource_version();
    kubernetes.create_namespace("team-a", &[]);
    sandbox.add_service_account("team-a", "web", &role).unwrap();
    eventually("the last role is in force", || cluster.role() == Ok(role.clone()));
    cluster.survives("stale_events_total", &["serviceaccounts", "namespaces"], || {
        cluster.faults().replay_events_between(start, old);
        let watched = Instant::now();
        while watched.elapsed() < Duration::from_secs(1) {
            assert_eq!(cluster.role(), Ok(role.clone()));
        }
    });

    // The life and the end of a pod whose name and address are another pod's now.
    let start = kubernetes.resource_version();
    sandbox.add_service_account("team-a", "first", "first").unwrap();
    sandbox.add_service_account("team-a", "second", "second").unwrap();
    let first = sandbox.add_pod("team-a", "same-0", "first").unwrap();
    eventually("the first pod is served", || role_status(&first) == 200);
    let address = first.address();
    sandbox.remove_pod(first).unwrap();
    let end_of_first = kubernetes.resource_version();
    let second = sandbox.add_pod_at("team-a", "same-0", "second", address).unwrap();
    eventually("the second pod is served", || role_status(&second) == 200);
    for up_to in start + 1..=end_of_first {
        cluster.survives("stale_events_total", &["pods"], || {
            cluster.faults().replay_events_between(start, up_to.max(start + 3));
            let watched = Instant::now();
            while watched.elapsed() < Duration::from_millis(200) {
                let name = ask(&second, "GET", ROLE_NAME, &[]).unwrap();
                assert_eq!((name.status, name.text()), (200, "second"));
            }
        });
    }
}

/// Objects that cannot be read, of each kind, beside those of `web` and `steady`.
fn unreadable_neighbours(sandbox: &Sandbox) {
    let faults = sandbox.cloud.kubernetes.faults();
    let spec = json!({"nodeName": NODE, "serviceAccountName": "web"});
    for (number, content) in [
        json!({"metadata": {"creationTimestamp": 7}, "spec": spec}),
        json!({"metadata": {"deletionTimestamp": "soon"}, "spec": spec}),
        json!({"spec": {"nodeName": NODE, "serviceAccountName": ["web"]}}),
        json!({"spec": spec, "status": {"podIPs": "10.0.0.1"}}),
        json!({"spec": spec, "status": [1]}),
    ]
    .into_iter()
    .enumerate()
    {
        faults.inject_malformed(Resource::Pods, "team-a", &format!("bad-{number}"), content);
    }
    for (number, annotations) in [json!(7), json!({"eks.amazonaws.com/role-arn": 7}), json!(["x"])].iter().enumerate() {
        let content = json!({"metadata": {"annotations": annotations}});
        faults.inject_malformed(Resource::ServiceAccounts, "team-a", &format!("bad-{number}"), content);
    }
}

#[test]
fn an_object_that_cannot_be_read_does_not_stop_the_others_in_a_list_nor_in_a_watch() {
    let cluster = Cluster::with(unreadable_neighbours);
    assert_eq!(metric(&cluster.sandbox, "kube2irsa_unreadable_objects_total"), 8.0);
    cluster.while_steady_is_served(|| cluster.hears_of_changes());
    assert!(cluster.daemon.log().contains("team-a/bad-0"), "{}", cluster.daemon.log());

    let cluster = Cluster::new();
    cluster.while_steady_is_served(|| {
        unreadable_neighbours(&cluster.sandbox);
        eventually("they are counted", || metric(&cluster.sandbox, "kube2irsa_unreadable_objects_total") >= 8.0);
        cluster.hears_of_changes();
    });
}

#[test]
fn who_depends_on_what_cannot_be_read_gets_nothing_until_it_can() {
    let cluster = Cluster::new();
    let (sandbox, kubernetes) = (&cluster.sandbox, &cluster.sandbox.cloud.kubernetes);
    let unreadable = json!({"metadata": {"annotations": ["x"]}});
    let restarts = |expected| {
        assert_eq!(cluster.role(), expected);
        // From a list too.
        kubernetes.compact();
        cluster.faults().cut_watches();
        let watched = Instant::now();
        while watched.elapsed() < Duration::from_secs(1) {
            assert_eq!(cluster.role(), expected);
        }
    };
    cluster.while_steady_is_served(|| {
        assert_eq!(cluster.role(), Ok("web".to_owned()));
        cluster.faults().inject_malformed(Resource::ServiceAccounts, "team-a", "web", unreadable.clone());
        eventually("its role is not known", || cluster.role() == Err(503));
        restarts(Err(503));
        kubernetes.delete_service_account("team-a", "web");
        sandbox.add_service_account("team-a", "web", "mended").unwrap();
        eventually("the mended role", || cluster.role() == Ok("mended".to_owned()));

        cluster.faults().inject_malformed(Resource::Namespaces, "", "team-a", unreadable);
        eventually("its namespace permits nothing", || cluster.role() == Err(403));
        restarts(Err(403));
        kubernetes.create_namespace("team-a", &[]);
        eventually("the mended namespace", || cluster.role() == Ok("mended".to_owned()));
        cluster.hears_of_changes();
    });
    // A pod that was served, and is served no longer.
    let spec = json!({"nodeName": NODE, "serviceAccountName": 7});
    cluster.while_steady_is_served(|| {
        let uid = cluster.web.uid.clone();
        let content = json!({"metadata": {"uid": uid}, "spec": spec});
        cluster.faults().inject_malformed(Resource::Pods, "team-a", "web-0", content);
        eventually("it is not served", || cluster.role().is_err());
    });
}

#[test]
fn fields_and_types_that_are_not_known_do_no_harm() {
    let cluster = Cluster::new();
    let (sandbox, faults) = (&cluster.sandbox, cluster.faults());
    let arn = sandbox.add_service_account("team-a", "new", "new").unwrap();
    let metadata = json!({
        "annotations": {"eks.amazonaws.com/role-arn": arn, "x": ""},
        "labels": {"a": 7},
        "ownerReferences": "nobody",
        "managedFields": {"x": [1]},
        "shape": {"round": true},
    });
    let content = json!({"metadata": metadata, "secrets": 7, "new": [null]});
    faults.inject_malformed(Resource::ServiceAccounts, "team-a", "new", content);
    let pod = sandbox.add_pod("team-a", "new-0", "new").unwrap();
    let started = jiff::Timestamp::now().to_string();
    let content = json!({
        "metadata": {"uid": pod.uid, "labels": 7, "finalizers": {}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": NODE, "serviceAccountName": "new", "containers": {"a": 1}, "new": {}},
        "status": {
            "phase": "Dreaming",
            "podIPs": [{"ip": pod.address(), "new": 1}],
            "conditions": "good",
            "startTime": null,
            "containerStatuses": [{"state": {"running": {"startedAt": started}, "new": 7}}],
        },
    });
    faults.inject_malformed(Resource::Pods, "team-a", "new-0", content);
    cluster.while_steady_is_served(|| {
        eventually("it is served", || ask(&pod, "GET", ROLE_NAME, &[]).unwrap().text() == "new");
        cluster.hears_of_changes();
    });
    assert_eq!(metric(sandbox, "kube2irsa_unreadable_objects_total"), 0.0);
}

#[test]
fn an_error_in_a_watch_or_a_line_that_is_none_is_an_interruption() {
    let cluster = Cluster::new();
    for (resource, name) in
        [(Resource::Pods, "pods"), (Resource::ServiceAccounts, "serviceaccounts"), (Resource::Namespaces, "namespaces")]
    {
        for code in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::GONE, StatusCode::FORBIDDEN] {
            cluster.survives("watch_errors_total", &[name], || cluster.faults().fail_watches(resource, code));
        }
        let lists = cluster.lists(name);
        cluster.survives("watch_errors_total", &[name], || cluster.faults().inject_garbage(resource));
        assert!(cluster.lists(name) > lists, "who knows what it said: {name}");
    }
}

#[test]
fn a_server_that_is_overloaded_or_slow_is_waited_for() {
    let cluster = Cluster::new();
    for fault in [Fault::TooManyRequests { retry_after: 1 }, Fault::Answer(StatusCode::SERVICE_UNAVAILABLE)] {
        cluster.survives("watch_errors_total", &RESOURCES, || {
            for resource in RESOURCES {
                cluster.faults().inject_times(watches_of(resource), fault.clone(), 2);
                cluster.faults().inject_times(Target::any().verb("list").resource(resource), fault.clone(), 2);
            }
            cluster.sandbox.cloud.kubernetes.compact();
            cluster.faults().cut_watches();
        });
    }
    cluster.while_steady_is_served(|| {
        for resource in RESOURCES {
            cluster.faults().inject_times(watches_of(resource), Fault::Delay(Duration::from_secs(2)), 1);
        }
        cluster.faults().end_watches();
        cluster.sandbox.add_service_account("team-a", "web", "meanwhile").unwrap();
        eventually("what changed meanwhile", || cluster.role() == Ok("meanwhile".to_owned()));
        cluster.hears_of_changes();
    });
}

#[test]
fn a_role_that_changes_while_the_api_server_is_away_is_in_force_once_it_is_watched() {
    let cluster = Cluster::new();
    let kubernetes = &cluster.sandbox.cloud.kubernetes;
    cluster.survives("watch_errors_total", &RESOURCES, || {
        cluster.sandbox.cloud.stop_api();
        cluster.sandbox.add_service_account("team-a", "web", "meanwhile").unwrap();
        thread::sleep(Duration::from_secs(10));
        assert_eq!(cluster.role(), Ok("web".to_owned()), "what is known is served");
        // Each of five watches is cut, and is refused then.
        let said = cluster.daemon.log().matches("the watch broke").count();
        assert!((5..=10).contains(&said), "{said} times");
        cluster.sandbox.cloud.start_api().unwrap();
        eventually("its accounts are watched", || {
            let of_team_a = "/api/v1/namespaces/team-a/serviceaccounts";
            kubernetes.open_watches().iter().any(|watch| watch.path == of_team_a)
        });
        cluster.soon("the new role", || cluster.role() == Ok("meanwhile".to_owned()));
        let old = ask(&cluster.web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
        assert_eq!(old.status, 404, "the old role's credentials");
    });
}
