//! The operator's listener: `/metrics`, `/healthz`, `/readyz`. Never on the pods' port.
//!
//! Liveness depends on the process alone: a daemon that cannot reach the API server or STS serves what
//! it has, and a restart would lose it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::{
    credentials::Store,
    figures,
    identity::Directory,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

const HEAD_TIME_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What the operator's listener tells of.
#[derive(Debug)]
pub struct Admin {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether we are ready.
    pub readiness: Arc<Readiness>,
    /// Whose figures are taken when they are asked for; none where no pod is served.
    pub pods: Option<(Arc<Directory>, Arc<Store>)>,
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
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = admin.respond(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_LIMIT);
            if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "an operator's connection ended early");
            }
        });
    }
}

impl Admin {
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
        if let Some((directory, _)) = &self.pods {
            if directory.synced() {
                self.readiness.holds(Condition::Watches);
            } else {
                self.readiness.lacks(Condition::Watches, "pods or service accounts have not been read yet");
            }
        }
        self.readiness.missing()
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        if let Some((directory, store)) = &self.pods {
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
