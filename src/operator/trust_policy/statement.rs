//! What a statement means: whom, what and when it is about, as IAM reads it. Pure.
//!
//! A key that a request has no value for, or may have one that nobody here knows (an address, a session's name), makes a third
//! answer: it depends. What is not understood depends too; it is never taken for a yes or a no.
//!
//! Source: IAM user guide, "IAM JSON policy elements".

use std::{collections::BTreeMap, fmt};

use super::{json::Json, policy::NotAPolicy};

/// How a provider's ARN goes on before its issuer.
const PROVIDER: &str = ":oidc-provider/";

/// A statement of a trust policy.
#[derive(Clone, Debug)]
pub(super) struct Statement<'a> {
    pub(super) name: Name,
    pub(super) denies: bool,
    pub(super) principals: Principals<'a>,
    pub(super) actions: Vec<&'a str>,
    /// `NotAction`: all but these.
    all_but_these: bool,
    pub(super) conditions: Vec<Condition<'a>>,
}

/// How people find a statement: its place, from one, and its `Sid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    place: usize,
    sid: Option<String>,
}

/// Whom it is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Principals<'a> {
    /// `NotPrincipal`: all but these.
    all_but_these: bool,
    pub(super) everyone: bool,
    pub(super) aws: Vec<&'a str>,
    pub(super) federated: Vec<&'a str>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller<'a> {
    /// A token's owner, by the ARN of the OIDC provider.
    Token(&'a str),
    /// A session of the role with this ARN, of this account.
    Session { role: &'a str, account: &'a str },
}

#[derive(Clone, Debug)]
pub(super) struct Condition<'a> {
    pub(super) operator: Operator<'a>,
    pub(super) key: &'a str,
    pub(super) values: Vec<&'a str>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Operator<'a> {
    /// As it is written.
    pub(super) name: &'a str,
    set: Option<Set>,
    pub(super) test: Test,
    pub(super) negated: bool,
    if_exists: bool,
}

#[derive(Clone, Copy, Debug)]
enum Set {
    Any,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equals,
    EqualsIgnoreCase,
    Like,
    Arn,
    Null,
    /// Of numbers, dates, addresses: of nothing that a token or its owner says.
    Other,
}

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// On what is not known here.
    Depends,
}

/// What is known of a request: condition keys, in lower case, and their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Context(BTreeMap<String, Vec<String>>);

impl Context {
    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        self.0.entry(key.to_lowercase()).or_default().push(value.to_owned());
        self
    }

    /// The same where it is known that this key has no value.
    pub(super) fn without(mut self, key: &str) -> Self {
        self.0.entry(key.to_lowercase()).or_default();
        self
    }

    /// The values of a key; `None` if there may be some that are not known here. Keys do not depend on case.
    pub(super) fn get(&self, key: &str) -> Option<&[String]> {
        let key = key.to_lowercase();
        match self.0.get(&key) {
            Some(values) => Some(values),
            // Of the request, its sender and its session; all others are claims of some issuer's tokens.
            None if key.starts_with("aws:") || key.starts_with("sts:") => None,
            None => Some(&[]),
        }
    }
}

impl<'a> Statement<'a> {
    /// Reads the statement at this place, from one.
    ///
    /// # Errors
    /// When IAM would refuse it.
    pub(super) fn read(place: usize, statement: &'a Json) -> Result<Self, NotAPolicy> {
        let name = Name { place, sid: statement.get("Sid").and_then(Json::text).map(str::to_owned) };
        let wrong = |what: &str| NotAPolicy(format!("{name}: {what}"));
        let known = ["Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Condition"];
        let mut members = statement.members().unwrap_or_default().iter();
        if let Some((other, _)) = members.find(|(member, _)| !known.contains(&member.as_str())) {
            return Err(wrong(&format!("{other} has no place in a trust policy")));
        }
        let denies = match statement.get("Effect").and_then(Json::text) {
            Some("Allow") => false,
            Some("Deny") => true,
            _ => return Err(wrong("Effect is neither Allow nor Deny")),
        };
        let one_of = |name: &str, not: &str| match (statement.get(name), statement.get(not)) {
            (Some(value), None) => Ok((value, false)),
            (None, Some(value)) => Ok((value, true)),
            _ => Err(wrong(&format!("it must have one of {name} and {not}"))),
        };
        let (principal, all_but_these) = one_of("Principal", "NotPrincipal")?;
        let principals = Principals::read(principal).ok_or_else(|| wrong("Principal is not understood"))?;
        let principals = Principals { all_but_these, ..principals };
        let (actions, all_but_these) = one_of("Action", "NotAction")?;
        let actions = actions.texts().ok_or_else(|| wrong("Action is neither a string nor strings"))?;
        let conditions = match statement.get("Condition") {
            Some(block) => conditions(block).ok_or_else(|| wrong("Condition is not understood"))?,
            None => Vec::new(),
        };
        Ok(Self { name, denies, principals, actions, all_but_these, conditions })
    }

    /// Whether it is about this action; their names do not depend on case.
    pub(super) fn is_about(&self, action: &str) -> bool {
        let of = |pattern: &&str| like(&pattern.to_lowercase(), &action.to_lowercase()) == Holds::Yes;
        self.actions.iter().any(of) != self.all_but_these
    }

    /// Whether all of its conditions hold.
    pub(super) fn holds(&self, context: &Context) -> Holds {
        all(self.conditions.iter().map(|condition| condition.holds(context)))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sid {
            Some(sid) => write!(f, "statement {} ({sid})", self.place),
            None => write!(f, "statement {}", self.place),
        }
    }
}

impl<'a> Principals<'a> {
    fn read(principal: &'a Json) -> Option<Self> {
        if principal.text() == Some("*") {
            return Some(Self { everyone: true, ..Self::default() });
        }
        let mut principals = Self::default();
        for (kind, names) in principal.members()? {
            let names = names.texts()?;
            match kind.as_str() {
                "AWS" => {
                    principals.everyone |= names.contains(&"*");
                    principals.aws = names;
                }
                "Federated" => principals.federated = names,
                "Service" | "CanonicalUser" => {}
                _ => return None,
            }
        }
        Some(principals)
    }

    /// Whether they are, or have among them, who asks. `*` are AWS's principals, and a token's owner is none; a Deny of
    /// `*` is for that too.
    pub(super) fn are(&self, caller: Caller<'_>, denies: bool) -> bool {
        let named = match caller {
            Caller::Token(provider) => self.federated.contains(&provider) || (denies && self.everyone),
            Caller::Session { role, account } => {
                let is_account = |name: &str| {
                    name == account
                        || name.strip_suffix(":root").is_some_and(|rest| rest.ends_with(&format!("::{account}")))
                };
                self.everyone || self.aws.iter().any(|name| *name == role || is_account(name))
            }
        };
        named != self.all_but_these
    }

    /// The issuers whose tokens it is about, as in their providers' ARNs.
    pub(super) fn issuers(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.federated.clone().into_iter().filter_map(issuer_of)
    }
}

/// The issuer of a provider's ARN, without its scheme.
pub(super) fn issuer_of(provider: &str) -> Option<&str> {
    provider.split_once(PROVIDER).map(|(_, issuer)| issuer)
}

impl<'a> Condition<'a> {
    pub(super) fn holds(&self, context: &Context) -> Holds {
        let Operator { set, test, negated, if_exists, .. } = self.operator;
        let present = context.get(self.key);
        if test == Test::Null {
            let wanted = self.values.iter().any(|value| value.eq_ignore_ascii_case("true"));
            return present.map_or(Holds::Depends, |present| (present.is_empty() == wanted).into());
        }
        let Some(present) = present else { return Holds::Depends };
        if present.is_empty() {
            return (if_exists || matches!(set, Some(Set::All)) || (negated && set.is_none())).into();
        }
        // Values of a policy are alternatives: "equals one of them", or "equals none of them".
        let matches = |value: &String| {
            let one = any(self.values.iter().map(|wanted| test.matches(wanted, value)));
            if negated { one.not() } else { one }
        };
        match set {
            Some(Set::All) => all(present.iter().map(matches)),
            None if negated => all(present.iter().map(matches)),
            None | Some(Set::Any) => any(present.iter().map(matches)),
        }
    }
}

impl<'a> Operator<'a> {
    fn read(name: &'a str) -> Option<Self> {
        let (set, rest) = match name.split_once(':') {
            None => (None, name),
            Some(("ForAnyValue", rest)) => (Some(Set::Any), rest),
            Some(("ForAllValues", rest)) => (Some(Set::All), rest),
            Some(_) => return None,
        };
        let (rest, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |rest| (rest, true));
        let (test, negated) = match rest {
            "StringEquals" => (Test::Equals, false),
            "StringNotEquals" => (Test::Equals, true),
            "StringEqualsIgnoreCase" => (Test::EqualsIgnoreCase, false),
            "StringNotEqualsIgnoreCase" => (Test::EqualsIgnoreCase, true),
            "StringLike" => (Test::Like, false),
            "StringNotLike" => (Test::Like, true),
            "ArnEquals" | "ArnLike" => (Test::Arn, false),
            "ArnNotEquals" | "ArnNotLike" => (Test::Arn, true),
            "Null" => (Test::Null, false),
            _ => (Test::Other, false),
        };
        Some(Self { name, set, test, negated, if_exists })
    }
}

impl Test {
    fn matches(self, wanted: &str, value: &str) -> Holds {
        match self {
            Self::Equals => literal(wanted).map_or(Holds::Depends, |wanted| (wanted == value).into()),
            Self::EqualsIgnoreCase => {
                literal(wanted).map_or(Holds::Depends, |wanted| (wanted.to_lowercase() == value.to_lowercase()).into())
            }
            Self::Like => like(wanted, value),
            // Each part of an ARN by itself; the last has colons of its own.
            Self::Arn => {
                let (wanted, value) =
                    (wanted.splitn(6, ':').collect::<Vec<_>>(), value.splitn(6, ':').collect::<Vec<_>>());
                match wanted.len() == value.len() {
                    true => all(wanted.iter().zip(value).map(|(wanted, value)| like(wanted, value))),
                    false => Holds::No,
                }
            }
            Self::Null | Self::Other => Holds::Depends,
        }
    }
}

impl From<bool> for Holds {
    fn from(is_so: bool) -> Self {
        if is_so { Self::Yes } else { Self::No }
    }
}

impl Holds {
    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Depends => Self::Depends,
        }
    }
}

fn all(mut each: impl Iterator<Item = Holds>) -> Holds {
    let first = each.try_fold(Holds::Yes, |so_far, one| match one {
        Holds::No => Err(()),
        Holds::Depends => Ok(Holds::Depends),
        Holds::Yes => Ok(so_far),
    });
    first.unwrap_or(Holds::No)
}

fn any(each: impl Iterator<Item = Holds>) -> Holds {
    all(each.map(Holds::not)).not()
}

fn conditions(block: &Json) -> Option<Vec<Condition<'_>>> {
    let mut conditions = Vec::new();
    for (operator, keys) in block.members()? {
        let operator = Operator::read(operator)?;
        for (key, values) in keys.members()? {
            let values = match values {
                // Of `Bool` and `Null`, which may stand without quotes.
                Json::Bool(value) => vec![if *value { "true" } else { "false" }],
                // Numbers are of no operator that is decided here.
                Json::Number(_) => Vec::new(),
                values => values.texts()?,
            };
            conditions.push(Condition { operator, key, values });
        }
    }
    Some(conditions)
}

/// A part of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    One(char),
    AnyOne,
    AnyMany,
}

/// The parts of a value of a policy, where `${*}`, `${?}` and `${$}` are these characters; `None` if it has variables.
fn parts(value: &str) -> Option<Vec<Part>> {
    let (mut parts, mut rest) = (Vec::new(), value);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let variable = if c == '$' { rest.strip_prefix('{') } else { None };
        parts.push(match (variable, c) {
            (Some(inner), _) => {
                let (name, after) = inner.split_once('}')?;
                rest = after;
                match name {
                    "*" | "?" | "$" => Part::One(name.chars().next()?),
                    _ => return None,
                }
            }
            (None, '*') => Part::AnyMany,
            (None, '?') => Part::AnyOne,
            (None, c) => Part::One(c),
        });
    }
    Some(parts)
}

/// The text that a value stands for where nothing is a wildcard.
fn literal(value: &str) -> Option<String> {
    let as_text = |part| match part {
        Part::One(c) => c,
        Part::AnyOne => '?',
        Part::AnyMany => '*',
    };
    parts(value).map(|parts| parts.into_iter().map(as_text).collect())
}

/// IAM's glob: `*` any characters, `?` exactly one; all else is itself, case included.
pub(super) fn like(pattern: &str, text: &str) -> Holds {
    let Some(pattern) = parts(pattern) else { return Holds::Depends };
    let text = text.chars().collect::<Vec<_>>();
    let (mut p, mut t) = (0, 0);
    // After the last star, and how much of the text it has swallowed so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Part::AnyMany) => {
                p += 1;
                star = Some((p, t));
            }
            Some(Part::AnyOne) => (p, t) = (p + 1, t + 1),
            Some(Part::One(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            Some(Part::One(_)) | None => match star {
                None => return Holds::No,
                Some((after, swallowed)) => {
                    (p, t) = (after, swallowed + 1);
                    star = Some((after, t));
                }
            },
        }
    }
    pattern[p..].iter().all(|part| *part == Part::AnyMany).into()
}
