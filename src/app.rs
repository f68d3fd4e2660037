//! The daemon: wiring in one place.
//!
//! [`build`] binds and starts every task; [`Bound::run`] serves to the end. Port
//! 0 works, and the addresses can be read back.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::Uri;
use kube::{client::ClientBuilder, config::KubeConfigOptions};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use secrecy::SecretString;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::oneshot,
    task::{JoinError, JoinHandle, JoinSet},
};
use tower::timeout::TimeoutLayer;

mod succession;

use self::succession::Succession;
use crate::{
    admin::{self, Admin},
    config::{ApiServer, ComposeRoleArn, Config, Intercept, Source, StsLocation},
    credentials::refresher::{Channel, Refresher},
    descriptors, drain,
    events::{self, Events},
    identity::{
        Directory, NodeName, PodUid, Role, Roles, accounts, annotations::PlainNames, binding::Binding, links, lookup,
        node, watch,
    },
    imds::{
        container::Container,
        facts::Facts,
        key,
        limits::{Admission, Limits},
        passage::Passage,
        pods::Pods,
        respond::Imds,
        server::{self, Accept},
        service::Services,
        upstream::{self, UpstreamError},
    },
    intercept::{
        self, Family, METADATA, Redirection, Rush,
        guard::Guard,
        handover::{Found, Offer, Predecessor},
        plan::Wanted,
        reconcile::Interception,
    },
    metrics::Metrics,
    readiness::{Condition, Readiness},
    sts::{self, Sts},
    taint,
    token::{
        self,
        access::{Access, Decision},
        keys::Keys,
    },
};

/// How long a daemon that ran here before and hangs may hold what we need.
const SILENCE_PATIENCE: Duration = Duration::from_secs(60);
/// What is in flight may take this long to end.
const GRACE: Duration = Duration::from_secs(5);
const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted. All pods share them, and one that connects in a rush must not fill them: then the
/// kernel drops whoever else comes, who tries again after a second. As many as Linux lets us have by default.
const BACKLOG: u32 = 4096;
/// The kernel's share of what a client has not read, of each connection.
const SEND_BUFFER: u32 = 32 * 1024;
/// How long what was sent may stay unacknowledged, also once the connection is closed.
const UNACKNOWLEDGED_MILLISECONDS: u32 = 20_000;
/// Between two questions to the metadata service.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// From a request to the head of its answer; of a list or a watch, the body comes later.
const ANSWER_TIME_LIMIT: Duration = Duration::from_secs(10);
/// Silence on a connection; an API server sends bookmarks on a watch about once a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(100);

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
    owns: Arc<tokio::sync::watch::Sender<bool>>,
    succession: JoinHandle<()>,
    handed_over: oneshot::Receiver<()>,
}

/// Binds and starts all tasks, that which puts the rules in place first. What can fail for want of an operator
/// fails before anything is changed on the node.
///
/// # Errors
/// In one line, what cannot be had.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let metrics = Arc::new(Metrics::new()?);
    let api_server = api_server(&config.api_server).await?;
    let own_token = own_token(&api_server);
    let client = client(api_server.clone())?;
    let access = Arc::new(Access::new(client.clone(), client_as(api_server, &config.node_name)?));
    let https = sts::https(config.sts.ca_bundle, config.sts.location.is_over_tls()).context("--ca-bundle")?;
    let mut predecessor = predecessor(&config.state_dir, &config.listen).await;
    let listeners = listeners(&config.listen, predecessor.as_mut())?;
    let admin_listener = bind("--admin-listen", config.admin_listen, predecessor.as_mut())?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let admin_address = admin_listener.local_addr()?;
    let interception = match config.intercept {
        Intercept::Redirect(wanted) => {
            Some(interception(wanted, &addresses, &config.container_endpoints, &config.limits)?)
        }
        Intercept::Observe | Intercept::None => None,
    };
    let session_keys = key::load(&config.state_dir).await?;
    let session_keys = Arc::new(ArcSwap::from_pointee(session_keys));
    let limits = within_descriptors(config.limits);

    let owns = Arc::new(tokio::sync::watch::Sender::new(predecessor.is_none()));
    let offer = Offer::new(&config.state_dir, listeners.iter().chain([&admin_listener]))?;
    let readiness = Arc::new(Readiness::default());
    let mut tasks = JoinSet::new();
    match interception {
        Some(interception) => {
            readiness.lacks(Condition::Rules, "not in place yet");
            let (state_dir, owned) = (config.state_dir.clone(), owns.subscribe());
            let (readiness, metrics) = (Arc::clone(&readiness), Arc::clone(&metrics));
            let rules = succession::keep_rules(interception, state_dir, owned, readiness, metrics);
            spawn(&mut tasks, "rules", rules);
        }
        None => {
            let how = if config.intercept == Intercept::Observe { "observe" } else { "none" };
            metrics.intercept.with_label_values(&[how]).set(1);
            tracing::warn!("--intercept {how}: no guard keeps pods from the node's role");
        }
    }

    let (events, reported) = Events::new(config.node_name.clone(), config.token_audience.clone(), Arc::clone(&metrics));
    let events = Arc::new(events);
    spawn(&mut tasks, "writer of Events", events::write(client.clone(), reported, Arc::clone(&metrics)));
    let channel = Channel::new(config.sts.scope);
    let store = channel.store();
    let binding = match config.intercept {
        Intercept::None => Binding::WhereFound,
        Intercept::Redirect(_) | Intercept::Observe => Binding::Required,
    };
    let on_entitled = {
        let (store, audience) = (Arc::clone(&store), config.token_audience.clone());
        move |pod: &PodUid, roles: &Roles| {
            let foreseen = match &roles.main {
                Role::Granted(grant) if !grant.pod_has_token(&audience) => Some(grant),
                _ => None,
            };
            store.entitle(pod, &roles.grants().cloned().collect::<Vec<_>>(), foreseen);
        }
    };
    let on_invalid = {
        let events = Arc::clone(&events);
        move |pod: &_, error: &_| events.invalid(pod, error)
    };
    let (directory, unknown) = Directory::new(binding, config.namespace_policy, on_entitled, on_invalid);
    let directory = Arc::new(directory);
    spawn(&mut tasks, "watch of links", links::keep(Arc::clone(&directory), Arc::clone(&metrics)));
    let decision = Decision {
        access: Arc::clone(&access),
        node: config.node_name.clone(),
        audience: config.token_audience.clone(),
        own_token,
        readiness: Arc::clone(&readiness),
        metrics: Arc::clone(&metrics),
    };
    spawn(&mut tasks, "choice of token access", decision.make(config.token_access));
    let tokens = token::ApiServer::new(Arc::clone(&access), config.node_name.clone(), config.token_audience.clone());
    let entitled = {
        let directory = Arc::clone(&directory);
        move |grant: &_| directory.entitled(grant)
    };
    let refresher = {
        let (location, limits, cluster) = (config.sts.location, config.sts.limits, config.sts.cluster_name);
        let (readiness, metrics) = (Arc::clone(&readiness), Arc::clone(&metrics));
        async move {
            // Until then whoever asks waits, as for an exchange that takes long.
            let (region, endpoint) = locate(location, &readiness).await;
            let sts = Sts::new(https, region, endpoint, cluster, Arc::clone(&metrics));
            Refresher::new(Arc::new(tokens), Arc::new(sts), limits, entitled, events, metrics, channel).run().await;
        }
    };
    spawn(&mut tasks, "refresher", refresher);

    spawn(&mut tasks, "keeper of session keys", key::keep(config.state_dir, Arc::clone(&session_keys)));
    let facts = Facts::new(&config.facts);
    {
        let (facts, access, node) = (facts.clone(), Arc::clone(&access), config.node_name.clone());
        let place = async move || node::place(&access.client().await.1, &node).await;
        tokio::spawn(facts.learn(config.facts, place));
    }
    let pods = Pods::new(Arc::clone(&directory), Arc::clone(&store), Arc::clone(&metrics));
    let passage = config.allowed.map(|(imds, allowed)| Passage::new(imds, allowed));
    let imds = Imds::new(pods.clone(), session_keys, facts, passage, config.require_imdsv2, Arc::clone(&metrics));
    let endpoints: Arc<[IpAddr]> = config.container_endpoints.into();
    let keys = Arc::new(Keys::default());
    let container = (!endpoints.is_empty()).then(|| {
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
            Accept::Redirected { metadata: METADATA.into(), container: endpoints }
        }
    };
    let services = Arc::new(Services { imds, container });
    let (drain, watcher) = drain::channel();
    let admission = Admission::new(limits, Instant::now());
    for listener in listeners {
        let (accept, services, admission) = (accept.clone(), Arc::clone(&services), Arc::clone(&admission));
        let serving = server::serve(listener, accept, services, admission, Arc::clone(&metrics), watcher.clone());
        spawn(&mut tasks, "listener", once_ours(owns.subscribe(), watcher.clone(), serving));
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
            let of = account(compose, &readiness).await;
            keys.send_modify(|keys| keys.take_plain_names_for(of));
            std::future::pending().await
        });
    }
    let accounts = accounts::service_accounts(
        client,
        keys_in_force,
        config.namespace_policy,
        Arc::clone(&directory),
        Arc::clone(&metrics),
    );
    spawn(&mut tasks, "watches of service accounts", accounts);
    let succession = Succession {
        predecessor,
        offer,
        owns: Arc::clone(&owns),
        directory: Arc::clone(&directory),
        store: Arc::clone(&store),
        readiness: Arc::clone(&readiness),
    };
    let (hand_over, handed_over) = oneshot::channel();
    // Its end is no failure: `run` is told.
    let succession = tokio::spawn(succession.run(hand_over));
    let admin = Admin { metrics, readiness: Arc::clone(&readiness), directory, store };
    spawn(
        &mut tasks,
        "operator's listener",
        once_ours(owns.subscribe(), watcher, admin::serve(admin_listener, Arc::new(admin))),
    );

    tracing::info!(?addresses, %admin_address, "listening");
    Ok(Bound { addresses, admin_address, readiness, tasks, drain, owns, succession, handed_over })
}

impl Bound {
    /// Serves until `stop`, or until the next daemon does, then lets what is in flight end. Guard and redirect stay.
    ///
    /// # Errors
    /// When a part ended that should not have. What is still in flight after the grace is only said in the log.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut stop = std::pin::pin!(stop);
        let handed_over = tokio::select! {
            () = stop.as_mut() => false,
            Ok(()) = &mut self.handed_over => true,
            Some(ended) = self.tasks.join_next() => anyhow::bail!("{}", why_ended(ended)),
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

async fn api_server(api_server: &ApiServer) -> anyhow::Result<kube::Config> {
    let mut config = match api_server {
        ApiServer::InCluster => {
            kube::Config::incluster().context("--kubeconfig: is missing, and the pod's own access cannot be used")?
        }
        ApiServer::Kubeconfig(kubeconfig) => {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig.as_ref().clone(), &options).await;
            let mut config = config.map_err(|_| anyhow::anyhow!("--kubeconfig: the current context cannot be used"))?;
            // That of the environment, which is for STS alone, as it is in a pod.
            config.proxy_url = None;
            config
        }
    };
    set_limits(&mut config);
    Ok(config)
}

fn set_limits(config: &mut kube::Config) {
    // Retries are ours: the client's own go on for minutes, and would repeat a TokenRequest.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIME_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
}

fn client(config: kube::Config) -> anyhow::Result<kube::Client> {
    let builder = ClientBuilder::try_from(config)
        .map_err(|_| anyhow::anyhow!("--kubeconfig: its keys or certificates cannot be used"))?;
    Ok(builder.with_layer(&TimeoutLayer::new(ANSWER_TIME_LIMIT)).build())
}

/// A client whose calls are made as this node.
fn client_as(mut config: kube::Config, node: &NodeName) -> anyhow::Result<kube::Client> {
    config.auth_info.impersonate = Some(format!("system:node:{node}"));
    client(config)
}

/// The token by which the API server knows us, if there is one.
fn own_token(config: &kube::Config) -> Option<SecretString> {
    let from_file = || {
        let file = config.auth_info.token_file.as_ref()?;
        std::fs::read_to_string(file).ok().map(SecretString::from)
    };
    config.auth_info.token.clone().or_else(from_file)
}

/// The region and endpoint of STS.
async fn locate(location: StsLocation, readiness: &Readiness) -> (Option<String>, Option<String>) {
    match location {
        StsLocation::Region(region) => (Some(region), None),
        StsLocation::Endpoint { url, region } => (region, Some(url)),
        StsLocation::AskImds(imds) => {
            let region = answer("--region", &imds, Condition::Region, readiness, upstream::region).await;
            readiness.holds(Condition::Region);
            (Some(region), None)
        }
    }
}

/// The account whose roles plain names mean.
async fn account(compose: ComposeRoleArn, readiness: &Readiness) -> PlainNames {
    let partition = match compose.partition {
        Source::Given(partition) => partition,
        Source::AskImds(imds) => {
            answer("--aws-partition", &imds, Condition::Account, readiness, upstream::partition).await
        }
    };
    let account = match compose.account {
        Source::Given(account) => account,
        Source::AskImds(imds) => answer("--aws-account", &imds, Condition::Account, readiness, upstream::account).await,
    };
    readiness.holds(Condition::Account);
    PlainNames::Of { partition, account }
}

/// What the real metadata service says in place of a flag; asks until it does, and the condition does not hold then.
async fn answer(
    flag: &str,
    imds: &Uri,
    condition: Condition,
    readiness: &Readiness,
    ask: impl AsyncFn(&Uri) -> Result<String, UpstreamError>,
) -> String {
    let mut told = false;
    readiness.lacks(condition, format!("{imds} has not been asked yet"));
    loop {
        match ask(imds).await {
            Ok(answer) => {
                tracing::info!("the metadata service says in place of {flag}: {answer}");
                return answer;
            }
            Err(error) => {
                let problem = format!("{flag} is not given, and {imds} does not name it: {error}");
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{problem}; it is asked again");
                }
                readiness.lacks(condition, problem);
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The daemon that runs here already. One that does not answer is given time to die, if it is in our way.
async fn predecessor(state_dir: &Path, listen: &[SocketAddr]) -> Option<Predecessor> {
    let limit = Instant::now() + SILENCE_PATIENCE;
    loop {
        match Predecessor::ask(state_dir).await {
            Found::Nobody => return None,
            Found::Predecessor(predecessor) => return Some(predecessor),
            Found::Silent if Instant::now() > limit || listen.iter().all(is_free) => return None,
            Found::Silent => {
                tracing::warn!("a daemon runs here that does not answer; waiting for its end");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

fn bind(flag: &str, address: SocketAddr, before: Option<&mut Predecessor>) -> anyhow::Result<TcpListener> {
    if let Some(listener) = before.and_then(|predecessor| predecessor.listener(address)) {
        return Ok(listener);
    }
    let bind = || {
        let socket = socket(address)?;
        // What a connection inherits: answers are small, and what nobody reads must not stay in the kernel.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MILLISECONDS)?;
        // Connections of a daemon before us may still be in the kernel.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("{flag} {address}: cannot listen there"))
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        return TcpSocket::new_v4();
    }
    let socket = TcpSocket::new_v6()?;
    // IPv4 has a socket of its own, of which the kernel tells where a connection was meant to go.
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    Ok(socket)
}

fn is_free(address: &SocketAddr) -> bool {
    socket(*address).and_then(|socket| socket.bind(*address)).is_ok()
}

/// The listeners for pods: without that of IPv6 where the node has none and no address was named.
fn listeners(addresses: &[SocketAddr], mut before: Option<&mut Predecessor>) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let is_lacking = |error: io::Error| error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
        if address.is_ipv6() && address.ip().is_unspecified() && TcpSocket::new_v6().is_err_and(is_lacking) {
            tracing::info!("--listen {address}: this node has no IPv6");
            continue;
        }
        listeners.push(bind("--listen", *address, before.as_deref_mut())?);
    }
    Ok(listeners)
}

/// Waits until pods are ours to serve; who is told to stop before that has nothing to bring to its end.
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

fn interception(
    wanted: Wanted,
    listening: &[SocketAddr],
    container: &[IpAddr],
    limits: &Limits,
) -> anyhow::Result<Interception> {
    // A connection takes a turn as a request does; but one pod alone must not fill the queue.
    let rush = Rush { per_second: limits.requests_per_second, burst: limits.request_burst.min(BACKLOG * 3 / 8) };
    let addresses = intercept::addresses(container);
    let targets = targets(listening)?;
    Ok(Interception {
        guard: Guard::new(Arc::clone(&addresses)),
        redirection: Redirection { addresses, targets, rush },
        wanted,
    })
}

/// Where redirected requests are sent: addresses of the node's own, which packets from pods can reach. A family in which
/// it has none is refused by the guard.
fn targets(listening: &[SocketAddr]) -> anyhow::Result<Vec<SocketAddr>> {
    let mut targets = Vec::new();
    for listening in listening {
        let (ip, family) = (listening.ip(), Family::of(listening.ip()));
        match Some(ip).filter(|ip| !ip.is_unspecified()).or_else(|| intercept::node_address(family)) {
            Some(address) => targets.push(SocketAddr::new(address, listening.port())),
            None => tracing::info!("--listen {listening}: the node has no {family} address of its own"),
        }
    }
    anyhow::ensure!(!targets.is_empty(), "--listen: the node's own address cannot be found; name it instead");
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;

    /// Answers lists, and opens watches in which it says nothing.
    async fn silent_api_server(listener: TcpListener, lists: Arc<AtomicUsize>, watches: Arc<AtomicUsize>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (lists, watches) = (Arc::clone(&lists), Arc::clone(&watches));
            tokio::spawn(async move {
                let mut lines = BufReader::new(stream);
                loop {
                    let (mut head, mut line) = (String::new(), String::new());
                    while line != "\r\n" {
                        line.clear();
                        if lines.read_line(&mut line).await.unwrap_or_default() == 0 {
                            return;
                        }
                        head.push_str(&line);
                    }
                    let answer = if head.contains("watch=true") {
                        watches.fetch_add(1, Ordering::SeqCst);
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
                    } else {
                        lists.fetch_add(1, Ordering::SeqCst);
                        let list =
                            r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len())
                    };
                    lines.get_mut().write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    }

    /// With the limit that is in force this takes longer than a test may.
    #[tokio::test]
    async fn a_watch_that_says_nothing_at_all_is_broken_off_and_begun_anew_by_a_list() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (lists, watches) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(silent_api_server(listener, Arc::clone(&lists), Arc::clone(&watches)));
        let mut config = kube::Config::new(url.parse().unwrap());
        set_limits(&mut config);
        assert_eq!(config.read_timeout, Some(SILENCE_LIMIT));
        config.read_timeout = Some(Duration::from_millis(200));

        let metrics = Arc::new(Metrics::new().unwrap());
        let (directory, _) = Directory::new(Binding::Required, Default::default(), |_, _| {}, |_, _| {});
        let pods = watch::pods(client(config).unwrap(), "node".into(), Arc::new(directory), Arc::clone(&metrics));
        let broken = metrics.watch_errors.with_label_values(&["pods"]);
        let seen = async {
            while broken.get() < 1 || watches.load(Ordering::SeqCst) < 2 || lists.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = pods => panic!("it never ends"),
            seen = tokio::time::timeout(Duration::from_secs(20), seen) => seen.unwrap(),
        }
    }
}
