//! A client that is not ours, kube with its watcher, gets along with the server, and over its faults.

use std::{collections::BTreeSet, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{PartialObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event},
};
use sandbox::kubernetes::{Fault, NewPod, Target};
use tokio::time::timeout;

use super::support::{Cluster, PATIENCE, pod};

async fn client(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// What a watcher knows of the cluster.
struct Known<S> {
    names: BTreeSet<String>,
    initial: BTreeSet<String>,
    events: S,
    relists: usize,
}

impl<K: kube::ResourceExt, S: Stream<Item = Result<Event<K>, watcher::Error>> + Unpin> Known<S> {
    fn new(events: S) -> Self {
        Self { names: BTreeSet::new(), initial: BTreeSet::new(), events, relists: 0 }
    }

    /// Follows the watcher until it knows these and no others.
    async fn becomes(&mut self, names: &[&str]) {
        let wanted = names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let follow = async {
            while self.names != wanted || self.relists == 0 {
                match self.events.next().await.expect("a watcher does not end") {
                    Ok(Event::Apply(object)) => _ = self.names.insert(object.name_any()),
                    Ok(Event::Delete(object)) => _ = self.names.remove(&object.name_any()),
                    Ok(Event::Init) => self.initial.clear(),
                    Ok(Event::InitApply(object)) => _ = self.initial.insert(object.name_any()),
                    Ok(Event::InitDone) => {
                        self.names = self.initial.clone();
                        self.relists += 1;
                    }
                    // It goes on by itself.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let came = timeout(PATIENCE, follow).await;
        assert!(came.is_ok(), "wanted {wanted:?}, knows {:?}", self.names);
    }
}

#[tokio::test]
async fn a_watcher_that_lists_in_pages_survives_a_cut_an_end_and_forgotten_history() {
    let cluster = Cluster::start().await;
    let kubernetes = &cluster.kubernetes;
    for name in ["a", "b", "c"] {
        kubernetes.create_pod(pod(name));
    }
    let api = Api::<Pod>::all(client(&cluster).await);
    let config = watcher::Config::default().fields("spec.nodeName=node-a").page_size(1);
    let mut known = Known::new(watcher::watcher(api, config).boxed());
    known.becomes(&["a", "b", "c"]).await;
    let lists = kubernetes.requests().iter().filter(|request| request.verb == "list").count();
    assert_eq!(lists, 3, "one request a page");
    kubernetes.create_pod(NewPod::new("team-a", "elsewhere").node("node-b"));
    kubernetes.create_pod(pod("d"));
    known.becomes(&["a", "b", "c", "d"]).await;

    // Cut: it goes on from the version that it knows.
    kubernetes.faults().cut_watches();
    kubernetes.delete_pod("team-a", "a");
    known.becomes(&["b", "c", "d"]).await;
    kubernetes.faults().end_watches();
    kubernetes.delete_pod("team-a", "b");
    known.becomes(&["c", "d"]).await;
    assert_eq!(known.relists, 1);

    // Its version is forgotten while it is away: it lists anew.
    let target = Target::any().verb("watch");
    kubernetes.faults().inject(target, Fault::Answer(http::StatusCode::SERVICE_UNAVAILABLE));
    kubernetes.faults().cut_watches();
    kubernetes.delete_pod("team-a", "c");
    kubernetes.compact();
    kubernetes.faults().clear();
    known.becomes(&["d"]).await;
    assert_eq!(known.relists, 2);
}

#[tokio::test]
async fn a_watcher_that_streams_its_first_list_gets_it() {
    let (cluster, _) = Cluster::with_pod().await;
    let api = Api::<Pod>::namespaced(client(&cluster).await, "team-a");
    let mut known = Known::new(watcher::watcher(api, watcher::Config::default().streaming_lists()).boxed());
    known.becomes(&["web-1"]).await;
    cluster.kubernetes.create_pod(pod("web-2"));
    known.becomes(&["web-1", "web-2"]).await;
    assert!(cluster.kubernetes.requests().iter().all(|request| request.verb == "watch"));
}

#[tokio::test]
async fn a_watcher_of_metadata_sees_an_annotation_change() {
    let cluster = Cluster::start().await;
    let api = Api::<PartialObjectMeta<ServiceAccount>>::namespaced(client(&cluster).await, "team-a");
    let events = watcher::watcher(api, watcher::Config::default());
    let applied = events.try_filter_map(async |event| {
        Ok(match event {
            Event::Apply(object) => Some(object),
            _ => None,
        })
    });
    let mut applied = std::pin::pin!(applied);
    let next = timeout(PATIENCE, applied.next());
    let change = async {
        cluster.watches_open(1).await;
        cluster.kubernetes.apply_service_account("team-a", "web", &[("role", "writer")]);
    };
    let (object, ()) = tokio::join!(next, change);
    let object: PartialObjectMeta<ServiceAccount> = object.unwrap().unwrap().unwrap();
    assert_eq!(object.annotations()["role"], "writer");
}

#[tokio::test]
async fn a_typed_client_gets_a_token_and_a_typed_refusal() {
    let (cluster, uid) = Cluster::with_pod().await;
    let api = Api::<ServiceAccount>::namespaced(client(&cluster).await, "team-a");
    let request = |uid: &str| TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec!["sts.amazonaws.com".to_owned()]),
            expiration_seconds: Some(900),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some("web-1".to_owned()),
                uid: Some(uid.to_owned()),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = api.create_token_request("web", &PostParams::default(), &request(&uid)).await.unwrap();
    assert!(cluster.issuer.verify(&answer.status.unwrap().token.unwrap()).is_ok());
    match api.create_token_request("web", &PostParams::default(), &request("x")).await.unwrap_err() {
        kube::Error::Api(status) => assert_eq!((status.code, status.reason.as_str()), (409, "Conflict")),
        other => panic!("{other}"),
    }
}
