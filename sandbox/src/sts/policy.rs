//! A role's policies: who may assume it (trust), and what its sessions may do (permissions).
//!
//! It takes the part of IAM's policy language that such policies use, and refuses the rest instead of
//! ignoring it: a condition that is not understood must not let anyone in.
//! Rules: [IAM user guide, "IAM JSON policy elements"][elements].
//!
//! [elements]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements.html

use serde_json::{Map, Value};

use super::account::{IamError, RoleArn, is_account};

/// The most that a trust policy may hold by default, and a role's own policies together, white space not counted.
const LONGEST_TRUST: usize = 2048;
const LONGEST_PERMISSIONS: usize = 10_240;

/// A trust policy that was understood whole.
#[derive(Clone, Debug)]
pub(super) struct TrustPolicy(Vec<Statement<Principals>>);

/// A permissions policy that was understood whole; one that says nothing permits nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Permissions(Vec<Statement<Resources>>);

/// What a policy says of a request. A later one outweighs those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Nothing.
    Silent,
    /// That the caller's account may let it.
    Delegates,
    /// Yes.
    Allows,
    /// No.
    Denies,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller<'a> {
    /// A token's owner, by the OIDC provider's ARN.
    WebIdentity(&'a str),
    /// A session of this role, with its own ARN.
    Session(&'a RoleArn, &'a str),
}

/// A statement about `S`: who, in a trust policy; what, in a permissions policy.
#[derive(Clone, Debug)]
struct Statement<S> {
    denies: bool,
    subject: S,
    actions: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default)]
struct Principals {
    /// `*`: a Deny is for web identities too; an Allow is for AWS principals, and a web identity is none.
    everyone: bool,
    aws: Vec<Aws>,
    federated: Vec<String>,
}

/// An AWS principal.
#[derive(Clone, Debug)]
enum Aws {
    /// All of an account that the account lets.
    Account(String),
    /// All sessions of a role.
    Role(String),
    /// One session of a role.
    Session(String),
}

/// Globs over ARNs.
#[derive(Clone, Debug)]
struct Resources(Vec<String>);

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
        let statements = statements(document, LONGEST_TRUST, "ACLSizePerRole")?;
        Ok(Self(statements.into_iter().map(Statement::of_trust).collect::<Result<_, _>>()?))
    }

    /// What it says of `caller` doing `action`.
    pub(super) fn verdict(&self, action: &str, caller: Caller<'_>, context: &Context) -> Verdict {
        verdict(&self.0, action, context, |principals, denies| principals.verdict(caller, denies))
    }

    /// The roles that it names; IAM knows them all.
    pub(super) fn roles(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|statement| &statement.subject.aws).filter_map(|principal| match principal {
            Aws::Role(arn) => Some(arn.as_str()),
            Aws::Account(_) | Aws::Session(_) => None,
        })
    }
}

impl Permissions {
    /// Reads a policy document.
    ///
    /// # Errors
    /// As [`TrustPolicy::parse`].
    pub(super) fn parse(document: &Value) -> Result<Self, IamError> {
        let statements = statements(document, LONGEST_PERMISSIONS, "the role's policies")?;
        Ok(Self(statements.into_iter().map(Statement::of_permissions).collect::<Result<_, _>>()?))
    }

    /// What it says of doing `action` to the thing with the ARN `resource`.
    pub(super) fn verdict(&self, action: &str, resource: &str, context: &Context) -> Verdict {
        verdict(&self.0, action, context, |Resources(globs), _| {
            if globs.iter().any(|glob| like(glob, resource)) { Verdict::Allows } else { Verdict::Silent }
        })
    }
}

/// A Deny wins, and no Allow is a no.
fn verdict<S>(
    statements: &[Statement<S>],
    action: &str,
    context: &Context,
    about: impl Fn(&S, bool) -> Verdict,
) -> Verdict {
    let applying = statements.iter().filter(|statement| statement.applies(action, context));
    let verdicts = applying.map(|statement| match about(&statement.subject, statement.denies) {
        Verdict::Silent => Verdict::Silent,
        _ if statement.denies => Verdict::Denies,
        allows => allows,
    });
    verdicts.max().unwrap_or(Verdict::Silent)
}

/// The statements of a document whose frame is right.
fn statements<'a>(document: &'a Value, longest: usize, quota: &str) -> Result<Vec<&'a Map<String, Value>>, IamError> {
    let size = document.to_string().chars().filter(|c| !c.is_whitespace()).count();
    if size > longest {
        return Err(IamError::LimitExceeded(format!("Cannot exceed quota for {quota}: {longest}")));
    }
    let object = document.as_object().ok_or_else(syntax)?;
    only(object, &["Version", "Id", "Statement"])?;
    match object.get("Version").and_then(Value::as_str) {
        Some("2012-10-17" | "2008-10-17") => {}
        _ => return Err(syntax()),
    }
    match object.get("Statement") {
        Some(Value::Array(statements)) if !statements.is_empty() => {
            statements.iter().map(|statement| statement.as_object().ok_or_else(syntax)).collect()
        }
        Some(Value::Object(one)) => Ok(vec![one]),
        _ => Err(syntax()),
    }
}

impl Statement<Principals> {
    fn of_trust(statement: &Map<String, Value>) -> Result<Self, IamError> {
        for prohibited in ["Resource", "NotResource"] {
            if statement.contains_key(prohibited) {
                return Err(malformed(format!("Has prohibited field {prohibited}")));
            }
        }
        let principal = statement.get("Principal").ok_or_else(|| malformed("Missing required field Principal"))?;
        let read = Self::new(statement, "Principal", Principals::parse(principal)?)?;
        if read.actions.iter().any(|action| action != "*" && !action.to_lowercase().starts_with("sts:")) {
            return Err(malformed("AssumeRole policy may only specify STS AssumeRole actions."));
        }
        Ok(read)
    }
}

impl Statement<Resources> {
    fn of_permissions(statement: &Map<String, Value>) -> Result<Self, IamError> {
        if statement.contains_key("Principal") {
            return Err(malformed("Policy document should not specify a principal."));
        }
        let resource =
            statement.get("Resource").ok_or_else(|| malformed("Policy statement must contain resources."))?;
        Self::new(statement, "Resource", Resources(strings(resource)?))
    }
}

impl<S> Statement<S> {
    fn new(statement: &Map<String, Value>, about: &str, subject: S) -> Result<Self, IamError> {
        only(statement, &["Sid", "Effect", about, "Action", "Condition"])?;
        let denies = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => false,
            Some("Deny") => true,
            Some(other) => return Err(malformed(format!("Invalid effect: {other}"))),
            None => return Err(malformed("Missing required field Effect")),
        };
        let actions = strings(statement.get("Action").ok_or_else(|| malformed("Missing required field Action"))?)?;
        Ok(Self { denies, subject, actions, conditions: conditions(statement.get("Condition"))? })
    }

    fn applies(&self, action: &str, context: &Context) -> bool {
        self.actions.iter().any(|pattern| like(&pattern.to_lowercase(), &action.to_lowercase()))
            && self.conditions.iter().all(|condition| condition.holds(context))
    }
}

impl Principals {
    fn parse(principal: &Value) -> Result<Self, IamError> {
        let kinds = match principal {
            Value::String(all) if all == "*" => return Ok(Self { everyone: true, ..Self::default() }),
            Value::Object(kinds) if !kinds.is_empty() => kinds,
            _ => return Err(malformed("Invalid principal in policy")),
        };
        only(kinds, &["AWS", "Service", "Federated"])?;
        let named = |kind| kinds.get(kind).map(strings).transpose().map(Option::unwrap_or_default);
        let federated = named("Federated")?;
        if federated.iter().any(|name| !name.starts_with("arn:") && !name.contains('.')) {
            return Err(malformed("Federated principals must be valid domain names or SAML metadata ARNs"));
        }
        let (everyone, aws): (Vec<_>, Vec<_>) = named("AWS")?.into_iter().partition(|name| name == "*");
        let aws = aws.iter().map(|name| Aws::parse(name)).collect::<Result<_, _>>()?;
        Ok(Self { everyone: !everyone.is_empty(), aws, federated })
    }

    fn verdict(&self, caller: Caller<'_>, denies: bool) -> Verdict {
        match caller {
            Caller::WebIdentity(provider) => {
                let named = self.federated.iter().any(|principal| principal == provider);
                if named || (denies && self.everyone) { Verdict::Allows } else { Verdict::Silent }
            }
            Caller::Session(..) if self.everyone => Verdict::Allows,
            Caller::Session(role, session) => {
                let of = |principal: &Aws| match principal {
                    Aws::Account(account) if *account == role.account => Verdict::Delegates,
                    Aws::Role(arn) if arn == role.as_str() => Verdict::Allows,
                    Aws::Session(arn) if arn == session => Verdict::Allows,
                    Aws::Account(_) | Aws::Role(_) | Aws::Session(_) => Verdict::Silent,
                };
                self.aws.iter().map(of).max().unwrap_or(Verdict::Silent)
            }
        }
    }
}

impl Aws {
    fn parse(name: &str) -> Result<Self, IamError> {
        let root = || name.strip_prefix("arn:")?.split_once(":iam::")?.1.strip_suffix(":root");
        if let Some(account) = root().or(Some(name)).filter(|account| is_account(account)) {
            return Ok(Self::Account(account.to_owned()));
        }
        let session = || name.strip_prefix("arn:")?.split_once(":sts::")?.1.split_once(":assumed-role/");
        match RoleArn::parse(name) {
            Some(_) => Ok(Self::Role(name.to_owned())),
            None if session().is_some_and(|(account, path)| is_account(account) && path.split('/').count() == 2) => {
                Ok(Self::Session(name.to_owned()))
            }
            None => Err(malformed(format!("Invalid principal in policy: \"AWS\":\"{name}\""))),
        }
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
