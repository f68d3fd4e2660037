//! The node's cgroups (version 2), as far as they tell pods apart that share the node's network.
//!
//! Owns the way from a socket to the pod that made it: [`socket`] asks the kernel for the cgroup of a socket, [`tree`]
//! finds its folder, and the pod's UID in the folder's path. It knows no pods but by UID; whether the API server knows the
//! pod, and as one on the node's network, is for others to look up. Nothing is changed: folders are only read.
//!
//! A socket's cgroup is that of the process that made it, for the socket's whole life, wherever the socket is handed.
//! Invariant: a UID is named only while the folder is there of which the kernel spoke; a number is never used twice.

#[cfg(test)]
mod histories;
pub mod own;
pub mod socket;
pub mod tree;

pub use own::Own;
pub use tree::{Folder, Tree};

/// A cgroup's number: the kernel's, and that of its folder's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupId(pub u64);
