//! A cluster, asked as whoever the kubeconfig says. It only reads.
//!
//! What is read is asked for by path and taken into types of the caller's own: the generated types of all of Kubernetes would be
//! megabytes of every node's daemon.

use std::path::PathBuf;

use http::Request;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};

use super::OperatorError;
use crate::{api_server, cli::ClusterArgs};

/// Objects in one page of a list.
const PAGE: u32 = 500;

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Where its API server is.
    pub url: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A page of a list.
#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
struct PageMeta {
    #[serde(rename = "continue")]
    more: Option<String>,
}

impl Cluster {
    /// The cluster that `kubectl` would talk to. Nothing is asked yet.
    ///
    /// # Errors
    /// When the kubeconfig, or what it names, cannot be used.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, OperatorError> {
        Self::of(Self::config(args).await?)
    }

    /// One of its API servers, at `url` and not where the kubeconfig says.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub async fn connect_to(args: &ClusterArgs, url: http::Uri) -> Result<Self, OperatorError> {
        let mut config = Self::config(args).await?;
        config.cluster_url = url;
        Self::of(config)
    }

    async fn config(args: &ClusterArgs) -> Result<kube::Config, OperatorError> {
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match &args.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file)
                    .map_err(|error| OperatorError::usage(format!("--kubeconfig {}: {error}", file.display())))?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => kube::Config::from_kubeconfig(&options).await,
        };
        match config {
            Ok(config) => Ok(config),
            // On a node, in a pod.
            Err(_) if args.kubeconfig.is_none() && args.context.is_none() && in_a_pod() => {
                kube::Config::incluster().map_err(|error| OperatorError::Unavailable(error.to_string()))
            }
            Err(error) => Err(OperatorError::usage(format!("--kubeconfig, --context: {error}"))),
        }
    }

    /// A server of https that is none of the cluster's, asked as nobody; `ca_bundle` (PEM) replaces the system's certificates.
    ///
    /// # Errors
    /// When the URL or the certificates cannot be used.
    pub fn outside(url: &str, ca_bundle: Option<&[u8]>) -> Result<Self, OperatorError> {
        let uri = url.parse().map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
        let mut config = kube::Config::new(uri);
        if let Some(pem) = ca_bundle {
            let certificates = CertificateDer::pem_slice_iter(pem).map(|read| read.map(|one| one.as_ref().to_vec()));
            let certificates = certificates.collect::<Result<Vec<_>, _>>();
            config.root_cert =
                Some(certificates.map_err(|_| anyhow::anyhow!("--ca-bundle holds no certificate in PEM form"))?);
        }
        Self::of(config)
    }

    fn of(mut config: kube::Config) -> Result<Self, OperatorError> {
        // As the daemon: that of the environment is not the API server's.
        config.proxy_url = None;
        api_server::set_limits(&mut config);
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        Ok(Self { client: api_server::client(config)?, url })
    }

    /// What is at `path`, such as `/api/v1/namespaces/kube-system`.
    ///
    /// # Errors
    /// When it is not there, may not be read, or cannot be asked for.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> kube::Result<T> {
        self.client.request(request(path)?).await
    }

    /// The bytes that are at `path`.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn text(&self, path: &str) -> kube::Result<String> {
        self.client.request_text(request(path)?).await
    }

    /// All objects of a collection, such as `/api/v1/pods`, page by page.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> kube::Result<Vec<T>> {
        let (mut all, mut from) = (Vec::new(), String::new());
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut begun_anew = false;
        loop {
            let page = match self.get::<Page<T>>(&format!("{path}{separator}limit={PAGE}{from}")).await {
                // What it was to go on from is forgotten: the list took too long.
                Err(kube::Error::Api(status)) if status.code == 410 && !std::mem::replace(&mut begun_anew, true) => {
                    (all, from) = (Vec::new(), String::new());
                    continue;
                }
                page => page?,
            };
            all.extend(page.items);
            match page.metadata.more {
                Some(more) if !more.is_empty() => from = format!("&continue={more}"),
                _ => return Ok(all),
            }
        }
    }

    /// The client, for what is more than reading by path.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// In words, what the API server refused or why it did not answer, for `what` was asked of it.
#[must_use]
pub fn unavailable(what: &str, error: &kube::Error) -> OperatorError {
    OperatorError::Unavailable(format!("{what}: {}", words(error)))
}

/// An error of the API server in one line.
#[must_use]
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            text
        }
    }
}

fn request(path: &str) -> kube::Result<Request<Vec<u8>>> {
    Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}

fn in_a_pod() -> bool {
    PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}
