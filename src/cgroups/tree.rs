//! Folders of cgroups: where those of pods are, and whose each is.
//!
//! Kubelet makes one root for all pods, one folder below it for each class of pods but the guaranteed ones', one for each
//! pod, and the runtime one or more in that. With systemd's names, the root's own (`kubepods.slice`, or as kind has it
//! `kubelet.slice/kubelet-kubepods.slice`) begins all names below it:
//!
//! ```text
//! kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, _ for ->.slice/cri-containerd-<id>.scope
//! kubepods/burstable/pod<uid>/<id>
//! ```
//!
//! What is below a pod's folder is the pod's, whatever it is called.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::CgroupId;
use crate::identity::PodUid;

/// Kubelet's root is no deeper than this below where the tree begins.
const DEEPEST_ROOT: usize = 4;
/// A pod may make folders in its own; nobody is looked for deeper.
const DEEPEST: usize = 16;
/// What systemd has beside kubelet's: no kubelet has its root there.
const OTHERS: [&str; 4] = ["system.slice", "user.slice", "machine.slice", "init.scope"];
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// A folder, by its path below the one in which the tree begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Folder(Vec<Arc<str>>);

/// The node's cgroups, as they are to be seen here.
#[derive(Debug)]
pub struct Tree {
    mount: PathBuf,
    found: Mutex<HashMap<CgroupId, Found>>,
}

/// Where a cgroup was found; it is there, or nowhere.
#[derive(Clone, Debug)]
struct Found {
    folder: Folder,
    pod: PodUid,
}

// === impl Folder ===

impl Folder {
    /// The folder in which the tree begins.
    #[must_use]
    pub fn first() -> Self {
        Self(Vec::new())
    }

    /// How many names its path has.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// This one or one above it.
    #[must_use]
    pub fn above(&self, depth: usize) -> Self {
        Self(self.0.iter().take(depth).cloned().collect())
    }

    /// Whether this is `other` or below it.
    #[must_use]
    pub fn is_in(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Its path; `.` for the first.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        if self.0.is_empty() { ".".into() } else { self.0.iter().map(|name| &**name).collect() }
    }

    fn with(&self, name: &str) -> Self {
        Self(self.0.iter().cloned().chain([name.into()]).collect())
    }

    fn name(&self) -> &str {
        self.0.last().map_or("", |name| name)
    }

    fn is_root_of_pods(&self) -> bool {
        matches!(self.name(), "kubepods" | "kubepods.slice") || self.name().ends_with("-kubepods.slice")
    }

    /// The pod whose folder this is, or is in, and that pod's folder.
    #[must_use]
    pub fn pod(&self) -> Option<(PodUid, Self)> {
        let root = (1..=self.depth().min(DEEPEST_ROOT)).find(|depth| self.above(*depth).is_root_of_pods())?;
        let names = self.0.get(root - 1..)?;
        let (of_root, below) = names.split_first()?;
        let (class, pod) = match (below, of_root.strip_suffix(".slice")) {
            ([pod, ..], stem) if let Some(uid) = uid(pod, stem, None) => (0, uid),
            ([class, pod, ..], stem) => {
                let class = CLASSES.into_iter().find(|known| match stem {
                    Some(stem) => **class == *format!("{stem}-{known}.slice"),
                    None => &**class == *known,
                })?;
                (1, uid(pod, stem, Some(class))?)
            }
            _ => return None,
        };
        Some((pod.as_str().into(), self.above(root + class + 1)))
    }
}

/// The UID in the name of a pod's folder; `stem` is what systemd's names begin with.
fn uid(name: &str, stem: Option<&str>, class: Option<&str>) -> Option<String> {
    let uid = match stem {
        None => name.strip_prefix("pod")?.to_owned(),
        Some(stem) => {
            let name = name.strip_suffix(".slice")?.strip_prefix(stem)?;
            let name = class.map_or(Some(name), |class| name.strip_prefix('-')?.strip_prefix(class))?;
            name.strip_prefix("-pod")?.replace('_', "-")
        }
    };
    let is_uid = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

// === impl Tree ===

impl Tree {
    /// The tree that is mounted there.
    #[must_use]
    pub fn at(mount: PathBuf) -> Self {
        Self { mount, found: Mutex::default() }
    }

    /// The first mounted one in which kubelet has a root; else the first. What is mounted over is not seen.
    ///
    /// # Errors
    /// When mounts cannot be read, or nothing of the kind is mounted.
    pub fn find() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut first = None;
        for mount in mounts.lines().filter_map(mount_point) {
            let tree = Self::at(mount);
            if !tree.mount.join("cgroup.procs").exists() {
                continue;
            }
            if !tree.roots().is_empty() {
                return Ok(tree);
            }
            first = first.or(Some(tree));
        }
        first.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroups of version 2 are mounted here"))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Whether it begins below the kernel's own root: the kernel's has no parent that it could tell events.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.mount.join("cgroup.events").exists()
    }

    /// Kubelet's roots: one, or after a change of its driver also the one from before.
    #[must_use]
    pub fn roots(&self) -> Vec<Folder> {
        let mut roots = Vec::new();
        self.walk(Folder::first(), DEEPEST_ROOT, &mut |folder, _| {
            if folder.is_root_of_pods() {
                roots.push(folder.clone());
            }
            !folder.is_root_of_pods() && !OTHERS.contains(&folder.name())
        });
        roots
    }

    /// All folders at this depth in a folder, that one included; `also` says which are gone into.
    pub fn at_depth(&self, inside: &Folder, depth: usize, also: impl Fn(&Folder) -> bool) -> Vec<Folder> {
        if inside.depth() >= depth {
            return vec![inside.above(depth)];
        }
        let mut at = Vec::new();
        self.walk(inside.clone(), depth, &mut |folder, _| {
            let is_in = also(folder);
            if is_in && folder.depth() == depth {
                at.push(folder.clone());
            }
            is_in
        });
        at
    }

    /// The cgroup whose folder this is; `None` if there is none.
    #[must_use]
    pub fn id(&self, folder: &Folder) -> Option<CgroupId> {
        fs::metadata(self.mount.join(folder.path())).ok().map(|folder| CgroupId(folder.ino()))
    }

    /// The folder of a cgroup, wherever it is.
    #[must_use]
    pub fn folder(&self, id: CgroupId) -> Option<Folder> {
        if self.id(&Folder::first()) == Some(id) {
            return Some(Folder::first());
        }
        let mut found = None;
        self.walk(Folder::first(), DEEPEST, &mut |folder, its| {
            if its == id {
                found = Some(folder.clone());
            }
            found.is_none()
        });
        found
    }

    /// The pod in whose folder a cgroup's is; `None` if that is no pod's, or gone. One that was not met before is looked
    /// for in all pods' folders.
    #[must_use]
    pub fn pod(&self, id: CgroupId) -> Option<PodUid> {
        self.known_pod(id).or_else(|| self.look_everywhere(id).map(|found| found.pod))
    }

    /// The same of one that was met before: one folder is looked at.
    #[must_use]
    pub fn known_pod(&self, id: CgroupId) -> Option<PodUid> {
        let Found { folder, pod } = self.found().get(&id).cloned()?;
        // A cgroup never moves, and its number is never another's; but it may be gone.
        (self.id(&folder) == Some(id)).then_some(pod)
    }

    fn look_everywhere(&self, id: CgroupId) -> Option<Found> {
        let mut all = HashMap::new();
        for root in self.roots() {
            self.walk(root, DEEPEST, &mut |folder, id| {
                if let Some((pod, _)) = folder.pod() {
                    all.insert(id, Found { folder: folder.clone(), pod });
                }
                true
            });
        }
        let found = all.get(&id).cloned();
        *self.found() = all;
        found
    }

    /// Goes through all folders below `from`, to this depth. `each` says whether to go on below one.
    fn walk(&self, from: Folder, deepest: usize, each: &mut impl FnMut(&Folder, CgroupId) -> bool) {
        let mut left = vec![from];
        while let Some(folder) = left.pop() {
            // What ends meanwhile is not there.
            let Ok(entries) = fs::read_dir(self.mount.join(folder.path())) else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let name = entry.file_name();
                let Some(below) = name.to_str().map(|name| folder.with(name)) else { continue };
                if each(&below, CgroupId(entry.ino())) && below.depth() < deepest {
                    left.push(below);
                }
            }
        }
    }

    fn found(&self) -> MutexGuard<'_, HashMap<CgroupId, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a line of `mountinfo` says that cgroups of version 2 are mounted.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    // A space in a path is written as an octal number; no runtime mounts this there.
    mount.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: &str) -> Folder {
        Folder(path.split('/').map(Arc::from).collect())
    }

    const UID: &str = "0f7d8a1c-2b3e-4f50-8192-a3b4c5d6e7f8";
    const ESCAPED: &str = "0f7d8a1c_2b3e_4f50_8192_a3b4c5d6e7f8";

    #[test]
    fn the_uid_is_read_in_every_form_that_kubelet_and_runtimes_give_a_pods_folder() {
        for (path, depth) in [
            (format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-abc.scope"), 2),
            (
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-abc.scope"),
                3,
            ),
            (format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice"), 3),
            (format!("kubepods/pod{UID}/abc"), 2),
            (format!("kubepods/burstable/pod{UID}/abc/init.scope"), 3),
            (format!("kubepods/besteffort/pod{UID}/abc"), 3),
            // kind, with either driver; within its node's container, and from outside of it.
            (
                format!(
                    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{ESCAPED}.slice/cri-containerd-abc.scope"
                ),
                4,
            ),
            (format!("kubelet/kubepods/besteffort/pod{UID}/abc"), 4),
            (format!("docker/4711/kubelet/kubepods/pod{UID}/abc"), 5),
            // What the pod names in its own folder is of no matter.
            (format!("kubepods/pod{UID}/abc/kubepods/pod11111111-2b3e-4f50-8192-a3b4c5d6e7f8"), 2),
        ] {
            let (uid, of_pod) = folder(&path).pod().unwrap_or_else(|| panic!("{path}"));
            assert_eq!((uid.as_str(), of_pod.depth()), (UID, depth), "{path}");
            assert!(folder(&path).is_in(&of_pod));
        }
    }

    #[test]
    fn a_static_pods_folder_has_the_hash_of_its_file_for_a_uid() {
        let path = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5f1b4e6b8a2d4c0e9f.slice/cri-containerd-a.scope";
        assert_eq!(folder(path).pod().unwrap().0.as_str(), "5f1b4e6b8a2d4c0e9f");
    }

    #[test]
    fn what_is_in_no_pods_folder_is_no_pods() {
        for path in [
            "kubepods.slice".to_owned(),
            "kubepods.slice/kubepods-burstable.slice".to_owned(),
            "kubepods.slice/cri-containerd-abc.scope".to_owned(),
            "kubepods.slice/kubepods-pod.slice/abc".to_owned(),
            format!("system.slice/pod{UID}"),
            format!("system.slice/containerd.service/pod{UID}/abc"),
            // Another driver's names, another class's, another root's.
            format!("kubepods.slice/pod{UID}/abc"),
            format!("kubepods/kubepods-pod{ESCAPED}.slice/abc"),
            format!("kubepods/guaranteed/pod{UID}"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod{ESCAPED}.slice"),
            format!("kubelet.slice/kubelet-kubepods.slice/kubepods-pod{ESCAPED}.slice"),
            format!("kubepods/burstable/besteffort/pod{UID}"),
            format!("kubepods/pod{UID}x/abc"),
            format!("a/b/c/d/kubepods/pod{UID}"),
        ] {
            assert_eq!(folder(&path).pod(), None, "{path}");
        }
    }

    #[test]
    fn the_mounts_of_version_2_are_told_from_those_of_version_1() {
        let line = "33 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount_point(line), Some("/sys/fs/cgroup/unified".into()));
        let line = "34 24 0:28 / /sys/fs/cgroup/pids rw,relatime shared:10 - cgroup cgroup rw,pids";
        assert_eq!(mount_point(line), None);
    }
}
