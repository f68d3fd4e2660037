//! What is found: how it is, what it is, why it matters, and what mends it.

use std::{fmt, io};

use serde::Serialize;

use crate::operator::Verdict;

/// As wide as the longest name of a check.
const CHECK: usize = 11;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The issuer's URL.
    Issuer,
    /// The cluster's own documents.
    Cluster,
    /// The discovery document, outside.
    Discovery,
    /// The keys, outside.
    Keys,
    /// How the keys' host is known to be the one that it says it is.
    Certificate,
    /// By what IAM knows a certificate that no public authority signed.
    Thumbprint,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// To be known; nobody has to do anything.
    Note,
    /// Wrong.
    Fails,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How it is.
    pub state: State,
    /// What was found.
    pub what: String,
    /// Why it matters; of what is as it should be, nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What mends it: a command, or a step.
    #[serde(rename = "do", skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

// === impl Check ===

impl Check {
    /// As it should be.
    pub fn ok(self, what: impl Into<String>) -> Finding {
        Finding { check: self, state: State::Ok, what: what.into(), why: String::new(), mend: String::new() }
    }

    /// To be known.
    pub fn note(self, what: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { check: self, state: State::Note, what: what.into(), why: why.into(), mend: mend.into() }
    }

    /// Wrong.
    pub fn fails(self, what: impl Into<String>, why: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { state: State::Fails, ..self.note(what, why, mend) }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::Cluster => "cluster",
            Self::Discovery => "discovery",
            Self::Keys => "keys",
            Self::Certificate => "certificate",
            Self::Thumbprint => "thumbprint",
        }
    }
}

// === impl Finding ===

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Fails => "FAILS",
        };
        write!(f, "{state:5}  {:CHECK$}  {}", self.check.name(), self.what)?;
        for (label, text) in [("why", &self.why), ("do", &self.mend)] {
            for (at, line) in text.lines().enumerate() {
                let label = if at == 0 { format!("{label}:") } else { String::new() };
                write!(f, "\n{:5}  {:CHECK$}  {label:4} {line}", "", "")?;
            }
        }
        Ok(())
    }
}

/// Whether somebody has to do something.
#[must_use]
pub fn verdict(findings: &[Finding]) -> Verdict {
    match findings.iter().any(|finding| finding.state == State::Fails) {
        true => Verdict::Findings,
        false => Verdict::Well,
    }
}

/// A line or more for each.
///
/// # Errors
/// When nothing can be written.
pub fn write(out: &mut dyn io::Write, findings: &[Finding]) -> io::Result<()> {
    findings.iter().try_for_each(|finding| writeln!(out, "{finding}"))
}
