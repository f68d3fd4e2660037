//! What was found, and how it is told: to people by severity, to programs all of it.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, Serializer};

use super::checks::{Check, Severity};

/// Of one check so many findings are printed for people.
const PRINTED: usize = 8;

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub check: &'static Check,
    /// What was found, with the name of the object.
    pub what: String,
    /// The command that mends it, or what to do.
    pub mend: String,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// What was looked at, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub is: String,
}

/// All that is told.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether there is neither an error nor a warning.
    pub well: bool,
    /// What was looked at.
    pub seen: Vec<Seen>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub not_looked_at: Vec<Unseen>,
    /// How many findings there are of each severity.
    pub counts: BTreeMap<&'static str, usize>,
}

// === impl Finding ===

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            id: &'a str,
            severity: Severity,
            what: &'a str,
            why: &'a str,
            mend: &'a str,
        }
        let Self { check, what, mend } = self;
        Fields { id: check.id, severity: check.severity, what, why: check.why, mend }.serialize(serializer)
    }
}

// === impl Report ===

impl Report {
    pub(super) fn find(&mut self, check: &'static Check, what: impl Into<String>, mend: impl Into<String>) {
        let finding = Finding { check, what: what.into(), mend: mend.into() };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    pub(super) fn unseen(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.not_looked_at.push(Unseen { what: what.into(), why: why.into() });
    }

    pub(super) fn seen(&mut self, what: &'static str, is: impl Into<String>) {
        self.seen.push(Seen { what, is: is.into() });
    }

    /// Nothing is added any more.
    pub(super) fn close(mut self) -> Self {
        self.findings.sort_by_key(|finding| finding.check.severity);
        let count = |severity| self.findings.iter().filter(|finding| finding.check.severity == severity).count();
        let severities = [Severity::Error, Severity::Warning, Severity::Note];
        self.counts = severities.map(|severity| (severity.label(), count(severity))).into();
        self.well = self.findings.iter().all(|finding| finding.check.severity == Severity::Note);
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Seen { what, is } in &self.seen {
            writeln!(f, "{what:16}  {is}")?;
        }
        let mut severity = None;
        let mut checks = Vec::<&Check>::new();
        for finding in &self.findings {
            if !checks.contains(&finding.check) {
                checks.push(finding.check);
            }
        }
        for check in checks {
            if severity != Some(check.severity) {
                severity = Some(check.severity);
                writeln!(f, "\n{}", check.severity.label().to_uppercase())?;
            }
            let of_it = self.findings.iter().filter(|finding| finding.check == check).collect::<Vec<_>>();
            writeln!(f, "\n{}: {}", check.id, check.why)?;
            for finding in of_it.iter().take(PRINTED) {
                writeln!(f, "  - {}\n    > {}", finding.what, finding.mend)?;
            }
            if of_it.len() > PRINTED {
                writeln!(f, "  and {} more: -o json lists all", of_it.len() - PRINTED)?;
            }
        }
        if !self.not_looked_at.is_empty() {
            writeln!(f, "\nNOT LOOKED AT\n")?;
            for Unseen { what, why } in &self.not_looked_at {
                writeln!(f, "  - {what}: {why}")?;
            }
        }
        let count = |severity: Severity, many: &str| {
            let count = self.counts.get(severity.label()).copied().unwrap_or_default();
            if count == 1 { format!("1 {}", severity.label()) } else { format!("{count} {many}") }
        };
        writeln!(
            f,
            "\n{}, {}, {}; {} not looked at",
            count(Severity::Error, "errors"),
            count(Severity::Warning, "warnings"),
            count(Severity::Note, "notes"),
            self.not_looked_at.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::checks, *};

    fn report() -> Report {
        let mut report = Report::default();
        report.seen("Kubernetes", "v1.36.0");
        report.find(&checks::POD_SKIP, "pod a/b", "nothing");
        for number in 0..10 {
            report.find(&checks::ACCOUNT_ANNOTATION, format!("a/{number} is wrong"), "mend it");
        }
        report.find(&checks::POD_KEYS, "pod a/c", "take them away");
        report.unseen("nodes", "forbidden");
        report.close()
    }

    #[test]
    fn people_are_told_by_severity_with_the_counts_last() {
        let text = report().to_string();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
        assert!(at("ERROR") < at("account-annotation") && at("account-annotation") < at("WARNING"));
        assert!(at("WARNING") < at("pod-static-keys") && at("NOTE\n") < at("pod-skip-containers"));
        assert!(at("NOTE\n") < at("NOT LOOKED AT") && text.contains("  and 2 more"), "{text}");
        assert!(text.ends_with("\n10 errors, 1 warning, 1 note; 1 not looked at\n"), "{text}");
    }

    #[test]
    fn programs_are_told_all() {
        let told = serde_json::to_value(report()).unwrap();
        assert_eq!(told["findings"].as_array().unwrap().len(), 12);
        assert_eq!(told["findings"][0]["id"], "account-annotation");
        assert_eq!(told["counts"], serde_json::json!({"error": 10, "warning": 1, "note": 1}));
        assert_eq!((&told["well"], &told["not_looked_at"][0]["what"]), (&false.into(), &"nodes".into()));
    }

    #[test]
    fn notes_alone_are_well() {
        let mut report = Report::default();
        report.find(&checks::POD_SKIP, "pod a/b", "nothing");
        assert!(report.close().well);
    }
}
