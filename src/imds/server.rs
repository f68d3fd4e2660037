//! The listener for pods: accepts, checks where the connection was meant to go, serves HTTP/1.1.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::service::{Service, Services};
use crate::{drain::Watcher, intercept::original, metrics::Metrics};

/// From one request's end to the next one's complete head; SDKs pause for minutes and then connect anew.
const HEAD_TIME_LIMIT: Duration = Duration::from_secs(60);
/// Room for a request's head; SDKs send a few hundred bytes.
const LARGEST_HEAD: usize = 16 * 1024;
/// How long a connection may still bring its request, or the rest of it, after we began to stop: one second.
const LAST_REQUEST_WAITS: u32 = 50;
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(20);
/// After an error of accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Which connections are served.
#[derive(Clone, Debug)]
pub enum Accept {
    /// Those that were redirected from one of these addresses, which says what service is meant.
    Redirected {
        /// The metadata service's.
        metadata: Arc<[IpAddr]>,
        /// The container endpoint's.
        container: Arc<[IpAddr]>,
    },
    /// All: nothing is redirected by us, and the path says what service is meant.
    All,
}

impl Accept {
    /// The service that the connection is for; `None` where it is not to be served.
    fn service(&self, stream: &TcpStream) -> Option<Service> {
        match self {
            Self::All => stream.local_addr().ok().map(Service::ByPath),
            Self::Redirected { metadata, container } => {
                let meant = original::destination(stream).filter(|meant| meant.port() == 80)?.ip();
                let metadata = metadata.contains(&meant).then_some(Service::Metadata);
                metadata.or_else(|| container.contains(&meant).then_some(Service::Container))
            }
        }
    }
}

/// Serves pods until told to drain, then lets every request in flight end.
pub async fn serve(
    listener: TcpListener,
    accept: Accept,
    services: Arc<Services>,
    metrics: Arc<Metrics>,
    drain: Watcher,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.signaled() => break,
        };
        match accepted {
            Ok((stream, peer)) => connection(stream, peer.ip(), &accept, &services, &metrics, &drain),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // What the kernel has accepted for us already would be reset with the listener.
    while let Some(Ok((stream, peer))) = futures::FutureExt::now_or_never(listener.accept()) {
        connection(stream, peer.ip(), &accept, &services, &metrics, &drain);
    }
}

fn connection(
    stream: TcpStream,
    peer: IpAddr,
    accept: &Accept,
    services: &Arc<Services>,
    metrics: &Arc<Metrics>,
    drain: &Watcher,
) {
    let Some(service) = accept.service(&stream) else {
        metrics.direct_connections.inc();
        tracing::debug!(%peer, "closed: it did not come through the redirect");
        return;
    };
    let (services, metrics, drain) = (Arc::clone(services), Arc::clone(metrics), drain.clone());
    tokio::spawn(async move {
        metrics.connections.inc();
        if let Err(error) = requests(stream, peer.to_canonical(), service, &services, &drain).await {
            tracing::debug!(%peer, %error, "connection ended early");
        }
        metrics.connections.dec();
    });
}

async fn requests(
    stream: TcpStream,
    peer: IpAddr,
    meant: Service,
    services: &Services,
    drain: &Watcher,
) -> Result<(), hyper::Error> {
    // Small answers, each of them waited for.
    let _: io::Result<()> = stream.set_nodelay(true);
    let (begun, in_flight) = (AtomicBool::new(false), AtomicUsize::new(0));
    let service = service_fn(|request| {
        begun.store(true, Ordering::Relaxed);
        in_flight.fetch_add(1, Ordering::Relaxed);
        let response = services.respond(meant, request, peer);
        let in_flight = &in_flight;
        async move {
            let response = response.await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // As the real service writes them, for clients that compare bytes.
        .title_case_headers(true)
        .header_read_timeout(HEAD_TIME_LIMIT)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain.signaled() => {}
    }
    // One that was accepted a moment ago may still bring its request; hyper would close it at once.
    let mut waits = 0;
    while !begun.load(Ordering::Relaxed) && waits < LAST_REQUEST_WAITS {
        waits += 1;
        if let Ok(ended) = tokio::time::timeout(LAST_REQUEST_WAIT, connection.as_mut()).await {
            return ended;
        }
    }
    connection.as_mut().graceful_shutdown();
    // Half a request is not in flight, and its other half may never come.
    while waits < LAST_REQUEST_WAITS || in_flight.load(Ordering::Relaxed) > 0 {
        waits += 1;
        if let Ok(ended) = tokio::time::timeout(LAST_REQUEST_WAIT, connection.as_mut()).await {
            return ended;
        }
    }
    Ok(())
}
