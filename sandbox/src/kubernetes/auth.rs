//! Who calls.
//!
//! Bearer tokens only: those of users, which are administrators as the group `system:masters` is, and
//! those of service accounts. There is no anonymous access.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header};
use serde_json::Value;

use super::{
    hex, lock, objects, random,
    resource::Resource,
    status::Status,
    store::{Key, Store},
};
use crate::{clock, issuer::Issuer};

/// How long a token outlives its pod's or account's deletion mark (go-jose's leeway).
const LEEWAY: Duration = Duration::from_secs(60);
/// The group of all nodes.
const NODES: &str = "system:nodes";

/// A caller whose credential was good.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) administrator: bool,
    pub(super) groups: Vec<String>,
    /// The node that a service account's token is bound to, by its pod or itself
    /// (`authentication.kubernetes.io/node-name`).
    pub(super) bound_to_node: Option<String>,
}

/// The users' tokens.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<HashMap<String, String>>);

// === impl User ===

impl User {
    /// A node, as constrained impersonation makes one.
    pub(super) fn node(name: &str) -> Self {
        let groups = vec![NODES.to_owned(), "system:authenticated".to_owned()];
        Self { name: format!("system:node:{name}"), administrator: false, groups, bound_to_node: None }
    }

    /// The node that the user is, as the API server tells nodes.
    pub(super) fn as_node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.groups.iter().any(|group| group == NODES))
    }

    fn service_account(namespace: &str, name: &str, bound_to_node: Option<String>) -> Self {
        let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            administrator: false,
            groups: groups.map(str::to_owned).to_vec(),
            bound_to_node,
        }
    }

    fn administrator(name: String) -> Self {
        let groups = ["system:masters", "system:authenticated"].map(str::to_owned).to_vec();
        Self { name, administrator: true, groups, bound_to_node: None }
    }
}

// === impl Users ===

impl Users {
    pub(super) fn token(&self, user: &str) -> String {
        let mut users = lock(&self.0);
        if let Some((token, _)) = users.iter().find(|(_, name)| *name == user) {
            return token.clone();
        }
        let token = hex(&random::<24>());
        users.insert(token.clone(), user.to_owned());
        token
    }

    pub(super) fn authenticate(&self, headers: &HeaderMap, issuer: &Issuer, store: &Store) -> Result<User, Status> {
        let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = credentials.and_then(|credentials| {
            let (scheme, token) = credentials.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let token = token.filter(|token| !token.is_empty()).ok_or_else(Status::unauthorized)?;
        if let Some(name) = lock(&self.0).get(token) {
            return Ok(User::administrator(name.clone()));
        }
        let claims = issuer.verify(token).map_err(|_| Status::unauthorized())?;
        service_account(&claims, issuer, store).ok_or_else(Status::unauthorized)
    }
}

/// The service account of a token that was meant for this server, and whose account and
/// pod are still those that it was made for.
fn service_account(claims: &Value, issuer: &Issuer, store: &Store) -> Option<User> {
    let audience = claims.get("aud")?;
    let meant = audience.as_array().is_some_and(|audiences| audiences.iter().any(|one| one == issuer.url()));
    if !meant && audience != issuer.url() {
        return None;
    }
    let kubernetes = claims.get("kubernetes.io")?;
    let namespace = kubernetes.get("namespace")?.as_str()?;
    let account = kubernetes.get("serviceaccount")?;
    let now = clock::now();
    alive(store, Resource::ServiceAccounts, namespace, account, now)?;
    match (kubernetes.get("pod"), kubernetes.get("secret"), kubernetes.get("node")) {
        (Some(pod), _, _) => alive(store, Resource::Pods, namespace, pod, now)?,
        (None, Some(_), _) => return None,
        (None, None, Some(node)) => alive(store, Resource::Nodes, "", node, now)?,
        (None, None, None) => {}
    }
    let node = kubernetes.pointer("/node/name").and_then(Value::as_str).map(str::to_owned);
    Some(User::service_account(namespace, account.get("name")?.as_str()?, node))
}

fn alive(store: &Store, resource: Resource, namespace: &str, reference: &Value, now: SystemTime) -> Option<()> {
    let object = store.get(&Key::new(resource, namespace, reference.get("name")?.as_str()?))?;
    let metadata = object.get("metadata")?;
    let deleted = metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(objects::parse_timestamp);
    let gone = deleted.is_some_and(|deleted| deleted + LEEWAY < now);
    (metadata.get("uid") == reference.get("uid") && !gone).then_some(())
}
