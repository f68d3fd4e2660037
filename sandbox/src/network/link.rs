//! Links: made by `ip`, and waited for until they send.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{Families, Namespace, NetworkError, command::mount_over};

/// How long a link may take to come up: some milliseconds, on a machine that has them.
const LINK_WAIT: Duration = Duration::from_secs(5);
/// A link's attribute, and its value when the link sends.
pub(super) const LINK_UP: (&str, &str) = ("operstate", "up");
/// The same of a bridge's port: `BR_STATE_FORWARDING`.
pub(super) const PORT_FORWARDS: (&str, &str) = ("brport/state", "3");

/// Waits until a link sends. The kernel lets the end of a pair that was up first send only some time after the other is
/// up too; what it should have sent until then, such as the question for a neighbour, is lost, and repeated after a second.
pub(super) fn wait_for(
    namespace: &Namespace,
    link: &str,
    (attribute, wanted): (&str, &str),
) -> Result<(), NetworkError> {
    let directory = Path::new("/sys/class/net").join(link);
    let (path, carrier) = (directory.join(attribute), directory.join("carrier"));
    let unreadable = |source| NetworkError::LinkState { path: path.clone(), source };
    namespace.enter(|| {
        mount_over(&BTreeMap::new())?;
        let deadline = Instant::now() + LINK_WAIT;
        // To be asked for the carrier makes the kernel (from 6.8 on) process its changes now; else a bridge's take a second.
        fs::read(&carrier).ok();
        while fs::read_to_string(&path).map_err(unreadable)?.trim() != wanted {
            if Instant::now() > deadline {
                return Err(unreadable(io::ErrorKind::TimedOut.into()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?
}

/// Runs a batch of `ip`'s commands.
pub(super) fn ip(namespace: &Namespace, batch: &str) -> Result<(), NetworkError> {
    namespace.run("ip", &["-batch", "-"], batch)
}

/// Sets what a namespace's links will have of IPv6; before they are made, which inherit the default.
pub(super) fn prepare(namespace: &Namespace, families: Families) -> Result<(), NetworkError> {
    if families.has_v6() {
        // No address is looked for among the neighbours before it is used (that takes a second), and no router is asked for.
        return namespace.set(&[("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/default/accept_ra", "0")]);
    }
    // Not there where the kernel has none.
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    namespace.set(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])
}
