//! What the daemon needs: parsed once, validated once, immutable after.
//!
//! All that is wrong is said at once, each error naming its flag.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use http::Uri;
use kube::config::{Kubeconfig, NamedCluster};

mod aws;
mod legacy;
mod limits;
mod rules;

use self::aws::Aws;
pub use self::{
    aws::{ComposeRoleArn, Source, StsConfig, StsLocation},
    legacy::{Base, LegacyConfig, OwnIdentity},
    rules::{Removal, expected},
};
use crate::{
    audit,
    cli::RunArgs,
    identity::{HostPods, NodeName, annotations::Keys, policy::NamespacePolicy},
    imds::{allowed::AllowedPaths, facts::Given, limits::Limits},
    intercept::{CONTAINER, POD_IDENTITY_V4, POD_IDENTITY_V6, plan::Wanted},
    local_socket::LONGEST_PATH,
};

/// The most threads that make sense on a node's daemon.
const MOST_THREADS: usize = 64;

/// What the daemon needs to run.
#[derive(Debug)]
pub struct Config {
    /// This node's name.
    pub node_name: NodeName,
    /// How to reach the API server.
    pub api_server: ApiServer,
    /// Where pods' requests arrive: one address of a family, or one of each.
    pub listen: Vec<SocketAddr>,
    /// Where metrics and health are served.
    pub admin_listen: SocketAddr,
    /// Where the admin socket is.
    pub admin_socket: PathBuf,
    /// Where credentials come from.
    pub sts: StsConfig,
    /// The audience of service account tokens.
    pub token_audience: String,
    /// The annotations that service accounts are read by.
    pub annotation_keys: Keys,
    /// Whose roles those annotations mean that are no ARN, where they mean any.
    pub compose_role_arn: Option<ComposeRoleArn>,
    /// How roles are had that pods name themselves, where that is heeded.
    pub legacy: Option<LegacyConfig>,
    /// How namespaces limit the roles of their pods.
    pub namespace_policy: NamespacePolicy,
    /// With which power tokens are asked for.
    pub token_access: TokenAccess,
    /// Whether the start-up taint is taken off the node.
    pub remove_taint: bool,
    /// What pods are told of the node.
    pub facts: Given,
    /// What else pods may read of the real metadata service, and where that is.
    pub allowed: Option<(Uri, AllowedPaths)>,
    /// Whether every pod must bring a session token.
    pub require_imdsv2: bool,
    /// What a pod may take of the listener.
    pub limits: Limits,
    /// Where the session key is kept.
    pub state_dir: PathBuf,
    /// How requests are redirected.
    pub intercept: Intercept,
    /// What is to become of pods on the node's network; `None`: what is best.
    pub host_network: Option<HostPods>,
    /// At which addresses the container credentials endpoint is served.
    pub container_endpoints: Vec<IpAddr>,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Where the audit log goes, if there is one.
    pub audit_log: Option<audit::Destination>,
    /// Threads that serve requests.
    pub worker_threads: usize,
}

/// How to reach the API server.
#[derive(Clone)]
pub enum ApiServer {
    /// As the pod's own service account.
    InCluster,
    /// As a kubeconfig says.
    Kubeconfig(Box<Kubeconfig>),
}

impl fmt::Debug for ApiServer {
    /// A kubeconfig may hold keys and tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InCluster => "InCluster",
            Self::Kubeconfig(_) => "Kubeconfig",
        })
    }
}

/// With which power tokens are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAccess {
    /// As our node where the API server allows it.
    Auto,
    /// As our node.
    Node,
    /// As ourselves.
    Direct,
}

/// How requests are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// By us, and pods are kept from the real service.
    Redirect(Wanted),
    /// Not at all: it is only seen who asks.
    Observe,
    /// Not by us, and without the guard.
    None,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs an operator.
    Error,
    /// Also what may.
    Warn,
    /// Also what was done.
    Info,
    /// Also single connections.
    Debug,
}

impl LogLevel {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// All that is wrong with the flags, a line each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// What the flags mean.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn new(args: &RunArgs) -> Result<Self, ConfigErrors> {
        let mut errors = Errors::default();
        let node_name = match args.node_name.as_deref() {
            Some(name) if is_dns_name(name) => NodeName::from(name),
            Some(name) => errors.add(format!("--node-name {name:?}: not the name of a node"), "".into()),
            None => errors.add("--node-name: is missing".to_owned(), "".into()),
        };
        let listen = listen(&args.listen, &mut errors);
        let admin_listen = admin_listen(&args.admin_listen, &mut errors);
        if listen.iter().any(|listen| listen.port() != 0 && listen.port() == admin_listen.port()) {
            let same = format!("--admin-listen {admin_listen}: must not share the port of --listen, which pods reach");
            errors.add(same, ());
        }
        let admin_socket = admin_socket(&args.admin_socket, &mut errors);
        let intercept = intercept(&args.intercept, &mut errors);
        if let (Intercept::Redirect(_), Some(listen)) = (intercept, listen.iter().find(|to| to.ip().is_loopback())) {
            let text = format!("--listen {listen}: pods' packets cannot be redirected to a loopback address");
            errors.add(text, ());
        }
        let host_network = host_network(&args.host_network, intercept, &mut errors);
        let container_endpoints = container_endpoints(&args.container_endpoints, &mut errors);
        let (log_format, log_level) = log(&args.log_format, &args.log_level, &mut errors);
        let threads_what = "a number of threads from 1 to 64";
        let worker_threads = errors.parsed("--worker-threads", &args.worker_threads, threads_what, 1);
        if !(1..=MOST_THREADS).contains(&worker_threads) {
            errors.add(format!("--worker-threads {worker_threads}: is not {threads_what}"), ());
        }
        if args.token_audience.is_empty() {
            errors.add("--token-audience: must not be empty".to_owned(), ());
        }
        if !is_dns_name(&args.annotation_prefix) {
            errors.add(format!("--annotation-prefix {:?}: is not a DNS name", args.annotation_prefix), ());
        }
        let namespace_policy = match args.namespace_policy.as_str() {
            "off" => NamespacePolicy::Off,
            "annotated" => NamespacePolicy::Annotated,
            "required" => NamespacePolicy::Required,
            other => errors.add(
                format!("--namespace-policy {other:?}: must be off, annotated or required"),
                NamespacePolicy::Required,
            ),
        };
        let token_access = match args.token_access.as_str() {
            "auto" => TokenAccess::Auto,
            "node" => TokenAccess::Node,
            "direct" => TokenAccess::Direct,
            other => errors.add(format!("--token-access {other:?}: must be auto, node or direct"), TokenAccess::Auto),
        };
        if args.state_dir.is_empty() {
            errors.add("--state-dir: must not be empty".to_owned(), ());
        }
        let Aws { sts, account, facts } = Aws::read(args, &mut errors);
        let legacy = legacy::read(args, account.as_ref(), facts.imds.as_ref(), &mut errors);
        let compose_role_arn = account.filter(|_| args.compose_role_arn);
        let allowed = allowed(args, facts.imds.as_ref(), &mut errors);
        let limits = limits::read(args, &mut errors);
        let audit_log = args.audit_log.as_deref().map(|to| audit_log(to, &mut errors));
        let api_server = api_server(args.kubeconfig.as_deref(), &mut errors);
        errors.or(Self {
            node_name,
            api_server,
            listen,
            admin_listen,
            admin_socket,
            sts,
            token_audience: args.token_audience.clone(),
            annotation_keys: Keys::new(&args.annotation_prefix),
            compose_role_arn,
            legacy,
            namespace_policy,
            token_access,
            remove_taint: args.remove_taint,
            facts,
            allowed,
            require_imdsv2: args.require_imdsv2,
            limits,
            state_dir: PathBuf::from(&args.state_dir),
            intercept,
            host_network,
            container_endpoints,
            log_format,
            log_level,
            audit_log,
            worker_threads,
        })
    }
}

fn allowed(args: &RunArgs, imds: Option<&Uri>, errors: &mut Errors) -> Option<(Uri, AllowedPaths)> {
    let paths = args.allow_path.split(',').map(str::trim).filter(|path| !path.is_empty()).collect::<Vec<_>>();
    if paths.is_empty() {
        return None;
    }
    let allowed = AllowedPaths::new(paths).unwrap_or_else(|refused| {
        for (path, why) in refused {
            errors.add(format!("--allow-path {path:?}: {why}"), ());
        }
        AllowedPaths::default()
    });
    if args.imds_endpoint == "off" {
        errors.add("--allow-path: there is nobody to ask for them (--imds-endpoint off)".to_owned(), ());
    }
    Some((imds?.clone(), allowed))
}

fn log(format: &str, level: &str, errors: &mut Errors) -> (LogFormat, LogLevel) {
    let format = match format {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => errors.add(format!("--log-format {other:?}: must be text or json"), LogFormat::Text),
    };
    let level = match level {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        other => errors.add(format!("--log-level {other:?}: must be error, warn, info or debug"), LogLevel::Info),
    };
    (format, level)
}

/// A file that cannot be written now may be later; a folder that is not there is a slip.
fn audit_log(text: &str, errors: &mut Errors) -> audit::Destination {
    if text == "-" {
        return audit::Destination::StandardOutput;
    }
    let path = PathBuf::from(text);
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if path.file_name().is_none() || path.is_dir() || !folder.is_dir() {
        errors.add(format!("--audit-log {text:?}: is neither - nor a file in a folder that is there"), ());
    }
    audit::Destination::File(path)
}

fn intercept(text: &str, errors: &mut Errors) -> Intercept {
    match text {
        "auto" => Intercept::Redirect(Wanted::Auto),
        "nft" => Intercept::Redirect(Wanted::Nft),
        "iptables" => Intercept::Redirect(Wanted::Iptables),
        "observe" => Intercept::Observe,
        "none" => Intercept::None,
        other => {
            errors.add(format!("--intercept {other:?}: must be auto, nft, iptables, observe or none"), Intercept::None)
        }
    }
}

fn host_network(text: &str, intercept: Intercept, errors: &mut Errors) -> Option<HostPods> {
    let wish = match text {
        "auto" => None,
        "off" => Some(HostPods::Off),
        "deny" => Some(HostPods::Denied),
        "serve" => Some(HostPods::Served),
        other => errors.add(format!("--host-network {other:?}: must be auto, off, deny or serve"), None),
    };
    if matches!((wish, intercept), (Some(HostPods::Denied | HostPods::Served), Intercept::Observe | Intercept::None)) {
        errors.add(format!("--host-network {text}: nothing is redirected (--intercept)"), ());
    }
    wish
}

/// One address of a family, or one of each.
fn listen(text: &str, errors: &mut Errors) -> Vec<SocketAddr> {
    let mut addresses = Vec::<SocketAddr>::new();
    for word in text.split(',').map(str::trim) {
        match word.parse::<SocketAddr>() {
            Ok(address) if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) => {
                errors.add(format!("--listen {word}: there is another address of its family"), ());
            }
            Ok(address) => addresses.push(address),
            Err(_) => {
                let text = format!("--listen {word:?}: is not an address and port, such as 0.0.0.0:9169 or [::]:9169");
                errors.add(text, ());
            }
        }
    }
    addresses
}

fn admin_listen(text: &str, errors: &mut Errors) -> SocketAddr {
    // Who makes it of a node's address, of whichever family, puts brackets around either.
    let bracketed = || {
        let (address, port) = text.strip_prefix('[')?.split_once("]:")?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let instead = SocketAddr::from(([0, 0, 0, 0], 0));
    bracketed().unwrap_or_else(|| {
        errors.parsed("--admin-listen", text, "an address and port, such as 127.0.0.1:9170", instead)
    })
}

fn admin_socket(path: &str, errors: &mut Errors) -> PathBuf {
    if path.is_empty() || path.ends_with('/') {
        errors.add(format!("--admin-socket {path:?}: is not the path of a file"), ());
    }
    if path.len() > LONGEST_PATH {
        errors.add(format!("--admin-socket {path}: is longer than {LONGEST_PATH} bytes"), ());
    }
    PathBuf::from(path)
}

fn container_endpoints(text: &str, errors: &mut Errors) -> Vec<IpAddr> {
    if text == "off" {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    for word in text.split(',').map(str::trim) {
        match word.parse() {
            Ok(address @ (CONTAINER | POD_IDENTITY_V4 | POD_IDENTITY_V6)) => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            _ => {
                let known = "must be 169.254.170.2, 169.254.170.23, fd00:ec2::23 or off";
                errors.add(format!("--container-endpoints {word:?}: {known}"), ());
            }
        }
    }
    addresses
}

fn api_server(kubeconfig: Option<&str>, errors: &mut Errors) -> ApiServer {
    match kubeconfig {
        Some(file) => match read_kubeconfig(file) {
            Ok(kubeconfig) => ApiServer::Kubeconfig(Box::new(kubeconfig)),
            Err(why) => errors.add(format!("--kubeconfig {file}: {why}"), ApiServer::InCluster),
        },
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() => {
            let text = "--kubeconfig: is missing, and this is no pod (KUBERNETES_SERVICE_HOST is not set)";
            errors.add(text.to_owned(), ApiServer::InCluster)
        }
        None => ApiServer::InCluster,
    }
}

/// The parser's own words would quote the file, which may hold keys.
fn read_kubeconfig(file: &str) -> Result<Kubeconfig, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let kubeconfig = Kubeconfig::from_yaml(&text).map_err(|_| "is not a kubeconfig".to_owned())?;
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig.contexts.iter().find(|context| context.name == current);
    match context.and_then(|context| context.context.as_ref()) {
        None => Err(format!("has no context {current:?}, which it names as the current one")),
        Some(context) if !kubeconfig.clusters.iter().any(|cluster| cluster.name == context.cluster) => {
            Err(format!("has no cluster {:?}, which its current context names", context.cluster))
        }
        Some(context) if kubeconfig.clusters.iter().any(|c| c.name == context.cluster && has_proxy(c)) => {
            Err(format!("its cluster {:?} is behind a proxy (proxy-url), which is not supported", context.cluster))
        }
        Some(_) => Ok(kubeconfig),
    }
}

fn has_proxy(cluster: &NamedCluster) -> bool {
    cluster.cluster.as_ref().and_then(|cluster| cluster.proxy_url.as_ref()).is_some_and(|url| !url.is_empty())
}

/// A DNS-1123 subdomain.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    /// Notes the error and goes on with `instead`, which nobody will see.
    fn add<T>(&mut self, error: String, instead: T) -> T {
        self.0.push(error);
        instead
    }

    fn parsed<T: FromStr>(&mut self, flag: &str, text: &str, what: &str, instead: T) -> T {
        match text.parse() {
            Ok(value) => value,
            Err(_) => self.add(format!("{flag} {text:?}: is not {what}"), instead),
        }
    }

    fn or<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigErrors(self.0)) }
    }
}

#[cfg(test)]
mod tests;
