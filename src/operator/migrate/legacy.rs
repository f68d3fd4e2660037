//! The rules of the daemon that is left: which role a pod has under it. Pure.

use std::collections::BTreeMap;

use super::{
    daemon::Daemon,
    patterns::{Pattern, Subject, without_the_covered},
    plan::Remark,
};
use crate::identity::{RoleArn, policy::PermittedRoles};

/// What is said on the command line of what the daemon does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) base_role_arn: Option<String>,
    pub(super) default_role: Option<String>,
    pub(super) daemon_flags: Option<String>,
    pub(super) hub_role_arn: Option<RoleArn>,
}

/// The rules of one daemon, in one cluster.
#[derive(Clone, Debug)]
pub(super) struct Legacy {
    /// `kube2iam` or `kiam`.
    pub(super) name: &'static str,
    /// What is put before a role that is no ARN.
    pub(super) base: Option<String>,
    /// The role of pods that name none.
    pub(super) default: Option<String>,
    pub(super) role_key: String,
    pub(super) external_id_key: String,
    pub(super) session_name_key: String,
    pub(super) restriction: Restriction,
    /// How long sessions last.
    pub(super) session_seconds: u32,
    /// The role by way of which it assumes all others.
    pub(super) via: Option<RoleArn>,
    pub(super) daemons: Vec<Daemon>,
    pub(super) left: Vec<Remark>,
    pub(super) notes: Vec<Remark>,
}

/// How namespaces limit the roles of their pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Restriction {
    /// Not at all.
    None,
    /// By a list in JSON: of globs or regexps over ARNs, to which names are completed.
    List { key: String, regexps: bool },
    /// By a regexp over names and ARNs.
    Regexp { key: String, version: KiamVersion },
}

/// What differs between kiam's versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KiamVersion {
    /// Whether the regexp stands for the whole (4.0, unless told otherwise).
    pub(super) is_strict: bool,
    /// Whether an ARN is also compared by its path and name (4.0).
    pub(super) by_name: bool,
}

/// What a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No role.
    None,
    /// This one.
    Role {
        role: RoleArn,
        /// Whether it is the one of pods that name none.
        is_default: bool,
    },
    /// None, for what it names is no role.
    NoRole { text: String },
    /// None, for its namespace does not permit it.
    Refused { role: RoleArn },
}

/// The roles that a namespace admits.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    /// As they are written there, with what was made of them.
    pub(super) patterns: Vec<(String, Result<Pattern, String>)>,
    /// What is wrong with the whole.
    pub(super) unreadable: Option<String>,
}

/// The list that takes the place of what a namespace admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) globs: Vec<String>,
    /// What no glob equals.
    pub(super) inexact: Vec<String>,
    /// Regexps that admit more roles than are written in them, with what they come to.
    pub(super) loose: Vec<(String, Vec<String>)>,
}

impl Legacy {
    /// The ARN of what a pod or a list names.
    pub(super) fn arn(&self, role: &str) -> String {
        let is_arn = |role: &str| match self.name {
            "kube2iam" => role.to_ascii_lowercase().starts_with("arn:"),
            _ => role.starts_with("arn:"),
        };
        match &self.base {
            Some(base) if !is_arn(role) => {
                let role = if self.name == "kube2iam" { role } else { role.strip_prefix('/').unwrap_or(role) };
                format!("{base}{role}")
            }
            _ => role.to_owned(),
        }
    }

    /// What pods with these annotations get in a namespace with those.
    pub(super) fn outcome(&self, pod: &BTreeMap<String, String>, namespace: &BTreeMap<String, String>) -> Outcome {
        let (text, is_default) = match (pod.get(&self.role_key), &self.default) {
            // An empty one is none with kiam, and none that can be had with kube2iam.
            (Some(role), _) if role.is_empty() => return Outcome::None,
            (Some(role), _) => (role, false),
            (None, Some(default)) => (default, true),
            (None, None) => return Outcome::None,
        };
        let arn = self.arn(text);
        let Ok(role) = arn.parse::<RoleArn>() else { return Outcome::NoRole { text: text.clone() } };
        let is_permitted = match &self.restriction {
            Restriction::None => true,
            // By kube2iam the default role is had everywhere.
            Restriction::List { .. } if self.default.as_ref().is_some_and(|default| self.arn(default) == arn) => true,
            Restriction::List { .. } | Restriction::Regexp { .. } => self.admitted(namespace).admits(role.as_str()),
        };
        if is_permitted { Outcome::Role { role, is_default } } else { Outcome::Refused { role } }
    }

    /// What a namespace with these annotations admits, where namespaces limit roles.
    pub(super) fn admitted(&self, namespace: &BTreeMap<String, String>) -> Admitted {
        let text = |key: &String| namespace.get(key).map(String::as_str).filter(|text| !text.is_empty());
        match &self.restriction {
            Restriction::None => Admitted::default(),
            Restriction::List { key, regexps } => match text(key).map(serde_json::from_str::<Vec<String>>) {
                None => Admitted::default(),
                Some(Err(error)) => Admitted { unreadable: Some(format!("{key}: {error}")), ..Admitted::default() },
                Some(Ok(list)) => {
                    let pattern = |text: &String| {
                        let whole = self.arn(text);
                        if *regexps { Pattern::regexp(&whole, &[Subject::Arn]) } else { Pattern::glob(&whole) }
                    };
                    let patterns = list.iter().map(|text| (text.clone(), pattern(text))).collect();
                    Admitted { patterns, unreadable: None }
                }
            },
            Restriction::Regexp { key, version } => {
                let Some(text) = text(key) else { return Admitted::default() };
                // Not as a group: so `a|b` is what it was.
                let whole = if version.is_strict { format!("^{text}$") } else { text.to_owned() };
                let mut subjects = vec![Subject::Arn];
                subjects.extend(self.base.clone().map(Subject::Behind));
                if version.by_name {
                    subjects.push(Subject::PathAndName);
                }
                Admitted { patterns: vec![(text.to_owned(), Pattern::regexp(&whole, &subjects))], unreadable: None }
            }
        }
    }

    /// The list of globs that takes the place of what a namespace admits; `in_use` are the roles that its pods have: they alone
    /// are permitted where no glob equals what is written.
    pub(super) fn list(&self, admitted: &Admitted, in_use: &[RoleArn]) -> Listed {
        let mut listed = Listed::default();
        for (text, pattern) in &admitted.patterns {
            let Ok(pattern) = pattern else {
                listed.inexact.push(text.clone());
                continue;
            };
            if let Some(globs) = pattern.globs() {
                if self.is_regexp() && is_loose(&self.arn(text), text, &globs) {
                    listed.loose.push((text.clone(), globs.clone()));
                }
                listed.globs.extend(globs);
            } else {
                listed.inexact.push(text.clone());
                let admitted = in_use.iter().filter(|role| pattern.admits(role.as_str()));
                listed.globs.extend(admitted.map(ToString::to_string));
            }
        }
        listed.globs = without_the_covered(std::mem::take(&mut listed.globs));
        listed
    }

    fn is_regexp(&self) -> bool {
        matches!(self.restriction, Restriction::List { regexps: true, .. } | Restriction::Regexp { .. })
    }
}

impl Admitted {
    pub(super) fn admits(&self, arn: &str) -> bool {
        self.patterns.iter().any(|(_, pattern)| pattern.as_ref().is_ok_and(|pattern| pattern.admits(arn)))
    }
}

/// Whether globs go beyond a regexp that reads like one role: `web`, which admits `web-admin` too.
fn is_loose(arn: &str, text: &str, globs: &[String]) -> bool {
    let is_special = |text: &str| text.contains(['*', '+', '?', '[', '(', '{']);
    !is_special(text) && globs.iter().any(|glob| glob != arn && PermittedRoles::new(glob).permits(&format!("{glob}x")))
}
