use std::time::SystemTime;

use super::*;
use crate::sts::Session;

fn start() -> Now {
    Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), monotonic: Instant::now() }
}

fn after(now: Now, seconds: f64) -> Now {
    let passed = Duration::from_secs_f64(seconds);
    Now { wall: now.wall + passed, monotonic: now.monotonic + passed }
}

fn document(now: Now, life: u64) -> Arc<Document> {
    let session = Session {
        access_key_id: "ASIA".to_owned(),
        secret_access_key: "s".into(),
        session_token: "t".into(),
        expiration: now.wall + Duration::from_secs(life),
        shortened: false,
    };
    let role = "arn:aws:iam::111122223333:role/web".parse().unwrap();
    Arc::new(Document::new(&session, &role, now).unwrap())
}

fn fetching(failures: u32) -> State {
    State::Fetching { priority: Priority::Asked, after: None, failures }
}

fn fresh(now: Now, life: u64, chance: f64) -> (State, Instant) {
    match (fetching(0)).step(Event::Fetched(document(now, life)), now, chance) {
        (state @ State::Fresh { .. }, Step::Wake(due)) => (state, due),
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_callers_cause_one_fetch() {
    let now = start();
    let (state, step) = State::Empty.step(Event::Wanted, now, 0.0);
    assert_eq!(step, Step::Fetch(Priority::Asked));
    let (_, step) = state.step(Event::Wanted, now, 0.0);
    assert_eq!(step, Step::Rest);
}

#[test]
fn renewal_is_due_at_half_of_the_life_or_up_to_a_tenth_earlier_whatever_the_life() {
    let now = start();
    for life in [24_u64, 900, 3600, 43200] {
        let whole = Duration::from_secs(life);
        assert_eq!(fresh(now, life, 0.0).1, now.monotonic + whole / 2, "{life}");
        assert_eq!(fresh(now, life, 1.0).1, now.monotonic + whole / 2 - whole / 10, "{life}");
    }
}

#[test]
fn a_failed_renewal_leaves_the_old_document_until_its_end() {
    let now = start();
    let (state, _) = fresh(now, 3600, 0.0);
    let half = after(now, 1800.0);
    let (mut state, step) = state.step(Event::Due { idle: false }, half, 0.0);
    assert_eq!(step, Step::Fetch(Priority::Renewal));
    let mut time = half;
    let mut tries = 0;
    loop {
        let (next, step) = state.step(Event::Refused(Failure::Permanent), time, 0.9);
        let State::Fresh { .. } = next else {
            assert!(matches!(next, State::Failed { .. }), "{next:?}");
            break;
        };
        let Step::Wake(due) = step else { panic!("{step:?}") };
        time = after(now, (due - now.monotonic).as_secs_f64());
        assert!(time.monotonic <= now.monotonic + Duration::from_secs(3600), "never later than the end");
        (state, _) = next.step(Event::Due { idle: false }, time, 0.0);
        tries += 1;
    }
    assert_eq!(time.monotonic, now.monotonic + Duration::from_secs(3600));
    assert!((30..60).contains(&tries), "about one a minute, {tries}");
}

#[test]
fn a_remembered_failure_is_tried_again_only_when_its_time_has_come_and_somebody_asks() {
    let now = start();
    let (state, step) = (fetching(3)).step(Event::Refused(Failure::Permanent), now, 0.0);
    assert_eq!(step, Step::Rest);
    let (asked, step) = state.clone().step(Event::Wanted, after(now, 1.0), 0.0);
    assert_eq!(step, Step::Wake(now.monotonic + Duration::from_secs(4)));
    let (_, step) = state.step(Event::Due { idle: false }, after(now, 5.0), 0.0);
    assert_eq!(step, Step::Rest, "nobody asked");
    let (_, step) = asked.step(Event::Due { idle: false }, after(now, 5.0), 0.0);
    assert_eq!(step, Step::Fetch(Priority::Expired));
}

#[test]
fn failures_are_remembered_for_growing_times_up_to_a_limit() {
    let until = |failure, failures| {
        let now = start();
        match (fetching(failures)).step(Event::Refused(failure), now, 1.0).0 {
            State::Failed { until, .. } => until - now.monotonic,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(until(Failure::Transient, 0), Duration::from_millis(250));
    assert_eq!(until(Failure::Transient, 40), Duration::from_secs(4));
    assert_eq!(until(Failure::Permanent, 0), Duration::from_secs(1));
    assert_eq!(until(Failure::Permanent, 40), Duration::from_secs(30));
}

#[test]
fn a_slot_that_nobody_read_for_a_whole_life_is_given_up_and_a_gone_one_stays_gone() {
    let now = start();
    let (state, _) = fresh(now, 3600, 0.0);
    let (state, step) = state.step(Event::Due { idle: true }, after(now, 1800.0), 0.0);
    assert!(matches!((&state, step), (State::Gone, Step::Rest)));
    let (state, step) = state.step(Event::Fetched(document(now, 3600)), now, 0.0);
    assert!(matches!((&state, step), (State::Gone, Step::Rest)));
}

#[test]
fn a_failed_slot_that_nobody_reads_is_given_up_too() {
    let now = start();
    let (state, _) = fetching(0).step(Event::Refused(Failure::Transient), now, 0.0);
    let (_, step) = state.clone().step(Event::Due { idle: false }, after(now, 60.0), 0.0);
    assert_eq!(step, Step::Fetch(Priority::Expired));
    let (state, step) = state.step(Event::Due { idle: true }, after(now, 60.0), 0.0);
    assert!(matches!((&state, step), (State::Gone, Step::Rest)));
}

#[test]
fn a_timer_of_an_earlier_state_does_nothing() {
    let now = start();
    let (state, _) = fresh(now, 3600, 0.0);
    let (state, step) = state.step(Event::Due { idle: false }, after(now, 10.0), 0.0);
    assert!(matches!((&state, step), (State::Fresh { .. }, Step::Rest)));
}

#[test]
fn a_caller_of_expired_credentials_causes_a_fetch() {
    let now = start();
    let (state, _) = fresh(now, 24, 0.0);
    let (state, step) = state.step(Event::Wanted, after(now, 24.0), 0.0);
    assert!(matches!((&state, step), (State::Fetching { .. }, Step::Fetch(Priority::Asked))));
}

#[test]
fn what_was_foreseen_becomes_urgent_when_it_is_asked_for() {
    let now = start();
    let (state, step) = State::Empty.step(Event::Foreseen, now, 0.0);
    assert_eq!(step, Step::Fetch(Priority::Prefetch));
    let (state, step) = state.step(Event::Wanted, now, 0.0);
    assert_eq!(step, Step::Fetch(Priority::Asked));
    assert!(matches!(
        state.step(Event::Foreseen, now, 0.0),
        (State::Fetching { priority: Priority::Asked, .. }, Step::Rest)
    ));
}

#[test]
fn a_passing_failure_is_tried_again_by_itself_and_sooner_if_somebody_asks() {
    for (failure, by_itself, asked) in [(Failure::Transient, 1000, 250), (Failure::Throttled, 500, 500)] {
        let now = start();
        let (state, _) = State::Empty.step(Event::Foreseen, now, 0.0);
        let (state, step) = state.step(Event::Refused(failure), now, 1.0);
        assert_eq!(step, Step::Wake(now.monotonic + Duration::from_millis(by_itself)));
        let (_, step) = state.clone().step(Event::Due { idle: false }, after(now, 1.0), 0.0);
        assert_eq!(step, Step::Fetch(Priority::Prefetch));
        let (state, step) = state.step(Event::Wanted, now, 0.0);
        assert_eq!(step, Step::Wake(now.monotonic + Duration::from_millis(asked)));
        let (_, step) = state.step(Event::Due { idle: false }, after(now, 1.0), 0.0);
        assert_eq!(step, Step::Fetch(Priority::Asked));
    }
}

#[test]
fn who_asks_while_a_permanent_failure_is_tried_again_does_not_make_it_urgent() {
    let now = start();
    let (state, _) = fetching(0).step(Event::Refused(Failure::Permanent), now, 1.0);
    let (state, _) = state.step(Event::Wanted, now, 0.0);
    let (state, step) = state.step(Event::Due { idle: false }, after(now, 1.0), 0.0);
    assert_eq!(step, Step::Fetch(Priority::Expired));
    assert_eq!(state.step(Event::Wanted, after(now, 1.0), 0.0).1, Step::Rest);
}

#[test]
fn a_wall_clock_that_is_set_forward_makes_a_renewal_due_and_one_set_back_keeps_nothing_alive() {
    let now = start();
    let (state, _) = fresh(now, 3600, 0.0);
    let forward = Now { wall: now.wall + Duration::from_secs(2000), ..now };
    assert_eq!(state.clone().step(Event::Due { idle: false }, forward, 0.0).1, Step::Fetch(Priority::Renewal));
    let forward = Now { wall: now.wall + Duration::from_secs(3600), ..now };
    assert_eq!(state.clone().step(Event::Due { idle: false }, forward, 0.0).1, Step::Fetch(Priority::Expired));
    let back = Now { wall: now.wall - Duration::from_secs(9999), ..after(now, 3600.0) };
    assert_eq!(state.step(Event::Wanted, back, 0.0).1, Step::Fetch(Priority::Asked));
}
