//! Patches of Nodes, as JSON Patch (RFC 6902): `test` of any field, and `remove` of taints.
//!
//! A real server takes all of that RFC, and three other forms: these are refused here as forms that nobody knows, and other
//! operations with a text of our own. An operation that does not fit the Node as it is refuses the whole patch.

use serde::Deserialize;
use serde_json::Value;

use super::{
    decode,
    resource::Resource,
    status::Status,
    store::{Key, Store},
};

#[derive(Deserialize)]
struct Operation {
    #[serde(default)]
    op: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    value: Value,
}

/// Patches a Node, and returns it.
pub(super) fn node(store: &Store, name: &str, patch: &[u8]) -> Result<Value, Status> {
    let operations = operations(patch)?;
    let key = Key::new(Resource::Nodes, "", name);
    let not_found = || Status::not_found(Resource::Nodes.name(), name);
    let mut refusal = None;
    store.write(&key, |present| {
        let mut node = present?.clone();
        refusal = operations.iter().try_for_each(|operation| operation.apply(&mut node)).err();
        match refusal {
            Some(_) => present.cloned(),
            None => Some(without_empty_taints(node)),
        }
    });
    match (refusal, store.get(&key)) {
        (Some(refusal), _) => Err(refusal),
        (None, Some(node)) => Ok(node.as_ref().clone()),
        (None, None) => Err(not_found()),
    }
}

fn operations(patch: &[u8]) -> Result<Vec<Operation>, Status> {
    let refuse = |why: &str| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = serde_json::from_slice::<Value>(patch).map_err(|error| refuse(&error.to_string()))?;
    if !patch.is_array() {
        let given = decode::type_name(&patch);
        return Err(refuse(&format!("json: cannot unmarshal {given} into Go value of type []handlers.jsonPatchOp")));
    }
    let operations = serde_json::from_value::<Vec<Operation>>(patch).map_err(|error| refuse(&error.to_string()))?;
    let is_taken = |operation: &&Operation| match operation.op.as_str() {
        "test" => true,
        "remove" => operation.path.strip_prefix("/spec/taints/").is_some_and(|place| !place.contains('/')),
        _ => false,
    };
    match operations.iter().find(|operation| !is_taken(operation)) {
        Some(Operation { op, path, .. }) => Err(Status::bad_request(format!("{op} of {path:?} is not taken here"))),
        None => Ok(operations),
    }
}

/// As it is stored.
fn without_empty_taints(mut node: Value) -> Value {
    if node.pointer("/spec/taints").and_then(Value::as_array).is_some_and(Vec::is_empty)
        && let Some(spec) = node["spec"].as_object_mut()
    {
        spec.remove("taints");
    }
    node
}

// === impl Operation ===

impl Operation {
    fn apply(&self, node: &mut Value) -> Result<(), Status> {
        let (parent, field) = self.path.rsplit_once('/').ok_or_else(Status::patch_does_not_apply)?;
        let parent = node.pointer_mut(parent).ok_or_else(Status::patch_does_not_apply)?;
        let fits = match (self.op.as_str(), parent) {
            ("test", parent) => match parent.get(field).or_else(|| parent.get(field.parse::<usize>().ok()?)) {
                Some(found) => *found == self.value,
                None => false,
            },
            (_, Value::Array(taints)) => match field.parse::<usize>() {
                Ok(place) if place < taints.len() => {
                    taints.remove(place);
                    true
                }
                _ => false,
            },
            _ => false,
        };
        if fits { Ok(()) } else { Err(Status::patch_does_not_apply()) }
    }
}
