//! The annotations of kube2iam and kiam, for clusters that come from there: a pod names its role, and its namespace limits
//! which. Pure.
//!
//! Owns their keys, what they mean, and how roles are matched. Invariants: a regular expression matches a whole role or none
//! of it; what a namespace says and cannot be read permits nothing; no expression costs more than its text's length.
//!
//! Sources: [kube2iam](https://github.com/jtblin/kube2iam#namespace-restrictions), [kiam](https://github.com/uswitch/kiam).

use std::collections::BTreeMap;

use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;

use super::{
    annotations::{AnnotationError, SESSION_DEFAULT, Wish, external_id},
    names::RoleArn,
    policy::{Forbids, matches},
};

/// The annotation of a pod that names its role.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// The annotation of a pod that says which external id its role is assumed with.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// The annotation of a pod that names its session.
pub const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// kube2iam's annotation of a namespace: a JSON array of roles.
pub const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";
/// kiam's: a regular expression.
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";

/// Lengths of a `RoleSessionName`, in characters.
const SESSION_NAME_LENGTHS: std::ops::RangeInclusive<usize> = 2..=64;
/// Of what a namespace says, in bytes: some hundred roles. Each change is matched under the directory's lock.
const LONGEST_LIMIT: usize = 32 * 1024;
/// Of what is made of a namespace's expressions, in bytes: a role is matched in milliseconds at the most.
const LARGEST_EXPRESSION: usize = 64 * 1024;
/// Of an expression that is wrong, in characters.
const LONGEST_QUOTE: usize = 60;

/// What a pod's annotations say, as they stand there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PodAnnotations {
    #[serde(rename = "iam.amazonaws.com/role")]
    role: Option<String>,
    #[serde(rename = "iam.amazonaws.com/external-id")]
    external_id: Option<String>,
    #[serde(rename = "iam.amazonaws.com/session-name")]
    session_name: Option<String>,
}

/// What a wish has beside its role that a pod made, and not its service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfPod {
    /// How the role is had.
    pub source: Source,
    /// The external id, where the role is assumed with one.
    pub external_id: Option<String>,
    /// The session's name, where the pod chooses it.
    pub session_name: Option<String>,
}

/// How a role is had that a pod names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// By a token of the pod's service account, as the role of that would be.
    #[default]
    WebIdentity,
    /// By AssumeRole with the daemon's own identity.
    AssumeRole,
}

impl Source {
    /// As the flag has it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WebIdentity => "web-identity",
            Self::AssumeRole => "assume-role",
        }
    }
}

/// How the roles of [`ALLOWED_ROLES`] are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// With `*` for anything.
    #[default]
    Glob,
    /// As regular expressions.
    Regexp,
}

/// What a namespace permits that has neither annotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unlimited {
    /// Nothing, as with kiam, and with kube2iam's `--namespace-restrictions`.
    #[default]
    Nothing,
    /// All roles, as with kube2iam without.
    All,
}

/// That pods' annotations are heeded, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legacy {
    /// What stands before a role's name: `arn:…:role/`, perhaps with a path. `None` while the account is not known.
    pub base: Option<String>,
    /// How roles are had.
    pub source: Source,
    /// What a namespace permits that says nothing.
    pub unlimited: Unlimited,
}

/// What a namespace's annotations permit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    allowed_roles: Option<Limit>,
    permitted: Option<Limit>,
}

/// One annotation.
#[derive(Clone, Debug)]
struct Limit {
    /// As it stands there.
    text: String,
    /// What it means, or why that is not known.
    roles: Result<Roles, String>,
}

/// Roles: by their whole ARN, and by what stands there behind the base.
#[derive(Clone, Debug)]
struct Roles {
    whole: Matcher,
    named: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Globs(Vec<String>),
    /// All in one.
    Expression(Option<Regex>),
}

// === impl PodAnnotations ===

impl PodAnnotations {
    /// What there is to keep of them: nothing if they name no role.
    #[must_use]
    pub fn kept(self) -> Option<Box<Self>> {
        let names_one = self.role.as_ref().is_some_and(|role| !role.is_empty());
        names_one.then(|| Box::new(self))
    }
}

// === impl Legacy ===

impl Legacy {
    /// What a pod's annotations ask for.
    ///
    /// # Errors
    /// When a value cannot be meant.
    pub fn wish(&self, of: &PodAnnotations) -> Result<Wish, AnnotationError> {
        let get = |value: &Option<String>| value.as_ref().filter(|value| !value.is_empty()).cloned();
        let name = get(&of.role).unwrap_or_default();
        let Some(base) = &self.base else {
            return Err(AnnotationError::AccountNotKnown { key: ROLE.to_owned(), name });
        };
        let arn = if name.contains("arn:") { name } else { format!("{base}{}", name.trim_start_matches('/')) };
        let role = arn.parse().map_err(|error| AnnotationError::Role { key: ROLE.to_owned(), error })?;
        // The exchange of a token knows no external id.
        let external = get(&of.external_id).filter(|_| self.source == Source::AssumeRole);
        let of_pod = OfPod {
            source: self.source,
            external_id: external.map(|id| external_id(EXTERNAL_ID, &id)).transpose()?,
            session_name: get(&of.session_name).map(|name| session_name(&name)).transpose()?,
        };
        Ok(Wish {
            role,
            target: None,
            audience: None,
            session_seconds: SESSION_DEFAULT,
            regional_sts: None,
            of_pod: Some(Box::new(of_pod)),
        })
    }

    /// Why a namespace with these limits does not permit its pods to name this role; `None` if it does. Where it says both,
    /// both must permit it.
    #[must_use]
    pub fn forbids(&self, limits: &Limits, role: &RoleArn) -> Option<Forbids> {
        let both = [(ALLOWED_ROLES, &limits.allowed_roles), (PERMITTED, &limits.permitted)];
        let mut said = both.into_iter().filter_map(|(key, limit)| Some((key, limit.as_ref()?))).peekable();
        if said.peek().is_none() {
            return (self.unlimited == Unlimited::Nothing).then_some(Forbids::NoLegacyAnnotation);
        }
        said.find_map(|(key, limit)| match &limit.roles {
            Err(why) => Some(Forbids::Unreadable(key, why.clone())),
            Ok(roles) => (!roles.permit(role, self.base.as_deref())).then_some(Forbids::Legacy(key)),
        })
    }
}

// === impl Limits ===

impl Limits {
    /// What the annotations of a namespace say.
    #[must_use]
    pub fn read(annotations: &BTreeMap<String, String>, format: Format) -> Self {
        let limit = |key: &str, read: &dyn Fn(&str) -> Result<Roles, String>| {
            annotations.get(key).map(|text| {
                let fits = text.len() <= LONGEST_LIMIT;
                let roles = if fits { read(text) } else { Err(format!("it is longer than {LONGEST_LIMIT} bytes")) };
                Limit { text: text.clone(), roles }
            })
        };
        Self {
            allowed_roles: limit(ALLOWED_ROLES, &|text| allowed_roles(text, format)),
            permitted: limit(PERMITTED, &permitted),
        }
    }

    /// Those of a namespace that cannot be read.
    #[must_use]
    pub fn unreadable() -> Self {
        let limit = Limit { text: String::new(), roles: Err("nor can the namespace".to_owned()) };
        Self { allowed_roles: Some(limit), permitted: None }
    }

    /// The annotations that there are.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        let both = [(ALLOWED_ROLES, &self.allowed_roles), (PERMITTED, &self.permitted)];
        both.into_iter().filter_map(|(key, limit)| limit.as_ref().map(|_| key))
    }
}

impl PartialEq for Limit {
    /// What it means follows from what it says.
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.roles.is_ok() == other.roles.is_ok()
    }
}

impl Eq for Limit {}

fn allowed_roles(text: &str, format: Format) -> Result<Roles, String> {
    let list = serde_json::from_str::<Vec<String>>(text).map_err(|_| "it is no JSON array of strings".to_owned())?;
    let (whole, named): (Vec<_>, Vec<_>) = list.into_iter().partition(|role| role.contains("arn:"));
    Ok(match format {
        Format::Glob => {
            let named = named.iter().map(|name| name.trim_start_matches('/').to_owned()).collect();
            Roles { whole: Matcher::Globs(whole), named: Matcher::Globs(named) }
        }
        Format::Regexp => Roles { whole: expression(&whole)?, named: expression(&named)? },
    })
}

/// It says nothing of the base: it is matched with what a pod may write.
fn permitted(text: &str) -> Result<Roles, String> {
    if text.is_empty() {
        return Ok(Roles { whole: Matcher::Expression(None), named: Matcher::Expression(None) });
    }
    let named = expression(&[text.to_owned()])?;
    // What does not speak of ARNs is of names: `a.*` would else be every role of every account.
    let whole = if text.contains("arn:") { named.clone() } else { Matcher::Expression(None) };
    Ok(Roles { whole, named })
}

/// One that matches what one of these matches from its beginning to its end.
fn expression(alternatives: &[String]) -> Result<Matcher, String> {
    // Each by itself first: or a parenthesis of theirs could close one of ours, and what follows be anchored no more.
    for alternative in alternatives {
        compile(alternative).map_err(|why| {
            let quote = alternative.chars().take(LONGEST_QUOTE).collect::<String>();
            format!("{quote:?} is no regular expression that is taken: {why}")
        })?;
    }
    if alternatives.is_empty() {
        return Ok(Matcher::Expression(None));
    }
    let each = alternatives.iter().map(|alternative| format!("(?:{alternative})")).collect::<Vec<_>>();
    let all = compile(&format!("^(?:{})$", each.join("|"))).map_err(|why| format!("all together: {why}"))?;
    Ok(Matcher::Expression(Some(all)))
}

fn compile(expression: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(expression);
    builder.size_limit(LARGEST_EXPRESSION).build().map_err(|error| error.to_string())
}

// === impl Roles ===

impl Roles {
    fn permit(&self, role: &RoleArn, base: Option<&str>) -> bool {
        let name = base.and_then(|base| role.as_str().strip_prefix(base));
        self.whole.matches(role.as_str()) || name.is_some_and(|name| self.named.matches(name))
    }
}

impl Matcher {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Globs(globs) => globs.iter().any(|glob| matches(glob.as_bytes(), text.as_bytes())),
            Self::Expression(expression) => expression.as_ref().is_some_and(|expression| expression.is_match(text)),
        }
    }
}

/// As STS takes it: what it does not is replaced, and what is too long is cut.
fn session_name(text: &str) -> Result<String, AnnotationError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name = text.chars().map(|c| if allowed(c) { c } else { '-' }).take(*SESSION_NAME_LENGTHS.end());
    let name = name.collect::<String>();
    if name.len() < *SESSION_NAME_LENGTHS.start() { Err(AnnotationError::SessionName) } else { Ok(name) }
}

#[cfg(test)]
mod tests;
