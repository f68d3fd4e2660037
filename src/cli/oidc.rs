//! The flags of `oidc`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClusterArgs, Output};

/// What to do about the cluster's token issuer.
#[derive(Args, Clone, Debug)]
pub struct OidcArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: OidcCommand,
}

/// What to do about the cluster's token issuer.
#[derive(Clone, Debug, Subcommand)]
pub enum OidcCommand {
    /// Print issuer, discovery document and keys as the API server serves them, and whether AWS can use that issuer. Exit
    /// code 1 if not.
    #[command(args_override_self = true)]
    Show(OidcShowArgs),
    /// Write both documents as files for any static web host. Keys that an earlier export left there stay.
    #[command(args_override_self = true)]
    Export(OidcExportArgs),
    /// Fetch both documents as AWS does, compare them with the cluster's, and say what is wrong, why it matters and what mends
    /// it. Exit code 1 if something is.
    #[command(args_override_self = true)]
    Check(OidcCheckArgs),
}

/// Which API servers are asked.
#[derive(Args, Clone, Debug, Default)]
pub struct OidcApiServerArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// An API server to ask, where that is not the kubeconfig's. Named again for each one behind a load balancer, the keys of
    /// all are taken together: while keys are changed they may differ.
    #[arg(long = "server", value_name = "URL")]
    pub servers: Vec<String>,
}

/// The flags of `oidc show`.
#[derive(Args, Clone, Debug)]
pub struct OidcShowArgs {
    /// Which API servers.
    #[command(flatten)]
    pub api_servers: OidcApiServerArgs,

    /// As people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// The flags of `oidc export`.
#[derive(Args, Clone, Debug)]
pub struct OidcExportArgs {
    /// Where the files are written: what the web host is to have at its root.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// Write them for this issuer, which the API server is yet to have. Absent: the one that it has.
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,

    /// Leave out the keys of earlier exports that no API server asked has any more. Safe once every token that they signed is
    /// over: a day after the last API server stopped signing with them, unless longer tokens are handed out.
    #[arg(long)]
    pub drop_old_keys: bool,

    /// Which API servers.
    #[command(flatten)]
    pub api_servers: OidcApiServerArgs,

    /// As people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// The flags of `oidc check`.
#[derive(Args, Clone, Debug)]
pub struct OidcCheckArgs {
    /// The issuer whose documents are fetched. Absent: the cluster's. With it, and without a cluster that can be asked, nothing
    /// is compared, and that is said.
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,

    /// Certificates (PEM) of an authority of your own, which signed the web host's. Those that this machine trusts are taken
    /// for the ones that AWS trusts.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Which API servers.
    #[command(flatten)]
    pub api_servers: OidcApiServerArgs,

    /// As people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}
