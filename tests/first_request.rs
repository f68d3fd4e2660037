//! A request that comes before its pod is known: it waits, is answered as soon as the pod is known, and in time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use sandbox::sandbox::{Pod, Sandbox};
use support::{Daemon, ROLE_NAME, ask, http::Answer, metric, with_a_pod};

const ROUNDS: usize = 20;
/// A node looks up two addresses a second.
const ONCE_IN: Duration = Duration::from_millis(600);
/// How long before it is known a pod asks: it is looked up later, on a busy machine too.
const AHEAD: Duration = Duration::from_millis(100);
/// What is promised, and what a busy machine may add to it.
const IN_TIME: Duration = Duration::from_millis(950 + 2000);

/// Asks for the pod's role; the answer, and when it came.
fn role(pod: &Pod) -> (Answer, Instant) {
    let start = Instant::now();
    let answer = ask(pod, "GET", ROLE_NAME, &[]).unwrap();
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    (answer, Instant::now())
}

/// Pods that ask `ahead` of what makes them known; how long after it they were answered, sorted.
fn answered_after(sandbox: &Sandbox, ahead: Duration) -> Vec<Duration> {
    let mut delays = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let name = format!("early-{round}");
        let pod = sandbox.start_pod("team-a", &name, "web").unwrap();
        thread::scope(|scope| {
            let asked = scope.spawn(|| role(&pod));
            thread::sleep(ahead);
            assert!(!asked.is_finished(), "it waits for its pod");
            let known = Instant::now();
            sandbox.cloud.kubernetes.run_pod("team-a", &name, &[pod.address()]);
            let (answer, at) = asked.join().unwrap();
            assert_eq!((answer.status, answer.text()), (200, "web"));
            delays.push(at - known);
        });
        sandbox.remove_pod(pod).unwrap();
        thread::sleep(ONCE_IN.saturating_sub(begun.elapsed()));
    }
    delays.sort();
    delays
}

#[test]
fn by_the_watch_it_is_answered_as_soon_as_its_pod_is_known() {
    let (sandbox, _web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let delays = answered_after(&sandbox, AHEAD);
    println!("after the watch told of it: median {:?}, worst {:?}", delays[ROUNDS / 2], delays[ROUNDS - 1]);
    // On a busy machine the look-up may come before the watch's news now and then.
    let looked_up = metric(&sandbox, "kube2irsa_lookups_total{result=\"found\"}");
    assert!(looked_up < (ROUNDS / 2) as f64, "{looked_up}");
}

#[test]
fn while_the_watch_is_silent_it_is_answered_as_soon_as_its_pod_is_looked_up() {
    let (sandbox, _web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.kubernetes.faults().hold_watches();
    // It is looked up 0.4 s after it came.
    let delays = answered_after(&sandbox, AHEAD);
    println!("looked up 0.3 s after it was known: median {:?}, worst {:?}", delays[ROUNDS / 2], delays[ROUNDS - 1]);
    assert_eq!(metric(&sandbox, "kube2irsa_lookups_total{result=\"found\"}"), ROUNDS as f64);
}

#[test]
fn a_pod_that_does_not_become_known_or_whose_role_does_not_is_told_so_in_time() {
    let (sandbox, _web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let unknown = sandbox.start_pod("team-a", "unknown", "web").unwrap();
    let without_account = sandbox.add_pod("team-a", "without-account", "nobody").unwrap();
    for pod in [&unknown, &without_account] {
        assert_eq!(role(pod).0.status, 503);
    }
}
