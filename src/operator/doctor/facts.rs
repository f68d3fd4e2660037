//! What the doctor judges by: read from the cluster, from this node and from STS; nothing is changed there.

use std::{collections::BTreeSet, path::Path};

use http::Uri;

use super::{
    aws::{self, Answer, Place},
    node::NodeFacts,
    rights::{Rights, Subject},
    server::{Clocks, Issuer, Version},
};
use crate::{
    imds::upstream,
    intercept::check::Expected,
    operator::{
        cluster::Cluster,
        inventory::{Inventory, Read},
        settings::Settings,
    },
};

/// The daemon's namespace and its ServiceAccount, where no DaemonSet says otherwise.
const OURS: &str = "kube2irsa";
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// What is looked at.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The cluster's objects, rights and issuer.
    pub(super) cluster: bool,
    /// This node, where what is expected of it is known.
    pub(super) node: Option<OnNode<'a>>,
    /// The region whose STS is asked, instead of what the cluster says.
    pub(super) region: Option<&'a str>,
    /// Where STS is, instead of what the cluster says.
    pub(super) sts_endpoint: Option<&'a str>,
    /// Certificates (PEM) to trust for STS and the issuer.
    pub(super) ca_bundle: Option<Vec<u8>>,
}

/// A node that is looked at from itself.
#[derive(Debug)]
pub(super) struct OnNode<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) expected: Expected,
    /// The real metadata service; `None`: there is none.
    pub(super) metadata: Option<Uri>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) cluster: Option<ClusterFacts>,
    /// Why the API server was not asked.
    pub(super) no_api: Option<String>,
    pub(super) node: Option<NodeFacts>,
    pub(super) clocks: Clocks,
    pub(super) sts: Vec<Answer>,
}

/// What the API server says.
#[derive(Debug)]
pub(super) struct ClusterFacts {
    pub(super) url: String,
    pub(super) version: Read<Version>,
    pub(super) inventory: Inventory,
    /// What the daemons are told; an error, if that is not understood.
    pub(super) settings: Read<Settings>,
    /// The daemon's ServiceAccount.
    pub(super) account: (String, String),
    pub(super) rights: Read<Rights>,
    pub(super) issuer: Issuer,
}

// === impl Facts ===

impl Facts {
    pub(super) async fn read(wanted: &Wanted<'_>, cluster: Result<Cluster, String>) -> Self {
        let node = match &wanted.node {
            None => None,
            Some(OnNode { name, expected, metadata }) => {
                Some(NodeFacts::read(name.map(str::to_owned), expected, metadata.as_ref()).await)
            }
        };
        let version = match &cluster {
            Ok(cluster) => Version::read(cluster).await,
            Err(why) => Err(why.clone()),
        };
        let (of_cluster, no_api) = match (cluster, &version) {
            (Ok(cluster), Ok(_)) if wanted.cluster => {
                let facts = ClusterFacts::read(&cluster, version.clone(), wanted.ca_bundle.as_deref()).await;
                (Some(facts), None)
            }
            (_, Ok(_)) => (None, None),
            (_, Err(why)) => (None, Some(why.clone())),
        };
        let places = places(wanted, of_cluster.as_ref()).await;
        let sts = aws::ask(places, wanted.ca_bundle.as_deref()).await;
        let of_sts = sts.iter().find_map(|answer| answer.answered.as_ref().ok()).map(|answered| answered.ahead);
        let of_api = version.ok().and_then(|version| version.ahead);
        let clocks = Clocks { of_api, of_sts, on_node: node.is_some() };
        Self { cluster: of_cluster, no_api, node, clocks, sts }
    }
}

/// Each STS that the daemons call, as far as that is known.
async fn places(wanted: &Wanted<'_>, cluster: Option<&ClusterFacts>) -> BTreeSet<Place> {
    let settings = cluster.and_then(|cluster| cluster.settings.as_ref().ok());
    let endpoint = wanted.sts_endpoint.map(str::to_owned);
    let endpoint = endpoint.or_else(|| settings.and_then(|settings| settings.sts_endpoint.clone()));
    let region = wanted.region.map(str::to_owned);
    let mut regions = BTreeSet::new();
    match region.or_else(|| settings.and_then(|settings| settings.region.clone())) {
        Some(region) => drop(regions.insert(region)),
        None => {
            let nodes = cluster.into_iter().flat_map(|cluster| cluster.inventory.nodes.iter().flatten());
            regions.extend(nodes.filter_map(|node| node.metadata.labels.get(REGION_LABEL).cloned()));
            let metadata = wanted.node.as_ref().and_then(|node| node.metadata.as_ref());
            if let Some(metadata) = metadata.filter(|_| regions.is_empty()) {
                regions.extend(upstream::region(metadata).await.ok());
            }
        }
    }
    if let Some(endpoint) = endpoint {
        return [Place { region: regions.into_iter().next(), endpoint: Some(endpoint) }].into();
    }
    let mut places =
        regions.into_iter().map(|region| Place { region: Some(region), endpoint: None }).collect::<BTreeSet<_>>();
    let asks_global = cluster.zip(settings).is_some_and(|(cluster, settings)| {
        let mut accounts = cluster.inventory.accounts.iter().flatten();
        accounts.any(|account| {
            let wishes = settings.keys.read(&account.metadata.annotations).ok().flatten();
            wishes.is_some_and(|wishes| wishes.main.regional_sts == Some(false))
        })
    });
    if asks_global {
        places.insert(Place::global());
    }
    places
}

// === impl ClusterFacts ===

impl ClusterFacts {
    async fn read(cluster: &Cluster, version: Read<Version>, ca_bundle: Option<&[u8]>) -> Self {
        let (inventory, issuer) = futures::join!(Inventory::read(cluster), Issuer::read(cluster, ca_bundle));
        let set = inventory.daemon();
        let settings = set.map_or_else(Settings::defaults, Settings::of);
        let account = set.map_or((OURS, OURS), |set| {
            (set.metadata.namespace.as_str(), set.spec.template.spec.service_account_name.as_str())
        });
        let node = inventory.daemon_pods().first().map(|pod| pod.spec.node_name.clone());
        let audiences = match &settings {
            Ok(settings) => audiences(&inventory, settings),
            Err(_) => Vec::new(),
        };
        let subject = Subject { account, node: node.as_deref(), audiences };
        let rights = Rights::read(cluster, &subject).await;
        let account = (account.0.to_owned(), account.1.to_owned());
        Self { url: cluster.url.clone(), version, settings, account, rights, issuer, inventory }
    }
}

/// The audiences of tokens: the daemon's first, and then those that service accounts ask for.
fn audiences(inventory: &Inventory, settings: &Settings) -> Vec<(String, Option<(String, String)>)> {
    let mut audiences = vec![(settings.audience.clone(), None)];
    for account in inventory.accounts.iter().flatten() {
        let Ok(Some(wishes)) = settings.keys.read(&account.metadata.annotations) else { continue };
        if let Some(audience) = wishes.main.audience
            && !audiences.iter().any(|(known, _)| *known == audience)
        {
            let (namespace, name) = account.metadata.key();
            audiences.push((audience, Some((namespace.to_owned(), name.to_owned()))));
        }
    }
    audiences
}

/// The certificates of a file.
pub(super) fn certificates(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("--ca-bundle {}: {error}", file.display()))
}
