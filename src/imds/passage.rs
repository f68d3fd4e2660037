//! The passage to the real metadata service, for what `--allow-path` names: read for pods by ourselves.
//!
//! Owns how much of it there is: the service answers an instance only so often, and the node needs it too. What was
//! answered a moment ago is answered again; beyond that there is a rate for all pods of the node together.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Uri;
use tokio::time::Instant;

use super::{
    allowed::AllowedPaths,
    upstream::{self, Page},
};

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept; each is some kilobytes at most.
const KEPT: usize = 64;
/// Between two reads in the long run, and how many may come at once.
const INTERVAL: Duration = Duration::from_millis(50);
const BURST: u32 = 20;

/// The passage.
#[derive(Debug)]
pub struct Passage {
    endpoint: Uri,
    allowed: AllowedPaths,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What was answered, and when.
    answers: HashMap<String, (Instant, Option<Page>)>,
    /// When all that was begun would be due if it had come evenly.
    due: Instant,
}

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
        Self { endpoint, allowed, state: Mutex::new(State { answers: HashMap::new(), due: Instant::now() }) }
    }

    /// The path to read, if what was asked for is allowed.
    #[must_use]
    pub fn judge(&self, path: &str) -> Option<String> {
        self.allowed.judge(path)
    }

    /// What is at a path that was judged; `None` where there is nothing.
    ///
    /// # Errors
    /// Why it cannot be said by the deadline.
    pub async fn read(&self, path: String, deadline: Instant) -> Result<Option<Page>, NoPassage> {
        let now = Instant::now();
        if let Some((at, page)) = self.state().answers.get(&path)
            && now < *at + FRESH
        {
            return Ok(page.clone());
        }
        let turn = self.state().turn(now, deadline).ok_or(NoPassage::Limited)?;
        tokio::time::sleep_until(turn).await;
        let read = tokio::time::timeout_at(deadline, upstream::page(&self.endpoint, &path)).await;
        match read {
            Ok(Ok(page)) => {
                self.state().keep(path, page.clone());
                Ok(page)
            }
            Ok(Err(error)) => {
                tracing::debug!(path, %error, "an allowed path could not be read");
                Err(NoPassage::Failed)
            }
            Err(_elapsed) => Err(NoPassage::Failed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When the next read may begin, if that is before the deadline.
    fn turn(&mut self, now: Instant, deadline: Instant) -> Option<Instant> {
        let due = self.due.max(now);
        let turn = (due.checked_sub(INTERVAL * (BURST - 1))).map_or(now, |turn| turn.max(now));
        (turn < deadline).then(|| {
            self.due = due + INTERVAL;
            turn
        })
    }

    fn keep(&mut self, path: String, page: Option<Page>) {
        let now = Instant::now();
        if self.answers.len() >= KEPT {
            self.answers.retain(|_, (at, _)| now < *at + FRESH);
        }
        if self.answers.len() < KEPT {
            self.answers.insert(path, (now, page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_come_at_once_after_a_rest_and_evenly_from_then_on() {
        let start = Instant::now();
        let mut state = State { answers: HashMap::new(), due: start };
        let deadline = start + Duration::from_millis(900);
        let turns = std::iter::from_fn(|| state.turn(start, deadline)).collect::<Vec<_>>();
        assert!(turns[..20].iter().all(|turn| *turn == start));
        assert_eq!(turns[20..].iter().map(|turn| (*turn - start).as_millis()).collect::<Vec<_>>(), {
            (1..18).map(|n| n * 50).collect::<Vec<_>>()
        });
        let later = start + Duration::from_secs(60);
        assert_eq!(state.turn(later, later + INTERVAL), Some(later));
    }

    #[test]
    fn only_so_many_answers_are_kept() {
        let mut state = State { answers: HashMap::new(), due: Instant::now() };
        for number in 0..2 * KEPT {
            state.keep(number.to_string(), None);
        }
        assert_eq!(state.answers.len(), KEPT);
    }
}
