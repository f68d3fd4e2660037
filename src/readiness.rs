//! Readiness: named conditions, all of which must hold.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

/// What must hold before pods are sent our way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The guard stands.
    Guard,
    /// The redirect leads here.
    Rules,
    /// The redirect of pods on the node's network leads here, where there is to be one.
    HostNetwork,
    /// Nothing is seen to keep pods' packets from coming here.
    Arrival,
    /// Pods' packets can be seen, where they are only observed.
    Observation,
    /// It is known which STS to call.
    Region,
    /// It is known whose roles plain names mean.
    Account,
    /// It is decided with which power we ask the API server.
    TokenAccess,
    /// Pods and service accounts have been read.
    Watches,
    /// We have started, and are not about to stop.
    Running,
}

impl Condition {
    const ALL: [Self; 10] = [
        Self::Guard,
        Self::Rules,
        Self::HostNetwork,
        Self::Arrival,
        Self::Observation,
        Self::Region,
        Self::Account,
        Self::TokenAccess,
        Self::Watches,
        Self::Running,
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Rules => "rules",
            Self::HostNetwork => "host network",
            Self::Arrival => "arrival",
            Self::Observation => "observation",
            Self::Region => "region",
            Self::Account => "account",
            Self::TokenAccess => "token access",
            Self::Watches => "watches",
            Self::Running => "running",
        }
    }
}

/// Which conditions do not hold, and why. All hold to begin with but those that are told otherwise.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<[Option<String>; Condition::ALL.len()]>);

impl Readiness {
    /// The condition holds.
    pub fn holds(&self, condition: Condition) {
        self.set(condition, None);
    }

    /// The condition does not hold, for this reason.
    pub fn lacks(&self, condition: Condition, reason: impl fmt::Display) {
        self.set(condition, Some(reason.to_string()));
    }

    /// Why we are not ready, one line a condition; empty when ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons = Condition::ALL.iter().zip(&*missing);
        reasons.filter_map(|(condition, why)| Some(format!("{}: {}", condition.name(), why.as_ref()?))).collect()
    }

    /// Why the condition does not hold; `None` if it does.
    #[must_use]
    pub fn why(&self, condition: Condition) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[condition as usize].clone()
    }

    /// Whether the condition does not hold.
    #[must_use]
    pub fn is_lacking(&self, condition: Condition) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[condition as usize].is_some()
    }

    /// Whether all other conditions hold.
    #[must_use]
    pub fn lacks_nothing_but(&self, conditions: &[Condition]) -> bool {
        Condition::ALL.into_iter().all(|other| conditions.contains(&other) || !self.is_lacking(other))
    }

    fn set(&self, condition: Condition, reason: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[condition as usize] = reason;
    }
}
