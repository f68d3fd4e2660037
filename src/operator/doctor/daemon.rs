//! The daemon on the cluster's nodes, and who else there answers for the metadata service. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{checks, report::Report};
use crate::operator::{
    inventory::{Inventory, Node},
    settings::Settings,
};

/// Labels of nodes on which no DaemonSet runs, as the chart has them.
const WITHOUT: [(&str, &str); 2] = [("eks.amazonaws.com/compute-type", "fargate"), ("type", "virtual-kubelet")];
/// The agent's addresses.
const OF_AGENT: [&str; 2] = ["169.254.170.23", "fd00:ec2::23"];

/// What follows from the DaemonSets, the nodes and the daemon's pods.
pub(super) fn look(inventory: &Inventory, settings: &Settings, report: &mut Report) {
    others(inventory, settings, report);
    let Ok(_) = &inventory.daemon_sets else { return };
    let Some(set) = inventory.daemon() else {
        return report.find(
            &checks::DAEMON_MISSING,
            "no DaemonSet is kube2irsa's",
            "install it: docs/install-eks.md, docs/install-off-eks.md",
        );
    };
    let name = format!("DaemonSet {}", set.metadata.full_name());
    if settings.removes {
        report.find(
            &checks::DAEMON_IDLE,
            format!("{name} takes the rules out (mode: remove)"),
            "end the uninstall with helm uninstall, or set mode: run",
        );
    } else if settings.intercept == "observe" {
        report.find(
            &checks::DAEMON_IDLE,
            format!("{name} only observes (mode: observe)"),
            "set mode: run in the chart's values",
        );
    }
    if inventory.pods.is_err() {
        return;
    }
    let pods = inventory.daemon_pods();
    let namespace = &set.metadata.namespace;
    for node in inventory.nodes.iter().flatten().filter(|node| is_for(inventory, node)) {
        let node = &node.metadata.name;
        if !pods.iter().any(|pod| pod.spec.node_name == *node) {
            report.find(
                &checks::DAEMON_ABSENT,
                format!("Node {node} has no pod of {name}"),
                format!("kubectl -n {namespace} describe daemonset {}", set.metadata.name),
            );
        }
    }
    for pod in pods.iter().filter(|pod| !pod.is_ready()) {
        // Of two on a node, the next is to take over from the other.
        if pods.iter().any(|other| other.spec.node_name == pod.spec.node_name && other.is_ready()) {
            continue;
        }
        let pod_name = &pod.metadata.name;
        report.find(
            &checks::DAEMON_NOT_READY,
            format!("Pod {} on Node {} is not ready", pod.metadata.full_name(), pod.spec.node_name),
            format!("kubectl -n {namespace} exec {pod_name} -- kube2irsa doctor"),
        );
    }
    let mut images = BTreeMap::<&str, usize>::new();
    for container in pods.iter().filter_map(|pod| pod.containers().last()) {
        *images.entry(&container.image).or_default() += 1;
    }
    if images.len() > 1 {
        let images = images.iter().map(|(image, count)| format!("{image} ({count})")).collect::<Vec<_>>();
        report.find(
            &checks::DAEMON_VERSIONS,
            format!("pods of {name} run {}", images.join(" and ")),
            format!("kubectl -n {namespace} rollout status daemonset {}", set.metadata.name),
        );
    }
}

/// Whether the DaemonSet is for this node.
pub(crate) fn is_for(inventory: &Inventory, node: &Node) -> bool {
    let labels = &node.metadata.labels;
    let wanted = inventory.daemon().map(|set| &set.spec.template.spec.node_selector);
    wanted.is_none_or(|wanted| wanted.iter().all(|(label, value)| labels.get(label) == Some(value)))
        && !WITHOUT.iter().any(|(label, value)| labels.get(*label).is_some_and(|has| has == value))
}

/// Whether an image is of a program of this name, whatever the registry and the version.
fn is_image_of(image: &str, program: &str) -> bool {
    let path = image.split('@').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split(':').next() == Some(program)
}

fn others(inventory: &Inventory, settings: &Settings, report: &mut Report) {
    let mut agents = BTreeSet::new();
    let mut interceptors = BTreeSet::new();
    let sets = inventory.daemon_sets.iter().flatten().map(|set| {
        (
            format!("DaemonSet {}", set.metadata.full_name()),
            &set.metadata,
            set.spec.template.spec.containers().collect(),
        )
    });
    // Pods that no DaemonSet is seen for: the right to list those may be missing.
    let pods = inventory.pods.iter().flatten().filter(|pod| inventory.daemon_sets.is_err() && !pod.is_over());
    let pods = pods
        .map(|pod| (format!("Pod {}", pod.metadata.full_name()), &pod.metadata, pod.containers().collect::<Vec<_>>()));
    for (what, metadata, containers) in sets.chain(pods) {
        for container in containers {
            // kiam's server has the same image, and is no interceptor.
            let is_kiam = is_image_of(&container.image, "kiam") && !metadata.name.contains("server");
            if is_image_of(&container.image, "kube2iam") || is_kiam {
                interceptors.insert((what.clone(), container.image.clone(), metadata.namespace.clone()));
            }
            if is_image_of(&container.image, "eks-pod-identity-agent") {
                agents.insert(what.clone());
            }
        }
    }
    for (what, image, namespace) in interceptors {
        let object = what.to_lowercase();
        let object = object.split('/').next_back().unwrap_or_default().to_owned();
        let kind = if what.starts_with("Pod") { "pod" } else { "daemonset" };
        report.find(
            &checks::FOREIGN,
            format!("{what} runs {image}"),
            match inventory.daemon().is_some() && settings.serves() {
                true => format!(
                    "once we serve every node and its pods' roles are annotated, not before: kubectl -n {namespace} delete {kind} {object} (docs/migrate.md)"
                ),
                false => "nothing yet: its pods need it until we serve them (docs/migrate.md)".to_owned(),
            },
        );
    }
    let named = settings.container_endpoints.iter().map(ToString::to_string);
    let named = named.filter(|address| OF_AGENT.contains(&address.as_str())).collect::<Vec<_>>();
    for agent in agents {
        if named.is_empty() {
            report.find(
                &checks::POD_IDENTITY,
                format!("{agent} is EKS Pod Identity's agent"),
                "nothing is to be done where both are wanted: aws eks list-pod-identity-associations names its pods",
            );
        } else {
            report.find(
                &checks::POD_IDENTITY_CONFLICT,
                format!("{agent} and --container-endpoints {} answer at the same address", named.join(",")),
                "take it out of flags.container-endpoints, or remove the add-on: aws eks delete-addon",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_images_name() {
        for (image, program, is) in [
            ("jtblin/kube2iam:0.11", "kube2iam", true),
            ("quay.io/uswitch/kiam:v4", "kiam", true),
            ("registry.example.com:5000/a/kube2iam@sha256:00", "kube2iam", true),
            ("registry.example.com:5000/kube2iam-exporter:1", "kube2iam", false),
            (
                "602401143452.dkr.ecr.eu-central-1.amazonaws.com/eks/eks-pod-identity-agent:0.1",
                "eks-pod-identity-agent",
                true,
            ),
            ("example.com/main", "kiam", false),
        ] {
            assert_eq!(is_image_of(image, program), is, "{image}");
        }
    }
}
