//! The issuers' documents, fetched from the issuers themselves over TLS: discovery, then the key set.
//!
//! Keys are kept, as STS keeps them, and fetched again when a token names one that is not among them. No redirect is followed.
//!
//! Limits: five seconds for a document ([STS's knowledge centre][kc]); at least one key, and at most a hundred of each kind ([IAM
//! user guide][oidc]).
//!
//! [kc]: https://repost.aws/knowledge-center/iam-sts-invalididentitytoken
//! [oidc]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_providers_create_oidc.html

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::TokioExecutor,
};
use rustls::ClientConfig;
use serde::{Deserialize, de::DeserializeOwned};
use tower_service::Service;

use super::{
    answers::Refusal,
    token::{Key, Token},
};

/// How long an issuer may take over one document.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest document that is read.
const LARGEST: usize = 1024 * 1024;

/// Keys of one kind that are taken of an issuer.
const MOST_KEYS: usize = 100;

type HttpsClient = Client<HttpsConnector<HttpConnector<Names>>, Empty<Bytes>>;

/// Resolves the names that it was given, and else as the system does.
#[derive(Clone)]
struct Names {
    own: Arc<HashMap<String, IpAddr>>,
    system: GaiResolver,
}

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if let Some(address) = self.own.get(name.as_str()) {
            // The port is put in by who connects.
            return Box::pin(std::future::ready(Ok(vec![SocketAddr::new(*address, 0)].into_iter())));
        }
        let found = self.system.call(name);
        Box::pin(async move { Ok(found.await?.collect::<Vec<_>>().into_iter()) })
    }
}

/// What can be said of any issuer.
pub(super) struct Issuers {
    client: HttpsClient,
    keys: Mutex<HashMap<String, Arc<[Key]>>>,
    fetches: AtomicU64,
}

/// OpenID Connect Discovery 1.0, section 3; without one of these STS takes no key from the issuer.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    response_types_supported: Vec<String>,
    subject_types_supported: Vec<String>,
    id_token_signing_alg_values_supported: Vec<String>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Issuers {
    /// Fetches with this TLS trust, and never without TLS; `names` are resolved to these addresses.
    pub(super) fn new(trust: ClientConfig, names: HashMap<String, IpAddr>) -> Self {
        let names = Names { own: Arc::new(names), system: GaiResolver::new() };
        let mut plain = HttpConnector::new_with_resolver(names);
        plain.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(trust).https_only().enable_http1().wrap_connector(plain);
        Self {
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector),
            keys: Mutex::default(),
            fetches: AtomicU64::new(0),
        }
    }

    /// The key that `token` says it was signed with, from its issuer.
    ///
    /// # Errors
    /// When the issuer cannot be reached, or has no such key.
    pub(super) async fn key(&self, token: &Token) -> Result<Key, Refusal> {
        let find = |keys: &[Key]| keys.iter().find(|key| key.is_for(token)).cloned();
        let known = self.keys().get(&token.issuer).and_then(|keys| find(keys));
        if let Some(key) = known {
            return Ok(key);
        }
        let keys = self.fetch_keys(&token.issuer).await?;
        self.keys().insert(token.issuer.clone(), Arc::clone(&keys));
        find(&keys).ok_or_else(no_key)
    }

    /// Forgets all keys, as if their time were over.
    pub(super) fn forget(&self) {
        self.keys().clear();
    }

    /// How many times an issuer's documents were fetched.
    pub(super) fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    async fn fetch_keys(&self, issuer: &str) -> Result<Arc<[Key]>, Refusal> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery: Discovery = self.get(&place).await?;
        let lists = [
            &discovery.response_types_supported,
            &discovery.subject_types_supported,
            &discovery.id_token_signing_alg_values_supported,
        ];
        if discovery.issuer != issuer || lists.iter().any(|list| list.is_empty()) {
            return Err(no_key());
        }
        let set: KeySet = self.get(&discovery.jwks_uri).await?;
        let count = |kind: &str| set.keys.iter().filter(|key| key["kty"] == kind).count();
        if set.keys.is_empty() || count("RSA") > MOST_KEYS || count("EC") > MOST_KEYS {
            return Err(no_key());
        }
        // A key of a kind that is not known is no reason to refuse the others.
        Ok(set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
    }

    async fn get<T: DeserializeOwned>(&self, place: &str) -> Result<T, Refusal> {
        let place: Uri = place.parse().map_err(|_| no_key())?;
        if place.scheme_str() != Some("https") {
            return Err(no_key());
        }
        // Any type: an API server has one of its own for its keys, and refuses to be asked for plain JSON.
        let request = Request::get(place).body(Empty::new());
        let request = request.map_err(|_| no_key())?;
        let fetch = async {
            let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|_| out_of_reach())?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(PATIENCE, fetch).await.map_err(|_| out_of_reach())??;
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map_err(|_| no_key()),
            status if status.is_server_error() => Err(out_of_reach()),
            _ => Err(no_key()),
        }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, Arc<[Key]>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable(error: &(dyn Error + 'static)) -> Refusal {
    if is_distrust(error) {
        let message = "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint";
        return Refusal::identity_token(message);
    }
    out_of_reach()
}

fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error's source is not what it wraps, but that one's source.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.is_some_and(|wrapped| is_distrust(wrapped)) || error.source().is_some_and(is_distrust)
}

/// The text has two spaces in the middle: that is how STS sends it.
fn no_key() -> Refusal {
    Refusal::identity_token(
        "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity \
         documentation for requirements",
    )
}

fn out_of_reach() -> Refusal {
    Refusal::bad(
        "IDPCommunicationError",
        "The request could not be fulfilled because the identity provider (IDP) that was asked to verify the incoming \
         identity token could not be reached.",
    )
}
