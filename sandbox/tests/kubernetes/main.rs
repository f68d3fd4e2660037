//! What the sandbox's Kubernetes API server promises, over TLS on real sockets.
//!
//! The statuses and texts are those that a kube-apiserver 1.36.3 gave to the same requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod access;
mod clients;
mod events;
mod faults;
mod lists;
mod nodes;
mod support;
mod tokens;
mod watches;
