//! HTTP/1.1 servers of the sandbox: plain or TLS, told when to cut their connections.
//!
//! Invariant: what is cut is cut on return. Of a connection that was open nothing more arrives, and where a server was
//! dropped nobody connects, whatever its tasks are about to do; so it may be called from any thread, a runtime's too.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A response body: whole, or a stream (a watch).
pub type Body = BoxBody<Bytes, io::Error>;

/// A body that is there at once.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A running server; dropping it stops it and closes its connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    sockets: Arc<Sockets>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Serves `handler` on `listener` until dropped.
    ///
    /// # Errors
    /// When the listener's address cannot be read, or it cannot be shared.
    pub fn start<H, F>(listener: TcpListener, tls: Option<Arc<ServerConfig>>, handler: H) -> io::Result<Self>
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let address = listener.local_addr()?;
        let sockets = Arc::new(Sockets::new(&listener)?);
        let tls = tls.map(TlsAcceptor::from);
        let accept = tokio::spawn({
            let sockets = Arc::clone(&sockets);
            async move {
                while let Some(accepted) = poll_fn(|context| sockets.accept(&listener, context)).await {
                    let Ok((stream, peer, mut open)) = accepted else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let (tls, handler) = (tls.clone(), handler.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection(stream, peer, tls, handler) => {}
                            // Its socket is cut already: what would go on to be said is of no use.
                            _ = open.cut.changed() => {}
                        }
                    });
                }
            }
        });
        Ok(Self { address, sockets, accept })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection in the middle of whatever it does; new ones are accepted.
    pub fn cut_connections(&self) {
        self.sockets.state().cut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sockets.stop();
        self.accept.abort();
    }
}

/// A server's sockets, by handles of their own: cut here, they are cut for the tasks that use them.
#[derive(Debug)]
struct Sockets {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the server has stopped.
    listener: Option<std::net::TcpListener>,
    open: HashMap<u64, OwnedFd>,
    accepted: u64,
    cut: watch::Sender<()>,
}

/// A connection's entry, taken out when it ends.
struct Open {
    number: u64,
    sockets: Arc<Sockets>,
    cut: watch::Receiver<()>,
}

impl Sockets {
    fn new(listener: &TcpListener) -> io::Result<Self> {
        let listener = Some(listener.as_fd().try_clone_to_owned()?.into());
        let state = State { listener, open: HashMap::new(), accepted: 0, cut: watch::Sender::default() };
        Ok(Self { state: Mutex::new(state) })
    }

    /// The next connection, entered before anybody can cut what is open; `None` once the server has stopped.
    fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<(TcpStream, SocketAddr, Open)>>> {
        let mut state = self.state();
        if state.listener.is_none() {
            return Poll::Ready(None);
        }
        let accepted = ready!(listener.poll_accept(context)).and_then(|(stream, peer)| {
            let socket = stream.as_fd().try_clone_to_owned()?;
            state.accepted += 1;
            let number = state.accepted;
            state.open.insert(number, socket);
            Ok((stream, peer, Open { number, sockets: Arc::clone(self), cut: state.cut.subscribe() }))
        });
        Poll::Ready(Some(accepted))
    }

    fn stop(&self) {
        let mut state = self.state();
        if let Some(listener) = state.listener.take() {
            reset(&listener);
        }
        state.cut();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn cut(&mut self) {
        // Those that nobody has accepted yet are open too, to who made them.
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(std::net::TcpListener::accept) {
            reset(&stream);
        }
        self.open.drain().for_each(|(_, socket)| reset(&socket));
        self.cut.send_replace(());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.sockets.state().open.remove(&self.number);
    }
}

/// Ends a socket at once, whoever else holds it: a connection is reset, as by a host that died, and with a listener
/// go those that nobody has accepted.
fn reset(socket: impl AsFd) {
    if let Err(error) = rustix::net::connect_unspec(socket) {
        tracing::debug!(%error, "a socket cannot be reset: it has ended");
    }
}

async fn connection<H, F>(stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>, handler: H)
where
    H: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Response<Body>>,
{
    stream.set_nodelay(true).ok();
    match tls {
        // A client that breaks off the handshake (a port probe, a test of trust) is not our error.
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => requests(stream, peer, handler).await,
            Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        },
        None => requests(stream, peer, handler).await,
    }
}

async fn requests<S, H, F>(stream: S, peer: SocketAddr, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>, SocketAddr) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let response = handler(request, peer);
        async move { Ok::<_, Infallible>(response.await) }
    });
    if let Err(error) =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await
    {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}
