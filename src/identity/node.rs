//! What Kubernetes says of our own node: where it is and which instance, read once.
//!
//! Source: [well-known labels](https://kubernetes.io/docs/reference/labels-annotations-taints/); `spec.providerID` has
//! the form that cloud-provider-aws gives it, `aws:///<zone>/<instance id>`.

use std::{collections::BTreeMap, time::Duration};

use kube::Client;
use serde::Deserialize;

use super::NodeName;

const TIME_LIMIT: Duration = Duration::from_secs(5);
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// As much as is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The region's label.
    pub region: Option<String>,
    /// The zone's label.
    pub zone: Option<String>,
    /// The instance id, if the node is one of EC2.
    pub instance_id: Option<String>,
}

/// The node does not say.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// We may not read it, or it is not there.
    #[error("the Node {node} cannot be read: {message}")]
    Refused {
        /// Its name.
        node: NodeName,
        /// What the API server said.
        message: String,
    },
    /// The API server did not answer, or not so that it could be understood.
    #[error("the API server does not say")]
    Unknown,
}

#[derive(Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

/// What the node's object says.
///
/// # Errors
/// When it cannot be read.
pub async fn place(client: &Client, node: &NodeName) -> Result<Place, PlaceError> {
    let request = http::Request::get(format!("/api/v1/nodes/{node}")).body(Vec::new());
    let request = request.map_err(|_| PlaceError::Unknown)?;
    match tokio::time::timeout(TIME_LIMIT, client.request::<Node>(request)).await {
        Ok(Ok(node)) => Ok(node.place()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
            Err(PlaceError::Refused { node: node.clone(), message: status.message.clone() })
        }
        Ok(Err(_)) | Err(_) => Err(PlaceError::Unknown),
    }
}

impl Node {
    fn place(mut self) -> Place {
        let mut label = |name| self.metadata.labels.remove(name).filter(|value| !value.is_empty());
        let instance_id = self.spec.provider_id.as_deref().and_then(|id| {
            let (_, id) = id.strip_prefix("aws://")?.rsplit_once('/')?;
            id.starts_with("i-").then(|| id.to_owned())
        });
        Place { region: label(REGION), zone: label(ZONE), instance_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_the_providers_id_say_where_a_node_is() {
        let place = |text: &str| serde_json::from_str::<Node>(text).unwrap().place();
        assert_eq!(place(r#"{"metadata": {"labels": {"topology.kubernetes.io/zone": ""}}}"#), Place::default());
        let of_ec2 = place(
            r#"{
                "metadata": {"labels": {
                    "topology.kubernetes.io/region": "eu-west-1", "topology.kubernetes.io/zone": "eu-west-1b"
                }},
                "spec": {"providerID": "aws:///eu-west-1b/i-0123456789abcdef0"}
            }"#,
        );
        let [region, zone, instance_id] =
            ["eu-west-1", "eu-west-1b", "i-0123456789abcdef0"].map(|text| Some(text.to_owned()));
        assert_eq!(of_ec2, Place { region, zone, instance_id });
        for id in ["hcloud://123", "aws:///eu-west-1b/fargate-ip-10-0-0-1", "gce://i-1/i-1", ""] {
            let text = format!(r#"{{"metadata": {{}}, "spec": {{"providerID": "{id}"}}}}"#);
            assert_eq!(place(&text), Place::default(), "{id}");
        }
    }
}
