//! What one pod, and all pods together, may take of the listener. No tokio, no I/O; time is an argument.
//!
//! Owns who has how many connections, and who is ahead of its share of requests. The unit is an address: a pod may
//! not be known yet. Invariants: no address has more connections than it may, nor have all together; of an address
//! without a connection that is not ahead of its share nothing is kept beyond the next look, which any connection brings.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Between two looks for addresses that are done with.
const SWEEP: Duration = Duration::from_secs(1);
/// A pod with fewer connections finds a place though others have taken most.
const FEW: usize = 16;
/// Descriptors that are left for the rest: watches, calls of STS, the operator's listener, files.
const DESCRIPTORS_FOR_THE_REST: u64 = 256;

/// The limits, as flags say them.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Connections that one pod may have open.
    pub connections_per_pod: usize,
    /// Connections that all pods together may have open.
    pub connections: usize,
    /// Requests that one pod may make in a second, in the long run.
    pub requests_per_second: u32,
    /// Requests that one pod may make at once after a rest.
    pub request_burst: u32,
    /// Bytes of a request's head.
    pub request_head: usize,
    /// Bytes of a request's body.
    pub request_body: usize,
    /// From the first byte of a head to its last; and what a client may take to read what it was answered.
    pub request_timeout: Duration,
    /// From an answer, or from the beginning, to the first byte of a request.
    pub idle_timeout: Duration,
}

impl Limits {
    /// These limits for a process that may have so many descriptors open.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let room = descriptors - DESCRIPTORS_FOR_THE_REST.min(descriptors / 2);
        let connections = self.connections.min(usize::try_from(room).unwrap_or(usize::MAX));
        Self { connections, connections_per_pod: self.connections_per_pod.min(connections / 2), ..self }
    }
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The pod has as many as it may.
    Pod,
    /// All pods together have.
    Node,
}

/// Who is connected.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// What the buckets' times count from.
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    addresses: HashMap<IpAddr, Address>,
    next_sweep: Instant,
}

#[derive(Debug)]
struct Address {
    connections: usize,
    share: Arc<Share>,
}

/// One address's share of requests: a bucket that requests are taken from and that fills again with time. Whoever
/// finds it empty is told how long to wait; the waits are in the order in which they were asked for.
#[derive(Debug)]
struct Share {
    /// Until when, in nanoseconds from the origin, what was taken is filled up again.
    even: AtomicU64,
    /// Nanoseconds for one request.
    interval: u64,
    /// Nanoseconds that it may be ahead.
    burst: u64,
}

/// One connection's place; it is free again once this is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
    share: Arc<Share>,
}

/// A request that has to wait for its turn. Dropped without having waited, it gives the turn back.
#[derive(Debug)]
pub struct Turn<'a> {
    share: &'a Share,
    wait: Duration,
    taken: bool,
}

// === impl Admission ===

impl Admission {
    /// Nobody is connected.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Arc<Self> {
        let state = State { open: 0, addresses: HashMap::new(), next_sweep: now };
        Arc::new(Self { limits, origin: now, state: Mutex::new(state) })
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a connection from this canonical address.
    ///
    /// # Errors
    /// When there is none.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Place, Refused> {
        let mut state = self.state();
        if now >= state.next_sweep {
            state.next_sweep = now + SWEEP;
            let now = self.nanos(now);
            state.addresses.retain(|_, address| address.connections > 0 || !address.share.is_even(now));
        }
        let open = state.open;
        let entry = state
            .addresses
            .entry(address)
            .or_insert_with(|| Address { connections: 0, share: Arc::new(Share::new(&self.limits)) });
        // The last quarter is for those who have few.
        let most = if entry.connections < FEW { self.limits.connections } else { self.limits.connections / 4 * 3 };
        if open >= most {
            return Err(Refused::Node);
        }
        if entry.connections >= self.limits.connections_per_pod {
            return Err(Refused::Pod);
        }
        entry.connections += 1;
        let share = Arc::clone(&entry.share);
        state.open += 1;
        Ok(Place { admission: Arc::clone(self), address, share })
    }

    fn leave(&self, address: IpAddr) {
        let mut state = self.state();
        state.open = state.open.saturating_sub(1);
        if let Some(entry) = state.addresses.get_mut(&address) {
            entry.connections = entry.connections.saturating_sub(1);
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Nothing in here can panic halfway.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl Place {
    /// Takes a request from the pod's share: `None` if it may be answered at once.
    #[must_use]
    pub fn turn(&self, now: Instant) -> Option<Turn<'_>> {
        let wait = self.share.take(self.admission.nanos(now));
        (wait > 0).then(|| Turn { share: &self.share, wait: Duration::from_nanos(wait), taken: false })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.leave(self.address);
    }
}

// === impl Turn ===

impl Turn<'_> {
    /// How long it has to wait.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// It has waited.
    pub fn take(mut self) {
        self.taken = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.share.give_back();
        }
    }
}

// === impl Share ===

impl Share {
    fn new(limits: &Limits) -> Self {
        let interval = 1_000_000_000 / u64::from(limits.requests_per_second.max(1));
        Self { even: AtomicU64::new(0), interval, burst: interval * u64::from(limits.request_burst) }
    }

    /// Takes one request. How many nanoseconds it has to wait.
    fn take(&self, now: u64) -> u64 {
        let next = |even: u64| even.max(now) + self.interval;
        // Nothing else is published by it.
        let before = self.even.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |even| Some(next(even)));
        next(before.unwrap_or_else(|even| even)).saturating_sub(now + self.burst)
    }

    fn give_back(&self) {
        self.even.fetch_sub(self.interval, Ordering::Relaxed);
    }

    fn is_even(&self, now: u64) -> bool {
        self.even.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests;
