//! The daemon's own identity, where roles are assumed that pods name: where its keys come from.

use std::time::{Duration, SystemTime};

use aws_smithy_types::{DateTime, date_time::Format};
use http::Uri;
use serde::Deserialize;

use crate::{
    config::{LegacyConfig, OwnIdentity},
    identity::{NodeName, legacy::Legacy},
    imds::upstream,
    sts::{
        Session,
        own::{Identity, Own},
    },
};

/// Below it, the name of the node's role and its credentials.
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";
/// The longest name of a session.
const LONGEST_SESSION_NAME: usize = 64;

/// What the directory is told, before the account is known whose roles plain names mean.
pub(super) fn of_directory(config: &LegacyConfig) -> Legacy {
    Legacy { base: None, source: config.source, unlimited: config.unlimited }
}

/// The identity that roles are assumed by.
pub(super) fn own(identity: OwnIdentity, node: &NodeName) -> Own {
    Own::new(match identity {
        OwnIdentity::Node(imds) => {
            tracing::warn!(
                "--legacy-source assume-role: the roles that pods name are assumed as this node, so that whoever has the node \
                 has them all (docs/security.md)"
            );
            Identity::Node(Box::new(move || {
                let imds = imds.clone();
                Box::pin(async move { of_node(&imds).await })
            }))
        }
        OwnIdentity::WebIdentity { role, token_file } => {
            tracing::warn!(
                %role,
                "--legacy-source assume-role: the roles that pods name are assumed by a role of this daemon's own, so that \
                 whoever has the node has them all (docs/security.md)"
            );
            Identity::WebIdentity { role, token_file, session_name: session_name(node) }
        }
    })
}

fn session_name(node: &NodeName) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    format!("kube2irsa.{node}").chars().filter(allowed).take(LONGEST_SESSION_NAME).collect()
}

/// The credentials of the node's role, as EC2 makes them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: String,
}

/// The name of the node's own role, and its keys. What is wrong is said without what was answered.
async fn of_node(imds: &Uri) -> Result<(String, Session), String> {
    let page = async |path: &str| upstream::page(imds, path).await.map_err(|error| error.to_string());
    let none = || format!("{imds} names no role of the node");
    let list = page(CREDENTIALS).await?.ok_or_else(none)?;
    let name = str::from_utf8(&list.body).ok().and_then(|list| list.lines().next()).map(str::trim);
    let is_name =
        |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b));
    let name = name.filter(is_name).ok_or_else(none)?;
    let document = page(&format!("{CREDENTIALS}{name}")).await?.ok_or_else(none)?;
    let unreadable = || format!("{imds} has none of the node's role {name} that can be read");
    let document = serde_json::from_slice::<Document>(&document.body).map_err(|_| unreadable())?;
    let expires = DateTime::from_str(&document.expiration, Format::DateTime).map_err(|_| unreadable())?;
    let expires = Duration::from_secs(u64::try_from(expires.secs()).unwrap_or_default());
    let session = Session {
        access_key_id: document.access_key_id,
        secret_access_key: document.secret_access_key.into(),
        session_token: document.token.into(),
        expiration: SystemTime::UNIX_EPOCH + expires,
        shortened: false,
    };
    Ok((name.to_owned(), session))
}
