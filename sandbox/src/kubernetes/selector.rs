//! Field and label selectors: their grammars, their refusals, and what they match.
//!
//! The grammars are those of `k8s.io/apimachinery/pkg/fields` and `pkg/labels`.

use serde_json::Value;

use super::resource::Resource;

/// A conjunction of `field=value` and `field!=value`.
#[derive(Clone, Debug, Default)]
pub(super) struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
struct FieldTerm {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses without judging the fields' names; see [`for_resource`](Self::for_resource).
    pub(super) fn parse(selector: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for part in split_terms(selector).into_iter().filter(|part| !part.is_empty()) {
            let not_understood = || format!("invalid selector: '{selector}'; can't understand '{part}'");
            let at = part.char_indices().find(|(at, _)| part[*at..].starts_with("!=") || part[*at..].starts_with('='));
            let (at, _) = at.ok_or_else(not_understood)?;
            let (field, rest) = part.split_at(at);
            let (equal, value) = match rest {
                rest if rest.starts_with("!=") => (false, &rest[2..]),
                rest if rest.starts_with("==") => (true, &rest[2..]),
                rest => (true, &rest[1..]),
            };
            terms.push(FieldTerm { field: field.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Self { terms })
    }

    /// Refuses fields that cannot be selected by.
    pub(super) fn for_resource(mut self, resource: Resource) -> Result<Self, String> {
        for term in &mut self.terms {
            term.field = resource.selectable(&term.field)?.to_owned();
        }
        Ok(self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The one value that `field` must have, if the selector says so.
    pub(super) fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    pub(super) fn matches(&self, resource: Resource, object: &Value) -> bool {
        self.terms.iter().all(|term| (resource.field(object, &term.field) == term.value) == term.equal)
    }
}

fn split_terms(selector: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in selector.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, String> {
    let (mut out, mut chars) = (String::new(), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence = other.map(String::from).unwrap_or_default();
                    return Err(format!("invalid field selector: invalid escape sequence: \\{sequence}"));
                }
            },
            '=' => return Err(format!("invalid field selector: unescaped character in value: {}", u32::from(c))),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// A conjunction of label requirements.
#[derive(Clone, Debug, Default)]
pub(super) struct LabelSelector {
    terms: Vec<LabelTerm>,
}

#[derive(Clone, Debug)]
enum LabelTerm {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl LabelSelector {
    /// Equality, sets and existence; the numeric comparisons are not served.
    pub(super) fn parse(selector: &str) -> Result<Self, String> {
        let mut tokens = Tokens { rest: selector };
        let mut terms = Vec::new();
        match tokens.peek() {
            "" => return Ok(Self { terms }),
            other @ ("," | "=" | "==" | "!=" | "(" | ")") => {
                return Err(format!("found '{other}', expected: !, identifier, or 'end of string'"));
            }
            _ => {}
        }
        loop {
            terms.push(tokens.term().map_err(|error| format!("unable to parse requirement: {error}"))?);
            match tokens.next() {
                "" => return Ok(Self { terms }),
                "," => {
                    if let next @ ("" | "," | "=" | "==" | "!=" | "(" | ")") = tokens.peek() {
                        return Err(format!("found '{next}', expected: identifier after ','"));
                    }
                }
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        self.terms.iter().all(|term| match term {
            LabelTerm::Exists(key) => label(key).is_some(),
            LabelTerm::Absent(key) => label(key).is_none(),
            LabelTerm::In(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            LabelTerm::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|v| v == value)),
        })
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> &'a str {
        Tokens { rest: self.rest }.next()
    }

    /// The next token; empty at the end.
    fn next(&mut self) -> &'a str {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let symbol = ["!=", "==", "=", "!", ",", "(", ")"].into_iter().find(|symbol| rest.starts_with(symbol));
        let length = match symbol {
            Some(symbol) => symbol.len(),
            None => rest.find([' ', '\t', '\r', '\n', '!', '=', ',', '(', ')']).unwrap_or(rest.len()),
        };
        let (token, rest) = rest.split_at(length);
        self.rest = rest;
        token
    }

    fn identifier(&mut self) -> Result<String, String> {
        match self.next() {
            token @ ("" | "!" | "=" | "==" | "!=" | "," | "(" | ")") => {
                Err(format!("found '{token}', expected: identifier"))
            }
            token => Ok(token.to_owned()),
        }
    }

    /// The name of a label; what comes before its slash is not looked at.
    fn key(&mut self) -> Result<String, String> {
        let key = self.identifier()?;
        let name = key.rsplit('/').next().unwrap_or_default();
        let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.ends_with(|c: char| c.is_ascii_alphanumeric());
        if valid {
            return Ok(key);
        }
        Err(format!(
            "<nil>: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ))
    }

    fn term(&mut self) -> Result<LabelTerm, String> {
        if self.peek() == "!" {
            self.next();
            return Ok(LabelTerm::Absent(self.key()?));
        }
        let key = self.key()?;
        if matches!(self.peek(), "" | ",") {
            return Ok(LabelTerm::Exists(key));
        }
        match self.next() {
            "=" | "==" => Ok(LabelTerm::In(key, vec![self.value()?])),
            "!=" => Ok(LabelTerm::NotIn(key, vec![self.value()?])),
            "in" => Ok(LabelTerm::In(key, self.values()?)),
            "notin" => Ok(LabelTerm::NotIn(key, self.values()?)),
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// A value after an operator; it may be empty.
    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), "" | ",") { Ok(String::new()) } else { self.identifier() }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            "(" => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        // An empty set is accepted, and holds the empty value.
        let mut values = vec![if self.peek() == ")" { String::new() } else { self.identifier()? }];
        loop {
            match self.next() {
                ")" => return Ok(values),
                "," => values.push(self.identifier()?),
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_selector_matches_what_it_says() {
        let pod =
            json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n1" }, "status": { "phase": "Running" } });
        for (selector, matches) in [
            ("", true),
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n2", false),
            ("spec.nodeName!=n2,status.phase=Running", true),
            ("spec.nodeName=n1,status.phase!=Running", false),
            ("spec.hostNetwork=false", true),
            ("status.podIP=", true),
        ] {
            let parsed = FieldSelector::parse(selector).and_then(|parsed| parsed.for_resource(Resource::Pods)).unwrap();
            assert_eq!(parsed.matches(Resource::Pods, &pod), matches, "{selector}");
        }
    }

    #[test]
    fn a_label_selector_matches_what_it_says() {
        let object = json!({ "metadata": { "labels": { "app": "web", "tier": "" } } });
        for (selector, matches) in [
            ("", true),
            ("app=web", true),
            ("app==db", false),
            ("app!=db", true),
            ("other!=db", true),
            ("app", true),
            ("!app", false),
            ("app in (db, web),tier=", true),
            ("app notin (db,web)", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&object), matches, "{selector}");
        }
    }

    #[test]
    fn a_label_selector_that_does_not_parse_is_refused_in_the_servers_words() {
        for (selector, error) in [
            ("a===", "unable to parse requirement: found '=', expected: identifier"),
            ("a=b,,c", "found ',', expected: identifier after ','"),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err(), error);
        }
    }
}
