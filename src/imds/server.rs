//! The listener for pods: accepts, checks where the connection was meant to go, serves HTTP/1.1 within limits.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, SERVER},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};

use super::{
    host::HostPeers,
    limits::{Admission, Limits, Place, Refused, Turn},
    patience::{Patient, Progress},
    respond::{BUDGET, EC2},
    service::{Service, Services},
};
use crate::{
    drain::Watcher,
    identity::Peer,
    intercept::original,
    metrics::{Closed, Metrics},
};

/// What hyper wants to have as room for a request's head at least; a lower limit of ours is looked at by itself.
const LEAST_ROOM: usize = 8 * 1024;
/// How long a connection may still bring its request, or the rest of it, after we began to stop: one second.
const LAST_REQUEST_WAITS: u32 = 50;
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(20);
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// After accept failed for want of something that may come back.
const PAUSE: Duration = Duration::from_millis(50);
/// What hyper closes without a word: a client that speaks HTTP/2 and did not ask whether we do.
const NO_HTTP_2: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: EC2ws\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Which connections are served.
#[derive(Clone, Debug)]
pub enum Accept {
    /// Those that were redirected from one of these addresses, which says what service is meant.
    Redirected {
        /// The metadata service's.
        metadata: Arc<[IpAddr]>,
        /// The container endpoint's.
        container: Arc<[IpAddr]>,
        /// Who tells processes on the node's network apart, where they are redirected too.
        host: Option<Arc<HostPeers>>,
    },
    /// All: nothing is redirected by us, and the path says what service is meant.
    All,
}

impl Accept {
    /// The service that the connection is for, and where it was meant to go; `None` where it is not to be served.
    fn service(&self, stream: &TcpStream) -> Option<(Service, SocketAddr)> {
        match self {
            Self::All => stream.local_addr().ok().map(|own| (Service::ByPath(own), own)),
            Self::Redirected { metadata, container, .. } => {
                let meant = original::destination(stream).filter(|meant| meant.port() == 80)?;
                let service = metadata.contains(&meant.ip()).then_some(Service::Metadata);
                let service = service.or_else(|| container.contains(&meant.ip()).then_some(Service::Container));
                service.map(|service| (service, meant))
            }
        }
    }

    /// Who is at the other end, asked once for a connection's life.
    async fn peer(&self, client: SocketAddr, meant: SocketAddr) -> Peer {
        match self {
            Self::Redirected { host: Some(host), .. } => host.peer(client, meant).await,
            Self::Redirected { host: None, .. } | Self::All => client.ip().into(),
        }
    }
}

/// Serves pods until told to drain, then lets every request in flight end.
pub async fn serve(
    listener: TcpListener,
    accept: Accept,
    services: Arc<Services>,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    drain: Watcher,
) {
    let accept = Arc::new(accept);
    let mut told = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.signaled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                told = false;
                connection(stream, peer, &accept, &services, &admission, &metrics, &drain);
            }
            // Those that are served go on meanwhile, and those that wait are not lost.
            Err(error) if is_want(&error) => {
                metrics.accept_errors.inc();
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "connections cannot be accepted; it is tried again");
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it was accepted"),
        }
    }
    // What the kernel has accepted for us already would be reset with the listener.
    while let Some(Ok((stream, peer))) = futures::FutureExt::now_or_never(listener.accept()) {
        connection(stream, peer, &accept, &services, &admission, &metrics, &drain);
    }
}

/// Whether it is we who lack something, and not the one connection that failed.
fn is_want(error: &io::Error) -> bool {
    let wants = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| wants.contains(&Errno::from_raw(code)))
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    accept: &Arc<Accept>,
    services: &Arc<Services>,
    admission: &Arc<Admission>,
    metrics: &Arc<Metrics>,
    drain: &Watcher,
) {
    let Some((service, meant)) = accept.service(&stream) else {
        metrics.direct_connections.inc();
        tracing::debug!(%peer, "closed: it did not come through the redirect");
        return;
    };
    metrics.redirected_connections.inc();
    let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let place = match admission.admit(client.ip(), Instant::now()) {
        Ok(place) => place,
        Err(refused) => {
            metrics.closed(match refused {
                Refused::Pod => Closed::PodConnections,
                Refused::Node => Closed::NodeConnections,
            });
            tracing::debug!(%peer, ?refused, "closed: too many connections");
            // At once and for good: nothing of it is left to the kernel either.
            let _: io::Result<()> = stream.set_zero_linger();
            return;
        }
    };
    let (accept, services, admission, metrics, drain) =
        (Arc::clone(accept), Arc::clone(services), Arc::clone(admission), Arc::clone(metrics), drain.clone());
    tokio::spawn(async move {
        let _open = Open::new(&metrics);
        // A connection takes a turn, and the first request that it brings takes none: who comes and goes has a share
        // as who stays.
        if let Some(turn) = place.turn(Instant::now()) {
            wait(turn, &metrics).await;
        }
        let peer = accept.peer(client, meant).await;
        let asks = Asks { peer: &peer, meant: service, services: &services };
        if let Err(error) = requests(stream, asks, &place, admission.limits(), &metrics, &drain).await {
            tracing::debug!(%peer, %error, "connection ended early");
        }
    });
}

/// A connection that is counted as open, also if its end is a panic.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Who asks on a connection, and whom.
#[derive(Clone, Copy)]
struct Asks<'a> {
    peer: &'a Peer,
    meant: Service,
    services: &'a Services,
}

async fn requests(
    stream: TcpStream,
    asks: Asks<'_>,
    place: &Place,
    limits: &Limits,
    metrics: &Metrics,
    drain: &Watcher,
) -> Result<(), hyper::Error> {
    // Small answers, each of them waited for.
    let _: io::Result<()> = stream.set_nodelay(true);
    let progress = Progress::new(Instant::now().into());
    let draining = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let now = Instant::now();
        let (head, body) = request.into_parts();
        let body = (!body.is_end_stream()).then_some(body);
        let turn = if progress.has_begun() { place.turn(now) } else { None };
        progress.request(now.into(), body.is_some());
        // The time for an answer begins when it is its turn and all of it is there.
        let waits = turn.is_some() || body.is_some();
        let (progress, draining) = (&progress, &draining);
        async move {
            // What is rare is in a box: room for it would be moved about with each request.
            if let Some(turn) = turn {
                Box::pin(wait(turn, metrics)).await;
            }
            let refused = match body {
                // The authority of CONNECT, or whatever is no path.
                _ if head.uri.path().is_empty() => Some((StatusCode::BAD_REQUEST, Closed::Malformed)),
                Some(body) => Box::pin(read(body, limits.request_body)).await.err(),
                None => None,
            };
            let mut response = match refused {
                Some((status, why)) => {
                    metrics.closed(why);
                    Ok(last(status))
                }
                None => {
                    let begun = if waits { Instant::now() } else { now };
                    let deadline = tokio::time::Instant::from(begun) + BUDGET;
                    asks.services.respond(asks.meant, &head, asks.peer, deadline).await
                }
            };
            progress.answered();
            if let Ok(response) = &mut response
                && draining.load(Ordering::Relaxed)
            {
                response.headers_mut().insert(CONNECTION, CLOSE);
            }
            response
        }
    });
    let mut connection = http1::Builder::new()
        // As the real service writes them, for clients that compare bytes.
        .title_case_headers(true)
        // Who has nothing more to send may still read.
        .half_close(true)
        // The stream has limits of its own.
        .header_read_timeout(None)
        .max_buf_size(limits.request_head.max(LEAST_ROOM))
        .max_header_size(limits.request_head)
        .serve_connection(TokioIo::new(Patient::new(stream, &progress, limits, metrics)), service);
    let ended = async {
        let mut connection = Pin::new(&mut connection);
        tokio::select! {
            // In this order each time, for to choose one costs each request.
            biased;
            ended = connection.as_mut() => return ended,
            () = drain.signaled() => {}
        }
        // A request may be on its way, on a kept connection too: it is answered, and the client told that it was the
        // last. hyper would close at once, and the client could not know whether that was before its request or after.
        draining.store(true, Ordering::Relaxed);
        for _ in 0..LAST_REQUEST_WAITS {
            if let Ok(ended) = tokio::time::timeout(LAST_REQUEST_WAIT, connection.as_mut()).await {
                return ended;
            }
        }
        connection.as_mut().graceful_shutdown();
        // Half a request is not in flight, and its other half may never come.
        while progress.is_answering() {
            if let Ok(ended) = tokio::time::timeout(LAST_REQUEST_WAIT, connection.as_mut()).await {
                return ended;
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = &ended
        && error.is_parse()
    {
        metrics.closed(if error.is_parse_too_large() { Closed::LargeHead } else { Closed::Malformed });
        if error.is_parse_version_h2() {
            let mut stream = connection.into_parts().io.into_inner();
            if stream.write_all(NO_HTTP_2).await.is_ok() {
                let _: io::Result<()> = stream.shutdown().await;
            }
        }
    }
    ended
}

async fn wait(turn: Turn<'_>, metrics: &Metrics) {
    metrics.throttled_requests.inc();
    tokio::time::sleep(turn.wait()).await;
    turn.take();
}

/// Reads a body to its end, so that it is not taken for the next request, and so that a client which waits for leave
/// to send it does not wait on.
async fn read(body: Incoming, largest: usize) -> Result<(), (StatusCode, Closed)> {
    let too_large = (StatusCode::PAYLOAD_TOO_LARGE, Closed::LargeBody);
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > largest {
        return Err(too_large);
    }
    match tokio::time::timeout(BUDGET, Limited::new(body, largest).collect()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, Closed::Malformed)),
        Err(_) => Err((StatusCode::BAD_REQUEST, Closed::SlowRequest)),
    }
}

/// An answer after which the connection is closed.
fn last(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, EC2);
    response.headers_mut().insert(CONNECTION, CLOSE);
    response
}
