//! `kube2irsa trust-policy`: the trust policies of the roles that service accounts ask for, and whom a policy admits.
//!
//! It reads the cluster (service accounts, the issuer's discovery document) and a file; AWS is asked nothing and nothing is changed.
//! All that is decided is decided in pure modules: `builder` (who is to have a role), `evaluation` and `check` (who may), `change` (an
//! issuer more or less), `formats`.

use std::{
    fs,
    io::{self, Read as _, Write},
};

use anyhow::Context as _;
use serde::Deserialize;

use self::check::{Candidate, Question};
use super::{
    OperatorError, Verdict,
    cluster::{Cluster, unavailable},
    oidc,
};
use crate::{
    cli::{Output, PolicyFormat, TrustPolicyArgs},
    config::ConfigErrors,
    identity::{
        annotations::{AnnotationError, Keys, PlainNames, Wishes},
        names::{Namespace, RoleArn, ServiceAccountName, is_account, is_partition},
    },
};

pub mod builder;
pub mod change;
pub mod check;
mod evaluation;
pub mod formats;
pub mod issuer;
pub mod json;
pub mod policy;
mod statement;

pub use self::{
    builder::{Hop, RoleTrust, Roles},
    formats::Plan,
    issuer::{Issuer, NotAnIssuer, Subject},
    policy::{NotAPolicy, TrustPolicy},
};

/// What was asked for, its form checked.
struct Ask<'a> {
    args: &'a TrustPolicyArgs,
    /// Service accounts by name.
    named: Vec<(Namespace, ServiceAccountName)>,
    globs: Vec<Subject>,
    role: Option<RoleArn>,
    /// The first roles of a target.
    from: Vec<RoleArn>,
    issuers: Vec<Issuer>,
    keys: Keys,
}

/// A service account, but for what is not needed.
#[derive(Deserialize)]
struct SlimAccount {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: String,
    name: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// Writes trust policies, judges one, or changes one.
///
/// # Errors
/// When it cannot be meant as it was typed, the cluster does not say what is needed, or a file cannot be read.
pub async fn run(args: &TrustPolicyArgs, out: &mut dyn Write) -> Result<Verdict, OperatorError> {
    if args.add_issuer.is_some() || args.remove_issuer.is_some() {
        return change_issuers(args, out);
    }
    let ask = Ask::read(args)?;
    match &args.check {
        Some(file) => ask.check(file, out).await,
        None => ask.write(out).await,
    }
}

impl<'a> Ask<'a> {
    fn read(args: &'a TrustPolicyArgs) -> Result<Self, OperatorError> {
        let mut errors = Vec::new();
        let mut named = Vec::new();
        for text in &args.subjects {
            match service_account(text) {
                Some(account) => named.push(account),
                None if text.contains(['*', '?']) => {
                    errors.push(format!("{text:?}: is for --service-account, which admits all that are named like it"));
                }
                None => errors.push(format!("{text:?}: is not NAMESPACE/NAME")),
            }
        }
        let mut globs = Vec::new();
        for text in &args.service_account {
            match Subject::glob(text) {
                Some(subject) => globs.push(subject),
                None => errors.push(format!("--service-account {text:?}: is not NAMESPACE/NAME with * and ?")),
            }
        }
        if let Some(account) = args.account.as_deref().filter(|account| !is_account(account)) {
            errors.push(format!("--account {account:?}: is not 12 digits"));
        }
        if !is_partition(&args.partition) {
            errors.push(format!("--partition {:?}: is none, such as aws, aws-cn, aws-us-gov", args.partition));
        }
        let mut keys = Keys::new(&args.annotation_prefix);
        if let Some(account) = &args.account {
            keys.take_plain_names_for(PlainNames::Of { partition: args.partition.clone(), account: account.clone() });
        }
        let role = args.role.as_deref().and_then(|text| role("--role", text, args, &mut errors));
        let from = args.from.iter().filter_map(|text| self::role("--from", text, args, &mut errors)).collect();
        let issuers = args.issuer.iter().filter_map(|text| issuer("--issuer", text, &mut errors)).collect::<Vec<_>>();
        if args.check.is_none() {
            if named.is_empty() && globs.is_empty() && !args.all && errors.is_empty() {
                errors.push("whose role? NAMESPACE/NAME, --all or --service-account".to_owned());
            }
            if !globs.is_empty() && args.role.is_none() {
                errors.push("--service-account: of which role? --role".to_owned());
            }
        }
        match errors.is_empty() {
            true => Ok(Self { args, named, globs, role, from, issuers: unique(issuers), keys }),
            false => Err(ConfigErrors(errors).into()),
        }
    }

    async fn write(&self, out: &mut dyn Write) -> Result<Verdict, OperatorError> {
        let mut findings = Vec::new();
        let reads_accounts = self.args.all || (self.role.is_none() && !self.named.is_empty());
        let cluster = match reads_accounts || (self.issuers.is_empty() && self.from.is_empty()) {
            true => Some(Cluster::connect(&self.args.cluster).await?),
            false => None,
        };
        let issuers = self.issuers(cluster.as_ref()).await?;
        let mut roles = Roles::default();
        let accounts = match &cluster {
            Some(cluster) if reads_accounts => self.candidates(cluster, &mut findings).await?,
            _ => Vec::new(),
        };
        for Candidate { namespace, name, wishes, named } in &accounts {
            match (wishes, &self.role) {
                // Of those who are annotated for the role.
                (Ok(Some(wishes)), Some(role)) if wishes.all().any(|wish| wish.hops().any(|hop| hop == role)) => {
                    roles.add(namespace, name, wishes, &self.args.audience);
                }
                (_, Some(_)) => {}
                (Ok(Some(wishes)), None) => roles.add(namespace, name, wishes, &self.args.audience),
                (Ok(None), None) if *named => findings.push(format!(
                    "service account {namespace}/{name} names no role in annotation {}: --role says which it is to be",
                    self.keys.role_arn()
                )),
                (Ok(None), None) => {}
                (Err(error), None) => findings.push(format!("service account {namespace}/{name}: {error}")),
            }
        }
        if let Some(role) = &self.role {
            let trust = roles.of(role);
            for (from, (namespace, name)) in
                self.from.iter().flat_map(|from| self.named.iter().map(move |it| (from, it)))
            {
                let external_id = self.args.external_id.clone();
                trust.admit_by_way_of(
                    Hop { from: from.clone(), external_id, namespace: namespace.clone() },
                    name.clone(),
                );
            }
            let named = self.named.iter().filter(|_| self.from.is_empty());
            let named = named.map(|(namespace, name)| Subject::of(namespace, name));
            named.chain(self.globs.iter().cloned()).for_each(|subject| trust.admit(subject, &self.args.audience));
        }
        for glob in self.globs.iter().filter(|glob| glob.is_glob()) {
            warn(&glob.admits());
        }
        let only = |trust: &&RoleTrust| self.role.as_ref().is_none_or(|role| trust.role == *role);
        let plan = Plan::new(roles.iter().filter(only), &issuers, !self.args.no_provider);
        findings.extend(plan.policies().filter_map(|(role, policy)| too_long(role, policy, self.args.quota)));
        if plan.policies().next().is_none() && findings.is_empty() {
            findings.push("no service account of the cluster names a role".to_owned());
        }
        let text = match self.args.format {
            _ if plan.policies().next().is_none() => String::new(),
            PolicyFormat::Json => plan.json().pretty() + "\n",
            PolicyFormat::Terraform => plan.terraform() + "\n",
            PolicyFormat::Cloudformation => plan.cloudformation().pretty() + "\n",
            PolicyFormat::Policy => match plan.policies().collect::<Vec<_>>().as_slice() {
                [(_, policy)] => format!("{policy}\n"),
                several => {
                    let roles = several.iter().map(|(role, _)| *role).collect::<Vec<_>>().join(", ");
                    return Err(OperatorError::usage(format!("--format policy: is of one role (--role): {roles}")));
                }
            },
        };
        out.write_all(text.as_bytes()).context("standard output")?;
        findings.iter().for_each(|finding| say(finding));
        Ok(if findings.is_empty() { Verdict::Well } else { Verdict::Findings })
    }

    async fn check(&self, file: &str, out: &mut dyn Write) -> Result<Verdict, OperatorError> {
        let (policy, of) = evaluation::read(&text_of(file)?)
            .map_err(|error| OperatorError::usage(format!("--check {file}: {error}")))?;
        let cluster = Cluster::connect(&self.args.cluster).await?;
        let issuers = self.issuers(Some(&cluster)).await?;
        let mut findings = Vec::new();
        let candidates = self.candidates(&cluster, &mut findings).await?;
        let question = Question {
            policy: &policy,
            role: self.role.as_ref().or(of.as_ref()),
            issuers: &issuers,
            audience: &self.args.audience,
            quota: self.args.quota,
        };
        let report = check::check(&question, &candidates)
            .map_err(|error| OperatorError::usage(format!("--check {file}: {error}")))?;
        match self.args.output {
            Output::Text => write!(out, "{report}"),
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report).context("the report")?),
        }
        .context("standard output")?;
        findings.iter().for_each(|finding| say(finding));
        Ok(if report.well && findings.is_empty() { Verdict::Well } else { Verdict::Findings })
    }

    /// Those that were named, else the cluster's.
    async fn issuers(&self, cluster: Option<&Cluster>) -> Result<Vec<Issuer>, OperatorError> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
        }
        let Some(cluster) = cluster.filter(|_| self.issuers.is_empty()) else { return Ok(self.issuers.clone()) };
        let path = "/.well-known/openid-configuration";
        let document =
            cluster.text(path).await.map_err(|error| unavailable(&format!("{}{path}", cluster.url), &error))?;
        let Discovery { issuer } = serde_json::from_str(&document)
            .map_err(|error| OperatorError::Unavailable(format!("{}{path}: {error}", cluster.url)))?;
        let issuer = issuer.parse::<Issuer>().map_err(|error| {
            OperatorError::Unavailable(format!("the cluster's issuer: {error}; --issuer says which AWS is to trust"))
        })?;
        let host = issuer.name().split('/').next().unwrap_or_default();
        if oidc::issuer::out_of_reach(host).is_some() {
            warn(&format!(
                "AWS cannot reach the cluster's issuer {issuer}: give the API server one that it can (docs/install-off-eks.md)"
            ));
        }
        Ok(vec![issuer])
    }

    /// The service accounts that are meant: those that were named, or all.
    async fn candidates(&self, cluster: &Cluster, findings: &mut Vec<String>) -> Result<Vec<Candidate>, OperatorError> {
        const ALL: &str = "/api/v1/serviceaccounts";
        let mut candidates = Vec::new();
        if self.args.all || (self.args.check.is_some() && self.named.is_empty()) {
            let all = cluster.list::<SlimAccount>(ALL).await.map_err(|error| unavailable(ALL, &error))?;
            candidates.extend(all.into_iter().map(|account| self.candidate(account, false)));
            return Ok(candidates);
        }
        for (namespace, name) in &self.named {
            let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
            match cluster.get::<SlimAccount>(&path).await {
                Ok(account) => candidates.push(self.candidate(account, true)),
                Err(kube::Error::Api(status)) if status.code == 404 => findings.push(format!(
                    "there is no service account {namespace}/{name}; with --role its policy can be written all the same"
                )),
                Err(error) => return Err(unavailable(&path, &error)),
            }
        }
        Ok(candidates)
    }

    fn candidate(&self, SlimAccount { metadata }: SlimAccount, named: bool) -> Candidate {
        let wishes: Result<Option<Wishes>, AnnotationError> = self.keys.read(&metadata.annotations);
        Candidate { namespace: metadata.namespace.into(), name: metadata.name.into(), wishes, named }
    }
}

fn change_issuers(args: &TrustPolicyArgs, out: &mut dyn Write) -> Result<Verdict, OperatorError> {
    let mut errors = Vec::new();
    let mut read = |flag: &str, text: &Option<String>| text.as_deref().and_then(|text| issuer(flag, text, &mut errors));
    let new = read("--add-issuer", &args.add_issuer);
    let old = read("--remove-issuer", &args.remove_issuer);
    let like = read("--like", &args.like);
    if args.subjects.len() > 1 {
        errors.push("one policy at a time: a file, or - for standard input".to_owned());
    }
    if !errors.is_empty() {
        return Err(ConfigErrors(errors).into());
    }
    let file = args.subjects.first().map_or("-", String::as_str);
    let wrong = |error: &dyn std::fmt::Display| OperatorError::usage(format!("{file}: {error}"));
    let (mut policy, role) = evaluation::read(&text_of(file)?).map_err(|error| wrong(&error))?;
    if let Some(new) = &new {
        policy = change::add(&policy, new, like.as_ref()).map_err(|error| wrong(&error))?;
    }
    if let Some(old) = &old {
        policy = change::remove(&policy, old).map_err(|error| wrong(&error))?;
    }
    writeln!(out, "{policy}").context("standard output")?;
    let role = role.map_or_else(|| file.to_owned(), |role| role.to_string());
    match too_long(&role, &policy, args.quota) {
        None => Ok(Verdict::Well),
        Some(finding) => {
            say(&finding);
            Ok(Verdict::Findings)
        }
    }
}

/// What to do about a policy that IAM would not take.
fn too_long(role: &str, policy: &TrustPolicy, quota: usize) -> Option<String> {
    let characters = policy.characters();
    (characters > quota).then(|| {
        format!(
            "{role}: its trust policy has {characters} characters, and IAM takes {quota}. Do one of these:\n\
             - one trust relation for many clusters: a first role in each (eks.amazonaws.com/role-arn), whose policy is of that \
             cluster's issuer alone, and this one as kube2irsa.io/target-role-arn; its policy then names the first roles (--from);\n\
             - a role for each group of clusters;\n\
             - a higher quota, \"Role trust policy length\" of IAM in Service Quotas, of 4096 say (--quota)."
        )
    })
}

fn service_account(text: &str) -> Option<(Namespace, ServiceAccountName)> {
    let (namespace, name) = text.split_once('/')?;
    let is_good = |text: &str| !text.is_empty() && text.bytes().all(issuer::is_name);
    (is_good(namespace) && is_good(name)).then(|| (namespace.into(), name.into()))
}

/// A role's ARN, or its name in the account that was named.
fn role(flag: &str, text: &str, args: &TrustPolicyArgs, errors: &mut Vec<String>) -> Option<RoleArn> {
    let role = match &args.account {
        Some(account) if !text.contains(':') => format!("arn:{}:iam::{account}:role/{text}", args.partition).parse(),
        _ => text.parse(),
    };
    let hint = if text.contains(':') || args.account.is_some() { "" } else { "; of a name, --account says whose" };
    role.map_err(|error| errors.push(format!("{flag} {error}{hint}"))).ok()
}

fn issuer(flag: &str, text: &str, errors: &mut Vec<String>) -> Option<Issuer> {
    text.parse().map_err(|error: NotAnIssuer| errors.push(format!("{flag} {error}"))).ok()
}

fn unique(issuers: Vec<Issuer>) -> Vec<Issuer> {
    let mut unique = Vec::<Issuer>::new();
    issuers.into_iter().for_each(|issuer| {
        if !unique.contains(&issuer) {
            unique.push(issuer);
        }
    });
    unique
}

fn text_of(file: &str) -> Result<String, OperatorError> {
    let mut text = String::new();
    let read = match file {
        "-" => io::stdin().lock().read_to_string(&mut text).map(|_| text),
        file => fs::read_to_string(file),
    };
    Ok(read.with_context(|| file.to_owned())?)
}

/// On standard error, beside what is written for programs.
fn say(text: &str) {
    for line in text.lines() {
        // Nothing better can be done about a closed standard error.
        let _ = writeln!(io::stderr(), "kube2irsa: {line}");
    }
}

fn warn(text: &str) {
    say(&format!("warning: {text}"));
}
