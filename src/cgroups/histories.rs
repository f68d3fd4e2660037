//! Sockets, pods and what the API server tells of them, under random histories: real folders, real numbers.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    histories::all,
    identity::{
        Directory, HostPods, Pod, PodUid, ServiceAccountUid, binding::Binding, caller::ServiceAccount,
        policy::NamespacePolicy,
    },
};

const CASES: u64 = 1_000;
const CASES_AT_LENGTH: u64 = 100_000;
const STEPS: usize = 40;

#[test]
fn whatever_happens_a_socket_is_its_makers_pods_or_nobodys() {
    all(CASES, World::live);
}

#[test]
#[ignore = "takes minutes: make test-histories"]
fn a_hundred_thousand_histories_of_sockets() {
    all(CASES_AT_LENGTH, World::live);
}

struct RealPod {
    uid: PodUid,
    host_network: bool,
    folder: PathBuf,
    containers: Vec<PathBuf>,
    ended: bool,
}

struct Socket {
    cgroup: CgroupId,
    /// The pod of the process that made it, and the folder.
    maker: Option<usize>,
    folder: PathBuf,
}

struct World {
    /// On a file system in memory, which gives no number twice either.
    mount: tempfile::TempDir,
    tree: Tree,
    directory: Directory,
    pods: Vec<RealPod>,
    sockets: Vec<Socket>,
    /// What the API server has of each pod, of which the directory may hear late.
    told: Vec<Option<Pod>>,
    next: u32,
}

impl World {
    fn live(random: &mut fastrand::Rng) {
        let mount = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = Tree::at(mount.path().to_owned());
        let (directory, _) = Directory::new(Binding::Required, NamespacePolicy::Off, |_, _| {}, |_, _| {});
        let directory = directory.with_host_pods(HostPods::Served, None);
        let account = ServiceAccount { uid: ServiceAccountUid::from("a"), wishes: Ok(None), require_imdsv2: false };
        directory.reset_accounts(&"team-a".into(), HashMap::from([("web".into(), account)]));
        directory.reset_pods(Vec::new());
        let (pods, sockets, told) = (Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { mount, tree, directory, pods, sockets, told, next: 0 };
        for _ in 0..random.usize(1..STEPS) {
            world.step(random);
            world.check(random);
        }
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        match random.u8(..12) {
            0 | 1 => self.add_pod(random),
            2 => self.add_container(random),
            3 => self.end_container(random),
            4 => self.end_pod(random),
            5..=7 => self.make_socket(random),
            8 => self.make_foreign_socket(random),
            9..=10 => self.tell(random),
            // The watch begins anew.
            _ => {
                self.directory.reset_pods(self.told.iter().flatten().cloned().collect());
            }
        }
    }

    fn add_pod(&mut self, random: &mut fastrand::Rng) {
        self.next += 1;
        let uid = format!("{:08x}-1111-4222-8333-444444444444", self.next);
        let escaped = uid.replace('-', "_");
        let folder = match random.u8(..4) {
            0 => format!("kubepods.slice/kubepods-pod{escaped}.slice"),
            1 => format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice"),
            2 => format!("kubepods/besteffort/pod{uid}"),
            _ => format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice"),
        };
        let folder = self.mount.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        let (uid, host_network) = (PodUid::from(uid), random.u8(..4) > 0);
        let of_api = Pod { host_network, ..Pod::sample(uid.as_str(), &[]) };
        self.told.push(random.bool().then_some(of_api));
        self.pods.push(RealPod { uid, host_network, folder, containers: Vec::new(), ended: false });
    }

    fn some_pod(&self, random: &mut fastrand::Rng) -> Option<usize> {
        (!self.pods.is_empty()).then(|| random.usize(..self.pods.len()))
    }

    fn add_container(&mut self, random: &mut fastrand::Rng) {
        let Some(number) = self.some_pod(random).filter(|number| !self.pods[*number].ended) else { return };
        self.next += 1;
        // A container may name what it makes in its own folder as it likes.
        let other = self.pods[random.usize(..self.pods.len())].uid.clone();
        let mut folder = self.pods[number].folder.join(format!("cri-containerd-{}.scope", self.next));
        if random.u8(..3) == 0 {
            folder = folder.join("kubepods").join(format!("pod{other}")).join("x");
        }
        fs::create_dir_all(&folder).unwrap();
        self.pods[number].containers.push(folder);
    }

    fn end_container(&mut self, random: &mut fastrand::Rng) {
        let Some(number) = self.some_pod(random) else { return };
        if let Some(folder) = self.pods[number].containers.pop() {
            fs::remove_dir(folder).unwrap();
        }
    }

    fn end_pod(&mut self, random: &mut fastrand::Rng) {
        let Some(number) = self.some_pod(random).filter(|number| !self.pods[*number].ended) else { return };
        let pod = &mut self.pods[number];
        pod.ended = true;
        pod.containers.clear();
        fs::remove_dir_all(&pod.folder).unwrap();
        if random.bool() {
            self.told[number] = None;
        }
    }

    fn make_socket(&mut self, random: &mut fastrand::Rng) {
        let Some(number) = self.some_pod(random) else { return };
        let containers = &self.pods[number].containers;
        if !containers.is_empty() {
            let folder = containers[random.usize(..containers.len())].clone();
            self.sockets.push(Socket { cgroup: number_of(&folder), maker: Some(number), folder });
        }
    }

    fn make_foreign_socket(&mut self, random: &mut fastrand::Rng) {
        let uid = self.some_pod(random).map_or_else(|| "none".to_owned(), |number| self.pods[number].uid.to_string());
        // A service that has a folder like a pod's, in its own.
        let below = ["system.slice/kubelet.service".to_owned(), format!("user.slice/a/kubepods/pod{uid}/x")];
        let folder = self.mount.path().join(&below[random.usize(..2)]);
        fs::create_dir_all(&folder).unwrap();
        self.sockets.push(Socket { cgroup: number_of(&folder), maker: None, folder });
    }

    /// The directory hears of a pod what the API server has of it by now.
    fn tell(&mut self, random: &mut fastrand::Rng) {
        let Some(number) = self.some_pod(random) else { return };
        match &mut self.told[number] {
            Some(pod) => {
                pod.finished = pod.finished || random.u8(..8) == 0;
                self.directory.apply_pod(pod.clone());
            }
            None => self.directory.delete_pod(&self.pods[number].uid),
        }
    }

    fn check(&self, random: &mut fastrand::Rng) {
        for socket in &self.sockets {
            let uid = if random.bool() { self.tree.known_pod(socket.cgroup) } else { self.tree.pod(socket.cgroup) };
            let found = uid.and_then(|uid| self.directory.host_pod(&uid));
            let Some(found) = found else { continue };
            let maker = &self.pods[socket.maker.expect("it is no pod's")];
            assert_eq!(found.pod.uid, maker.uid, "another's");
            assert!(maker.host_network, "it is known by its address");
            assert!(!found.pod.finished);
            assert!(socket.folder.exists(), "its cgroup is gone");
        }
        // And who is there, and known to be, is found.
        for socket in &self.sockets {
            let Some(maker) = socket.maker.map(|number| &self.pods[number]) else { continue };
            if socket.folder.exists() && self.directory.host_pod(&maker.uid).is_some() {
                assert_eq!(self.tree.pod(socket.cgroup), Some(maker.uid.clone()));
            }
        }
    }
}

fn number_of(folder: &Path) -> CgroupId {
    use std::os::unix::fs::MetadataExt as _;
    CgroupId(fs::metadata(folder).unwrap().ino())
}
