//! A full node, and the cluster around it.

#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod objects;

use std::net::Ipv4Addr;

use sandbox::{
    kubernetes::Resource,
    sandbox::{Pod, Sandbox},
};

use self::objects::{account_at, app, pod_here, role, team};

/// On this node.
pub(crate) const PODS: usize = 250;
pub(crate) const NAMESPACES: usize = 30;
/// Of the large cluster.
pub(crate) const CLUSTER_NODES: usize = 5_000;
pub(crate) const CLUSTER_PODS: usize = 150_000;
pub(crate) const CLUSTER_ACCOUNTS: usize = 50_000;
/// So the large cluster has 2,000 namespaces.
pub(crate) const ACCOUNTS: usize = 25;

/// This node's pods, each with a network and a role of its own, and the service accounts of their namespaces.
pub(crate) fn fill_node(sandbox: &Sandbox) -> anyhow::Result<Vec<Pod>> {
    let kubernetes = &sandbox.cloud.kubernetes;
    for namespace in 0..NAMESPACES {
        kubernetes.create_namespace(&team(namespace), &[]);
    }
    for at in 0..NAMESPACES * ACCOUNTS {
        kubernetes.restore(Resource::ServiceAccounts, account_at(at, 0));
    }
    let pod = |at: usize| {
        let (namespace, name) = (team(at % NAMESPACES), app(at / NAMESPACES));
        let subject = format!("system:serviceaccount:{namespace}:{name}");
        sandbox.cloud.sts.put_role(&role(&namespace, &name), sandbox.trust_policy(&subject))?;
        let address = Ipv4Addr::new(10, 244, 0, u8::try_from(at + 2)?);
        let pod = sandbox.add_pod_at(&namespace, &format!("{name}-7d4b9c6f5d-{at:05}"), &name, address)?;
        kubernetes.restore(Resource::Pods, pod_here(&pod, &name, 0));
        Ok(pod)
    };
    (0..PODS).map(pod).collect()
}

/// The service accounts of all other namespaces.
pub(crate) fn fill_other_namespaces(sandbox: &Sandbox) {
    for at in NAMESPACES * ACCOUNTS..CLUSTER_ACCOUNTS {
        sandbox.cloud.kubernetes.restore(Resource::ServiceAccounts, account_at(at, 0));
    }
}
