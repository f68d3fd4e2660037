//! The direct look-up: an address that no watch has told of yet is asked for by itself, within its caller's budget.
//!
//! Owns the limits, for a pod can make up any number of reasons to look: twice a second a node, and once for an
//! address in ten seconds.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use tokio::sync::mpsc;

use super::{
    directory::Directory,
    names::NodeName,
    watch::{ReadPod, pods_of},
};
use crate::{clock, metrics::Metrics};

/// Look-ups of a node in one second, at the most.
const PER_SECOND: u32 = 2;
/// An address is not looked up again for so long.
const ONCE_IN: Duration = Duration::from_secs(10);
/// Longer than a caller waits; what comes later serves the next request.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Looks up the addresses that are asked for; ends with the directory.
pub async fn look_up(
    client: Client,
    node: NodeName,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    mut asked: mpsc::Receiver<IpAddr>,
) {
    let mut limits = Limits::default();
    while let Some(address) = asked.recv().await {
        if !limits.allow(address, clock::now().monotonic) {
            metrics.lookups.with_label_values(&["limited"]).inc();
            continue;
        }
        let ends = directory.ends();
        let at_address = pods_of(client.clone(), &node, &format!(",status.podIP={address}"), Arc::clone(&metrics));
        let result = match tokio::time::timeout(TIME_LIMIT, at_address.list(|ReadPod(pod)| pod)).await {
            Ok(Ok((found, _))) => {
                let result = if found.is_empty() { "nobody" } else { "found" };
                found.into_iter().for_each(|pod| directory.found_pod(pod, ends));
                result
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a look-up failed");
                "failed"
            }
            Err(_elapsed) => "failed",
        };
        metrics.lookups.with_label_values(&[result]).inc();
    }
}

#[derive(Default)]
struct Limits {
    last: HashMap<IpAddr, Instant>,
    /// When the second began that is being counted, and the look-ups in it.
    second: Option<(Instant, u32)>,
}

impl Limits {
    fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        self.last.retain(|_, at| now.duration_since(*at) < ONCE_IN);
        if self.last.contains_key(&address) {
            return false;
        }
        let (start, used) = match self.second {
            Some((start, used)) if now.duration_since(start) < Duration::from_secs(1) => (start, used),
            Some(_) | None => (now, 0),
        };
        if used == PER_SECOND {
            return false;
        }
        self.second = Some((start, used + 1));
        self.last.insert(address, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_ups_are_two_a_second_and_one_an_address_in_ten() {
        let start = clock::now().monotonic;
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let mut limits = Limits::default();
        assert!(limits.allow(address(1), at(0)));
        assert!(!limits.allow(address(1), at(10)));
        assert!(limits.allow(address(2), at(20)));
        assert!(!limits.allow(address(3), at(30)));
        assert!(limits.allow(address(3), at(1000)));
        assert!(!limits.allow(address(1), at(9999)));
        assert!(limits.allow(address(1), at(10_000)));
    }
}
