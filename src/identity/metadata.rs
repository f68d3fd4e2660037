//! The part of an object's metadata that we read.
//!
//! Most of what the API server sends of an object is `managedFields`. To keep it, if only while a list is read,
//! would be most of this process's memory.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// An object of which only this part of the metadata is read.
#[derive(Deserialize)]
#[serde(bound = "")]
pub(super) struct MetadataOf<K> {
    #[serde(default, deserialize_with = "read")]
    pub(super) metadata: ObjectMeta,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slim {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The metadata without all else.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        annotations: slim.annotations,
        ..ObjectMeta::default()
    })
}

impl<K> Clone for MetadataOf<K> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), kind: PhantomData }
    }
}

impl<K> fmt::Debug for MetadataOf<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.metadata.fmt(f)
    }
}

impl<K: Resource<DynamicType = ()>> Resource for MetadataOf<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceAccount;
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_kept_that_is_not_needed() {
        let object = serde_json::from_value::<MetadataOf<ServiceAccount>>(json!({
            "metadata": {"name": "web", "uid": "u", "resourceVersion": "7", "annotations": {"a": "b"}, "labels": {"c": "d"},
                "managedFields": [{"manager": "helm", "fieldsV1": {"f:metadata": {}}}], "generation": null},
            "secrets": [{"name": "web-token"}],
        }));
        let kept = ObjectMeta {
            name: Some("web".to_owned()),
            uid: Some("u".to_owned()),
            resource_version: Some("7".to_owned()),
            annotations: Some(BTreeMap::from([("a".to_owned(), "b".to_owned())])),
            ..ObjectMeta::default()
        };
        assert_eq!(object.unwrap().metadata, kept);
    }
}
