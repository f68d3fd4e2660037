//! Draining: one trigger, many watchers. A watcher that is dropped says that its part is done.

use std::time::Duration;

use tokio::sync::watch;

/// Starts the draining and waits for its end.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Held by whatever must end before the process does.
#[derive(Clone, Debug)]
pub struct Watcher(watch::Receiver<bool>);

/// A trigger and its first watcher.
#[must_use]
pub fn channel() -> (Trigger, Watcher) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Watcher(receiver))
}

impl Trigger {
    /// Tells all watchers and waits until the last is dropped, or for `grace`. Whether all were.
    pub async fn drain(self, grace: Duration) -> bool {
        self.0.send_replace(true);
        tokio::time::timeout(grace, self.0.closed()).await.is_ok()
    }
}

impl Watcher {
    /// Returns once the draining has begun. A trigger that is gone has begun nothing.
    pub async fn signaled(&self) {
        if self.0.clone().wait_for(|draining| *draining).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_ends_with_the_last_watcher_or_with_the_grace() {
        let (trigger, watcher) = channel();
        let part = tokio::spawn(async move { watcher.signaled().await });
        assert!(trigger.drain(Duration::from_secs(60)).await);
        part.await.unwrap();

        let (trigger, _held) = channel();
        assert!(!trigger.drain(Duration::from_millis(1)).await);
    }
}
