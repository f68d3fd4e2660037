//! What a client accepts, and the forms an object can be answered in.
//!
//! JSON only: a real server also speaks YAML, protobuf and, for tables, its own form of JSON. A
//! clause of the `Accept` header that asks for one of those is passed over, as a real server passes
//! over what it does not know; if nothing is left, the answer is 406.

use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::{resource::Resource, status::Status};

const MEDIA_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAM_TYPES: &str = ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// How an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `PartialObjectMetadataList`.
    MetadataList,
}

struct Clause<'a> {
    media_type: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Form {
    /// `streams` is whether the endpoint can also be watched.
    pub(super) fn negotiate(headers: &HeaderMap, streams: bool) -> Result<Self, Status> {
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept = accept.collect::<Vec<_>>().join(",");
        if accept.is_empty() {
            return Ok(Self::Full);
        }
        let mut clauses = accept.split(',').map(Clause::parse).collect::<Vec<_>>();
        clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
        let json = |clause: &&Clause<'_>| matches!(clause.media_type, "application/json" | "*/*");
        if !clauses.iter().any(|clause| json(&clause)) {
            let streams = if streams { STREAM_TYPES } else { "" };
            let message = format!("406: Not Acceptable\n\nAvailable representations: {MEDIA_TYPES}{streams}");
            return Err(Status::not_acceptable(message, Some(json!({}))));
        }
        clauses.iter().filter(json).find_map(Clause::form).ok_or_else(|| {
            let message = format!("only the following media types are accepted: {MEDIA_TYPES}");
            Status::not_acceptable(message, None)
        })
    }

    /// One object as the answer to a request for it.
    pub(super) fn object(self, resource: Resource, object: &Value) -> Result<Value, Status> {
        let kind = resource.kind();
        self.typed(typed(object, kind, resource.api_version()), &format!("{}.{kind}", resource.go_package()))
    }

    /// An object that carries its kind, which is `go_type` to the server.
    pub(super) fn typed(self, object: Value, go_type: &str) -> Result<Value, Status> {
        match self {
            Self::Full => Ok(object),
            Self::Metadata => Ok(metadata_only(&object)),
            Self::MetadataList => Err(Status::not_acceptable(
                format!("you requested PartialObjectMetadataList, but the requested object is not a list (*{go_type})"),
                None,
            )),
        }
    }

    /// A list; the items of a full one carry no kind of their own.
    pub(super) fn list<'a>(
        self,
        resource: Resource,
        metadata: Value,
        items: impl Iterator<Item = &'a Value>,
    ) -> Result<Value, Status> {
        match self {
            Self::Full => {
                let kind = format!("{}List", resource.kind());
                let items = items.cloned().collect::<Vec<_>>();
                Ok(json!({ "kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items }))
            }
            Self::MetadataList => Ok(json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": items.map(metadata_only).collect::<Vec<_>>(),
            })),
            Self::Metadata => Err(Status::not_acceptable(
                format!(
                    "you requested PartialObjectMetadata, but the requested object is a list (*{}.{}List)",
                    resource.go_package(),
                    resource.kind()
                ),
                None,
            )),
        }
    }
}

impl<'a> Clause<'a> {
    fn parse(clause: &'a str) -> Self {
        let mut parts = clause.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let mut parameters = parts.filter_map(|part| part.split_once('=')).collect::<Vec<_>>();
        let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
        parameters.retain(|(key, _)| *key != "q");
        Self { media_type, quality, parameters }
    }

    /// The form that the clause asks for; `None` if it is not served.
    fn form(&self) -> Option<Form> {
        let parameter = |name| self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        if parameter("stream").is_some_and(|stream| stream != "watch") {
            return None;
        }
        match (parameter("as"), parameter("g"), parameter("v")) {
            (None, None, None) => Some(Form::Full),
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), Some("v1")) => Some(Form::Metadata),
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1")) => Some(Form::MetadataList),
            _ => None,
        }
    }
}

fn typed(object: &Value, kind: &str, api_version: &str) -> Value {
    let mut object = object.clone();
    object["kind"] = kind.into();
    object["apiVersion"] = api_version.into();
    object
}

fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}
