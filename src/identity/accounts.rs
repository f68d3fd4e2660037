//! The watches of service accounts: one for each namespace with a pod on this node, metadata only; and, where
//! namespaces limit roles, one of each such namespace itself.
//!
//! So the load on the API server follows the node and not the cluster, and a changed annotation arrives
//! by itself. Owns the tasks; what they learn goes to the directory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube::Client;
use serde::Deserialize;
use tokio::{
    sync::watch::Receiver,
    task::{AbortHandle, JoinSet},
};

use super::{
    annotations::{Keys, require_imdsv2},
    caller::ServiceAccount,
    collection::{Collection, News},
    directory::Directory,
    legacy::{Format, Limits},
    names::{Namespace, ServiceAccountName},
    policy::{Demands, NamespacePolicy, PERMITTED_ROLES, PermittedRoles},
};
use crate::metrics::Metrics;

/// All namespaces are listed at the same time, so that a page is what the start's memory is a multiple of; a namespace
/// with more service accounts is rare.
const PAGE: u32 = 100;

/// An object, but for what we do not need.
#[derive(Deserialize)]
struct SlimObject {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    uid: String,
    annotations: Option<BTreeMap<String, String>>,
}

/// Keeps a watch open for each namespace that the directory wants; ends only when one of them fails for good.
/// Service accounts are read anew when the keys change. `legacy`: how namespaces say which roles their pods may name, where
/// pods may name any.
pub async fn service_accounts(
    client: Client,
    keys: Receiver<Keys>,
    policy: NamespacePolicy,
    legacy: Option<Format>,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
) {
    let mut wanted = directory.namespaces();
    let mut tasks = JoinSet::new();
    let mut watches = HashMap::<Namespace, Vec<AbortHandle>>::new();
    loop {
        let namespaces = wanted.borrow_and_update().clone();
        for (namespace, of_namespace) in watches.extract_if(|namespace, _| !namespaces.contains(namespace)) {
            for watch in of_namespace {
                watch.abort();
                // What it still writes must come before the forgetting.
                while !watch.is_finished() {
                    tokio::task::yield_now().await;
                }
            }
            directory.forget_namespace(&namespace);
        }
        for namespace in namespaces {
            watches.entry(namespace).or_insert_with_key(|namespace| {
                let collection = |resource, path: String, fields| {
                    let (client, metrics) = (client.clone(), Arc::clone(&metrics));
                    Collection { client, path, resource, fields, metadata_only: true, page: PAGE, metrics }
                };
                let demands = (policy != NamespacePolicy::Off || legacy.is_some()).then(|| {
                    let this_alone = Some(format!("metadata.name={namespace}"));
                    let this_alone = collection("namespaces", "/api/v1/namespaces".to_owned(), this_alone);
                    tasks.spawn(demands(this_alone, namespace.clone(), legacy, Arc::clone(&directory)))
                });
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
                let accounts = collection("serviceaccounts", path, None);
                let (keys, directory) = (keys.clone(), Arc::clone(&directory));
                let accounts = tasks.spawn(of_namespace(accounts, namespace.clone(), keys, directory));
                demands.into_iter().chain([accounts]).collect()
            });
        }
        metrics.service_account_watches.set(i64::try_from(watches.len()).unwrap_or(i64::MAX));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next() => if !ended.is_err_and(|error| error.is_cancelled()) { return },
        }
    }
}

async fn of_namespace(accounts: Collection, namespace: Namespace, mut keys: Receiver<Keys>, directory: Arc<Directory>) {
    loop {
        let current = keys.borrow_and_update().clone();
        let heard = |news| match news {
            News::All(accounts) => directory.reset_accounts(&namespace, accounts.into_iter().collect()),
            News::Changed((name, account)) => directory.apply_account(&namespace, name, account),
            News::Unreadable(account) => directory.withhold_account(&namespace, &account.name.into()),
            News::Gone(account) => directory.delete_account(&namespace, &account.name.into(), &account.uid.into()),
            News::UpToDate => {}
        };
        tokio::select! {
            () = accounts.follow(|account| read(&current, account), || {}, heard) => return,
            Ok(()) = keys.changed() => {}
        }
    }
}

async fn demands(this_alone: Collection, namespace: Namespace, legacy: Option<Format>, directory: Arc<Directory>) {
    let read = |object: SlimObject| {
        let annotations = object.metadata.annotations.unwrap_or_default();
        let permitted = annotations.get(PERMITTED_ROLES).map(|globs| PermittedRoles::new(globs));
        let legacy = legacy.map(|format| Limits::read(&annotations, format)).unwrap_or_default();
        Demands { permitted, require_imdsv2: require_imdsv2(&annotations), legacy }
    };
    let heard = |news| match news {
        News::All(demands) => {
            let demands = demands.into_iter().next().unwrap_or_else(Demands::unreadable);
            directory.apply_demands(&namespace, demands);
        }
        News::Changed(demands) => directory.apply_demands(&namespace, demands),
        News::Unreadable(_) => directory.apply_demands(&namespace, Demands::unreadable()),
        // Its pods end with it.
        News::Gone(_) | News::UpToDate => {}
    };
    this_alone.follow(read, || {}, heard).await;
}

fn read(keys: &Keys, SlimObject { metadata }: SlimObject) -> (ServiceAccountName, ServiceAccount) {
    let annotations = metadata.annotations.unwrap_or_default();
    let (wishes, require_imdsv2) = (keys.read(&annotations), require_imdsv2(&annotations));
    (metadata.name.into(), ServiceAccount { uid: metadata.uid.into(), wishes, require_imdsv2 })
}
