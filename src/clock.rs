//! The two clocks, read in one place, so that the pure modules are given the time and never take it.
//!
//! Credentials end by the wall clock, which may be stepped; the monotonic clock cannot be, but stands
//! still while the machine sleeps. Whatever must not be used too long ends by whichever comes first.

use std::time::{Duration, Instant, SystemTime};

use aws_smithy_types::{DateTime, date_time::Format};

/// What is no drift, between two readings that are seconds apart.
const STEP: Duration = Duration::from_secs(1);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock: compared with times that AWS or Kubernetes gave.
    pub wall: SystemTime,
    /// The monotonic clock: for everything that we time ourselves.
    pub monotonic: Instant,
}

impl Now {
    /// Seconds since the Unix epoch, by the wall clock.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// The moment that is `time` by the wall clock, on both clocks.
    #[must_use]
    pub fn deadline(&self, time: SystemTime) -> Deadline {
        let left = time.duration_since(self.wall).unwrap_or_default();
        Deadline { wall: time, monotonic: self.monotonic + left }
    }

    /// The moment that comes after so long, on both clocks.
    #[must_use]
    pub fn after(&self, time: Duration) -> Deadline {
        Deadline { wall: self.wall + time, monotonic: self.monotonic + time }
    }

    /// Whether the wall clock was set, or the machine slept, since `before`: the clocks went apart by more than
    /// they drift.
    #[must_use]
    pub fn stepped_since(&self, before: Self) -> bool {
        let monotonic = self.monotonic.saturating_duration_since(before.monotonic);
        let wall = self.wall.duration_since(before.wall).unwrap_or_default();
        wall.abs_diff(monotonic) > STEP
    }
}

/// A moment on both clocks; it has passed when it has passed on either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// By the wall clock.
    pub wall: SystemTime,
    /// By the monotonic clock.
    pub monotonic: Instant,
}

impl Deadline {
    /// What is left until then; zero once it has passed.
    #[must_use]
    pub fn left(&self, now: Now) -> Duration {
        let wall = self.wall.duration_since(now.wall).unwrap_or_default();
        wall.min(self.monotonic.saturating_duration_since(now.monotonic))
    }

    /// Whether it has passed on either clock.
    #[must_use]
    pub fn passed(&self, now: Now) -> bool {
        self.wall <= now.wall || self.monotonic <= now.monotonic
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ`, exactly: the Rust SDK refuses offsets, minio's fractions. `None` before 1970.
#[must_use]
pub fn rfc3339(time: SystemTime) -> Option<String> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    DateTime::from_secs(i64::try_from(seconds).ok()?).fmt(Format::DateTime).ok()
}

/// Reads both clocks.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Now {
    Now { wall: SystemTime::now(), monotonic: Instant::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_has_passed_when_either_clock_says_so() {
        let start = now();
        let deadline = start.deadline(start.wall + Duration::from_secs(60));
        assert_eq!(deadline.left(start), Duration::from_secs(60));

        let stepped_back =
            Now { wall: start.wall - Duration::from_secs(3600), monotonic: start.monotonic + Duration::from_secs(61) };
        assert!(deadline.passed(stepped_back), "the wall clock was stepped back");

        let slept = Now { wall: start.wall + Duration::from_secs(61), monotonic: start.monotonic };
        assert!(deadline.passed(slept), "the monotonic clock stood still");
    }
}
