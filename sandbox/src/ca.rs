//! The sandbox's certificate authority: made anew for each sandbox, kept in memory.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What can go wrong while certificates are made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A TLS configuration was refused.
    #[error("cannot make a TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate authority that signs the sandbox's servers.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// A new authority with a key of its own.
    ///
    /// # Errors
    /// When the key or the certificate cannot be made.
    pub fn new() -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kube2irsa sandbox CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), certificate: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate, as a client's `--ca-bundle` wants it.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS for a server that is known by `names` (DNS names or IP addresses).
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn server(&self, names: &[&str]) -> Result<Arc<ServerConfig>, CaError> {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Self::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), self.certificate.clone()], key)?;
        Ok(Arc::new(config))
    }

    /// A certificate chain and its key, both PEM, for a server of another program.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn server_pem(&self, names: &[&str]) -> Result<(String, String), CaError> {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem() + &self.pem, key.serialize_pem()))
    }

    /// TLS for a client that trusts this authority and no other.
    ///
    /// # Errors
    /// When the TLS configuration is refused.
    pub fn client(&self) -> Result<ClientConfig, CaError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        Ok(ClientConfig::builder_with_provider(Self::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }
}
