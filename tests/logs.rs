//! What the log says of pods: a line for each change, and none for each request.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{thread, time::Duration};

use sandbox::cloud::ACCOUNT;
use support::{Daemon, eventually, role_status, with_a_pod};

#[test]
fn a_role_that_stays_refused_is_one_line_however_often_the_pod_asks_and_its_mending_another() {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || role_status(&web) == 403);
    let calls = sandbox.cloud.sts.calls().len();
    // What it says of itself meanwhile is not meant.
    let of_pods = || daemon.log().lines().filter(|line| line.contains("team-a")).map(str::to_owned).collect::<Vec<_>>();
    let (all, before) = (daemon.log().lines().count(), of_pods());
    let refusals = before.iter().filter(|line| line.contains("got no credentials")).count();
    assert_eq!(refusals, 1, "{before:#?}");
    for _ in 0..1000 {
        assert_eq!(role_status(&web), 403);
        thread::sleep(Duration::from_millis(3));
    }
    assert!(sandbox.cloud.sts.calls().len() > calls, "it was refused again, else this shows nothing");
    assert_eq!(of_pods(), before, "nothing more of the pod");
    assert!(daemon.log().lines().count() < all + 10, "no line for each request: {}", daemon.log());

    let trust = sandbox.trust_policy("system:serviceaccount:team-a:web");
    sandbox.cloud.sts.put_role(&role, trust).unwrap();
    eventually("it is served", || role_status(&web) == 200);
    assert_eq!(daemon.log().matches("gets credentials again").count(), 1, "{}", daemon.log());
}
