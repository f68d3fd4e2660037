//! The sandbox's STS, asked over real TLS by the unmodified AWS SDK, and by hand where AWS says no.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod assume_role;
mod caller_identity;
mod faults;
mod issuer;
mod s3;
mod web_identity;
mod world;
