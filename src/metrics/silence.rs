//! How long the API server has not been heard, by what is watched.
//!
//! An age and no time of day: it is right also where this node's clock is not that of Prometheus.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use prometheus::{GaugeVec, Opts, Registry};

use super::{
    Metric,
    definition::{Handle, Kind},
};
use crate::clock;

/// The watches there are, and when each was heard last.
#[derive(Debug)]
pub struct Silence {
    watches: Mutex<Vec<(&'static str, Weak<Heard>)>>,
    seconds: GaugeVec,
}

/// When a watch was heard last. It counts as long as this is there.
#[derive(Debug)]
pub struct Heard(Mutex<Instant>);

impl Silence {
    /// A watch of this resource begins.
    pub fn begin(&self, resource: &'static str) -> Arc<Heard> {
        let heard = Arc::new(Heard(Mutex::new(clock::now().monotonic)));
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|(_, heard)| heard.strong_count() > 0);
        watches.push((resource, Arc::downgrade(&heard)));
        heard
    }

    /// Notes what holds now, of each resource by its watch that has been silent for longest.
    pub fn look(&self, now: Instant) {
        let longest = self.longest(now);
        for resource in super::RESOURCE.values {
            match longest.get(resource) {
                Some(silence) => self.seconds.with_label_values(&[resource]).set(silence.as_secs_f64()),
                // It may not have been there.
                None => drop(self.seconds.remove_label_values(&[resource])),
            }
        }
    }

    fn longest(&self, now: Instant) -> BTreeMap<&'static str, Duration> {
        let mut longest = BTreeMap::new();
        for (resource, heard) in self.watches.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(heard) = heard.upgrade() {
                let silence = longest.entry(*resource).or_default();
                *silence = heard.silence(now).max(*silence);
            }
        }
        longest
    }
}

impl Heard {
    /// It is heard now.
    pub fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = clock::now().monotonic;
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Handle for Silence {
    const KIND: Kind = Kind::Gauge;

    fn registered(metric: &Metric, registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = GaugeVec::new(Opts::new(metric.name, metric.help), &[super::RESOURCE.name])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { watches: Mutex::default(), seconds })
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;

    use super::*;

    #[test]
    fn the_watch_that_is_silent_for_longest_counts_until_it_ends() {
        let metrics = Metrics::new().unwrap();
        let (silent, other) = (metrics.watch_silence.begin("pods"), metrics.watch_silence.begin("pods"));
        let later = clock::now().monotonic + Duration::from_secs(60);
        *other.0.lock().unwrap() = later;
        assert!(metrics.watch_silence.longest(later)["pods"] > Duration::from_secs(59));
        *silent.0.lock().unwrap() = later;
        assert_eq!(metrics.watch_silence.longest(later), [("pods", Duration::ZERO)].into());
        metrics.watch_silence.look(later);
        let text = || String::from_utf8(metrics.text().unwrap().0).unwrap();
        assert!(text().contains("kube2irsa_watch_silence_seconds{resource=\"pods\"} 0"), "{}", text());
        drop((silent, other));
        metrics.watch_silence.look(later);
        assert!(!text().contains("kube2irsa_watch_silence_seconds{"), "{}", text());
    }
}
