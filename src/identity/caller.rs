//! Who asks, and what that one is entitled to: a pod, its service account, the role. Pure.

use std::sync::Arc;

use super::{
    annotations::{AnnotationError, Wish},
    index::Pod,
    names::{RoleArn, ServiceAccountUid},
};

/// The role of a pod's service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not known (yet): the service account has not been read, or is gone.
    Unknown,
    /// The service account names none.
    None,
    /// The service account's annotations cannot be meant, or its namespace does not permit the role.
    Invalid(AnnotationError),
    /// This one.
    Granted(Arc<Grant>),
}

/// What a pod is entitled to. Two grants are the same when the pod's UID, its account and the wish are.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its service account.
    pub account: ServiceAccountUid,
    /// What that asks for.
    pub wish: Wish,
}

impl Grant {
    /// The role to assume.
    #[must_use]
    pub fn role(&self) -> &RoleArn {
        &self.wish.role
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
    /// Its service account's role.
    pub role: Role,
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
        }
    }
}

/// A service account as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.uid`.
    pub uid: ServiceAccountUid,
    /// What its annotations say.
    pub wish: Result<Option<Wish>, AnnotationError>,
}

impl ServiceAccount {
    pub(super) fn role(&self, pod: &Arc<Pod>) -> Role {
        match &self.wish {
            Ok(None) => Role::None,
            Ok(Some(wish)) => {
                let (pod, account) = (Arc::clone(pod), self.uid.clone());
                Role::Granted(Arc::new(Grant { pod, account, wish: wish.clone() }))
            }
            Err(error) => Role::Invalid(error.clone()),
        }
    }
}
