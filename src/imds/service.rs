//! Which service a connection is for: by where it was meant to go before the redirect, or else by the path.
//!
//! Invariant: of two services at two addresses, the one never answers for the other.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Response, request};
use http_body_util::Full;
use tokio::time::Instant;

use super::{
    container::{self, Container},
    respond::{Close, Imds},
};
use crate::identity::Peer;

/// What is served to pods.
#[derive(Debug)]
pub struct Services {
    /// The metadata service.
    pub imds: Imds,
    /// The container credentials endpoint, where it is served.
    pub container: Option<Container>,
}

/// The service that a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The metadata service.
    Metadata,
    /// The container credentials endpoint.
    Container,
    /// Either, by the path: the connection came to this address of ours and says no more.
    ByPath(SocketAddr),
}

impl Services {
    /// The answer to a request from `peer`, by `deadline`.
    ///
    /// # Errors
    /// When the connection is to be closed instead.
    pub async fn respond(
        &self,
        service: Service,
        head: &request::Parts,
        peer: &Peer,
        deadline: Instant,
    ) -> Result<Response<Full<Bytes>>, Close> {
        let own = match service {
            Service::Metadata => return self.imds.respond(head, peer, deadline).await,
            Service::ByPath(_) if !container::is_path(head.uri.path()) => {
                return self.imds.respond(head, peer, deadline).await;
            }
            Service::Container => None,
            Service::ByPath(own) => Some(own),
        };
        match &self.container {
            // In a box, so that a request of the metadata service does not carry the room for it along.
            Some(container) => Ok(Box::pin(container.respond(head, peer, own, deadline)).await),
            None => Err(Close),
        }
    }
}
