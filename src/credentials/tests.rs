use std::{
    sync::{Mutex, atomic::AtomicUsize},
    time::SystemTime,
};

use futures::{FutureExt as _, future::BoxFuture};
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::{
    refresher::{Channel, Refresher},
    *,
};
use crate::{
    identity::Wish,
    metrics::Metrics,
    sts::{Class, Exchange, ExchangeError, Session},
    token::{TokenError, TokenSource},
};

fn grant(uid: &str) -> Arc<Grant> {
    Arc::new(Grant {
        pod: Arc::new(Pod::sample(uid, &[])),
        account: "sa".into(),
        wish: wish("arn:aws:iam::123456789012:role/web"),
    })
}

fn wish(role: &str) -> Wish {
    Wish { role: role.parse().unwrap(), audience: None, session_seconds: 3600, regional_sts: None }
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(5)
}

/// What the fake STS does with the next exchange.
#[derive(Clone, Copy)]
enum Answer {
    Good,
    Refused,
    Panic,
}

/// Tokens and STS at the seams: each exchange waits for a permit.
struct Fake {
    permits: Semaphore,
    answer: Mutex<Answer>,
    exchanges: AtomicUsize,
}

impl TokenSource for Fake {
    fn token<'a>(&'a self, _: &'a Grant) -> BoxFuture<'a, Result<SecretString, TokenError>> {
        async { Ok("token".into()) }.boxed()
    }
}

impl Exchange for Fake {
    fn exchange<'a>(
        &'a self,
        _: &'a Wish,
        session_name: &'a str,
        _: &'a SecretString,
    ) -> BoxFuture<'a, Result<Session, ExchangeError>> {
        async move {
            let number = self.exchanges.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.unwrap().forget();
            let answer = *self.answer.lock().unwrap();
            match answer {
                Answer::Good => Ok(Session {
                    access_key_id: format!("{session_name} {number}"),
                    secret_access_key: "secret".into(),
                    session_token: "token".into(),
                    expiration: clock::now().wall + Duration::from_secs(3600),
                }),
                Answer::Refused => Err(ExchangeError {
                    class: Class::Permanent,
                    code: "AccessDenied".to_owned(),
                    message: "no".to_owned(),
                }),
                Answer::Panic => panic!("a defect in one fetch"),
            }
        }
        .boxed()
    }
}

struct Engine {
    store: Arc<Store>,
    fake: Arc<Fake>,
    entitled: Arc<AtomicBool>,
}

fn engine(permits: usize, answer: Answer) -> Engine {
    let fake =
        Arc::new(Fake { permits: Semaphore::new(permits), answer: Mutex::new(answer), exchanges: AtomicUsize::new(0) });
    let entitled = Arc::new(AtomicBool::new(true));
    let channel = Channel::new();
    let store = channel.store();
    let asked = Arc::clone(&entitled);
    let metrics = Arc::new(Metrics::new().unwrap());
    let (tokens, exchange) = (Arc::clone(&fake), Arc::clone(&fake));
    let refresher = Refresher::new(tokens, exchange, move |_| asked.load(Ordering::SeqCst), metrics, channel);
    tokio::spawn(refresher.run());
    Engine { store, fake, entitled }
}

impl Engine {
    fn exchanges(&self) -> usize {
        self.fake.exchanges.load(Ordering::SeqCst)
    }

    async fn until(&self, exchanges: usize) {
        while self.exchanges() < exchanges {
            tokio::task::yield_now().await;
        }
    }

    fn ask(&self, grant: &Arc<Grant>) -> tokio::task::JoinHandle<Outcome> {
        let (store, grant) = (Arc::clone(&self.store), Arc::clone(grant));
        tokio::spawn(async move { store.obtain(&grant, soon()).await })
    }
}

#[tokio::test]
async fn callers_share_one_fetch_and_its_outcome() {
    for answer in [Answer::Good, Answer::Refused] {
        let (engine, grant) = (engine(0, answer), grant("1"));
        let callers = (0..1000).map(|_| engine.ask(&grant)).collect::<Vec<_>>();
        engine.until(1).await;
        engine.fake.permits.add_permits(1000);
        let mut outcomes = Vec::new();
        for caller in callers {
            outcomes.push(caller.await.unwrap());
        }
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
        match answer {
            Answer::Good => assert!(matches!(outcomes[0], Outcome::Document(_))),
            _ => assert_eq!(outcomes[0], Outcome::Failed(Failure::Permanent)),
        }
        assert_eq!(engine.exchanges(), 1);
    }
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_nothing() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    let caller = engine.ask(&grant);
    engine.until(1).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    engine.fake.permits.add_permits(1);
    assert!(matches!(engine.ask(&grant).await.unwrap(), Outcome::Document(_)));
    assert_eq!(engine.exchanges(), 1);
}

#[tokio::test]
async fn a_caller_waits_no_longer_than_it_may() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    let until = tokio::time::Instant::now() + Duration::from_millis(20);
    assert_eq!(engine.store.obtain(&grant, until).await, Outcome::Pending);
}

#[tokio::test]
async fn a_panic_in_one_fetch_is_a_transient_error_of_that_pod_alone() {
    let engine = engine(1, Answer::Panic);
    let until = tokio::time::Instant::now() + Duration::from_millis(200);
    assert_eq!(engine.store.obtain(&grant("1"), until).await, Outcome::Failed(Failure::Transient));
    *engine.fake.answer.lock().unwrap() = Answer::Good;
    engine.fake.permits.add_permits(100);
    assert!(matches!(engine.store.obtain(&grant("2"), soon()).await, Outcome::Document(_)));
    assert!(matches!(engine.store.obtain(&grant("1"), soon()).await, Outcome::Document(_)), "its next try");
}

#[tokio::test]
async fn what_was_fetched_for_a_pod_that_is_gone_is_given_to_nobody() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    let caller = engine.ask(&grant);
    engine.until(1).await;
    engine.store.retire(&grant.pod.uid);
    assert_eq!(caller.await.unwrap(), Outcome::Gone);
    engine.fake.permits.add_permits(1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(engine.store.get(&grant, clock::now()), None);
    assert!(engine.store.is_empty());
}

#[tokio::test]
async fn nothing_is_fetched_for_who_is_not_entitled() {
    let (engine, grant) = (engine(1, Answer::Good), grant("1"));
    engine.entitled.store(false, Ordering::SeqCst);
    assert_eq!(engine.store.obtain(&grant, soon()).await, Outcome::Gone);
    assert_eq!(engine.exchanges(), 0);
    assert!(engine.store.is_empty());
}

#[tokio::test]
async fn another_role_of_the_same_pod_is_another_slot_and_ends_the_first() {
    let (engine, first) = (engine(2, Answer::Good), grant("1"));
    let second = Arc::new(Grant { wish: wish("arn:aws:iam::123456789012:role/other"), ..(*first).clone() });
    let Outcome::Document(of_first) = engine.store.obtain(&first, soon()).await else { panic!() };
    let Outcome::Document(of_second) = engine.store.obtain(&second, soon()).await else { panic!() };
    assert_ne!(of_first, of_second);
    assert_eq!(engine.store.get(&first, clock::now()), None);
    assert_eq!(engine.store.len(), 1);
}

#[tokio::test]
async fn expired_credentials_are_not_given() {
    let (engine, grant) = (engine(1, Answer::Good), grant("1"));
    assert!(matches!(engine.store.obtain(&grant, soon()).await, Outcome::Document(_)));
    let now = clock::now();
    let stepped = Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(now.unix_seconds() + 3601), ..now };
    assert_eq!(engine.store.get(&grant, stepped), None);
}

fn name_of(pod: &str, uid: &str) -> String {
    session_name(&Pod { name: pod.into(), ..Pod::sample(uid, &[]) })
}

#[test]
fn session_names_tell_pods_apart_and_fit() {
    let short = name_of("web-0", "u1");
    assert!(short.starts_with("team-a.web-0-") && short.len() == "team-a.web-0-".len() + UID_DIGITS, "{short}");
    assert_ne!(short, name_of("web-0", "u2"));

    let name = "x".repeat(200);
    let (one, two) = (name_of(&name, "u1"), name_of(&name, "u2"));
    assert_eq!(one.len(), LONGEST_SESSION_NAME);
    assert_ne!(one, two);
}
