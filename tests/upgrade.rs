//! One daemon follows another on the same node, and no pod notices.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    env, io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::sandbox::{Pod, Sandbox};
use support::{Daemon, ROLE_NAME, ask, connect, eventually, http, rules, with_a_pod};

const CLIENTS: usize = 32;
/// How often in a row; a command of its own does more (`make test-upgrades`).
const UPGRADES: &str = "KUBE2IRSA_UPGRADES";

/// What clients saw.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicUsize,
    longest: AtomicUsize,
}

/// Asks without pause until told to stop: on one connection for as long as it lasts, or on a new one each time. The
/// first failure ends it.
fn client(pod: &Pod, keeps: bool, seen: &Seen) -> io::Result<()> {
    let mut kept: Option<http::Connection> = None;
    while !seen.stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => connect(pod)?,
        };
        connection.send("GET", ROLE_NAME, &[])?;
        let answer = connection.answer()?;
        if answer.status != 200 || answer.text() != "web" {
            return Err(io::Error::other(format!("{}", answer.status)));
        }
        let took = usize::try_from(start.elapsed().as_millis()).unwrap();
        seen.longest.fetch_max(took, Ordering::Relaxed);
        seen.answered.fetch_add(1, Ordering::Relaxed);
        if keeps && answer.header("connection") != Some("close") {
            kept = Some(connection);
        }
    }
    Ok(())
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs clients while `upgrade` goes on: none of them may fail.
fn under_load(pod: &Pod, upgrade: impl FnOnce()) {
    let seen = Seen::default();
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|number| {
            scope.spawn({
                let seen = &seen;
                move || client(pod, number % 2 == 0, seen)
            })
        });
        let clients = clients.collect::<Vec<_>>();
        // Also if the upgrade fails: the scope waits for them.
        let _stop = Stop(&seen.stop);
        upgrade();
        let then = seen.answered.load(Ordering::Relaxed);
        eventually("clients go on", || {
            seen.answered.load(Ordering::Relaxed) > then + 10 * CLIENTS
                || clients.iter().any(|client| client.is_finished())
        });
        seen.stop.store(true, Ordering::Relaxed);
        let failures = clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect::<Vec<_>>();
        let answered = seen.answered.load(Ordering::Relaxed);
        println!("{answered} answers, the longest {} ms; failures: {failures:?}", seen.longest.load(Ordering::Relaxed));
        assert!(failures.is_empty(), "{failures:?}");
    });
}

fn has_credentials(pod: &Pod) {
    let has = || ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]).is_ok_and(|answer| answer.status == 200);
    eventually("credentials", has);
}

fn says(daemon: &Daemon, what: &str, times: usize) {
    eventually(what, || daemon.log().matches(what).count() == times);
}

const TAKEN: &str = "took over from the daemon that ran here";
const HANDED_OVER: &str = "handed over to the next daemon";

#[test]
fn no_request_fails_while_one_daemon_follows_another() {
    let (sandbox, web) = with_a_pod();
    // So many connections in a minute use up the ports that there are by default.
    let ports = [("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "1024 65535")];
    web.network().set(&ports).unwrap();
    let mut daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    let rules_before = rules(&sandbox);
    let upgrades = env::var(UPGRADES).map_or(3, |times| times.parse().unwrap());
    for upgrade in 1..=upgrades {
        under_load(&web, || {
            let next = Daemon::started(&sandbox, &[]);
            // Both write to one log.
            says(&next, TAKEN, upgrade);
            says(&daemon, HANDED_OVER, upgrade);
            let before = std::mem::replace(&mut daemon, next);
            assert!(before.stop().success());
        });
        daemon.wait_until_ready(&sandbox);
        assert_eq!(rules(&sandbox), rules_before, "the rules are the same, and there once");
    }
    assert_eq!(sandbox.cloud.imds.credential_requests(), 0);
}

/// The next daemon starts and gets no credentials; `end` ends it.
fn a_next_one_that_never_serves(end: impl FnOnce(Daemon)) {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    sandbox.cloud.sts.faults().hold();
    under_load(&web, || {
        let next = Daemon::started(&sandbox, &[]);
        says(&next, "it goes on until this one is ready", 1);
        thread::sleep(Duration::from_millis(500));
        assert!(!next.log().contains(TAKEN), "it has no credentials for the pod yet");
        end(next);
        says(&daemon, "did not take over", 1);
    });
    assert!(!daemon.log().contains("still in flight"), "it had nothing to wait for");
    sandbox.cloud.sts.faults().release();
    let flushed = sandbox.node().command("nft").args(["flush", "ruleset"]).status().unwrap();
    assert!(flushed.success());
    eventually("the rules are still cared for", || rules(&sandbox).contains("dnat ip to"));
    daemon.stop();
}

#[test]
fn a_daemon_goes_on_if_the_next_one_dies_half_way() {
    a_next_one_that_never_serves(Daemon::kill);
}

#[test]
fn a_next_one_that_is_told_to_stop_before_it_serves_takes_no_request() {
    a_next_one_that_never_serves(|next| assert!(next.stop().success()));
}

#[test]
fn who_has_handed_over_ends_with_an_error_when_the_next_one_ends() {
    let (sandbox, web) = with_a_pod();
    let mut daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    let next = Daemon::started(&sandbox, &[]);
    says(&daemon, HANDED_OVER, 1);
    assert!(next.stop().success());
    assert_eq!(daemon.process.wait().unwrap().code(), Some(1), "to be started again");
    let _daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
}

#[test]
fn the_next_daemon_takes_all_at_once_when_the_one_before_dies() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    sandbox.cloud.sts.faults().hold();
    let mut next = Daemon::started(&sandbox, &[]);
    says(&next, "it goes on until this one is ready", 1);
    // The socket lives on in the next daemon: not even a kill makes the kernel refuse a connection.
    daemon.kill();
    let mut connection = connect(&web).unwrap();
    sandbox.cloud.sts.faults().release();
    connection.send("GET", ROLE_NAME, &[]).unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    next.wait_until_ready(&sandbox);
}

#[test]
fn a_daemon_that_hangs_is_waited_for() {
    let (sandbox, web) = with_a_pod();
    let mut hung = Daemon::ready(&sandbox, &[]);
    hung.process.signal(Signal::SIGSTOP).unwrap();
    let mut next = Daemon::started(&sandbox, &[]);
    eventually("it waits", || next.log().contains("a daemon runs here that does not answer"));
    hung.kill();
    next.wait_until_ready(&sandbox);
    assert_eq!(support::role_status(&web), 200);
}

/// A next daemon takes the rules and does not serve; the one before goes on as if nothing had been.
fn a_next_one_that_takes_and_does_not_serve(hindered: impl Fn(&Sandbox) -> Daemon, end: impl FnOnce(Daemon)) {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    let mut next = None;
    under_load(&web, || {
        next = Some(hindered(&sandbox));
        says(&daemon, "did not take over; this one goes on", 1);
    });
    for _ in 0..2 {
        let flush = "nft flush ruleset; ip rule flush; ip rule add pref 32766 lookup main";
        assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
        eventually("the rules are cared for, whoever hangs with their lock", || {
            let rules = rules(&sandbox);
            rules.contains("dnat ip to") && rules.contains("169.254.169.254 prohibit")
        });
    }
    under_load(&web, || end(next.unwrap()));
    eventually("it is ready", || support::admin(&sandbox, "/readyz").0 == 200);
    assert_eq!(sandbox.cloud.imds.credential_requests(), 0);
    let mut after = Daemon::started(&sandbox, &[]);
    says(&after, TAKEN, 1);
    daemon.stop();
    after.wait_until_ready(&sandbox);
}

#[test]
fn a_daemon_goes_on_if_the_next_one_cannot_write_rules_and_that_one_ends() {
    let without_commands = |sandbox: &Sandbox| Daemon::started_in(sandbox, &[("PATH", "/nowhere")], &[]);
    a_next_one_that_takes_and_does_not_serve(without_commands, |mut next| {
        assert_eq!(next.process.wait().unwrap().code(), Some(1), "to be started again");
    });
}

#[test]
fn a_daemon_goes_on_if_the_next_one_stands_still_with_the_rules_and_that_one_ends_once_it_moves() {
    let slow = |sandbox: &Sandbox| {
        let mut next = Daemon::started_in(sandbox, &[("PATH", "/nowhere")], &[]);
        // It has the rules by then, and can do nothing with them.
        says(&next, "rules are not in place", 1);
        next.process.signal(Signal::SIGSTOP).unwrap();
        next
    };
    a_next_one_that_takes_and_does_not_serve(slow, |mut next| {
        next.process.signal(Signal::SIGCONT).unwrap();
        assert_eq!(next.process.wait().unwrap().code(), Some(1), "to be started again");
    });
}

#[test]
fn of_three_in_a_row_the_one_in_the_middle_may_end_first() {
    let (sandbox, web) = with_a_pod();
    let first = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    let second = Daemon::started(&sandbox, &[]);
    says(&first, HANDED_OVER, 1);
    let mut third = Daemon::started(&sandbox, &[]);
    says(&second, HANDED_OVER, 2);
    assert!(second.stop().success());
    thread::sleep(Duration::from_secs(3));
    assert!(first.stop().success(), "somebody serves: no reason to end with an error");
    third.wait_until_ready(&sandbox);
    assert_eq!(support::role_status(&web), 200);
}

#[test]
fn a_state_directory_that_was_taken_away_costs_no_upgrade() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    has_credentials(&web);
    std::fs::remove_dir_all(sandbox.state_dir()).unwrap();
    says(&daemon, "the offer of the sockets was taken away", 1);
    let mut after = None;
    under_load(&web, || {
        eventually("it is made again", || sandbox.state_dir().join("handover.sock").exists());
        let next = Daemon::started(&sandbox, &[]);
        says(&next, TAKEN, 1);
        says(&daemon, HANDED_OVER, 1);
        assert!(daemon.stop().success());
        after = Some(next);
    });
    let mut after = after.unwrap();
    after.wait_until_ready(&sandbox);
    assert_eq!(support::role_status(&web), 200);
}
