//! What of iptables cannot be looked at here, and whether rules of ours can be in it.
//!
//! Invariant: what hides rules that a daemon with these rights and commands would write is an error. What only
//! another could have written is said, and no error.

use super::{FirewallError, iptables::Variant};

/// What is said of legacy tables where that is no error.
pub(super) const NEEDS_RAW: &str = "needs NET_RAW, and to write to /run/xtables.lock";

/// Which tables are the node's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// In which a daemon here writes.
    pub(super) variant: Variant,
    /// What the command without a variant in its name is, where it is installed.
    pub(super) system: Option<Variant>,
}

// === impl Own ===

impl Own {
    pub(super) async fn read() -> Self {
        Self { variant: Variant::of_the_node().await, system: Variant::of_command("iptables").await }
    }

    /// The command of legacy tables that could not be looked at for want of a right, where the node's own are others: only
    /// a run that had it can have left something there.
    pub(super) fn lacks_right(self, error: &FirewallError) -> Option<&str> {
        let FirewallError::Command { command, output } = error else { return None };
        let command = command.split(' ').next().unwrap_or_default();
        let is_refused = ["Permission denied", "Operation not permitted", "lock file"];
        (self.is_legacy(command) && !self.is_own_legacy() && is_refused.iter().any(|refused| output.contains(refused)))
            .then_some(command)
    }

    fn is_own_legacy(self) -> bool {
        match self.variant {
            Variant::Legacy => true,
            Variant::Nft => false,
            Variant::System => self.system == Some(Variant::Legacy),
        }
    }

    fn is_legacy(self, command: &str) -> bool {
        command.contains("tables-legacy")
            || self.system == Some(Variant::Legacy)
                && ["iptables", "ip6tables"].iter().any(|name| {
                    // Also `iptables-restore`.
                    command.strip_prefix(name).is_some_and(|rest| ["", "-restore"].contains(&rest))
                })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legacy_tables_that_are_not_the_nodes_own_may_be_hidden_by_a_missing_right() {
        let denied = "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied";
        let locked = "Fatal: can't open lock file /run/xtables.lock: Read-only file system";
        let (nft, legacy) = (Some(Variant::Nft), Some(Variant::Legacy));
        for (variant, system, command, output, is_excused) in [
            (Variant::Nft, nft, "iptables-legacy -w 5 -t nat -S KUBE2IRSA", denied, true),
            (Variant::Nft, nft, "ip6tables-legacy -w 5 -t nat -S KUBE2IRSA", locked, true),
            (Variant::System, nft, "iptables-legacy -w 5", denied, true),
            (Variant::Nft, legacy, "iptables -w 5", denied, true),
            (Variant::Nft, legacy, "iptables-nft -w 5", denied, false),
            (Variant::Nft, nft, "iptables -w 5", denied, false),
            (Variant::Nft, nft, "nft --terse list", "Operation not permitted", false),
            (Variant::Legacy, nft, "iptables-legacy -w 5", denied, false),
            (Variant::System, legacy, "iptables -w 5", denied, false),
            (Variant::Nft, nft, "iptables-legacy -w 5", "Another app is currently holding the xtables lock", false),
        ] {
            let error = FirewallError::Command { command: command.to_owned(), output: output.to_owned() };
            let own = Own { variant, system };
            assert_eq!(own.lacks_right(&error).is_some(), is_excused, "{own:?} {error}");
        }
    }
}
