//! Events: what components say of objects. Here clients write, as nowhere else: create, and patch to go on a series.
//!
//! The refusals and their order are those of `pkg/apis/core/validation/events.go` for `events.k8s.io/v1`; that a
//! server takes one whose `regarding` is in another namespace is so too. A real server forgets them after an hour.

use serde_json::{Map, Value, json};

use super::{
    decode::{self, Fields},
    objects,
    resource::Resource,
    status::{FieldError, Status},
    store::{Key, Store},
};

const KIND: &str = "Event";
const GROUP: &str = "events.k8s.io";
const API_VERSION: &str = "events.k8s.io/v1";
const NAMESPACE_DIFFERS: &str = "the namespace of the provided object does not match the namespace sent on the request";
/// What Go calls its parts.
const STRUCTS: [(&str, &str); 5] = [
    ("/metadata", "ObjectMeta"),
    ("/series", "EventSeries"),
    ("/regarding", "ObjectReference"),
    ("/related", "ObjectReference"),
    ("/deprecatedSource", "EventSource"),
];
const TEXTS: [&str; 6] = ["reason", "note", "type", "action", "reportingController", "reportingInstance"];
const REFERENCE: [&str; 7] = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
const IMMUTABLE: &str = "field is immutable";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Stores a new Event, and returns it.
pub(super) fn create(store: &Store, namespace: &str, body: &[u8]) -> Result<Value, Status> {
    let given = decode::object(body, KIND)?;
    let mut event = decode(&given)?;
    let own = text(&event, "/metadata/namespace");
    if !own.is_empty() && own != namespace {
        return Err(Status::bad_request(NAMESPACE_DIFFERS));
    }
    if store.get(&Key::new(Resource::Namespaces, "", namespace)).is_none() {
        return Err(Status::not_found(Resource::Namespaces.name(), namespace));
    }
    let name = text(&event, "/metadata/name").to_owned();
    let errors = created_errors(&event, namespace);
    if !errors.is_empty() {
        return Err(Status::invalid("", KIND, &name, &errors));
    }
    let key = Key::new(Resource::Events, namespace, &name);
    if let (Some(given), Value::Object(new)) = (event["metadata"].as_object_mut(), objects::metadata(&key, &[], &[])) {
        given.extend(new);
    }
    let mut taken = false;
    store.write(&key, |present| {
        taken = present.is_some();
        Some(present.cloned().unwrap_or(event))
    });
    match store.get(&key) {
        Some(event) if !taken => Ok(event.as_ref().clone()),
        _ => Err(Status::already_exists(GROUP, Resource::Events.name(), &name)),
    }
}

/// Changes an Event by a JSON merge patch, and returns it.
pub(super) fn patch(store: &Store, namespace: &str, name: &str, patch: &[u8]) -> Result<Value, Status> {
    let refuse = |why: &str| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = serde_json::from_slice::<Value>(patch).map_err(|error| refuse(&error.to_string()))?;
    if !patch.is_object() {
        let given = decode::type_name(&patch);
        return Err(refuse(&format!("json: cannot unmarshal {given} into Go value of type map[string]interface {{}}")));
    }
    let key = Key::new(Resource::Events, namespace, name);
    let mut refusal = Some(Status::not_found_in(GROUP, Resource::Events.name(), name));
    store.write(&key, |present| {
        let old = present?;
        let new = patched(old, &patch, &key);
        refusal = new.as_ref().err().cloned();
        Some(new.unwrap_or_else(|_| old.clone()))
    });
    match (refusal, store.get(&key)) {
        (None, Some(event)) => Ok(event.as_ref().clone()),
        (Some(refusal), _) => Err(refusal),
        (None, None) => Err(Status::not_found_in(GROUP, Resource::Events.name(), name)),
    }
}

fn patched(old: &Value, patch: &Value, key: &Key) -> Result<Value, Status> {
    let mut merged = old.clone();
    merge(&mut merged, patch);
    let mut new = decode(&merged)?;
    let name = text(&new, "/metadata/name");
    if name != key.name {
        let url = &key.name;
        let why = format!("the name of the object ({name}) does not match the name on the URL ({url})");
        return Err(Status::bad_request(why));
    }
    if text(&new, "/metadata/namespace") != key.namespace {
        return Err(Status::bad_request(NAMESPACE_DIFFERS));
    }
    let version = text(&merged, "/metadata/resourceVersion");
    if version != text(old, "/metadata/resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Status::conflict(GROUP, Resource::Events.name(), &key.name, why));
    }
    let mut errors = Vec::new();
    let uid = text(&merged, "/metadata/uid");
    if uid != text(old, "/metadata/uid") {
        // Twice, as there.
        errors.extend([0; 2].map(|_| FieldError::invalid("metadata.uid", format!("{uid:?}"), IMMUTABLE)));
    }
    errors.extend(legacy_errors(&new, &key.namespace));
    errors.extend(changed_errors(old, &new));
    if !errors.is_empty() {
        return Err(Status::invalid("", KIND, &key.name, &errors));
    }
    new["metadata"] = merged["metadata"].take();
    Ok(new)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (field, value) in patch {
        match value {
            Value::Null => drop(target.remove(field)),
            value => merge(target.entry(field.clone()).or_insert(Value::Null), value),
        }
    }
}

/// The Event as it is stored: its known fields, each of its type, and those that a server always shows.
fn decode(given: &Value) -> Result<Value, Status> {
    let fields = Fields::new(given, KIND, &STRUCTS);
    for (pointer, go_type) in [
        ("/metadata", "v1.ObjectMeta"),
        ("/series", "v1.EventSeries"),
        ("/regarding", "v1.ObjectReference"),
        ("/related", "v1.ObjectReference"),
        ("/deprecatedSource", "v1.EventSource"),
    ] {
        fields.field(pointer, go_type, |value| value.is_object().then_some(()))?;
    }
    let (kind, api_version) = (fields.text("/kind")?, fields.text("/apiVersion")?);
    let kind = if kind.is_empty() { KIND } else { &kind };
    let api_version = if api_version.is_empty() { API_VERSION } else { &api_version };
    match (kind, api_version) {
        (KIND, API_VERSION) => {}
        (KIND, "v1") => {
            return Err(Status::bad_request(format!(
                "the API version in the data (v1) does not match the expected API version ({API_VERSION})"
            )));
        }
        (kind, version) => {
            return Err(Status::bad_request(format!(
                "{kind} in version {:?} cannot be handled as a {KIND}: no kind {kind:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\"",
                version.rsplit('/').next().unwrap_or_default()
            )));
        }
    }
    let mut event = json!({
        "metadata": {},
        "eventTime": micro_time(&fields, "/eventTime")?,
        "regarding": reference(&fields, "/regarding")?,
        "deprecatedSource": {},
        "deprecatedFirstTimestamp": given.get("deprecatedFirstTimestamp"),
        "deprecatedLastTimestamp": given.get("deprecatedLastTimestamp"),
    });
    for field in ["name", "namespace"] {
        event["metadata"][field] = fields.text(&format!("/metadata/{field}"))?.into();
    }
    // A real server takes them, and judges them by rules of their own.
    for field in ["labels", "annotations"] {
        if given.pointer(&format!("/metadata/{field}")).is_some_and(|map| !map.is_null()) {
            return Err(Status::bad_request(format!("Events with {field} are not taken here")));
        }
    }
    for field in TEXTS {
        let text = fields.text(&format!("/{field}"))?;
        if !text.is_empty() {
            event[field] = text.into();
        }
    }
    if given.get("series").is_some_and(|series| !series.is_null()) {
        let count = fields.field("/series/count", "int32", |count| i32::try_from(count.as_i64()?).ok())?;
        let last = micro_time(&fields, "/series/lastObservedTime")?;
        event["series"] = json!({ "count": count.unwrap_or_default(), "lastObservedTime": last });
    }
    if given.get("related").is_some_and(|related| !related.is_null()) {
        event["related"] = reference(&fields, "/related")?;
    }
    for field in ["component", "host"] {
        let text = fields.text(&format!("/deprecatedSource/{field}"))?;
        if !text.is_empty() {
            event["deprecatedSource"][field] = text.into();
        }
    }
    if let Some(count) = fields.field("/deprecatedCount", "int32", Value::as_i64)?.filter(|count| *count != 0) {
        event["deprecatedCount"] = count.into();
    }
    Ok(event)
}

fn reference(fields: &Fields<'_>, pointer: &str) -> Result<Value, Status> {
    let mut reference = json!({});
    for field in REFERENCE {
        let go_type = if field == "uid" { "types.UID" } else { "string" };
        let text = fields.text_of(&format!("{pointer}/{field}"), go_type)?;
        if !text.is_empty() {
            reference[field] = text.into();
        }
    }
    Ok(reference)
}

/// Six digits after the second, and no other number of them.
fn micro_time(fields: &Fields<'_>, pointer: &str) -> Result<Value, Status> {
    let text = fields.text(pointer)?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    let (seconds, rest) = text.split_at_checked(19).unwrap_or_default();
    let whole = objects::parse_timestamp(&format!("{seconds}Z")).is_some();
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    if whole && digits == 6 && objects::parse_timestamp(&text).is_some() {
        return Ok(text.into());
    }
    let (unread, expected) = if whole { (rest, ".000000") } else { (text.as_str(), "2006") };
    let layout = "2006-01-02T15:04:05.000000Z07:00";
    let why = format!("parsing time {text:?} as {layout:?}: cannot parse {unread:?} as {expected:?}");
    Err(fields.unreadable(&why))
}

fn created_errors(event: &Value, namespace: &str) -> Vec<FieldError> {
    let mut errors = legacy_errors(event, namespace);
    match text(event, "/metadata/name") {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name if !is_subdomain(name) => {
            errors.push(FieldError::invalid("metadata.name", format!("{name:?}"), SUBDOMAIN));
        }
        _ => {}
    }
    errors.extend(series_errors(event));
    if event["eventTime"].is_null() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = text(event, "/type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "\"\"", &format!("has invalid value: {kind}")));
    }
    for (field, set) in [
        ("firstTimestamp", !event["deprecatedFirstTimestamp"].is_null()),
        ("lastTimestamp", !event["deprecatedLastTimestamp"].is_null()),
        ("count", event.get("deprecatedCount").is_some()),
        ("source", event["deprecatedSource"] != json!({})),
    ] {
        if set {
            errors.push(FieldError::invalid(field, "\"\"", "needs to be unset"));
        }
    }
    errors
}

/// What is asked of every Event, in the words of the core group.
fn legacy_errors(event: &Value, namespace: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let regarding = text(event, "/regarding/namespace");
    let agrees = match (event["eventTime"].is_null(), regarding) {
        (true, "") => namespace == "default",
        (true, regarding) => regarding == namespace,
        (false, "") => matches!(namespace, "default" | "kube-system"),
        (false, _) => true,
    };
    if !agrees {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", format!("{regarding:?}"), why));
    }
    if event["eventTime"].is_null() {
        return errors;
    }
    let controller = text(event, "/reportingController");
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    for why in qualified_name_errors(controller) {
        errors.push(FieldError::invalid("reportingController", format!("{controller:?}"), &why));
    }
    for (pointer, field, required, longest) in [
        ("/reportingInstance", "reportingInstance", true, 128),
        ("/action", "action", true, 128),
        ("/reason", "reason", true, 128),
        ("/note", "message", false, 1024),
    ] {
        let value = text(event, pointer);
        if required && value.is_empty() {
            errors.push(FieldError::required(field, ""));
        }
        if value.len() > longest {
            errors.push(FieldError::invalid(field, "\"\"", &format!("can have at most {longest} characters")));
        }
    }
    errors
}

fn series_errors(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(series) = event.get("series") {
        if series["count"].as_i64().unwrap_or_default() < 2 {
            errors.push(FieldError::invalid("series.count", "\"\"", "should be at least 2"));
        }
        if series["lastObservedTime"].is_null() {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    errors
}

/// Nothing may change but the series.
fn changed_errors(old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.get("series") != new.get("series") {
        errors.extend(series_errors(new));
    }
    for (field, pointer) in [
        ("involvedObject", "/regarding"),
        ("reason", "/reason"),
        ("message", "/note"),
        ("source", "/deprecatedSource"),
        ("firstTimestamp", "/deprecatedFirstTimestamp"),
        ("lastTimestamp", "/deprecatedLastTimestamp"),
        ("count", "/deprecatedCount"),
        // Twice, as there.
        ("reason", "/reason"),
        ("type", "/type"),
        ("eventTime", "/eventTime"),
        ("action", "/action"),
        ("related", "/related"),
        ("reportingController", "/reportingController"),
        ("reportingInstance", "/reportingInstance"),
    ] {
        if old.pointer(pointer) != new.pointer(pointer) {
            let value = match new.pointer(pointer) {
                Some(reference) if matches!(pointer, "/regarding" | "/related") => internal_reference(reference),
                Some(value) => value.to_string(),
                None => "\"\"".to_owned(),
            };
            errors.push(FieldError::invalid(field, value, IMMUTABLE));
        }
    }
    errors
}

/// As Go shows the server's own form of it.
fn internal_reference(reference: &Value) -> String {
    let names = ["Kind", "Namespace", "Name", "UID", "APIVersion", "ResourceVersion", "FieldPath"];
    let fields = names.iter().zip(REFERENCE);
    let fields = fields.map(|(name, field)| format!("{name:?}:{:?}", text(reference, &format!("/{field}"))));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// `k8s.io/apimachinery/pkg/util/validation`, `IsQualifiedName`.
fn qualified_name_errors(value: &str) -> Vec<String> {
    let (prefix, name) = match value.split('/').collect::<Vec<_>>().as_slice() {
        [name] => (None, *name),
        [prefix, name] => (Some(*prefix), *name),
        _ => {
            return vec![format!(
                "a valid label key {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    let mut errors = Vec::new();
    match prefix {
        Some("") => errors.push("prefix part must be non-empty".to_owned()),
        Some(prefix) if !is_subdomain(prefix) => errors.push(format!("prefix part {SUBDOMAIN}")),
        _ => {}
    }
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if !name.chars().all(inner) || !outer(name.chars().next()) || !outer(name.chars().last()) {
        errors.push(format!("name part {NAME_PART}"));
    }
    errors
}

fn is_subdomain(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        label.bytes().all(|b| inner(b) || b == b'-')
            && label.bytes().next().is_some_and(inner)
            && label.bytes().last().is_some_and(inner)
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
