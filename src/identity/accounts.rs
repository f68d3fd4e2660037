//! The watches of service accounts: one for each namespace with a pod on this node, metadata only.
//!
//! So the load on the API server follows the node and not the cluster, and a changed annotation arrives
//! by itself. Owns the tasks; what they learn goes to the directory.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use tokio::task::{AbortHandle, JoinSet};

use super::{
    annotations::Keys,
    directory::{Directory, ServiceAccount},
    names::{Namespace, ServiceAccountName},
    watch,
};
use crate::metrics::Metrics;

/// Keeps a watch open for each namespace that the directory wants; ends only when one of them fails for good.
pub async fn service_accounts(client: Client, keys: Keys, directory: Arc<Directory>, metrics: Arc<Metrics>) {
    let mut wanted = directory.namespaces();
    let mut tasks = JoinSet::new();
    let mut watches = HashMap::<Namespace, AbortHandle>::new();
    loop {
        let namespaces = wanted.borrow_and_update().clone();
        for (namespace, watch) in watches.extract_if(|namespace, _| !namespaces.contains(namespace)) {
            watch.abort();
            // What it still writes must come before the forgetting.
            while !watch.is_finished() {
                tokio::task::yield_now().await;
            }
            directory.forget_accounts(&namespace);
        }
        for namespace in namespaces {
            watches.entry(namespace).or_insert_with_key(|namespace| {
                let api = Api::namespaced(client.clone(), namespace.as_str());
                let (keys, directory, metrics) = (keys.clone(), Arc::clone(&directory), Arc::clone(&metrics));
                tasks.spawn(of_namespace(api, namespace.clone(), keys, directory, metrics))
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
    api: Api<PartialObjectMeta<v1::ServiceAccount>>,
    namespace: Namespace,
    keys: Keys,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
) {
    let watch = watcher::watcher(api, watch::config());
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

fn read(keys: &Keys, metadata: ObjectMeta) -> Option<(ServiceAccountName, ServiceAccount)> {
    let wish = keys.read(&metadata.annotations.unwrap_or_default());
    Some((metadata.name?.into(), ServiceAccount { uid: metadata.uid?.into(), wish }))
}
