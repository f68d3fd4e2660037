//! Both documents, as the cluster's API servers serve them.

use http::{Uri, uri::Scheme};
use serde_json::Value;

use super::documents::{DISCOVERY, Discovery, KEYS, KeySet};
use crate::{
    cli::OidcApiServerArgs,
    operator::{
        OperatorError,
        cluster::{Cluster, unavailable},
    },
};

/// What the API servers that were asked say.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// Who was asked.
    pub servers: Vec<String>,
    /// Whose tokens they hand out.
    pub issuer: String,
    /// The discovery document of the first.
    pub discovery: Discovery,
    /// The keys of all.
    pub keys: KeySet,
}

/// Asks the kubeconfig's API server, or those that are named.
///
/// # Errors
/// When one cannot be asked, or two are of different issuers.
pub async fn read(args: &OidcApiServerArgs) -> Result<Served, OperatorError> {
    let mut clusters = Vec::new();
    for server in &args.servers {
        let url = server.parse::<Uri>().ok().filter(|url| url.scheme() == Some(&Scheme::HTTPS) && url.host().is_some());
        let url =
            url.ok_or_else(|| OperatorError::usage(format!("--server {server}: is no https URL of an API server")))?;
        clusters.push(Cluster::connect_to(&args.cluster, url).await?);
    }
    if clusters.is_empty() {
        clusters.push(Cluster::connect(&args.cluster).await?);
    }
    let mut all = Vec::new();
    for cluster in &clusters {
        all.push(of(cluster).await?);
    }
    together(all)
}

async fn of(cluster: &Cluster) -> Result<Served, OperatorError> {
    let at = |path: &str| format!("{}/{path}", cluster.url.trim_end_matches('/'));
    let text = async |path: &str| {
        let said = |error: kube::Error| match &error {
            kube::Error::Api(status) if status.code == 404 => OperatorError::Unavailable(format!(
                "{}: is not there: an API server serves it only if its --service-account-issuer is an https URL",
                at(path)
            )),
            kube::Error::Api(status) if status.code == 403 => OperatorError::Unavailable(format!(
                "{}: {}: bind yourself the ClusterRole system:service-account-issuer-discovery",
                at(path),
                status.message
            )),
            _ => unavailable(&at(path), &error),
        };
        cluster.text(&format!("/{path}")).await.map_err(said)
    };
    let unread = |path: &str, why: String| OperatorError::Unavailable(format!("{}: {why}", at(path)));
    let discovery = Discovery::parse(&text(DISCOVERY).await?).map_err(|why| unread(DISCOVERY, why))?;
    let issuer = discovery.text("issuer").ok_or_else(|| unread(DISCOVERY, "names no issuer".to_owned()))?.to_owned();
    // There whatever the document says: that is where others are to look.
    let keys = KeySet::parse(&text(KEYS).await?).map_err(|why| unread(KEYS, why))?;
    Ok(Served { servers: vec![cluster.url.clone()], issuer, discovery, keys })
}

/// The keys of all, if they are of one issuer.
fn together(all: Vec<Served>) -> Result<Served, OperatorError> {
    let mut all = all.into_iter();
    let mut sum = all.next().ok_or_else(|| OperatorError::usage("no API server to ask"))?;
    for one in all {
        if one.issuer != sum.issuer {
            let [first, other] =
                [&sum, &one].map(|served| format!("{} of {}", served.servers.join(", "), served.issuer));
            return Err(OperatorError::Other(anyhow::anyhow!(
                "API servers hand out tokens of different issuers: {first}, {other}. Give all the same first \
                 --service-account-issuer."
            )));
        }
        sum.keys.add(&one.keys);
        sum.servers.extend(one.servers);
    }
    Ok(sum)
}

impl Served {
    /// As programs read it.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::json!({
            "servers": self.servers,
            "issuer": self.issuer,
            "discovery": self.discovery.0,
            "jwks": self.keys.json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(server: &str, issuer: &str, ids: &[&str]) -> Served {
        let keys = ids.iter().map(|id| serde_json::json!({ "kid": id, "kty": "RSA", "n": "AQAB", "e": "AQAB" }));
        let keys = serde_json::json!({ "keys": keys.collect::<Vec<_>>() });
        Served {
            servers: vec![server.to_owned()],
            issuer: issuer.to_owned(),
            discovery: Discovery::parse("{}").unwrap(),
            keys: KeySet::parse(&keys.to_string()).unwrap(),
        }
    }

    #[test]
    fn keys_of_all_api_servers_are_taken_together() {
        let issuer = "https://oidc.example.com";
        let sum = together(vec![served("a", issuer, &["1", "2"]), served("b", issuer, &["2", "3"])]).unwrap();
        assert_eq!(sum.keys.keys.iter().filter_map(|key| key.id()).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(sum.servers, ["a", "b"]);
    }

    #[test]
    fn api_servers_of_different_issuers_are_an_error_that_names_them() {
        let all = vec![served("a", "https://old.example.com", &["1"]), served("b", "https://new.example.com", &["1"])];
        let said = together(all).unwrap_err().to_string();
        assert!(said.contains("a of https://old.example.com, b of https://new.example.com"), "{said}");
    }
}
