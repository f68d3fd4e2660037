//! How the sandbox's STS can be made to fail; the real one does each of these now and then.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::sync::watch;

use super::answers::Refusal;

/// What is answered instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 400 `Throttling`, "Rate exceeded".
    Throttling,
    /// 500 `InternalFailure`.
    InternalFailure,
    /// 503 `ServiceUnavailable`.
    ServiceUnavailable,
    /// The connection ends in the middle of the (otherwise right) answer's body.
    Cut,
}

impl Fault {
    pub(super) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Throttling => Some(Refusal::bad("Throttling", "Rate exceeded")),
            Self::InternalFailure => Some(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalFailure",
                "The request processing has failed because of an unknown error, exception or failure.",
            )),
            Self::ServiceUnavailable => Some(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "The request has failed due to a temporary failure of the server.",
            )),
            Self::Cut => None,
        }
    }
}

/// Which calls a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The next so many, then no more.
    Next(u32),
    /// All until cleared.
    All,
    /// The next, not the one after it, and so on until cleared.
    EveryOther,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    fault: Fault,
    which: Which,
    /// The only action that it befalls, if there is one.
    action: Option<&'static str>,
    /// Of every other call: whether it is this one's turn.
    due: bool,
}

impl Planned {
    /// Whether the fault befalls the call that comes now.
    fn strikes(&mut self) -> bool {
        match &mut self.which {
            Which::All => true,
            Which::EveryOther => {
                self.due = !self.due;
                !self.due
            }
            Which::Next(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// The dials. All act on calls that come after they are set.
#[derive(Debug)]
pub struct Faults {
    planned: Mutex<Vec<Planned>>,
    latency: Mutex<Duration>,
    skew: AtomicI64,
    stalled: watch::Sender<bool>,
    gate: watch::Sender<bool>,
    held: AtomicUsize,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            planned: Mutex::default(),
            latency: Mutex::default(),
            skew: AtomicI64::default(),
            stalled: watch::channel(false).0,
            gate: watch::channel(false).0,
            held: AtomicUsize::default(),
        }
    }
}

impl Faults {
    /// Plans a fault of any call; faults planned earlier come first.
    pub fn fail(&self, fault: Fault, which: Which) {
        locked(&self.planned).push(Planned { fault, which, action: None, due: true });
    }

    /// Plans a fault of calls of one action; the others neither suffer nor count.
    pub fn fail_action(&self, action: &'static str, fault: Fault, which: Which) {
        locked(&self.planned).push(Planned { fault, which, action: Some(action), due: true });
    }

    /// Takes back every planned fault, latency, skew, stall and gate.
    pub fn clear(&self) {
        locked(&self.planned).clear();
        self.set_latency(Duration::ZERO);
        self.set_clock_skew(0);
        self.stall(false);
        self.release();
    }

    /// Every answer comes so much later.
    pub fn set_latency(&self, latency: Duration) {
        *locked(&self.latency) = latency;
    }

    /// STS's own clock is `seconds` ahead (or behind) of the machine's: in `Date`, and in what it checks.
    pub fn set_clock_skew(&self, seconds: i64) {
        self.skew.store(seconds, Ordering::Relaxed);
    }

    /// While stalled, requests are read and not answered.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// From now on AssumeRoleWithWebIdentity's answers are made, and held back until [`Self::release`].
    pub fn hold(&self) {
        self.gate.send_replace(true);
    }

    /// Lets the held answers go, and holds none.
    pub fn release(&self) {
        self.gate.send_replace(false);
    }

    /// How many answers are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn next(&self, action: &str) -> Option<Fault> {
        let mut planned = locked(&self.planned);
        planned.retain(|planned| planned.which != Which::Next(0));
        let next = planned.iter_mut().find(|planned| planned.action.is_none_or(|only| only == action))?;
        next.strikes().then_some(next.fault)
    }

    pub(super) fn now(&self) -> SystemTime {
        let now = crate::clock::now();
        let skew = self.skew.load(Ordering::Relaxed);
        let span = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 { now - span } else { now + span }
    }

    pub(super) async fn delay(&self) {
        let latency = *locked(&self.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        open(&self.stalled).await;
    }

    pub(super) async fn pass_gate(&self) {
        // A caller that gives up drops this future: the count must follow.
        struct Held<'a>(&'a AtomicUsize);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if *self.gate.borrow() {
            self.held.fetch_add(1, Ordering::Relaxed);
            let _held = Held(&self.held);
            open(&self.gate).await;
        }
    }
}

async fn open(closed: &watch::Sender<bool>) {
    // The sender is ours: it cannot go away while we wait.
    let _ = closed.subscribe().wait_for(|closed| !closed).await;
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_befall_the_calls_that_were_named() {
        let faults = Faults::default();
        faults.fail(Fault::Throttling, Which::Next(2));
        faults.fail(Fault::InternalFailure, Which::EveryOther);
        let seen: Vec<_> = (0..6).map(|_| faults.next("A")).collect();
        let (throttled, failed) = (Some(Fault::Throttling), Some(Fault::InternalFailure));
        assert_eq!(seen, [throttled, throttled, failed, None, failed, None]);
        faults.clear();
        assert_eq!(faults.next("A"), None);
        faults.fail_action("A", Fault::Cut, Which::Next(1));
        assert_eq!([faults.next("B"), faults.next("A"), faults.next("A")], [None, Some(Fault::Cut), None]);
    }
}
