//! What the flags say of AWS: which STS, what may be asked of it, and what is known of the node there.

use std::{fs, io, net::IpAddr};

use http::{
    Uri,
    uri::{Authority, Scheme},
};

use super::{Errors, legacy};
use crate::{
    cli::RunArgs,
    credentials::{SessionScope, schedule::Limits},
    identity::names,
    imds::facts::Given,
};

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

/// All of it.
pub(super) struct Aws {
    pub(super) sts: StsConfig,
    /// Whose roles plain names mean, where they mean any.
    pub(super) account: Option<ComposeRoleArn>,
    pub(super) facts: Given,
}

impl Aws {
    pub(super) fn read(args: &RunArgs, errors: &mut Errors) -> Self {
        let ca_bundle = args.ca_bundle.as_ref().and_then(|file| match read_certificates(file) {
            Ok(pem) => Some(pem),
            Err(why) => errors.add(format!("--ca-bundle {file}: {why}"), None),
        });
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
        let limits = limits(args, errors);
        let scope = match args.session_scope.as_str() {
            "pod" => SessionScope::Pod,
            "service-account" => SessionScope::ServiceAccount,
            other => {
                errors.add(format!("--session-scope {other:?}: must be pod or service-account"), SessionScope::Pod)
            }
        };
        let imds = imds(args, errors);
        let location = location(args, imds.clone(), errors);
        let facts = facts(args, imds.clone(), errors);
        let account = account(args, imds, errors);
        Self { sts: StsConfig { location, ca_bundle, cluster_name, limits, scope }, account, facts }
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

pub(super) fn location(args: &RunArgs, imds: Option<Uri>, errors: &mut Errors) -> StsLocation {
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
fn account(args: &RunArgs, imds: Option<Uri>, errors: &mut Errors) -> Option<ComposeRoleArn> {
    let wanted = match (args.compose_role_arn, legacy::composes(args)) {
        (true, _) => Some("--compose-role-arn"),
        (false, true) => Some("--legacy-annotations without --legacy-base-role-arn"),
        (false, false) => None,
    };
    let mut source = |flag: &str, value: &Option<String>, is_one: fn(&str) -> bool, what: &str| match (value, &imds) {
        (Some(value), _) if is_one(value) => Source::Given(value.clone()),
        (Some(value), _) => errors.add(format!("{flag} {value:?}: is not {what}"), Source::Given(String::new())),
        (None, Some(imds)) => Source::AskImds(imds.clone()),
        (None, None) => match wanted {
            None => Source::Given(String::new()),
            Some(wanted) => {
                let text = format!("{flag}: is missing for {wanted}, and with --imds-endpoint off nobody knows it");
                errors.add(text, Source::Given(String::new()))
            }
        },
    };
    let partition = source("--aws-partition", &args.aws_partition, names::is_partition, "a partition, such as aws-cn");
    let account = source("--aws-account", &args.aws_account, names::is_account, "an account's 12 digits");
    wanted.is_some().then_some(ComposeRoleArn { partition, account })
}

fn read_certificates(file: &str) -> Result<Vec<u8>, String> {
    let pem = fs::read(file).map_err(|error: io::Error| error.to_string())?;
    let begins = pem.windows(11).any(|window| window == b"-----BEGIN ");
    if begins { Ok(pem) } else { Err("holds no certificate in PEM form".to_owned()) }
}

pub(super) fn check_sts(url: &str) -> Result<(), &'static str> {
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
pub(super) fn region_of(host: &str) -> Option<String> {
    if host == "sts.amazonaws.com" {
        return Some("us-east-1".to_owned());
    }
    let mut labels = host.split('.').skip_while(|label| !matches!(*label, "sts" | "sts-fips"));
    labels.nth(1).filter(|label| is_region(label)).map(str::to_owned)
}

/// `[http[s]://][user:password@]host[:port]`, or nothing.
pub(super) fn is_proxy(url: &str) -> bool {
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

fn is_region(region: &str) -> bool {
    region.contains('-') && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
