//! A policy document, as it is: whole, in its own order, whatever it holds. What its statements mean is `statement.rs`'s.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use super::json::Json;

/// The only version of the policy language that is worth writing.
const VERSION: &str = "2012-10-17";

/// A policy document.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustPolicy(Json);

/// The text is no policy document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no policy document: {0}")]
pub struct NotAPolicy(pub String);

impl TrustPolicy {
    /// One of these statements.
    pub(super) fn of(statements: Vec<Json>) -> Self {
        Self(Json::object([("Version", VERSION.into()), ("Statement", Json::Array(statements))]))
    }

    /// A document that was read.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(document: Json) -> Result<Self, NotAPolicy> {
        let policy = Self(document);
        let statements = policy.statements();
        if policy.0.get("Statement").is_none() {
            return Err(NotAPolicy("it has no Statement".to_owned()));
        }
        if statements.is_empty() || statements.iter().any(|statement| statement.members().is_none()) {
            return Err(NotAPolicy("its Statement is neither an object nor an array of objects".to_owned()));
        }
        Ok(policy)
    }

    /// Its statements; one need not stand in an array.
    pub(super) fn statements(&self) -> &[Json] {
        match self.0.get("Statement") {
            Some(Json::Array(statements)) => statements,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        }
    }

    /// The same with other statements; all else stays.
    #[must_use]
    pub fn with_statements(&self, statements: Vec<Json>) -> Self {
        let mut document = self.0.clone();
        if let Json::Object(members) = &mut document {
            members.iter_mut().filter(|(name, _)| name == "Statement").for_each(|(_, value)| {
                *value = Json::Array(statements.clone());
            });
        }
        Self(document)
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> &Json {
        &self.0
    }

    /// How many characters IAM counts, which leaves white space out.
    #[must_use]
    pub fn characters(&self) -> usize {
        self.0.to_string().chars().filter(|c| !c.is_whitespace()).count()
    }
}

impl FromStr for TrustPolicy {
    type Err = NotAPolicy;

    fn from_str(text: &str) -> Result<Self, NotAPolicy> {
        Self::read(serde_json::from_str(text).map_err(|error| NotAPolicy(error.to_string()))?)
    }
}

/// As people read it: lines, indented by two, without a newline at the end.
impl fmt::Display for TrustPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.pretty())
    }
}

impl Serialize for TrustPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
