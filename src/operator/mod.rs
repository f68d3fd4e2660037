//! The commands for whoever installs and runs it: on a laptop with a kubeconfig, or on a node. None of it is part of a run.
//!
//! Each command reads what it needs, decides in a pure function, and writes to where it is told to; `main` has only the exit code
//! to make of what it returns. What is written for programs (`-o json`) holds all that is written for people.

use crate::config::ConfigErrors;

pub mod cluster;
pub mod doctor;
pub mod explain_all;
pub mod inventory;
pub mod migrate;
pub mod oidc;
pub mod settings;
pub mod trust_policy;

/// What a command that was carried out found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that needs anybody.
    Well,
    /// Something that does.
    Findings,
}

/// A command that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It cannot be meant as it was typed.
    #[error(transparent)]
    Usage(#[from] ConfigErrors),
    /// The cluster, or whoever else must be asked, does not say what is needed.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else: a file, standard output.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl OperatorError {
    /// One thing that is wrong with what was typed.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(ConfigErrors(vec![text.into()]))
    }
}
