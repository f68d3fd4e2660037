//! A role's trust policy: who may assume it with a web identity.
//!
//! It takes the part of IAM's policy language that such policies use, and refuses the rest instead of
//! ignoring it: a condition that is not understood must not let anyone in.
//! Rules: [IAM user guide, "IAM JSON policy elements"][elements].
//!
//! [elements]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements.html

use serde_json::{Map, Value};

use super::account::IamError;

/// The most that a trust policy may hold by default, white space not counted.
const LONGEST: usize = 2048;

/// A trust policy that was understood whole.
#[derive(Clone, Debug)]
pub(super) struct TrustPolicy {
    statements: Vec<Statement>,
}

#[derive(Clone, Debug)]
struct Statement {
    denies: bool,
    principals: Principals,
    actions: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default)]
struct Principals {
    /// `*`: a Deny is for web identities too; an Allow is for AWS principals, and a web identity is none.
    everyone: bool,
    federated: Vec<String>,
}

#[derive(Clone, Debug)]
struct Condition {
    operator: Operator,
    /// In lower case: keys do not depend on it.
    key: String,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Operator {
    set: Option<Set>,
    test: Test,
    negated: bool,
    if_exists: bool,
}

#[derive(Clone, Copy, Debug)]
enum Set {
    Any,
    All,
}

#[derive(Clone, Copy, Debug)]
enum Test {
    Equals,
    EqualsIgnoreCase,
    Like,
}

/// What a request says of itself: a condition key (in lower case) and its values.
#[derive(Clone, Debug, Default)]
pub(super) struct Context(Vec<(String, Vec<String>)>);

impl Context {
    /// Adds a key with its values.
    pub(super) fn with(mut self, key: &str, values: impl IntoIterator<Item = String>) -> Self {
        self.0.push((key.to_lowercase(), values.into_iter().collect()));
        self
    }

    fn get(&self, key: &str) -> &[String] {
        self.0.iter().find(|(name, _)| name == key).map_or(&[], |(_, values)| values)
    }
}

impl TrustPolicy {
    /// Reads a policy document.
    ///
    /// # Errors
    /// When IAM would refuse it, or when it uses what this sandbox does not know.
    pub(super) fn parse(document: &Value) -> Result<Self, IamError> {
        let size = document.to_string().chars().filter(|c| !c.is_whitespace()).count();
        if size > LONGEST {
            return Err(IamError::LimitExceeded(format!("Cannot exceed quota for ACLSizePerRole: {LONGEST}")));
        }
        let object = document.as_object().ok_or_else(syntax)?;
        only(object, &["Version", "Id", "Statement"])?;
        match object.get("Version").and_then(Value::as_str) {
            Some("2012-10-17" | "2008-10-17") => {}
            _ => return Err(syntax()),
        }
        let statements = match object.get("Statement") {
            Some(Value::Array(statements)) if !statements.is_empty() => statements.iter().collect(),
            Some(one @ Value::Object(_)) => vec![one],
            _ => return Err(syntax()),
        };
        Ok(Self { statements: statements.into_iter().map(Statement::parse).collect::<Result<_, _>>()? })
    }

    /// Whether `provider` (an OIDC provider's ARN) may do `action`: a Deny wins, no Allow is a no.
    pub(super) fn allows(&self, action: &str, provider: &str, context: &Context) -> bool {
        let mut applying = self.statements.iter().filter(|s| s.applies(action, provider, context)).peekable();
        applying.peek().is_some() && applying.all(|statement| !statement.denies)
    }
}

impl Statement {
    fn parse(statement: &Value) -> Result<Self, IamError> {
        let object = statement.as_object().ok_or_else(syntax)?;
        for prohibited in ["Resource", "NotResource"] {
            if object.contains_key(prohibited) {
                return Err(malformed(format!("Has prohibited field {prohibited}")));
            }
        }
        only(object, &["Sid", "Effect", "Principal", "Action", "Condition"])?;
        let denies = match object.get("Effect").and_then(Value::as_str) {
            Some("Allow") => false,
            Some("Deny") => true,
            Some(other) => return Err(malformed(format!("Invalid effect: {other}"))),
            None => return Err(malformed("Missing required field Effect")),
        };
        let actions = strings(object.get("Action").ok_or_else(|| malformed("Missing required field Action"))?)?;
        if actions.iter().any(|action| action != "*" && !action.to_lowercase().starts_with("sts:")) {
            return Err(malformed("AssumeRole policy may only specify STS AssumeRole actions."));
        }
        let principal = object.get("Principal").ok_or_else(|| malformed("Missing required field Principal"))?;
        Ok(Self {
            denies,
            principals: Principals::parse(principal)?,
            actions,
            conditions: conditions(object.get("Condition"))?,
        })
    }

    fn applies(&self, action: &str, provider: &str, context: &Context) -> bool {
        let named = self.principals.federated.iter().any(|principal| principal == provider);
        (named || (self.denies && self.principals.everyone))
            && self.actions.iter().any(|pattern| like(&pattern.to_lowercase(), &action.to_lowercase()))
            && self.conditions.iter().all(|condition| condition.holds(context))
    }
}

impl Principals {
    fn parse(principal: &Value) -> Result<Self, IamError> {
        let kinds = match principal {
            Value::String(all) if all == "*" => return Ok(Self { everyone: true, federated: Vec::new() }),
            Value::Object(kinds) if !kinds.is_empty() => kinds,
            _ => return Err(malformed("Invalid principal in policy")),
        };
        only(kinds, &["AWS", "Service", "Federated"])?;
        let named = |kind| kinds.get(kind).map(strings).transpose().map(Option::unwrap_or_default);
        let federated = named("Federated")?;
        if federated.iter().any(|name| !name.starts_with("arn:") && !name.contains('.')) {
            return Err(malformed("Federated principals must be valid domain names or SAML metadata ARNs"));
        }
        Ok(Self { everyone: named("AWS")?.iter().any(|name| name == "*"), federated })
    }
}

impl Condition {
    fn holds(&self, context: &Context) -> bool {
        let Operator { set, negated, if_exists, .. } = self.operator;
        let present = context.get(&self.key);
        if present.is_empty() {
            return if_exists || matches!(set, Some(Set::All)) || (negated && set.is_none());
        }
        // Values of a policy are alternatives: "equals one of them", or "equals none of them".
        let matches = |value: &String| self.values.iter().any(|wanted| self.operator.matches(wanted, value));
        match set {
            None => present.iter().any(matches) != negated,
            Some(Set::Any) => present.iter().any(|value| matches(value) != negated),
            Some(Set::All) => present.iter().all(|value| matches(value) != negated),
        }
    }
}

impl Operator {
    fn parse(name: &str) -> Result<Self, IamError> {
        let (set, rest) = match name.split_once(':') {
            None => (None, name),
            Some(("ForAnyValue", rest)) => (Some(Set::Any), rest),
            Some(("ForAllValues", rest)) => (Some(Set::All), rest),
            Some(_) => return Err(malformed(format!("Invalid Condition type : {name}"))),
        };
        let (rest, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |rest| (rest, true));
        let (test, negated) = match rest {
            "StringEquals" => (Test::Equals, false),
            "StringNotEquals" => (Test::Equals, true),
            "StringEqualsIgnoreCase" => (Test::EqualsIgnoreCase, false),
            "StringNotEqualsIgnoreCase" => (Test::EqualsIgnoreCase, true),
            "StringLike" => (Test::Like, false),
            "StringNotLike" => (Test::Like, true),
            _ => return Err(malformed(format!("Invalid Condition type : {name}"))),
        };
        Ok(Self { set, test, negated, if_exists })
    }

    fn matches(self, wanted: &str, value: &str) -> bool {
        match self.test {
            Test::Equals => wanted == value,
            Test::EqualsIgnoreCase => wanted.to_lowercase() == value.to_lowercase(),
            Test::Like => like(wanted, value),
        }
    }
}

fn conditions(block: Option<&Value>) -> Result<Vec<Condition>, IamError> {
    let Some(block) = block else { return Ok(Vec::new()) };
    let mut conditions = Vec::new();
    for (operator, keys) in block.as_object().ok_or_else(syntax)? {
        let operator = Operator::parse(operator)?;
        for (key, values) in keys.as_object().ok_or_else(syntax)? {
            let values = strings(values)?;
            if values.iter().any(|value| value.contains("${")) {
                return Err(malformed("policy variables are not known to this sandbox"));
            }
            conditions.push(Condition { operator, key: key.to_lowercase(), values });
        }
    }
    Ok(conditions)
}

fn strings(value: &Value) -> Result<Vec<String>, IamError> {
    match value {
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(many) if !many.is_empty() => {
            many.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(syntax)).collect()
        }
        _ => Err(syntax()),
    }
}

fn only(object: &Map<String, Value>, known: &[&str]) -> Result<(), IamError> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(malformed(format!("Syntax errors in policy: {key}"))),
    }
}

fn syntax() -> IamError {
    malformed("Syntax errors in policy.")
}

fn malformed(message: impl Into<String>) -> IamError {
    IamError::MalformedPolicyDocument(message.into())
}

/// IAM's glob: `*` any characters, `?` exactly one; all else is itself, case included.
pub(super) fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much of the text it has swallowed so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                None => return false,
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    p = at + 1;
                    t = swallowed + 1;
                }
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
