//! What the daemon's ServiceAccount may do, asked as that ServiceAccount: whether it has the rights of its mode, and none that it
//! has no business with.
//!
//! Nothing is made by it. What a right allows is asked for with a SelfSubjectAccessReview; what an admission policy leaves of the
//! right to tokens, by TokenRequests that cannot succeed, for they are bound to what is not there: whoever may not have the token is
//! refused before that is looked up (403, 422), and whoever may is told that it is not there (404).

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use kube::Error;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{checks, report::Report};
use crate::operator::{
    cluster::{self, Cluster},
    inventory::Read,
};

/// Reviews that are asked for at once.
const AT_ONCE: usize = 4;
/// A name that nothing has.
const NOBODY: &str = "kube2irsa-doctor";
const NO_UID: &str = "00000000-0000-4000-8000-000000000000";
const NODES: &str = "system:nodes";
/// Percent-encoded, as a header's name must be.
const OF_NODE: &str = "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name";
const FOR_AUDIENCE: &str = "request-serviceaccounts-token-audience";

/// A right, as a rule of a role says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str, subresource: &'static str) -> Right {
    Right { verb, group, resource, subresource }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
/// The one without which no other of node mode has any effect.
pub(super) const AS_NODE: Right = right("impersonate:associated-node", AUTHENTICATION, "nodes", "");
const OF_NODE_MODE: [Right; 4] = [
    AS_NODE,
    right("impersonate-on:associated-node:list", "", "pods", ""),
    right("impersonate-on:associated-node:watch", "", "pods", ""),
    right("impersonate-on:associated-node:create", "", "serviceaccounts", "token"),
];
pub(super) const TOKENS: Right = right("create", "", "serviceaccounts", "token");
const OF_DIRECT_MODE: [Right; 3] = [right("list", "", "pods", ""), right("watch", "", "pods", ""), TOKENS];
const OF_BOTH: [Right; 6] = [
    right("get", "", "serviceaccounts", ""),
    right("list", "", "serviceaccounts", ""),
    right("watch", "", "serviceaccounts", ""),
    right("get", "", "namespaces", ""),
    right("list", "", "namespaces", ""),
    right("watch", "", "namespaces", ""),
];
const OF_EVENTS: [Right; 2] =
    [right("create", "events.k8s.io", "events", ""), right("patch", "events.k8s.io", "events", "")];
/// What a stolen node must never come by.
const TOO_WIDE: [Right; 14] = [
    right("get", "", "secrets", ""),
    right("list", "", "secrets", ""),
    right("watch", "", "secrets", ""),
    right("create", "", "pods", ""),
    right("patch", "", "pods", ""),
    right("create", "", "pods", "exec"),
    right("create", "", "nodes", "proxy"),
    right("patch", "", "serviceaccounts", ""),
    right("patch", "", "namespaces", ""),
    right("impersonate", "", "users", ""),
    right("impersonate", "", "serviceaccounts", ""),
    right("bind", "rbac.authorization.k8s.io", "clusterroles", ""),
    right("escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
    right("*", "*", "*", ""),
];

/// A token that the daemon must not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// Bound to no pod: to a Secret, which is looked up like a pod, after all that could refuse it.
    Unbound,
    /// Of an audience that is none of AWS's.
    AnyAudience,
    /// Of kube-system.
    KubeSystem,
}

/// Whose rights are looked at, and what for.
#[derive(Clone, Debug)]
pub(super) struct Subject<'a> {
    /// The daemon's namespace and ServiceAccount.
    pub(super) account: (&'a str, &'a str),
    /// A node with a daemon.
    pub(super) node: Option<&'a str>,
    /// The audiences of tokens, each with a namespace and a ServiceAccount whose tokens have it, if there is one.
    pub(super) audiences: Vec<(String, Option<(String, String)>)>,
}

/// What it may do.
#[derive(Debug, Default)]
pub(super) struct Rights {
    /// Each right that was asked for, and whether it has it.
    pub(super) reviewed: Vec<(Right, bool)>,
    /// Each token that was tried; an error if that said nothing.
    pub(super) tried: Vec<(Trial, Read<bool>)>,
    /// Each audience, and whether nodes are granted it.
    pub(super) audiences: Vec<(String, Read<bool>)>,
}

/// As whom a request is made.
#[derive(Clone)]
struct As {
    user: String,
    group: Option<&'static str>,
    node: Option<String>,
}

#[derive(Deserialize)]
struct Review {
    status: Reviewed,
}

#[derive(Deserialize)]
struct Reviewed {
    #[serde(default)]
    allowed: bool,
}

// === impl Right ===

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, subresource } = self;
        write!(f, "{verb} {resource}")?;
        if !subresource.is_empty() {
            write!(f, "/{subresource}")?;
        }
        if group.is_empty() { Ok(()) } else { write!(f, " ({group})") }
    }
}

// === impl Trial ===

impl Trial {
    const ALL: [Self; 3] = [Self::Unbound, Self::AnyAudience, Self::KubeSystem];

    /// Namespace and ServiceAccount, and what is asked for.
    fn request(self, subject: &Subject<'_>) -> (String, String, Value) {
        let (namespace, account) = subject.account;
        let audience = subject.audiences.first().map(|(audience, _)| audience.as_str()).unwrap_or_default();
        let bound = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "name": NOBODY, "uid": NO_UID});
        let request = |audience: &str, kind: &str| json!({"spec": {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound(kind)}});
        match self {
            Self::Unbound => (namespace.to_owned(), account.to_owned(), request(audience, "Secret")),
            Self::AnyAudience => (namespace.to_owned(), account.to_owned(), request(NOBODY, "Pod")),
            Self::KubeSystem => ("kube-system".to_owned(), "default".to_owned(), request(audience, "Pod")),
        }
    }
}

// === impl Rights ===

impl Rights {
    /// Asks for all of it.
    ///
    /// # Errors
    /// When whoever asks may not act as the ServiceAccount.
    pub(super) async fn read(cluster: &Cluster, subject: &Subject<'_>) -> Read<Self> {
        let (namespace, name) = subject.account;
        let us = As {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            group: None,
            node: subject.node.map(str::to_owned),
        };
        let rights = [&OF_NODE_MODE[..], &OF_DIRECT_MODE, &OF_BOTH, &OF_EVENTS, &TOO_WIDE].concat();
        let reviews = rights.iter().map(|right| {
            let Right { verb, group, resource, subresource } = right;
            let attributes = json!({"verb": verb, "group": group, "resource": resource, "subresource": subresource});
            review(cluster, &us, attributes)
        });
        // Each at the same time is a connection of its own.
        let reviewed = stream::iter(reviews).buffered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let mut read = Self { reviewed: rights.into_iter().zip(reviewed).collect(), ..Self::default() };
        for trial in Trial::ALL {
            read.tried.push((trial, try_token(cluster, &us, trial.request(subject)).await));
        }
        if let Some(node) = subject.node {
            let node = As { user: format!("system:node:{node}"), group: Some(NODES), node: None };
            for (audience, account) in &subject.audiences {
                let (namespace, name) = account.clone().unwrap_or_default();
                let attributes =
                    json!({"verb": FOR_AUDIENCE, "resource": audience, "namespace": namespace, "name": name});
                read.audiences.push((audience.clone(), review(cluster, &node, attributes).await));
            }
        }
        Ok(read)
    }

    /// Whether it has a right.
    pub(super) fn has(&self, right: Right) -> bool {
        self.reviewed.iter().any(|(reviewed, has)| *reviewed == right && *has)
    }

    /// Those of these that it lacks.
    fn lacking(&self, rights: &[Right]) -> Vec<String> {
        rights.iter().filter(|right| !self.has(**right)).map(ToString::to_string).collect()
    }

    /// The mode whose rights it has, if `auto` has to find out; `None`: those of neither.
    pub(super) fn mode<'a>(&self, token_access: &'a str) -> Option<&'a str> {
        match token_access {
            "auto" if self.has(AS_NODE) => Some("node"),
            "auto" => self.has(TOKENS).then_some("direct"),
            mode => Some(mode),
        }
    }
}

async fn review(cluster: &Cluster, who: &As, attributes: Value) -> Read<bool> {
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes}});
    let request = who.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &body)?;
    let review = cluster.client().request::<Review>(request).await;
    review.map(|review| review.status.allowed).map_err(|error| cluster::words(&error))
}

/// Whether it would have been given.
async fn try_token(cluster: &Cluster, who: &As, (namespace, account, body): (String, String, Value)) -> Read<bool> {
    // Should it succeed all the same, nothing is kept of it: the answer is not read.
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token?dryRun=All");
    match cluster.client().request::<serde::de::IgnoredAny>(who.post(&path, &body)?).await {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) => match status.code {
            404 => Ok(true),
            401 | 403 | 422 => Ok(false),
            _ => Err(cluster::words(&Error::Api(status))),
        },
        Err(error) => Err(cluster::words(&error)),
    }
}

// === impl As ===

impl As {
    fn post(&self, path: &str, body: &Value) -> Read<Request<Vec<u8>>> {
        let mut request = Request::post(path).header("Content-Type", "application/json");
        request = request.header("Impersonate-User", &self.user);
        if let Some(group) = self.group {
            request = request.header("Impersonate-Group", group);
        }
        if let Some(node) = &self.node {
            request = request.header(OF_NODE, node);
        }
        request.body(body.to_string().into_bytes()).map_err(|error| error.to_string())
    }
}

/// What follows from it.
pub(super) fn look(account: (&str, &str), token_access: &str, rights: &Read<Rights>, report: &mut Report) {
    let rights = match rights {
        Ok(rights) => rights,
        Err(why) => {
            let what = "what the daemon may do (it takes the right to impersonate its ServiceAccount)";
            return report.unseen(what, why);
        }
    };
    let name = format!("ServiceAccount {}/{}", account.0, account.1);
    let again = "apply the chart again: helm upgrade --install (docs/chart.md)";
    let mode = rights.mode(token_access);
    let is_node = mode == Some("node");
    let (own, needs) = match mode {
        Some("node") => (&OF_NODE_MODE[..], "node mode needs"),
        Some(_) => (&OF_DIRECT_MODE[..], "direct mode needs"),
        None => (&[AS_NODE, TOKENS][..], "one mode or the other needs"),
    };
    let lacking = [rights.lacking(own), rights.lacking(&OF_BOTH)].concat();
    if !lacking.is_empty() {
        report.find(&checks::RIGHTS_MISSING, format!("{name} lacks what {needs}: {}", lacking.join(", ")), again);
    }
    let lacking = rights.lacking(&OF_EVENTS);
    if !lacking.is_empty() {
        report.find(
            &checks::RIGHTS_EVENTS,
            format!("{name} may not: {}", lacking.join(", ")),
            "set the chart's events: true",
        );
    }
    let excess = OF_DIRECT_MODE.iter().filter(|right| is_node && rights.has(**right)).map(ToString::to_string);
    let excess = excess.collect::<Vec<_>>();
    let bindings = "find who grants it: kubectl get clusterrolebindings,rolebindings -A -o wide | grep kube2irsa";
    if !excess.is_empty() {
        report.find(&checks::RIGHTS_BOTH, format!("{name} has, in node mode: {}", excess.join(", ")), bindings);
    }
    let wide = TOO_WIDE.iter().filter(|right| rights.has(**right)).map(ToString::to_string).collect::<Vec<_>>();
    if !wide.is_empty() {
        report.find(&checks::RIGHTS_WIDE, format!("{name} may: {}", wide.join(", ")), bindings);
    }
    for (trial, result) in &rights.tried {
        let (check, what) = match trial {
            Trial::Unbound => (&checks::TOKEN_UNBOUND, "a token that is bound to no pod"),
            Trial::AnyAudience => (&checks::TOKEN_AUDIENCE, "a token of any audience"),
            Trial::KubeSystem => (&checks::TOKEN_SYSTEM, "a token of a pod in kube-system"),
        };
        match result {
            Ok(false) => {}
            Ok(true) => report.find(check, format!("{name} would be given {what}"), again),
            Err(why) => report.unseen(format!("whether {name} would be given {what}"), why),
        }
    }
    if rights.audiences.is_empty() && is_node {
        report.unseen("whether nodes are granted the audience of tokens", "no node with a daemon is known");
    }
    for (audience, granted) in rights.audiences.iter().filter(|_| is_node) {
        match granted {
            Ok(true) => {}
            Ok(false) => report.find(
                &checks::AUDIENCE,
                format!("nodes may not ask for tokens with the audience {audience}"),
                format!("add {audience} to additionalAudiences of the chart, and apply it again"),
            ),
            Err(why) => report.unseen(format!("whether nodes are granted the audience {audience}"), why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(rights: &[&[Right]]) -> Rights {
        Rights { reviewed: rights.concat().into_iter().map(|right| (right, true)).collect(), ..Rights::default() }
    }

    fn found(token_access: &str, rights: Rights) -> Vec<(&'static str, String)> {
        let mut report = Report::default();
        look(("kube2irsa", "kube2irsa"), token_access, &Ok(rights), &mut report);
        report.close().findings.into_iter().map(|finding| (finding.check.id, finding.what)).collect()
    }

    fn ids(token_access: &str, rights: Rights) -> Vec<&'static str> {
        found(token_access, rights).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn each_mode_has_its_own_rights_and_auto_is_the_one_that_it_has() {
        let node = || with(&[&OF_NODE_MODE, &OF_BOTH, &OF_EVENTS]);
        let direct = || with(&[&OF_DIRECT_MODE, &OF_BOTH, &OF_EVENTS]);
        for (access, rights, wanted) in [
            ("node", node(), vec![]),
            ("auto", node(), vec![]),
            ("direct", direct(), vec![]),
            ("auto", direct(), vec![]),
            ("direct", node(), vec!["rights-missing"]),
            ("node", direct(), vec!["rights-missing", "rights-of-both-modes"]),
            ("auto", with(&[]), vec!["rights-missing", "rights-events"]),
            ("node", with(&[&OF_NODE_MODE, &OF_BOTH]), vec!["rights-events"]),
            ("node", with(&[&OF_NODE_MODE, &OF_DIRECT_MODE, &OF_BOTH, &OF_EVENTS]), vec!["rights-of-both-modes"]),
        ] {
            assert_eq!(ids(access, rights), wanted, "{access}");
        }
    }

    #[test]
    fn each_right_that_is_missing_or_too_wide_is_named() {
        for missing in OF_NODE_MODE.iter().chain(&OF_BOTH).filter(|right| **right != AS_NODE) {
            let mut rights = with(&[&OF_NODE_MODE, &OF_BOTH, &OF_EVENTS]);
            rights.reviewed.retain(|(right, _)| right != missing);
            let found = found("auto", rights);
            assert!(found.len() == 1 && found[0].1.ends_with(&missing.to_string()), "{missing}: {found:?}");
        }
        for wide in TOO_WIDE {
            let rights = with(&[&OF_NODE_MODE, &OF_BOTH, &OF_EVENTS, &[wide]]);
            let found = found("auto", rights);
            assert!(found.len() == 1 && found[0].0 == "rights-too-wide", "{wide}: {found:?}");
            assert!(found[0].1.ends_with(&wide.to_string()), "{found:?}");
        }
    }

    #[test]
    fn nothing_that_could_not_be_tried_is_well() {
        let mut report = Report::default();
        let mut rights = with(&[&OF_NODE_MODE, &OF_BOTH, &OF_EVENTS]);
        rights.tried = Trial::ALL.map(|trial| (trial, Err("500".to_owned()))).into();
        rights.audiences = vec![("a".to_owned(), Err("500".to_owned()))];
        look(("a", "b"), "auto", &Ok(rights), &mut report);
        assert_eq!((report.findings.len(), report.not_looked_at.len()), (0, 4));
        rights = with(&[&OF_NODE_MODE, &OF_BOTH, &OF_EVENTS]);
        let mut report = Report::default();
        look(("a", "b"), "auto", &Ok(rights), &mut report);
        assert_eq!(report.not_looked_at.len(), 1, "no node's rights were asked for");
        let mut report = Report::default();
        look(("a", "b"), "auto", &Err("forbidden".to_owned()), &mut report);
        assert_eq!(report.not_looked_at.len(), 1);
    }

    #[test]
    fn no_trial_can_succeed() {
        let audiences = vec![("sts.amazonaws.com".to_owned(), None)];
        let subject = Subject { account: ("kube2irsa", "kube2irsa"), node: None, audiences };
        for trial in Trial::ALL {
            let (.., request) = trial.request(&subject);
            assert_eq!(request["spec"]["boundObjectRef"]["name"], NOBODY, "{trial:?} is bound to what is not there");
        }
    }
}
