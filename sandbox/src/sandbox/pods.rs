//! Pods: each an object in the API and a network, which come and go as with kubelet, or apart.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::Ordering,
    time::Duration,
};

use super::{NODE, Sandbox, SandboxError};
use crate::{
    kubernetes::NewPod,
    network::{Namespace, Pod as PodLink, PodAddresses},
};

/// What a pod is given to end, as by default.
const GRACE: Duration = Duration::from_secs(30);

/// A pod: its object in the API, and its namespace.
#[derive(Debug)]
pub struct Pod {
    /// The pod's namespace in Kubernetes.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    link: PodLink,
}

impl Pod {
    /// The pod's first address: `status.podIP`.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.link.address()
    }

    /// The pod's IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.link.address_v6()
    }

    /// All of the pod's addresses: `status.podIPs`.
    #[must_use]
    pub fn addresses(&self) -> PodAddresses {
        self.link.addresses()
    }

    /// The name of the link on the node that leads to the pod.
    #[must_use]
    pub fn host_link(&self) -> &str {
        self.link.host_link()
    }

    /// The pod's network namespace.
    #[must_use]
    pub fn network(&self) -> &Namespace {
        self.link.namespace()
    }
}

impl Sandbox {
    /// A running pod of this service account.
    ///
    /// # Errors
    /// When the kernel refuses its namespace.
    pub fn add_pod(&self, namespace: &str, name: &str, service_account: &str) -> Result<Pod, SandboxError> {
        self.add_pod_at(namespace, name, service_account, self.next_addresses())
    }

    /// A pod that runs already, of which kubelet has told nothing yet: the API server knows no address of it.
    ///
    /// # Errors
    /// When the kernel refuses its namespace.
    pub fn start_pod(&self, namespace: &str, name: &str, service_account: &str) -> Result<Pod, SandboxError> {
        self.start_pod_at(namespace, name, service_account, self.next_addresses())
    }

    fn start_pod_at(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        addresses: PodAddresses,
    ) -> Result<Pod, SandboxError> {
        let link = self.network.add_pod(addresses)?;
        let uid = self.create_pod(namespace, name, service_account);
        Ok(Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid, link })
    }

    fn next_addresses(&self) -> PodAddresses {
        self.families().pod(self.next_address.fetch_add(1, Ordering::Relaxed))
    }

    /// The same, at these addresses.
    ///
    /// # Errors
    /// When the kernel refuses its namespace.
    pub fn add_pod_at(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        addresses: impl Into<PodAddresses>,
    ) -> Result<Pod, SandboxError> {
        let pod = self.start_pod_at(namespace, name, service_account, addresses.into())?;
        self.cloud.kubernetes.run_pod(namespace, name, &pod.addresses().to_vec());
        Ok(pod)
    }

    /// A pod that the API server knows and that kubelet has not started: it has no address. Returns its UID.
    pub fn create_pod(&self, namespace: &str, name: &str, service_account: &str) -> String {
        let pod = NewPod::new(namespace, name).service_account(service_account).node(NODE);
        self.cloud.kubernetes.create_pod(pod)
    }

    /// The pod ends: first its namespace, as with kubelet, then its object.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_pod(&self, pod: Pod) -> Result<(), SandboxError> {
        let Pod { namespace, name, link, .. } = pod;
        self.cloud.kubernetes.start_deleting_pod(&namespace, &name, GRACE);
        link.remove()?;
        self.cloud.kubernetes.delete_pod(&namespace, &name);
        Ok(())
    }

    /// The pod's network ends as kubelet ends it; the API server is told nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_network(&self, pod: Pod) -> Result<(), SandboxError> {
        Ok(pod.link.remove()?)
    }

    /// The pod's network is made anew at the same addresses, as kubelet does when its sandbox has died; the API
    /// server is told nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn renew_network(&self, pod: Pod) -> Result<Pod, SandboxError> {
        let Pod { namespace, name, uid, link } = pod;
        let addresses = link.addresses();
        link.remove()?;
        Ok(Pod { namespace, name, uid, link: self.network.add_pod(addresses)? })
    }
}
