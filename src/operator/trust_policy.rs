//! `kube2irsa trust-policy`: the trust policies of the roles that service accounts ask for, and whom a policy admits.

pub mod builder;
pub mod issuer;
pub mod json;
pub mod policy;

pub use self::{
    builder::{Hop, RoleTrust, Roles},
    issuer::{Issuer, NotAnIssuer, Subject},
    policy::{NotAPolicy, TrustPolicy},
};
