//! What an operator is told of a session: what its last fetch met, what it holds, when it is fetched next.
//!
//! Invariant: no secret is in it. An access key id is none: CloudTrail and every signed request name it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{
    document::{Document, Form},
    slot::State,
    standing::Fault,
};
use crate::{clock::Now, identity::Pod};

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `RoleSessionName`, as CloudTrail names it.
    pub session_name: String,
    /// What is served.
    pub held: Option<Held>,
    /// The last fetch that ended.
    pub last: Option<Attempt>,
    /// The next one.
    pub next: Next,
}

/// Credentials that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// When they expire.
    pub expires: SystemTime,
    /// How long that is from now.
    pub left: Duration,
}

/// A fetch that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When.
    pub at: SystemTime,
    /// Whose token it was made with: one of those who share the session.
    pub pod: Arc<Pod>,
    /// What kept it from bringing credentials.
    pub missed: Option<Missed>,
}

/// Why a fetch brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// How far it came.
    pub stage: Stage,
    /// Whether that may pass by itself.
    pub may_pass: bool,
    /// AWS's code, the API server's status, or our word for what happened on the way.
    pub code: String,
    /// What is wrong and what to do, as Events say it.
    pub words: String,
}

/// How far a fetch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There was no token.
    Token,
    /// STS gave nothing, or nothing that is still good.
    Exchange,
}

/// When a session is fetched next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Next {
    /// When somebody asks.
    #[default]
    WhenAsked,
    /// It is in flight, or waits for its turn.
    Now,
    /// At this time.
    At(SystemTime),
    /// When somebody asks, but not before.
    WhenAskedAfter(SystemTime),
}

/// What a slot remembers for it.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) last: Option<Attempt>,
    pub(super) next: Next,
    /// The trouble that the log told of last, if it is not over.
    told: Option<String>,
}

// === impl Trace ===

impl Trace {
    /// Notes what the log is to tell of; what it told of before, if that is something else.
    pub(super) fn tell(&mut self, trouble: Option<String>) -> Option<Option<String>> {
        (self.told != trouble).then(|| std::mem::replace(&mut self.told, trouble))
    }

    /// Where the last fetch failed.
    pub(super) fn fault(&self) -> Option<Fault> {
        let missed = self.last.as_ref()?.missed.as_ref()?;
        Some(match missed.stage {
            _ if missed.may_pass => Fault::Passing,
            Stage::Token => Fault::Kubernetes,
            Stage::Exchange => Fault::Aws,
        })
    }
}

// === impl Held ===

impl Held {
    /// What is in the document, while that is good.
    pub(super) fn of(document: &Document, now: Now) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Keys {
            access_key_id: String,
        }
        let Keys { access_key_id } = serde_json::from_slice(&document.body(Form::Metadata, now)?).ok()?;
        let expires = document.expires();
        Some(Self { access_key_id, expires: expires.wall, left: expires.left(now) })
    }
}

// === impl Next ===

impl Next {
    pub(super) fn of(state: &State, now: Now) -> Self {
        let wall = |at: std::time::Instant| now.wall + at.saturating_duration_since(now.monotonic);
        match state {
            State::Fetching { .. } | State::Renewing { .. } => Self::Now,
            State::Fresh { due, .. } => Self::At(due.wall),
            State::Failed { again: Some((at, _)), .. } => Self::At(wall(*at)),
            State::Failed { until, .. } => Self::WhenAskedAfter(wall(*until)),
            State::Empty | State::Gone => Self::WhenAsked,
        }
    }
}
