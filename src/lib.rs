//! kube2irsa: gives every pod the IAM role of its own ServiceAccount, through the metadata service.
//!
//! One request: the redirect ([`intercept`]) brings it to the listener ([`imds::server`]); its source
//! address is looked up ([`identity`]); its answer ([`imds::respond`], [`imds::container`]) is read from the cache
//! ([`credentials`]), which asks the API server for a token ([`token`]) and STS for credentials ([`sts`]).
//! [`observe`] takes the place of all but the second where an operator wants to see who asks, first.
//! [`app`] wires it all; [`cli`] and [`config`] say how; [`admin`], [`metrics`], [`figures`], [`events`] and [`audit`] tell of
//! it, [`admin::explain`] of one pod, and [`taint`] lets pods come. [`operator`] is apart: the commands for whoever installs and
//! runs it.

pub mod admin;
pub mod api_server;
pub mod app;
pub mod audit;
pub mod cgroups;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod descriptors;
pub mod drain;
pub mod events;
pub mod figures;
#[cfg(test)]
mod histories;
pub mod identity;
pub mod imds;
pub mod intercept;
pub mod local_socket;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod operator;
pub mod readiness;
pub mod sts;
pub mod taint;
pub mod telemetry;
pub mod token;
