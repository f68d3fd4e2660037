//! The passage to the real metadata service, for what `--allow-path` names: read for pods by ourselves.
//!
//! Owns how much of it there is: the service answers an instance only so often, and the node needs it too. What was
//! answered a moment ago is answered again, and what is being read is read once; beyond that there is a rate for each pod
//! and one for all pods of the node together.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::Uri;
use tokio::time::Instant;

use crate::identity::Peer;

use super::{
    allowed::AllowedPaths,
    upstream::{self, Page},
};

/// How long an answer is good for, from when it was asked for.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept; each is some kilobytes at most.
const KEPT: usize = 64;
/// What all pods of the node may read together, and what one of them may.
const OF_ALL: Rate = Rate { interval: Duration::from_millis(50), burst: 20 };
const OF_ONE: Rate = Rate { interval: Duration::from_millis(200), burst: 10 };

type Answer = Result<Option<Page>, NoPassage>;

/// The passage.
#[derive(Debug)]
pub struct Passage {
    endpoint: Uri,
    allowed: AllowedPaths,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is being read or was, and until when it is good.
    reads: HashMap<String, (Instant, Shared<BoxFuture<'static, Answer>>)>,
    of_all: Turns,
    of_pods: HashMap<Peer, Turns>,
}

struct Rate {
    /// Between two reads in the long run.
    interval: Duration,
    /// How many may come at once.
    burst: u32,
}

/// When all that was begun would be due if it had come evenly.
#[derive(Clone, Copy, Debug)]
struct Turns(Instant);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPassage {
    /// Too much was asked for at once.
    Limited,
    /// The real service did not answer, or not in time.
    Failed,
}

impl NoPassage {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Limited => "limited",
            Self::Failed => "failed",
        }
    }
}

impl Passage {
    /// A passage to the service at `endpoint` (http).
    #[must_use]
    pub fn new(endpoint: Uri, allowed: AllowedPaths) -> Self {
        Self { endpoint, allowed, state: Mutex::new(State::new(Instant::now())) }
    }

    /// The path to read, if what was asked for is allowed.
    #[must_use]
    pub fn judge(&self, path: &str) -> Option<String> {
        self.allowed.judge(path)
    }

    /// What is at a path that was judged, for `peer`; `None` where there is nothing.
    ///
    /// # Errors
    /// Why it cannot be said by the deadline.
    pub async fn read(&self, path: String, peer: &Peer, deadline: Instant) -> Answer {
        let read = self.begin(path, peer, Instant::now(), deadline).ok_or(NoPassage::Limited)?;
        tokio::time::timeout_at(deadline, read).await.unwrap_or(Err(NoPassage::Failed))
    }

    /// A read of the path that all share who ask for it now; it goes on when they leave.
    fn begin(
        &self,
        path: String,
        peer: &Peer,
        now: Instant,
        deadline: Instant,
    ) -> Option<Shared<BoxFuture<'static, Answer>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((good_until, read)) = state.reads.get(&path)
            && now < *good_until
        {
            return Some(read.clone());
        }
        let turn = state.turn(peer, now, deadline)?;
        let (endpoint, of) = (self.endpoint.clone(), path.clone());
        let read = async move {
            tokio::time::sleep_until(turn).await;
            upstream::page(&endpoint, &of).await.map_err(|error| {
                tracing::debug!(path = of, %error, "an allowed path could not be read");
                NoPassage::Failed
            })
        };
        let read = read.boxed().shared();
        tokio::spawn(read.clone());
        state.keep(path, turn + FRESH, read.clone(), now);
        Some(read)
    }
}

// === impl State ===

impl State {
    fn new(now: Instant) -> Self {
        Self { reads: HashMap::new(), of_all: Turns(now), of_pods: HashMap::new() }
    }

    /// When the pod's next read may begin, if that is before the deadline.
    fn turn(&mut self, pod: &Peer, now: Instant, deadline: Instant) -> Option<Instant> {
        self.of_pods.retain(|_, turns| turns.0 > now);
        let of_pod = self.of_pods.get(pod).copied().unwrap_or(Turns(now));
        let (own, of_pod) = of_pod.next(&OF_ONE, now);
        let (common, of_all) = self.of_all.next(&OF_ALL, now);
        let turn = own.max(common);
        (turn < deadline).then(|| {
            self.of_all = of_all;
            self.of_pods.insert(pod.clone(), of_pod);
            turn
        })
    }

    fn keep(&mut self, path: String, until: Instant, read: Shared<BoxFuture<'static, Answer>>, now: Instant) {
        if self.reads.len() >= KEPT {
            self.reads.retain(|_, (until, _)| now < *until);
        }
        if self.reads.len() < KEPT {
            self.reads.insert(path, (until, read));
        }
    }
}

// === impl Turns ===

impl Turns {
    /// When the next read may begin, and what is due after it.
    fn next(self, rate: &Rate, now: Instant) -> (Instant, Self) {
        let due = self.0.max(now);
        let turn = due.checked_sub(rate.interval * (rate.burst - 1)).map_or(now, |turn| turn.max(now));
        (turn, Self(due + rate.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Peer = Peer::Address(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));
    const B: Peer = Peer::Address(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)));

    #[test]
    fn reads_come_at_once_after_a_rest_and_evenly_from_then_on_and_one_pod_leaves_some_to_others() {
        let start = Instant::now();
        let mut state = State::new(start);
        let deadline = start + Duration::from_millis(900);
        let mut turns = |pod| {
            let turns = std::iter::from_fn(|| state.turn(pod, start, deadline));
            turns.map(|turn| (turn - start).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(turns(&A), [[0; 10].as_slice(), &[200, 400, 600, 800]].concat());
        assert_eq!(turns(&B)[..7], [0, 0, 0, 0, 0, 0, 50], "the rest of what all have at once");
        let later = start + Duration::from_secs(60);
        assert_eq!(state.turn(&A, later, later + OF_ONE.interval), Some(later));
        assert_eq!(state.of_pods.len(), 1, "who is not ahead is forgotten");
    }

    #[tokio::test]
    async fn who_asks_for_the_same_shares_one_read_and_only_so_many_answers_are_kept() {
        // Nobody answers there.
        let passage = Passage::new(Uri::from_static("http://127.0.0.1:9"), AllowedPaths::default());
        let now = Instant::now();
        let begin = |path: String| passage.begin(path, &A, now, now + FRESH).unwrap();
        let (first, second) = (begin("/a".to_owned()), begin("/a".to_owned()));
        assert!(first.ptr_eq(&second));
        assert_eq!(first.await, Err(NoPassage::Failed));
        let mut state = State::new(now);
        let nothing = async { Ok(None) }.boxed().shared();
        (0..2 * KEPT).for_each(|number| state.keep(number.to_string(), now + FRESH, nothing.clone(), now));
        assert_eq!(state.reads.len(), KEPT);
    }
}
