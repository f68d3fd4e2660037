//! The flags of `trust-policy`.

use clap::{Args, ValueEnum};

use super::{ClusterArgs, Output};

/// As what trust policies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyFormat {
    /// One object: roles with their policies, and providers.
    Json,
    /// The policy document alone, of one role.
    Policy,
    /// Resources in Terraform's language.
    Terraform,
    /// A template, in JSON.
    Cloudformation,
}

/// The flags of `trust-policy`.
#[derive(Args, Clone, Debug)]
pub struct TrustPolicyArgs {
    /// Service accounts. With --add-issuer or --remove-issuer: the file of the policy, or - for standard input.
    #[arg(value_name = "NAMESPACE/NAME|FILE")]
    pub subjects: Vec<String>,

    /// All service accounts of the cluster that are annotated with a role.
    #[arg(long)]
    pub all: bool,

    /// All service accounts that this names, with * and ? as in IAM, also those that are made later. Needs --role.
    #[arg(long, value_name = "GLOB/GLOB")]
    pub service_account: Vec<String>,

    /// The role, instead of those that the service accounts' annotations name. With --check: the role that the policy is of.
    #[arg(long, value_name = "ARN|NAME")]
    pub role: Option<String>,

    /// An issuer whose tokens are taken; can be repeated. Absent: the cluster's own, as its discovery document says.
    #[arg(long, value_name = "URL")]
    pub issuer: Vec<String>,

    /// The role is a target: it is assumed from this first role; can be repeated, for a first role of each cluster. Needs --role.
    #[arg(long, value_name = "ARN|NAME", requires = "role", conflicts_with_all = ["all", "service_account", "issuer", "check"])]
    pub from: Vec<String>,

    /// With --from: the external id with which the role is assumed.
    #[arg(long, value_name = "ID", requires = "from")]
    pub external_id: Option<String>,

    /// The account of roles that are named without ARN.
    #[arg(long, value_name = "ID")]
    pub account: Option<String>,

    /// The partition of that account.
    #[arg(long, value_name = "PARTITION", default_value = "aws")]
    pub partition: String,

    /// The audience of tokens, where a service account's annotation says no other.
    #[arg(long, value_name = "AUDIENCE", default_value = "sts.amazonaws.com")]
    pub audience: String,

    /// Prefix of the service accounts' annotations, as the daemon's.
    #[arg(long, value_name = "PREFIX", default_value = "eks.amazonaws.com")]
    pub annotation_prefix: String,

    /// As what it is written.
    #[arg(long, value_enum, default_value_t = PolicyFormat::Json)]
    pub format: PolicyFormat,

    /// Leave the IAM OIDC providers out: the accounts have them.
    #[arg(long)]
    pub no_provider: bool,

    /// How many characters a trust policy may have in these accounts (quota "Role trust policy length").
    #[arg(long, value_name = "N", default_value = "2048")]
    pub quota: usize,

    /// Say which service accounts of the cluster (or which of those that are named) may assume the role of this trust policy, and
    /// which should and may not. The policy's document, or what `aws iam get-role` prints; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "service_account", "format", "no_provider", "add_issuer", "remove_issuer"])]
    pub check: Option<String>,

    /// With --check: as people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// Add to a policy what it says of an issuer, for this one too.
    #[arg(long, value_name = "URL", conflicts_with_all = ["all", "service_account", "role", "issuer", "format"])]
    pub add_issuer: Option<String>,

    /// Take out of a policy what it says of this issuer.
    #[arg(long, value_name = "URL", conflicts_with_all = ["all", "service_account", "role", "issuer", "format"])]
    pub remove_issuer: Option<String>,

    /// With --add-issuer: the issuer that the new one is to be like, where the policy says different things of several.
    #[arg(long, value_name = "URL", requires = "add_issuer")]
    pub like: Option<String>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
