//! What binds a pod to an address: the host-side link that leads there. Pure: no I/O, no clock, no tokio.
//!
//! Owns the links of this node by index and the state of one claim (pod UID, address). An address that was
//! freed is given away before the API server says so; its link ends before that.
//! Invariant: a claim is bound to a link only if that can have been the pod's own, and for as long as it lives.

use std::collections::HashMap;

/// A container's start is told in whole seconds, and we may hear of a link some time after it is made.
const LEEWAY_SECONDS: u64 = 1;

/// The host-side link that leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The interface index, which the kernel does not use again.
    pub index: u32,
    /// On a bridge: the neighbour's hardware address, behind the port with that index.
    pub mac: Option<[u8; 6]>,
}

/// Why a claim was suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its link ended.
    LinkGone,
    /// Another link leads to the address.
    LinkChanged,
    /// Another hardware address answers for the address, behind the same port.
    MacChanged,
}

impl Reason {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::LinkGone => "link_gone",
            Self::LinkChanged => "link_changed",
            Self::MacChanged => "mac_changed",
        }
    }
}

/// Whether an address whose link nobody found is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Not before its link is found: where packets are intercepted, each comes by some link.
    Required,
    /// It is served until a link is found, and from then on as the link allows.
    #[default]
    WhereFound,
}

/// The links that there are, and when those appeared that were not there when we began to watch.
#[derive(Debug, Default)]
pub(super) struct Links {
    living: HashMap<u32, Option<Appeared>>,
    order: u64,
}

#[derive(Clone, Copy, Debug)]
struct Appeared {
    order: u64,
    unix_seconds: u64,
}

impl Links {
    /// A link was there when we began to watch.
    pub(super) fn was_there(&mut self, index: u32) {
        self.living.entry(index).or_default();
    }

    pub(super) fn appeared(&mut self, index: u32, unix_seconds: u64) {
        self.living.entry(index).or_insert_with(|| {
            self.order += 1;
            Some(Appeared { order: self.order, unix_seconds })
        });
    }

    pub(super) fn ended(&mut self, index: u32) {
        self.living.remove(&index);
    }

    pub(super) fn living(&self) -> impl Iterator<Item = u32> {
        self.living.keys().copied()
    }

    /// Whether the link can be that of a pod that was first looked for after `horizon`, and whose newest container
    /// started then: a pod's link is there before its containers start, and those before its address is told.
    fn can_be(&self, link: Link, horizon: u64, container_started: Option<u64>) -> bool {
        let (Some(appeared), Some(started)) = (self.living.get(&link.index), container_started) else {
            return false;
        };
        appeared.is_none_or(|link| link.order <= horizon && link.unix_seconds <= started + LEEWAY_SECONDS)
    }
}

/// How a claim stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// No link is known.
    #[default]
    New,
    /// It was looked for, when `horizon` was the latest link to have appeared and `known` the start of the newest
    /// container; a later link cannot be that container's.
    Unbound { horizon: u64, known: Option<u64> },
    /// This link leads to the address.
    Bound(Link),
    /// The link ended or changed.
    Suspended(Suspended),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspended {
    /// The link, while it lives: should it lead to the address again, nothing has changed.
    was: Option<Link>,
    /// When it was suspended, in seconds since the Unix epoch.
    since: u64,
    /// The start of the newest container that was known by then.
    known: Option<u64>,
}

impl Standing {
    pub(super) fn is_suspended(self) -> bool {
        matches!(self, Self::Suspended(_))
    }

    pub(super) fn is_bound(self) -> bool {
        matches!(self, Self::Bound(_))
    }

    pub(super) fn link(self) -> Option<Link> {
        match self {
            Self::Bound(link) => Some(link),
            Self::New | Self::Unbound { .. } | Self::Suspended(_) => None,
        }
    }

    /// The API server tells of the pod. A container that started after the suspension is on a link of its own.
    pub(super) fn told(&mut self, container_started: Option<u64>) {
        let anew = match *self {
            Self::Unbound { known, .. } => container_started > known,
            Self::Suspended(Suspended { since, known, .. }) => container_started > known.max(Some(since)),
            Self::New | Self::Bound(_) => false,
        };
        if anew {
            *self = Self::New;
        }
    }

    /// A link ended. `known` is the start of the pod's newest container.
    pub(super) fn ended(&mut self, index: u32, known: Option<u64>, now: u64) -> Option<Reason> {
        match self {
            Self::Bound(link) if link.index == index => {
                *self = Self::Suspended(Suspended { was: None, since: now, known });
                Some(Reason::LinkGone)
            }
            Self::Suspended(suspended) if suspended.was.is_some_and(|was| was.index == index) => {
                suspended.was = None;
                None
            }
            Self::New | Self::Unbound { .. } | Self::Bound(_) | Self::Suspended(_) => None,
        }
    }

    /// News of links was lost: whether the link is still the same has to be seen.
    pub(super) fn doubt(&mut self, known: Option<u64>, now: u64) -> bool {
        let Self::Bound(link) = *self else { return false };
        *self = Self::Suspended(Suspended { was: Some(link), since: now, known });
        true
    }

    /// It was looked which link leads to the address now; `may_bind` says whether the pod is the one to be meant.
    pub(super) fn looked(
        &mut self,
        found: Option<Link>,
        may_bind: bool,
        links: &Links,
        known: Option<u64>,
        now: u64,
    ) -> Option<Reason> {
        let found = found.filter(|link| links.living.contains_key(&link.index));
        match (*self, found) {
            (Self::New, found) => {
                *self = Self::Unbound { horizon: links.order, known };
                return self.looked(found, may_bind, links, known, now);
            }
            (Self::Unbound { horizon, .. }, Some(link)) if may_bind && links.can_be(link, horizon, known) => {
                *self = Self::Bound(link);
            }
            (Self::Bound(was), Some(link)) if was != link => {
                *self = Self::Suspended(Suspended { was: Some(was), since: now, known });
                let same_port = was.index == link.index;
                return Some(if same_port { Reason::MacChanged } else { Reason::LinkChanged });
            }
            (Self::Suspended(Suspended { was: Some(was), .. }), Some(link)) if was == link => {
                *self = Self::Bound(link);
            }
            (Self::Unbound { .. } | Self::Bound(_) | Self::Suspended(_), _) => {}
        }
        None
    }
}
