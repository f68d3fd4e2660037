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
    namespace.enter(|| {
        mount_over(&BTreeMap::new())?;
        // To be asked for the carrier makes the kernel (from 6.8 on) process its changes now; else a bridge's take a second.
        fs::read(&carrier).ok();
        wait_until(&path, |state| state.trim() == wanted)
    })?
}

/// Waits until a link's IPv6 addresses are in use, its link-local one among them. The kernel makes that one, and takes part
/// where neighbours ask for any of them, some time after the link sends; what is asked until then is lost as above.
pub(super) fn wait_for_addresses(namespace: &Namespace, link: &str) -> Result<(), NetworkError> {
    const LINK_LOCAL: u8 = 0x20;
    const TENTATIVE: u8 = 0x40;
    // Address, index, prefix length, scope, flags, link.
    let state = |line: &str| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        let hex = |field: &str| u8::from_str_radix(field, 16).ok();
        let &[_, _, _, scope, flags, of_link] = fields.as_slice() else { return None };
        (of_link == link).then_some((hex(scope)?, hex(flags)?))
    };
    namespace.enter(|| {
        wait_until(Path::new("/proc/thread-self/net/if_inet6"), |table| {
            let mut addresses = table.lines().filter_map(state);
            addresses.clone().any(|(scope, _)| scope == LINK_LOCAL)
                && addresses.all(|(_, flags)| flags & TENTATIVE == 0)
        })
    })?
}

/// Waits until what a file of the kernel says is as wanted.
fn wait_until(path: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
    let unreadable = |source| NetworkError::LinkState { path: path.into(), source };
    let deadline = Instant::now() + LINK_WAIT;
    while !is_wanted(&fs::read_to_string(path).map_err(unreadable)?) {
        if Instant::now() > deadline {
            return Err(unreadable(io::ErrorKind::TimedOut.into()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Runs a batch of `ip`'s commands.
pub(super) fn ip(namespace: &Namespace, batch: &str) -> Result<(), NetworkError> {
    namespace.run("ip", &["-batch", "-"], batch)
}

/// Sets what a namespace's links will have of IPv6; before they are made, which inherit the default.
pub(super) fn prepare(namespace: &Namespace, families: Families) -> Result<(), NetworkError> {
    if families.has_v6() {
        // No address is looked for among the neighbours before it is used, which takes a second, and no router is asked for.
        return namespace.set(&[("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/default/accept_ra", "0")]);
    }
    // Not there where the kernel has none.
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    namespace.set(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])
}
