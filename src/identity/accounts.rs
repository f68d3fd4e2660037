//! The watches of service accounts: one for each namespace with a pod on this node; and, where
//! namespaces limit roles, one of each such namespace itself.
//!
//! So the load on the API server follows the node and not the cluster, and a changed annotation arrives
//! by itself. Owns the tasks; what they learn goes to the directory.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};
use tokio::task::{AbortHandle, JoinSet};

use super::{
    annotations::Keys,
    caller::ServiceAccount,
    directory::Directory,
    metadata::MetadataOf,
    names::{Namespace, ServiceAccountName},
    policy::{NamespacePolicy, PERMITTED_ROLES, PermittedRoles},
    watch,
};
use crate::metrics::Metrics;

/// Service accounts that are listed at once. All namespaces are listed at the same time, so that a page is what the
/// start's memory is a multiple of; a namespace with more is rare.
const PAGE: u32 = 100;

/// Keeps a watch open for each namespace that the directory wants; ends only when one of them fails for good.
pub async fn service_accounts(
    client: Client,
    keys: Keys,
    policy: NamespacePolicy,
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
                let (api, namespaces) = (Api::namespaced(client.clone(), namespace.as_str()), Api::all(client.clone()));
                let (keys, directory, metrics) = (keys.clone(), Arc::clone(&directory), Arc::clone(&metrics));
                let permitted = (policy != NamespacePolicy::Off).then(|| {
                    let (directory, metrics) = (Arc::clone(&directory), Arc::clone(&metrics));
                    tasks.spawn(permitted_roles(namespaces, namespace.clone(), directory, metrics))
                });
                let accounts = tasks.spawn(of_namespace(api, namespace.clone(), keys, directory, metrics));
                permitted.into_iter().chain([accounts]).collect()
            });
        }
        metrics.service_account_watches.set(i64::try_from(watches.len()).unwrap_or(i64::MAX));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next() => if !ended.is_err_and(|error| error.is_cancelled()) { return },
        }
    }
}

async fn of_namespace(
    api: Api<MetadataOf<v1::ServiceAccount>>,
    namespace: Namespace,
    keys: Keys,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
) {
    let watch = watcher::watcher(api, watch::config().page_size(PAGE));
    let mut events = std::pin::pin!(watch::events(watch, "serviceaccounts", &metrics, || {}));
    let mut listed = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(account) => listed.extend(read(&keys, account.metadata)),
            Event::InitDone => directory.reset_accounts(&namespace, std::mem::take(&mut listed)),
            Event::Apply(account) => {
                if let Some((name, account)) = read(&keys, account.metadata) {
                    directory.apply_account(&namespace, name, account);
                }
            }
            Event::Delete(account) => {
                if let Some((name, account)) = read(&keys, account.metadata) {
                    directory.delete_account(&namespace, &name, &account.uid);
                }
            }
        }
    }
}

async fn permitted_roles(
    api: Api<MetadataOf<v1::Namespace>>,
    namespace: Namespace,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
) {
    let config = watch::config().fields(&format!("metadata.name={namespace}"));
    let mut events = std::pin::pin!(watch::events(watcher::watcher(api, config), "namespaces", &metrics, || {}));
    while let Some(event) = events.next().await {
        match event {
            Event::InitApply(object) | Event::Apply(object) => {
                let annotations = object.metadata.annotations.unwrap_or_default();
                let permitted = annotations.get(PERMITTED_ROLES).map(|text| PermittedRoles::new(text));
                directory.apply_permitted(&namespace, permitted);
            }
            // Its pods end with it.
            Event::Init | Event::InitDone | Event::Delete(_) => {}
        }
    }
}

fn read(keys: &Keys, metadata: ObjectMeta) -> Option<(ServiceAccountName, ServiceAccount)> {
    let wish = keys.read(&metadata.annotations.unwrap_or_default());
    Some((metadata.name?.into(), ServiceAccount { uid: metadata.uid?.into(), wish }))
}
