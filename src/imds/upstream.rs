//! The real metadata service, asked by ourselves: through a session of our own, and never with what a pod sent.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST},
    uri::Authority,
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::facts::Fact;
use crate::identity::names::{is_account, is_partition};

const TIME_LIMIT: Duration = Duration::from_secs(2);
/// The largest that the real service is known to give pods is some kilobytes.
const LARGEST_ANSWER: usize = 16 * 1024;
const TOKEN: &str = "/latest/api/token";
const REGION: &str = "/latest/meta-data/placement/region";
const ZONE: &str = "/latest/meta-data/placement/availability-zone";
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
const PARTITION: &str = "/latest/meta-data/services/partition";
const IDENTITY: &str = "/latest/dynamic/instance-identity/document";

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
        path: String,
        /// The answer's status.
        status: StatusCode,
    },
    /// It answered with something else.
    #[error("{path} answered with something unreadable")]
    Unreadable {
        /// What was asked for.
        path: String,
    },
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its type, if it has one.
    pub content_type: Option<HeaderValue>,
    /// Its content.
    pub body: Bytes,
}

impl UpstreamError {
    /// Whether the service answered that it has no such thing.
    fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, path } if path != TOKEN)
    }
}

/// The region that the node runs in, such as `eu-central-1`.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn region(endpoint: &Uri) -> Result<String, UpstreamError> {
    let plausible = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    read(endpoint, REGION, |text| (!text.is_empty() && text.bytes().all(plausible)).then_some(text)).await
}

/// The partition that the node runs in, such as `aws`.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn partition(endpoint: &Uri) -> Result<String, UpstreamError> {
    read(endpoint, PARTITION, |text| is_partition(&text).then_some(text)).await
}

/// The account that the node belongs to: 12 digits.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn account(endpoint: &Uri) -> Result<String, UpstreamError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Identity {
        account_id: String,
    }
    let account = |text: String| Some(serde_json::from_str::<Identity>(&text).ok()?.account_id);
    read(endpoint, IDENTITY, |text| account(text).filter(|account| is_account(account))).await
}

/// What the service says of the node, without its signature; `None` where it has no such thing.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn fact(endpoint: &Uri, fact: Fact) -> Result<Option<String>, UpstreamError> {
    let path = match fact {
        Fact::Region => REGION,
        Fact::Zone => ZONE,
        Fact::InstanceId => INSTANCE_ID,
        Fact::Document => IDENTITY,
    };
    match read(endpoint, path, Some).await {
        Err(error) if error.is_absent() => Ok(None),
        read => read.map(Some),
    }
}

/// What is at `path`, as it is; `None` where there is nothing.
///
/// # Errors
/// When the service at `endpoint` (http) does not say.
pub async fn page(endpoint: &Uri, path: &str) -> Result<Option<Page>, UpstreamError> {
    match in_session(endpoint, path).await {
        Err(error) if error.is_absent() => Ok(None),
        // A folder without its slash; where else it would lead is nobody's business.
        Err(UpstreamError::Refused { status: StatusCode::MOVED_PERMANENTLY, .. }) if !path.ends_with('/') => {
            in_session(endpoint, &format!("{path}/")).await.map(Some)
        }
        page => page.map(Some),
    }
}

/// The text at `path`; `parse` says `None` where it cannot be that.
async fn read(
    endpoint: &Uri,
    path: &str,
    parse: impl FnOnce(String) -> Option<String>,
) -> Result<String, UpstreamError> {
    let page = in_session(endpoint, path).await?;
    let text = String::from_utf8(page.body.into()).ok();
    text.and_then(parse).ok_or_else(|| UpstreamError::Unreadable { path: path.to_owned() })
}

/// What is at `path`, in a session of its own.
async fn in_session(endpoint: &Uri, path: &str) -> Result<Page, UpstreamError> {
    let asked = async {
        let token = ask(endpoint, Method::PUT, TOKEN, ("x-aws-ec2-metadata-token-ttl-seconds", b"60")).await?;
        ask(endpoint, Method::GET, path, ("x-aws-ec2-metadata-token", token.body.trim_ascii())).await
    };
    tokio::time::timeout(TIME_LIMIT, asked).await.map_err(|_| UpstreamError::TimedOut)?
}

/// One request on a connection of its own: the service may close after each.
async fn ask(endpoint: &Uri, method: Method, path: &str, (name, value): (&str, &[u8])) -> Result<Page, UpstreamError> {
    let unreadable = || UpstreamError::Unreadable { path: path.to_owned() };
    let host = endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, endpoint.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let authority = endpoint.authority().map_or(host, Authority::as_str);
    let request = Request::builder().method(method).uri(path).header(HOST, authority).header(name, value);
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).map_err(|_| unreadable())?).await?;
    if response.status() != StatusCode::OK {
        return Err(UpstreamError::Refused { path: path.to_owned(), status: response.status() });
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(|_| unreadable())?.to_bytes();
    connection.abort();
    Ok(Page { content_type: head.headers.get(CONTENT_TYPE).cloned(), body })
}
