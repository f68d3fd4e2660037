//! kiam's flags, and what they come to. Pure.
//!
//! Source: [its README, `cmd/kiam/server.go` and `pkg/server/policy.go`](https://github.com/uswitch/kiam), 2.0 to 4.2.

use super::{
    daemon::{self, Flags},
    legacy::{Given, KiamVersion, Legacy, Restriction},
    objects::Cluster,
    plan::Remark,
};
use crate::identity::legacy::{EXTERNAL_ID, PERMITTED, ROLE, SESSION_NAME};

/// `--session-duration`'s default.
const SESSION_DURATION: u32 = 900;

/// kiam's rules in this cluster; else what must be said besides.
pub(super) fn rules(cluster: &Cluster, given: &Given) -> Result<Legacy, Vec<String>> {
    let daemons = daemon::find(cluster, "kiam");
    let (mut left, mut wrong) = (Vec::new(), Vec::new());
    // Of its two processes the server decides.
    let servers = daemons.iter().filter(|daemon| daemon.is_server()).collect::<Vec<_>>();
    let (flags, image) = match (&given.daemon_flags, servers.as_slice()) {
        (Some(flags), servers) => (Flags::typed(flags), servers.first().map_or("", |server| server.image.as_str())),
        (None, []) => {
            left.push(Remark::new(
                "kiam",
                "its server is not among what was read, so its flags are not known: its defaults are taken",
                "run this again with --daemon-flags '--role-base-arn=… …', or with the server's manifest",
            ));
            (Flags::default(), "")
        }
        (None, [first, others @ ..]) => {
            left.extend(daemon::told_otherwise(first, others));
            (first.flags.clone(), first.image.as_str())
        }
    };
    let base = given.base_role_arn.clone().or_else(|| flags.get("role-base-arn").map(str::to_owned));
    if base.is_none() {
        wrong.push(
            "--base-role-arn: kiam's server finds it out from the node, or was not read: give it, such as \
             arn:aws:iam::111122223333:role/"
                .to_owned(),
        );
    }
    if given.default_role.is_some() {
        wrong.push("--default-role: kiam has none: a pod without annotation gets nothing".to_owned());
    }
    let major = daemon::version(image).split('.').next().and_then(|major| major.parse::<u32>().ok());
    // Strict by default from 4.0 on, by a flag before.
    let is_strict = major.is_none_or(|major| major >= 4) && !flags.is_set("disable-strict-namespace-regexp");
    let version = KiamVersion {
        is_strict: is_strict || flags.is_set("strict-namespace-regexp"),
        by_name: major.is_none_or(|major| major >= 4),
    };
    if major.is_none() && left.is_empty() && !flags.is_set("disable-strict-namespace-regexp") {
        left.push(Remark::new(
            "kiam",
            "its image's tag does not say which version it is; 4 is taken, whose namespaces' regexps stand for the whole of a \
             role. Those of version 3 are searched for in it",
            "if it is older, run this again with --daemon-flags and --disable-strict-namespace-regexp in them",
        ));
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Legacy {
        name: "kiam",
        base,
        default: None,
        role_key: ROLE.to_owned(),
        external_id_key: EXTERNAL_ID.to_owned(),
        session_name_key: SESSION_NAME.to_owned(),
        restriction: Restriction::Regexp { key: PERMITTED.to_owned(), version },
        session_seconds: flags.seconds("session-duration").unwrap_or(SESSION_DURATION),
        via: flags.get("assume-role-arn").and_then(|arn| arn.parse().ok()),
        daemons,
        left,
        notes: Vec::new(),
    })
}
