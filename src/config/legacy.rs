//! What the flags say of roles that pods name themselves, by the annotations of kube2iam and kiam.

use std::path::PathBuf;

use http::Uri;

use super::{ComposeRoleArn, Errors};
use crate::{
    cli::RunArgs,
    identity::{
        RoleArn,
        legacy::{Format, Source, Unlimited},
    },
};

/// The variables by which EKS, and others, give a pod a role and the file of its token.
const ROLE_VARIABLE: &str = "AWS_ROLE_ARN";
const TOKEN_VARIABLE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";

/// That such annotations are heeded, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyConfig {
    /// What stands before a role's name.
    pub base: Base,
    /// How the roles are had.
    pub source: Source,
    /// By whose identity, where they are assumed.
    pub identity: Option<OwnIdentity>,
    /// How namespaces write the roles that they permit.
    pub format: Format,
    /// What those permit that write none.
    pub unlimited: Unlimited,
}

/// What stands before a role's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// This: `arn:…:role/`, perhaps with a path.
    Given(String),
    /// The same of this account, without a path.
    OfAccount(ComposeRoleArn),
}

/// Whose the daemon's own identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnIdentity {
    /// The node's, as the real metadata service, at this URL, gives it out.
    Node(Uri),
    /// A role's that a mounted token is exchanged for.
    WebIdentity {
        /// The role.
        role: RoleArn,
        /// The token's file.
        token_file: PathBuf,
    },
}

/// Whether the node's account has to be known for it.
pub(super) fn composes(args: &RunArgs) -> bool {
    args.legacy_annotations && args.legacy_base_role_arn.is_none()
}

/// The values are judged also where they are of no use yet.
pub(super) fn read(
    args: &RunArgs,
    account: Option<&ComposeRoleArn>,
    imds: Option<&Uri>,
    errors: &mut Errors,
) -> Option<LegacyConfig> {
    let source = match args.legacy_source.as_str() {
        "web-identity" => Source::WebIdentity,
        "assume-role" => Source::AssumeRole,
        other => {
            errors.add(format!("--legacy-source {other:?}: must be web-identity or assume-role"), Source::default())
        }
    };
    let format = match args.legacy_namespace_format.as_str() {
        "glob" => Format::Glob,
        "regexp" => Format::Regexp,
        other => errors.add(format!("--legacy-namespace-format {other:?}: must be glob or regexp"), Format::default()),
    };
    let unlimited = match args.legacy_namespace_policy.as_str() {
        "required" => Unlimited::Nothing,
        "annotated" => Unlimited::All,
        other => errors
            .add(format!("--legacy-namespace-policy {other:?}: must be required or annotated"), Unlimited::default()),
    };
    let base = args.legacy_base_role_arn.as_deref().map(|text| Base::Given(base(text, errors)));
    let is_needed = args.legacy_annotations && source == Source::AssumeRole;
    let identity = match args.legacy_identity.as_str() {
        "node" if is_needed && args.imds_endpoint == "off" => {
            let text = "--legacy-identity node: there is nobody to ask for it (--imds-endpoint off)";
            errors.add(text.to_owned(), None)
        }
        "node" => imds.cloned().map(OwnIdentity::Node),
        "web-identity" if is_needed => web_identity(errors),
        "web-identity" => None,
        other => errors.add(format!("--legacy-identity {other:?}: must be node or web-identity"), None),
    };
    if !args.legacy_annotations {
        return None;
    }
    let base = base.or_else(|| account.cloned().map(Base::OfAccount))?;
    Some(LegacyConfig { base, source, identity: identity.filter(|_| is_needed), format, unlimited })
}

/// With a slash at its end, as kube2iam takes it without.
fn base(text: &str, errors: &mut Errors) -> String {
    let base = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
    if format!("{base}name").parse::<RoleArn>().is_err() {
        let what = "is not what stands before roles' names, such as arn:aws:iam::111122223333:role/";
        errors.add(format!("--legacy-base-role-arn {text:?}: {what}"), ());
    }
    base
}

fn web_identity(errors: &mut Errors) -> Option<OwnIdentity> {
    let mut variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        if value.is_none() {
            errors.add(format!("{name}: is missing for --legacy-identity web-identity"), ());
        }
        value
    };
    let (role, token_file) = (variable(ROLE_VARIABLE), variable(TOKEN_VARIABLE));
    let role = role.and_then(|role| match role.parse() {
        Ok(role) => Some(role),
        Err(error) => errors.add(format!("{ROLE_VARIABLE}: {error}"), None),
    });
    Some(OwnIdentity::WebIdentity { role: role?, token_file: token_file?.into() })
}
