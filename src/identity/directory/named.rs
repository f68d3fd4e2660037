//! Roles that pods name themselves, by the annotations of kube2iam and kiam, where these are heeded.
//!
//! Invariants: a service account's role comes first, so that a pod's own counts only where that names none; and no pod has
//! one that its namespace does not permit.

use std::sync::Arc;

use super::{Directory, State};
use crate::identity::{
    caller::{Grant, Role, Roles},
    index::Pod,
    legacy::Legacy,
    names::RoleArn,
    policy::{Demands, Forbids},
};

/// Pods that name a role themselves, and what becomes of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegacyFigures {
    /// It is theirs.
    pub used: usize,
    /// Their service account names one, which comes first.
    pub superseded: usize,
    /// It cannot be meant, or is not permitted.
    pub refused: usize,
    /// What it depends on is not known.
    pub not_known: usize,
}

impl Directory {
    /// The directory, before it knows pods, with this said of the roles that they name.
    #[must_use]
    pub fn with_legacy(self, legacy: Option<Legacy>) -> Self {
        self.state().legacy = legacy;
        self
    }

    /// From now on the names of roles are those of roles of this account: `arn:…:role/`.
    pub fn take_legacy_names_for(&self, base: String) {
        let mut state = self.state();
        if let Some(legacy) = &mut state.legacy {
            legacy.base = Some(base);
        }
        self.publish_pods(&mut state, |pod| pod.legacy.is_some());
    }
}

impl State {
    /// The pod, without annotations that nobody heeds.
    pub(super) fn keep(&self, mut pod: Pod) -> Pod {
        pod.legacy = pod.legacy.filter(|_| self.legacy.is_some());
        pod
    }

    /// What the pod names. Its service account, which names nothing, is known.
    pub(super) fn roles_of_pod(&self, pod: &Arc<Pod>) -> Roles {
        let none = Roles { main: Role::None, ..Roles::default() };
        let (Some(legacy), Some(annotations)) = (&self.legacy, &pod.legacy) else { return none };
        let account = self.accounts.get(&pod.namespace).and_then(|of| of.by_name.get(&pod.service_account));
        let Some(account) = account else { return Roles::default() };
        let main = Role::from(legacy.wish(annotations).map(|wish| Grant {
            pod: Arc::clone(pod),
            account: account.uid.clone(),
            wish,
        }));
        Roles { main, ..Roles::default() }
    }

    /// The role of a pod's own naming that its namespace does not permit.
    pub(super) fn refused_to_pod<'a>(&self, grant: &'a Grant, demands: &Demands) -> Option<(&'a RoleArn, Forbids)> {
        let legacy = self.legacy.as_ref().filter(|_| grant.wish.of_pod.is_some())?;
        let role = &grant.wish.role;
        legacy.forbids(&demands.legacy, role).map(|by| (role, by))
    }

    pub(super) fn legacy_figures(&self) -> Option<LegacyFigures> {
        self.legacy.as_ref()?;
        let mut figures = LegacyFigures::default();
        for pod in self.index.pods().filter(|pod| pod.legacy.is_some() && self.may_have_roles(pod)) {
            let count = match &self.roles(pod).main {
                Role::Granted(grant) if grant.wish.of_pod.is_some() => &mut figures.used,
                Role::Invalid(error) if error.is_of_pod() => &mut figures.refused,
                Role::Granted(_) | Role::Invalid(_) => &mut figures.superseded,
                Role::Unknown | Role::None => &mut figures.not_known,
            };
            *count += 1;
        }
        Some(figures)
    }
}
