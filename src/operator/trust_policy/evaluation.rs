//! Whether a trust policy lets somebody assume the role, and why not. Pure.
//!
//! As IAM decides: a Deny that applies wins, no Allow is a no. It judges the policy alone: whether the account knows the provider,
//! and what else an organisation forbids, is not in there.

use std::fmt;

use super::{
    builder::{ASSUME_ROLE, EXTERNAL_ID, NAMESPACE_TAG, SERVICE_ACCOUNT_TAG, TAG_SESSION, WEB_IDENTITY},
    issuer::{self, Issuer, SUBJECT},
    json::Json,
    policy::{NotAPolicy, TrustPolicy},
    statement::{Caller, Condition, Context, Holds, Statement, Test, issuer_of, like},
};
use crate::identity::names::{Namespace, RoleArn, ServiceAccountName};

/// A subject that no policy means.
const STRANGER: &str = "system:serviceaccount:kube2irsa-nobody:nobody";
/// How many of a policy's values a reason names.
const NAMED: usize = 3;

/// The statements of a policy, understood.
#[derive(Clone, Debug)]
pub(super) struct Statements<'a>(Vec<Statement<'a>>);

/// What a policy says of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Yes.
    May {
        /// Which statement lets it.
        by: String,
    },
    /// That depends on condition keys whose values are not known here.
    Depends {
        /// The statement.
        by: String,
        /// The keys.
        on: Vec<String>,
    },
    /// No, for these reasons.
    MayNot(Vec<String>),
}

/// One request of STS.
struct Request<'a> {
    action: &'static str,
    caller: Caller<'a>,
    context: Context,
}

impl<'a> Statements<'a> {
    /// The statements of a policy.
    ///
    /// # Errors
    /// When IAM would refuse one.
    pub(super) fn read(policy: &'a TrustPolicy) -> Result<Self, NotAPolicy> {
        let statements = (1..).zip(policy.statements()).map(|(place, statement)| Statement::read(place, statement));
        statements.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a token of this issuer, subject and audience may be exchanged. `provider` is the ARN of the issuer's provider in
    /// the role's account.
    pub(super) fn of_token(&self, issuer: &Issuer, provider: &str, subject: &str, audience: &str) -> Judgement {
        let context = Context::default().with(&issuer.key("sub"), subject).with(&issuer.key("aud"), audience);
        self.judge(&Request { action: WEB_IDENTITY, caller: Caller::Token(provider), context })
    }

    /// Whether a service account may come by way of a first role.
    pub(super) fn of_hop(
        &self,
        from: &RoleArn,
        external_id: Option<&str>,
        namespace: &Namespace,
        name: &ServiceAccountName,
    ) -> Judgement {
        let context = Context::default()
            .with(NAMESPACE_TAG, namespace.as_str())
            .with(SERVICE_ACCOUNT_TAG, name.as_str())
            .with("aws:PrincipalArn", from.as_str())
            .with("aws:PrincipalAccount", from.account());
        let with_id = match external_id {
            Some(id) => context.clone().with(EXTERNAL_ID, id),
            None => context.clone().without(EXTERNAL_ID),
        };
        let caller = Caller::Session { role: from.as_str(), account: from.account() };
        match self.judge(&Request { action: ASSUME_ROLE, caller, context: with_id }) {
            Judgement::MayNot(reasons) => Judgement::MayNot(reasons),
            first => match self.judge(&Request { action: TAG_SESSION, caller, context }) {
                Judgement::May { .. } => first,
                other => other,
            },
        }
    }

    fn judge(&self, request: &Request<'_>) -> Judgement {
        let about = |statement: &&Statement<'_>| {
            statement.is_about(request.action) && statement.principals.are(request.caller, statement.denies)
        };
        let applying = self.0.iter().filter(about).map(|statement| (statement, statement.holds(&request.context)));
        let applying = applying.filter(|(_, holds)| *holds != Holds::No).collect::<Vec<_>>();
        let first = |denies, holds| {
            let mut applying = applying.iter().filter(move |(statement, _)| statement.denies == denies);
            applying.find(move |(_, it)| *it == holds).map(|(statement, _)| *statement)
        };
        if let Some(statement) = first(true, Holds::Yes) {
            return Judgement::MayNot(vec![format!("{} denies it", statement.name)]);
        }
        let depends = |statement: &Statement<'_>| Judgement::Depends {
            by: statement.name.to_string(),
            on: statement.unknown(&request.context),
        };
        match (first(false, Holds::Yes), first(false, Holds::Depends), first(true, Holds::Depends)) {
            (None, None, _) => Judgement::MayNot(self.why_not(request)),
            (_, _, Some(denies)) => depends(denies),
            (Some(allows), _, None) => Judgement::May { by: allows.name.to_string() },
            (None, Some(allows), None) => depends(allows),
        }
    }

    /// What is wrong with the statement that comes nearest.
    fn why_not(&self, request: &Request<'_>) -> Vec<String> {
        let allows = self.0.iter().filter(|statement| !statement.denies);
        let of_caller = allows.filter(|statement| statement.principals.are(request.caller, false));
        let failures = of_caller.map(|statement| {
            let action = (!statement.is_about(request.action)).then(|| {
                format!(
                    "{}: its Action is {}, and not {}",
                    statement.name,
                    statement.actions.join(", "),
                    request.action
                )
            });
            let failing = statement.conditions.iter().filter(|it| it.holds(&request.context) == Holds::No);
            let conditions = failing.map(|it| format!("{}: {}", statement.name, it.why_not(request)));
            action.into_iter().chain(conditions).collect::<Vec<_>>()
        });
        failures.min_by_key(Vec::len).unwrap_or_else(|| vec![self.nobody(request.caller)])
    }

    /// No statement names who asks.
    fn nobody(&self, caller: Caller<'_>) -> String {
        let wanted = match caller {
            Caller::Token(provider) => provider,
            Caller::Session { role, .. } => role,
        };
        let named = self.0.iter().filter(|statement| !statement.denies);
        let named = named.flat_map(|statement| match caller {
            Caller::Token(_) => statement.principals.federated.clone(),
            Caller::Session { .. } => statement.principals.aws.clone(),
        });
        let named = named.collect::<Vec<_>>();
        let near = named.iter().find(|name| near(name, wanted));
        match (near, named.is_empty()) {
            (Some(near), _) => format!("no statement admits {wanted}; {near} is another"),
            (None, true) => format!("no statement admits {wanted}"),
            (None, false) => format!("no statement admits {wanted}; there are {}", few(&named)),
        }
    }

    /// What should not be so, whoever asks.
    pub(super) fn warnings(&self) -> Vec<String> {
        let allows = self.0.iter().filter(|statement| !statement.denies);
        let (mut tokens, mut warnings) = (Vec::new(), Vec::new());
        for statement in allows {
            let admits = statement.is_about(ASSUME_ROLE) || statement.is_about(WEB_IDENTITY);
            if statement.principals.everyone && admits && statement.conditions.is_empty() {
                warnings.push(format!(
                    "{} has Principal * and no condition: everybody of every account may",
                    statement.name
                ));
            }
            if statement.is_about(WEB_IDENTITY) {
                tokens.extend(statement.principals.federated.iter().map(|provider| (statement, *provider)));
            }
        }
        warnings.extend(tokens.into_iter().filter_map(|(statement, provider)| self.too_wide(statement, provider)));
        warnings
    }

    fn too_wide(&self, statement: &Statement<'_>, provider: &str) -> Option<String> {
        let issuer = issuer_of(provider)?;
        let key = format!("{issuer}:sub");
        let about = |it: &&Condition<'_>| it.key.eq_ignore_ascii_case(&key) && !it.operator.negated;
        let conditions = statement.conditions.iter().filter(about).filter(|it| it.operator.test != Test::Null);
        let conditions = conditions.collect::<Vec<_>>();
        if conditions.is_empty() {
            // A Deny may do what a condition should.
            let mut stranger = Context::default().with(&key, STRANGER);
            let audiences =
                statement.conditions.iter().filter(|it| it.key.eq_ignore_ascii_case(&format!("{issuer}:aud")));
            for audience in audiences.flat_map(|condition| condition.values.first()) {
                stranger = stranger.with(&format!("{issuer}:aud"), audience);
            }
            let request = Request { action: WEB_IDENTITY, caller: Caller::Token(provider), context: stranger };
            return (!matches!(self.judge(&request), Judgement::MayNot(_))).then(|| {
                format!("{} has no condition on {key}: every ServiceAccount of that cluster may", statement.name)
            });
        }
        // All conditions must hold: one that is narrow is enough.
        let values = conditions.into_iter().map(Condition::wide).collect::<Option<Vec<_>>>()?;
        Some(format!("{}: {}", statement.name, issuer::admits(values.first()?)))
    }

    /// What is not as it is best, and no danger by itself.
    pub(super) fn notes(&self) -> Vec<String> {
        let allows = self.0.iter().filter(|statement| !statement.denies && statement.is_about(WEB_IDENTITY));
        let without = allows.flat_map(|statement| {
            let has = |key: &str| statement.conditions.iter().any(|condition| condition.key.eq_ignore_ascii_case(key));
            let keys =
                statement.principals.issuers().map(|issuer| format!("{issuer}:aud")).filter(move |key| !has(key));
            keys.map(|key| {
                format!(
                    "{} has no condition on {key}: tokens of each audience that the provider lists are taken",
                    statement.name
                )
            })
        });
        without.collect()
    }

    /// The audiences that it names for an issuer's tokens.
    pub(super) fn audiences(&self, issuer: &Issuer) -> Vec<&'a str> {
        let key = issuer.key("aud");
        let conditions = self.0.iter().flat_map(|statement| &statement.conditions);
        conditions.filter(|it| it.key.eq_ignore_ascii_case(&key)).flat_map(|it| it.values.iter().copied()).collect()
    }

    /// The account and partition of the first provider that it names, as `arn:PARTITION:iam::ACCOUNT`.
    pub(super) fn account(&self) -> Option<&'a str> {
        let mut providers = self.0.iter().flat_map(|statement| statement.principals.federated.clone());
        providers.find_map(|provider| provider.split_once(":oidc-provider/").map(|(account, _)| account))
    }
}

impl Statement<'_> {
    /// The keys that its conditions depend on.
    fn unknown(&self, context: &Context) -> Vec<String> {
        let depending = self.conditions.iter().filter(|condition| condition.holds(context) == Holds::Depends);
        depending.map(|condition| condition.key.to_owned()).collect()
    }
}

impl<'a> Condition<'a> {
    /// Which of its values admits service accounts of more than one namespace.
    fn wide(&self) -> Option<&'a str> {
        let is_wide = |value: &&&str| {
            // What comes before the first wildcard.
            let literal = value.split(['*', '?']).next().unwrap_or_default();
            let may_be_accounts = literal.starts_with(SUBJECT) || SUBJECT.starts_with(literal);
            value.contains(['*', '?']) && issuer::namespace(value).is_none() && may_be_accounts
        };
        if self.operator.test == Test::Like { self.values.iter().find(is_wide).copied() } else { None }
    }

    /// Why it does not hold.
    fn why_not(&self, request: &Request<'_>) -> impl fmt::Display {
        let (operator, key) = (self.operator.name, self.key);
        let wanted = few(&self.values);
        let has = request.context.get(key).unwrap_or_default();
        let Some(value) = has.first() else {
            return match (request.caller, key.rsplit_once(':')) {
                (Caller::Token(provider), Some((issuer, "sub" | "aud"))) => format!(
                    "{operator} wants {key}, a key of {issuer}, which tokens of {} have not: each issuer needs a statement of its own",
                    issuer_of(provider).unwrap_or(provider)
                ),
                _ => format!("{operator} wants {key} to be {wanted}, and there is none"),
            };
        };
        let is_glob = |wanted: &&&str| wanted.contains(['*', '?']) && like(wanted, value) == Holds::Yes;
        let hint = if self.operator.negated {
            String::new()
        } else if self.operator.test == Test::Equals && self.values.iter().any(|wanted| is_glob(&wanted)) {
            "; to StringEquals a * is a *: StringLike is meant".to_owned()
        } else if self.values.iter().any(|wanted| wanted.eq_ignore_ascii_case(value)) {
            "; the case differs".to_owned()
        } else {
            String::new()
        };
        format!("{key} is {value}, and {operator} wants {wanted}{hint}")
    }
}

/// Whether a principal was likely meant to be another: of another account or partition, with a scheme, in other case.
fn near(name: &str, wanted: &str) -> bool {
    let essence = |text: &str| {
        let resource = text.splitn(6, ':').nth(5).unwrap_or(text).replace("https://", "");
        resource.trim_end_matches('/').to_lowercase()
    };
    essence(name) == essence(wanted)
}

/// Some of them.
fn few(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// A policy document, or what `aws iam get-role` prints around one; with the role's ARN where that says it.
///
/// # Errors
/// When it is neither.
pub(super) fn read(text: &str) -> Result<(TrustPolicy, Option<RoleArn>), NotAPolicy> {
    let document = serde_json::from_str::<Json>(text).map_err(|error| NotAPolicy(error.to_string()))?;
    let role = document.get("Role").unwrap_or(&document);
    match role.get("AssumeRolePolicyDocument") {
        None => Ok((TrustPolicy::read(document)?, None)),
        Some(policy) => {
            let arn = role.get("Arn").and_then(Json::text).and_then(|arn| arn.parse().ok());
            Ok((TrustPolicy::read(policy.clone())?, arn))
        }
    }
}

#[cfg(test)]
#[path = "evaluation_tests.rs"]
mod tests;
