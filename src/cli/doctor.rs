//! What `doctor` looks at.

use std::path::PathBuf;

use clap::Args;

use super::{CheckArgs, ClusterArgs, Output};

/// The flags of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Look at this node: its rules, its way to STS and to the metadata service. In a daemon's pod this is the default. The
    /// cluster is looked at too if --kubeconfig or --context name one; without --node it alone is.
    #[arg(long)]
    pub node: bool,

    /// This node's name in Kubernetes.
    #[arg(long, value_name = "NAME", env = "KUBE2IRSA_NODE_NAME", hide = true)]
    pub node_name: Option<String>,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// As people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// AWS region whose STS is asked. Absent: the daemons', the nodes', or the one that the real metadata service names.
    #[arg(long, value_name = "REGION", env = "KUBE2IRSA_REGION")]
    pub region: Option<String>,

    /// STS endpoint instead of the region's own. Absent: the daemons'.
    #[arg(long, value_name = "URL", env = "KUBE2IRSA_STS_ENDPOINT")]
    pub sts_endpoint: Option<String>,

    /// With --node: the real metadata service; `off` where there is none.
    #[arg(long, value_name = "URL|off", default_value = "http://169.254.169.254", env = "KUBE2IRSA_IMDS_ENDPOINT")]
    pub imds_endpoint: String,

    /// Certificates (PEM) to trust for STS and the issuer instead of the system's.
    #[arg(long, value_name = "FILE", env = "KUBE2IRSA_CA_BUNDLE")]
    pub ca_bundle: Option<PathBuf>,

    /// With --node: what the daemon there is told.
    #[command(flatten)]
    pub rules: CheckArgs,
}
