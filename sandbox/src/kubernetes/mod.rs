//! The cluster's API server: what a node daemon needs of it, as strict as a real one of 1.36.
//!
//! It owns namespaces, nodes, pods, service accounts and Events, their versions and their history, and answers
//! get, list, watch, TokenRequest and SelfSubjectAccessReview; DaemonSets too, so that who runs on the nodes can be told. Statuses, reasons and texts are a real server's. State changes only
//! by this type's methods, in the names of kubelet, controllers and kubectl: of what a real server would also
//! let a client write, Events are taken here, and patches that remove taints of Nodes; all else is refused with 405. It speaks JSON over HTTP/1.1, with bearer tokens.
//!
//! Service accounts may do nothing but what [`Kubernetes::grant`] gives them, and get 403 otherwise. Nodes
//! are impersonated as constrained impersonation has it, and may do what nodes may; whoever else, by administrators alone.

mod accept;
mod access;
mod auth;
mod cluster;
mod decode;
mod event;
mod faults;
mod impersonation;
mod list;
mod node;
mod objects;
mod options;
mod patch;
mod request;
mod resource;
mod review;
mod selector;
mod serve;
mod status;
mod store;
mod token;
mod traffic;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

pub use self::{
    access::Grant,
    faults::{Corruption, Fault, Faults, Target},
    objects::{ContainerState, NewPod, PodPhase, PodStatus},
    resource::Resource,
};
use self::{
    access::{Access, Subject},
    auth::Users,
    store::Store,
    traffic::Traffic,
};
use crate::issuer::Issuer;

/// A request that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    /// `get`, `list`, `watch`, `create`, …; the method in lower case where there is no resource.
    pub verb: String,
    /// The resource with its subresource: `pods`, `serviceaccounts/token`; empty where there is none.
    pub resource: String,
    /// The path.
    pub path: String,
    /// The query, as it was sent; empty if none.
    pub query: String,
    /// Who asked; empty for who was not let in.
    pub user: String,
    /// As whom; empty where nobody is impersonated, or not with right.
    pub impersonated: String,
}

/// A Kubernetes API server and the cluster behind it; clones are the same server.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    issuer: Arc<Issuer>,
    store: Arc<Store>,
    users: Users,
    access: Access,
    faults: Faults,
    /// Of the version that it says it has.
    minor: AtomicU64,
    requests: Mutex<Vec<RecordedRequest>>,
    watches: Watches,
    traffic: Traffic,
}

/// The watches that are open.
#[derive(Debug, Default)]
struct Watches {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, RecordedRequest>>,
}

/// Keeps a watch in the list of the open ones.
struct OpenWatch {
    kubernetes: Kubernetes,
    id: u64,
}

// === impl Kubernetes ===

impl Kubernetes {
    /// An empty cluster whose service account tokens `issuer` signs.
    #[must_use]
    pub fn new(issuer: Arc<Issuer>) -> Self {
        let store = Arc::new(Store::new());
        let inner = Inner {
            issuer,
            faults: Faults::new(store.clone()),
            store,
            users: Users::default(),
            access: Access::default(),
            minor: AtomicU64::new(36),
            requests: Mutex::default(),
            watches: Watches::default(),
            traffic: Traffic::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The bearer token of a user that may do everything; the same for the same user.
    #[must_use]
    pub fn user_token(&self, user: &str) -> String {
        self.inner.users.token(user)
    }

    /// Lets a user (a service account's name is `system:serviceaccount:<namespace>:<name>`) do more than nothing.
    pub fn grant(&self, user: &str, grant: Grant) {
        self.inner.access.grant(Subject::User(user.to_owned()), grant);
    }

    /// Takes back all that was granted to a user itself.
    pub fn revoke(&self, user: &str) {
        self.inner.access.revoke(&Subject::User(user.to_owned()));
    }

    /// Lets all of a group (`system:nodes`, say) do more than nothing.
    pub fn grant_group(&self, group: &str, grant: Grant) {
        self.inner.access.grant(Subject::Group(group.to_owned()), grant);
    }

    /// A kubeconfig, in JSON, which is YAML.
    #[must_use]
    pub fn kubeconfig(&self, server_url: &str, ca_pem: &str, token: &str) -> String {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "sandbox",
                "cluster": { "server": server_url, "certificate-authority-data": STANDARD.encode(ca_pem) },
            }],
            "users": [{ "name": "sandbox", "user": { "token": token } }],
            "contexts": [{ "name": "sandbox", "context": { "cluster": "sandbox", "user": "sandbox" } }],
            "current-context": "sandbox",
        });
        format!("{config:#}\n")
    }

    /// From now on it says that it is of version 1.`minor`. What it serves stays that of 1.36.
    pub fn set_version(&self, minor: u64) {
        self.inner.minor.store(minor, Ordering::Relaxed);
    }

    /// What can be made to go wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// Forgets history: what asks for an older state, or for changes since it, is answered with 410.
    pub fn compact(&self) {
        self.inner.store.compact();
    }

    /// Forgets history up to a resource version, as a real server does every five minutes with what is older.
    pub fn compact_to(&self, revision: u64) {
        self.inner.store.compact_to(revision);
    }

    /// The resource version of the latest write.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.inner.store.revision()
    }

    /// Every request so far, in order, without secrets.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.inner.requests).clone()
    }

    /// The requests of the watches that are open now.
    #[must_use]
    pub fn open_watches(&self) -> Vec<RecordedRequest> {
        lock(&self.inner.watches.open).values().cloned().collect()
    }

    /// Bytes of the bodies that were sent so far, by verb and resource.
    #[must_use]
    pub fn bytes_sent(&self) -> BTreeMap<(String, String), u64> {
        self.inner.traffic.sent()
    }

    fn record(&self, request: &RecordedRequest) {
        lock(&self.inner.requests).push(request.clone());
    }

    fn open_watch(&self, request: RecordedRequest) -> OpenWatch {
        let id = self.inner.watches.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.watches.open).insert(id, request);
        OpenWatch { kubernetes: self.clone(), id }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        lock(&self.kubernetes.inner.watches.open).remove(&self.id);
    }
}

/// A lock is good also after a panic of its holder: each change under it is complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // It can only fail where no operating system gives randomness, and then TLS is not there either.
    if let Err(error) = aws_lc_rs::rand::fill(&mut bytes) {
        tracing::error!(%error, "no randomness");
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random UUID, version 4.
fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}
