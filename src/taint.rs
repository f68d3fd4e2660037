//! The start-up taint: a node that is made with it is given no pods until we are ready there and take it off.
//!
//! Owns the looks at our own Node and the removal. Invariants: nothing is removed while we are not ready; nothing of the
//! Node changes but taints with our key, whatever others write at the same time; and nothing depends on it: what fails is
//! said once, counted and tried again.
//!
//! The Node is read with the power that is in force ([`Access`]), and patched as ourselves: the admission plugin
//! NodeRestriction lets no node change its own taints.

use std::{sync::Arc, time::Duration};

use http::{Request, header::CONTENT_TYPE};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{identity::NodeName, metrics::Metrics, token::access::Access};

/// Where a node that has lost its object and is registered anew gets its pods within minutes. Of thousands of nodes, that
/// is some questions a second, and not the copy of every change of its Node that a watch would be sent.
pub const LOOK_AGAIN: Duration = Duration::from_secs(300);

const KEY: &str = "kube2irsa.io/not-ready";
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// How often it is seen whether we are ready.
const READY_AGAIN: Duration = Duration::from_millis(50);
/// Pauses between tries double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So many changes of the taints under our hands may be others' writes, and are not worth a word.
const CONFLICTS: u32 = 3;

/// Takes the taint off our node.
pub struct Remover<R> {
    /// Which power our Node is read with.
    pub access: Arc<Access>,
    /// As ourselves.
    pub own: Client,
    /// This node.
    pub node: NodeName,
    /// Whether we are ready.
    pub ready: R,
    /// Told what came of it.
    pub metrics: Arc<Metrics>,
    /// Between two looks.
    pub look_again: Duration,
}

impl<R> std::fmt::Debug for Remover<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remover").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The taint is still there, or may be.
#[derive(Debug, thiserror::Error)]
enum TaintError {
    #[error(
        "{0}; apply the chart with startupTaint.enabled, or the start-up taint's file of daemonset/manifests/ for the mode of \
         token access"
    )]
    Forbidden(String),
    #[error("others change the node's taints at the same time")]
    Conflict,
    #[error("{0}")]
    Failed(String),
}

/// What came instead of an answer.
struct Refusal {
    /// None: nothing came.
    code: Option<u16>,
    /// Whether it is the Node that is refused, and not the request.
    names_node: bool,
    words: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Taint>,
}

#[derive(Deserialize)]
struct Taint {
    key: String,
}

// === impl Remover ===

impl<R: Fn() -> bool> Remover<R> {
    /// Removes the taint whenever we are ready and it is there; never ends.
    pub async fn run(self) {
        let mut failures = 0_u32;
        let mut told = false;
        loop {
            while !(self.ready)() {
                sleep(READY_AGAIN).await;
            }
            let pause = match self.look().await {
                Ok(removed) => {
                    if removed {
                        self.count("removed");
                        tracing::info!("the taint {KEY} is removed from {}: pods may come", self.node);
                    }
                    (failures, told) = (0, false);
                    self.look_again
                }
                Err(error) => {
                    self.count(error.label());
                    failures = failures.saturating_add(1);
                    let passing = matches!(error, TaintError::Conflict) && failures < CONFLICTS;
                    if !passing && !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "the taint {KEY} cannot be removed from {}, and is tried again: {error}",
                            self.node
                        );
                    }
                    FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE)
                }
            };
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Whether the taint was there, and is removed.
    async fn look(&self) -> Result<bool, TaintError> {
        let path = format!("/api/v1/nodes/{}", self.node);
        let client = self.access.client().await.1;
        let node = ask(&client, "GET", &path, None).await.map_err(TaintError::not_read)?;
        let node = serde_json::from_str::<Node>(&node);
        let node = node.map_err(|_| TaintError::Failed("the form of the Node is not understood".to_owned()))?;
        let Some(patch) = removal(&node.spec.taints) else { return Ok(false) };
        let path = format!("{path}?fieldManager=kube2irsa");
        ask(&self.own, "PATCH", &path, Some(&patch)).await.map_err(TaintError::not_patched)?;
        Ok(true)
    }

    fn count(&self, result: &str) {
        self.metrics.startup_taint_removals.with_label_values(&[result]).inc();
    }
}

/// The patch that removes all taints of ours; none, if there are none.
///
/// Each is removed by its place, if it is in that place still: else the whole patch is refused (RFC 6902). The API server
/// makes it on the Node as it is then, so that no write of anybody else's is undone. A patch with the Node's
/// `resourceVersion` would keep them too, but would be refused for each word that kubelet writes of a node that starts.
/// From the last to the first, so that no place moves.
fn removal(taints: &[Taint]) -> Option<Value> {
    let ours = taints.iter().enumerate().rev().filter(|(_, taint)| taint.key == KEY);
    let operations = ours.flat_map(|(place, _)| {
        [
            json!({ "op": "test", "path": format!("/spec/taints/{place}/key"), "value": KEY }),
            json!({ "op": "remove", "path": format!("/spec/taints/{place}") }),
        ]
    });
    let operations = operations.collect::<Vec<_>>();
    (!operations.is_empty()).then(|| operations.into())
}

async fn ask(client: &Client, method: &str, path: &str, patch: Option<&Value>) -> Result<String, Refusal> {
    let nothing = |why: String| Refusal { code: None, names_node: false, words: why };
    let request = Request::builder().method(method).uri(path);
    let request = match patch {
        Some(patch) => request.header(CONTENT_TYPE, "application/json-patch+json").body(patch.to_string().into_bytes()),
        None => request.body(Vec::new()),
    };
    let request = request.map_err(|error| nothing(error.to_string()))?;
    match timeout(TIME_LIMIT, client.request_text(request)).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(kube::Error::Api(status))) => Err(Refusal {
            code: Some(status.code),
            names_node: status.details.as_ref().is_some_and(|of| !of.name.is_empty()),
            words: format!("{} {}", status.code, status.message),
        }),
        Ok(Err(_)) => Err(nothing("the API server cannot be reached".to_owned())),
        Err(_elapsed) => Err(nothing(format!("the API server did not answer within {} s", TIME_LIMIT.as_secs()))),
    }
}

// === impl TaintError ===

impl TaintError {
    fn not_read(Refusal { code, words, .. }: Refusal) -> Self {
        match code {
            Some(403) => Self::Forbidden(words),
            _ => Self::Failed(words),
        }
    }

    fn not_patched(Refusal { code, names_node, words }: Refusal) -> Self {
        match code {
            Some(403) => Self::Forbidden(words),
            // A taint is not where it was. A policy, whose refusal is 422 too, names the Node.
            Some(422) if !names_node => Self::Conflict,
            Some(409) => Self::Conflict,
            _ => Self::Failed(words),
        }
    }

    /// As a metric's label.
    fn label(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "forbidden",
            Self::Conflict => "conflict",
            Self::Failed(_) => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_taint_of_ours_is_removed_by_its_place_from_the_last_to_the_first_and_no_other_is_named() {
        let taints = |keys: &[&str]| keys.iter().map(|key| Taint { key: (*key).to_owned() }).collect::<Vec<_>>();
        for others in [&[][..], &["a", "kube2irsa.io/not-ready-yet", "kube2irsa.io/"]] {
            assert_eq!(removal(&taints(others)), None, "{others:?}");
        }
        let ours = |place: usize| {
            [
                json!({"op": "test", "path": format!("/spec/taints/{place}/key"), "value": KEY}),
                json!({"op": "remove", "path": format!("/spec/taints/{place}")}),
            ]
        };
        assert_eq!(removal(&taints(&["a", KEY, "b"])), Some(ours(1).to_vec().into()));
        assert_eq!(removal(&taints(&[KEY, "a", KEY])), Some([ours(2), ours(0)].concat().into()));
    }
}
