//! HTTP/1.1 servers of the sandbox: plain or TLS, told when to cut their connections.

use std::{convert::Infallible, io, net::SocketAddr, os::fd::AsFd as _, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::Linger};
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
    cut: watch::Sender<()>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Serves `handler` on `listener` until dropped.
    ///
    /// # Errors
    /// When the listener's address cannot be read.
    pub fn start<H, F>(listener: TcpListener, tls: Option<Arc<ServerConfig>>, handler: H) -> io::Result<Self>
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let address = listener.local_addr()?;
        let (cut, _) = watch::channel(());
        let tls = tls.map(TlsAcceptor::from);
        let accept = tokio::spawn({
            let cut = cut.clone();
            async move {
                loop {
                    let Ok((stream, peer)) = listener.accept().await else { continue };
                    let (tls, handler, mut cut) = (tls.clone(), handler.clone(), cut.subscribe());
                    let socket = stream.as_fd().try_clone_to_owned();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = connection(stream, peer, tls, handler) => {}
                            // Cut on request, or because the server was dropped: reset, as by a host that died.
                            _ = cut.changed() => {
                                let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                                socket.map(|socket| setsockopt(&socket, Linger, &at_once)).ok();
                            }
                        }
                    });
                }
            }
        });
        Ok(Self { address, cut, accept })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection in the middle of whatever it does; new ones are accepted.
    pub fn cut_connections(&self) {
        self.cut.send_replace(());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut.send_replace(());
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
