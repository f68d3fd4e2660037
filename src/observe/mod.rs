//! Looks on: names the pods that contact the metadata service, and what each would get, while nothing is redirected.
//!
//! Owns a packet socket, and puts nothing on the node. It sees first packets of connections as they come in from pods,
//! before any rule; who is behind a source address the directory says, as it does for requests.
//! Invariant: the work on a packet is small and what is remembered of packets is bounded; a pod that connects in a rush, or
//! under addresses that it makes up, costs the node no more than that, and the log a few lines.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{sync::watch, time::Instant};

mod contacts;
mod filter;
mod packet;
mod tap;

use self::{
    contacts::{Contacts, News, Prospect},
    packet::FirstPacket,
    tap::Tap,
};
use crate::{
    clock,
    identity::{Caller, Directory, Unidentified},
    intercept::guard,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// How long a pod may take to become known: nobody waits for it here.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// An address that was found to be no known pod's is not asked for again within it.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Addresses that are asked for at once, and those that were found to be no known pod's.
const MOST_UNKNOWN: usize = 256;
/// Packets among which one is known for the same as another: seen on a bridge and on its port, or sent again.
const REPEATED_WITHIN: usize = 64;
/// Between two full batches: that many packets in a second are read at the most, and the kernel drops the rest.
const PAUSE: Duration = Duration::from_millis(5);
/// After the socket could not be had, or broke.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What is observed, and for whom.
#[derive(Debug)]
pub struct Observation {
    /// The addresses that would be redirected.
    pub addresses: Arc<[IpAddr]>,
    /// Who is behind a source address.
    pub directory: Arc<Directory>,
    /// Told whether anything can be seen.
    pub readiness: Arc<Readiness>,
    /// Told what was seen.
    pub metrics: Arc<Metrics>,
}

impl Observation {
    /// Looks on once it is ours to do, and never ends. Whether it can be done is known before that.
    pub async fn keep(self, mut owns: watch::Receiver<bool>) {
        let mut tap = self.open().await;
        if owns.wait_for(|owns| *owns).await.is_err() {
            return std::future::pending().await;
        }
        tell_of_rules().await;
        let mut observer = Observer::new(&self);
        loop {
            let Err(error) = observer.look_on(&tap).await;
            tracing::warn!(%error, "the packet socket broke; there will be another");
            self.readiness.lacks(Condition::Observation, error);
            tokio::time::sleep(TRY_AGAIN).await;
            tap = self.open().await;
        }
    }

    async fn open(&self) -> Tap {
        let mut told = false;
        loop {
            let error = match Tap::open(&self.addresses) {
                Ok(tap) => {
                    self.readiness.holds(Condition::Observation);
                    return tap;
                }
                Err(error) => error,
            };
            let needs = match error.kind() {
                io::ErrorKind::PermissionDenied => " (it needs the capability NET_RAW)",
                _ => "",
            };
            let problem = format!("no packet socket to see pods' packets{needs}: {error}");
            if !std::mem::replace(&mut told, true) {
                tracing::error!("--intercept observe: {problem}; tried again");
            }
            self.readiness.lacks(Condition::Observation, problem);
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
}

/// What an earlier run has put on the node stays there.
async fn tell_of_rules() {
    match guard::stands().await {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            "--intercept observe: rules of an earlier run are on this node and stay; pods are refused until a daemon \
             serves them again, or `kube2irsa rules remove` takes them out"
        ),
        Err(error) => tracing::warn!(%error, "it cannot be seen whether rules of an earlier run are on this node"),
    }
}

type Identified = (IpAddr, Result<Arc<Caller>, Unidentified>);

struct Observer<'a> {
    observation: &'a Observation,
    contacts: Contacts,
    /// The last packets.
    recent: VecDeque<FirstPacket>,
    /// Source addresses that are asked for, and how often each has contacted which address meanwhile.
    asked: HashMap<IpAddr, BTreeMap<IpAddr, u64>>,
    answers: FuturesUnordered<BoxFuture<'a, Identified>>,
    /// Source addresses that were found to be no known pod's, and when.
    unknown: HashMap<IpAddr, (Unidentified, Instant)>,
    /// Whether it was told that not all are named.
    told_unnamed: bool,
}

impl<'a> Observer<'a> {
    fn new(observation: &'a Observation) -> Self {
        Self {
            observation,
            contacts: Contacts::default(),
            recent: VecDeque::with_capacity(REPEATED_WITHIN),
            asked: HashMap::new(),
            answers: FuturesUnordered::new(),
            unknown: HashMap::new(),
            told_unnamed: false,
        }
    }

    async fn look_on(&mut self, tap: &Tap) -> io::Result<Infallible> {
        loop {
            tokio::select! {
                packets = tap.read() => {
                    let packets = packets?;
                    packets.iter().for_each(|packet| self.see(*packet));
                    if packets.len() == tap::BATCH {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Some((source, who)) = self.answers.next() => self.identified(source, &who),
            }
        }
    }

    fn see(&mut self, packet: FirstPacket) {
        if self.recent.contains(&packet) {
            return;
        }
        if self.recent.len() == REPEATED_WITHIN {
            self.recent.pop_front();
        }
        self.recent.push_back(packet);
        let FirstPacket { source, to, .. } = packet;
        if let Some(caller) = self.observation.directory.identified(source) {
            return self.note(source, to, &Ok(caller), 1);
        }
        if let Some(counts) = self.asked.get_mut(&source) {
            *counts.entry(to).or_default() += 1;
            return;
        }
        let now = Instant::now();
        if let Some((why, since)) = self.unknown.get(&source)
            && now.duration_since(*since) < ASK_AGAIN
        {
            let why = *why;
            return self.note(source, to, &Err(why), 1);
        }
        if self.asked.len() == MOST_UNKNOWN {
            return self.note_unnamed(1);
        }
        self.asked.insert(source, BTreeMap::from([(to, 1)]));
        let directory = &self.observation.directory;
        let identify = async move { (source, directory.identify(source, now + KNOWN_WITHIN).await) };
        self.answers.push(identify.boxed());
    }

    fn identified(&mut self, source: IpAddr, who: &Result<Arc<Caller>, Unidentified>) {
        match who {
            Ok(_) => {
                self.unknown.remove(&source);
            }
            Err(why) => {
                let now = Instant::now();
                if self.unknown.len() >= MOST_UNKNOWN {
                    self.unknown.retain(|_, (_, since)| now.duration_since(*since) < ASK_AGAIN);
                }
                if self.unknown.len() < MOST_UNKNOWN {
                    self.unknown.insert(source, (*why, now));
                }
            }
        }
        for (to, count) in self.asked.remove(&source).unwrap_or_default() {
            self.note(source, to, who, count);
        }
    }

    /// Counts contacts, and tells of them where that is news.
    fn note(&mut self, source: IpAddr, to: IpAddr, who: &Result<Arc<Caller>, Unidentified>, count: u64) {
        let now = clock::now().monotonic;
        let prospect = match who {
            Ok(caller) => Prospect::from(&caller.roles.main),
            Err(why) => Prospect::Unidentified(*why),
        };
        let news = match who {
            Ok(caller) => self.contacts.pod(&caller.pod.uid, to, prospect.clone(), now),
            Err(why) => self.contacts.address(source, to, *why, now),
        };
        match news {
            News::Known => {}
            News::Unnamed => return self.note_unnamed(count),
            News::Tell => {
                match who {
                    Ok(caller) => tell_of_pod(caller, to, &prospect),
                    Err(why) => tracing::info!(%source, %to, "{source} contacts {to}: {}", reason(*why)),
                }
                for (outcome, count) in self.contacts.counts() {
                    let gauge = self.observation.metrics.observed_pods.with_label_values(&[outcome]);
                    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                }
            }
        }
        self.count(prospect.label(), count);
    }

    fn note_unnamed(&mut self, count: u64) {
        self.count(Prospect::Unidentified(Unidentified::NotYet).label(), count);
        if !std::mem::replace(&mut self.told_unnamed, true) {
            tracing::warn!("more contact the metadata service than can be remembered: not all are named");
        }
    }

    fn count(&self, outcome: &str, count: u64) {
        self.observation.metrics.observed_connections.with_label_values(&[outcome]).inc_by(count);
    }
}

fn tell_of_pod(caller: &Caller, to: IpAddr, prospect: &Prospect) {
    let pod = &caller.pod;
    let would = match prospect {
        Prospect::Role(role) => format!("it would get {role}"),
        Prospect::NoRole => "it would get no role: its service account names none".to_owned(),
        Prospect::Invalid(error) => format!("it would get no role: {error}"),
        Prospect::Unidentified(why) => reason(*why).to_owned(),
    };
    tracing::info!(
        namespace = %pod.namespace, pod = %pod.name, service_account = %pod.service_account, %to, outcome = prospect.label(),
        "pod {}/{} of service account {} contacts {to}: {would}", pod.namespace, pod.name, pod.service_account
    );
}

fn reason(why: Unidentified) -> &'static str {
    match why {
        Unidentified::NotYet => "not known yet to be a pod of this node's",
        Unidentified::Disputed => "several pods claim this address, and none would be served there",
        Unidentified::Suspended => "the link of the pod with this address ended or changed, and it would not be served",
        Unidentified::Unbound => "no link is known to be that of the pod with this address, and it would not be served",
        Unidentified::LinkLocal => {
            "a way out to IPv4 of a cluster of IPv6, by which no pod can be known: it would not be served, but over IPv6 \
             (AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6)"
        }
        Unidentified::HostProcess => "a process on the node's network that is no pod's",
        Unidentified::Nobody => "no pod of this node's has this address, and it would not be served",
    }
}
