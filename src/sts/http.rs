//! The HTTP client for STS: whom it trusts, and through which proxy it goes.

use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

/// STS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificates for STS: {0}")]
pub struct SetUpError(String);

/// The HTTP client for STS; `ca_bundle` (PEM) replaces the system's certificates. The proxies are the environment's
/// (`HTTPS_PROXY`, `NO_PROXY`), or none where STS is not called over TLS: a proxy would read the token.
///
/// # Errors
/// When the certificates cannot be used.
pub fn https(ca_bundle: Option<Vec<u8>>, over_tls: bool) -> Result<SharedHttpClient, SetUpError> {
    let roots = match ca_bundle {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(roots).build().map_err(|e| SetUpError(e.to_string()))?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let proxies = if over_tls { ProxyConfig::from_env() } else { ProxyConfig::disabled() };
        let mut connector = Connector::builder().proxy_config(proxies);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc)).tls_context(context.clone()).build()
    }))
}
