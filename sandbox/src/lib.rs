//! A cluster and an AWS in one process, for trying and testing kube2irsa.
//!
//! Each server is as strict as the real one: it refuses what the real one refuses, with the real
//! one's status and code, so that a client that works here works there. Nothing of this crate is
//! compiled into the daemon.

pub mod agent;
pub mod ca;
pub mod cgroups;
pub mod client;
pub mod clock;
pub mod cloud;
pub mod ec2;
pub mod http;
pub mod imds;
pub mod issuer;
pub mod kubernetes;
pub mod network;
pub mod packages;
pub mod s3;
pub mod sandbox;
pub mod sts;
pub mod userns;
pub mod web;
