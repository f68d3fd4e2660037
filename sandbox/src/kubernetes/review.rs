//! SelfSubjectAccessReview: what the caller may do, by the same rules as its requests.
//!
//! Everybody who is let in may ask (`system:basic-user`). A real server also says by which binding something is allowed.

use serde_json::{Value, json};

use super::{
    access::{Access, Attributes},
    auth::User,
    decode::{self, Fields},
    status::{FieldError, Status},
};

pub(super) const GROUP: &str = "authorization.k8s.io";
pub(super) const RESOURCE: &str = "selfsubjectaccessreviews";
const KIND: &str = "SelfSubjectAccessReview";
/// What Go calls its parts.
const STRUCTS: [(&str, &str); 3] = [
    ("/spec", "SelfSubjectAccessReviewSpec"),
    ("/spec/resourceAttributes", "ResourceAttributes"),
    ("/spec/nonResourceAttributes", "NonResourceAttributes"),
];

/// Answers whether the user may do what is asked.
pub(super) fn create(access: &Access, user: &User, body: &[u8]) -> Result<Value, Status> {
    let given = decode::object(body, KIND)?;
    let fields = Fields::new(&given, KIND, &STRUCTS);
    for (pointer, go_type) in [
        ("/spec", "v1.SelfSubjectAccessReviewSpec"),
        ("/spec/resourceAttributes", "v1.ResourceAttributes"),
        ("/spec/nonResourceAttributes", "v1.NonResourceAttributes"),
    ] {
        fields.field(pointer, go_type, |value| value.is_object().then_some(()))?;
    }
    let is_there = |pointer: &str| given.pointer(pointer).is_some_and(|value| !value.is_null());
    let of_resource = is_there("/spec/resourceAttributes");
    if of_resource == is_there("/spec/nonResourceAttributes") {
        let (field, value, detail) = match of_resource {
            false => (
                "spec.resourceAttributes",
                "null",
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ),
            true => {
                ("spec.nonResourceAttributes", "\"\"", "cannot be specified in combination with resourceAttributes")
            }
        };
        // A real server names no kind here.
        return Err(Status::invalid(GROUP, "", "", &[FieldError::invalid(field, value, detail)]));
    }
    let allowed = if of_resource {
        let text = |field: &str| fields.text(&format!("/spec/resourceAttributes/{field}"));
        let (verb, group, namespace, name) = (text("verb")?, text("group")?, text("namespace")?, text("name")?);
        let resource = match (text("resource")?, text("subresource")?) {
            (resource, subresource) if subresource.is_empty() => resource,
            (resource, subresource) => format!("{resource}/{subresource}"),
        };
        let wanted = Attributes {
            verb: &verb,
            group: &group,
            resource: &resource,
            namespace: &namespace,
            name: &name,
            ..Attributes::default()
        };
        access.check(user, wanted, "").is_ok()
    } else {
        let (verb, path) =
            (fields.text("/spec/nonResourceAttributes/verb")?, fields.text("/spec/nonResourceAttributes/path")?);
        access.check(user, Attributes { verb: &verb, path: &path, ..Attributes::default() }, "").is_ok()
    };
    Ok(json!({
        "kind": KIND,
        "apiVersion": format!("{GROUP}/v1"),
        "metadata": {},
        "spec": given["spec"],
        "status": { "allowed": allowed },
    }))
}
