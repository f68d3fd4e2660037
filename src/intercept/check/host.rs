//! Pods on the node's network: whether they are redirected as they are meant to be.

use super::{Facts, Findings};
use crate::{
    identity::HostPods,
    intercept::host::{GUARD_TABLE, TABLE},
};

pub(super) fn look(wanted: Option<HostPods>, facts: &Facts, findings: &mut Findings) {
    let has = |name| {
        let table = facts.listing.host.iter().find(|(table, _)| *table == name);
        table.is_some_and(|(_, table)| matches!(table, Ok(Some(_))))
    };
    match (wanted, has(TABLE)) {
        (Some(HostPods::Off), true) => findings.fail(
            "pods on the node's network: an earlier run's rules redirect them, and --host-network wants none: \
             `rules remove`",
        ),
        (Some(HostPods::Off), false) => {}
        (Some(HostPods::Denied | HostPods::Served), false) => findings.fail(
            "pods on the node's network: not redirected: as soon as kubelet runs one, it reaches the node's role",
        ),
        (None, false) => findings.warn(
            "pods on the node's network: left the node's role; the daemon's log says why (--host-network auto)",
        ),
        (_, true) if has(GUARD_TABLE) => findings.ok("pods on the node's network: redirected, also through a flush"),
        (_, true) => findings.warn(
            "pods on the node's network: redirected; while another program flushes nftables they reach the node's role, \
             for no daemon of ours holds its table",
        ),
    }
}
