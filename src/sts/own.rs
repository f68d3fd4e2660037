//! The daemon's own identity at AWS, by which roles are assumed that pods name themselves (`--legacy-source assume-role`).
//!
//! Owns its keys, in memory alone and overwritten when they are given back; asked for when the first role is to be assumed,
//! and again before they end. Invariants: nobody is ever given them, nor others of the same role; while new ones are not to be
//! had, those that are good still are used; that they are not to be had is said to all who wait for them, and asked again a
//! second later.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex as SyncMutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::{fs, sync::Mutex};

use super::{Action, Class, ExchangeError, Session, Sts};
use crate::{
    clock::{self, Deadline, Now},
    identity::RoleArn,
};

/// The node's keys are asked for again after so long: it costs nothing, and its role may have changed.
const NODES_KEPT: Duration = Duration::from_secs(300);
/// How long those last that a token is exchanged for, in seconds, and from when on they are asked for again.
const SECONDS: u32 = 3600;
const RENEWED_AT: Duration = Duration::from_secs(1800);
/// Keys that are to sign a call, and for which there is no successor, must last so long.
const LEAST: Duration = Duration::from_secs(10);
/// A failure is remembered for so long.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Asks the real metadata service for the name of the node's role, and for its keys.
pub type AskNode = Box<dyn Fn() -> BoxFuture<'static, Result<(String, Session), String>> + Send + Sync>;

/// Whose keys they are.
pub enum Identity {
    /// The node's role's, as the metadata service gives them out.
    Node(AskNode),
    /// Those of a role that a mounted token of our own is exchanged for.
    WebIdentity {
        /// The role.
        role: RoleArn,
        /// The file that the token is in.
        token_file: PathBuf,
        /// How its sessions are named.
        session_name: String,
    },
}

/// The identity, and its keys.
pub struct Own {
    identity: Identity,
    /// Of the node's role, as it was named with the keys.
    nodes_role: SyncMutex<Option<String>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failed: Option<(Instant, ExchangeError)>,
}

struct Held {
    session: Arc<Session>,
    ends: Deadline,
    renewed: Deadline,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

// === impl Own ===

impl Own {
    /// This identity, whose keys are not known yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { identity, nodes_role: SyncMutex::default(), state: Mutex::default() }
    }

    /// Keys to assume `role` with.
    pub(super) async fn keys(&self, sts: &Sts, role: &RoleArn) -> Result<Arc<Session>, ExchangeError> {
        self.keys_at(clock::now(), role, self.ask(sts, role)).await
    }

    /// The same, asked for as `asked` says, if need be.
    async fn keys_at(
        &self,
        now: Now,
        role: &RoleArn,
        asked: impl Future<Output = Result<Session, ExchangeError>>,
    ) -> Result<Arc<Session>, ExchangeError> {
        // Who waits here waits for what somebody else asks for.
        let mut state = self.state.lock().await;
        if let Some(held) = state.held.as_ref().filter(|held| !held.renewed.passed(now)) {
            return Ok(Arc::clone(&held.session));
        }
        let begun = Instant::now();
        let asked_before = |at: &Instant| now.monotonic.saturating_duration_since(*at) < REMEMBERED;
        let error = match state.failed.as_ref().filter(|(at, _)| asked_before(at)) {
            Some((_, error)) => error.clone(),
            None => match asked.await {
                Ok(session) => {
                    let session = Arc::new(session);
                    let held = Some(self.held(Arc::clone(&session), now));
                    *state = State { held, failed: None };
                    return Ok(session);
                }
                Err(error) => {
                    // From when it failed: to find that out may have taken longer than it is remembered.
                    state.failed = Some((now.monotonic + begun.elapsed(), error.clone()));
                    error
                }
            },
        };
        match state.held.as_ref().filter(|held| held.ends.left(now) > LEAST) {
            Some(held) => Ok(Arc::clone(&held.session)),
            // It is not of the role that the first one asked for.
            None if error.action == Action::AssumeRole => Err(ExchangeError { role: role.clone(), ..error }),
            None => Err(error),
        }
    }

    /// Whether this is the role that the keys are of, which are there: one that trusts itself could be assumed for a pod. Of
    /// the node's the name alone is known, so that one of another account is taken for it too.
    pub(super) fn is_of(&self, role: &RoleArn) -> bool {
        match &self.identity {
            Identity::Node(_) => {
                let name = self.nodes_role.lock().unwrap_or_else(PoisonError::into_inner);
                name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(role.name()))
            }
            Identity::WebIdentity { role: own, .. } => {
                own.account() == role.account() && own.name().eq_ignore_ascii_case(role.name())
            }
        }
    }

    /// STS takes these no longer.
    pub(super) async fn refused(&self, session: &Arc<Session>) {
        let mut state = self.state.lock().await;
        if state.held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.session, session)) {
            state.held = None;
        }
    }

    fn held(&self, session: Arc<Session>, now: Now) -> Held {
        let ends = now.deadline(session.expiration);
        let kept = match self.identity {
            Identity::Node(_) => NODES_KEPT,
            Identity::WebIdentity { .. } => ends.left(now).saturating_sub(RENEWED_AT),
        };
        Held { session, ends, renewed: now.after(kept.min(ends.left(now))) }
    }

    async fn ask(&self, sts: &Sts, role: &RoleArn) -> Result<Session, ExchangeError> {
        let lacks = |why: String| ExchangeError::new((Action::AssumeRole, role), Class::Transient, "NoIdentity", why);
        match &self.identity {
            Identity::Node(ask) => {
                let answer = ask().await.map_err(|why| lacks(format!("the node's own credentials: {why}")));
                let (name, session) = answer?;
                *self.nodes_role.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
                Ok(session)
            }
            Identity::WebIdentity { role: own, token_file, session_name } => {
                let text = fs::read_to_string(token_file).await;
                let text = text.map_err(|error| lacks(format!("{}: {error}", token_file.display())))?;
                let token = SecretString::from(text.trim());
                sts.own_session(own, &token, session_name, SECONDS).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn own() -> Own {
        Own::new(Identity::Node(Box::new(|| Box::pin(async { Err("unasked".to_owned()) }))))
    }

    fn role(name: &str) -> RoleArn {
        format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap()
    }

    fn session(key: &str, expiration: std::time::SystemTime) -> Session {
        let (secret, token) = (SecretString::from("secret"), SecretString::from("token"));
        let access_key_id = key.to_owned();
        Session { access_key_id, secret_access_key: secret, session_token: token, expiration, shortened: false }
    }

    async fn lacking(role: &RoleArn) -> Result<Session, ExchangeError> {
        Err(ExchangeError::new((Action::AssumeRole, role), Class::Transient, "NoIdentity", "away"))
    }

    fn later(now: Now, seconds: u64) -> Now {
        let time = Duration::from_secs(seconds);
        Now { wall: now.wall + time, monotonic: now.monotonic + time }
    }

    #[tokio::test]
    async fn keys_are_asked_for_once_and_again_after_a_while_and_kept_while_there_are_no_others() {
        let (own, web, now) = (own(), role("web"), clock::now());
        let ends = now.wall + Duration::from_secs(900);
        let key = async |at: Now, asked: Result<Session, ExchangeError>| {
            let keys = own.keys_at(at, &web, async { asked }).await;
            keys.map(|session| session.access_key_id.clone()).map_err(|error| error.code)
        };
        let none = async || lacking(&web).await;
        assert_eq!(key(now, Ok(session("one", ends))).await.as_deref(), Ok("one"));
        assert_eq!(key(later(now, 299), Ok(session("two", ends))).await.as_deref(), Ok("one"), "not asked for yet");
        assert_eq!(key(later(now, 301), none().await).await.as_deref(), Ok("one"), "no others are to be had");
        assert_eq!(key(later(now, 303), Ok(session("two", ends))).await.as_deref(), Ok("two"));
        assert_eq!(key(later(now, 895), none().await).await, Err("NoIdentity".to_owned()), "it ends in a moment");
        let first =
            own.keys_at(later(now, 897), &web, async { Ok(session("three", later(now, 9000).wall)) }).await.unwrap();
        own.refused(&Arc::new(session("another", ends))).await;
        assert_eq!(key(later(now, 898), none().await).await.as_deref(), Ok("three"));
        own.refused(&first).await;
        assert_eq!(key(later(now, 898), none().await).await, Err("NoIdentity".to_owned()));
    }

    #[tokio::test]
    async fn that_there_are_none_is_found_out_once_for_all_who_wait_and_each_is_told_of_his_own_role() {
        let (own, now, asked) = (own(), clock::now(), AtomicUsize::new(0));
        let asking = async |role: RoleArn| {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            lacking(&role).await
        };
        let wait = async |name: &str, at: Now| {
            let role = role(name);
            own.keys_at(at, &role, asking(role.clone())).await.map(drop).unwrap_err().role
        };
        let (first, second) = tokio::join!(wait("one", now), wait("two", now));
        assert_eq!((first.name(), second.name(), asked.load(Ordering::Relaxed)), ("one", "two", 1));
        assert_eq!(wait("three", later(now, 2)).await.name(), "three");
        assert_eq!(asked.load(Ordering::Relaxed), 2, "a second later it is asked again");
    }
}
