//! What a node may do: to read its own pods, and to ask for tokens for them.
//!
//! The rules and words of two parts of a 1.36 server: the node authoriser
//! (`plugin/pkg/auth/authorizer/node`) and, for TokenRequests, the admission plugin NodeRestriction.

use serde_json::Value;

use super::{
    access::{Access, Attributes},
    auth::User,
    options::Query,
    request::RequestInfo,
    resource::Resource,
    selector::FieldSelector,
    status::Status,
    store::{Key, Store},
    token::TokenRequest,
};

/// Whether a node may do it as a node; else why not.
pub(super) fn authorize(node: &str, request: &RequestInfo, query: &Query, store: &Store) -> Result<(), String> {
    if !request.group.is_empty() {
        return Err(String::new());
    }
    let related = |resource: Resource| {
        let known = !request.name.is_empty() && is_related(store, node, resource, &request.namespace, &request.name);
        match (request.name.as_str(), known) {
            ("", _) => Err("No Object name found".to_owned()),
            (_, true) => Ok(()),
            (_, false) => Err(format!("no relationship found between node '{node}' and this object")),
        }
    };
    match (request.resource.as_str(), request.subresource.as_str(), request.verb.as_str()) {
        ("pods", "", "get") => related(Resource::Pods),
        ("pods", "", "list" | "watch") => {
            let selector = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
            match selector.exact("spec.nodeName") {
                Some(selected) if selected == node => Ok(()),
                _ if !request.name.is_empty() => related(Resource::Pods),
                _ => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
            }
        }
        ("pods", "", "create" | "delete") => Ok(()),
        ("serviceaccounts", "", "get") => related(Resource::ServiceAccounts),
        ("serviceaccounts", _, verb) if verb != "create" || request.name.is_empty() => {
            Err("can only create tokens for individual service accounts".to_owned())
        }
        ("serviceaccounts", "token", _) => related(Resource::ServiceAccounts),
        ("serviceaccounts", ..) => Err("can only create token subresource of serviceaccount".to_owned()),
        ("nodes", "", "get" | "list" | "watch") => match request.name.as_str() {
            name if name == node => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => Err(String::new()),
    }
}

/// Whether the pod is on the node, or the service account that of a pod on the node.
fn is_related(store: &Store, node: &str, resource: Resource, namespace: &str, name: &str) -> bool {
    let text = |pod: &Value, pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let Ok(pods) = store.snapshot(Resource::Pods, namespace, None) else { return false };
    pods.objects.iter().any(|(key, pod)| {
        text(pod, "/spec/nodeName") == node
            && match resource {
                Resource::Pods => key.name == name,
                _ => text(pod, "/spec/serviceAccountName") == name,
            }
    })
}

/// Whether a TokenRequest of this user may be answered, as far as the user is a node.
pub(super) fn admit(
    user: &User,
    access: &Access,
    store: &Store,
    (namespace, account): (&str, &str),
    request: &TokenRequest,
) -> Result<(), Status> {
    let Some(node) = user.as_node() else { return Ok(()) };
    let forbidden = |why: &str| Status::forbidden("", "serviceaccounts", account, why);
    let bound = request.bound.as_ref();
    let Some(bound) = bound.filter(|bound| bound.is_pod() && !bound.name.is_empty()) else {
        return Err(forbidden("node requested token not bound to a pod"));
    };
    if bound.uid.is_empty() {
        return Err(forbidden("node requested token with a pod binding without a uid"));
    }
    let pod = store.get(&Key::new(Resource::Pods, namespace, &bound.name));
    let pod = pod.ok_or_else(|| Status::not_found("pod", &bound.name))?;
    if pod.pointer("/metadata/uid").and_then(Value::as_str) != Some(&bound.uid) {
        return Err(forbidden(&bound.uid_differs()));
    }
    if pod.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
        return Err(forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    // No pod of this cluster projects a token of its own, so only a right to the audience is left.
    let audience = match request.audiences.as_slice() {
        [] => "",
        [audience] => audience,
        _ => return Err(forbidden("node may only request 0 or 1 audiences")),
    };
    let verb = "request-serviceaccounts-token-audience";
    let wanted = Attributes { verb, resource: audience, namespace, name: account, ..Attributes::default() };
    access.check(user, wanted, "").map_err(|_| {
        let name = &user.name;
        forbidden(&format!(
            "audience {audience:?} not found in pod spec volume, {name} is not authorized to request tokens for this audience"
        ))
    })
}
