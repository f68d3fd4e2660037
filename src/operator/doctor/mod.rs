//! `kube2irsa doctor`: what is wrong with a cluster or a node that pods should get their credentials on, why it matters, and what
//! mends it.
//!
//! [`facts`] are read, and nothing is changed anywhere; what follows from them is decided in pure functions, a file for each
//! subject; [`checks`] is the one list of all that can be found; [`report`] tells it. Invariant: what could not be looked at is
//! said to be so, with the reason, and is never told as well.

mod aws;
pub mod checks;
pub(crate) mod daemon;
mod facts;
mod node;
pub(crate) mod pods;
pub mod report;
mod rights;
mod server;

use std::io;

use anyhow::Context as _;
use http::{Uri, uri::Scheme};

use self::{
    facts::{ClusterFacts, Facts, OnNode, Wanted},
    report::Report,
};
use super::{OperatorError, Verdict, cluster::Cluster};
use crate::{
    cli::{DoctorArgs, Output},
    config,
};

/// Looks, and tells what was found.
///
/// # Errors
/// When it cannot be meant as it was typed, or there is nothing that could be asked.
pub async fn run(args: &DoctorArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let on_node = args.node || args.node_name.is_some();
    let of_cluster = !on_node || args.cluster.kubeconfig.is_some() || args.cluster.context.is_some();
    let node = match on_node {
        false => None,
        true => Some(OnNode {
            name: args.node_name.as_deref(),
            expected: config::expected(&args.rules)?,
            metadata: metadata(&args.imds_endpoint)?,
        }),
    };
    let ca_bundle = args.ca_bundle.as_deref().map(facts::certificates).transpose().map_err(OperatorError::usage)?;
    let wanted = Wanted {
        cluster: of_cluster,
        node,
        region: args.region.as_deref(),
        sts_endpoint: args.sts_endpoint.as_deref(),
        ca_bundle,
    };
    let cluster = match Cluster::connect(&args.cluster).await {
        Ok(cluster) => Ok(cluster),
        // On a node there is more to look at, unless a cluster was named.
        Err(error) if on_node && !of_cluster => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    let facts = Facts::read(&wanted, cluster).await;
    if let (Some(why), None) = (&facts.no_api, &facts.node) {
        return Err(OperatorError::Unavailable(format!("the API server cannot be asked: {why}")));
    }
    let report = judge(&facts).close();
    match args.output {
        Output::Text => write!(out, "{report}"),
        Output::Json => {
            serde_json::to_string_pretty(&report).map_err(io::Error::from).and_then(|told| writeln!(out, "{told}"))
        }
    }
    .context("standard output")?;
    Ok(if report.well { Verdict::Well } else { Verdict::Findings })
}

fn metadata(endpoint: &str) -> Result<Option<Uri>, OperatorError> {
    if endpoint == "off" {
        return Ok(None);
    }
    match endpoint.parse::<Uri>() {
        Ok(uri) if uri.scheme() == Some(&Scheme::HTTP) && uri.host().is_some() => Ok(Some(uri)),
        Ok(_) | Err(_) => {
            Err(OperatorError::usage(format!("--imds-endpoint {endpoint:?}: must be http://HOST[:PORT] or off")))
        }
    }
}

/// What follows from the facts.
fn judge(facts: &Facts) -> Report {
    let mut report = Report::default();
    if let Some(why) = &facts.no_api {
        report.unseen("the API server", why);
    }
    if let Some(cluster) = &facts.cluster {
        of_cluster(cluster, &mut report);
    }
    if let Some(node) = &facts.node {
        node::look(node, &mut report);
    }
    aws::look(&facts.sts, facts.node.is_some(), &mut report);
    server::look_at_clocks(facts.clocks, &mut report);
    report
}

fn of_cluster(cluster: &ClusterFacts, report: &mut Report) {
    report.seen("cluster", &cluster.url);
    for (what, why) in cluster.inventory.unread() {
        report.unseen(what, why);
    }
    let unread = cluster.inventory.unread().into_iter().map(|(what, _)| what).collect::<Vec<_>>();
    if !unread.is_empty() {
        let mend = "run it as somebody who may list them: kubectl auth can-i --list says what you may";
        report.find(&checks::NOT_SEEN, format!("not read: {}", unread.join(", ")), mend);
    }
    let account = (cluster.account.0.as_str(), cluster.account.1.as_str());
    let settings = match &cluster.settings {
        Ok(settings) => settings,
        Err(why) => {
            server::look_at_version(&cluster.version, "auto", None, report);
            server::look_at_issuer(&cluster.issuer, report);
            return report.unseen(
                "all that depends on the daemon's flags",
                format!("this version does not understand them: {why}"),
            );
        }
    };
    let mode = cluster.rights.as_ref().ok().and_then(|rights| rights.mode(&settings.token_access));
    server::look_at_version(&cluster.version, &settings.token_access, mode, report);
    let count = |count: Option<usize>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let inventory = &cluster.inventory;
    let annotated = inventory.accounts.as_ref().ok().map(|accounts| {
        let has_role = |role: &&String| !role.is_empty();
        let roles = accounts.iter().filter_map(|account| account.metadata.annotations.get(settings.keys.role_arn()));
        roles.filter(has_role).count()
    });
    report.seen(
        "objects",
        format!(
            "nodes: {}, pods: {}, ServiceAccounts: {}, with a role: {}",
            count(inventory.nodes.as_ref().ok().map(Vec::len)),
            count(inventory.pods.as_ref().ok().map(Vec::len)),
            count(inventory.accounts.as_ref().ok().map(Vec::len)),
            count(annotated),
        ),
    );
    server::look_at_issuer(&cluster.issuer, report);
    daemon::look(inventory, settings, report);
    // Who removes needs no rights.
    if !settings.removes {
        rights::look(account, &settings.token_access, &cluster.rights, report);
    }
    pods::look(inventory, settings, report);
}
