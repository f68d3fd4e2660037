//! What an operator asks: `/metrics`, `/healthz`, `/readyz`. Never on the pods' port.
//!
//! By TCP on `--admin-listen`, which the next daemon is handed, and on a unix socket ([`socket`]) that is this process's own.
//! [`client`] is what the commands ask that with.
//!
//! Liveness depends on the process alone: a daemon that cannot reach the API server or STS serves what
//! it has, and a restart would lose it.

pub mod client;
pub mod explain;
pub mod socket;

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use self::explain::Explainer;
use crate::{
    figures,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

const HEAD_TIME_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Before `NAMESPACE/POD`.
pub const EXPLAIN: &str = "/explain/";

/// What an operator is told of.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// Whose figures are taken when they are asked for; none before they are there, and where no pod is served.
    pods: OnceLock<Explainer>,
}

/// By which way somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    /// Pods are told of by name here alone.
    Socket,
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an operator's connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let mut connection = http1::Builder::new();
        connection.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_LIMIT);
        tokio::spawn(speak(stream, connection, Way::Tcp, Arc::clone(&admin)));
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, connection: http1::Builder, way: Way, admin: Arc<Admin>) {
    let service = service_fn(|request| {
        let response = admin.respond(&request, way);
        async move { Ok::<_, Infallible>(response) }
    });
    if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "an operator's connection ended early");
    }
}

// === impl Admin ===

impl Admin {
    /// Of a process that serves no pod, or none yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Self {
        Self { metrics, readiness, pods: OnceLock::new() }
    }

    /// From now on also of pods.
    pub fn tell_of_pods(&self, explainer: Explainer) {
        let _told = self.pods.set(explainer);
    }

    fn respond(&self, request: &Request<Incoming>, way: Way) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let missing = self.missing();
                if missing.is_empty() {
                    text(StatusCode::OK, "ok\n")
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
                }
            }
            "/metrics" => self.metrics(),
            path if way == Way::Socket && path.starts_with(EXPLAIN) => self.explain(path),
            _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"),
        }
    }

    fn explain(&self, path: &str) -> Response<Full<Bytes>> {
        let Some((namespace, pod)) = path.strip_prefix(EXPLAIN).and_then(|name| name.split_once('/')) else {
            return text(StatusCode::NOT_FOUND, "try /explain/NAMESPACE/POD\n");
        };
        let Some(explainer) = self.pods.get() else {
            let why = self.missing().into_iter().map(|line| line + "\n").collect::<String>();
            return text(StatusCode::SERVICE_UNAVAILABLE, format!("this process serves no pods\n{why}"));
        };
        // What a watch has told of since is no lack.
        let _noted = self.missing();
        match serde_json::to_vec(&explainer.explain(namespace, pod)) {
            Ok(body) => {
                let mut response = Response::new(Full::new(body.into()));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("it cannot be written: {error}\n")),
        }
    }

    fn missing(&self) -> Vec<String> {
        if let Some(Explainer { directory, .. }) = self.pods.get() {
            if directory.synced() {
                self.readiness.holds(Condition::Watches);
            } else {
                self.readiness.lacks(Condition::Watches, "pods or service accounts have not been read yet");
            }
        }
        self.readiness.missing()
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        if let Some(Explainer { directory, store, .. }) = self.pods.get() {
            figures::take(&self.metrics, directory, store);
        }
        figures::take_process(&self.metrics);
        self.metrics.ready.set(self.missing().is_empty().into());
        match self.metrics.text() {
            Ok((body, format)) => {
                let mut response = Response::new(Full::new(body.into()));
                if let Ok(format) = HeaderValue::try_from(format) {
                    response.headers_mut().insert(CONTENT_TYPE, format);
                }
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {error}\n")),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
