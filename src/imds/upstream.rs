//! The real metadata service, asked for ourselves: through a session of our own, never for a pod.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const TIME_LIMIT: Duration = Duration::from_secs(2);
const LARGEST_ANSWER: usize = 4 * 1024;
const REGION: &str = "/latest/meta-data/placement/region";

/// The real metadata service did not say.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody answered in time.
    #[error("no answer within {} s", TIME_LIMIT.as_secs())]
    TimedOut,
    /// The service's name or address cannot be used.
    #[error("cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    /// It is no HTTP that it speaks.
    #[error("cannot be spoken to: {0}")]
    Protocol(#[from] hyper::Error),
    /// It refused.
    #[error("{path} answered {status}")]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// The answer's status.
        status: StatusCode,
    },
    /// It answered with something else.
    #[error("{path} answered with something unreadable")]
    Unreadable {
        /// What was asked for.
        path: &'static str,
    },
}

/// The region that the node runs in, such as `eu-central-1`.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn region(endpoint: &Uri) -> Result<String, UpstreamError> {
    tokio::time::timeout(TIME_LIMIT, ask_region(endpoint)).await.map_err(|_| UpstreamError::TimedOut)?
}

async fn ask_region(endpoint: &Uri) -> Result<String, UpstreamError> {
    let host = endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
    let address: Option<SocketAddr> = tokio::net::lookup_host((host, endpoint.port_u16().unwrap_or(80))).await?.next();
    let address = address.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    let connection = tokio::spawn(connection);
    let authority = endpoint.authority().map_or_else(|| host.to_owned(), ToString::to_string);
    let mut ask = async |method: Method, path: &'static str, header: (&str, &str)| {
        let request = Request::builder().method(method).uri(path).header(HOST, &authority).header(header.0, header.1);
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| UpstreamError::Unreadable { path })?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(UpstreamError::Refused { path, status: response.status() });
        }
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|_| UpstreamError::Unreadable { path })?.to_bytes();
        String::from_utf8(body.into()).map_err(|_| UpstreamError::Unreadable { path })
    };
    let token = ask(Method::PUT, "/latest/api/token", ("x-aws-ec2-metadata-token-ttl-seconds", "60")).await?;
    let region = ask(Method::GET, REGION, ("x-aws-ec2-metadata-token", token.trim())).await?;
    connection.abort();
    let plausible =
        !region.is_empty() && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plausible { Ok(region) } else { Err(UpstreamError::Unreadable { path: REGION }) }
}
