//! What an operator asks: `/metrics`, `/healthz`, `/readyz`. Never on the pods' port.
//!
//! By TCP on `--admin-listen`, which the next daemon is handed, and on a unix socket ([`socket`]) that is this process's own.
//! [`client`] is what the commands ask that with.
//!
//! Liveness depends on the process alone: a daemon that cannot reach the API server or STS serves what
//! it has, and a restart would lose it.

pub mod client;
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

use crate::{
    clock,
    credentials::Store,
    identity::Directory,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

const HEAD_TIME_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What an operator is told of.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// Whose figures are taken when they are asked for; none before they are there, and where no pod is served.
    pods: OnceLock<(Arc<Directory>, Arc<Store>)>,
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
        tokio::spawn(speak(stream, connection, Arc::clone(&admin)));
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, connection: http1::Builder, admin: Arc<Admin>) {
    let service = service_fn(|request| {
        let response = admin.respond(&request);
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

    /// From now on also of these.
    pub fn tell_of(&self, directory: Arc<Directory>, store: Arc<Store>) {
        let _told = self.pods.set((directory, store));
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
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
            _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"),
        }
    }

    fn missing(&self) -> Vec<String> {
        if let Some((directory, _)) = self.pods.get() {
            if directory.synced() {
                self.readiness.holds(Condition::Watches);
            } else {
                self.readiness.lacks(Condition::Watches, "pods or service accounts have not been read yet");
            }
        }
        self.readiness.missing()
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        if let Some((directory, store)) = self.pods.get() {
            let figures = directory.figures();
            let slots = store.figures(clock::now());
            let gauges = [
                (&self.metrics.pods, figures.pods),
                (&self.metrics.disputed_addresses, figures.disputed),
                (&self.metrics.suspended_addresses, figures.suspended),
                (&self.metrics.pods_with_invalid_role, figures.invalid),
                (&self.metrics.slots, slots.slots),
                (&self.metrics.slots_failed, slots.failed),
                (&self.metrics.slots_low, slots.low),
            ];
            for (gauge, figure) in gauges {
                gauge.set(i64::try_from(figure).unwrap_or(i64::MAX));
            }
        }
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
