//! All that the doctor can find: the one list of it. `docs/doctor.md` has the same one, and a test keeps them equal.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods lack what they should have, or somebody may do what nobody should.
    Error,
    /// It will be so, or may be.
    Warning,
    /// To be known.
    Note,
}

/// Something that the doctor looks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, which stays.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// When it is found.
    pub when: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

impl Severity {
    /// As people and programs read it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Each check is named in code by its id.
macro_rules! checks {
    ($($name:ident $severity:ident $id:literal: $when:literal, $why:literal;)*) => {
        $(
            pub(super) const $name: Check =
                Check { id: $id, severity: Severity::$severity, when: $when, why: $why };
        )*
        /// All checks, by subject.
        pub const ALL: &[&Check] = &[$(&$name),*];
    };
}

checks! {
    NOT_SEEN Warning "cluster-not-seen":
        "objects of the cluster may not be read",
        "What is wrong with them is not found: that nothing else is said is no all-clear.";
    DAEMON_MISSING Error "daemon-missing":
        "no DaemonSet is labelled `app.kubernetes.io/name: kube2irsa`",
        "Nobody serves the pods of the cluster.";
    DAEMON_ABSENT Error "daemon-not-on-node":
        "a node that the DaemonSet is for has no pod of it",
        "Pods of that node get the node's role, or none.";
    DAEMON_NOT_READY Error "daemon-not-ready":
        "a pod of the DaemonSet is not ready",
        "New pods of that node may get no credentials.";
    DAEMON_VERSIONS Warning "daemon-versions":
        "the pods of the DaemonSet run different images",
        "An upgrade is under way, or has stopped half-way.";
    DAEMON_IDLE Warning "daemon-serves-nobody":
        "`mode: observe` or `mode: remove` is in force",
        "Pods reach the real metadata service, and the node's role.";

    NODE_GUARD Error "node-guard":
        "the guard is not whole, or another's routing rule comes before it",
        "While the redirect is gone, pods reach the node's role.";
    NODE_GUARD_PASSED Error "node-guard-passed":
        "by the kernel's own word a packet of a pod would be routed to the metadata service",
        "Where the redirect does not take it, that pod reaches the node's role.";
    NODE_REDIRECT Error "node-redirect":
        "the redirect is missing, not whole, or leads where nobody listens",
        "Pods' requests are refused.";
    NODE_OBSTACLE Error "node-obstacle":
        "a routing rule or Cilium may lead redirected packets elsewhere",
        "What is redirected does not arrive.";
    NODE_FOREIGN Error "node-foreign-rules":
        "another program's rules take, drop or lose packets for the same addresses",
        "Two interceptors on a node answer one pod each in its own way.";
    NODE_HOST_NETWORK Error "node-host-network":
        "pods on the node's network are not treated as `--host-network` says",
        "They reach the node's role.";
    NODE_DAEMON Error "node-daemon":
        "no daemon answers on the node, or it says that it is not ready",
        "Its pods may get no credentials.";
    NODE_LEFTOVERS Error "node-leftovers":
        "rules of an earlier run are there, and none are wanted",
        "Pods are kept from the real metadata service by nobody's wish.";
    NODE_RULES_NOTE Note "node-rules-note":
        "what `kube2irsa rules check` marks `[warn]`",
        "It is as it should be, but for a limit or a remainder.";
    IMDS_V1 Note "node-metadata-v1":
        "the real metadata service answers without a session token",
        "Required tokens and a hop limit of 1 are a second line behind the guard.";
    IMDS_SILENT Warning "node-metadata-silent":
        "the real metadata service does not answer the node, or with an error",
        "A daemon that starts learns neither region nor account from it.";

    FOREIGN Error "foreign-interceptor":
        "kube2iam or kiam runs in the cluster",
        "Two interceptors on a node answer one pod each in its own way.";
    POD_IDENTITY Note "pod-identity-agent":
        "the EKS Pod Identity agent runs in the cluster",
        "Pods with an association ask that agent, and not us.";
    POD_IDENTITY_CONFLICT Error "pod-identity-conflict":
        "the agent runs, and `--container-endpoints` names one of its addresses",
        "Pods with an association are answered by us, with another role.";

    RIGHTS_MISSING Error "rights-missing":
        "the daemon's ServiceAccount lacks a right of its mode",
        "The daemon does not become ready, or gets no tokens.";
    RIGHTS_EVENTS Note "rights-events":
        "the daemon may not write Events",
        "Why a pod gets no credentials stands in the daemon's log alone.";
    RIGHTS_BOTH Warning "rights-of-both-modes":
        "the daemon has rights of direct mode besides those of node mode",
        "A stolen node is then as strong as direct mode lets it be.";
    RIGHTS_WIDE Error "rights-too-wide":
        "the daemon may read Secrets, or change what it has no business with",
        "Whoever takes over one node has that right.";
    TOKEN_UNBOUND Error "token-unbound":
        "the daemon may get a token that is bound to no pod",
        "Such a token outlives what it was for: apply the admission policy.";
    TOKEN_AUDIENCE Error "token-any-audience":
        "the daemon may get a token with an audience of its choice",
        "Such a token opens the API server to whoever takes over one node.";
    TOKEN_SYSTEM Warning "token-kube-system":
        "the daemon may get tokens of kube-system",
        "The cluster's own parts have roles and rights there.";
    AUDIENCE Error "audience-not-granted":
        "nodes are not granted the audience of tokens (node mode)",
        "The API server refuses the tokens of the ServiceAccounts that need it.";

    VERSION Error "kubernetes-version":
        "the API server is older than 1.32, or older than 1.36 with `tokenAccess: node`",
        "There is no way to tokens that keeps a daemon to what it needs.";
    MODE Note "token-mode":
        "direct mode is in force where node mode is to be had (1.36)",
        "In node mode the API server keeps each daemon to the pods of its node.";
    CLOCK Warning "clock-skew":
        "clocks of the API server, STS or this node differ by more than a minute",
        "STS refuses tokens that are not valid yet or any more.";

    ISSUER Error "issuer-not-usable":
        "the issuer of the cluster's tokens is none that AWS takes",
        "AWS trusts an issuer of https, without a port, that it reaches on the Internet.";
    ISSUER_SILENT Error "issuer-not-reachable":
        "the issuer's documents cannot be had at its URL from here",
        "STS reads them to verify tokens: without them it refuses all.";
    ISSUER_DIFFERS Error "issuer-differs":
        "what the issuer's URL serves is not what the API server signs with",
        "STS refuses tokens whose key it does not find there.";

    STS_SILENT Error "sts-unreachable":
        "STS does not answer this node, or not over TLS that can be trusted",
        "No token is exchanged: pods without credentials get none, and others run out.";
    STS_DISABLED Error "sts-region-disabled":
        "STS is not activated for the account in a region",
        "It refuses every exchange there.";
    STS_SLOW Warning "sts-slow":
        "an answer of STS takes this node longer than a second",
        "SDKs wait about two seconds for their first credentials.";

    ACCOUNT_ANNOTATION Error "account-annotation":
        "an annotation of a ServiceAccount cannot be meant",
        "Its pods get no credentials.";
    ACCOUNT_NOT_PERMITTED Error "account-role-not-permitted":
        "the Namespace does not permit a role that a ServiceAccount names",
        "Its pods do not get that role.";

    POD_ACCOUNT Error "pod-account-missing":
        "the ServiceAccount of a pod is not there",
        "The pod gets no credentials.";
    POD_ADDRESS Error "pod-duplicate-address":
        "several running pods have one address",
        "None of them is served, since nobody can tell who asks.";
    POD_HOST_NETWORK Warning "pod-host-network":
        "a pod on the node's network has a ServiceAccount with a role, and such pods are not served",
        "With `host-network: off` it gets the node's role, with `deny` none.";
    POD_PROXY Warning "pod-proxy":
        "a pod has `HTTP_PROXY`, and 169.254.169.254 is not in `NO_PROXY`",
        "Its SDK asks the proxy for credentials.";
    POD_DISABLED Warning "pod-metadata-disabled":
        "a pod has `AWS_EC2_METADATA_DISABLED=true`",
        "Its SDK asks no metadata service.";
    POD_KEYS Warning "pod-static-keys":
        "a pod is given keys or a profile by its environment",
        "They come first with every SDK: the pod does not ask us.";
    POD_TOKEN Note "pod-own-token":
        "the EKS webhook gave a pod a token (`AWS_WEB_IDENTITY_TOKEN_FILE`)",
        "Its SDK exchanges that token itself, and does not ask us.";
    POD_AGENT Note "pod-other-endpoint":
        "a pod asks another container credentials endpoint (`AWS_CONTAINER_CREDENTIALS_FULL_URI`)",
        "Its SDK asks that one, and not us.";
    POD_SKIP Note "pod-skip-containers":
        "a pod names containers that the EKS webhook is to skip",
        "It cannot be honoured: all containers of a pod have one address, and one role.";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The table of the page for operators.
    fn table() -> String {
        let rows = ALL.iter().map(|check| {
            let Check { id, severity, when, why } = check;
            format!("| `{id}` | {} | {when} | {why} |\n", severity.label())
        });
        format!("| id | | found when | why it matters |\n| --- | --- | --- | --- |\n{}", rows.collect::<String>())
    }

    #[test]
    fn the_page_for_operators_lists_each_check() {
        const BEGIN: &str = "<!-- the list: src/operator/doctor/checks.rs; KUBE2IRSA_WRITE_DOCS=1 writes it -->\n";
        const END: &str = "<!-- end of the list -->";
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
        let page = fs::read_to_string(&file).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        let wanted = format!("{before}{BEGIN}{}{END}{after}", table());
        if std::env::var_os("KUBE2IRSA_WRITE_DOCS").is_some() {
            fs::write(&file, wanted).unwrap();
        } else {
            assert!(page == wanted, "docs/doctor.md differs: make docs");
        }
    }

    #[test]
    fn an_id_is_one_checks_alone_and_in_kebab_case() {
        let ids = ALL.iter().map(|check| check.id).collect::<BTreeSet<_>>();
        assert_eq!(ids.len(), ALL.len());
        assert!(ids.iter().all(|id| id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
    }
}
