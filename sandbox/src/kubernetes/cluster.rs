//! What happens in the cluster: the deeds of kubelet, of the controllers and of kubectl.

use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};

use super::{
    Inner, Kubernetes,
    auth::User,
    node,
    objects::{NewPod, PodStatus, annotate, metadata, timestamp},
    resource::Resource,
    status::Status,
    store::Key,
    token,
};
use crate::clock;

impl Kubernetes {
    /// Creates a namespace, with the `default` service account that a controller puts into each; one
    /// that is there gets these annotations instead of those that it has.
    pub fn create_namespace(&self, name: &str, annotations: &[(&str, &str)]) {
        let (key, annotations) = (Key::new(Resource::Namespaces, "", name), owned(annotations));
        self.inner.store.write(&key, |namespace| {
            Some(match namespace {
                Some(namespace) => {
                    let mut namespace = namespace.clone();
                    annotate(&mut namespace, &annotations);
                    namespace
                }
                None => json!({
                    "metadata": metadata(&key, &owned(&[("kubernetes.io/metadata.name", name)]), &annotations),
                    "spec": { "finalizers": ["kubernetes"] },
                    "status": { "phase": "Active" },
                }),
            })
        });
        let default = Key::new(Resource::ServiceAccounts, name, "default");
        self.inner.store.write(&default, |account| {
            Some(account.cloned().unwrap_or_else(|| json!({ "metadata": metadata(&default, &[], &[]) })))
        });
    }

    /// Creates a service account, or gives one that is there these annotations instead of those that
    /// it has; it stays the same account then. The namespace is created if it is not there.
    pub fn apply_service_account(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) {
        self.ensure_namespace(namespace);
        let (key, annotations) = (Key::new(Resource::ServiceAccounts, namespace, name), owned(annotations));
        self.inner.store.write(&key, |account| {
            let account = account.cloned();
            let mut account = account.unwrap_or_else(|| json!({ "metadata": metadata(&key, &[], &[]) }));
            annotate(&mut account, &annotations);
            Some(account)
        });
    }

    /// Deletes a service account; its tokens are void from now on.
    pub fn delete_service_account(&self, namespace: &str, name: &str) {
        self.inner.store.write(&Key::new(Resource::ServiceAccounts, namespace, name), |_| None);
    }

    /// Registers a node, as its kubelet does; one that is there stays as it is.
    pub fn create_node(&self, name: &str) {
        let key = Key::new(Resource::Nodes, "", name);
        self.inner.store.write(&key, |node| {
            let labels = owned(&[("kubernetes.io/hostname", name), ("kubernetes.io/os", "linux")]);
            let new = || json!({ "metadata": metadata(&key, &labels, &[]), "spec": {}, "status": {} });
            Some(node.cloned().unwrap_or_else(new))
        });
    }

    /// Puts labels on a node, as its cloud provider does.
    pub fn label_node(&self, name: &str, labels: &[(&str, &str)]) {
        self.inner.store.write(&Key::new(Resource::Nodes, "", name), |node| {
            let mut node = node?.clone();
            for (key, value) in labels {
                node["metadata"]["labels"][key] = Value::from(*value);
            }
            Some(node)
        });
    }

    /// Gives a node these taints, of `spec.taints`'s form, instead of those that it has.
    pub fn taint_node(&self, name: &str, taints: &Value) {
        self.inner.store.write(&Key::new(Resource::Nodes, "", name), |node| {
            let mut node = node?.clone();
            node["spec"]["taints"] = taints.clone();
            Some(node)
        });
    }

    /// A node's taints; null, if it has none.
    #[must_use]
    pub fn node_taints(&self, name: &str) -> Value {
        let node = self.inner.store.get(&Key::new(Resource::Nodes, "", name));
        node.and_then(|node| node.pointer("/spec/taints").cloned()).unwrap_or_default()
    }

    /// Creates a pod, pending; its UID. Namespace and node are created if they are not there. A pod of
    /// the same name is deleted first, as whatever makes pods of fixed names would do.
    pub fn create_pod(&self, pod: NewPod) -> String {
        self.ensure_namespace(&pod.namespace);
        if let Some(node) = &pod.node {
            self.create_node(node);
        }
        let key = Key::new(Resource::Pods, &pod.namespace, &pod.name);
        self.inner.store.write(&key, |_| None);
        let object = pod.object();
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.inner.store.write(&key, |_| Some(object));
        uid
    }

    /// Says of a pod what its kubelet says; nothing, if it is not there.
    pub fn set_pod_status(&self, namespace: &str, name: &str, status: PodStatus) {
        self.change_pod(namespace, name, |pod| pod["status"] = status.object());
    }

    /// A pod runs and has these addresses.
    pub fn run_pod(&self, namespace: &str, name: &str, pod_ips: &[IpAddr]) {
        self.set_pod_status(namespace, name, PodStatus::running(pod_ips));
    }

    /// Gives a pod these annotations instead of those that it has.
    pub fn annotate_pod(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) {
        self.change_pod(namespace, name, |pod| annotate(pod, &owned(annotations)));
    }

    /// A pod is deleted with this much grace: it has until then to end, and is still there.
    pub fn start_deleting_pod(&self, namespace: &str, name: &str, grace: Duration) {
        self.change_pod(namespace, name, |pod| {
            pod["metadata"]["deletionTimestamp"] = timestamp(clock::now() + grace).into();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace.as_secs().into();
        });
    }

    /// A pod is gone; its tokens are void from now on.
    pub fn delete_pod(&self, namespace: &str, name: &str) {
        self.inner.store.write(&Key::new(Resource::Pods, namespace, name), |_| None);
    }

    /// All Events, as `events.k8s.io/v1` shows them.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let snapshot = self.inner.store.snapshot(Resource::Events, "", None);
        snapshot.map(|now| now.objects.values().map(|event| event.as_ref().clone()).collect()).unwrap_or_default()
    }

    /// A token of a service account for this server, of an hour; or bound to a pod if one is named, and of a
    /// year, as kubelet mounts it into the pod. `None` where a TokenRequest would be refused.
    #[must_use]
    pub fn service_account_token(&self, namespace: &str, name: &str, pod: Option<&str>) -> Option<String> {
        let bound = pod.map(|pod| json!({ "kind": "Pod", "apiVersion": "v1", "name": pod }));
        let life = if pod.is_some() { token::KUBELET_SECONDS } else { 3600 };
        let request = json!({ "spec": { "boundObjectRef": bound, "expirationSeconds": life } });
        self.create_token(namespace, name, request.to_string().as_bytes(), None)
            .ok()
            .and_then(|answer| Some(answer.pointer("/status/token")?.as_str()?.to_owned()))
    }

    /// A token of a pod's service account for this audience, bound to the pod, as kubelet projects it. `None` where a
    /// TokenRequest would be refused.
    #[must_use]
    pub fn projected_token(&self, namespace: &str, account: &str, pod: &str, audience: &str) -> Option<String> {
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod });
        let spec = json!({ "audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600 });
        let answer =
            self.create_token(namespace, account, json!({ "spec": spec }).to_string().as_bytes(), None).ok()?;
        answer.pointer("/status/token")?.as_str().map(str::to_owned)
    }

    /// `user`: who asks by a request; none: nobody whose rights matter, nor is anything corrupted.
    pub(super) fn create_token(
        &self,
        namespace: &str,
        name: &str,
        body: &[u8],
        user: Option<&User>,
    ) -> Result<Value, Status> {
        let Inner { store, issuer, access, faults, .. } = &*self.inner;
        let corruption = faults.corruption().filter(|_| user.is_some());
        token::create(store, issuer, corruption, (namespace, name), body, |request| match user {
            Some(user) => node::admit(user, access, store, (namespace, name), request),
            None => Ok(()),
        })
    }

    /// Writes an object as it is given, with all that controllers and clients have left in it, as from a backup.
    pub fn restore(&self, resource: Resource, object: Value) {
        self.inner.store.write(&Key::of(resource, &object), |_| Some(object));
    }

    /// An object of any kind is gone at once; the namespace is empty for what has none.
    pub fn remove(&self, resource: Resource, namespace: &str, name: &str) {
        self.inner.store.write(&Key::new(resource, namespace, name), |_| None);
    }

    fn ensure_namespace(&self, name: &str) {
        if self.inner.store.get(&Key::new(Resource::Namespaces, "", name)).is_none() {
            self.create_namespace(name, &[]);
        }
    }

    fn change_pod(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        self.inner.store.write(&Key::new(Resource::Pods, namespace, name), |pod| {
            let mut pod = pod?.clone();
            change(&mut pod);
            Some(pod)
        });
    }
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
