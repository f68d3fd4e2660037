//! How far our wall clock is from STS's, which dates each of its answers.
//!
//! Credentials end by our clock, and signatures are made with it: STS refuses one that is minutes off.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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

/// Looks at the date of each answer.
#[derive(Debug)]
pub(super) struct Skew {
    metrics: Arc<Metrics>,
    too_far: AtomicBool,
}

impl Skew {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, too_far: AtomicBool::default() }
    }

    fn seen(&self, ahead: i64) {
        self.metrics.clock_skew.set(ahead);
        let too_far = ahead.abs() > TOO_FAR;
        if self.too_far.swap(too_far, Ordering::Relaxed) != too_far {
            if too_far {
                tracing::warn!(seconds_ahead = ahead, "this node's clock is not that of STS: set the clock");
            } else {
                tracing::info!(seconds_ahead = ahead, "this node's clock is that of STS again");
            }
        }
    }
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
