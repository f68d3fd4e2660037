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
    assert_eq!(role_status(&web), 403);
    let (calls, log) = (sandbox.cloud.sts.calls().len(), daemon.log());
    assert_eq!(log.matches("got no credentials").count(), 1, "{log}");
    for _ in 0..1000 {
        assert_eq!(role_status(&web), 403);
        thread::sleep(Duration::from_millis(3));
    }
    assert!(sandbox.cloud.sts.calls().len() > calls, "it was refused again, else this shows nothing");
    assert_eq!(daemon.log(), log, "the log has not grown");

    let trust = sandbox.trust_policy("system:serviceaccount:team-a:web");
    sandbox.cloud.sts.put_role(&role, trust).unwrap();
    eventually("it is served", || role_status(&web) == 200);
    assert_eq!(daemon.log().matches("gets credentials again").count(), 1, "{}", daemon.log());
}
