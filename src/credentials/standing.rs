//! How sessions stand, as metrics show it, and at whom a fetch failed. Pure.

use std::collections::BTreeMap;

use super::View;
use crate::clock::Now;

/// Where a fetch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// STS refuses until somebody mends something.
    Aws,
    /// So does the API server.
    Kubernetes,
    /// It may pass by itself.
    Passing,
}

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Its credentials are served.
    Good,
    /// They are, and the last renewal failed.
    RenewalFailing,
    /// They are being fetched.
    Fetching,
    /// There are none: STS refuses.
    RefusedByAws,
    /// There are none: the API server refuses.
    RefusedByKubernetes,
    /// There are none, for now.
    Failing,
}

/// What the metrics show.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// How many sessions stand so.
    pub standings: BTreeMap<Standing, usize>,
    /// Those that are served with less than a quarter of their life left.
    pub low: usize,
    /// The least that any that is served has left, of its whole life; 1 where none is.
    pub least_left: f64,
}

impl Standing {
    /// How a slot with this view stands, whose last fetch failed there.
    pub(super) fn of(view: &View, fault: Option<Fault>, now: Now) -> Self {
        match (view, fault) {
            (View::Document(document), None) if !document.expires().passed(now) => Self::Good,
            (View::Document(document), Some(_)) if !document.expires().passed(now) => Self::RenewalFailing,
            (View::Pending(None) | View::Gone, _) | (View::Document(_), None) => Self::Fetching,
            (_, Some(Fault::Aws)) => Self::RefusedByAws,
            (_, Some(Fault::Kubernetes)) => Self::RefusedByKubernetes,
            (_, Some(Fault::Passing) | None) => Self::Failing,
        }
    }

    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::RenewalFailing => "renewal_failing",
            Self::Fetching => "fetching",
            Self::RefusedByAws => "refused_by_aws",
            Self::RefusedByKubernetes => "refused_by_kubernetes",
            Self::Failing => "failing",
        }
    }
}
