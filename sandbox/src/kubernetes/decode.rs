//! Bodies of requests: JSON whose fields have the types that they must have, refused in Go's words otherwise.

use serde_json::Value;

use super::status::Status;

/// An object of a kind.
pub(super) fn object(body: &[u8], kind: &str) -> Result<Value, Status> {
    let unrecognized = |why: &str| {
        let hex = if body.is_empty() { "<empty>".to_owned() } else { super::hex(body) };
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why} ({hex})"
        ))
    };
    let value = match body {
        [] => return Err(unrecognized("unexpected end of JSON input")),
        body => serde_json::from_slice::<Value>(body).map_err(|error| unrecognized(&error.to_string()))?,
    };
    if !value.is_object() && !value.is_null() {
        let given = type_name(&value);
        return Err(unrecognized(&format!(
            "json: cannot unmarshal {given} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
    }
    Ok(value)
}

/// The fields of an object, each of the right type or not there.
pub(super) struct Fields<'a> {
    object: &'a Value,
    kind: &'static str,
    /// What Go calls the parts of the object, by pointer.
    structs: &'a [(&'static str, &'static str)],
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Value, kind: &'static str, structs: &'a [(&'static str, &'static str)]) -> Self {
        Self { object, kind, structs }
    }

    pub(super) fn field<T>(
        &self,
        pointer: &str,
        go_type: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Status> {
        let Some(value) = self.object.pointer(pointer).filter(|value| !value.is_null()) else { return Ok(None) };
        let given = match value {
            // Go names a number only where it is one of the wrong kind.
            Value::Number(number) if go_type.starts_with("int") => format!("number {number}"),
            value => type_name(value).to_owned(),
        };
        let parent = pointer.rsplit_once('/').map(|(parent, _)| parent).unwrap_or_default();
        let within = self.structs.iter().find(|(at, _)| *at == parent).map_or(self.kind, |(_, name)| name);
        let field = pointer.trim_start_matches('/').replace('/', ".");
        let why = format!("json: cannot unmarshal {given} into Go struct field {within}.{field} of type {go_type}");
        read(value).map(Some).ok_or_else(|| self.unreadable(&why))
    }

    pub(super) fn unreadable(&self, why: &str) -> Status {
        let kind = self.kind;
        Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"))
    }

    pub(super) fn text(&self, pointer: &str) -> Result<String, Status> {
        self.text_of(pointer, "string")
    }

    pub(super) fn text_of(&self, pointer: &str, go_type: &str) -> Result<String, Status> {
        Ok(self.field(pointer, go_type, |value| value.as_str().map(str::to_owned))?.unwrap_or_default())
    }

    pub(super) fn texts(&self, pointer: &str) -> Result<Vec<String>, Status> {
        let texts = |value: &Value| {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        Ok(self.field(pointer, "[]string", texts)?.unwrap_or_default())
    }

    pub(super) fn number(&self, pointer: &str) -> Result<Option<i64>, Status> {
        self.field(pointer, "int64", Value::as_i64)
    }
}

/// As Go's JSON decoder calls it.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
