//! The sandbox's one look at the wall clock.

use std::time::SystemTime;

/// The time now.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}
