//! Whom nftables is to redirect, in its words: by the cgroup of the process that made a socket.
//!
//! `socket cgroupv2 level N PATH` compares the folder at depth N on the way to the socket's. Depths count from where the
//! cgroup namespace begins of the process that writes the rule (in kernels of before late 2024: from the root), and what is
//! above that cannot be named. So from the node's own namespace kubelet's folder is named, and nobody else is meant.
//! A pod that is not privileged has a namespace which begins with its own container: there
//! all that is as deep is meant, but for what is named beside kubelet's folder, and shallower sockets are nobody's.
//! Folders are told by number, which no two have: a depth that is counted in the other way matches nothing.

use std::collections::BTreeSet;

use crate::{
    cgroups::{Folder, Own, Tree},
    identity::PodUid,
};

/// A pod's container is at least so deep below kubelet's folder.
const CONTAINER_DEPTH: usize = 2;
/// Where the tree is a part of one, kernels that count from the root count so many more.
const PERHAPS_MORE: usize = 4;

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matches {
    /// Who is not, whatever else holds.
    pub(super) exempt: BTreeSet<String>,
    /// Who is.
    pub(super) meant: BTreeSet<String>,
}

/// They cannot be told apart here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unmatched {
    /// Some pod's containers are not as deep as ours.
    #[error(
        "our cgroup namespace begins at depth {begins}, and containers are to be found from {containers} on: run with \
         the QoS class Guaranteed (each container's requests its limits), or privileged"
    )]
    TooDeep {
        /// Where ours begins.
        begins: usize,
        /// From where on there are containers.
        containers: usize,
    },
    /// Folders could not be read.
    #[error("cgroups could not be read: {0}")]
    Unread(String),
}

impl Matches {
    /// Finds it; `ours` are pods that are not meant. `None` while kubelet has no folder.
    pub(super) fn find(tree: &Tree, own: &Own, ours: &BTreeSet<PodUid>) -> Result<Option<Self>, Unmatched> {
        let roots = tree.roots();
        if roots.is_empty() {
            return Ok(None);
        }
        let named = Named { tree, begins: own.begins };
        let (mut exempt, mut meant) = (BTreeSet::new(), BTreeSet::new());
        for root in &roots {
            let is_ours = |folder: &Folder| folder.pod().is_some_and(|(uid, of)| of == *folder && ours.contains(&uid));
            for depth in [root.depth() + 1, root.depth() + 2] {
                let pods = tree.at_depth(root, depth, |_| true).into_iter().filter(is_ours);
                exempt.extend(pods.flat_map(|pod| named.all(&pod)));
            }
            if root.depth() >= own.begins {
                meant.extend(named.all(root));
                continue;
            }
            let containers = root.depth() + CONTAINER_DEPTH;
            if own.begins > containers {
                return Err(Unmatched::TooDeep { begins: own.begins, containers });
            }
            // Where depths count from the root, the folder itself can be named, and the rest matches nobody.
            meant.extend(named.by_depth(root));
            exempt.extend(named.at(0, &Folder::first()));
            let beside = tree.at_depth(&Folder::first(), own.begins, |folder| !roots.contains(folder));
            exempt.extend(beside.iter().filter_map(|folder| named.at(0, folder)));
            let here = own.folder.above(own.begins);
            exempt.extend(named.at(0, &here));
            meant.extend(named.path(&here).map(|path| format!("socket cgroupv2 level 0 != \"{path}\"")));
        }
        Ok(Some(Self { exempt, meant }))
    }
}

/// Names folders.
struct Named<'a> {
    tree: &'a Tree,
    begins: usize,
}

impl Named<'_> {
    /// All that is in the folder, in whichever way depths count.
    fn all(&self, folder: &Folder) -> Vec<String> {
        let mut named = self.by_depth(folder);
        if self.begins > 0 && folder.depth() >= self.begins {
            named.extend(self.at(folder.depth() - self.begins, folder));
        } else if self.begins > 0 {
            let parts = self.tree.at_depth(folder, self.begins, |_| true);
            named.extend(parts.iter().filter_map(|part| self.at(0, part)));
        }
        named
    }

    fn by_depth(&self, folder: &Folder) -> Vec<String> {
        let more = if self.tree.is_part() { PERHAPS_MORE } else { 0 };
        (folder.depth()..=folder.depth() + more).filter_map(|level| self.at(level, folder)).collect()
    }

    fn at(&self, level: usize, folder: &Folder) -> Option<String> {
        Some(format!("socket cgroupv2 level {level} \"{}\"", self.path(folder)?))
    }

    /// As nft looks for it, below `/sys/fs/cgroup`; one that cannot be written is not named.
    fn path(&self, folder: &Folder) -> Option<String> {
        let mount = self.tree.mount().to_str()?;
        let path = folder.path();
        let path = path.to_str().filter(|path| !path.contains(['"', '\n']))?;
        Some(match mount.strip_prefix("/sys/fs/cgroup") {
            Some("") => path.to_owned(),
            Some(below) if below.starts_with('/') => format!("{}/{path}", below.trim_start_matches('/')),
            _ => format!("../../..{mount}/{path}"),
        })
    }
}
