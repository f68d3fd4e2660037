//! Pods on the node's own network: their requests come to us too, and those of the node's other processes do not.
//!
//! Owns two tables of nftables. `kube2irsa_host` redirects, and refuses what is not redirected; it stays when we die.
//! `kube2irsa_host_guard` refuses the same once more, belongs to a process of ours (`flags owner`), and so outlives every
//! flush by others, but not us. Only who flushes while we are dead takes both. Who is meant is told by the cgroup of a
//! socket ([`matches`]). Our own pods are not: we ask the real service.

mod matches;
mod owned;
mod tables;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture, stream::BoxStream};

pub(super) use self::tables::{GUARD_TABLE, TABLE, list};
use self::{
    matches::{Matches, Unmatched},
    owned::Owned,
};
use super::{FirewallError, Part, Redirection, announcements, plan::Wanted, reconcile::Health};
use crate::{
    cgroups::{Own, Tree},
    identity::{HostPods, PodUid},
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// Between two looks for kubelet's folder, and at who is exempt.
const INTERVAL: Duration = Duration::from_millis(800);
/// Between two looks at tables of which nothing was announced, in those.
const TABLES_INTERVAL: u32 = 6;
const PAUSE: Duration = Duration::from_millis(100);
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The pods that are ours.
type OurPods = Box<dyn Fn(&PodUid) -> BTreeSet<PodUid> + Send + Sync>;

/// What it takes to tell pods on the node's network from the node.
#[derive(Clone, Debug)]
pub struct Means {
    /// The node's cgroups.
    pub tree: Arc<Tree>,
    /// Where we are in it.
    pub own: Own,
}

/// How pods on the node's network are redirected.
pub struct HostInterception {
    means: Means,
    /// Those that are exempt, from the UID of ours.
    our_pods: OurPods,
}

/// What becomes of pods on the node's network.
#[derive(Debug)]
pub enum HostNetwork {
    /// They are the node's, for this reason.
    Off(String),
    /// They are redirected.
    On(HostPods, Means),
}

impl fmt::Debug for HostInterception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostInterception").field("means", &self.means).finish_non_exhaustive()
    }
}

// === impl Means ===

impl Means {
    /// Looks whether all is there.
    ///
    /// # Errors
    /// What is not.
    pub async fn look() -> Result<Self, String> {
        let (tree, own) = tokio::task::spawn_blocking(|| {
            let tree = Tree::find().map_err(|error| error.to_string())?;
            let own = Own::look(&tree).map_err(|error| error.to_string())?;
            Ok::<_, String>((tree, own))
        })
        .await
        .map_err(|error| error.to_string())??;
        if own.folder.depth() == 0 && tree.is_part() && tree.roots().is_empty() {
            let mount = tree.mount().display();
            return Err(format!("{mount}: only our own cgroup is to be seen there: mount the node's /sys/fs/cgroup"));
        }
        Matches::find(&tree, &own, &BTreeSet::new()).map_err(|why| why.to_string())?;
        tables::try_match(&tree).await.map_err(|error| error.to_string())?;
        Ok(Self { tree: Arc::new(tree), own })
    }

    /// The pod that we are, if we are one.
    #[must_use]
    pub fn own_pod(&self) -> Option<PodUid> {
        self.own.folder.pod().map(|(uid, _)| uid)
    }
}

// === impl HostNetwork ===

impl HostNetwork {
    /// What becomes of them with this wish, `None` for what is best; and with this way of interception, `None` without.
    ///
    /// # Errors
    /// Why the wish cannot be fulfilled.
    pub async fn find(wish: Option<HostPods>, intercept: Option<Wanted>) -> Result<Self, String> {
        match (wish, intercept) {
            (Some(HostPods::Off), _) => Ok(Self::Off("as --host-network says".to_owned())),
            (Some(wish), _) => Means::look().await.map(|means| Self::On(wish, means)),
            (None, None | Some(Wanted::Iptables)) => Ok(Self::Off("it needs nftables (--intercept)".to_owned())),
            (None, Some(Wanted::Auto | Wanted::Nft)) => Ok(match Means::look().await {
                Ok(means) => Self::On(HostPods::Served, means),
                Err(why) => Self::Off(why),
            }),
        }
    }

    /// As a flag's value and a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Off(_) | Self::On(HostPods::Off, _) => "off",
            Self::On(HostPods::Denied, _) => "deny",
            Self::On(HostPods::Served, _) => "serve",
        }
    }

    /// Says it, in the log and by a metric.
    pub fn tell(&self, metrics: &Metrics) {
        metrics.host_network.with_label_values(&[self.label()]).set(1);
        match self {
            Self::Off(why) => {
                tracing::warn!("pods on the node's network are left the node's role: --host-network off: {why}");
            }
            Self::On(_, means) => tracing::info!(
                cgroups = %means.tree.mount().display(),
                "pods on the node's network are kept from the node's role: --host-network {}", self.label()
            ),
        }
    }

    /// What they are told apart by, if they are.
    #[must_use]
    pub fn means(&self) -> Option<&Means> {
        match self {
            Self::Off(_) => None,
            Self::On(_, means) => Some(means),
        }
    }
}

// === impl HostInterception ===

impl HostInterception {
    /// By these means, but for pods that are ours: those to which the UID of ours leads.
    #[must_use]
    pub fn new(means: Means, our_pods: impl Fn(&PodUid) -> BTreeSet<PodUid> + Send + Sync + 'static) -> Self {
        Self { means, our_pods: Box::new(our_pods) }
    }

    /// Whom to redirect now; `None` while there are no pods.
    async fn matches(&self) -> Result<Option<Matches>, Unmatched> {
        let Means { tree, own } = self.means.clone();
        let our_own = self.means.own_pod();
        let mut ours = our_own.as_ref().map(|uid| (self.our_pods)(uid)).unwrap_or_default();
        ours.extend(our_own);
        let found = tokio::task::spawn_blocking(move || Matches::find(&tree, &own, &ours)).await;
        found.unwrap_or_else(|error| Err(Unmatched::Unread(error.to_string())))
    }
}

/// Both tables.
#[derive(Debug, Default)]
pub(super) struct HostTables {
    /// What was written last.
    script: Option<String>,
    /// As the kernel took it.
    listed: Option<String>,
    guard: Owned,
    told_of_guard: bool,
}

impl HostTables {
    /// Brings the tables to what they are to be; `look` says whether they may have changed by themselves.
    async fn keep(&mut self, script: &tables::Scripts, look: bool, metrics: &Metrics) -> Result<(), FirewallError> {
        let is_other = self.script.as_deref() != Some(&script.redirect);
        if is_other || look && !self.is_there().await? {
            if !is_other && self.listed.is_some() {
                tracing::warn!(part = %Part::HostRedirect, "rules of ours were missing; they are put back");
                metrics.rules_restored.with_label_values(&[Part::HostRedirect.label()]).inc();
            }
            self.listed = None;
            tables::write(&script.redirect).await?;
            self.listed = list(TABLE).await?;
            self.script = Some(script.redirect.clone());
        }
        let guard = self.guard.keep(&script.guard, look).await;
        metrics.host_rules.with_label_values(&["guard"]).set(guard.is_ok().into());
        match guard {
            Ok(()) => self.told_of_guard = false,
            // Nothing is open while the other table stands.
            Err(why) if !std::mem::replace(&mut self.told_of_guard, true) => tracing::warn!(
                "while another program flushes all of nftables, pods on the node's network reach the node's role until \
                 the rules are back: {why}"
            ),
            Err(_) => {}
        }
        Ok(())
    }

    async fn is_there(&self) -> Result<bool, FirewallError> {
        Ok(self.listed.is_some() && list(TABLE).await? == self.listed)
    }
}

/// Puts all in place, and keeps it there; never ends. Dropped, it lets go of what must not outlive it.
pub(super) async fn keep(
    host: &HostInterception,
    redirection: impl Fn() -> Redirection,
    readiness: &Readiness,
    metrics: &Metrics,
) {
    let mut tables = HostTables::default();
    let mut health = Health::new(Condition::HostNetwork, None);
    let mut announcements: Option<BoxStream<'static, ()>> = None;
    let (mut look, mut since) = (true, 0);
    loop {
        announcements = announcements.or_else(|| announcements::of_tables(&[TABLE, GUARD_TABLE]).ok());
        let kept = async {
            match host.matches().await.map_err(|why| why.to_string())? {
                Some(matches) => {
                    let scripts = tables::scripts(&redirection(), &matches);
                    tables.keep(&scripts, look, metrics).await.map_err(|error| error.to_string())?;
                    Ok(true)
                }
                // Without kubelet's folder there is no pod.
                None => Ok(false),
            }
        };
        let elapsed = |_| Err(format!("no result within {} s", TIME_LIMIT.as_secs()));
        let kept = tokio::time::timeout(TIME_LIMIT, kept).await.unwrap_or_else(elapsed);
        metrics.host_rules.with_label_values(&["redirect"]).set(matches!(kept, Ok(true)).into());
        let is_well = health.tell(kept.map(drop), readiness);
        tokio::time::sleep(PAUSE).await;
        let announced = match &mut announcements {
            Some(stream) => tokio::time::timeout(INTERVAL, stream.next()).await,
            None => {
                tokio::time::sleep(INTERVAL).await;
                Ok(None)
            }
        };
        if announced == Ok(None) {
            announcements = None;
        }
        since = if look { 0 } else { since + 1 };
        look = announced.is_ok() || !is_well || since >= TABLES_INTERVAL;
    }
}

/// Takes both tables out, whoever put them there. That of a daemon which runs is its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leftover;

impl super::Firewall for Leftover {
    fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>> {
        Box::pin(async { Ok(matches!(list(TABLE).await, Ok(None) | Err(FirewallError::Missing { .. }))) })
    }

    fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(async {
            match self.remove().await {
                Err(FirewallError::Missing { .. }) => Ok(()),
                removed => removed,
            }
        })
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(async {
            for table in [TABLE, GUARD_TABLE] {
                if list(table).await?.is_some() {
                    tables::remove(table).await?;
                }
            }
            Ok(())
        })
    }
}
