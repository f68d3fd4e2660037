use std::net::Ipv4Addr;

use super::*;
use crate::histories;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        connections_per_pod: 3,
        connections: 5,
        requests_per_second: 10,
        request_burst: 4,
        request_head: 16 * 1024,
        request_body: 1024,
        request_timeout: 5 * SECOND,
        idle_timeout: 60 * SECOND,
    }
}

fn pod(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn known(admission: &Admission) -> usize {
    admission.state().addresses.len()
}

#[test]
fn a_pod_has_no_more_connections_than_it_may_and_leaves_others_theirs() {
    let now = Instant::now();
    let admission = Admission::new(limits(), now);
    let mut places = (0..3).map(|_| admission.admit(pod(1), now).unwrap()).collect::<Vec<_>>();
    assert_eq!(admission.admit(pod(1), now).unwrap_err(), Refused::Pod);
    places.extend((0..2).map(|_| admission.admit(pod(2), now).unwrap()));
    assert_eq!(admission.admit(pod(3), now).unwrap_err(), Refused::Node);
    places.pop();
    assert_eq!(admission.admit(pod(1), now).unwrap_err(), Refused::Pod);
    assert!(admission.admit(pod(3), now).is_ok());
}

#[test]
fn what_is_above_the_burst_waits_its_turn_and_the_rate_is_kept() {
    let now = Instant::now();
    let admission = Admission::new(limits(), now);
    let place = admission.admit(pod(1), now).unwrap();
    let wait = |at| {
        place.turn(at).map_or(Duration::ZERO, |turn| {
            let wait = turn.wait();
            turn.take();
            wait
        })
    };
    assert_eq!([(); 4].map(|()| wait(now)), [Duration::ZERO; 4]);
    assert_eq!([(); 3].map(|()| wait(now).as_millis()), [100, 200, 300]);
    // After 0.7 s all of these have had their turn, and nothing is left.
    let later = now + Duration::from_millis(300);
    assert_eq!(wait(later).as_millis(), 100);
    let rested = now + 10 * SECOND;
    assert_eq!([(); 5].map(|()| wait(rested).as_millis()), [0, 0, 0, 0, 100]);
    let another = admission.admit(pod(2), now).unwrap();
    assert!(another.turn(now).is_none(), "another pod's share is its own");
}

#[test]
fn the_share_is_the_pods_not_the_connections() {
    let now = Instant::now();
    let admission = Admission::new(limits(), now);
    let (first, second) = (admission.admit(pod(1), now).unwrap(), admission.admit(pod(1), now).unwrap());
    assert!((0..4).all(|_| first.turn(now).is_none()));
    assert_eq!(second.turn(now).unwrap().wait().as_millis(), 100);
    drop((first, second));
    let third = admission.admit(pod(1), now).unwrap();
    assert!(third.turn(now).is_some(), "nor does it come back for another burst");
}

#[test]
fn a_turn_that_nobody_waited_for_is_given_back() {
    let now = Instant::now();
    let admission = Admission::new(limits(), now);
    let place = admission.admit(pod(1), now).unwrap();
    assert!((0..4).all(|_| place.turn(now).is_none()));
    for _ in 0..1000 {
        assert_eq!(place.turn(now).unwrap().wait().as_millis(), 100);
    }
}

#[test]
fn an_address_is_forgotten_after_its_last_connection_once_its_share_is_even() {
    let now = Instant::now();
    let admission = Admission::new(limits(), now);
    let place = admission.admit(pod(1), now).unwrap();
    assert!((0..4).all(|_| place.turn(now).is_none()));
    let stays = admission.admit(pod(2), now).unwrap();
    drop(place);
    for (milliseconds, expected) in [(399, 3), (1399, 2), (2399, 2)] {
        // Whoever comes has a look taken, at most once a second.
        drop(admission.admit(pod(3), now + Duration::from_millis(milliseconds)));
        assert_eq!(known(&admission), expected, "after {milliseconds} ms");
    }
    drop(stays);
    assert_eq!(admission.state().open, 0);
}

#[test]
fn a_process_with_few_descriptors_keeps_some_for_the_rest() {
    for (descriptors, connections) in [(1 << 20, 4096), (4096 + 256, 4096), (1024, 768), (300, 150), (2, 1)] {
        let limits = Limits { connections: 4096, ..limits() }.within(descriptors);
        assert_eq!(limits.connections, connections, "{descriptors}");
    }
}

/// Random comings, goings and requests, beside a model that counts in the plainest way.
#[test]
fn random_histories_keep_every_limit_and_leave_nothing() {
    histories::all(2000, |random| {
        let origin = Instant::now();
        let limits = Limits {
            connections_per_pod: random.usize(1..6),
            connections: random.usize(1..12),
            requests_per_second: random.u32(1..2000),
            request_burst: random.u32(1..50),
            ..limits()
        };
        let admission = Admission::new(limits.clone(), origin);
        let (mut now, mut places) = (origin, Vec::<(u8, Place)>::new());
        // When each pod's requests had their turn.
        let mut served = HashMap::<u8, Vec<Instant>>::new();
        for _ in 0..random.usize(1..300) {
            now += Duration::from_micros(random.u64(0..20_000));
            let number = random.u8(1..5);
            match random.u8(0..4) {
                0 => {
                    let own = places.iter().filter(|(of, _)| *of == number).count();
                    let expected = if places.len() >= limits.connections {
                        Some(Refused::Node)
                    } else {
                        (own >= limits.connections_per_pod).then_some(Refused::Pod)
                    };
                    match admission.admit(pod(number), now) {
                        Ok(place) => places.push((number, place)),
                        Err(refused) => assert_eq!(Some(refused), expected),
                    }
                }
                1 if !places.is_empty() => drop(places.swap_remove(random.usize(0..places.len()))),
                _ if !places.is_empty() => {
                    let (of, place) = &places[random.usize(0..places.len())];
                    match place.turn(now) {
                        None => served.entry(*of).or_default().push(now),
                        Some(turn) if random.bool() => {
                            served.entry(*of).or_default().push(now + turn.wait());
                            turn.take();
                        }
                        Some(_left) => {}
                    }
                }
                _ => {}
            }
            assert_eq!(admission.state().open, places.len());
        }
        let (rate, burst) = (f64::from(limits.requests_per_second), f64::from(limits.request_burst));
        for mut turns in served.into_values() {
            turns.sort();
            for (at, turn) in turns.iter().enumerate() {
                let within = turn.duration_since(turns[0]).as_secs_f64();
                assert!(at as f64 <= burst + within * rate + 1.0, "{at} requests in {within} s");
            }
        }
        places.clear();
        drop(admission.admit(pod(9), now + 3600 * SECOND));
        assert_eq!((known(&admission), admission.state().open), (1, 0), "but for the one that was just there");
    });
}
