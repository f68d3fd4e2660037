//! This process's own cgroup.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use super::{Folder, Tree, socket};

/// Where this process is in a tree, and where its cgroup namespace begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its folder.
    pub folder: Folder,
    /// How deep the folder is that its cgroup namespace takes for the first. Zero in the node's own.
    pub begins: usize,
}

impl Own {
    /// Looks for it.
    ///
    /// # Errors
    /// When the kernel does not say, or the tree does not have it.
    pub fn look(tree: &Tree) -> io::Result<Self> {
        // In a cgroup namespace of its own a process does not see its path, but the kernel tells the number of a socket's.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let here = TcpStream::connect(listener.local_addr()?)?;
        let id = socket::cgroup_of(here.local_addr()?, here.peer_addr()?)?
            .ok_or_else(|| io::Error::other("the kernel does not know a socket of ours"))?;
        let folder = tree
            .folder(id)
            .ok_or_else(|| io::Error::other(format!("{}: our own cgroup is not in there", tree.mount().display())))?;
        let paths = fs::read_to_string("/proc/self/cgroup")?;
        let path = paths.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let seen = path.split('/').filter(|name| !name.is_empty()).count();
        Ok(Self { begins: folder.depth().saturating_sub(seen), folder })
    }
}
