//! How far our wall clock is from STS's, which dates each of its answers.
//!
//! Credentials end by our clock, and signatures are made with it: STS refuses one that is minutes off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeDeserializationInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{DateTime, config_bag::ConfigBag, date_time::Format};

use crate::{clock, metrics::Metrics};

/// Seconds that the operator is told about.
const TOO_FAR: i64 = 60;
/// What a date does not show: the part of a second, and how long the answer was on its way.
const UNSEEN: Duration = Duration::from_secs(3);

/// Looks at the date of each answer.
#[derive(Clone, Debug)]
pub(super) struct Skew {
    metrics: Arc<Metrics>,
    /// Seconds that our clock is ahead of STS's, when it answered last.
    ahead: Arc<AtomicI64>,
}

impl Skew {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, ahead: Arc::default() }
    }

    /// How far our clock is behind STS's, at the most; zero if it is ahead.
    pub(super) fn behind(&self) -> Duration {
        match u64::try_from(self.ahead.load(Ordering::Relaxed).saturating_neg()) {
            Ok(behind @ 1..) => Duration::from_secs(behind) + UNSEEN,
            Ok(0) | Err(_) => Duration::ZERO,
        }
    }

    fn seen(&self, ahead: i64) {
        self.metrics.clock_skew.set(ahead);
        let before = self.ahead.swap(ahead, Ordering::Relaxed);
        match (is_too_far(before), is_too_far(ahead)) {
            (false, true) => {
                tracing::warn!(seconds_ahead = ahead, "this node's clock is not that of STS: set the clock");
            }
            (true, false) => tracing::info!(seconds_ahead = ahead, "this node's clock is that of STS again"),
            (false, false) | (true, true) => {}
        }
    }
}

fn is_too_far(ahead: i64) -> bool {
    ahead.abs() > TOO_FAR
}

impl Intercept for Skew {
    fn name(&self) -> &'static str {
        "Skew"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let ours = i64::try_from(clock::now().unix_seconds()).ok();
        if let (Some(date), Some(ours)) = (date, ours) {
            self.seen(ours - date.secs());
        }
        Ok(())
    }
}
