//! The metadata service as pods see it.
//!
//! Owns the routes, the session tokens (IMDSv2), the answers and the listener. Reads [`identity`] for who
//! asks and [`credentials`] for what they get. Invariant: default deny; what is not listed is 404.
//!
//! [`identity`]: crate::identity
//! [`credentials`]: crate::credentials

pub mod allowed;
pub mod facts;
pub mod key;
pub mod limits;
pub mod passage;
mod patience;
pub mod respond;
pub mod route;
#[cfg(test)]
mod route_histories;
pub mod server;
pub mod session;
pub mod upstream;
