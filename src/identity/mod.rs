//! Who is asking: pods by address, and the role of a pod's service account.
//!
//! Owns the names of things ([`PodUid`], [`RoleArn`], …), the pod index (pure), the directory that
//! requests read, and the watches and links that feed it. It knows nothing of tokens, credentials or HTTP.
//! Invariant: an address is a pod's only while exactly one living pod claims it and the pod's link lives. Pods on the node's
//! network have no address of their own, and are known by UID alone.

pub mod accounts;
pub mod annotations;
pub mod binding;
pub mod caller;
mod collection;
pub mod directory;
pub mod index;
pub mod legacy;
pub mod links;
pub mod lookup;
pub mod names;
mod netlink;
pub mod node;
pub mod peer;
pub mod policy;
pub mod watch;

pub use annotations::{Target, Wish};
pub use caller::{Caller, Grant, Role, Roles, Unidentified};
pub use directory::{Directory, HostPods, Reach};
pub use index::Pod;
pub use names::{Namespace, NodeName, PodUid, RoleArn, ServiceAccountName, ServiceAccountUid};
pub use peer::Peer;
