//! The daemon: wiring in one place.
//!
//! [`build`] binds, puts the rules in place and starts every task; [`Bound::run`] serves to the end. Port
//! 0 works, and the addresses can be read back.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use kube::config::KubeConfigOptions;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinError, JoinSet},
};

use crate::{
    admin::{self, Admin},
    config::{ApiServer, Config, Intercept, StsLocation},
    credentials::refresher::{Channel, Refresher},
    drain,
    identity::{Directory, accounts, binding::Binding, links, watch},
    imds::{
        key,
        respond::Imds,
        server::{self, Accept},
        upstream,
    },
    intercept::{self, Firewall, METADATA, Part, guard::Guard, iptables::Iptables, reconcile},
    metrics::Metrics,
    readiness::{Condition, Readiness},
    sts::Sts,
    token,
};

/// What is in flight may take this long to end.
const GRACE: Duration = Duration::from_secs(5);
const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(5);

/// A daemon that listens and whose rules are in place.
#[derive(Debug)]
pub struct Bound {
    /// Where pods' requests arrive.
    pub address: SocketAddr,
    /// Where metrics and health are served.
    pub admin_address: SocketAddr,
    readiness: Arc<Readiness>,
    tasks: JoinSet<&'static str>,
    drain: drain::Trigger,
}

/// Binds, puts the rules in place and starts all tasks. What can fail for want of an operator fails before
/// anything is changed on the node.
///
/// # Errors
/// In one line, what cannot be had.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let metrics = Arc::new(Metrics::new()?);
    let client = client(&config.api_server).await?;
    let sts = sts(&config).await?;
    let listener = bind("--listen", config.listen.into()).await?;
    let admin_listener = bind("--admin-listen", config.admin_listen).await?;
    let (address, admin_address) = (listener.local_addr()?, admin_listener.local_addr()?);
    let session_key = key::load_or_make(&config.state_dir)?;
    let parts = parts(config.intercept, address)?;

    let readiness = Arc::new(Readiness::default());
    let mut tasks = JoinSet::new();
    metrics.intercept.with_label_values(&[config.intercept.label()]).set(1);
    if parts.is_empty() {
        tracing::warn!("--intercept none: no guard keeps pods from the node's role");
    } else {
        readiness.lacks(Condition::Rules, "not in place yet");
        let (installed, first_try) = oneshot::channel();
        spawn(&mut tasks, "rules", reconcile::keep(parts, Arc::clone(&readiness), Arc::clone(&metrics), installed));
        first_try.await.context("the rules' task ended")?;
    }

    let channel = Channel::new();
    let store = channel.store();
    let binding = match config.intercept {
        Intercept::None => Binding::WhereFound,
        Intercept::Iptables => Binding::Required,
    };
    let directory = Arc::new(Directory::new(binding, {
        let store = Arc::clone(&store);
        move |uid| store.retire(uid)
    }));
    spawn(&mut tasks, "watch of links", links::keep(Arc::clone(&directory), Arc::clone(&metrics)));
    let tokens = token::ApiServer::new(client.clone(), config.node_name.clone(), config.token_audience);
    let entitled = {
        let directory = Arc::clone(&directory);
        move |grant: &_| directory.entitled(grant)
    };
    let refresher = Refresher::new(Arc::new(tokens), Arc::new(sts), entitled, Arc::clone(&metrics), channel);
    spawn(&mut tasks, "refresher", refresher.run());

    let imds = Imds::new(Arc::clone(&directory), store, session_key, Arc::clone(&metrics));
    let accept = match config.intercept {
        Intercept::None => Accept::All,
        Intercept::Iptables => Accept::Redirected(METADATA.into()),
    };
    let (drain, watcher) = drain::channel();
    let serving = server::serve(listener, accept, Arc::new(imds), Arc::clone(&metrics), watcher);
    spawn(&mut tasks, "listener", serving);

    let pods = watch::pods(client.clone(), config.node_name, Arc::clone(&directory), Arc::clone(&metrics));
    spawn(&mut tasks, "watch of pods", pods);
    let accounts = accounts::service_accounts(client, Arc::clone(&directory), Arc::clone(&metrics));
    spawn(&mut tasks, "watches of service accounts", accounts);
    let admin = Admin { metrics, readiness: Arc::clone(&readiness), directory };
    spawn(&mut tasks, "operator's listener", admin::serve(admin_listener, Arc::new(admin)));

    tracing::info!(%address, %admin_address, intercept = config.intercept.label(), "listening");
    Ok(Bound { address, admin_address, readiness, tasks, drain })
}

impl Bound {
    /// Serves until `stop`, then lets what is in flight end. Guard and redirect stay.
    ///
    /// # Errors
    /// When a part ended that should not have, or when something was still in flight after the grace.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = stop => {}
            Some(ended) = self.tasks.join_next() => anyhow::bail!("{}", why_ended(ended)),
        }
        self.readiness.lacks(Condition::Running, "stopping");
        tracing::info!("stopping: requests in flight are answered, guard and redirect stay");
        if !self.drain.drain(GRACE).await {
            anyhow::bail!("some requests were still in flight after {} s", GRACE.as_secs());
        }
        Ok(())
    }
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

async fn client(api_server: &ApiServer) -> anyhow::Result<kube::Client> {
    let mut config = match api_server {
        ApiServer::InCluster => {
            kube::Config::incluster().context("--kubeconfig: is missing, and the pod's own access cannot be used")?
        }
        ApiServer::Kubeconfig(kubeconfig) => {
            kube::Config::from_custom_kubeconfig(kubeconfig.as_ref().clone(), &KubeConfigOptions::default())
                .await
                .map_err(|_| anyhow::anyhow!("--kubeconfig: the current context cannot be used"))?
        }
    };
    // Retries are ours: the client's own go on for minutes, and would repeat a TokenRequest.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIME_LIMIT);
    kube::Client::try_from(config).map_err(|_| anyhow::anyhow!("--kubeconfig: its keys or certificates cannot be used"))
}

async fn sts(config: &Config) -> anyhow::Result<Sts> {
    let (region, endpoint) = match &config.sts.location {
        StsLocation::Region(region) => (Some(region.clone()), None),
        StsLocation::Endpoint { url, region } => (region.clone(), Some(url.clone())),
        StsLocation::AskImds(imds) => {
            let region = upstream::region(imds).await;
            let region = region.with_context(|| format!("--region: is missing, and {imds} does not say"))?;
            tracing::info!(region, "the metadata service names the region");
            (Some(region), None)
        }
    };
    Sts::new(region, endpoint, config.sts.ca_bundle.clone()).context("--ca-bundle")
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address}: cannot listen there"))
}

fn parts(intercept: Intercept, listening: SocketAddr) -> anyhow::Result<Vec<(Part, Box<dyn Firewall>)>> {
    let redirect = match intercept {
        Intercept::None => return Ok(Vec::new()),
        Intercept::Iptables => Iptables::new(target(listening)?),
    };
    Ok(vec![(Part::Guard, Box::new(Guard)), (Part::Redirect, Box::new(redirect))])
}

/// Where redirected requests are sent: an address of the node's own, which packets from pods can reach.
fn target(listening: SocketAddr) -> anyhow::Result<SocketAddrV4> {
    let address = match listening.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => address,
        _ => intercept::node_address().with_context(|| {
            format!("--listen {listening}: the node's own address cannot be found; name it instead")
        })?,
    };
    Ok(SocketAddrV4::new(address, listening.port()))
}
