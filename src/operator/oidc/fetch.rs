//! A document, fetched as AWS fetches it: over TLS, without following a redirect, within five seconds.
//!
//! A host that is not to be trusted is asked all the same, for what else is wrong there; whether it is to be trusted is a part of
//! what is returned. Nothing secret is sent, and nothing that comes back is used but to be compared.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Request, Uri,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, ProtocolVersion, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// What STS gives an issuer for a document, by [its knowledge centre][kc].
///
/// [kc]: https://repost.aws/knowledge-center/iam-sts-invalididentitytoken
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The largest document that is read: AWS names no limit, and two hundred keys are far from it.
pub const LARGEST: usize = 1024 * 1024;

/// Whose certificates are good.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// Those that this machine trusts; `None`: it trusts none.
    public: Option<Arc<WebPkiServerVerifier>>,
    /// Those of the file that was given.
    own: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

/// What there was at a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where.
    pub url: String,
    /// What the host's name stands for, here.
    pub addresses: Vec<IpAddr>,
    /// How the host showed who it is, if it came to that.
    pub shown: Option<Shown>,
    /// What it answered.
    pub answer: Result<Answer, FetchError>,
}

/// How a host showed who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its certificates, as it sent them.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether they are good.
    pub trust: Trust,
    /// It refuses TLS 1.2.
    pub only_tls13: bool,
}

/// Whether a host's certificates are good for its name, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By an authority that this machine trusts.
    Public,
    /// By one of the file that was given.
    Own,
    /// By none, and why.
    None(String),
    /// This machine knows no authorities.
    Unknown,
}

/// What a host answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL names no host that can be asked.
    #[error("is no https URL of a host")]
    Url,
    /// The host's name stands for nothing.
    #[error("its host's name is not known: {0}")]
    Name(String),
    /// Nobody is there.
    #[error("its host cannot be reached: {0}")]
    Connect(String),
    /// TLS came to nothing.
    #[error("its host and we do not agree on TLS: {0}")]
    Tls(String),
    /// The answer broke off, or is no HTTP.
    #[error("its host does not answer as HTTP wants: {0}")]
    Http(String),
    /// It took longer than AWS waits.
    #[error("was not there within {} s", PATIENCE.as_secs())]
    Slow,
    /// It is larger than anything that is a document of an issuer.
    #[error("is larger than {LARGEST} bytes")]
    Large,
}

// === impl Authorities ===

impl Authorities {
    /// Those that this machine trusts, and those of a file (PEM).
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = |roots: RootCertStore| {
            // Without any it refuses to be built.
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok()
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let public = verifier(roots);
        let own = match file {
            Some(file) => {
                let said = |error: &dyn fmt::Display| format!("--ca-file {}: {error}", file.display());
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(file).map_err(|error| said(&error))? {
                    let certificate = certificate.map_err(|error| said(&error))?;
                    roots.add(certificate).map_err(|error| said(&error))?;
                }
                Some(verifier(roots).ok_or_else(|| said(&"holds no certificate"))?)
            }
            None => None,
        };
        Ok(Self { public, own, provider })
    }

    fn judge(&self, verify: impl Fn(&WebPkiServerVerifier) -> Result<ServerCertVerified, TlsError>) -> Trust {
        let of = |verifier: &Option<Arc<WebPkiServerVerifier>>| verifier.as_deref().map(&verify);
        match (of(&self.public), of(&self.own)) {
            (Some(Ok(_)), _) => Trust::Public,
            (_, Some(Ok(_))) => Trust::Own,
            (_, Some(Err(error))) | (Some(Err(error)), None) => Trust::None(in_words(&error)),
            (None, None) => Trust::Unknown,
        }
    }
}

fn in_words(error: &TlsError) -> String {
    use CertificateError as Bad;
    let TlsError::InvalidCertificate(error) = error else { return error.to_string() };
    match error {
        Bad::UnknownIssuer | Bad::BadSignature => "no authority that is trusted here signed it".to_owned(),
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => "it is not for this name".to_owned(),
        Bad::Expired | Bad::ExpiredContext { .. } => "it has expired".to_owned(),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => "its time has not come".to_owned(),
        error => error.to_string(),
    }
}

/// What a URL that AWS would ask for has.
pub async fn fetch(url: &str, authorities: &Authorities) -> Fetched {
    let mut fetched = Fetched { url: url.to_owned(), addresses: Vec::new(), shown: None, answer: Err(FetchError::Url) };
    let Some((uri, host, name)) = parts(url) else { return fetched };
    let port = uri.port_u16().unwrap_or(443);
    let verifier = Arc::new(Recorder { authorities: authorities.clone(), shown: Mutex::default() });
    let asking = async {
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        let addresses = found.map_err(|error| FetchError::Name(error.to_string()))?.collect::<Vec<_>>();
        fetched.addresses = addresses.iter().map(std::net::SocketAddr::ip).collect();
        let stream = TcpStream::connect(addresses.as_slice()).await;
        let stream = stream.map_err(|error| FetchError::Connect(error.to_string()))?;
        let stream = handshake(stream, name.clone(), &verifier, &[&TLS13, &TLS12]).await?;
        let version = stream.get_ref().1.protocol_version();
        Ok((addresses, version, ask(stream, &uri).await?))
    };
    let asked = tokio::time::timeout(PATIENCE, asking).await.unwrap_or(Err(FetchError::Slow));
    fetched.shown = verifier.shown();
    fetched.answer = match asked {
        Ok((addresses, version, answer)) => {
            if let Some(shown) = fetched.shown.as_mut().filter(|_| version == Some(ProtocolVersion::TLSv1_3)) {
                let older = async {
                    let stream = TcpStream::connect(addresses.as_slice()).await.ok()?;
                    Some(handshake(stream, name, &verifier, &[&TLS12]).await.is_ok())
                };
                // Nobody there any more: nothing is known of it.
                let older = tokio::time::timeout(PATIENCE, older).await;
                shown.only_tls13 = matches!(older, Ok(Some(false)));
            }
            Ok(answer)
        }
        Err(error) => Err(error),
    };
    fetched
}

/// A URL, its host, and the name that the host's certificate must have.
fn parts(url: &str) -> Option<(Uri, String, ServerName<'static>)> {
    let uri = url.parse::<Uri>().ok()?;
    if uri.scheme_str() != Some("https") {
        return None;
    }
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).ok()?;
    Some((uri, host, name))
}

async fn handshake(
    stream: TcpStream,
    name: ServerName<'static>,
    verifier: &Arc<Recorder>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<TlsStream<TcpStream>, FetchError> {
    let tls = |error: &dyn fmt::Display| FetchError::Tls(error.to_string());
    let config = ClientConfig::builder_with_provider(Arc::clone(&verifier.authorities.provider))
        .with_protocol_versions(versions)
        .map_err(|error| tls(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Recorder>::clone(verifier))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| tls(&error))
}

async fn ask(stream: TlsStream<TcpStream>, uri: &Uri) -> Result<Answer, FetchError> {
    let http = |error: &dyn fmt::Display| FetchError::Http(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| http(&error))?;
    let asking = async {
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, authority)
            .header(ACCEPT, "*/*")
            .header(USER_AGENT, concat!("kube2irsa/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| http(&error))?;
        let response = sender.send_request(request).await.map_err(|error| http(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LARGEST)
            .collect()
            .await
            .map_err(|error| if error.is::<LengthLimitError>() { FetchError::Large } else { http(&error) })?;
        let text = |name: HeaderName| {
            head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Ok(Answer {
            status: head.status.as_u16(),
            content_type: text(CONTENT_TYPE),
            location: text(LOCATION),
            cache_control: text(CACHE_CONTROL),
            body: body.to_bytes().to_vec(),
        })
    };
    // The connection is driven for as long as there is something to wait for.
    tokio::pin!(asking, connection);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        _ = &mut connection => asking.await,
    }
}

/// Writes down what a host shows, and lets it go on.
#[derive(Debug)]
struct Recorder {
    authorities: Authorities,
    shown: Mutex<Option<Shown>>,
}

impl Recorder {
    fn shown(&self) -> Option<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        host: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let trust =
            self.authorities.judge(|verifier| verifier.verify_server_cert(host, intermediates, name, stapled, now));
        let chain = std::iter::once(host).chain(intermediates).map(|one| one.clone().into_owned()).collect();
        let shown = Shown { chain, trust, only_tls13: false };
        // Of the first connection: a later one is made to see something else.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(shown);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.authorities.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.authorities.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
