//! What a caller may do: what was granted to it, as RBAC would have it, and for a node what nodes may.

use std::sync::Mutex;

use super::{auth::User, lock, node, options::Query, request::RequestInfo, review, status::Status, store::Store};

/// What a user, a service account or a group may do, as a rule of a role would say it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Verbs: `get`, `list`, `watch`, `create`, …
    pub verbs: Vec<String>,
    /// The API group; empty: the core group.
    pub group: String,
    /// A resource of the group, with its subresource: `pods`, `serviceaccounts/token`.
    pub resource: String,
    /// Only in this namespace; none: in all, and at the scope of the cluster.
    pub namespace: Option<String>,
}

/// Who is granted something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    User(String),
    Group(String),
}

/// The grants.
#[derive(Debug, Default)]
pub(super) struct Access(Mutex<Vec<(Subject, Grant)>>);

/// What is to be authorised.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    /// With its subresource.
    pub(super) resource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Of what is no resource.
    pub(super) path: &'a str,
}

// === impl Grant ===

impl Grant {
    /// These verbs on a resource of the core group, everywhere.
    #[must_use]
    pub fn new(verbs: &[&str], resource: &str) -> Self {
        let verbs = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        Self { verbs, group: String::new(), resource: resource.to_owned(), namespace: None }
    }

    /// Of this API group.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = group.to_owned();
        self
    }

    /// Only in this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    fn allows(&self, wanted: Attributes<'_>) -> bool {
        self.verbs.iter().any(|verb| verb == wanted.verb)
            && self.group == wanted.group
            && self.resource == wanted.resource
            && wanted.path.is_empty()
            && self.namespace.as_ref().is_none_or(|namespace| namespace == wanted.namespace)
    }
}

// === impl Access ===

impl Access {
    pub(super) fn grant(&self, subject: Subject, grant: Grant) {
        lock(&self.0).push((subject, grant));
    }

    pub(super) fn revoke(&self, subject: &Subject) {
        lock(&self.0).retain(|(granted, _)| granted != subject);
    }

    pub(super) fn authorize(
        &self,
        user: &User,
        request: &RequestInfo,
        query: &Query,
        store: &Store,
    ) -> Result<(), Status> {
        if !request.is_resource {
            // What everybody with a credential may read: discovery. And service accounts, who signs their tokens.
            let signer = matches!(request.path.as_str(), crate::issuer::DISCOVERY_PATH | crate::issuer::JWKS_PATH);
            let public = matches!(request.path.as_str(), "/version" | "/healthz" | "/livez" | "/readyz");
            let allowed = public || (signer && user.groups.iter().any(|group| group == "system:serviceaccounts"));
            return match user.administrator || (request.verb == "get" && allowed) {
                true => Ok(()),
                false => Err(forbidden(user, request.attributes(&request.verb, ""), "")),
            };
        }
        let node_says = user.as_node().map(|node| node::authorize(node, request, query, store));
        if (request.group.as_str(), request.resource.as_str(), request.verb.as_str())
            == (review::GROUP, review::RESOURCE, "create")
        {
            return Ok(());
        }
        let Some(Err(reason)) = node_says.or(Some(Err(String::new()))) else { return Ok(()) };
        let resource = request.qualified();
        self.check(user, request.attributes(&request.verb, &resource), &reason)
    }

    /// Whether the user was granted this. `reason`: why another authoriser has said no before.
    pub(super) fn check(&self, user: &User, wanted: Attributes<'_>, reason: &str) -> Result<(), Status> {
        let granted = lock(&self.0).iter().any(|(subject, grant)| {
            let is_user = match subject {
                Subject::User(name) => *name == user.name,
                Subject::Group(name) => user.groups.contains(name),
            };
            is_user && grant.allows(wanted)
        });
        if user.administrator || granted { Ok(()) } else { Err(forbidden(user, wanted, reason)) }
    }
}

/// The words of `k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`.
pub(super) fn forbidden(user: &User, wanted: Attributes<'_>, reason: &str) -> Status {
    let Attributes { verb, group, resource, namespace, name, path } = wanted;
    if !path.is_empty() {
        return Status::forbidden("", "", "", &format!("User {:?} cannot {verb} path {path:?}", user.name));
    }
    let scope = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let user = &user.name;
    let why = format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}{reason}");
    let resource = resource.split('/').next().unwrap_or_default();
    Status::forbidden(group, resource, name, &why)
}
