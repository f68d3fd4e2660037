//! What the daemon needs: parsed once, validated once, immutable after.
//!
//! All that is wrong is said at once, each error naming its flag.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    str::FromStr,
};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use kube::config::{Kubeconfig, NamedCluster};

use crate::{
    cli::RunArgs,
    credentials::{SessionScope, schedule::Limits},
    identity::{NodeName, annotations::Keys, names, policy::NamespacePolicy},
    imds::facts::Given,
};

/// The most threads that make sense on a node's daemon.
const MOST_THREADS: usize = 64;
/// Calls of STS a second.
const LOWEST_RATE: f64 = 0.1;
const HIGHEST_RATE: f64 = 1000.0;
const RATE: &str = "a number of calls a second from 0.1 to 1000";
const COUNTS: std::ops::RangeInclusive<u16> = 1..=1000;
/// The longest value of a session's tag.
const LONGEST_TAG: usize = 256;
/// The variables that name the proxy for STS.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const COUNT: &str = "a number from 1 to 1000";

/// What the daemon needs to run.
#[derive(Debug)]
pub struct Config {
    /// This node's name.
    pub node_name: NodeName,
    /// How to reach the API server.
    pub api_server: ApiServer,
    /// Where pods' requests arrive.
    pub listen: SocketAddrV4,
    /// Where metrics and health are served.
    pub admin_listen: SocketAddr,
    /// Where credentials come from.
    pub sts: StsConfig,
    /// The audience of service account tokens.
    pub token_audience: String,
    /// The annotations that service accounts are read by.
    pub annotation_keys: Keys,
    /// Whose roles those annotations mean that are no ARN, where they mean any.
    pub compose_role_arn: Option<ComposeRoleArn>,
    /// How namespaces limit the roles of their pods.
    pub namespace_policy: NamespacePolicy,
    /// With which power tokens are asked for.
    pub token_access: TokenAccess,
    /// What pods are told of the node.
    pub facts: Given,
    /// Where the session key is kept.
    pub state_dir: PathBuf,
    /// How requests are redirected.
    pub intercept: Intercept,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
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

/// Where credentials come from.
#[derive(Debug)]
pub struct StsConfig {
    /// Which STS.
    pub location: StsLocation,
    /// Certificates (PEM) to trust instead of the system's.
    pub ca_bundle: Option<Vec<u8>>,
    /// The cluster's name, as sessions are tagged with it.
    pub cluster_name: Option<String>,
    /// What this node may ask of it.
    pub limits: Limits,
    /// Whose its sessions are.
    pub scope: SessionScope,
}

/// Which STS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StsLocation {
    /// A region's own.
    Region(String),
    /// At this URL.
    Endpoint {
        /// The URL.
        url: String,
        /// The region that signatures are for, if it was given or the URL names it.
        region: Option<String>,
    },
    /// The own one of the region that the real metadata service, at this URL, names.
    AskImds(Uri),
}

impl StsLocation {
    /// Whether it is called over TLS; otherwise it is on this node.
    #[must_use]
    pub fn is_over_tls(&self) -> bool {
        !matches!(self, Self::Endpoint { url, .. } if url.to_ascii_lowercase().starts_with("http://"))
    }
}

/// The account whose roles plain names mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComposeRoleArn {
    /// Its partition.
    pub partition: Source,
    /// Its number.
    pub account: Source,
}

/// Where something of the node's is known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Given(String),
    /// The real metadata service, at this URL.
    AskImds(Uri),
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
    /// By iptables.
    Iptables,
    /// Not by us, and without the guard.
    None,
}

impl Intercept {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::None => "none",
        }
    }
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
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let listen = errors.parsed("--listen", &args.listen, "an address and port, such as 0.0.0.0:9169", unspecified);
        let admin_what = "an address and port, such as 127.0.0.1:9170";
        let admin_listen = errors.parsed("--admin-listen", &args.admin_listen, admin_what, unspecified);
        if listen.port() != 0 && listen.port() == admin_listen.port() {
            let same = format!("--admin-listen {admin_listen}: must not share the port of --listen, which pods reach");
            errors.add(same, ());
        }
        let intercept = match args.intercept.as_str() {
            "auto" | "iptables" => Intercept::Iptables,
            "none" => Intercept::None,
            "nft" => {
                let text = "--intercept nft: this version redirects by iptables only; use auto or iptables";
                errors.add(text.to_owned(), Intercept::None)
            }
            other => errors.add(format!("--intercept {other:?}: must be auto, nft, iptables or none"), Intercept::None),
        };
        let listen = match listen {
            SocketAddr::V4(listen) => listen,
            SocketAddr::V6(_) => {
                let text = format!("--listen {listen}: must be an IPv4 address, as the redirect is");
                errors.add(text, SocketAddrV4::new([0, 0, 0, 0].into(), 0))
            }
        };
        if intercept != Intercept::None && listen.ip().is_loopback() {
            let text = format!("--listen {listen}: pods' packets cannot be redirected to a loopback address");
            errors.add(text, ());
        }
        let ca_bundle = args.ca_bundle.as_ref().and_then(|file| match read_certificates(file) {
            Ok(pem) => Some(pem),
            Err(why) => errors.add(format!("--ca-bundle {file}: {why}"), None),
        });
        let log_format = match args.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => errors.add(format!("--log-format {other:?}: must be text or json"), LogFormat::Text),
        };
        let log_level = match args.log_level.as_str() {
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            other => errors.add(format!("--log-level {other:?}: must be error, warn, info or debug"), LogLevel::Info),
        };
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
        let tag = |c: char| c.is_ascii_alphanumeric() || " _.:/=+-@".contains(c);
        let cluster_name = args.cluster_name.clone();
        if cluster_name.as_ref().is_some_and(|name| !(1..=LONGEST_TAG).contains(&name.len()) || !name.chars().all(tag))
        {
            let what = "is not 1 to 256 letters, digits, spaces or _.:/=+-@, as a tag must be";
            errors.add(format!("--cluster-name {:?}: {what}", args.cluster_name.as_deref().unwrap_or_default()), ());
        }
        for name in PROXIES {
            // Its value may hold a password.
            if std::env::var(name).is_ok_and(|url| !is_proxy(&url)) {
                errors.add(format!("{name}: is not a proxy's URL, such as http://proxy.example.com:3128"), ());
            }
        }
        let limits = limits(args, &mut errors);
        let scope = match args.session_scope.as_str() {
            "pod" => SessionScope::Pod,
            "service-account" => SessionScope::ServiceAccount,
            other => {
                errors.add(format!("--session-scope {other:?}: must be pod or service-account"), SessionScope::Pod)
            }
        };
        let imds = imds(args, &mut errors);
        let location = location(args, imds.clone(), &mut errors);
        let facts = facts(args, imds.clone(), &mut errors);
        let compose_role_arn = compose_role_arn(args, imds, &mut errors);
        let api_server = api_server(args.kubeconfig.as_deref(), &mut errors);
        errors.or(Self {
            node_name,
            api_server,
            listen,
            admin_listen,
            sts: StsConfig { location, ca_bundle, cluster_name, limits, scope },
            token_audience: args.token_audience.clone(),
            annotation_keys: Keys::new(&args.annotation_prefix),
            compose_role_arn,
            namespace_policy,
            token_access,
            facts,
            state_dir: PathBuf::from(&args.state_dir),
            intercept,
            log_format,
            log_level,
            worker_threads,
        })
    }
}

fn limits(args: &RunArgs, errors: &mut Errors) -> Limits {
    let per_second = errors.parsed("--sts-rate", &args.sts_rate, RATE, 1.0);
    if !(LOWEST_RATE..=HIGHEST_RATE).contains(&per_second) {
        errors.add(format!("--sts-rate {per_second}: is not {RATE}"), ());
    }
    let [burst, in_flight] =
        [("--sts-burst", &args.sts_burst), ("--sts-concurrency", &args.sts_concurrency)].map(|(flag, text)| {
            let number = errors.parsed(flag, text, COUNT, 1);
            if COUNTS.contains(&number) { number } else { errors.add(format!("{flag} {number}: is not {COUNT}"), 1) }
        });
    Limits { in_flight: usize::from(in_flight), per_second, burst: burst.into() }
}

fn facts(args: &RunArgs, imds: Option<Uri>, errors: &mut Errors) -> Given {
    for (flag, value) in [("--availability-zone", &args.availability_zone), ("--instance-id", &args.instance_id)] {
        if let Some(value) = value
            && (value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        {
            errors.add(format!("{flag} {value:?}: holds something else than letters, digits and -"), ());
        }
    }
    Given {
        region: args.region.clone(),
        zone: args.availability_zone.clone(),
        instance_id: args.instance_id.clone(),
        account: args.aws_account.clone(),
        imds,
    }
}

fn imds(args: &RunArgs, errors: &mut Errors) -> Option<Uri> {
    match args.imds_endpoint.as_str() {
        "off" => None,
        url => match url.parse::<Uri>() {
            Ok(uri) if uri.scheme() == Some(&Scheme::HTTP) && is_bare(&uri) => Some(uri),
            Ok(_) | Err(_) => {
                errors.add(format!("--imds-endpoint {url:?}: must be http://HOST[:PORT] or off"), Some(Uri::default()))
            }
        },
    }
}

fn location(args: &RunArgs, imds: Option<Uri>, errors: &mut Errors) -> StsLocation {
    let region = args.region.clone();
    if let Some(region) = &region
        && !is_region(region)
    {
        errors.add(format!("--region {region:?}: not a region, such as eu-central-1"), ());
    }
    match (&args.sts_endpoint, region, imds) {
        (Some(url), region, _) => {
            if let Err(why) = check_sts(url) {
                errors.add(format!("--sts-endpoint {url:?}: {why}"), ());
            }
            let named = || url.parse::<Uri>().ok().and_then(|uri| region_of(uri.host()?));
            StsLocation::Endpoint { url: url.clone(), region: region.or_else(named) }
        }
        (None, Some(region), _) => StsLocation::Region(region),
        (None, None, Some(imds)) => StsLocation::AskImds(imds),
        (None, None, None) => {
            let text = "--region: is missing, and with --imds-endpoint off there is nobody to ask for it";
            errors.add(text.to_owned(), StsLocation::Region(String::new()))
        }
    }
}

/// The values are judged also where they are of no use yet.
fn compose_role_arn(args: &RunArgs, imds: Option<Uri>, errors: &mut Errors) -> Option<ComposeRoleArn> {
    let mut source = |flag: &str, value: &Option<String>, is_one: fn(&str) -> bool, what: &str| match (value, &imds) {
        (Some(value), _) if is_one(value) => Source::Given(value.clone()),
        (Some(value), _) => errors.add(format!("{flag} {value:?}: is not {what}"), Source::Given(String::new())),
        (None, Some(imds)) => Source::AskImds(imds.clone()),
        (None, None) if !args.compose_role_arn => Source::Given(String::new()),
        (None, None) => {
            let text =
                format!("{flag}: is missing for --compose-role-arn, and with --imds-endpoint off nobody knows it");
            errors.add(text, Source::Given(String::new()))
        }
    };
    let partition = source("--aws-partition", &args.aws_partition, names::is_partition, "a partition, such as aws-cn");
    let account = source("--aws-account", &args.aws_account, names::is_account, "an account's 12 digits");
    args.compose_role_arn.then_some(ComposeRoleArn { partition, account })
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

fn read_certificates(file: &str) -> Result<Vec<u8>, String> {
    let pem = fs::read(file).map_err(|error: io::Error| error.to_string())?;
    let begins = pem.windows(11).any(|window| window == b"-----BEGIN ");
    if begins { Ok(pem) } else { Err("holds no certificate in PEM form".to_owned()) }
}

fn check_sts(url: &str) -> Result<(), &'static str> {
    let uri = url.parse::<Uri>().map_err(|_| "not a URL")?;
    if !is_bare(&uri) {
        return Err("must be https://HOST[:PORT]");
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if loopback => Ok(()),
        Some("http") => Err("plain http is for loopback addresses only: a token would be readable on the way"),
        _ => Err("must be https://HOST[:PORT]"),
    }
}

/// The region of an STS endpoint with a name of AWS's: `sts.REGION.…`, `sts-fips.REGION.…`, `vpce-….sts.REGION.vpce.…`.
fn region_of(host: &str) -> Option<String> {
    if host == "sts.amazonaws.com" {
        return Some("us-east-1".to_owned());
    }
    let mut labels = host.split('.').skip_while(|label| !matches!(*label, "sts" | "sts-fips"));
    labels.nth(1).filter(|label| is_region(label)).map(str::to_owned)
}

/// `[http[s]://][user:password@]host[:port]`, or nothing.
fn is_proxy(url: &str) -> bool {
    let rest =
        url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or(url).trim_end_matches('/');
    url.is_empty() || rest.parse::<Authority>().is_ok_and(|authority| !authority.host().is_empty())
}

/// Nothing but a scheme, a host and perhaps a port.
fn is_bare(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| !host.is_empty())
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
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

fn is_region(region: &str) -> bool {
    region.contains('-') && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
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
