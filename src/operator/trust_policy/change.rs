//! An issuer more in a policy that somebody wrote, or one less; all else stays as it is, in its order. Pure.
//!
//! What is said of a new issuer is what the policy says of one that is there: its statements, Denies too, with one name in
//! the place of the other. So a move from one cluster to another changes nothing else, and has a way back.

use super::{
    builder::WEB_IDENTITY,
    issuer::{Issuer, SUBJECT},
    json::Json,
    policy::TrustPolicy,
    statement::issuer_of,
};

/// Why a policy was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotChange {
    /// No statement can be the model of those of the new one.
    #[error("no statement admits the tokens of a cluster, so there is nothing to say of {0}")]
    NoModel(Issuer),
    /// The issuer that it was to be like is not there.
    #[error("no statement admits tokens of {0}")]
    NotThere(Issuer),
    /// It says different things of issuers.
    #[error("it says different things of {}: say which the new one is to be like (--like https://…)", .0.join(" and "))]
    Ambiguous(Vec<String>),
    /// A statement is of several issuers.
    #[error("statement {place} is of {} at once: give each a statement of its own first", issuers.join(" and "))]
    Entangled {
        /// The statement's place, from one.
        place: usize,
        /// The issuers.
        issuers: Vec<String>,
    },
    /// A statement holds for every issuer whose tokens lack this one's keys.
    #[error(
        "statement {place} holds for tokens of all issuers but {issuer}, whose keys those lack: change it by hand, for with another \
         issuer in its place it would be another statement"
    )]
    OfAllOthers {
        /// The statement's place, from one.
        place: usize,
        /// The issuer.
        issuer: String,
    },
    /// Nothing would be left.
    #[error("without {0} there is no statement left: nobody could assume the role any more")]
    NothingLeft(Issuer),
}

/// Adds what the policy says of the issuer `like`, or of all issuers of clusters that it names, for `new`; a policy that admits tokens
/// of `new` stays as it is.
///
/// # Errors
/// When it is not clear what to say of the new issuer.
pub fn add(policy: &TrustPolicy, new: &Issuer, like: Option<&Issuer>) -> Result<TrustPolicy, CannotChange> {
    let statements = policy.statements();
    if statements.iter().any(|statement| federated(statement).any(|issuer| issuer == new.name())) {
        return Ok(policy.clone());
    }
    let model = match like {
        Some(like) => like.name().to_owned(),
        None => model(statements, new)?,
    };
    let copies = copies(statements, &model, new)?;
    if copies.is_empty() {
        return Err(
            like.map_or_else(|| CannotChange::NoModel(new.clone()), |like| CannotChange::NotThere(like.clone()))
        );
    }
    Ok(policy.with_statements(statements.iter().cloned().chain(copies).collect()))
}

/// Takes out what the policy says of an issuer; a policy that says nothing of it stays as it is.
///
/// # Errors
/// When nothing would be left, or a statement is of others too.
pub fn remove(policy: &TrustPolicy, issuer: &Issuer) -> Result<TrustPolicy, CannotChange> {
    let statements = policy.statements();
    let (gone, left): (Vec<_>, Vec<_>) = (1..).zip(statements).partition(|(_, it)| mentions(it, issuer.name()));
    if gone.is_empty() {
        return Ok(policy.clone());
    }
    gone.iter().try_for_each(|(place, statement)| is_of_this_one(*place, statement, issuer.name()))?;
    match left.is_empty() {
        true => Err(CannotChange::NothingLeft(issuer.clone())),
        false => Ok(policy.with_statements(left.into_iter().map(|(_, statement)| statement.clone()).collect())),
    }
}

/// The issuer whose statements are the model: any, if the policy says the same of all.
fn model(statements: &[Json], new: &Issuer) -> Result<String, CannotChange> {
    let mut clusters = Vec::<String>::new();
    for statement in statements.iter().filter(|statement| is_of_a_cluster(statement)) {
        clusters.extend(
            federated(statement)
                .filter(|issuer| !clusters.iter().any(|it| it == issuer))
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
    }
    let (last, others) = clusters.split_last().ok_or_else(|| CannotChange::NoModel(new.clone()))?;
    let of_last = copies(statements, last, new)?;
    for other in others {
        let of_other = copies(statements, other, new)?;
        let has = |statement: &Json| of_last.iter().any(|it| without_sid(it).says_the_same(&without_sid(statement)));
        if of_other.len() != of_last.len() || !of_other.iter().all(has) {
            return Err(CannotChange::Ambiguous(clusters));
        }
    }
    Ok(last.clone())
}

/// What the policy says of `model`, said of `new`.
fn copies(statements: &[Json], model: &str, new: &Issuer) -> Result<Vec<Json>, CannotChange> {
    let mut sids = statements.iter().filter_map(|it| it.get("Sid")?.text()).map(str::to_owned).collect::<Vec<_>>();
    let of_model = (1..).zip(statements).filter(|(_, statement)| mentions(statement, model));
    let copy = |(place, statement): (usize, &Json)| {
        is_of_this_one(place, statement, model)?;
        let mut copy = renamed(statement, model, new.name());
        if let Json::Object(members) = &mut copy {
            for (_, sid) in members.iter_mut().filter(|(name, _)| name == "Sid") {
                let free =
                    (2..).map(|n| format!("{}{n}", sid.text().unwrap_or_default())).find(|it| !sids.contains(it));
                let free = free.unwrap_or_default();
                sids.push(free.clone());
                *sid = free.into();
            }
        }
        Ok(copy)
    };
    of_model.map(copy).collect()
}

/// A statement with one issuer in another's place: in providers' ARNs, and at the beginning of condition keys.
fn renamed(value: &Json, old: &str, new: &str) -> Json {
    match value {
        Json::Text(text) => match issuer_of(text) {
            Some(issuer) if issuer == old => format!("{}{new}", &text[..text.len() - old.len()]).into(),
            _ => value.clone(),
        },
        Json::Array(values) => Json::Array(values.iter().map(|value| renamed(value, old, new)).collect()),
        Json::Object(members) => Json::object(members.iter().map(|(name, value)| {
            let key = claim_of(name, old).map_or_else(|| name.clone(), |claim| format!("{new}:{claim}"));
            (key, renamed(value, old, new))
        })),
        value => value.clone(),
    }
}

/// The claim of a condition key of this issuer's tokens.
fn claim_of<'a>(key: &'a str, issuer: &str) -> Option<&'a str> {
    let (name, claim) = key.rsplit_once(':')?;
    name.eq_ignore_ascii_case(issuer).then_some(claim)
}

fn mentions(statement: &Json, issuer: &str) -> bool {
    issuers(statement).iter().any(|it| it.eq_ignore_ascii_case(issuer))
}

/// The issuers that a statement names, as principals or in condition keys.
fn issuers(statement: &Json) -> Vec<String> {
    let keys = statement.get("Condition").and_then(Json::members).unwrap_or_default().iter();
    let keys =
        keys.flat_map(|(_, keys)| keys.members().unwrap_or_default()).filter_map(|(key, _)| key.rsplit_once(':'));
    // A host has a dot; `aws` and `sts` have none.
    let of_keys = keys.map(|(issuer, _)| issuer).filter(|issuer| issuer.contains('.'));
    let mut issuers = Vec::<String>::new();
    for issuer in federated(statement).chain(of_keys) {
        if !issuers.iter().any(|it| it.eq_ignore_ascii_case(issuer)) {
            issuers.push(issuer.to_owned());
        }
    }
    issuers
}

/// The issuers whose tokens' owners are principals of a statement.
fn federated(statement: &Json) -> impl Iterator<Item = &str> {
    let names = statement.get("Principal").and_then(|principal| principal.get("Federated")?.texts());
    names.unwrap_or_default().into_iter().filter_map(issuer_of)
}

/// Whether it admits tokens of a cluster, as its subjects say, or of whoever has any.
fn is_of_a_cluster(statement: &Json) -> bool {
    let actions = statement.get("Action").and_then(Json::texts).unwrap_or_default();
    let operators = statement.get("Condition").and_then(Json::members).unwrap_or_default().iter();
    let keys = operators.flat_map(|(_, keys)| keys.members().unwrap_or_default());
    let mut subjects =
        keys.filter(|(key, _)| key.ends_with(":sub")).flat_map(|(_, value)| value.texts().unwrap_or_default());
    actions.iter().any(|action| action.eq_ignore_ascii_case(WEB_IDENTITY)) && subjects.any(|it| it.starts_with(SUBJECT))
}

/// Whether a statement is about one issuer's tokens alone.
fn is_of_this_one(place: usize, statement: &Json, issuer: &str) -> Result<(), CannotChange> {
    let issuers = issuers(statement);
    if issuers.len() > 1 {
        return Err(CannotChange::Entangled { place, issuers });
    }
    let is_principal = federated(statement).any(|it| it.eq_ignore_ascii_case(issuer));
    let conditions = statement.get("Condition").and_then(Json::members).unwrap_or_default();
    let of_issuer =
        |keys: &Json| keys.members().unwrap_or_default().iter().any(|(key, _)| claim_of(key, issuer).is_some());
    // It is enough that one condition needs the key: all must hold.
    let mut of_issuer = conditions.iter().filter(|(_, keys)| of_issuer(keys)).map(|(operator, _)| operator).peekable();
    if !is_principal && of_issuer.peek().is_some() && of_issuer.all(|operator| holds_without_the_key(operator)) {
        return Err(CannotChange::OfAllOthers { place, issuer: issuer.to_owned() });
    }
    Ok(())
}

/// Whether a condition with this operator holds where its key is missing.
fn holds_without_the_key(operator: &str) -> bool {
    let (set, name) = operator.split_once(':').unwrap_or(("", operator));
    set == "ForAllValues" || name.contains("Not") || name.ends_with("IfExists") || name == "Null"
}

fn without_sid(statement: &Json) -> Json {
    Json::object(statement.members().unwrap_or_default().iter().filter(|(name, _)| name != "Sid").cloned())
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
