//! An explanation as people read it: a line a step, and at the top what matters.

use std::fmt;

use super::{About, Explanation, Step, StepState};

/// As wide as the longest name of a step.
const STEP: usize = 16;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, pod, node, steps, .. } = self;
        match steps.iter().find(|step| step.state == StepState::Fails) {
            Some(first) => {
                writeln!(f, "{namespace}/{pod}, by the daemon of {node}: fails at \"{}\"", first.about.name())?
            }
            None => writeln!(f, "{namespace}/{pod}, by the daemon of {node}: nothing fails")?,
        }
        writeln!(f)?;
        let mut role = None;
        for step in steps {
            // Where there is more than one, it must be seen which is meant.
            let of = step.about.role();
            if of.is_some() && of != role {
                writeln!(f, "\n{}", of.unwrap_or_default())?;
                role = of;
            }
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            StepState::Ok => "ok",
            StepState::Fails => "FAILS",
            StepState::Unknown => "-",
        };
        write!(f, "{state:5}  {:STEP$}  {}", self.about.name(), self.says)
    }
}

impl About {
    /// As people read it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Daemon { .. } => "daemon",
            Self::Interception { .. } => "interception",
            Self::Pod { .. } => "pod",
            Self::Address { .. } => "address",
            Self::ServiceAccount { .. } => "service account",
            Self::PodAnnotation { .. } => "pod's annotation",
            Self::Imdsv2 { .. } => "IMDSv2",
            Self::NamespacePolicy { .. } => "namespace policy",
            Self::Token { .. } => "token",
            Self::Sts { .. } => "STS",
            Self::Credentials { .. } => "credentials",
        }
    }

    /// The role that it is of.
    #[must_use]
    pub fn role(&self) -> Option<&str> {
        match self {
            Self::NamespacePolicy { role, .. }
            | Self::Token { role, .. }
            | Self::Sts { role, .. }
            | Self::Credentials { role, .. } => role.as_deref(),
            _ => None,
        }
    }
}
