//! Who asks, and what that one is entitled to: a pod, its service account, the role. Pure.

use std::sync::Arc;

use super::{
    annotations::{AnnotationError, Wish, Wishes},
    index::Pod,
    names::{RoleArn, ServiceAccountUid},
};

/// The roles of a pod: its service account's, or, where that names none, the one that the pod names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// The one that its pods are given unless they ask for another.
    pub main: Role,
    /// Those that they may ask for by name.
    pub additional: Vec<(String, Role)>,
}

/// One role of a pod's service account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Not known (yet): the service account has not been read, or is gone.
    #[default]
    Unknown,
    /// The service account names none, nor does the pod.
    None,
    /// The annotations cannot be meant, or the namespace does not permit a role on the way.
    Invalid(AnnotationError),
    /// This one.
    Granted(Arc<Grant>),
}

impl From<Result<Grant, AnnotationError>> for Role {
    fn from(read: Result<Grant, AnnotationError>) -> Self {
        match read {
            Ok(grant) => Self::Granted(Arc::new(grant)),
            Err(AnnotationError::AccountNotKnown { .. }) => Self::Unknown,
            Err(error) => Self::Invalid(error),
        }
    }
}

impl Roles {
    /// The role that goes by this name. What is said of the main role holds for every name while it has none.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Role> {
        match (self.additional.iter().find(|(other, _)| other == name), &self.main) {
            (Some((_, role)), _) => Some(role),
            (None, Role::Granted(grant)) => (grant.role().name() == name).then_some(&self.main),
            (None, main) => Some(main),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Role> {
        std::iter::once(&self.main).chain(self.additional.iter().map(|(_, role)| role))
    }

    /// All that the pod is entitled to.
    pub fn grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.all().filter_map(|role| match role {
            Role::Granted(grant) => Some(grant),
            Role::Unknown | Role::None | Role::Invalid(_) => None,
        })
    }

    /// Each role as `change` makes it.
    pub(super) fn map(self, change: impl Fn(Role) -> Role) -> Self {
        let additional = self.additional.into_iter().map(|(name, role)| (name, change(role))).collect();
        Self { main: change(self.main), additional }
    }
}

/// What a pod is entitled to. Two grants are the same when the pod's UID, its account and the wish are.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its service account.
    pub account: ServiceAccountUid,
    /// What that asks for, or the pod.
    pub wish: Wish,
}

impl Grant {
    /// The role that the pod gets.
    #[must_use]
    pub fn role(&self) -> &RoleArn {
        self.wish.last_role()
    }

    /// Who names the role: `service account namespace/name`, or `pod namespace/name`.
    #[must_use]
    pub fn by(&self) -> String {
        let pod = &self.pod;
        match self.wish.of_pod {
            None => format!("service account {}/{}", pod.namespace, pod.service_account),
            Some(_) => format!("pod {}/{}", pod.namespace, pod.name),
        }
    }

    /// Whether the pod's own volumes bring it a token for STS, as the EKS webhook sees to: its SDK will not ask us.
    #[must_use]
    pub fn pod_has_token(&self, audience: &str) -> bool {
        let audience = self.wish.audience.as_deref().unwrap_or(audience);
        self.pod.token_audiences.iter().any(|of_token| of_token == audience)
    }
}

impl PartialEq for Grant {
    fn eq(&self, other: &Self) -> bool {
        self.pod.uid == other.pod.uid && self.account == other.account && self.wish == other.wish
    }
}

impl Eq for Grant {}

/// A pod that may ask, and what it is entitled to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its roles.
    pub roles: Roles,
    /// Whether its service account or its namespace asks that it bring a session token.
    pub require_imdsv2: bool,
}

/// Why nobody could be found behind an address in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unidentified {
    /// It may be that of a pod which we do not know yet: worth asking again.
    NotYet,
    /// Several pods claim it.
    Disputed,
    /// Its pod's link ended or changed.
    Suspended,
    /// Its pod is known, but the link that leads there cannot be said to be the pod's.
    Unbound,
    /// All pods of this node are known, and it is none of theirs.
    Nobody,
    /// An IPv4 link-local address that no pod is known by: Kubernetes gives pods none, but the way out to IPv4 of a
    /// cluster of IPv6 does.
    LinkLocal,
    /// A process on the node's network that cannot be told to be a pod's.
    HostProcess,
}

impl Unidentified {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NotYet => "not_yet_known",
            Self::Disputed => "disputed",
            Self::Suspended => "suspended",
            Self::Unbound => "unbound",
            Self::Nobody => "unknown",
            Self::LinkLocal => "link_local",
            Self::HostProcess => "host_process",
        }
    }
}

/// A service account as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.uid`.
    pub uid: ServiceAccountUid,
    /// What its annotations say of roles.
    pub wishes: Result<Option<Wishes>, AnnotationError>,
    /// Whether its pods must bring a session token.
    pub require_imdsv2: bool,
}

impl ServiceAccount {
    pub(super) fn roles(&self, pod: &Arc<Pod>) -> Roles {
        let grant = |wish: &Wish| {
            let (pod, account) = (Arc::clone(pod), self.uid.clone());
            Role::from(Ok(Grant { pod, account, wish: wish.clone() }))
        };
        match &self.wishes {
            Ok(None) => Roles { main: Role::None, ..Roles::default() },
            Ok(Some(Wishes { main, additional })) => {
                let additional = additional.iter().map(|(name, wish)| (name.clone(), grant(wish)));
                Roles { main: grant(main), additional: additional.collect() }
            }
            Err(error) => Roles { main: Err(error.clone()).into(), ..Roles::default() },
        }
    }
}
