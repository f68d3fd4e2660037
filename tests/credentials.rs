//! Credentials over time: fetched before they are asked for, once for all who ask, within what STS may be asked,
//! and there while STS is not.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{NewPod, PodPhase, PodStatus},
    sandbox::{AUDIENCE, NODE, Sandbox},
    sts::{Fault, Which},
};
use support::{Daemon, ROLE_NAME, ask, connect, eventually, pod, role_status, total, with_a_pod, with_an_account};

const EXCHANGE: &str = "AssumeRoleWithWebIdentity";
const DOCUMENT: &str = "/latest/meta-data/iam/security-credentials/web";

fn exchanges(sandbox: &Sandbox) -> u64 {
    sandbox.cloud.sts.call_count(EXCHANGE)
}

/// Pods with an object and an address, but without a network: enough to be foreseen.
fn crowd(sandbox: &Sandbox, pods: u8) {
    for number in 0..pods {
        let name = format!("crowd-{number}");
        sandbox.create_pod("team-a", &name, "web");
        let address = IpAddr::from(Ipv4Addr::new(10, 244, 1, number));
        sandbox.cloud.kubernetes.run_pod("team-a", &name, &[address]);
    }
}

#[test]
fn a_pod_has_its_credentials_before_it_asks_and_nothing_of_them_is_on_disk() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let web = pod(&sandbox);
    eventually("they are fetched", || exchanges(&sandbox) == 1);
    for path in [ROLE_NAME, DOCUMENT, DOCUMENT] {
        assert_eq!(ask(&web, "GET", path, &[]).unwrap().status, 200);
    }
    assert_eq!(exchanges(&sandbox), 1);
    let kept = std::fs::read_dir(sandbox.state_dir()).unwrap().map(|file| file.unwrap().file_name());
    let mut kept = kept.collect::<Vec<_>>();
    kept.sort();
    assert_eq!(kept, ["handover.sock", "session.key", "session.lock"]);
}

#[test]
fn a_pod_that_brings_its_own_token_is_served_when_it_asks_and_not_before() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let mutated = NewPod::new("team-a", "mutated").service_account("web").node(NODE).token(AUDIENCE);
    sandbox.cloud.kubernetes.create_pod(mutated);
    let plain = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    for pod in [&web, &plain] {
        assert_eq!(role_status(pod), 200);
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(exchanges(&sandbox), 2, "one for each of the others");
    assert_eq!(total(&sandbox, "kube2irsa_pods"), 4.0, "with the daemon's own");
}

#[test]
fn a_pod_that_has_finished_costs_nothing_more() {
    let (sandbox, _web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("the other pod has an hour", || exchanges(&sandbox) == 1);
    sandbox.cloud.sts.set_max_life(Some(Duration::from_secs(4)));
    let job = sandbox.add_pod("team-a", "job", "web").unwrap();
    assert_eq!(role_status(&job), 200);
    let slots = || total(&sandbox, "kube2irsa_sessions");
    assert_eq!(slots(), 2.0);
    sandbox.cloud.kubernetes.set_pod_status("team-a", "job", PodStatus::new(PodPhase::Succeeded, &[]));
    eventually("its credentials are gone", || slots() == 1.0);
    let before = exchanges(&sandbox);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(exchanges(&sandbox), before, "they would have been renewed by now");
}

#[test]
fn a_thousand_callers_of_a_cold_pod_cost_one_call_whatever_comes_of_it() {
    for (trusted, half_leave, status) in [("team-a", false, 200), ("team-a", true, 200), ("team-b", false, 403)] {
        // Until the role is named nothing can be fetched, and the connections can be opened.
        let (sandbox, web) = with_a_pod();
        let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
        let trust = sandbox.trust_policy(&format!("system:serviceaccount:{trusted}:web"));
        sandbox.cloud.sts.put_role(&role, trust).unwrap();
        sandbox.annotate("team-a", "web", &[]);
        let daemon = Daemon::ready(&sandbox, &[]);
        let mut connections = (0..1000).map(|_| connect(&web).unwrap()).collect::<Vec<_>>();
        sandbox.cloud.sts.faults().hold();
        sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", &role)]);
        eventually("STS is asked", || sandbox.cloud.sts.faults().held() == 1);
        for connection in &mut connections {
            connection.send("GET", DOCUMENT, &[]).unwrap();
        }
        if half_leave {
            thread::sleep(Duration::from_millis(100));
            connections.truncate(500);
        }
        sandbox.cloud.sts.faults().release();
        let released = Instant::now();
        let answers = connections.iter_mut().map(|connection| connection.answer().unwrap()).collect::<Vec<_>>();
        // A document that cannot be had is 503, its reason is told at the list.
        let of_document = if status == 200 { 200 } else { 503 };
        assert!(answers.iter().all(|answer| answer.status == of_document), "{}", daemon.log());
        assert!(answers.iter().all(|answer| answer.body == answers[0].body));
        assert_eq!(role_status(&web), status);
        // A refusal is remembered for half a second at least; on a busy machine the last callers may come later.
        let remembered = if status == 200 { 0 } else { u64::try_from(released.elapsed().as_millis()).unwrap() / 500 };
        let exchanges = exchanges(&sandbox);
        assert!((1..=1 + remembered).contains(&exchanges), "{exchanges}");
    }
}

#[test]
fn pods_that_start_together_are_served_within_what_sts_may_be_asked() {
    const RATE: u32 = 20;
    const PODS: u8 = 250;
    let sandbox = with_an_account();
    crowd(&sandbox, PODS);
    sandbox.cloud.sts.faults().set_latency(Duration::from_millis(200));
    let rate = RATE.to_string();
    let start = Instant::now();
    let _daemon = Daemon::started(&sandbox, &["--sts-rate", &rate, "--sts-burst", "20"]);
    eventually("all are served", || exchanges(&sandbox) >= PODS.into());
    println!("{PODS} cold pods, {RATE} calls a second and 20 at once: all served after {:?}", start.elapsed());
    let calls = sandbox.cloud.sts.calls();
    let sessions = calls.iter().filter_map(|call| call.session_name.as_ref()).collect::<HashSet<_>>();
    assert_eq!((calls.len(), sessions.len()), (PODS.into(), PODS.into()), "one call and one session for each");
    for (first, from) in calls.iter().enumerate() {
        for (last, to) in calls.iter().enumerate().skip(first) {
            // Calls that were on their way for unlike times may come closer together than they were made.
            let may = 20.0 + 16.0 + f64::from(RATE) * to.at.saturating_duration_since(from.at).as_secs_f64();
            let made = f64::from(u32::try_from(last - first + 1).unwrap());
            assert!(made <= may, "{made} calls where {may} may be made");
        }
    }
}

#[test]
fn pods_that_start_together_are_all_served_though_sts_throttles_every_other_call() {
    const PODS: u8 = 50;
    let sandbox = with_an_account();
    crowd(&sandbox, PODS);
    sandbox.cloud.sts.faults().fail(Fault::Throttling, Which::EveryOther);
    let _daemon = Daemon::started(&sandbox, &["--sts-rate", "50"]);
    let served = || sandbox.cloud.sts.calls().into_iter().filter(|call| call.outcome == "Success").count();
    eventually("all are served", || served() == usize::from(PODS));
    println!("{PODS} pods, every other call throttled: {} calls", exchanges(&sandbox));
}

#[test]
fn sts_away_is_not_noticed_until_the_credentials_end_and_not_overrun_when_it_is_back() {
    const LIFE: Duration = Duration::from_secs(24);
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.sts.set_max_life(Some(LIFE));
    let start = Instant::now();
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200);
    sandbox.cloud.sts.faults().fail(Fault::ServiceUnavailable, Which::All);
    let served = exchanges(&sandbox);
    let mut requests = 0;
    let refused = loop {
        let answer = ask(&web, "GET", DOCUMENT, &[]).unwrap();
        if answer.status != 200 {
            break answer;
        }
        requests += 1;
        thread::sleep(Duration::from_millis(20));
    };
    let lived = start.elapsed();
    // What STS gives ends in whole seconds.
    assert!(lived >= LIFE - Duration::from_secs(1), "{lived:?}");
    assert_eq!((refused.status, refused.body.len()), (503, 0));
    assert_eq!(role_status(&web), 503);
    let away = exchanges(&sandbox) - served;
    sandbox.cloud.sts.faults().clear();
    let back = Instant::now();
    eventually("it is served again", || role_status(&web) == 200);
    let after = back.elapsed();
    let calls = exchanges(&sandbox) - served - away;
    println!(
        "{requests} requests served in {lived:?} without STS, which was tried {away} times; back: {calls} call, {after:?}"
    );
    assert_eq!(calls, 1);
    assert!(after < Duration::from_secs(5), "within one interval of 4 s: {after:?}");
    assert!(away <= 40, "{away}");
}

#[test]
fn what_is_mended_in_the_service_account_is_in_force_at_once() {
    let (sandbox, web) = with_a_pod();
    let wrong = format!("arn:aws:iam::{ACCOUNT}:role/no-such-role");
    sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", &wrong)]);
    let _daemon = Daemon::ready(&sandbox, &[]);
    for _ in 0..200 {
        assert_eq!(role_status(&web), 403);
    }
    let asked = exchanges(&sandbox);
    assert!(asked <= 4, "{asked}");
    let right = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", &right)]);
    let mended = Instant::now();
    eventually("it is served", || role_status(&web) == 200);
    println!("refused 200 times with {asked} calls; mended: served after {:?}", mended.elapsed());
    assert!(mended.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_shared_session_is_one_call_for_all_pods_of_a_service_account() {
    let sandbox = with_an_account();
    sandbox.add_service_account("team-a", "worker", "worker").unwrap();
    crowd(&sandbox, 20);
    let pods = [
        sandbox.add_pod("team-a", "web-0", "web").unwrap(),
        sandbox.add_pod("team-a", "web-1", "web").unwrap(),
        sandbox.add_pod("team-a", "worker-0", "worker").unwrap(),
    ];
    let _daemon = Daemon::ready(&sandbox, &["--session-scope", "service-account"]);
    let keys = pods.iter().map(|pod| {
        assert_eq!(role_status(pod), 200);
        let name = ask(pod, "GET", ROLE_NAME, &[]).unwrap().text().to_owned();
        let document = ask(pod, "GET", &format!("{ROLE_NAME}{name}"), &[]).unwrap().json();
        document["AccessKeyId"].as_str().unwrap().to_owned()
    });
    let keys = keys.collect::<Vec<_>>();
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], keys[2]);
    assert_eq!(exchanges(&sandbox), 2);
    let names = sandbox.cloud.sts.calls().into_iter().filter_map(|call| call.session_name);
    assert!(names.into_iter().any(|name| name.starts_with("team-a.web-")), "the service account's name");
}
