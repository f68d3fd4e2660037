//! What a namespace admitted, as globs that admit the same. Pure.
//!
//! Globs are made by taking whatever is not literal for `*`, which may be wrong; then it is proven, state by state of three
//! automata, that they admit exactly those ARNs of roles that were admitted. What cannot be proven is not expressed: a list is
//! never wider than what it takes the place of.
//!
//! Source: [go-glob](https://github.com/ryanuber/go-glob) (`*` is any run of characters, of colons and slashes too; nothing else is
//! special) and [RE2](https://github.com/google/re2/wiki/Syntax), whose syntax is that of Go's regexps and, nearly, of ours.

use std::collections::HashSet;

use regex_automata::{
    Anchored, Input,
    dfa::{Automaton as _, dense},
    nfa::thompson,
    util::primitives::StateID,
};
use regex_syntax::{
    ParserBuilder,
    hir::{Class, Hir, HirKind, Look},
};

use crate::identity::policy::PermittedRoles;

/// All ARNs of roles there may be.
const ARN: &str = "^arn:aws[a-z0-9-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]*[A-Za-z0-9_+=,.@-]$";
/// What they are made of.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+=,.@/:-";
/// Parts of an ARN, between its colons.
const PARTS: usize = 6;
/// Beyond this many globs nobody reads them.
const MOST_GLOBS: usize = 64;
/// Members of a class that are told one by one.
const SMALL_CLASS: usize = 12;
const LARGEST_AUTOMATON: usize = 4 << 20;
const MOST_STATES: usize = 200_000;

/// What an expression is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The role's ARN.
    Arn,
    /// What stands in it behind this: a name under the daemon's base.
    Behind(String),
    /// What stands in it behind `role/`.
    PathAndName,
}

/// An expression that says which roles are admitted.
#[derive(Debug)]
pub(super) struct Pattern {
    alternatives: Vec<Search>,
}

#[derive(Debug)]
struct Search {
    subject: Subject,
    expression: Hir,
    automaton: Dfa,
}

type Dfa = dense::DFA<Vec<u32>>;

/// How far a search has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// Its subject has not begun; so many bytes before it are there.
    Before(usize),
    Within(StateID),
    /// It has found something, whatever comes.
    Found,
    /// Its subject is not there.
    Nowhere,
}

/// What an expression is made of, as far as a glob can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Start,
    End,
    Byte(u8),
    Any,
}

// === impl Pattern ===

impl Pattern {
    /// A glob of kube2iam's, over the whole ARN.
    pub(super) fn glob(text: &str) -> Result<Self, String> {
        let literal = |text: &str| regex_syntax::escape(text);
        let expression = text.split('*').map(literal).collect::<Vec<_>>().join("(?s:.*)");
        Self::regexp(&format!("^{expression}$"), &[Subject::Arn])
    }

    /// A regexp, which is searched for in these.
    pub(super) fn regexp(text: &str, subjects: &[Subject]) -> Result<Self, String> {
        let mut parser = ParserBuilder::new().unicode(false).utf8(false).build();
        let expression = parser.parse(text).map_err(|error| reason(&error.to_string()))?;
        let automaton = automaton(&expression)?;
        let search = |subject: &Subject| Search {
            subject: subject.clone(),
            expression: expression.clone(),
            automaton: automaton.clone(),
        };
        Ok(Self { alternatives: subjects.iter().map(search).collect() })
    }

    /// Whether it admits a role.
    pub(super) fn admits(&self, arn: &str) -> bool {
        self.alternatives.iter().any(|search| {
            let at = arn.bytes().fold(search.start(), |at, byte| search.next(at, byte));
            search.is_found(at)
        })
    }

    /// Globs that admit the same roles; `None` where none are known.
    pub(super) fn globs(&self) -> Option<Vec<String>> {
        let mut globs = Vec::new();
        for search in &self.alternatives {
            for pieces in alternatives(&search.expression)? {
                let Some(text) = as_text(&pieces) else { continue };
                globs.extend(in_parts(&match &search.subject {
                    Subject::Arn => text,
                    Subject::Behind(base) => format!("{base}{text}"),
                    Subject::PathAndName => format!("arn:*:iam::*:role/{text}"),
                }));
            }
        }
        let mut globs = without_the_covered(globs);
        if globs.len() > MOST_GLOBS || globs.iter().any(|glob| glob.contains(',')) || !self.equals(&globs) {
            return None;
        }
        // As a person would write them.
        for at in 0..globs.len() {
            let Some((start, name)) = globs.get(at).and_then(|glob| glob.rsplit_once(':')) else { continue };
            if name.starts_with('*') {
                let mut plainer = globs.clone();
                plainer[at] = format!("{start}:role/{name}");
                if self.equals(&plainer) {
                    globs = plainer;
                }
            }
        }
        let mut at = 0;
        while at < globs.len() {
            let mut fewer = globs.clone();
            fewer.remove(at);
            if self.equals(&fewer) {
                globs = fewer;
            } else {
                at += 1;
            }
        }
        Some(globs)
    }

    /// Whether the globs admit the same roles, of all that there may be.
    fn equals(&self, globs: &[String]) -> bool {
        let expression = |text: &str| {
            let parsed = ParserBuilder::new().unicode(false).utf8(false).build().parse(text);
            parsed.ok().and_then(|expression| automaton(&expression).ok())
        };
        let any = |glob: &String| glob.split('*').map(regex_syntax::escape).collect::<Vec<_>>().join("[^:]*");
        // `[^\x00-\xff]` is nothing.
        let new = if globs.is_empty() {
            expression(r"^[^\x00-\xff]$")
        } else {
            expression(&format!("^(?:{})$", globs.iter().map(any).collect::<Vec<_>>().join("|")))
        };
        let (Some(arns), Some(new)) = (expression(ARN), new) else { return false };
        let (Some(arn), Some(start)) = (start(&arns), start(&new)) else { return false };
        let old = self.alternatives.iter().map(Search::start).collect::<Vec<_>>();
        let mut seen = HashSet::from([(arn, start, old.clone())]);
        let mut open = vec![(arn, start, old)];
        while let Some((arn, state, old)) = open.pop() {
            if seen.len() > MOST_STATES {
                return false;
            }
            if ends(&arns, arn) {
                let was = self.alternatives.iter().zip(&old).any(|(search, at)| search.is_found(*at));
                if was != ends(&new, state) {
                    return false;
                }
            }
            for &byte in LETTERS {
                let arn = arns.next_state(arn, byte);
                if arns.is_dead_state(arn) {
                    continue;
                }
                let old = self.alternatives.iter().zip(&old).map(|(search, at)| search.next(*at, byte));
                let next = (arn, new.next_state(state, byte), old.collect::<Vec<_>>());
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        true
    }
}

// === impl Search ===

impl Search {
    fn start(&self) -> At {
        match self.subject {
            Subject::Arn => self.begin(),
            Subject::Behind(_) | Subject::PathAndName => At::Before(0),
        }
    }

    fn begin(&self) -> At {
        start(&self.automaton).map_or(At::Nowhere, At::Within)
    }

    fn next(&self, at: At, byte: u8) -> At {
        match (at, &self.subject) {
            (At::Found | At::Nowhere, _) => at,
            (At::Within(state), _) => {
                let state = self.automaton.next_state(state, byte);
                // An automaton learns of a match with the byte behind it.
                if self.automaton.is_match_state(state) { At::Found } else { At::Within(state) }
            }
            // An ARN's first slash is that of `role/`.
            (At::Before(_), Subject::PathAndName) if byte == b'/' => self.begin(),
            (At::Before(_), Subject::PathAndName) => at,
            (At::Before(seen), Subject::Behind(base)) => match base.as_bytes().get(seen) {
                Some(wanted) if *wanted != byte => At::Nowhere,
                _ if seen + 1 >= base.len() => self.begin(),
                _ => At::Before(seen + 1),
            },
            (At::Before(_), Subject::Arn) => At::Nowhere,
        }
    }

    fn is_found(&self, at: At) -> bool {
        match at {
            At::Within(state) => ends(&self.automaton, state),
            At::Found => true,
            At::Before(_) | At::Nowhere => false,
        }
    }
}

fn automaton(expression: &Hir) -> Result<Dfa, String> {
    let config = thompson::Config::new().utf8(false).nfa_size_limit(Some(LARGEST_AUTOMATON));
    let nfa = thompson::Compiler::new().configure(config).build_from_hir(expression);
    let nfa = nfa.map_err(|error| reason(&error.to_string()))?;
    let limits =
        dense::Config::new().dfa_size_limit(Some(LARGEST_AUTOMATON)).determinize_size_limit(Some(LARGEST_AUTOMATON));
    dense::Builder::new().configure(limits).build_from_nfa(&nfa).map_err(|error| reason(&error.to_string()))
}

fn start(automaton: &Dfa) -> Option<StateID> {
    automaton.start_state_forward(&Input::new("").anchored(Anchored::No)).ok()
}

fn ends(automaton: &Dfa, state: StateID) -> bool {
    automaton.is_match_state(automaton.next_eoi_state(state))
}

/// The last line of an error, which is the one that says it.
fn reason(error: &str) -> String {
    error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// The expression as alternatives, with `Any` for whatever is not literal; `None` if they are too many.
fn alternatives(expression: &Hir) -> Option<Vec<Vec<Piece>>> {
    let any = || Some(vec![vec![Piece::Any]]);
    let all = match expression.kind() {
        HirKind::Empty => vec![Vec::new()],
        HirKind::Literal(literal) => vec![literal.0.iter().copied().map(Piece::Byte).collect()],
        HirKind::Look(Look::Start) => vec![vec![Piece::Start]],
        HirKind::Look(Look::End) => vec![vec![Piece::End]],
        HirKind::Look(_) => vec![Vec::new()],
        HirKind::Class(Class::Bytes(class)) => {
            let bytes = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            let bytes = bytes.filter(|byte| LETTERS.contains(byte)).collect::<Vec<_>>();
            if bytes.len() > SMALL_CLASS {
                return any();
            }
            bytes.into_iter().map(|byte| vec![Piece::Byte(byte)]).collect()
        }
        HirKind::Class(Class::Unicode(_)) => return any(),
        HirKind::Repetition(repetition) if (repetition.min, repetition.max) == (0, Some(1)) => {
            let mut all = alternatives(&repetition.sub)?;
            all.push(Vec::new());
            all
        }
        HirKind::Repetition(_) => return any(),
        HirKind::Capture(capture) => alternatives(&capture.sub)?,
        HirKind::Concat(parts) => {
            let mut all = vec![Vec::new()];
            for part in parts {
                let part = alternatives(part)?;
                if all.len() * part.len() > MOST_GLOBS {
                    return None;
                }
                all = all.iter().flat_map(|start| part.iter().map(|end| [&start[..], end].concat())).collect();
            }
            all
        }
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(alternatives(part)?);
            }
            all
        }
    };
    (all.len() <= MOST_GLOBS).then_some(all)
}

/// One alternative over its whole subject, with `*` for any run of characters; `None` if nothing can match it.
fn as_text(mut pieces: &[Piece]) -> Option<String> {
    let (mut starts, mut ends) = (false, false);
    while let [Piece::Start, rest @ ..] = pieces {
        (starts, pieces) = (true, rest);
    }
    while let [rest @ .., Piece::End] = pieces {
        (ends, pieces) = (true, rest);
    }
    let mut text = String::new();
    let any = |text: &mut String| {
        if !text.ends_with('*') {
            text.push('*');
        }
    };
    if !starts {
        any(&mut text);
    }
    for piece in pieces {
        match piece {
            Piece::Any => any(&mut text),
            Piece::Byte(byte) if LETTERS.contains(byte) => text.push(char::from(*byte)),
            Piece::Byte(_) | Piece::Start | Piece::End => return None,
        }
    }
    if !ends {
        any(&mut text);
    }
    Some(text)
}

/// The same with a `*` that takes no colon, over the parts of an ARN: as many globs as there are ways for the colons to fall.
fn in_parts(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = vec![(vec![String::new()], text)];
    while let Some((mut parts, rest)) = open.pop() {
        let mut chars = rest.chars();
        let rest = match chars.next() {
            None if parts.len() == PARTS => {
                all.extend(of_a_role(&parts));
                continue;
            }
            None => continue,
            Some(_) => chars.as_str(),
        };
        let first = text.as_bytes().get(text.len() - rest.len() - 1);
        match first {
            Some(b':') if parts.len() < PARTS => parts.push(String::new()),
            Some(b':') => continue,
            Some(b'*') => {
                for more in 1..=PARTS - parts.len() {
                    let mut parts = parts.clone();
                    if let Some(last) = parts.last_mut() {
                        last.push('*');
                    }
                    parts.extend(std::iter::repeat_n("*".to_owned(), more));
                    open.push((parts, rest));
                }
                if let Some(last) = parts.last_mut() {
                    last.push('*');
                }
            }
            Some(byte) => {
                if let Some(last) = parts.last_mut() {
                    last.push(char::from(*byte));
                }
            }
            None => continue,
        }
        open.push((parts, rest));
    }
    all
}

/// The glob of these parts, if there are roles that it matches, with what is the same in all of them.
fn of_a_role(parts: &[String]) -> Option<String> {
    let matches = |glob: &str, text: &str| glob == text || PermittedRoles::new(glob).permits(text);
    let [arn, partition, service, region, account, role] = parts else { return None };
    let may_start = |glob: &str, start: &str| {
        let literal = glob.split('*').next().unwrap_or_default();
        literal.starts_with(start) || glob.contains('*') && start.starts_with(literal)
    };
    let is_one = matches(arn, "arn")
        && may_start(partition, "aws")
        && matches(service, "iam")
        && (region.is_empty() || region == "*")
        && (account.contains('*') || account.len() == 12)
        && may_start(role, "role/");
    let role = if role == "*" { "role/*" } else { role };
    is_one.then(|| format!("arn:{partition}:iam::{account}:{role}"))
}

/// Without those that another one covers.
pub(super) fn without_the_covered(globs: Vec<String>) -> Vec<String> {
    let mut kept = Vec::<String>::new();
    for glob in globs {
        // As a text, a glob is matched by what covers it: only a `*` takes its `*`.
        let covers = |other: &String, glob: &str| PermittedRoles::new(other).permits(glob);
        if !kept.iter().any(|other| covers(other, &glob)) {
            kept.retain(|other| !covers(&glob, other));
            kept.push(glob);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
