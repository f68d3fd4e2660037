//! The daemon: wiring in one place.
//!
//! [`build`] binds and starts every task; [`Bound::run`] serves to the end. Port
//! 0 works, and the addresses can be read back.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinError, JoinHandle, JoinSet},
};

mod legacy;
mod listeners;
mod location;
pub mod removal;
mod succession;

use self::succession::{Succession, Turn};
use crate::{
    admin::{
        self, Admin,
        explain::{Explainer, StsPlace},
        socket::Socket,
    },
    api_server,
    audit::Audit,
    config::{Base, Config, Intercept},
    credentials::refresher::{Channel, Refresher},
    descriptors, drain,
    events::{self, Events},
    identity::{
        Directory, HostPods, PodUid, Role, Roles, accounts,
        annotations::{AnnotationError, PlainNames},
        binding::Binding,
        links, lookup, node, watch,
    },
    imds::{
        container::Container,
        facts::Facts,
        host::HostPeers,
        key::KeyFile,
        limits::{Admission, Limits},
        passage::Passage,
        pods::Pods,
        respond::Imds,
        server::{self, Accept},
        service::Services,
    },
    intercept::{
        self, METADATA,
        handover::Offer,
        host::{HostInterception, HostNetwork, Means},
    },
    metrics::Metrics,
    observe::Observation,
    readiness::{Condition, Readiness},
    sts::{self, Sts},
    taint,
    token::{
        self,
        access::{Access, Decision},
        keys::Keys,
    },
};

/// What is in flight may take this long to end.
const GRACE: Duration = Duration::from_secs(5);

/// And what the audit log has not taken yet.
const AUDIT_GRACE: Duration = Duration::from_secs(2);

/// A daemon that listens.
#[derive(Debug)]
pub struct Bound {
    /// Where pods' requests arrive.
    pub addresses: Vec<SocketAddr>,
    /// Where metrics and health are served.
    pub admin_address: SocketAddr,
    readiness: Arc<Readiness>,
    tasks: JoinSet<&'static str>,
    drain: drain::Trigger,
    /// What waits for it waits as long as this is there.
    #[expect(dead_code, reason = "held until it is dropped")]
    held: [Arc<tokio::sync::watch::Sender<bool>>; 2],
    admin_socket: Socket,
    audit: Arc<Audit>,
    succession: JoinHandle<()>,
    turn: oneshot::Receiver<Turn>,
}

/// Binds and starts all tasks, that which puts the rules in place first. What can fail for want of an operator
/// fails before anything is changed on the node.
///
/// # Errors
/// In one line, what cannot be had.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let metrics = Arc::new(Metrics::new()?);
    let readiness = Arc::new(Readiness::default());
    readiness.lacks(Condition::Running, "starting");
    let admin = Arc::new(Admin::new(Arc::clone(&metrics), Arc::clone(&readiness)));
    // First, for it says that we live while others are waited for.
    let admin_socket = Socket::serve(config.admin_socket, Arc::clone(&admin), Arc::clone(&metrics));
    let api_server = api_server::configuration(&config.api_server).await?;
    let own_token = api_server::own_token(&api_server);
    let client = api_server::client(api_server.clone())?;
    let access = Arc::new(Access::new(client.clone(), api_server::client_as(api_server, &config.node_name)?));
    let https = sts::https(config.sts.ca_bundle, config.sts.location.is_over_tls()).context("--ca-bundle")?;
    let mut predecessor = listeners::predecessor(&config.state_dir, &config.listen).await;
    let observes = config.intercept == Intercept::Observe;
    // Where pods are only observed nobody can connect: what an earlier run's rules still redirect is refused.
    let listeners = if observes { Vec::new() } else { listeners::for_pods(&config.listen, predecessor.as_mut())? };
    let admin_listener = listeners::bind("--admin-listen", config.admin_listen, predecessor.as_mut())?;
    if let Some(predecessor) = &mut predecessor {
        predecessor.close_other_listeners();
    }
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let admin_address = admin_listener.local_addr()?;
    let way = match config.intercept {
        Intercept::Redirect(wanted) => Some(wanted),
        Intercept::Observe | Intercept::None => None,
    };
    let mut interception = match way {
        Some(wanted) => Some(listeners::interception(wanted, &addresses, &config.container_endpoints, &config.limits)?),
        None => None,
    };
    let host_network = HostNetwork::find(config.host_network, way).await;
    let host_network = host_network.map_err(|why| anyhow::anyhow!("--host-network: {why}"))?;
    host_network.tell(&metrics);
    let mut key_file = KeyFile::new(config.state_dir.clone(), Arc::clone(&metrics));
    let session_keys = Arc::new(ArcSwap::from_pointee(key_file.load().await?));
    let limits = within_descriptors(config.limits);

    let owns = Arc::new(tokio::sync::watch::Sender::new(predecessor.is_none()));
    let serves = Arc::new(tokio::sync::watch::Sender::new(predecessor.is_none()));
    let offer = Offer::new(&config.state_dir, listeners.iter().chain([&admin_listener]))?;
    let mut tasks = JoinSet::new();
    let (events, reported) = Events::new(config.node_name.clone(), config.token_audience.clone(), Arc::clone(&metrics));
    let events = Arc::new(events);
    spawn(&mut tasks, "writer of Events", events::write(client.clone(), reported, Arc::clone(&metrics)));
    let audit = match config.audit_log {
        Some(to) => Audit::to(to, config.node_name.clone(), Arc::clone(&metrics)).context("--audit-log")?,
        None => Audit::none(),
    };
    let audit = Arc::new(audit);
    let channel = Channel::new(config.sts.scope, Arc::clone(&audit));
    let store = channel.store();
    let binding = match config.intercept {
        Intercept::None => Binding::WhereFound,
        Intercept::Redirect(_) | Intercept::Observe => Binding::Required,
    };
    let on_entitled = {
        let (store, audience) = (Arc::clone(&store), config.token_audience.clone());
        move |pod: &PodUid, roles: &Roles| {
            if observes {
                return;
            }
            let foreseen = match &roles.main {
                Role::Granted(grant) if !grant.pod_has_token(&audience) => Some(grant),
                _ => None,
            };
            store.entitle(pod, &roles.grants().cloned().collect::<Vec<_>>(), foreseen);
        }
    };
    let on_invalid = {
        let (events, audit) = (Arc::clone(&events), Arc::clone(&audit));
        move |pod: &_, error: &_| {
            // It gets the node's role meanwhile.
            if observes {
                return;
            }
            events.invalid(pod, error);
            if let AnnotationError::NotPermitted { role, .. } = error {
                audit.not_permitted(pod, role);
            }
        }
    };
    let (directory, unknown) = Directory::new(binding, config.namespace_policy, on_entitled, on_invalid);
    let host_pods = match host_network {
        HostNetwork::On(host_pods, _) => host_pods,
        HostNetwork::Off(_) => HostPods::Off,
    };
    let directory = directory.with_legacy(config.legacy.as_ref().map(legacy::of_directory));
    let directory = Arc::new(directory.with_host_pods(host_pods, host_network.means().and_then(Means::own_pod)));
    if let Some(interception) = &mut interception {
        interception.host = host_network.means().map(|means| {
            let directory = Arc::clone(&directory);
            HostInterception::new(means.clone(), move |own| directory.host_pods_like(own))
        });
    }
    match interception {
        Some(interception) => {
            readiness.lacks(Condition::Guard, "not in place yet");
            readiness.lacks(Condition::Rules, "not in place yet");
            readiness.lacks(Condition::HostNetwork, "not in place yet");
            let (state_dir, owned) = (config.state_dir.clone(), owns.subscribe());
            let (readiness, metrics) = (Arc::clone(&readiness), Arc::clone(&metrics));
            let rules = succession::keep_rules(interception, state_dir, owned, readiness, metrics);
            spawn(&mut tasks, "rules", rules);
        }
        None => {
            let how = if observes { "observe" } else { "none" };
            metrics.intercept.with_label_values(&[how]).set(1);
            tracing::warn!("--intercept {how}: no guard keeps pods from the node's role");
        }
    }
    spawn(&mut tasks, "watch of links", links::keep(Arc::clone(&directory), Arc::clone(&metrics)));
    if observes {
        readiness.lacks(Condition::Observation, "not begun yet");
        let observation = Observation {
            addresses: intercept::addresses(&config.container_endpoints),
            directory: Arc::clone(&directory),
            readiness: Arc::clone(&readiness),
            metrics: Arc::clone(&metrics),
        };
        spawn(&mut tasks, "observation", observation.keep(owns.subscribe()));
    }
    let decision = Decision {
        access: Arc::clone(&access),
        node: config.node_name.clone(),
        audience: config.token_audience.clone(),
        // No token is asked for, not even one of our own to see whether it is allowed.
        own_token: own_token.filter(|_| !observes),
        readiness: Arc::clone(&readiness),
        metrics: Arc::clone(&metrics),
    };
    spawn(&mut tasks, "choice of token access", decision.make(config.token_access));
    let tokens = token::ApiServer::new(Arc::clone(&access), config.node_name.clone(), config.token_audience.clone());
    let (node_name, role_annotation) = (config.node_name.clone(), config.annotation_keys.role_arn().to_owned());
    let access_to_tell_of = Arc::clone(&access);
    let entitled = {
        let directory = Arc::clone(&directory);
        move |grant: &_| directory.entitled(grant)
    };
    let own = config.legacy.as_ref().and_then(|legacy| legacy.identity.clone()).filter(|_| !observes);
    let own = own.map(|identity| legacy::own(identity, &config.node_name));
    let sts_place = Arc::new(OnceLock::new());
    let refresher = {
        let known = Arc::clone(&sts_place);
        let (place, limits, cluster) = (config.sts.location, config.sts.limits, config.sts.cluster_name);
        let (readiness, metrics) = (Arc::clone(&readiness), Arc::clone(&metrics));
        async move {
            // Until then whoever asks waits, as for an exchange that takes long.
            let (region, endpoint) = location::of_sts(place, &readiness).await;
            let _once = known.set(StsPlace { region: region.clone(), endpoint: endpoint.clone() });
            let sts = Sts::new(https, region, endpoint, cluster, Arc::clone(&metrics)).with_own(own);
            Refresher::new(Arc::new(tokens), Arc::new(sts), limits, entitled, events, metrics, channel).run().await;
        }
    };
    if !observes {
        spawn(&mut tasks, "refresher", refresher);
    }

    spawn(&mut tasks, "keeper of session keys", key_file.keep(Arc::clone(&session_keys)));
    let facts = Facts::new(&config.facts);
    if !observes {
        let (facts, access, node) = (facts.clone(), Arc::clone(&access), config.node_name.clone());
        let place = async move || node::place(&access.client().await.1, &node).await;
        tokio::spawn(facts.learn(config.facts, place));
    }
    let pods = Pods::new(Arc::clone(&directory), Arc::clone(&store), Arc::clone(&metrics));
    let passage = config.allowed.map(|(imds, allowed)| Passage::new(imds, allowed));
    let imds = Imds::new(pods.clone(), session_keys, facts, passage, config.require_imdsv2, Arc::clone(&metrics));
    let endpoints: Arc<[IpAddr]> = config.container_endpoints.into();
    let keys = Arc::new(Keys::default());
    let container = (!endpoints.is_empty() && !observes).then(|| {
        let audience = config.token_audience.clone();
        let (endpoints, metrics) = (Arc::clone(&endpoints), Arc::clone(&metrics));
        Container::new(pods, Arc::clone(&keys), audience, config.require_imdsv2, endpoints, metrics)
    });
    if container.is_some() {
        spawn(&mut tasks, "reader of the cluster's keys", keys.keep(client.clone()));
    }
    let accept = match config.intercept {
        Intercept::None => Accept::All,
        Intercept::Redirect(_) | Intercept::Observe => {
            let host = host_network.means().map(|means| {
                let (directory, metrics) = (Arc::clone(&directory), Arc::clone(&metrics));
                Arc::new(HostPeers::new(Arc::clone(&means.tree), directory, metrics))
            });
            Accept::Redirected { metadata: METADATA.into(), container: endpoints, host }
        }
    };
    let services = Arc::new(Services { imds, container });
    let (drain, watcher) = drain::channel();
    let admission = Admission::new(limits, Instant::now());
    for listener in listeners {
        let (accept, services, admission) = (accept.clone(), Arc::clone(&services), Arc::clone(&admission));
        let serving = server::serve(listener, accept, services, admission, Arc::clone(&metrics), watcher.clone());
        spawn(&mut tasks, "listener", once_ours(serves.subscribe(), watcher.clone(), serving));
    }

    if config.remove_taint {
        let (owned, synced, readiness) = (owns.subscribe(), Arc::clone(&directory), Arc::clone(&readiness));
        let remover = taint::Remover {
            access: Arc::clone(&access),
            own: client.clone(),
            node: config.node_name.clone(),
            // While the daemon before us serves, the rules lead to that one.
            ready: move || *owned.borrow() && synced.synced() && readiness.lacks_nothing_but(&[Condition::Watches]),
            metrics: Arc::clone(&metrics),
            look_again: taint::LOOK_AGAIN,
        };
        spawn(&mut tasks, "remover of the start-up taint", remover.run());
    }
    let (pods, lookups) = {
        let (node, directory, metrics) = (config.node_name, Arc::clone(&directory), Arc::clone(&metrics));
        let (also_node, also_directory, also_metrics) = (node.clone(), Arc::clone(&directory), Arc::clone(&metrics));
        let also_access = Arc::clone(&access);
        (async move { watch::pods(access.client().await.1, node, directory, metrics).await }, async move {
            let client = also_access.client().await.1;
            lookup::look_up(client, also_node, also_directory, also_metrics, unknown).await;
        })
    };
    spawn(&mut tasks, "look-up of addresses", lookups);
    spawn(&mut tasks, "watch of pods", pods);
    let (keys, keys_in_force) = tokio::sync::watch::channel(config.annotation_keys);
    if let Some(compose) = config.compose_role_arn {
        keys.send_modify(|keys| keys.take_plain_names_for(PlainNames::NotKnownYet));
        let readiness = Arc::clone(&readiness);
        spawn(&mut tasks, "account of role names", async move {
            let of = location::account(compose, &readiness).await;
            keys.send_modify(|keys| keys.take_plain_names_for(of));
            std::future::pending().await
        });
    }
    let format = config.legacy.as_ref().map(|legacy| legacy.format);
    match config.legacy.map(|legacy| legacy.base) {
        Some(Base::Given(base)) => directory.take_legacy_names_for(base),
        Some(Base::OfAccount(account)) => {
            let (readiness, directory) = (Arc::clone(&readiness), Arc::clone(&directory));
            spawn(&mut tasks, "account of the roles that pods name", async move {
                if let PlainNames::Of { partition, account } = location::account(account, &readiness).await {
                    directory.take_legacy_names_for(format!("arn:{partition}:iam::{account}:role/"));
                }
                std::future::pending().await
            });
        }
        None => {}
    }
    let accounts = accounts::service_accounts(
        client,
        keys_in_force,
        config.namespace_policy,
        format,
        Arc::clone(&directory),
        Arc::clone(&metrics),
    );
    spawn(&mut tasks, "watches of service accounts", accounts);
    let succession = Succession {
        predecessor,
        offer,
        owns: Arc::clone(&owns),
        serves: Arc::clone(&serves),
        directory: Arc::clone(&directory),
        store: Arc::clone(&store),
        readiness: Arc::clone(&readiness),
        metrics: Arc::clone(&metrics),
    };
    let (turns, turn) = oneshot::channel();
    // Its end is no failure: `run` is told.
    let succession = tokio::spawn(succession.run(turns));
    admin.tell_of_pods(Explainer {
        directory,
        store,
        access: access_to_tell_of,
        readiness: Arc::clone(&readiness),
        metrics,
        node: node_name,
        audience: config.token_audience,
        role_annotation,
        intercept: config.intercept,
        host_network,
        require_imdsv2: config.require_imdsv2,
        sts: sts_place,
    });
    let serving = admin::serve(admin_listener, admin);
    spawn(&mut tasks, "operator's listener", once_ours(serves.subscribe(), watcher, serving));

    readiness.holds(Condition::Running);
    tracing::info!(?addresses, %admin_address, "listening");
    Ok(Bound {
        addresses,
        admin_address,
        readiness,
        tasks,
        drain,
        held: [owns, serves],
        admin_socket,
        audit,
        succession,
        turn,
    })
}

impl Bound {
    /// Serves until `stop`, or until the next daemon does, then lets what is in flight end. Guard and redirect stay.
    ///
    /// # Errors
    /// When a part ended that should not have. What is still in flight after the grace is only said in the log.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let audit = Arc::clone(&self.audit);
        let done = self.serve(stop).await;
        audit.end(AUDIT_GRACE).await;
        done
    }

    async fn serve(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut stop = std::pin::pin!(stop);
        let handed_over = tokio::select! {
            () = stop.as_mut() => false,
            Ok(turn) = &mut self.turn => match turn {
                Turn::Over => true,
                Turn::Missed => anyhow::bail!(
                    "the daemon that ran here waited no longer for this one to put its rules in place, and goes on"
                ),
            },
            Some(ended) = self.tasks.join_next() => anyhow::bail!("{}", why_ended(ended)),
            () = self.admin_socket.ended() => anyhow::bail!("the admin socket's keeper ended"),
        };
        self.readiness.lacks(Condition::Running, "stopping");
        // It holds the listening sockets too, and they must close now; after a hand-over it watches over the next one.
        if !handed_over {
            self.succession.abort();
        }
        tracing::info!("stopping: requests in flight are answered, guard and redirect stay");
        if !self.drain.drain(GRACE).await {
            tracing::warn!("some requests were still in flight after {} s", GRACE.as_secs());
        }
        if handed_over {
            // To end now would be to be started again, beside the one that took over.
            self.tasks.shutdown().await;
            tracing::info!("handed over to the next daemon; nothing is left to do but to wait for the signal to stop");
            tokio::select! {
                () = stop => {}
                _ = self.succession => anyhow::bail!("the daemon that took over has ended, and nobody serves"),
            }
        }
        Ok(())
    }
}

/// The limits that we can keep.
fn within_descriptors(wanted: Limits) -> Limits {
    let descriptors = descriptors::raise();
    let limits = wanted.clone().within(descriptors);
    if limits.connections != wanted.connections {
        let (wanted, fit) = (wanted.connections, limits.connections);
        tracing::warn!("--max-connections {wanted}: only {fit} fit below the limit of open files ({descriptors})");
    }
    if limits.connections_per_pod != wanted.connections_per_pod {
        let (wanted, half) = (wanted.connections_per_pod, limits.connections_per_pod);
        tracing::warn!(
            "--max-connections-per-pod {wanted}: {half}, half of those of the node, so that one pod never has all"
        );
    }
    limits
}

fn spawn(tasks: &mut JoinSet<&'static str>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

fn why_ended(ended: Result<&'static str, JoinError>) -> String {
    match ended {
        Ok(name) => format!("the {name} ended"),
        Err(_) => "a part of the daemon panicked".to_owned(),
    }
}

/// Waits until it is our turn to serve; who is told to stop before that has nothing to bring to its end.
async fn once_ours(
    mut owns: tokio::sync::watch::Receiver<bool>,
    drain: drain::Watcher,
    serving: impl Future<Output = ()>,
) {
    let ours = tokio::select! {
        ours = owns.wait_for(|owns| *owns) => ours.is_ok(),
        () = drain.signaled() => false,
    };
    drop(drain);
    if ours {
        serving.await;
    }
}
