//! Which cluster a command asks.

use std::path::PathBuf;

use clap::Args;

/// The flags by which a command finds its cluster, as `kubectl` does.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Kubeconfig file; a proxy that it names is not used. Absent: those of KUBECONFIG, else ~/.kube/config, else the pod's own service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig. Absent: its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}
