//! Who asks, and that one's credentials: what both services do with a request.
//!
//! Invariant: every wait ends with a look at who holds the address, or has the UID, now.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use tokio::time::Instant;

use super::respond::BUDGET;
use crate::{
    clock,
    credentials::{Outcome, Store, document::Form},
    identity::{Caller, Directory, Grant, Peer, Role, Unidentified},
    metrics::{Metrics, Source},
};

/// The pods of this node and their credentials.
#[derive(Clone, Debug)]
pub struct Pods {
    directory: Arc<Directory>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    told_of_link_local: Arc<AtomicBool>,
}

/// Why a pod is entitled to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unentitled {
    /// Its service account names no role, or none by this name.
    NoRole,
    /// The annotations cannot be meant, or the namespace does not permit the role.
    Invalid,
    /// The service account is not known (yet).
    NotKnown,
}

impl Pods {
    /// The pods in `directory` and the credentials in `store`.
    #[must_use]
    pub fn new(directory: Arc<Directory>, store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self { directory, store, metrics, told_of_link_local: Arc::default() }
    }

    /// Who asks from `peer`.
    ///
    /// # Errors
    /// Why that is not known by `deadline`.
    pub async fn identify(&self, peer: &Peer, deadline: Instant) -> Result<Arc<Caller>, Unidentified> {
        let identified = match peer {
            Peer::Address(address) => self.directory.identify(*address, deadline).await,
            Peer::HostPod(uid) => self.directory.identify_host_pod(uid, deadline).await,
            Peer::HostProcess => Err(Unidentified::HostProcess),
        };
        identified.inspect_err(|why| {
            self.metrics.unidentified.with_label_values(&[why.label()]).inc();
            if *why == Unidentified::LinkLocal && !self.told_of_link_local.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %peer,
                    "a request comes from a link-local address, which is no pod's: in a cluster of IPv6 pods must ask over \
                     IPv6, with AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6 in their environment (said once; \
                     kube2irsa_unidentified_requests_total counts them)"
                );
            }
        })
    }

    /// Who asks from `peer`, if that is known.
    #[must_use]
    pub fn identified(&self, peer: &Peer) -> Option<Arc<Caller>> {
        match peer {
            Peer::Address(address) => self.directory.identified(*address),
            Peer::HostPod(uid) => self.directory.host_pod(uid),
            Peer::HostProcess => None,
        }
    }

    /// The credentials of the caller's role with this name; without one, of its main role. `None` where the address or
    /// its roles changed meanwhile: who asks must be found out anew.
    pub async fn credentials<'a>(
        &self,
        caller: &'a Caller,
        name: Option<&str>,
        form: Form,
        peer: &Peer,
        deadline: Instant,
    ) -> Option<Result<(&'a Arc<Grant>, Outcome), Unentitled>> {
        let role = name.map_or(Some(&caller.roles.main), |name| caller.roles.named(name));
        let grant = match role.map_or(Err(Unentitled::NoRole), granted) {
            Ok(grant) => grant,
            Err(why) => return Some(Err(why)),
        };
        let arrived = (deadline - BUDGET).into_std();
        // One look at the clock serves both.
        let now = clock::now();
        if let Some((document, first)) = self.store.get(grant, form, now) {
            let source = if first { Source::Prefetch } else { Source::Cache };
            self.metrics.waited(source, now.monotonic.saturating_duration_since(arrived));
            return Some(Ok((grant, Outcome::Document(document))));
        }
        // In a box: what is there already is what nearly all find, and they would carry the room along.
        let outcome = Box::pin(self.store.obtain(grant, form, deadline)).await;
        let is_last = Instant::now() >= deadline;
        let outcome = if outcome != Outcome::Gone && self.still(caller, peer) { Some(outcome) } else { None };
        if let Some(outcome) = outcome.or_else(|| is_last.then_some(Outcome::Gone)) {
            let source = if matches!(outcome, Outcome::Document(_)) { Source::Sts } else { Source::Nowhere };
            self.metrics.waited(source, clock::now().monotonic.saturating_duration_since(arrived));
            return Some(Ok((grant, outcome)));
        }
        tokio::task::yield_now().await;
        None
    }

    /// Whether the caller is still who asks from there, with the same roles.
    #[must_use]
    pub fn still(&self, caller: &Caller, peer: &Peer) -> bool {
        self.identified(peer).is_some_and(|now| now.pod.uid == caller.pod.uid && now.roles == caller.roles)
    }
}

/// What the role entitles to.
///
/// # Errors
/// Why to nothing.
pub fn granted(role: &Role) -> Result<&Arc<Grant>, Unentitled> {
    match role {
        Role::Granted(grant) => Ok(grant),
        Role::None => Err(Unentitled::NoRole),
        Role::Invalid(_) => Err(Unentitled::Invalid),
        Role::Unknown => Err(Unentitled::NotKnown),
    }
}

// === impl Unentitled ===

impl Unentitled {
    /// What it looks like to an SDK.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoRole => StatusCode::NOT_FOUND,
            Self::Invalid => StatusCode::FORBIDDEN,
            Self::NotKnown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
