//! Who has contacted the metadata service, and what of it was told. Pure.
//!
//! Invariant: what is remembered is bounded, however many addresses a pod makes up; those that are no pod's never take the
//! place of pods.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::identity::{PodUid, Role, RoleArn, Unidentified, annotations::AnnotationError};

/// A contact that goes on is told of again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(3600);
/// Pods that are remembered; a node has a tenth of them at a time.
const MOST_PODS: usize = 1024;
/// Addresses that are no pod's.
const MOST_ADDRESSES: usize = 256;

/// What would become of a contact if it were redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// This role's credentials.
    Role(RoleArn),
    /// Nothing: the service account names no role.
    NoRole,
    /// Nothing, until somebody mends what is wrong.
    Invalid(AnnotationError),
    /// Nothing: the address could not be told to be one pod's.
    Unidentified(Unidentified),
}

impl Prospect {
    /// As a metric's label.
    pub(super) fn label(&self) -> &'static str {
        let [role, no_role, invalid, unidentified] = OUTCOMES;
        match self {
            Self::Role(_) => role,
            Self::NoRole => no_role,
            Self::Invalid(_) => invalid,
            Self::Unidentified(_) => unidentified,
        }
    }
}

/// All labels.
pub(super) const OUTCOMES: [&str; 4] = ["role", "no_role", "invalid", "unidentified"];

impl From<&Role> for Prospect {
    fn from(role: &Role) -> Self {
        match role {
            Role::Granted(grant) => Self::Role(grant.role().clone()),
            Role::None => Self::NoRole,
            Role::Invalid(error) => Self::Invalid(error.clone()),
            Role::Unknown => Self::Unidentified(Unidentified::NotYet),
        }
    }
}

/// What is to be said of a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It is new, or it would come to something else, or it has been long.
    Tell,
    /// Nothing.
    Known,
    /// There is no room to remember it.
    Unnamed,
}

/// All who have contacted the service.
#[derive(Debug)]
pub(super) struct Contacts {
    pods: Remembered<PodUid>,
    addresses: Remembered<IpAddr>,
}

impl Default for Contacts {
    fn default() -> Self {
        Self { pods: Remembered::at_most(MOST_PODS), addresses: Remembered::at_most(MOST_ADDRESSES) }
    }
}

impl Contacts {
    /// This pod has contacted that address.
    pub(super) fn pod(&mut self, pod: &PodUid, to: IpAddr, prospect: Prospect, now: Instant) -> News {
        self.pods.note(pod, to, prospect, now)
    }

    /// This address, which is no known pod's, has.
    pub(super) fn address(&mut self, source: IpAddr, to: IpAddr, why: Unidentified, now: Instant) -> News {
        self.addresses.note(&source, to, Prospect::Unidentified(why), now)
    }

    /// How many there are of each outcome.
    pub(super) fn counts(&self) -> [(&'static str, usize); OUTCOMES.len()] {
        let prospects = || self.pods.prospects().chain(self.addresses.prospects());
        OUTCOMES.map(|outcome| (outcome, prospects().filter(|prospect| prospect.label() == outcome).count()))
    }
}

#[derive(Debug)]
struct Remembered<K> {
    by_key: HashMap<K, Contact>,
    most: usize,
}

#[derive(Debug)]
struct Contact {
    prospect: Prospect,
    /// The addresses that were contacted.
    to: BTreeSet<IpAddr>,
    told: Instant,
    last: Instant,
}

impl<K: Clone + Eq + Hash> Remembered<K> {
    fn at_most(most: usize) -> Self {
        Self { by_key: HashMap::new(), most }
    }

    fn note(&mut self, key: &K, to: IpAddr, prospect: Prospect, now: Instant) -> News {
        if let Some(contact) = self.by_key.get_mut(key) {
            contact.last = now;
            let is_new = contact.to.insert(to);
            if !is_new && contact.prospect == prospect && now.duration_since(contact.told) < TELL_AGAIN {
                return News::Known;
            }
            contact.prospect = prospect;
            contact.told = now;
            return News::Tell;
        }
        if self.by_key.len() >= self.most {
            self.by_key.retain(|_, contact| now.duration_since(contact.last) < TELL_AGAIN);
        }
        if self.by_key.len() >= self.most {
            return News::Unnamed;
        }
        self.by_key.insert(key.clone(), Contact { prospect, to: BTreeSet::from([to]), told: now, last: now });
        News::Tell
    }

    fn prospects(&self) -> impl Iterator<Item = &Prospect> {
        self.by_key.values().map(|contact| &contact.prospect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, intercept::METADATA};

    #[test]
    fn a_contact_is_told_once_and_again_when_it_would_come_to_something_else_or_after_an_hour() {
        let mut contacts = Contacts::default();
        let start = clock::now().monotonic;
        let at = |seconds| start + Duration::from_secs(seconds);
        let [v4, v6] = METADATA;
        let (pod, other) = (PodUid::from("a"), PodUid::from("b"));
        let role = |name: &str| Prospect::Role(format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap());
        for (pod, to, prospect, now, news) in [
            (&pod, v4, Prospect::NoRole, 0, News::Tell),
            (&pod, v4, Prospect::NoRole, 1, News::Known),
            (&other, v4, Prospect::NoRole, 1, News::Tell),
            (&pod, v6, Prospect::NoRole, 2, News::Tell),
            (&pod, v6, role("a"), 3, News::Tell),
            (&pod, v4, role("a"), 4, News::Known),
            (&pod, v4, role("b"), 5, News::Tell),
            (&pod, v4, role("b"), 3604, News::Known),
            (&pod, v4, role("b"), 3605, News::Tell),
            (&pod, v4, role("b"), 3606, News::Known),
        ] {
            assert_eq!(contacts.pod(pod, to, prospect.clone(), at(now)), news, "{pod:?} {to} {prospect:?} {now}");
        }
        assert_eq!(contacts.counts(), [("role", 1), ("no_role", 1), ("invalid", 0), ("unidentified", 0)]);
    }

    #[test]
    fn addresses_that_are_made_up_are_bounded_and_cost_no_pod_its_place() {
        let mut contacts = Contacts::default();
        let start = clock::now().monotonic;
        let [to, _] = METADATA;
        assert_eq!(contacts.pod(&PodUid::from("before"), to, Prospect::NoRole, start), News::Tell);
        let source = |number: u32| IpAddr::from(number.to_be_bytes());
        let told = (0..100_000)
            .filter(|number| contacts.address(source(*number), to, Unidentified::Nobody, start) == News::Tell);
        assert_eq!(told.count(), MOST_ADDRESSES);
        assert_eq!(contacts.pod(&PodUid::from("after"), to, Prospect::NoRole, start), News::Tell);
        assert_eq!(contacts.pod(&PodUid::from("before"), to, Prospect::NoRole, start), News::Known);
        assert_eq!(contacts.counts()[3], ("unidentified", MOST_ADDRESSES));
        let later = start + TELL_AGAIN;
        assert_eq!(contacts.address(source(100_000), to, Unidentified::Nobody, later), News::Tell, "the old make room");
    }
}
