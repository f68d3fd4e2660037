//! The keys that the cluster signs service account tokens with, from the API server's `/openid/v1/jwks`.
//!
//! Owns when they are asked for: at first need, for a key that is not known, and once in a while as long as they are
//! used; never more often than the limits below, whatever pods show us. Keys that are known stay so while the API server
//! is away. Every service account may read them (`system:service-account-issuer-discovery`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use tokio::sync::{Notify, watch};

use super::presented::{KeySet, Refused, Shown};
use crate::clock;

const PATH: &str = "/openid/v1/jwks";
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// How long keys are used without asking whether they are still the cluster's.
const FRESH: Duration = Duration::from_secs(300);
/// Between two questions while there are keys: anybody can name a key that is not known.
const PAUSE: Duration = Duration::from_secs(10);
/// The same while there are none.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The cluster's keys, as far as they are known.
#[derive(Debug, Default)]
pub struct Keys {
    known: watch::Sender<Known>,
    wanted: Notify,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// None before they could be had.
    keys: Option<Arc<KeySet>>,
    /// When they were had.
    had: Option<Instant>,
    /// When they were last asked for.
    asked: Option<Instant>,
}

impl Keys {
    /// What a token says that a pod shows, if the cluster signed it. Keys that are not known are waited for until then.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn verify(&self, token: &str, until: tokio::time::Instant) -> Result<Arc<Shown>, Refused> {
        let mut changed = self.known.subscribe();
        let came = clock::now().monotonic;
        loop {
            let (known, now) = (changed.borrow_and_update().clone(), clock::now().monotonic);
            let verified = known.keys.as_ref().map_or(Err(Refused::Key), |keys| keys.verify(token));
            if verified.as_ref().err() != Some(&Refused::Key) {
                if known.is_old(now) {
                    self.wanted.notify_one();
                }
                return verified;
            }
            if !known.may_be_asked_for(now) {
                return Err(known.without(came));
            }
            self.wanted.notify_one();
            // The sender is ours.
            if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return Err(Refused::NoKeys);
            }
        }
    }

    /// Asks for the keys whenever they are wanted; never ends.
    pub async fn keep(self: Arc<Self>, client: Client) {
        let mut told = false;
        loop {
            self.wanted.notified().await;
            let asked = clock::now().monotonic;
            // Wanted by somebody who did not see yet what came of the last time.
            if !self.known.borrow().may_be_asked_for(asked) {
                continue;
            }
            match ask(&client).await {
                Ok((keys, unusable)) => {
                    told = false;
                    self.known.send_modify(|known| known.are(keys, asked, &unusable));
                }
                Err(problem) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "the keys that pods' tokens are checked with: {problem}; they are asked for again"
                        );
                    }
                    self.known.send_modify(|known| known.asked = Some(asked));
                }
            }
        }
    }
}

async fn ask(client: &Client) -> Result<(KeySet, Vec<String>), String> {
    let request = http::Request::get(PATH).body(Vec::new()).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(TIME_LIMIT, client.request_text(request)).await;
    match answer {
        Ok(Ok(jwks)) => KeySet::read(&jwks).ok_or_else(|| format!("the API server's answer to {PATH} is no key set")),
        Ok(Err(kube::Error::Api(status))) => Err(format!(
            "the API server refused {PATH}: {} {} (the ClusterRole system:service-account-issuer-discovery allows it)",
            status.code, status.message
        )),
        Ok(Err(_)) => Err("the API server cannot be reached".to_owned()),
        Err(_elapsed) => Err(format!("the API server did not answer within {} s", TIME_LIMIT.as_secs())),
    }
}

// === impl Known ===

impl Known {
    fn may_be_asked_for(&self, now: Instant) -> bool {
        let pause = if self.keys.is_some() { PAUSE } else { FIRST_PAUSE };
        self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause)
    }

    fn is_old(&self, now: Instant) -> bool {
        self.had.is_none_or(|had| now.saturating_duration_since(had) >= FRESH) && self.may_be_asked_for(now)
    }

    /// What to say of a token that was shown at that time and whose key is not known, while keys are not to be asked for.
    /// It is nobody's only if they were asked for since: it may be the newest of all.
    fn without(&self, came: Instant) -> Refused {
        if self.had.is_some_and(|had| had >= came) { Refused::Key } else { Refused::NoKeys }
    }

    fn are(&mut self, keys: KeySet, asked: Instant, unusable: &[String]) {
        (self.had, self.asked) = (Some(asked), Some(asked));
        // The same keys keep what was verified with them.
        if self.keys.as_ref().is_some_and(|known| known.is_same(&keys)) {
            return;
        }
        tracing::info!(?keys, "the keys that pods' tokens are checked with are known");
        if !unusable.is_empty() {
            tracing::warn!(
                ?unusable,
                "keys of the cluster are not supported (RS256, ES256, ES384 are): their tokens are refused"
            );
        }
        self.keys = Some(Arc::new(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(had: Option<u64>, asked: Option<u64>, start: Instant) -> Known {
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        Known { keys: had.map(|_| Arc::default()), had: had.map(at), asked: asked.map(at) }
    }

    #[test]
    fn keys_are_asked_for_at_first_need_and_then_only_once_in_a_while() {
        let start = clock::now().monotonic;
        // When they were had, when they were asked for, now; whether they may be asked for, whether old ones are
        // asked for anew.
        for (had, asked, now, may, old) in [
            (None, None, 0, true, true),
            (None, Some(0), 0, false, false),
            (None, Some(0), 1, true, true),
            (Some(0), Some(0), 9, false, false),
            (Some(0), Some(0), 10, true, false),
            (Some(0), Some(0), 299, true, false),
            (Some(0), Some(0), 300, true, true),
            // They could not be had since.
            (Some(0), Some(300), 309, false, false),
            (Some(0), Some(300), 310, true, true),
        ] {
            let (known, now) = (known(had, asked, start), start + Duration::from_secs(now));
            assert_eq!((known.may_be_asked_for(now), known.is_old(now)), (may, old));
        }
        let without = |had, came| known(had, had, start).without(start + Duration::from_secs(came));
        assert_eq!([without(None, 5), without(Some(4), 5)], [Refused::NoKeys, Refused::NoKeys]);
        assert_eq!(without(Some(5), 5), Refused::Key, "asked for since it came");
    }

    #[test]
    fn the_same_keys_keep_what_was_verified_with_them() {
        let start = clock::now().monotonic;
        let read = |jwks| KeySet::read(jwks).unwrap().0;
        let mut known = Known::default();
        known.are(read(r#"{"keys":[]}"#), start, &[]);
        let first = known.keys.clone().unwrap();
        known.are(read(r#"{"keys":[]}"#), start, &[]);
        assert!(Arc::ptr_eq(&first, known.keys.as_ref().unwrap()));
        let key = r#"{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}]}"#;
        known.are(read(key), start, &[]);
        assert!(!Arc::ptr_eq(&first, known.keys.as_ref().unwrap()));
    }
}
