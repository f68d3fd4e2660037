use std::{
    sync::{Mutex, atomic::AtomicUsize},
    time::SystemTime,
};

use futures::{FutureExt as _, future::BoxFuture};
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::{
    refresher::{Channel, Refresher},
    schedule::Limits,
    *,
};
use crate::{
    events::Events,
    identity::{Pod, Wish},
    metrics::Metrics,
    sts::{Action, Ask, Call, Class, Exchange, ExchangeError, Session},
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
    Wish {
        role: role.parse().unwrap(),
        target: None,
        audience: None,
        session_seconds: 3600,
        regional_sts: None,
        of_pod: None,
    }
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(5)
}

/// What the fake STS does with the next exchange.
#[derive(Clone, Copy)]
enum Answer {
    Good,
    /// Good for two seconds.
    Brief,
    Refused,
    Panic,
}

/// Tokens and STS at the seams: each exchange waits for a permit.
struct Fake {
    permits: Semaphore,
    answer: Mutex<Answer>,
    exchanges: AtomicUsize,
    /// The API server does not know this pod any longer.
    without_token: Mutex<Option<PodUid>>,
}

impl TokenSource for Fake {
    fn token<'a>(&'a self, grant: &'a Grant) -> BoxFuture<'a, Result<SecretString, TokenError>> {
        let known = self.without_token.lock().unwrap().as_ref() != Some(&grant.pod.uid);
        let refused = || TokenError::Refused { code: 404, reason: "NotFound".to_owned(), message: String::new() };
        async move { known.then(|| "token".into()).ok_or_else(refused) }.boxed()
    }
}

impl Exchange for Fake {
    fn exchange<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Session, ExchangeError>> {
        async move {
            let number = self.exchanges.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.unwrap().forget();
            let answer = *self.answer.lock().unwrap();
            let brief = matches!(answer, Answer::Brief);
            let session = match answer {
                Answer::Good | Answer::Brief => Ok(Session {
                    access_key_id: format!("{} {number}", ask.session_name),
                    secret_access_key: "secret".into(),
                    session_token: "token".into(),
                    expiration: clock::now().wall + Duration::from_secs(if brief { 2 } else { 3600 }),
                    shortened: false,
                }),
                Answer::Refused => Err(ExchangeError {
                    action: Action::WebIdentity,
                    role: ask.wish.role.clone(),
                    class: Class::Permanent,
                    code: "AccessDenied".to_owned(),
                    message: "no".to_owned(),
                }),
                Answer::Panic => panic!("a defect in one fetch"),
            };
            let issued = session.as_ref().map(Session::issued);
            let result = issued.as_ref().map_err(|error| *error);
            let (action, role) = (Action::WebIdentity, &ask.wish.role);
            (ask.told)(Call { action, role, result, request_id: None, region: None, endpoint: None });
            session
        }
        .boxed()
    }
}

const LIMITS: Limits = Limits { in_flight: 16, per_second: 1000.0, burst: 1000 };

struct Engine {
    store: Arc<Store>,
    fake: Arc<Fake>,
    ended: Arc<Mutex<Option<PodUid>>>,
    reported: mpsc::Receiver<k8s_openapi::api::events::v1::Event>,
}

fn engine(permits: usize, answer: Answer) -> Engine {
    engine_of(SessionScope::Pod, permits, answer)
}

fn engine_of(scope: SessionScope, permits: usize, answer: Answer) -> Engine {
    let fake = Arc::new(Fake {
        permits: Semaphore::new(permits),
        answer: Mutex::new(answer),
        exchanges: AtomicUsize::new(0),
        without_token: Mutex::default(),
    });
    let ended = Arc::<Mutex<Option<PodUid>>>::default();
    let channel = Channel::new(scope, Arc::new(Audit::none()));
    let store = channel.store();
    let asked = Arc::clone(&ended);
    let metrics = Arc::new(Metrics::new().unwrap());
    let (tokens, exchange) = (Arc::clone(&fake), Arc::clone(&fake));
    let (events, reported) = Events::new("node-1".into(), String::new(), Arc::clone(&metrics));
    let refresher = Refresher::new(
        tokens,
        exchange,
        LIMITS,
        move |grant| asked.lock().unwrap().as_ref() != Some(&grant.pod.uid),
        Arc::new(events),
        metrics,
        channel,
    );
    tokio::spawn(refresher.run());
    Engine { store, fake, ended, reported }
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

    /// Waits for the credentials: whether nobody has asked for them before.
    async fn is_first(&self, grant: &Arc<Grant>) -> bool {
        loop {
            if let Some((_, first)) = self.store.get(grant, Form::Metadata, clock::now()) {
                return first;
            }
            tokio::task::yield_now().await;
        }
    }

    fn ask(&self, grant: &Arc<Grant>) -> tokio::task::JoinHandle<Outcome> {
        let (store, grant) = (Arc::clone(&self.store), Arc::clone(grant));
        tokio::spawn(async move { store.obtain(&grant, Form::Metadata, soon()).await })
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
async fn callers_that_leave_change_nothing_for_those_that_stay() {
    for answer in [Answer::Good, Answer::Refused] {
        let (engine, grant) = (engine(0, answer), grant("1"));
        let callers = (0..1000).map(|_| engine.ask(&grant)).collect::<Vec<_>>();
        engine.until(1).await;
        let (leave, stay): (Vec<_>, Vec<_>) = callers.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
        for (_, caller) in leave {
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled());
        }
        engine.fake.permits.add_permits(1000);
        let mut outcomes = Vec::new();
        for (_, caller) in stay {
            outcomes.push(caller.await.unwrap());
        }
        assert_eq!(outcomes.len(), 500);
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0] && *outcome != Outcome::Pending));
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
async fn a_refusal_is_tried_again_when_somebody_asks_after_it() {
    let (engine, grant) = (engine(9, Answer::Refused), grant("1"));
    assert_eq!(engine.store.obtain(&grant, Form::Metadata, soon()).await, Outcome::Failed(Failure::Permanent));
    *engine.fake.answer.lock().unwrap() = Answer::Good;
    let end = soon();
    while !matches!(engine.store.obtain(&grant, Form::Metadata, soon()).await, Outcome::Document(_)) {
        assert!(tokio::time::Instant::now() < end, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.exchanges(), 2);
}

#[tokio::test]
async fn a_caller_waits_no_longer_than_it_may() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    let until = tokio::time::Instant::now() + Duration::from_millis(20);
    assert_eq!(engine.store.obtain(&grant, Form::Metadata, until).await, Outcome::Pending);
}

#[tokio::test]
async fn a_panic_in_one_fetch_is_a_transient_error_of_that_pod_alone() {
    let engine = engine(1, Answer::Panic);
    let until = tokio::time::Instant::now() + Duration::from_millis(200);
    assert_eq!(engine.store.obtain(&grant("1"), Form::Metadata, until).await, Outcome::Failed(Failure::Transient));
    *engine.fake.answer.lock().unwrap() = Answer::Good;
    engine.fake.permits.add_permits(100);
    assert!(matches!(engine.store.obtain(&grant("2"), Form::Metadata, soon()).await, Outcome::Document(_)));
    assert!(
        matches!(engine.store.obtain(&grant("1"), Form::Metadata, soon()).await, Outcome::Document(_)),
        "its next try"
    );
}

#[tokio::test]
async fn what_was_fetched_for_a_pod_that_is_gone_is_given_to_nobody() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    let caller = engine.ask(&grant);
    engine.until(1).await;
    engine.store.entitle(&grant.pod.uid, &[], None);
    assert_eq!(caller.await.unwrap(), Outcome::Gone);
    engine.fake.permits.add_permits(1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(engine.store.get(&grant, Form::Metadata, clock::now()), None);
    assert_eq!(sessions(&engine), 0);
}

#[tokio::test]
async fn nothing_is_fetched_for_who_is_not_entitled() {
    let (engine, grant) = (engine(1, Answer::Good), grant("1"));
    *engine.ended.lock().unwrap() = Some(grant.pod.uid.clone());
    assert_eq!(engine.store.obtain(&grant, Form::Metadata, soon()).await, Outcome::Gone);
    assert_eq!(engine.exchanges(), 0);
    assert_eq!(sessions(&engine), 0);
}

#[tokio::test]
async fn the_grants_of_a_pod_have_a_slot_each_and_those_that_it_loses_end() {
    let (engine, first) = (engine(9, Answer::Good), grant("1"));
    let second = Arc::new(Grant { wish: wish("arn:aws:iam::123456789012:role/other"), ..(*first).clone() });
    let Outcome::Document(of_first) = engine.store.obtain(&first, Form::Metadata, soon()).await else { panic!() };
    let Outcome::Document(of_second) = engine.store.obtain(&second, Form::Metadata, soon()).await else { panic!() };
    let Outcome::Document(of_other) = engine.store.obtain(&grant("2"), Form::Metadata, soon()).await else { panic!() };
    assert!(of_first != of_second && of_first != of_other);

    engine.store.entitle(&first.pod.uid, &[Arc::clone(&second)], None);
    assert_eq!(engine.store.get(&first, Form::Metadata, clock::now()), None);
    assert_eq!(engine.store.get(&second, Form::Metadata, clock::now()), Some((of_second, false)));
    assert_eq!(sessions(&engine), 2, "and that of the other pod");
}

#[tokio::test]
async fn what_is_foreseen_is_fetched_before_it_is_asked_for() {
    let (engine, grant) = (engine(1, Answer::Good), grant("1"));
    engine.store.entitle(&grant.pod.uid, std::slice::from_ref(&grant), Some(&grant));
    engine.until(1).await;
    assert!(engine.is_first(&grant).await);
    assert!(!engine.is_first(&grant).await);
    assert_eq!(engine.exchanges(), 1);
}

#[tokio::test]
async fn what_came_after_a_pod_had_asked_in_vain_was_not_there_before_it_asked() {
    let (engine, grant) = (engine(0, Answer::Good), grant("1"));
    engine.store.entitle(&grant.pod.uid, std::slice::from_ref(&grant), Some(&grant));
    engine.until(1).await;
    let at_once = tokio::time::Instant::now();
    assert_eq!(engine.store.obtain(&grant, Form::Metadata, at_once).await, Outcome::Pending);
    engine.fake.permits.add_permits(1);
    assert!(!engine.is_first(&grant).await);
}

#[tokio::test]
async fn a_shared_session_is_one_for_all_pods_of_a_service_account_until_the_last_ends() {
    let engine = engine_of(SessionScope::ServiceAccount, 9, Answer::Good);
    let (one, two) = (grant("1"), grant("2"));
    let stranger = Arc::new(Grant { account: "another".into(), ..(*grant("3")).clone() });
    let Outcome::Document(of_one) = engine.store.obtain(&one, Form::Metadata, soon()).await else { panic!() };
    assert_eq!(engine.store.obtain(&two, Form::Metadata, soon()).await, Outcome::Document(of_one.clone()));
    let Outcome::Document(of_stranger) = engine.store.obtain(&stranger, Form::Metadata, soon()).await else { panic!() };
    assert_ne!(of_one, of_stranger);
    let other = Arc::new(Grant { wish: wish("arn:aws:iam::123456789012:role/other"), ..(*two).clone() });
    let Outcome::Document(of_other) = engine.store.obtain(&other, Form::Metadata, soon()).await else { panic!() };
    assert_ne!(of_one, of_other, "another role");
    engine.store.entitle(&two.pod.uid, std::slice::from_ref(&two), None);
    assert_eq!(engine.exchanges(), 3);

    engine.store.entitle(&one.pod.uid, &[], None);
    assert_eq!(engine.store.get(&one, Form::Metadata, clock::now()), None);
    assert_eq!(engine.store.get(&two, Form::Metadata, clock::now()), Some((of_one, false)));
    engine.store.entitle(&two.pod.uid, &[], None);
    assert_eq!(engine.store.get(&two, Form::Metadata, clock::now()), None);
    assert_eq!(sessions(&engine), 1);
    assert!(
        matches!(engine.store.obtain(&grant("4"), Form::Metadata, soon()).await, Outcome::Document(_)),
        "a session of its own"
    );
    assert_eq!(engine.exchanges(), 4);
}

#[tokio::test]
async fn a_shared_session_is_fetched_with_the_token_of_any_pod_that_gets_one() {
    let (mut engine, one, two) = (engine_of(SessionScope::ServiceAccount, 9, Answer::Good), grant("1"), grant("2"));
    *engine.fake.without_token.lock().unwrap() = Some(one.pod.uid.clone());
    for grant in [&one, &two] {
        engine.store.entitle(&grant.pod.uid, std::slice::from_ref(grant), Some(grant));
    }
    assert!(matches!(engine.store.obtain(&two, Form::Metadata, soon()).await, Outcome::Document(_)));
    let told = engine.reported.try_recv().unwrap();
    assert_eq!(told.regarding.unwrap().uid.as_deref(), Some("1"));
    assert!(engine.reported.try_recv().is_err(), "nothing is wrong with the other");
}

#[tokio::test]
async fn a_pod_that_asks_while_it_ends_does_not_keep_a_shared_session() {
    let (engine, one, two) = (engine_of(SessionScope::ServiceAccount, 9, Answer::Brief), grant("1"), grant("2"));
    assert!(matches!(engine.store.obtain(&one, Form::Metadata, soon()).await, Outcome::Document(_)));
    *engine.ended.lock().unwrap() = Some(two.pod.uid.clone());
    assert!(
        matches!(engine.store.obtain(&two, Form::Metadata, soon()).await, Outcome::Document(_)),
        "what its caller sees to"
    );
    while engine.exchanges() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.store.entitle(&one.pod.uid, &[], None);
    assert_eq!(sessions(&engine), 0);
}

#[test]
fn a_shared_session_that_a_pod_joins_is_not_idle() {
    let (commands, _) = mpsc::unbounded_channel();
    let mut store = Store::new(SessionScope::ServiceAccount, Arc::new(Audit::none()), commands);
    let slot = store.slot(&grant("1"));
    store.made -= Duration::from_secs(7200);
    let idle = |store: &Store| store.idle(&slot, Duration::from_secs(3600), clock::now());
    assert!(idle(&store));
    store.slot(&grant("2"));
    assert!(!idle(&store));
}

#[tokio::test]
async fn expired_credentials_are_not_given() {
    let (engine, grant) = (engine(1, Answer::Good), grant("1"));
    assert!(matches!(engine.store.obtain(&grant, Form::Metadata, soon()).await, Outcome::Document(_)));
    let now = clock::now();
    let stepped = Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(now.unix_seconds() + 3601), ..now };
    assert_eq!(engine.store.get(&grant, Form::Metadata, stepped), None);
}

#[test]
fn session_names_tell_pods_apart_and_fit() {
    let name_of = |pod: &str, uid: &str| {
        let pod = Pod { name: pod.into(), ..Pod::sample(uid, &[]) };
        SessionScope::Pod.session_name(&Grant { pod: Arc::new(pod), ..(*grant("1")).clone() })
    };
    let short = name_of("web-0", "u1");
    assert!(short.starts_with("team-a.web-0-") && short.len() == "team-a.web-0-".len() + UID_DIGITS, "{short}");
    assert_ne!(short, name_of("web-0", "u2"));

    let name = "x".repeat(200);
    let (one, two) = (name_of(&name, "u1"), name_of(&name, "u2"));
    assert_eq!(one.len(), LONGEST_SESSION_NAME);
    assert_ne!(one, two);
}

#[test]
fn a_shared_session_has_the_service_accounts_name() {
    let [one, two] = ["1", "2"].map(|uid| SessionScope::ServiceAccount.session_name(&grant(uid)));
    assert!(one.starts_with("team-a.web-"), "{one}");
    assert_eq!(one, two);
}

#[test]
fn tags_name_the_pod_unless_its_session_is_shared() {
    let keys =
        |scope: SessionScope| scope.session_tags(&grant("1")).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    let shared = ["kubernetes-namespace", "kubernetes-service-account"];
    assert_eq!(keys(SessionScope::ServiceAccount), shared);
    let own = [&shared[..], &["kubernetes-pod-name", "kubernetes-pod-uid"]].concat();
    assert_eq!(keys(SessionScope::Pod), own);
}

#[tokio::test]
async fn what_is_not_renewed_is_reported_as_such_and_served_on() {
    let (mut engine, grant) = (engine(100, Answer::Brief), grant("1"));
    assert!(matches!(engine.ask(&grant).await.unwrap(), Outcome::Document(_)));
    *engine.fake.answer.lock().unwrap() = Answer::Refused;
    let event = engine.reported.recv().await.unwrap();
    assert_eq!(event.reason.as_deref(), Some("RenewalFailing"));
    assert!(matches!(engine.ask(&grant).await.unwrap(), Outcome::Document(_)));
}

fn sessions(engine: &Engine) -> usize {
    engine.store.figures(clock::now()).standings.values().sum()
}
