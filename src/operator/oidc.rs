//! `oidc`: the cluster's token issuer, as the API server has it, as files for a web host, and as AWS sees it.
//!
//! Nothing is changed in a cluster or on a host: files are written to a directory, and putting them on the host is left to whoever
//! has the right to.

pub mod certificate;
pub mod check;
pub mod documents;
pub mod export;
pub mod fetch;
pub mod finding;
pub mod issuer;
pub mod served;

use std::io;

use anyhow::Context as _;
use serde_json::{Value, json};

use self::{
    check::Facts,
    documents::{Discovery, discovery_url},
    export::{CACHE_CONTROL, CONTENT_TYPE, Done, Exported},
    fetch::{Authorities, fetch},
    finding::{Finding, verdict},
    served::Served,
};
use super::{OperatorError, Verdict};
use crate::{
    cli::{OidcApiServerArgs, OidcArgs, OidcCheckArgs, OidcCommand, OidcExportArgs, OidcShowArgs, Output},
    clock,
};

/// Does what was asked for, and writes what came of it.
///
/// # Errors
/// When the cluster cannot be asked, or a file cannot be written.
pub async fn run(args: &OidcArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    match &args.command {
        OidcCommand::Show(args) => show(args, out).await,
        OidcCommand::Export(args) => export(args, out).await,
        OidcCommand::Check(args) => check(args, out).await,
    }
}

async fn show(args: &OidcShowArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let served = served::read(&args.api_servers).await?;
    let mut findings = issuer::findings(&served.issuer);
    findings.extend(check::of_cluster(&served.keys));
    let written = match args.output {
        Output::Json => {
            let Value::Object(mut told) = served.json() else { return Ok(Verdict::Well) };
            told.insert("findings".to_owned(), json!(findings));
            write_json(out, &Value::Object(told))
        }
        Output::Text => show_text(out, &served, &findings),
    };
    written.context("standard output")?;
    Ok(verdict(&findings))
}

fn show_text(out: &mut dyn io::Write, served: &Served, findings: &[Finding]) -> io::Result<()> {
    writeln!(out, "asked       {}", served.servers.join(", "))?;
    writeln!(out, "issuer      {}", served.issuer)?;
    writeln!(out, "jwks_uri    {}", served.discovery.text("jwks_uri").unwrap_or("-"))?;
    let algorithms = served.discovery.list("id_token_signing_alg_values_supported").unwrap_or_default();
    writeln!(out, "algorithms  {}", algorithms.join(", "))?;
    for key in &served.keys.keys {
        writeln!(out, "key         {key}")?;
    }
    writeln!(out)?;
    finding::write(out, findings)
}

async fn export(args: &OidcExportArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let served = served::read(&args.api_servers).await?;
    let exported = export::export(&args.directory, &served, args.issuer.as_deref(), args.drop_old_keys)?;
    let findings = issuer::findings(&exported.issuer);
    let written = match args.output {
        Output::Json => {
            let mut told = json!(exported);
            told["findings"] = json!(findings);
            write_json(out, &told)
        }
        Output::Text => export_text(out, &exported, &findings),
    };
    written.context("standard output")?;
    Ok(verdict(&findings))
}

fn export_text(out: &mut dyn io::Write, exported: &Exported, findings: &[Finding]) -> io::Result<()> {
    for file in &exported.files {
        let done = match file.done {
            Done::New => "new",
            Done::Changed => "changed",
            Done::Unchanged => "unchanged",
        };
        writeln!(out, "{done:9}  {}", file.file.display())?;
    }
    if let Some(had) = &exported.rewritten_jwks_uri {
        writeln!(out, "           jwks_uri is below the issuer here; the API server says {had:?}")?;
    }
    writeln!(out)?;
    for key in &exported.keys {
        let of = if key.of_cluster { "the cluster's" } else { "of an earlier export" };
        writeln!(out, "key        {}, {of}", key.says)?;
    }
    for key in &exported.dropped {
        writeln!(out, "dropped    {key}")?;
    }
    if exported.keys.iter().any(|key| !key.of_cluster) {
        writeln!(
            out,
            "\nA key of an earlier export stays until --drop-old-keys. That is safe once every token that it signed is over: a day\n\
             after the last API server stopped signing with it, unless longer tokens are handed out."
        )?;
    }
    writeln!(out, "\nPut them on the host, the keys first: {CONTENT_TYPE}, Cache-Control: {CACHE_CONTROL}")?;
    for file in &exported.files {
        writeln!(out, "  {}", file.url)?;
    }
    writeln!(out, "To a bucket, for one:")?;
    for file in &exported.files {
        writeln!(
            out,
            "  aws s3 cp {} s3://BUCKET/{} --content-type {CONTENT_TYPE} --cache-control '{CACHE_CONTROL}'",
            file.file.display(),
            file.path
        )?;
    }
    writeln!(out, "Then: kube2irsa oidc check --issuer {}\n", exported.issuer)?;
    finding::write(out, findings)
}

async fn check(args: &OidcCheckArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let authorities = Authorities::load(args.ca_file.as_deref()).map_err(OperatorError::usage)?;
    let served = match served::read(&args.api_servers).await {
        Ok(served) => Ok(served),
        Err(OperatorError::Usage(mut errors)) if args.issuer.is_none() && !names_a_cluster(&args.api_servers) => {
            errors.0.push("without a cluster: --issuer URL, and what is outside is checked by itself".to_owned());
            return Err(OperatorError::Usage(errors));
        }
        // Who names a cluster means it.
        Err(error) if args.issuer.is_none() || names_a_cluster(&args.api_servers) => return Err(error),
        Err(error) => Err(error.to_string()),
    };
    let issuer = match (&args.issuer, &served) {
        (Some(issuer), _) => issuer.clone(),
        (None, Ok(served)) => served.issuer.clone(),
        (None, Err(why)) => return Err(OperatorError::Unavailable(why.clone())),
    };
    let discovery = fetch(&discovery_url(&issuer), &authorities).await;
    let keys = match jwks_uri(&discovery) {
        Some(uri) => Some(fetch(&uri, &authorities).await),
        None => None,
    };
    let served = served.as_ref().map_err(String::as_str);
    let findings = check::findings(&Facts { issuer: &issuer, served, discovery, keys, now: clock::now().wall });
    let verdict = verdict(&findings);
    let written = match args.output {
        Output::Json => {
            let told = json!({
                "issuer": issuer,
                "compared": served.is_ok(),
                "well": verdict == Verdict::Well,
                "findings": findings,
            });
            write_json(out, &told)
        }
        Output::Text => finding::write(out, &findings),
    };
    written.context("standard output")?;
    Ok(verdict)
}

fn names_a_cluster(args: &OidcApiServerArgs) -> bool {
    args.cluster.kubeconfig.is_some() || args.cluster.context.is_some() || !args.servers.is_empty()
}

/// Where a document that was fetched says that the keys are, if it can be asked there.
fn jwks_uri(fetched: &fetch::Fetched) -> Option<String> {
    let answer = fetched.answer.as_ref().ok().filter(|answer| answer.status == 200)?;
    let document = Discovery::parse(std::str::from_utf8(&answer.body).ok()?).ok()?;
    document.text("jwks_uri").filter(|uri| uri.starts_with("https://")).map(str::to_owned)
}

fn write_json(out: &mut dyn io::Write, value: &Value) -> io::Result<()> {
    writeln!(out, "{value:#}")
}
