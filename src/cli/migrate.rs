//! The flags of `migrate`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClusterArgs, Output};

/// What is left.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// What is left.
    #[command(subcommand)]
    pub from: MigrateFrom,
}

/// What is left.
#[derive(Clone, Debug, Subcommand)]
pub enum MigrateFrom {
    /// From kube2iam. Exit code 1 if something is left to you.
    #[command(name = "from-kube2iam", args_override_self = true)]
    FromKube2iam(MigrateFromArgs),
    /// From kiam. Exit code 1 if something is left to you.
    #[command(name = "from-kiam", args_override_self = true)]
    FromKiam(MigrateFromArgs),
}

/// The flags of `migrate from-…`.
#[derive(Args, Clone, Debug, Default)]
pub struct MigrateFromArgs {
    /// A folder or a file of manifests (YAML or JSON) to read instead of the live cluster. Can be named again for more.
    #[arg(long, value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// The folder that the plan and its files are written to: one that is not there yet, or is empty.
    #[arg(long = "output", value_name = "DIR")]
    pub directory: PathBuf,

    /// As people or as programs read what is said: with json it is the whole plan.
    #[arg(short = 'o', value_enum, default_value_t = Output::Text)]
    pub format: Output,

    /// What the old daemon puts before a role that is no ARN. Absent: as its flags say.
    #[arg(long, value_name = "ARN")]
    pub base_role_arn: Option<String>,

    /// The role that kube2iam gives to pods without annotation. Absent: as its flags say.
    #[arg(long, value_name = "ROLE")]
    pub default_role: Option<String>,

    /// The old daemon's flags, in one argument, instead of those that it is found to run with.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    pub daemon_flags: Option<String>,

    /// A role of yours by way of which those of other AWS accounts are had, as a second hop. It may assume these alone: its
    /// ServiceAccounts' pods have it too. Absent: each of them has to trust the cluster's issuer itself.
    #[arg(long, value_name = "ARN")]
    pub hub_role_arn: Option<String>,

    /// The URL of the cluster's token issuer. Absent: as the live cluster says.
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
