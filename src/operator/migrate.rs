//! `kube2irsa migrate`: the way from kube2iam or kiam, as a plan and the files that carry it out.
//!
//! What is read ([`objects`]) and the rules of the daemon that is left ([`kube2iam`], [`kiam`]: [`legacy`]) make a [`plan`] ([`decide`]), which is
//! written as [`files`]; all of that is pure. Invariant: where the plan says nothing else, each pod has the role that it had, and no
//! namespace permits what it did not permit before. Nothing is changed in the cluster, nor in AWS.

mod accounts;
mod daemon;
mod decide;
mod files;
mod kiam;
mod kube2iam;
mod legacy;
mod objects;
mod page;
mod patterns;
pub mod plan;
mod read;
mod remarks;

use std::{fs, io, path::Path};

use anyhow::Context as _;

use self::{legacy::Given, objects::Cluster, plan::Plan};
use super::{OperatorError, Verdict, cluster, trust_policy::Issuer};
use crate::{
    cli::{MigrateArgs, MigrateFrom, MigrateFromArgs, Output},
    config::ConfigErrors,
};

/// Carries out the command.
///
/// # Errors
/// When the flags cannot be meant, the cluster does not answer, or the files cannot be written.
pub async fn run(args: &MigrateArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let (rules, args): (fn(&Cluster, &Given) -> _, _) = match &args.from {
        MigrateFrom::FromKube2iam(args) => (kube2iam::rules, args),
        MigrateFrom::FromKiam(args) => (kiam::rules, args),
    };
    let (given, issuer) = given(args)?;
    let (objects, issuer) = if args.manifests.is_empty() {
        let cluster = cluster::Cluster::connect(&args.cluster).await?;
        let issuer = match issuer {
            Some(issuer) => issuer,
            None => read::issuer(&cluster)
                .await?
                .parse()
                .map_err(|error| OperatorError::usage(format!("--issuer: {error}")))?,
        };
        (read::live(&cluster).await?, issuer)
    } else {
        let missing =
            || OperatorError::usage("--issuer: manifests do not say it: the URL of the cluster's token issuer");
        (read::manifests(&args.manifests)?, issuer.ok_or_else(missing)?)
    };
    let cluster = Cluster::of(objects);
    check_names(&cluster)?;
    let legacy = rules(&cluster, &given).map_err(ConfigErrors)?;
    let plan = decide::plan(&cluster, &legacy, given.hub_role_arn.as_ref(), &issuer);
    write_files(&plan, &args.directory)?;
    tell(&plan, args, out)?;
    Ok(if plan.is_whole() { Verdict::Well } else { Verdict::Findings })
}

fn given(args: &MigrateFromArgs) -> Result<(Given, Option<Issuer>), OperatorError> {
    let mut wrong = Vec::new();
    let hub_role_arn = args.hub_role_arn.as_deref().map(str::parse).transpose();
    let issuer = args.issuer.as_deref().map(str::parse).transpose();
    if let Err(error) = &hub_role_arn {
        wrong.push(format!("--hub-role-arn: {error}"));
    }
    if let Err(error) = &issuer {
        wrong.push(format!("--issuer: {error}"));
    }
    if args.base_role_arn.as_ref().is_some_and(|base| !is_base(base)) {
        wrong.push(
            "--base-role-arn: is not the beginning of a role's ARN, such as arn:aws:iam::111122223333:role/".to_owned(),
        );
    }
    let is_used = fs::read_dir(&args.directory).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        wrong.push(format!(
            "--output {}: is not empty: what was planned before would be among what is",
            args.directory.display()
        ));
    }
    let (Ok(hub_role_arn), Ok(issuer), true) = (hub_role_arn, issuer, wrong.is_empty()) else {
        return Err(OperatorError::Usage(ConfigErrors(wrong)));
    };
    let given = Given {
        base_role_arn: args.base_role_arn.clone(),
        default_role: args.default_role.clone(),
        daemon_flags: args.daemon_flags.clone(),
        hub_role_arn,
    };
    Ok((given, issuer))
}

fn is_base(base: &str) -> bool {
    let base = if base.ends_with('/') { base.to_owned() } else { format!("{base}/") };
    format!("{base}x").parse::<crate::identity::RoleArn>().is_ok()
}

/// Names come into paths and commands: none may be other than Kubernetes lets it be.
fn check_names(cluster: &Cluster) -> Result<(), OperatorError> {
    let workloads = cluster.workloads.iter().flat_map(|it| [&it.namespace, &it.name, &it.account]);
    let accounts = cluster.accounts.keys().flat_map(|it| [&it.namespace, &it.name]);
    let mut names = workloads.chain(accounts).chain(cluster.namespaces.keys());
    let is_name = |name: &&String| {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        !name.is_empty() && name.bytes().all(letter) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    match names.find(|name| !is_name(name)) {
        Some(name) => Err(OperatorError::usage(format!("{name:?} is no name of an object of Kubernetes"))),
        None => Ok(()),
    }
}

fn write_files(plan: &Plan, directory: &Path) -> Result<(), OperatorError> {
    let files = files::files(plan).context("the plan cannot be written as YAML")?;
    for (path, text) in files {
        let path = directory.join(path);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn tell(plan: &Plan, args: &MigrateFromArgs, out: &mut dyn io::Write) -> Result<(), OperatorError> {
    let written = match args.format {
        Output::Json => {
            serde_json::to_string_pretty(plan).map_err(io::Error::from).and_then(|text| writeln!(out, "{text}"))
        }
        Output::Text => summary(plan, args, out),
    };
    Ok(written.context("standard output")?)
}

fn summary(plan: &Plan, args: &MigrateFromArgs, out: &mut dyn io::Write) -> io::Result<()> {
    let (with_role, same) = plan.pods.iter().fold((0, 0), |(with, same), pods| {
        (
            with + usize::from(pods.before.is_some()),
            same + usize::from(pods.before.is_some() && pods.before == pods.after),
        )
    });
    let new = plan.service_accounts.iter().filter(|change| change.in_place_of.is_some()).count();
    writeln!(out, "{with_role} workloads have a role by {}; {same} of them have the same by this plan", plan.from)?;
    writeln!(
        out,
        "ServiceAccounts: {} annotated, {new} new, with {} bindings",
        plan.service_accounts.len() - new,
        plan.bindings.len()
    )?;
    writeln!(out, "workloads with another ServiceAccount: {}", plan.workloads.len())?;
    writeln!(out, "namespaces with permitted roles: {}", plan.namespaces.len())?;
    writeln!(out, "roles whose trust policy grows: {}", plan.roles.len())?;
    for remark in &plan.left {
        writeln!(out, "left to you: {}: {}; {}", remark.about, remark.what, remark.todo)?;
    }
    for remark in &plan.notes {
        writeln!(out, "to know: {}: {}", remark.about, remark.what)?;
    }
    writeln!(out, "written: {}", args.directory.join("PLAN.md").display())
}
