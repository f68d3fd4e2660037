//! kube2iam's flags, and what they come to. Pure.
//!
//! Source: [its README and `cmd/main.go`](https://github.com/jtblin/kube2iam), 0.11 and later.

use super::{
    daemon::{self, Flags},
    legacy::{Given, Legacy, Restriction},
    objects::Cluster,
    plan::Remark,
};
use crate::identity::legacy::{ALLOWED_ROLES, EXTERNAL_ID, ROLE, SESSION_NAME};

/// `--iam-role-session-ttl`'s default.
const SESSION_TTL: u32 = 900;

/// kube2iam's rules in this cluster; else what must be said besides.
pub(super) fn rules(cluster: &Cluster, given: &Given) -> Result<Legacy, Vec<String>> {
    let daemons = daemon::find(cluster, "kube2iam");
    let (mut left, mut notes, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    let flags = match (&given.daemon_flags, daemons.as_slice()) {
        (Some(flags), _) => Flags::typed(flags),
        (None, []) => {
            left.push(Remark::new(
                "kube2iam",
                "its DaemonSet is not among what was read, so its flags are not known: its defaults are taken, without \
                 namespace restrictions",
                "run this again with --daemon-flags '--base-role-arn=… …', or with the DaemonSet's manifest",
            ));
            Flags::default()
        }
        (None, [first, others @ ..]) => {
            left.extend(daemon::told_otherwise(first, others));
            first.flags.clone()
        }
    };
    let finds_out = flags.is_set("auto-discover-base-arn") || flags.is_set("auto-discover-default-role");
    let base = given.base_role_arn.clone().or_else(|| flags.get("base-role-arn").map(str::to_owned));
    let base = base.map(|base| if base.ends_with('/') { base } else { format!("{base}/") });
    if base.is_none() && finds_out {
        wrong.push(
            "--base-role-arn: kube2iam finds it out from the node (--auto-discover-base-arn): give it, such as \
             arn:aws:iam::111122223333:role/"
                .to_owned(),
        );
    }
    let default = given.default_role.clone().or_else(|| flags.get("default-role").map(str::to_owned));
    if flags.is_set("auto-discover-default-role") && given.default_role.is_none() {
        left.push(Remark::new(
            "kube2iam",
            "pods without annotation get the node's own role (--auto-discover-default-role); here no pod ever does",
            "find out which of them use it (`mode: observe` names them), give each a role of its own, or run this again with \
             --default-role and a role that is not the node's",
        ));
    }
    let key = |flag: &str, default: &str| flags.get(flag).unwrap_or(default).to_owned();
    let restriction = if flags.is_set("namespace-restrictions") {
        let format = flags.get("namespace-restriction-format").unwrap_or("glob").to_ascii_lowercase();
        Restriction::List { key: key("namespace-key", ALLOWED_ROLES), regexps: format == "regexp" }
    } else {
        Restriction::None
    };
    let namespace_key = key("namespace-key", ALLOWED_ROLES);
    let has_lists = cluster.namespaces.values().any(|annotations| annotations.contains_key(&namespace_key));
    if restriction == Restriction::None && has_lists {
        notes.push(Remark::new(
            "kube2iam",
            format!(
                "namespaces have {namespace_key}, but kube2iam runs without --namespace-restrictions: no pod is limited"
            ),
            "if they are to be, run this again with --daemon-flags and --namespace-restrictions in them",
        ));
    }
    let via = flags.get("assume-role-arn").and_then(|arn| arn.parse().ok());
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Legacy {
        name: "kube2iam",
        base,
        default,
        role_key: key("iam-role-key", ROLE),
        external_id_key: key("iam-external-id", EXTERNAL_ID),
        session_name_key: key("iam-role-session-name-key", SESSION_NAME),
        restriction,
        // Sessions live twice as long as they are kept.
        session_seconds: flags.seconds("iam-role-session-ttl").unwrap_or(SESSION_TTL).saturating_mul(2),
        via,
        daemons,
        left,
        notes,
    })
}
