//! Pods on the node's network: each an object in the API and a cgroup, whose programs run in the node's network namespace.

use std::{io, path::Path};

use super::{AWS, DAEMON, DAEMON_POD, NODE, Sandbox, SandboxError};
use crate::{cgroups::Cgroups, kubernetes::NewPod, network::Command};

/// How folders of pods are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folders {
    /// By kubelet's systemd driver.
    Systemd,
    /// By its cgroupfs driver.
    Cgroupfs,
    /// By the systemd driver in a node of kind.
    Kind,
}

/// A pod on the node's network.
#[derive(Clone, Debug)]
pub struct HostPod {
    /// The pod's namespace in Kubernetes.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The folder of its container's cgroup.
    pub container: String,
}

impl Folders {
    /// The folder of a pod, of this class unless it is guaranteed what it asks for.
    #[must_use]
    pub fn pod(self, uid: &str, class: Option<&str>) -> String {
        let escaped = uid.replace('-', "_");
        match (self, class) {
            (Self::Cgroupfs, None) => format!("kubepods/pod{uid}"),
            (Self::Cgroupfs, Some(class)) => format!("kubepods/{class}/pod{uid}"),
            (Self::Systemd, None) => format!("kubepods.slice/kubepods-pod{escaped}.slice"),
            (Self::Systemd, Some(class)) => {
                format!("kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{escaped}.slice")
            }
            (Self::Kind, None) => format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{escaped}.slice"),
            (Self::Kind, Some(class)) => format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{class}.slice/\
                 kubelet-kubepods-{class}-pod{escaped}.slice"
            ),
        }
    }

    /// The folder of a container in that of its pod.
    #[must_use]
    pub fn container(self, pod: &str, id: &str) -> String {
        match self {
            Self::Cgroupfs => format!("{pod}/{id}"),
            Self::Systemd | Self::Kind => format!("{pod}/cri-containerd-{id}.scope"),
        }
    }
}

impl Sandbox {
    /// The node's cgroups, which are made when they are first asked for.
    ///
    /// # Errors
    /// When the kernel has none of version 2.
    pub fn cgroups(&self) -> io::Result<&Cgroups> {
        if self.cgroups.get().is_none() {
            let _ = self.cgroups.set(Cgroups::new()?);
        }
        self.cgroups.get().ok_or_else(|| io::Error::other("no cgroups"))
    }

    /// A running pod of this service account on the node's network, with the cgroup of a burstable pod by systemd.
    ///
    /// # Errors
    /// When the kernel refuses its cgroup.
    pub fn add_host_pod(&self, namespace: &str, name: &str, service_account: &str) -> Result<HostPod, SandboxError> {
        self.add_host_pod_in(namespace, name, service_account, Folders::Systemd, Some("burstable"))
    }

    /// The same with another cgroup.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add_host_pod_in(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        folders: Folders,
        class: Option<&str>,
    ) -> Result<HostPod, SandboxError> {
        let pod = NewPod::new(namespace, name).service_account(service_account).node(NODE).host_network();
        let uid = self.cloud.kubernetes.create_pod(pod);
        self.cloud.kubernetes.run_pod(namespace, name, &self.families().node());
        self.contain(namespace, name, uid, folders, class)
    }

    /// The cgroup of a pod with this UID, whether or not the API server knows it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn contain(
        &self,
        namespace: &str,
        name: &str,
        uid: String,
        folders: Folders,
        class: Option<&str>,
    ) -> Result<HostPod, SandboxError> {
        let container = folders.container(&folders.pod(&uid, class), "4711");
        self.cgroups()?.make(&container)?;
        Ok(HostPod { namespace: namespace.to_owned(), name: name.to_owned(), uid, container })
    }

    /// The daemon's own pod, with a cgroup of this class.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn daemon_pod(&self, class: Option<&str>) -> Result<HostPod, SandboxError> {
        self.contain(DAEMON, DAEMON_POD, self.daemon_uid.clone(), Folders::Systemd, class)
    }

    /// A program in a pod on the node's network, as an unmodified client finds itself.
    ///
    /// # Errors
    /// When the kernel has no cgroups of version 2.
    pub fn in_host_pod(&self, pod: &HostPod, program: &str) -> Result<Command, SandboxError> {
        self.on_node_in(&pod.container, program)
    }

    /// The same in any cgroup of the node's.
    ///
    /// # Errors
    /// When the kernel has no cgroups of version 2.
    pub fn on_node_in(&self, cgroup: &str, program: &str) -> Result<Command, SandboxError> {
        let command = self.cgroups()?.command(self.node(), cgroup, Path::new(program));
        Ok(self.client(command, AWS))
    }

    /// The daemon with `run` in its pod, as [`Sandbox::daemon`]; with a cgroup namespace of its own unless it is privileged.
    /// `program` is the daemon's binary, or another program with arguments that end with it.
    ///
    /// # Errors
    /// When the kernel has no cgroups of version 2.
    pub fn daemon_in(&self, pod: &HostPod, program: &[&Path], privileged: bool) -> Result<Command, SandboxError> {
        let cgroups = self.cgroups()?;
        let (first, arguments) = program.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let command = match privileged {
            true => cgroups.command(self.node(), &pod.container, first),
            false => cgroups.command_as_container(self.node(), &pod.container, first),
        };
        Ok(self.run_flags(command.args(arguments)))
    }
}
