//! `Status` objects: how the API server says no.
//!
//! Reasons, codes and texts are those of `k8s.io/apimachinery/pkg/api/errors`, as a 1.36 server words them.

use http::{Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::http::{Body, full};

/// One refused field of an object or of a request's options.
#[derive(Clone, Debug)]
pub(super) struct FieldError {
    kind: &'static str,
    field: &'static str,
    body: String,
}

impl FieldError {
    pub(super) fn invalid(field: &'static str, value: impl std::fmt::Display, detail: &str) -> Self {
        Self { kind: "FieldValueInvalid", field, body: format!("Invalid value: {value}: {detail}") }
    }

    pub(super) fn required(field: &'static str, detail: &str) -> Self {
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        Self { kind: "FieldValueRequired", field, body: format!("Required value{detail}") }
    }

    pub(super) fn forbidden(field: &'static str, detail: &str) -> Self {
        Self { kind: "FieldValueForbidden", field, body: format!("Forbidden: {detail}") }
    }

    pub(super) fn unsupported(field: &'static str, value: impl std::fmt::Debug, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ");
        let body = format!("Unsupported value: {value:?}: supported values: {supported}");
        Self { kind: "FieldValueNotSupported", field, body }
    }
}

/// A failure, as the API server reports it.
#[derive(Clone, Debug)]
pub(super) struct Status {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    continuation: Option<String>,
}

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>, details: Option<Value>) -> Self {
        Self { code, reason, message: message.into(), details, continuation: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message, None)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", None)
    }

    /// `resource` and `name` are empty for a path that is no resource.
    pub(super) fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (qualified(group, resource).as_str(), name) {
            ("", _) => format!("forbidden: {why}"),
            (resource, "") => format!("{resource} is forbidden: {why}"),
            (resource, name) => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(details(group, resource, name)))
    }

    pub(super) fn not_found(resource: &str, name: &str) -> Self {
        Self::not_found_in("", resource, name)
    }

    pub(super) fn not_found_in(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(details(group, resource, name)))
    }

    pub(super) fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message, Some(details(group, resource, name)))
    }

    /// No such resource in a group that is served.
    pub(super) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message, Some(json!({})))
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message, Some(json!({})))
    }

    pub(super) fn not_acceptable(message: impl Into<String>, details: Option<Value>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message, details)
    }

    pub(super) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message, None)
    }

    /// A patch of a form that is not served.
    pub(super) fn unsupported_patch() -> Self {
        let message = "415: Unsupported Media Type";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message, Some(json!({})))
    }

    /// A patch of a good form that cannot be made on the object as it is.
    pub(super) fn patch_does_not_apply() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(json!({})))
    }

    pub(super) fn conflict(group: &str, kind: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, kind));
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(details(group, kind, name)))
    }

    pub(super) fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts = errors.iter().map(|error| format!("{}: {}", error.field, error.body)).collect::<Vec<_>>();
        // What is found twice is said once.
        texts.dedup();
        let text = match texts.as_slice() {
            [text] => text.clone(),
            texts => format!("[{}]", texts.join(", ")),
        };
        let causes = errors
            .iter()
            .map(|error| json!({ "reason": error.kind, "message": error.body, "field": error.field }))
            .collect::<Vec<_>>();
        let mut details = details(group, kind, name);
        details["causes"] = causes.into();
        let message = format!("{} {name:?} is invalid: {text}", qualified(group, kind));
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, Some(details))
    }

    /// History that was asked for is gone.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message, None)
    }

    /// As [`expired`](Self::expired), with a token that continues from the present state, inconsistently.
    pub(super) fn expired_continue(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        Self { continuation: Some(token), ..Self::expired(message) }
    }

    /// A resource version from the future, waited for in vain.
    pub(super) fn too_large_resource_version(wanted: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let causes = json!([{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }]);
        let details = json!({ "causes": causes, "retryAfterSeconds": 1 });
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message, Some(details))
    }

    /// An error that the API server has no reason for.
    pub(super) fn unclassified(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message, None)
    }

    pub(super) fn internal(why: &str) -> Self {
        let message = format!("Internal error occurred: {why}");
        let details = json!({ "causes": [{ "message": why }] });
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message, Some(details))
    }

    /// Any other code, for faults that tests ask for.
    pub(super) fn fault(code: StatusCode) -> Self {
        match code {
            StatusCode::INTERNAL_SERVER_ERROR => Self::internal("etcdserver: request timed out"),
            StatusCode::SERVICE_UNAVAILABLE => {
                Self::new(code, "ServiceUnavailable", "apiserver is shutting down", None)
            }
            StatusCode::UNAUTHORIZED => Self::unauthorized(),
            StatusCode::FORBIDDEN => Self::forbidden("", "", "", "refused by a fault"),
            StatusCode::GONE => Self::expired("The resourceVersion for the provided list is too old."),
            StatusCode::NOT_FOUND => Self::no_such_resource(),
            StatusCode::CONFLICT => Self::new(code, "Conflict", "the object has been modified", None),
            StatusCode::GATEWAY_TIMEOUT => {
                let message = "Timeout: request did not complete within the allotted timeout";
                Self::new(code, "Timeout", message, Some(json!({ "retryAfterSeconds": 0 })))
            }
            code => Self::new(code, "", code.canonical_reason().unwrap_or("fault"), None),
        }
    }

    /// The object, as a body or as a watch's `ERROR` event.
    pub(super) fn object(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        if let Some(token) = &self.continuation {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }

    pub(super) fn response(&self) -> Response<Body> {
        let mut response = json_response(self.code, &self.object());
        let retry_after = self.details.as_ref().and_then(|details| details.get("retryAfterSeconds")?.as_u64());
        if let Some(seconds) = retry_after.filter(|seconds| *seconds > 0) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// An answer in JSON.
pub(super) fn json_response(code: StatusCode, body: &Value) -> Response<Body> {
    typed_response(code, "application/json", format!("{body}\n"))
}

/// An answer of any type.
pub(super) fn typed_response(code: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    response
}

fn qualified(group: &str, kind: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let fields = [("name", name), ("group", group), ("kind", kind)];
    let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
    fields.map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}
