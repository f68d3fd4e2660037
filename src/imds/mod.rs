//! The metadata service and the container credentials endpoint as pods see them.
//!
//! Owns the routes, the session tokens (IMDSv2), the answers and the listener. Reads [`identity`] for who asks,
//! [`credentials`] for what they get, and [`token`] for what a token says that they show. Invariant: default deny; what is
//! not listed is 404.
//!
//! [`identity`]: crate::identity
//! [`credentials`]: crate::credentials
//! [`token`]: crate::token

pub mod allowed;
pub mod container;
pub mod facts;
pub mod host;
pub mod key;
pub mod limits;
pub mod passage;
mod patience;
pub mod pods;
pub mod respond;
pub mod route;
#[cfg(test)]
mod route_histories;
pub mod server;
pub mod service;
pub mod session;
pub mod upstream;
