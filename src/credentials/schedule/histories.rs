//! The schedule under random histories in injected time, and some histories that matter.

use std::time::Duration;

use super::{
    super::slot::Failure,
    Limits,
    simulation::{Answer, LONGEST_LIFE, Simulation},
};
use crate::histories::all;

const CASES: u64 = 100_000;
const CASES_AT_LENGTH: u64 = 10_000_000;
const FAILURES: [Failure; 3] = [Failure::Transient, Failure::Throttled, Failure::Permanent];
const AS_BY_DEFAULT: Limits = Limits { in_flight: 16, per_second: 5.0, burst: 20 };

#[test]
fn whatever_happens_nothing_expired_is_served_and_no_slot_is_without_the_fetch_that_it_needs() {
    all(CASES, live);
}

#[test]
#[ignore = "takes minutes: make test-histories"]
fn ten_million_histories() {
    all(CASES_AT_LENGTH, live);
}

fn live(random: &mut fastrand::Rng) {
    let limits = Limits {
        in_flight: random.usize(1..=3),
        per_second: random.choice([0.5, 5.0, 100.0]).unwrap(),
        burst: random.u32(1..=4),
    };
    let mut node = Simulation::new(random.fork(), limits);
    let mut next_pod = 0;
    for _ in 0..random.u32(8..25) {
        let pods = node.pods();
        let any = random.choice(&pods).copied();
        match (random.u8(..20), any) {
            (0..=2, _) | (3..=12, None) => {
                next_pod += 1;
                if random.bool() {
                    node.foresee(next_pod);
                } else {
                    let _ = node.ask(next_pod);
                }
            }
            (3..=9, Some(pod)) => drop(node.ask(pod)),
            (10, Some(pod)) => node.retire(pod),
            (11 | 12, Some(pod)) => {
                // One that asks all the time.
                for _ in 0..random.u32(1..8) {
                    let _ = node.ask(pod);
                    node.pass(Duration::from_millis(random.u64(1..60_000)));
                }
            }
            (13, _) => {
                let shift = Duration::from_secs(random.u64(..8000));
                let wall = node.now.wall;
                node.step_wall(if random.bool() { wall + shift } else { wall - shift });
            }
            (14 | 15, _) => {
                node.answer = match random.usize(..6) {
                    failure @ 0..=2 => Answer::Fails(FAILURES[failure]),
                    _ => Answer::Good,
                };
                node.latency = Duration::from_millis(random.u64(1..2000));
                node.life = Duration::from_secs(random.choice([24, 900, 3600, LONGEST_LIFE.as_secs()]).unwrap());
            }
            _ => {
                let longest = random.choice([10, 1000, 60_000, 3_600_000]).unwrap();
                node.pass(Duration::from_millis(random.u64(1..=longest)));
            }
        }
    }
    // In the end all is well: whoever asks is served.
    node.answer = Answer::Good;
    node.life = Duration::from_secs(3600);
    for pod in node.pods() {
        for _ in 0..200 {
            if node.ask(pod).is_ok() {
                break;
            }
            node.pass(Duration::from_millis(500));
        }
        assert!(node.served(pod), "it asked for a hundred seconds");
    }
}

fn node(pods: u64) -> Simulation {
    let mut node = Simulation::new(fastrand::Rng::with_seed(7), AS_BY_DEFAULT);
    (1..=pods).for_each(|pod| node.foresee(pod));
    node
}

/// Each pod asks once; how many were given something, and the least of a life that was left in it.
fn all_ask(node: &mut Simulation) -> (usize, f64) {
    let answers = node.pods().into_iter().filter_map(|pod| node.ask(pod).ok()).collect::<Vec<_>>();
    (answers.len(), answers.iter().copied().fold(1.0, f64::min))
}

#[test]
fn two_hundred_and_fifty_cold_pods_are_ready_when_the_budget_says_so() {
    let mut node = node(250);
    let ready = |node: &Simulation| node.pods().into_iter().filter(|pod| node.served(*pod)).count();
    // (250 - 20 at once) / 5 a second = 46 s; each fetch makes one call or two here, so up to twice that.
    let mut seconds = 0;
    while ready(&node) < 250 {
        node.pass(Duration::from_secs(1));
        seconds += 1;
    }
    assert!((46..=100).contains(&seconds), "{seconds}");
    assert_eq!(node.fetched.len(), 250);
}

#[test]
fn in_normal_running_at_least_five_twelfths_of_a_life_are_left() {
    for life in [900, 3600, 43_200] {
        let mut node = node(250);
        node.life = Duration::from_secs(life);
        node.pass(Duration::from_secs(120));
        let mut least = 1.0_f64;
        for _ in 0..600 {
            node.pass(Duration::from_secs(life) / 100);
            let (served, left) = all_ask(&mut node);
            assert_eq!(served, 250);
            least = least.min(left);
        }
        assert!(least >= 5.0 / 12.0, "{life}: {least}");
        let renewals = node.fetched.len() - 250;
        // Six lives, a renewal each half of a life or up to a tenth of it earlier.
        assert!((250 * 11..=250 * 16).contains(&renewals), "{life}: {renewals}");
    }
}

#[test]
fn sts_away_for_an_hour_is_not_noticed_while_credentials_live_and_makes_no_stampede_when_it_is_back() {
    let mut node = node(250);
    node.pass(Duration::from_secs(1500));
    assert_eq!(all_ask(&mut node).0, 250);
    // Renewals are due from 24 to 30 minutes on.
    node.answer = Answer::Fails(Failure::Transient);
    let before = node.fetched.len();
    let mut failed_at = None;
    for minute in 0..60 {
        node.pass(Duration::from_secs(60));
        let (served, _) = all_ask(&mut node);
        if served < 250 {
            failed_at = failed_at.or(Some(minute));
        }
    }
    // The youngest credentials are 46 s younger than the oldest, all an hour old after 2100 s = 35 minutes from here.
    let failed_at = failed_at.unwrap();
    assert!((33..=36).contains(&failed_at), "the first request without credentials, in minute {failed_at}");
    let pod = node.pods()[0];
    assert_eq!(node.ask(pod), Err(Some(Failure::Transient)));
    let tries = node.fetched.len() - before;
    assert!(tries <= 5 * 3600 + 20, "{tries}");

    node.answer = Answer::Good;
    let before = node.fetched.len();
    let mut seconds = 0;
    while all_ask(&mut node).0 < 250 {
        node.pass(Duration::from_secs(1));
        seconds += 1;
    }
    let calls = node.fetched.len() - before;
    println!("away: {tries} calls in an hour; back: all served after {seconds} s with {calls} calls");
    assert!(calls <= 250 + 16, "each once, and what was in flight: {calls}");
    assert!(seconds <= 100, "{seconds}");
}

#[test]
fn a_role_that_is_refused_costs_little_however_often_it_is_asked_for() {
    let mut node = node(0);
    node.answer = Answer::Fails(Failure::Permanent);
    for _ in 0..10_000 {
        assert!(node.ask(1).is_err());
        node.pass(Duration::from_millis(60));
    }
    println!("{} calls for 10,000 requests in ten minutes", node.fetched.len());
    assert!((20..=50).contains(&node.fetched.len()), "{}", node.fetched.len());
    // Mended in the service account: its slot is another.
    node.retire(1);
    node.answer = Answer::Good;
    node.foresee(2);
    node.pass(Duration::from_millis(200));
    assert!(node.ask(2).is_ok(), "after one call");
}

#[test]
fn where_sts_asks_for_fewer_calls_the_burst_is_forfeited() {
    let mut node = Simulation::new(fastrand::Rng::with_seed(7), Limits { in_flight: 1, per_second: 1.0, burst: 10 });
    node.answer = Answer::Fails(Failure::Throttled);
    (1..=5).for_each(|pod| node.foresee(pod));
    node.pass(Duration::from_millis(900));
    assert_eq!(node.fetched.len(), 1);
    node.pass(Duration::from_millis(9_000));
    assert!(node.fetched.len() > 1);
}

#[test]
fn pods_whose_role_is_refused_do_not_keep_others_from_their_renewals() {
    let limits = Limits { in_flight: 16, per_second: 1.0, burst: 5 };
    let mut node = Simulation::new(fastrand::Rng::with_seed(7), limits);
    node.life = Duration::from_secs(900);
    (1..=20).for_each(|pod| node.foresee(pod));
    node.pass(Duration::from_secs(60));
    let good = node.pods();
    // Sixty others are refused and ask all the time: two calls a second, of one that may be made.
    node.refused = (100..160).collect();
    for step in 0..900 {
        for pod in 100..160 {
            assert!(node.ask(pod).is_err());
        }
        node.pass(Duration::from_secs(3));
        assert!(good.iter().all(|pod| node.ask(*pod).is_ok()), "second {}", step * 3);
    }
}

#[test]
fn pods_whose_renewals_are_refused_do_not_keep_one_waiting_that_asks() {
    let mut node = node(250);
    node.pass(Duration::from_secs(120));
    node.refused = (1..=250).collect();
    // Of all their credentials less than a quarter of the life is left.
    for _ in 0..46 {
        node.pass(Duration::from_secs(60));
        assert_eq!(all_ask(&mut node).0, 250);
    }
    for pod in 1001..=1010 {
        assert!(node.ask(pod).is_err());
        node.pass(Duration::from_secs(3));
        assert!(node.served(pod), "{pod}");
    }
}
