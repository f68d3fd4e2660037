//! What the metadata service says of the node: the same for all its pods, and no secret.
//!
//! Owns where it comes from: flags, else the real service, asked through a session of our own until it answers, or, where
//! there is none, the node's labels. What nobody says is not there. The real service's signatures of its document are never passed on: they would prove to
//! others that a pod is the node.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Uri;
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use super::upstream;
use crate::identity::node::{Place, PlaceError};

/// Pauses between questions double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The same where the node was read, and does not say all: of thousands of nodes, that is some questions a second.
const RARELY: Duration = Duration::from_secs(600);

/// One of the things that are said of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Such as `eu-central-1`.
    Region,
    /// Such as `eu-central-1a`.
    Zone,
    /// Such as `i-0123456789abcdef0`.
    InstanceId,
    /// The instance identity document: JSON.
    Document,
}

const FACTS: [Fact; 4] = [Fact::Region, Fact::Zone, Fact::InstanceId, Fact::Document];

/// What the flags say of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// `--region`.
    pub region: Option<String>,
    /// `--availability-zone`.
    pub zone: Option<String>,
    /// `--instance-id`.
    pub instance_id: Option<String>,
    /// `--aws-account`.
    pub account: Option<String>,
    /// The real metadata service, if there is one.
    pub imds: Option<Uri>,
}

/// What is known of a fact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Known {
    /// Not yet.
    #[default]
    Asking,
    /// There is none.
    Nothing,
    /// This.
    This(Bytes),
}

/// What is known of the node.
#[derive(Clone, Debug)]
pub struct Facts(Arc<watch::Sender<[Known; FACTS.len()]>>);

/// A document in place of the real one: as much of it as is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<&'a str>,
    region: &'a str,
    version: &'static str,
}

// === impl Facts ===

impl Facts {
    /// What the flags say, and nothing yet of what others are to be asked.
    #[must_use]
    pub fn new(given: &Given) -> Self {
        let facts = Self(Arc::default());
        for fact in FACTS {
            if let Some(text) = given.says(fact) {
                facts.set(fact, Known::This(text.to_owned().into()));
            }
        }
        facts
    }

    /// Asks until all is known, and ends then: the real service if there is one, else what `place` asks.
    pub async fn learn(self, given: Given, place: impl AsyncFn() -> Result<Place, PlaceError>) {
        match given.imds.clone() {
            Some(imds) => self.learn_from_imds(given, &imds).await,
            None => self.learn_from_node(given, place).await,
        }
    }

    async fn learn_from_node(self, given: Given, place: impl AsyncFn() -> Result<Place, PlaceError>) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        let mut known = false;
        // All is given but perhaps the instance's id, which few ask for: not worth a right to read nodes.
        while given.region.is_none() || given.zone.is_none() {
            match place().await {
                Ok(place) => {
                    let complete = [(&given.region, &place.region), (&given.zone, &place.zone)]
                        .iter()
                        .all(|(given, said)| given.is_some() || said.is_some());
                    self.are(&given, place);
                    if complete {
                        return;
                    }
                    // A cloud's controller puts them there some time after the node has come.
                    known = true;
                }
                Err(error @ PlaceError::Refused { .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("pods are told of this node only what flags say: {error}");
                    }
                    if !std::mem::replace(&mut known, true) {
                        self.are(&given, Place::default());
                    }
                }
                Err(PlaceError::Unknown) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(if known { RARELY } else { LONGEST_PAUSE });
        }
        self.are(&given, Place::default());
    }

    /// What is given, and else what the node says.
    fn are(&self, given: &Given, place: Place) {
        let given = given.clone();
        let given = Given {
            region: given.region.or(place.region),
            zone: given.zone.or(place.zone),
            instance_id: given.instance_id.or(place.instance_id),
            ..given
        };
        for fact in FACTS {
            let known = given.says(fact).map_or(Known::Nothing, |text| Known::This(text.to_owned().into()));
            self.set(fact, if fact == Fact::Document { given.document() } else { known });
        }
    }

    async fn learn_from_imds(self, given: Given, imds: &Uri) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let mut problem = None;
            for fact in FACTS {
                if self.known(fact) != Known::Asking {
                    continue;
                }
                match upstream::fact(imds, fact).await {
                    Ok(Some(text)) => self.set(fact, Known::This(text.into())),
                    Ok(None) if fact == Fact::Document => self.set(fact, given.document()),
                    Ok(None) => self.set(fact, Known::Nothing),
                    Err(error) => problem = Some(error),
                }
            }
            let Some(error) = problem else { return };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("{imds} does not say what it knows of this node: {error}; it is asked again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What is said of the node; `Ok(None)` where nobody says it. Waits until `deadline` for what is not known yet.
    ///
    /// # Errors
    /// When it is not known by then.
    pub async fn get(&self, fact: Fact, deadline: Instant) -> Result<Option<Bytes>, tokio::time::error::Elapsed> {
        let mut changed = self.0.subscribe();
        let known = async {
            loop {
                match self.known(fact) {
                    Known::This(text) => return Some(text),
                    Known::Nothing => return None,
                    // The sender is ours.
                    Known::Asking => drop(changed.changed().await),
                }
            }
        };
        tokio::time::timeout_at(deadline, known).await
    }

    fn known(&self, fact: Fact) -> Known {
        let all = self.0.borrow();
        all.iter().zip(FACTS).find(|(_, of)| *of == fact).map(|(known, _)| known.clone()).unwrap_or_default()
    }

    fn set(&self, fact: Fact, known: Known) {
        self.0.send_modify(|all| {
            if let Some((place, _)) = all.iter_mut().zip(FACTS).find(|(_, of)| *of == fact) {
                *place = known;
            }
        });
    }
}

// === impl Given ===

impl Given {
    fn says(&self, fact: Fact) -> Option<&str> {
        match fact {
            Fact::Region => self.region.as_deref(),
            Fact::Zone => self.zone.as_deref(),
            Fact::InstanceId => self.instance_id.as_deref(),
            Fact::Document => None,
        }
    }

    fn document(&self) -> Known {
        let Some(region) = &self.region else { return Known::Nothing };
        let made = Made {
            account_id: self.account.as_deref(),
            availability_zone: self.zone.as_deref(),
            instance_id: self.instance_id.as_deref(),
            region,
            version: "2017-09-30",
        };
        serde_json::to_vec_pretty(&made).map_or(Known::Nothing, |text| Known::This(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    async fn learnt(given: &Given, place: impl Fn() -> Result<Place, PlaceError> + Send + Sync + 'static) -> Facts {
        let facts = Facts::new(given);
        let (learning, given) = (facts.clone(), given.clone());
        tokio::spawn(async move { learning.learn(given, move || std::future::ready(place())).await });
        tokio::task::yield_now().await;
        facts
    }

    fn refused() -> Result<Place, PlaceError> {
        Err(PlaceError::Refused { node: "node-1".into(), message: "forbidden".to_owned() })
    }

    #[tokio::test]
    async fn off_ec2_it_is_what_flags_or_labels_say_and_a_document_made_of_that() {
        let given = Given {
            region: Some("eu-central-1".to_owned()),
            zone: Some("eu-central-1a".to_owned()),
            account: Some("111122223333".to_owned()),
            ..Given::default()
        };
        let facts = learnt(&given, || panic!("nobody needs to be asked")).await;
        assert_eq!(facts.get(Fact::Region, soon()).await.unwrap().as_deref(), Some(&b"eu-central-1"[..]));
        assert_eq!(facts.get(Fact::InstanceId, soon()).await, Ok(None));
        let document = facts.get(Fact::Document, soon()).await.unwrap().unwrap();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&document).unwrap(),
            serde_json::json!({
                "accountId": "111122223333",
                "availabilityZone": "eu-central-1a",
                "region": "eu-central-1",
                "version": "2017-09-30",
            })
        );
        let facts = learnt(&Given::default(), refused).await;
        for fact in FACTS {
            assert_eq!(facts.get(fact, soon()).await, Ok(None), "{fact:?}");
        }
        let given = Given { region: Some("eu-west-1".to_owned()), ..Given::default() };
        let asked = AtomicUsize::new(0);
        let labelled_later = move || {
            let zone = (asked.fetch_add(1, Ordering::Relaxed) > 0).then(|| "elsewhere-1".to_owned());
            Ok(Place { region: Some("elsewhere".to_owned()), zone, instance_id: None })
        };
        let facts = learnt(&given, labelled_later).await;
        assert_eq!(facts.get(Fact::Region, soon()).await.unwrap().as_deref(), Some(&b"eu-west-1"[..]), "flags first");
        assert_eq!(facts.get(Fact::Zone, soon()).await, Ok(None), "not yet");
        tokio::time::sleep(FIRST_PAUSE * 2).await;
        assert_eq!(facts.get(Fact::Zone, soon()).await.unwrap().as_deref(), Some(&b"elsewhere-1"[..]));
    }

    #[tokio::test]
    async fn what_is_being_asked_for_is_waited_for() {
        let given = Given { imds: Some(Uri::from_static("http://192.0.2.1")), ..Given::default() };
        let facts = Facts::new(&given);
        assert!(facts.get(Fact::Zone, soon()).await.is_err());
        let waiting = tokio::spawn({
            let facts = facts.clone();
            async move { facts.get(Fact::Zone, Instant::now() + Duration::from_secs(20)).await }
        });
        tokio::task::yield_now().await;
        facts.set(Fact::Zone, Known::This("eu-central-1a".into()));
        assert_eq!(waiting.await.unwrap().unwrap().as_deref(), Some(&b"eu-central-1a"[..]));
    }
}
