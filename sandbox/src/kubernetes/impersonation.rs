//! Impersonation: to act as another user for one request.
//!
//! Constrained impersonation ([KEP-5284](https://kep.k8s.io/5284)) as a 1.36 server has it by default, for
//! nodes. Administrators act as whomever they like, as of old; to all others who else is to be impersonated is refused in
//! the words of a server on which nobody may. The order
//! of the checks, and so which of them a refusal names, is that of
//! `k8s.io/apiserver/pkg/endpoints/filters/impersonation`.

use http::HeaderMap;

use super::{
    access::{Access, Attributes},
    auth::User,
    request::RequestInfo,
    status::Status,
};

const GROUP: &str = "authentication.k8s.io";
const USER: &str = "impersonate-user";
/// `authentication.kubernetes.io/node-name`, of `extra`.
const OF_NODE: &str = "impersonate-extra-authentication.kubernetes.io%2fnode-name";

/// Who the request is to be made as; none: as who sent it.
///
/// # Errors
/// When the user may not act as that one.
pub(super) fn impersonated(
    headers: &HeaderMap,
    user: &User,
    request: &RequestInfo,
    access: &Access,
) -> Result<Option<User>, Status> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wanted = text(USER);
    let extra = headers.keys().any(|name| name.as_str().starts_with("impersonate-extra-"));
    let more = !text("impersonate-uid").is_empty() || headers.contains_key("impersonate-group") || extra;
    match (wanted, more) {
        ("", false) => return Ok(None),
        ("", true) => {
            let groups = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok());
            let groups = groups.map(|group| format!("{group:?}")).collect::<Vec<_>>();
            let groups = if groups.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", groups.join(", ")) };
            let uid = text("impersonate-uid");
            return Err(Status::bad_request(format!(
                "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:[]string{groups}, Extra:map[string][]string(nil)}} without impersonating a user name"
            )));
        }
        _ => {}
    }
    let service_account = wanted.starts_with("system:serviceaccount:");
    let modes: &[&str] = match node_name(wanted) {
        Some(_) if more => &[],
        Some(node) if user.bound_to_node.as_deref() == Some(node) => &["associated-node", "arbitrary-node"],
        Some(_) => &["arbitrary-node"],
        None if service_account && more => &[],
        None if service_account => &["serviceaccount"],
        None => &["user-info"],
    };
    let mut refusals = Vec::new();
    for mode in modes {
        match constrained(mode, wanted, user, request, access) {
            Ok(()) => match node_name(wanted) {
                Some(node) => return Ok(Some(User::node(node))),
                None => break,
            },
            Err(refusal) => refusals.push(refusal),
        }
    }
    if user.administrator {
        return Ok(Some(as_of_old(wanted, headers)));
    }
    let legacy = Attributes { verb: "impersonate", resource: "users", name: wanted, ..Attributes::default() };
    // Nobody else has the old right here: it would make others than nodes.
    refusals.push(super::access::forbidden(user, legacy, ""));
    Err(refusals.swap_remove(0))
}

/// Whoever was named, with the groups that the API server itself would give a service account where none are named.
fn as_of_old(name: &str, headers: &HeaderMap) -> User {
    let values = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok().map(str::to_owned));
    let mut groups = values("impersonate-group").collect::<Vec<_>>();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    if let Some((namespace, _)) = account.filter(|_| groups.is_empty()) {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    if !groups.iter().any(|group| group == "system:unauthenticated" || group == "system:authenticated") {
        groups.push("system:authenticated".to_owned());
    }
    let administrator = groups.iter().any(|group| group == "system:masters");
    let bound_to_node = values(OF_NODE).next();
    User { name: name.to_owned(), administrator, groups, bound_to_node }
}

/// Whether the user may do what it wants to while impersonating, and may impersonate that one.
fn constrained(mode: &str, wanted: &str, user: &User, request: &RequestInfo, access: &Access) -> Result<(), Status> {
    let resource = request.qualified();
    access.check(user, request.attributes(&format!("impersonate-on:{mode}:{}", request.verb), &resource), "")?;
    let (resource, name) = match (mode, node_name(wanted)) {
        // One right for all nodes: whether it is the right one has been seen by the token.
        ("associated-node", _) => ("nodes", "*"),
        (_, Some(node)) => ("nodes", node),
        ("serviceaccount", None) => ("serviceaccounts", wanted),
        (_, None) => ("users", wanted),
    };
    let verb = format!("impersonate:{mode}");
    access.check(user, Attributes { verb: &verb, group: GROUP, resource, name, ..Attributes::default() }, "")
}

fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    })
}
