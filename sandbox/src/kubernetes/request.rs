//! What a request is about: verb, resource and names, out of its method and path.
//!
//! The rules are those of `k8s.io/apiserver/pkg/endpoints/request`.

use http::Method;

use super::{access::Attributes, options::Query, selector::FieldSelector};

/// A request as authorisation and tests see it. The path alone decides what is served.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, …; the method in lower case where there is no resource.
    pub(super) verb: String,
    pub(super) path: String,
    /// Whether it is about a resource of any group.
    pub(super) is_resource: bool,
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) subresource: String,
    pub(super) namespace: String,
    /// Also where only a field selector names it.
    pub(super) name: String,
    /// The parts of the path from the resource on.
    pub(super) parts: Vec<String>,
    /// Whether the path leads through `namespaces/{namespace}/`.
    pub(super) in_namespace: bool,
}

impl RequestInfo {
    pub(super) fn new(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { verb: method.as_str().to_lowercase(), path: path.to_owned(), ..Self::default() };
        let parts = path.trim_matches('/').split('/').collect::<Vec<_>>();
        let parts = match parts.as_slice() {
            ["api", _, parts @ ..] if !parts.is_empty() => parts,
            ["apis", group, _, parts @ ..] if !parts.is_empty() => {
                info.group = (*group).to_owned();
                parts
            }
            _ => return info,
        };
        info.is_resource = true;
        verb(method).clone_into(&mut info.verb);
        let parts = match parts {
            ["namespaces", namespace, rest @ ..] => {
                info.namespace = (*namespace).to_owned();
                match rest {
                    [] | ["status" | "finalize", ..] => parts,
                    rest => {
                        info.in_namespace = true;
                        rest
                    }
                }
            }
            parts => parts,
        };
        info.parts = parts.iter().map(|part| (*part).to_owned()).collect();
        let part = |at: usize| parts.get(at).map(|part| (*part).to_owned()).unwrap_or_default();
        (info.resource, info.name, info.subresource) = (part(0), part(1), part(2));
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
            let selector = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
            info.name = selector.exact("metadata.name").unwrap_or_default().to_owned();
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_owned();
        }
        info
    }

    /// What of it is authorised, with a verb of that authorisation's own and the qualified resource.
    pub(super) fn attributes<'a>(&'a self, verb: &'a str, resource: &'a str) -> Attributes<'a> {
        let path = if self.is_resource { "" } else { &self.path };
        Attributes { verb, group: &self.group, resource, namespace: &self.namespace, name: &self.name, path }
    }

    /// The resource with its subresource, as roles name it.
    pub(super) fn qualified(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}
