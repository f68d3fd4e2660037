//! Whom of a cluster a trust policy admits, and whom it should and does not. Pure.

use std::fmt;

use serde::Serialize;

use super::{
    evaluation::{Judgement, Statements},
    issuer::{Issuer, Subject},
    policy::{NotAPolicy, TrustPolicy},
};
use crate::identity::{
    annotations::{AnnotationError, Wishes},
    names::{Namespace, RoleArn, ServiceAccountName},
};

/// How many service accounts of a kind people are shown.
const SHOWN: usize = 100;

/// A service account of the cluster.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ServiceAccountName,
    /// What its annotations say.
    pub wishes: Result<Option<Wishes>, AnnotationError>,
    /// Whether it was asked for by name, and is answered for in any case.
    pub named: bool,
}

/// What is asked of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The policy.
    pub policy: &'a TrustPolicy,
    /// The role that it is of, where that is known.
    pub role: Option<&'a RoleArn>,
    /// The issuers of the cluster's tokens.
    pub issuers: &'a [Issuer],
    /// The audience of tokens of which the service account says nothing else.
    pub audience: &'a str,
    /// How many characters it may have.
    pub quota: usize,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing is to be done.
    pub well: bool,
    /// The role.
    pub role: Option<String>,
    /// The issuers whose tokens were judged.
    pub issuers: Vec<String>,
    /// How many characters of the policy IAM counts.
    pub characters: usize,
    /// How many it may have.
    pub quota: usize,
    /// Who may assume the role.
    pub may: Vec<Line>,
    /// Who may not and is annotated for it, or was asked for.
    pub may_not: Vec<Line>,
    /// What should not be so.
    pub warnings: Vec<String>,
    /// What could be better, or could not be judged.
    pub notes: Vec<String>,
}

/// One service account on one way to the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// `NAMESPACE/NAME`.
    pub service_account: String,
    /// Whether it is annotated for the role; if that is not known, whether for any.
    pub annotated: bool,
    /// The issuer of its tokens, or the role by way of which it comes.
    pub by_way_of: String,
    /// The statement that admits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// Condition keys on which it depends whether that does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Why it may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// Judges all of them.
///
/// # Errors
/// When IAM would refuse the policy.
pub fn check(question: &Question<'_>, candidates: &[Candidate]) -> Result<Report, NotAPolicy> {
    let statements = Statements::read(question.policy)?;
    let (characters, quota) = (question.policy.characters(), question.quota);
    let mut report = Report {
        well: false,
        role: question.role.map(ToString::to_string),
        issuers: question.issuers.iter().map(ToString::to_string).collect(),
        characters,
        quota,
        may: Vec::new(),
        may_not: Vec::new(),
        warnings: statements.warnings(),
        notes: statements.notes(),
    };
    if characters > quota {
        report.warnings.push(format!("{characters} characters are more than the {quota} that IAM takes"));
    }
    for candidate in candidates {
        if let Err(error) = &candidate.wishes {
            report.notes.push(format!("{}/{}: {error}", candidate.namespace, candidate.name));
        }
        for issuer in question.issuers {
            let (annotated, judgement) = of_token(question, &statements, issuer, candidate);
            report.add(candidate, annotated, issuer.url(), judgement);
        }
        of_hops(question, &statements, candidate, &mut report);
    }
    let missed = question.role.is_some() && !report.may_not.is_empty();
    let asked_for = candidates.iter().any(|candidate| candidate.named) && !report.may_not.is_empty();
    report.well = report.warnings.is_empty() && !missed && !asked_for;
    Ok(report)
}

/// Whether it is annotated for the role, and what the policy says of its tokens.
fn of_token(
    question: &Question<'_>,
    statements: &Statements<'_>,
    issuer: &Issuer,
    candidate: &Candidate,
) -> (bool, Judgement) {
    let provider = match (question.role, statements.account()) {
        (Some(role), _) => issuer.provider_arn(role),
        (None, Some(account)) => format!("{account}:oidc-provider/{}", issuer.name()),
        (None, None) => format!("the OIDC provider of {}", issuer.name()),
    };
    let subject = Subject::of(&candidate.namespace, &candidate.name);
    let judge = |audience: &str| statements.of_token(issuer, &provider, subject.as_str(), audience);
    let mut wishes = candidate.wishes.iter().flatten().flat_map(Wishes::all);
    let wish = wishes.find(|wish| question.role.is_none_or(|role| wish.role == *role));
    match wish {
        Some(wish) => (true, judge(wish.audience.as_deref().unwrap_or(question.audience))),
        // Its pods can ask for tokens of any audience.
        None => {
            let audiences = [question.audience].into_iter().chain(statements.audiences(issuer));
            let mut judged = audiences.map(judge);
            let first = judged.next().unwrap_or_else(|| judge(question.audience));
            let is_no = |judgement: &Judgement| matches!(judgement, Judgement::MayNot(_));
            let found = if is_no(&first) { judged.find(|judgement| !is_no(judgement)) } else { None };
            (false, found.unwrap_or(first))
        }
    }
}

fn of_hops(question: &Question<'_>, statements: &Statements<'_>, candidate: &Candidate, report: &mut Report) {
    for wish in candidate.wishes.iter().flatten().flat_map(Wishes::all) {
        let Some(target) = &wish.target else { continue };
        let judge =
            || statements.of_hop(&wish.role, target.external_id.as_deref(), &candidate.namespace, &candidate.name);
        match question.role {
            Some(role) if *role == target.role => report.add(candidate, true, wish.role.as_str(), judge()),
            Some(_) => {}
            // Of what else it may be the policy, nobody is told.
            None => match judge() {
                Judgement::MayNot(_) => {}
                judgement => report.add(candidate, true, wish.role.as_str(), judgement),
            },
        }
    }
}

impl Report {
    fn add(&mut self, candidate: &Candidate, annotated: bool, by_way_of: &str, judgement: Judgement) {
        let mut line = Line {
            service_account: format!("{}/{}", candidate.namespace, candidate.name),
            annotated,
            by_way_of: by_way_of.to_owned(),
            statement: None,
            depends_on: Vec::new(),
            reasons: Vec::new(),
        };
        match judgement {
            Judgement::May { by } => {
                line.statement = Some(by);
                self.may.push(line);
            }
            Judgement::Depends { by, on } => {
                (line.statement, line.depends_on) = (Some(by), on);
                self.may.push(line);
            }
            Judgement::MayNot(reasons) if annotated || candidate.named => {
                line.reasons = reasons;
                self.may_not.push(line);
            }
            Judgement::MayNot(_) => {}
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.as_deref().unwrap_or("a role");
        writeln!(f, "{role}: {} of {} characters, tokens of {}", self.characters, self.quota, self.issuers.join(", "))?;
        let several = self.issuers.len() > 1;
        let by_way_of = |line: &Line| match several || !self.issuers.contains(&line.by_way_of) {
            true => format!(" by way of {}", line.by_way_of),
            false => String::new(),
        };
        writeln!(f, "\nmay assume it{}", if self.may.is_empty() { ": nobody of the cluster" } else { "" })?;
        let may = |line: &Line| {
            let annotated = if line.annotated { "annotated" } else { "not annotated for it" };
            let depends = match line.depends_on.as_slice() {
                [] => String::new(),
                keys => format!(", which depends on {}", keys.join(", ")),
            };
            vec![format!("{annotated}; {}{}{depends}", line.statement.as_deref().unwrap_or_default(), by_way_of(line))]
        };
        lines(f, &self.may, may)?;
        if !self.may_not.is_empty() {
            let whose = match &self.role {
                Some(_) => "may not, and should",
                None => "may not, and are annotated for a role; whether for this one is not known without --role",
            };
            writeln!(f, "\n{whose}")?;
            let may_not =
                |line: &Line| line.reasons.iter().map(|reason| format!("{reason}{}", by_way_of(line))).collect();
            lines(f, &self.may_not, may_not)?;
        }
        for (title, texts) in [("warnings", &self.warnings), ("notes", &self.notes)] {
            if !texts.is_empty() {
                writeln!(f, "\n{title}")?;
                texts.iter().try_for_each(|text| writeln!(f, "  {text}"))?;
            }
        }
        Ok(())
    }
}

/// The first of them, each with what is said of it, in columns.
fn lines(f: &mut fmt::Formatter<'_>, lines: &[Line], say: impl Fn(&Line) -> Vec<String>) -> fmt::Result {
    let width = lines.iter().take(SHOWN).map(|line| line.service_account.len()).max().unwrap_or_default();
    for line in lines.iter().take(SHOWN) {
        let mut name = line.service_account.as_str();
        for text in say(line) {
            writeln!(f, "  {name:width$}  {text}")?;
            name = "";
        }
    }
    match lines.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(f, "  and {more} more (-o json)"),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
