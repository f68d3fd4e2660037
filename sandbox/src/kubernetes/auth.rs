//! Who calls, and what the caller may do.
//!
//! Bearer tokens only: those of users, which are administrators as the group `system:masters` is, and
//! those of service accounts, which may do what was granted to them and nothing else. There is no
//! anonymous access and no impersonation.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header};
use serde_json::Value;

use super::{
    hex, lock, objects, random,
    request::RequestInfo,
    resource::Resource,
    status::Status,
    store::{Key, Store},
};
use crate::{clock, issuer::Issuer};

/// How long a token outlives its pod's or account's deletion mark (go-jose's leeway).
const LEEWAY: Duration = Duration::from_secs(60);

/// A caller whose credential was good.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    administrator: bool,
}

/// What a service account may do, as a rule of a role would say it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Verbs: `get`, `list`, `watch`, `create`.
    pub verbs: Vec<String>,
    /// A resource of the core group, with its subresource: `pods`, `serviceaccounts/token`.
    pub resource: String,
    /// Only in this namespace; none: in all, and at the scope of the cluster.
    pub namespace: Option<String>,
}

/// The users and the grants.
#[derive(Debug, Default)]
pub(super) struct Access {
    users: Mutex<HashMap<String, String>>,
    grants: Mutex<Vec<(String, Grant)>>,
}

// === impl Grant ===

impl Grant {
    /// These verbs on a resource, everywhere.
    #[must_use]
    pub fn new(verbs: &[&str], resource: &str) -> Self {
        let verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        Self { verbs, resource: resource.to_owned(), namespace: None }
    }

    /// Only in this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    fn allows(&self, request: &RequestInfo) -> bool {
        request.group.is_empty()
            && self.verbs.contains(&request.verb)
            && self.resource == request.qualified()
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == request.namespace)
    }
}

// === impl Access ===

impl Access {
    pub(super) fn user_token(&self, user: &str) -> String {
        let mut users = lock(&self.users);
        if let Some((token, _)) = users.iter().find(|(_, name)| *name == user) {
            return token.clone();
        }
        let token = hex(&random::<24>());
        users.insert(token.clone(), user.to_owned());
        token
    }

    pub(super) fn grant(&self, user: &str, grant: Grant) {
        lock(&self.grants).push((user.to_owned(), grant));
    }

    pub(super) fn authenticate(&self, headers: &HeaderMap, issuer: &Issuer, store: &Store) -> Result<User, Status> {
        let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = credentials.and_then(|credentials| {
            let (scheme, token) = credentials.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let token = token.filter(|token| !token.is_empty()).ok_or_else(Status::unauthorized)?;
        if let Some(name) = lock(&self.users).get(token) {
            return Ok(User { name: name.clone(), administrator: true });
        }
        let claims = issuer.verify(token).map_err(|_| Status::unauthorized())?;
        let name = service_account(&claims, issuer, store).ok_or_else(Status::unauthorized)?;
        Ok(User { name, administrator: false })
    }

    pub(super) fn authorize(&self, user: &User, headers: &HeaderMap, request: &RequestInfo) -> Result<(), Status> {
        if let Some(impersonated) = headers.get("impersonate-user") {
            let impersonated = impersonated.to_str().unwrap_or_default();
            let name = &user.name;
            let why =
                format!("User {name:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope");
            return Err(Status::forbidden("users", impersonated, &why));
        }
        let granted = || {
            let grants = lock(&self.grants);
            grants.iter().any(|(name, grant)| *name == user.name && grant.allows(request))
        };
        // What every service account may read: discovery, and who signs its tokens.
        let discovery = !request.is_resource
            && request.verb == "get"
            && matches!(
                request.path.as_str(),
                "/version"
                    | "/healthz"
                    | "/livez"
                    | "/readyz"
                    | crate::issuer::DISCOVERY_PATH
                    | crate::issuer::JWKS_PATH
            );
        if user.administrator || discovery || (request.is_resource && granted()) {
            return Ok(());
        }
        Err(forbidden(user, request))
    }
}

fn forbidden(user: &User, request: &RequestInfo) -> Status {
    let RequestInfo { verb, path, group, namespace, .. } = request;
    let name = &user.name;
    if !request.is_resource {
        return Status::forbidden("", "", &format!("User {name:?} cannot {verb} path {path:?}"));
    }
    let scope = match namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let resource = request.qualified();
    let why = format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}");
    Status::forbidden(&request.resource, &request.name, &why)
}

/// The user name of a service account's token that was meant for this server, and whose account and
/// pod are still those that it was made for.
fn service_account(claims: &Value, issuer: &Issuer, store: &Store) -> Option<String> {
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
    Some(format!("system:serviceaccount:{namespace}:{}", account.get("name")?.as_str()?))
}

fn alive(store: &Store, resource: Resource, namespace: &str, reference: &Value, now: SystemTime) -> Option<()> {
    let object = store.get(&Key::new(resource, namespace, reference.get("name")?.as_str()?))?;
    let metadata = object.get("metadata")?;
    let deleted = metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(objects::parse_timestamp);
    let gone = deleted.is_some_and(|deleted| deleted + LEEWAY < now);
    (metadata.get("uid") == reference.get("uid") && !gone).then_some(())
}
