//! What was typed. Nothing is judged here: `config` reads every value, so that it can name all that is
//! wrong at once.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod cluster;
mod doctor;
mod migrate;
mod oidc;
mod trust_policy;

pub use self::{
    cluster::ClusterArgs,
    doctor::DoctorArgs,
    migrate::{MigrateArgs, MigrateFrom, MigrateFromArgs},
    oidc::{OidcApiServerArgs, OidcArgs, OidcCheckArgs, OidcCommand, OidcExportArgs, OidcShowArgs},
    trust_policy::{PolicyFormat, TrustPolicyArgs},
};

/// Gives every pod the IAM role of its own ServiceAccount, through the EC2 metadata service.
#[derive(Debug, Parser)]
#[command(name = "kube2irsa", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Those of these variables of the environment that are named like ours and set no flag: misspelt, or of another version.
    pub fn unknown<'a>(variables: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let command = Self::command();
        let known = |name: &str| {
            let mut args = command.get_subcommands().flat_map(clap::Command::get_arguments);
            args.any(|arg| arg.get_env().is_some_and(|env| env == name))
        };
        // What Kubernetes sets for a Service with such a name.
        let is_of_service =
            |name: &str| ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|part| name.contains(part));
        variables.filter(|name| name.starts_with("KUBE2IRSA_") && !is_of_service(name) && !known(name)).collect()
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run on a node: intercept, identify, exchange, serve.
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// The rules that a run puts on the node.
    Rules {
        /// What to do with them.
        #[command(subcommand)]
        command: RulesCommand,
    },
    /// Ask the daemon whether it lives, or is ready; for the probes of a pod. Exit code 1 if not, with the reasons, a line each.
    #[command(args_override_self = true)]
    Probe(ProbeArgs),
    /// Say step by step why a pod of this node gets its credentials, or does not, as the daemon here knows it; or with --all which
    /// pods of the cluster get none, by cause. Exit code 1 if a step fails or a pod has a fault, 69 if nobody answers.
    #[command(args_override_self = true)]
    Explain(ExplainArgs),
    /// The cluster's token issuer: as the API server has it, as files for a web host, and as AWS sees it.
    Oidc(OidcArgs),
    /// Plan the way from kube2iam or kiam: ServiceAccounts, patches, trust policies and steps, as files. Changes nothing.
    Migrate(MigrateArgs),
    /// Write the trust policies of the roles that service accounts ask for, and the IAM OIDC providers that they need; say whom a
    /// trust policy admits (--check); add an issuer to one, or take one out. Exit code 1 if something is to be done, 69 if the
    /// cluster cannot be asked.
    #[command(args_override_self = true)]
    TrustPolicy(Box<TrustPolicyArgs>),
    /// Say what is wrong with a cluster or with this node, why it matters, and what mends it. It only reads. Exit code 1 if there is
    /// an error or a warning, 69 if nothing can be asked.
    #[command(args_override_self = true)]
    Doctor(Box<DoctorArgs>),
    /// Print a script by which a shell completes our commands and flags.
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page of all commands, or write a page for each into a directory.
    Man {
        /// The directory.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// The flags of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The pod.
    #[arg(value_name = "NAMESPACE/POD", required_unless_present = "all", conflicts_with = "all")]
    pub pod: Option<String>,

    /// All pods of the cluster that get no credentials, by cause, as far as the API server tells: from a laptop, say.
    #[arg(long)]
    pub all: bool,

    /// With --all: which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// As people or as programs read it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// The daemon's admin socket.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET, env = "KUBE2IRSA_ADMIN_SOCKET")]
    pub admin_socket: PathBuf,
}

/// As what something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// The flags of `probe`.
#[derive(Args, Clone, Debug)]
pub struct ProbeArgs {
    /// What to ask.
    #[arg(value_enum)]
    pub probe: Probe,

    /// The daemon's admin socket.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET, env = "KUBE2IRSA_ADMIN_SOCKET")]
    pub admin_socket: PathBuf,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Whether pods can be sent here.
    Ready,
    /// Whether the process lives.
    Live,
}

/// What to do with the node's rules.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Print every rule of ours that is on the node.
    Show,
    /// Say whether guard and redirect are whole, lead to a daemon, and have nothing in their way. Changes nothing; exit code
    /// 1 if something is wrong.
    #[command(args_override_self = true)]
    Check(CheckArgs),
    /// Take out the redirect and the guard. Pods then reach the real metadata service, and the node's role!
    #[command(args_override_self = true)]
    Remove(RemoveArgs),
}

/// The flags of `rules check`: those of `run`, with its variables of the environment.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Where the daemon listens for pods.
    #[arg(long, value_name = "ADDR:PORT,…", default_value = LISTEN, env = "KUBE2IRSA_LISTEN")]
    pub listen: String,

    /// Where the daemon serves metrics and health.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADMIN_LISTEN, env = "KUBE2IRSA_ADMIN_LISTEN")]
    pub admin_listen: String,

    /// How the daemon redirects pods' requests.
    #[arg(long, value_name = "auto|nft|iptables|observe|none", default_value = INTERCEPT, env = "KUBE2IRSA_INTERCEPT")]
    pub intercept: String,

    /// What becomes of pods on the node's network.
    #[arg(long, value_name = "auto|off|deny|serve", default_value = HOST_NETWORK, env = "KUBE2IRSA_HOST_NETWORK")]
    pub host_network: String,

    /// Addresses at which the container credentials endpoint is served.
    #[arg(long, value_name = "ADDR,…|off", default_value = CONTAINER_ENDPOINTS, env = "KUBE2IRSA_CONTAINER_ENDPOINTS")]
    pub container_endpoints: String,
}

/// The flags of `rules remove`: those of `run`, with its variables of the environment.
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// Take over from a daemon that runs here, keep the rules out, and stay until told to stop, as what a DaemonSet runs
    /// must. Without it a daemon that runs has to be stopped first.
    #[arg(long)]
    pub stay: bool,

    /// With --stay: where metrics and health are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADMIN_LISTEN, env = "KUBE2IRSA_ADMIN_LISTEN")]
    pub admin_listen: String,

    /// With --stay: the admin socket of the process that stays. Without: one that a daemon left there is taken out.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET, env = "KUBE2IRSA_ADMIN_SOCKET")]
    pub admin_socket: String,

    /// The daemon's directory, whose files are taken out too.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = "KUBE2IRSA_STATE_DIR")]
    pub state_dir: String,

    /// Form of the log lines on standard error.
    #[arg(long, value_name = "text|json", default_value = "text", env = "KUBE2IRSA_LOG_FORMAT")]
    pub log_format: String,

    /// How much is logged.
    #[arg(long, value_name = "error|warn|info|debug", default_value = "info", env = "KUBE2IRSA_LOG_LEVEL")]
    pub log_level: String,
}

const LISTEN: &str = "0.0.0.0:9169,[::]:9169";
const ADMIN_LISTEN: &str = "127.0.0.1:9170";
const HOST_NETWORK: &str = "auto";
const ADMIN_SOCKET: &str = "/run/kube2irsa/admin.sock";
const STATE_DIR: &str = "/run/kube2irsa";
const INTERCEPT: &str = "auto";
const CONTAINER_ENDPOINTS: &str = "169.254.170.2";

/// The flags of `run`, as typed. Each can also be given as `KUBE2IRSA_…` in the environment.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// This node's name in Kubernetes.
    #[arg(long, value_name = "NAME", env = "KUBE2IRSA_NODE_NAME")]
    pub node_name: Option<String>,

    /// Kubeconfig file for the API server. Absent: the pod's own service account.
    #[arg(long, value_name = "FILE", env = "KUBE2IRSA_KUBECONFIG")]
    pub kubeconfig: Option<String>,

    /// Where pods' requests are redirected to: an address of a family, or one of each, separated by a comma. A family
    /// that the node does not have is left out.
    #[arg(long, value_name = "ADDR:PORT,…", default_value = LISTEN, env = "KUBE2IRSA_LISTEN")]
    pub listen: String,

    /// Where metrics and health are served; never reachable by pods on a loopback address. Brackets may be around an
    /// address of either family.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADMIN_LISTEN, env = "KUBE2IRSA_ADMIN_LISTEN")]
    pub admin_listen: String,

    /// A unix socket of this process alone, for `kube2irsa probe` and `kube2irsa explain`.
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET, env = "KUBE2IRSA_ADMIN_SOCKET")]
    pub admin_socket: String,

    /// AWS region whose STS is called. Absent: the one that the real metadata service names.
    #[arg(long, value_name = "REGION", env = "KUBE2IRSA_REGION")]
    pub region: Option<String>,

    /// Availability zone that pods are told. Absent: the one that the real metadata service names, if any.
    #[arg(long, value_name = "ZONE", env = "KUBE2IRSA_AVAILABILITY_ZONE")]
    pub availability_zone: Option<String>,

    /// Instance id that pods are told. Absent: the one that the real metadata service names, if any.
    #[arg(long, value_name = "ID", env = "KUBE2IRSA_INSTANCE_ID")]
    pub instance_id: Option<String>,

    /// STS endpoint instead of the region's own (a VPC endpoint, say); plain http only on loopback.
    #[arg(long, value_name = "URL", env = "KUBE2IRSA_STS_ENDPOINT")]
    pub sts_endpoint: Option<String>,

    /// The cluster's name, as a tag (eks-cluster-name) of sessions in a second hop. Absent: no such tag.
    #[arg(long, value_name = "NAME", env = "KUBE2IRSA_CLUSTER_NAME")]
    pub cluster_name: Option<String>,

    /// The real metadata service, asked for what is not given; `off` where there is none.
    #[arg(long, value_name = "URL|off", default_value = "http://169.254.169.254", env = "KUBE2IRSA_IMDS_ENDPOINT")]
    pub imds_endpoint: String,

    /// Further paths of the real metadata service that pods may read, separated by commas, such as
    /// /latest/meta-data/local-ipv4; with a slash at its end, all below. Never credentials or user data.
    #[arg(long, value_name = "PATH,…", default_value = "", hide_default_value = true, env = "KUBE2IRSA_ALLOW_PATH")]
    pub allow_path: String,

    /// Audience of the service account tokens that are exchanged.
    #[arg(long, value_name = "AUDIENCE", default_value = "sts.amazonaws.com", env = "KUBE2IRSA_TOKEN_AUDIENCE")]
    pub token_audience: String,

    /// Calls of STS a second, in the long run: this node's share of what the account may make.
    #[arg(long, value_name = "N", default_value = "5", env = "KUBE2IRSA_STS_RATE")]
    pub sts_rate: String,

    /// Calls of STS at once after a rest.
    #[arg(long, value_name = "N", default_value = "20", env = "KUBE2IRSA_STS_BURST")]
    pub sts_burst: String,

    /// Exchanges in flight at once.
    #[arg(long, value_name = "N", default_value = "16", env = "KUBE2IRSA_STS_CONCURRENCY")]
    pub sts_concurrency: String,

    /// Whose a session at STS is: each pod's own, which CloudTrail tells apart, or one for all pods of a service
    /// account on this node, which costs STS less.
    #[arg(long, value_name = "pod|service-account", default_value = "pod", env = "KUBE2IRSA_SESSION_SCOPE")]
    pub session_scope: String,

    /// Prefix of the service accounts' annotations.
    #[arg(long, value_name = "PREFIX", default_value = "eks.amazonaws.com", env = "KUBE2IRSA_ANNOTATION_PREFIX")]
    pub annotation_prefix: String,

    /// Take a role-arn annotation without `arn:` for the name (and path) of a role of one account.
    #[arg(long, env = "KUBE2IRSA_COMPOSE_ROLE_ARN")]
    pub compose_role_arn: bool,

    /// The account whose roles --compose-role-arn means. Absent: the node's own, as the real metadata service says.
    #[arg(long, value_name = "ID", env = "KUBE2IRSA_AWS_ACCOUNT")]
    pub aws_account: Option<String>,

    /// The partition of that account (aws, aws-cn, …). Absent: the node's own, as the real metadata service says.
    #[arg(long, value_name = "PARTITION", env = "KUBE2IRSA_AWS_PARTITION")]
    pub aws_partition: Option<String>,

    /// Heed the annotations of kube2iam and kiam (docs/legacy.md): a pod whose ServiceAccount names no role gets the one that
    /// the pod names (iam.amazonaws.com/role), if its Namespace permits that.
    #[arg(long, env = "KUBE2IRSA_LEGACY_ANNOTATIONS")]
    pub legacy_annotations: bool,

    /// How the roles that pods name are had: by a token of the pod's ServiceAccount, which they must trust, or by AssumeRole
    /// as kube2iam does it, with an identity of the daemon's own that may assume them all.
    #[arg(
        long,
        value_name = "web-identity|assume-role",
        default_value = "web-identity",
        env = "KUBE2IRSA_LEGACY_SOURCE"
    )]
    pub legacy_source: String,

    /// With --legacy-source assume-role, whose identity that is: the node's, as the real metadata service gives it out, or
    /// that of AWS_ROLE_ARN with the token in AWS_WEB_IDENTITY_TOKEN_FILE.
    #[arg(long, value_name = "node|web-identity", default_value = "node", env = "KUBE2IRSA_LEGACY_IDENTITY")]
    pub legacy_identity: String,

    /// What stands before the name of a role that a pod or a Namespace names, such as arn:aws:iam::111122223333:role/team/.
    /// Absent: that of --aws-account in --aws-partition, or of the node's own account, without a path.
    #[arg(long, value_name = "ARN", env = "KUBE2IRSA_LEGACY_BASE_ROLE_ARN")]
    pub legacy_base_role_arn: Option<String>,

    /// How Namespaces write the roles that their pods may name (iam.amazonaws.com/allowed-roles).
    #[arg(long, value_name = "glob|regexp", default_value = "glob", env = "KUBE2IRSA_LEGACY_NAMESPACE_FORMAT")]
    pub legacy_namespace_format: String,

    /// What a Namespace permits that has neither iam.amazonaws.com/allowed-roles nor iam.amazonaws.com/permitted: nothing
    /// (`required`) or all (`annotated`).
    #[arg(
        long,
        value_name = "required|annotated",
        default_value = "required",
        env = "KUBE2IRSA_LEGACY_NAMESPACE_POLICY"
    )]
    pub legacy_namespace_policy: String,

    /// With which power tokens are asked for: as our node, which the API server keeps to its pods (Kubernetes
    /// 1.36), or as ourselves; `auto` finds out.
    #[arg(long, value_name = "auto|node|direct", default_value = "auto", env = "KUBE2IRSA_TOKEN_ACCESS")]
    pub token_access: String,

    /// Once ready, take the taint kube2irsa.io/not-ready off this node, which keeps pods away until then. Needs a right of
    /// its own (startupTaint.enabled of the chart).
    #[arg(long, env = "KUBE2IRSA_REMOVE_TAINT")]
    pub remove_taint: bool,

    /// How namespaces limit the roles of their pods (annotation kube2irsa.io/permitted-roles): one without it
    /// permits all (`annotated`) or none (`required`).
    #[arg(
        long,
        value_name = "off|annotated|required",
        default_value = "annotated",
        env = "KUBE2IRSA_NAMESPACE_POLICY"
    )]
    pub namespace_policy: String,

    /// Refuse every request without a session token (IMDSv1), of whatever pod, and at the container endpoint every one
    /// without the pod's own token. Absent: only where a namespace or a service account says so (annotation
    /// kube2irsa.io/require-imdsv2).
    #[arg(long, env = "KUBE2IRSA_REQUIRE_IMDSV2")]
    pub require_imdsv2: bool,

    /// Connections that one pod may have open; one more is closed.
    #[arg(long, value_name = "N", default_value = "1024", env = "KUBE2IRSA_MAX_CONNECTIONS_PER_POD")]
    pub max_connections_per_pod: String,

    /// Connections that all pods of the node may have open together; one more is closed.
    #[arg(long, value_name = "N", default_value = "4096", env = "KUBE2IRSA_MAX_CONNECTIONS")]
    pub max_connections: String,

    /// Requests that one pod may make in a second, in the long run; more of them wait.
    #[arg(long, value_name = "N", default_value = "2000", env = "KUBE2IRSA_REQUESTS_PER_POD")]
    pub requests_per_pod: String,

    /// Requests that one pod may make at once after a rest.
    #[arg(long, value_name = "N", default_value = "4000", env = "KUBE2IRSA_REQUEST_BURST_PER_POD")]
    pub request_burst_per_pod: String,

    /// Bytes of a request's head.
    #[arg(long, value_name = "BYTES", default_value = "16384", env = "KUBE2IRSA_MAX_REQUEST_HEAD")]
    pub max_request_head: String,

    /// Bytes of a request's body; none means anything.
    #[arg(long, value_name = "BYTES", default_value = "1024", env = "KUBE2IRSA_MAX_REQUEST_BODY")]
    pub max_request_body: String,

    /// How long a request's head may take from its first byte, and an answer until it is read.
    #[arg(long, value_name = "SECONDS", default_value = "5", env = "KUBE2IRSA_REQUEST_TIMEOUT")]
    pub request_timeout: String,

    /// How long a connection may stay open without a request.
    #[arg(long, value_name = "SECONDS", default_value = "60", env = "KUBE2IRSA_IDLE_TIMEOUT")]
    pub idle_timeout: String,

    /// Directory for the keys of session tokens and for the hand-over to the next daemon, best on tmpfs.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = "KUBE2IRSA_STATE_DIR")]
    pub state_dir: String,

    /// How pods' requests are redirected: by nftables or iptables, or by whichever works (`auto`). `observe` redirects
    /// nothing, serves nobody, and names in the log the pods that contact the metadata service and what each would get
    /// (needs the capability NET_RAW); `none` installs no rule, nor the guard.
    #[arg(long, value_name = "auto|nft|iptables|observe|none", default_value = INTERCEPT, env = "KUBE2IRSA_INTERCEPT")]
    pub intercept: String,

    /// What becomes of pods on the node's network (hostNetwork), told by their cgroups: `serve` gives them the roles of
    /// their service accounts, `deny` none, and either keeps them from the node's; `off` leaves them that. `auto`: `serve`
    /// where the node's cgroups (version 2) are to be seen and nftables redirects, else `off`.
    #[arg(long, value_name = "auto|off|deny|serve", default_value = HOST_NETWORK, env = "KUBE2IRSA_HOST_NETWORK")]
    pub host_network: String,

    /// Addresses at which the container credentials endpoint is served, separated by commas (169.254.170.2,
    /// 169.254.170.23, fd00:ec2::23); `off`: none. The latter two are those of EKS Pod Identity: name them only where
    /// that is not used.
    #[arg(long, value_name = "ADDR,…|off", default_value = CONTAINER_ENDPOINTS, env = "KUBE2IRSA_CONTAINER_ENDPOINTS")]
    pub container_endpoints: String,

    /// Certificates (PEM) to trust for STS instead of the system's.
    #[arg(long, value_name = "FILE", env = "KUBE2IRSA_CA_BUNDLE")]
    pub ca_bundle: Option<String>,

    /// Form of the log lines on standard error.
    #[arg(long, value_name = "text|json", default_value = "text", env = "KUBE2IRSA_LOG_FORMAT")]
    pub log_format: String,

    /// How much is logged.
    #[arg(long, value_name = "error|warn|info|debug", default_value = "info", env = "KUBE2IRSA_LOG_LEVEL")]
    pub log_level: String,

    /// Where it is written which pod got which keys of which role (docs/audit.md): JSON lines, appended to a file, or `-`
    /// for standard output. Absent: nowhere.
    #[arg(long, value_name = "FILE|-", env = "KUBE2IRSA_AUDIT_LOG")]
    pub audit_log: Option<String>,

    /// Threads that serve requests.
    #[arg(long, value_name = "N", default_value = "2", env = "KUBE2IRSA_WORKER_THREADS")]
    pub worker_threads: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_told_from_a_flags_and_from_a_services() {
        let variables = [
            "KUBE2IRSA_REQUIRE_IMDSV2",
            "KUBE2IRSA_REQUIRE_IMDS_V2",
            "KUBE2IRSA_SERVICE_HOST",
            "KUBE2IRSA_METRICS_PORT_9171_TCP_ADDR",
            "KUBE2IRSA_ADMIN_SOCKET",
            "PATH",
        ];
        assert_eq!(Cli::unknown(variables.into_iter()), ["KUBE2IRSA_REQUIRE_IMDS_V2"]);
    }
}
