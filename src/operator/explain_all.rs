//! `kube2irsa explain --all`: the pods of a cluster that get no credentials, by cause, as far as the API server tells.
//!
//! What only a node's daemon knows (an address that is suspended, a session that is not fetched yet) is told by `explain
//! NAMESPACE/POD` there. What a daemon was refused is known from its Events on the pod, in its own words. Of one pod the cause is
//! the first that keeps it from its credentials. Pure but for [`run`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{
    OperatorError, Verdict,
    cluster::{self, Cluster},
    doctor::{
        pods::{self, OWN_TOKEN},
        report::Unseen,
    },
    inventory::{Inventory, Pod, Read},
    settings::Settings,
};
use crate::{
    cli::{ExplainArgs, Output},
    events,
    identity::annotations::AnnotationError,
};

/// So many names are printed for people.
const PRINTED: usize = 5;

/// Why a pod gets no credentials from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its service account is not there.
    AccountMissing,
    /// An annotation cannot be meant.
    BadAnnotation,
    /// The namespace does not permit its role.
    NotPermitted,
    /// Nobody is served: it is only observed, or we are being removed.
    NotServed,
    /// It is on the node's network, and such pods are not served.
    HostNetwork,
    /// No daemon is ready on its node.
    NoDaemon,
    /// Another pod has its address.
    DuplicateAddress,
    /// STS or the API server refuses, as its daemon's Event says.
    Refused,
    /// STS or the API server fails in a way that may pass, as its daemon's Event says.
    Unavailable,
    /// Its service account names no role.
    NoRole,
    /// It exchanges a token of its own.
    OwnToken,
    /// It has no node or no address yet.
    NotStarted,
    /// It has ended.
    Ended,
}

/// The pods with one cause.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Why.
    pub cause: Cause,
    /// Whether somebody has to mend something.
    pub fault: bool,
    /// How many pods.
    pub count: usize,
    /// What to do.
    pub mend: &'static str,
    /// What is said of them.
    pub said: Vec<Said>,
}

/// What is said of some pods.
#[derive(Debug, Serialize)]
pub struct Said {
    /// In words.
    pub says: String,
    /// When a daemon said so last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Of which pods, `namespace/name`.
    pub pods: Vec<String>,
}

/// All that is told.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Whether nothing is to be mended.
    pub well: bool,
    /// Pods of the cluster.
    pub pods: usize,
    /// Those of which nothing is known that keeps them from their credentials.
    pub nothing_found: usize,
    /// The others, by cause.
    pub causes: Vec<Group>,
    /// What could not be looked at.
    pub not_looked_at: Vec<Unseen>,
}

/// What a daemon said of a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    #[serde(default)]
    regarding: Regarding,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    note: String,
    event_time: Option<String>,
    series: Option<Series>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Regarding {
    #[serde(default)]
    uid: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Series {
    last_observed_time: Option<String>,
}

/// Looks, and tells it.
///
/// # Errors
/// When the pods and service accounts of the cluster cannot be read.
pub async fn run(args: &ExplainArgs, out: &mut dyn io::Write) -> Result<Verdict, OperatorError> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let events = async { cluster.list::<Event>(events::OURS).await.map_err(|error| cluster::words(&error)) };
    let (inventory, events) = futures::join!(Inventory::read(&cluster), events);
    for (what, read) in
        [("pods", inventory.pods.as_ref().err()), ("service accounts", inventory.accounts.as_ref().err())]
    {
        if let Some(why) = read {
            return Err(OperatorError::Unavailable(format!("{what}: {why}")));
        }
    }
    let settings = inventory.daemon().map_or_else(Settings::defaults, Settings::of);
    let overview = overview(&inventory, &settings, &events);
    match args.output {
        Output::Text => write!(out, "{overview}"),
        Output::Json => {
            serde_json::to_string_pretty(&overview).map_err(io::Error::from).and_then(|told| writeln!(out, "{told}"))
        }
    }
    .context("standard output")?;
    Ok(if overview.well { Verdict::Well } else { Verdict::Findings })
}

/// What is known against each pod.
#[must_use]
pub fn overview(inventory: &Inventory, settings: &Read<Settings>, events: &Read<Vec<Event>>) -> Overview {
    let mut not_looked_at = inventory.unread();
    for (what, why) in [("the daemon's flags", settings.as_ref().err()), ("the daemons' Events", events.as_ref().err())]
    {
        not_looked_at.extend(why.map(|why| (what, why.as_str())));
    }
    let not_looked_at =
        not_looked_at.into_iter().map(|(what, why)| Unseen { what: what.to_owned(), why: why.to_owned() });
    let not_looked_at = not_looked_at.collect();
    let judge = Judge::new(inventory, settings.as_ref().ok(), events);
    let mut causes = BTreeMap::<Cause, BTreeMap<String, Said>>::new();
    let (mut count, mut nothing_found) = (0, 0);
    for pod in inventory.pods.iter().flatten() {
        count += 1;
        let Some((cause, says, at)) = judge.cause(pod) else {
            nothing_found += 1;
            continue;
        };
        let said = causes.entry(cause).or_default().entry(says.clone());
        let said = said.or_insert_with(|| Said { says, at: None, pods: Vec::new() });
        said.pods.push(pod.metadata.full_name());
        said.at = said.at.take().max(at);
    }
    let causes = causes.into_iter().map(|(cause, said)| {
        let said = said.into_values().collect::<Vec<_>>();
        let count = said.iter().map(|said| said.pods.len()).sum();
        Group { cause, fault: cause.is_fault(), count, mend: cause.mend(), said }
    });
    let causes = causes.collect::<Vec<_>>();
    Overview { well: !causes.iter().any(|group| group.fault), pods: count, nothing_found, causes, not_looked_at }
}

/// What pods are judged by.
struct Judge<'a> {
    accounts: HashMap<(&'a str, &'a str), &'a super::inventory::Object>,
    namespaces: HashMap<&'a str, &'a super::inventory::Object>,
    settings: Option<&'a Settings>,
    /// Nodes with a daemon that is ready; `None`: it is not known which.
    served: Option<BTreeSet<&'a str>>,
    /// Pods whose address another one claims, with what is to be said of it.
    disputed: HashMap<&'a str, String>,
    /// By the pod's UID, the last that was said.
    events: HashMap<&'a str, &'a Event>,
}

// === impl Judge ===

impl<'a> Judge<'a> {
    fn new(inventory: &'a Inventory, settings: Option<&'a Settings>, events: &'a Read<Vec<Event>>) -> Self {
        let served = inventory.daemon_sets.is_ok().then(|| {
            let pods = inventory.daemon_pods().into_iter().filter(|pod| pod.is_ready());
            pods.map(|pod| pod.spec.node_name.as_str()).collect()
        });
        let mut disputed = HashMap::new();
        for (address, pods) in inventory.disputed_addresses() {
            let names = pods.iter().map(|pod| pod.metadata.full_name()).collect::<Vec<_>>().join(" and ");
            let says = format!("{address} is claimed by {names}, and served to none of them");
            disputed.extend(pods.iter().map(|pod| (pod.metadata.uid.as_str(), says.clone())));
        }
        let mut last = HashMap::<&str, &Event>::new();
        for event in
            events.iter().flatten().filter(|event| event.cause().or_else(|| event.cause_of_annotation()).is_some())
        {
            let known = last.entry(&event.regarding.uid).or_insert(event);
            if event.at() > known.at() {
                *known = event;
            }
        }
        Self {
            accounts: inventory.accounts_by_name(),
            namespaces: inventory.namespaces_by_name(),
            settings,
            served,
            disputed,
            events: last,
        }
    }

    /// The first that keeps the pod from credentials of ours, what is to be said of it, and when it was said.
    fn cause(&self, pod: &Pod) -> Option<(Cause, String, Option<String>)> {
        let found = |cause, says: &str| Some((cause, says.to_owned(), None));
        if pod.is_over() {
            return found(Cause::Ended, "Succeeded or Failed: it gets nothing any more");
        }
        let (namespace, name) = pod.account();
        let Some(account) = self.accounts.get(&(namespace, name)) else {
            return found(Cause::AccountMissing, &format!("there is no ServiceAccount {namespace}/{name}"));
        };
        let mut judged = true;
        if let Some(settings) = self.settings {
            match pods::wishes(account, self.namespaces.get(namespace).copied(), settings) {
                Ok(Some(_)) | Err(AnnotationError::AccountNotKnown { .. }) => {}
                // What becomes of that its Event says.
                Ok(None) if settings.legacy_annotations && pod.names_a_role() => judged = false,
                Ok(None) => return found(Cause::NoRole, "its ServiceAccount names no role"),
                Err(error) => {
                    let cause = match error {
                        AnnotationError::NotPermitted { .. } => Cause::NotPermitted,
                        _ => Cause::BadAnnotation,
                    };
                    return found(cause, &events::words_of_invalid_account(namespace, name, &error));
                }
            }
        }
        if pod.containers().any(|container| container.variable(OWN_TOKEN).is_some()) {
            return found(Cause::OwnToken, "the EKS webhook gave it a token, which its SDK exchanges itself");
        }
        if let Some(settings) = self.settings.filter(|settings| !settings.serves()) {
            let mode = if settings.removes { "remove" } else { "observe" };
            return found(
                Cause::NotServed,
                &format!("kube2irsa serves nobody (mode: {mode}): it has what it has without us"),
            );
        }
        let mode = self.settings.map(|settings| settings.host_network.as_str()).unwrap_or_default();
        if pod.spec.host_network && matches!(mode, "off" | "deny") {
            return found(Cause::HostNetwork, &format!("it is on the node's network (--host-network {mode})"));
        }
        let node = pod.spec.node_name.as_str();
        if node.is_empty() {
            return found(Cause::NotStarted, "it is on no node yet");
        }
        if self.served.as_ref().is_some_and(|served| !served.contains(node)) {
            return found(Cause::NoDaemon, &format!("no daemon is ready on node {node}"));
        }
        if !pod.spec.host_network && pod.addresses().next().is_none() {
            return found(Cause::NotStarted, "it has no address yet");
        }
        if let Some(says) = self.disputed.get(pod.metadata.uid.as_str()) {
            return found(Cause::DuplicateAddress, says);
        }
        let event = self.events.get(pod.metadata.uid.as_str())?;
        let cause = event.cause().or_else(|| if judged { None } else { event.cause_of_annotation() })?;
        Some((cause, event.note.clone(), event.at().map(str::to_owned)))
    }
}

// === impl Event ===

impl Event {
    /// What it means, where it tells of a pod that has no credentials. What annotations say is read anew.
    fn cause(&self) -> Option<Cause> {
        match self.reason.as_str() {
            "CredentialsRefused" | "TokenRefused" => Some(Cause::Refused),
            "CredentialsUnavailable" => Some(Cause::Unavailable),
            _ => None,
        }
    }

    /// The same of what a pod's own annotation says, which only the daemon judges.
    fn cause_of_annotation(&self) -> Option<Cause> {
        match self.reason.as_str() {
            "InvalidAnnotation" => Some(Cause::BadAnnotation),
            "RoleNotPermitted" => Some(Cause::NotPermitted),
            _ => None,
        }
    }

    /// When it was so last.
    fn at(&self) -> Option<&str> {
        let series = self.series.as_ref().and_then(|series| series.last_observed_time.as_deref());
        series.or(self.event_time.as_deref())
    }
}

// === impl Cause ===

impl Cause {
    /// All of them, as they are told.
    pub const ALL: [Self; 13] = [
        Self::AccountMissing,
        Self::BadAnnotation,
        Self::NotPermitted,
        Self::NotServed,
        Self::HostNetwork,
        Self::NoDaemon,
        Self::DuplicateAddress,
        Self::Refused,
        Self::Unavailable,
        Self::NoRole,
        Self::OwnToken,
        Self::NotStarted,
        Self::Ended,
    ];

    /// Whether somebody has to mend something.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::NoRole | Self::OwnToken | Self::NotStarted | Self::Ended)
    }

    /// As people and programs read it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::AccountMissing => "account-missing",
            Self::BadAnnotation => "bad-annotation",
            Self::NotPermitted => "not-permitted",
            Self::NotServed => "not-served",
            Self::HostNetwork => "host-network",
            Self::NoDaemon => "no-daemon",
            Self::DuplicateAddress => "duplicate-address",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::NoRole => "no-role",
            Self::OwnToken => "own-token",
            Self::NotStarted => "not-started",
            Self::Ended => "ended",
        }
    }

    /// What to do.
    #[must_use]
    pub fn mend(self) -> &'static str {
        match self {
            Self::AccountMissing => "create the ServiceAccount, and restart the pod",
            Self::BadAnnotation => "kubectl annotate --overwrite serviceaccount: it is in force at once",
            Self::NotPermitted => "have whoever owns the namespace add the role to kube2irsa.io/permitted-roles",
            Self::NotServed => "set mode: run in the chart's values, once you have seen what you wanted to see",
            Self::HostNetwork => "set flags.host-network: serve in the chart's values (docs/host-network.md)",
            Self::NoDaemon => "kubectl describe the daemon's pod of that node; kube2irsa doctor says more",
            Self::DuplicateAddress => "delete one of the pods: it comes back at another address",
            Self::Refused => "mend it in IAM, or where the words say; a pod that asks is served 30 s later at most",
            Self::Unavailable => "see that the node reaches STS and the API server: kube2irsa doctor on it",
            Self::NoRole => "nothing, unless it should have one: annotate its ServiceAccount",
            Self::OwnToken => "nothing; to be served by us, remove the webhook and restart the pod",
            Self::NotStarted => "nothing: kubectl describe pod says what it waits for",
            Self::Ended => "nothing",
        }
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |fault: bool| {
            self.causes.iter().filter(|group| group.fault == fault).map(|group| group.count).sum::<usize>()
        };
        writeln!(
            f,
            "pods: {}; with a fault: {}; that need none of us: {}; nothing found against: {}",
            self.pods,
            sum(true),
            sum(false),
            self.nothing_found
        )?;
        for group in &self.causes {
            let fault = if group.fault { "FAULT" } else { "-" };
            writeln!(f, "\n{fault:5}  {}: {}", group.cause.label(), group.count)?;
            for said in &group.said {
                let at = said.at.as_ref().map(|at| format!(" (at {at})")).unwrap_or_default();
                let names = said.pods.iter().take(PRINTED).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = said.pods.len().saturating_sub(PRINTED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                writeln!(f, "       {names}{more}:\n         {}{at}", said.says)?;
            }
            writeln!(f, "       > {}", group.mend)?;
        }
        for Unseen { what, why } in &self.not_looked_at {
            writeln!(f, "\nnot looked at: {what}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_names_of_causes_are_the_same_to_people_and_to_programs() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.label());
        }
    }

    #[test]
    fn the_last_that_a_daemon_said_of_a_pod_counts_and_what_is_still_served_does_not() {
        let event = |reason: &str, note: &str, first: &str, last: Option<&str>| {
            json!({"regarding": {"uid": "u"}, "reason": reason, "note": note, "eventTime": first,
                "series": last.map(|last| json!({"count": 2, "lastObservedTime": last}))})
        };
        let events = json!([
            event("CredentialsRefused", "old", "2026-01-01T00:00:00.000000Z", Some("2026-01-01T00:05:00.000000Z")),
            event("TokenRefused", "new", "2026-01-01T00:06:00.000000Z", None),
            event("RenewalFailing", "served", "2026-01-01T00:07:00.000000Z", None),
            event("CredentialsUnavailable", "older", "2026-01-01T00:01:00.000000Z", None),
        ]);
        let events = Ok(serde_json::from_value::<Vec<Event>>(events).unwrap());
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "team-a", "uid": "u"},
            "spec": {"serviceAccountName": "web", "nodeName": "n"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        let account = json!({"metadata": {"name": "web", "namespace": "team-a",
            "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/web"}}});
        let inventory = Inventory {
            pods: Ok(vec![serde_json::from_value(pod).unwrap()]),
            accounts: Ok(vec![serde_json::from_value(account).unwrap()]),
            namespaces: Ok(Vec::new()),
            nodes: Ok(Vec::new()),
            daemon_sets: Err("forbidden".to_owned()),
        };
        let overview = overview(&inventory, &Settings::defaults(), &events);
        let [group] = overview.causes.as_slice() else { panic!("{overview:?}") };
        assert_eq!((group.cause, group.said[0].says.as_str()), (Cause::Refused, "new"));
        assert_eq!(overview.not_looked_at.len(), 1, "which nodes have a daemon is not known, and no fault");
        assert!(!overview.well);
    }

    #[test]
    fn what_becomes_of_a_role_that_a_pod_names_is_what_the_daemon_said_of_it() {
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "team-a", "uid": "u",
                "annotations": {"iam.amazonaws.com/role": "web"}},
            "spec": {"serviceAccountName": "web", "nodeName": "n"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        let account = json!({"metadata": {"name": "web", "namespace": "team-a"}});
        let inventory = Inventory {
            pods: Ok(vec![serde_json::from_value(pod).unwrap()]),
            accounts: Ok(vec![serde_json::from_value(account).unwrap()]),
            namespaces: Ok(Vec::new()),
            nodes: Ok(Vec::new()),
            daemon_sets: Err("forbidden".to_owned()),
        };
        let event = |reason: &str| {
            let event = json!({"regarding": {"uid": "u"}, "reason": reason, "note": "said",
                "eventTime": "2026-01-01T00:00:00.000000Z"});
            Ok(vec![serde_json::from_value::<Event>(event).unwrap()])
        };
        let none = Ok(Vec::new());
        for (legacy_annotations, events, cause) in [
            (false, &none, Some(Cause::NoRole)),
            (true, &none, None),
            (true, &event("RoleNotPermitted"), Some(Cause::NotPermitted)),
            (true, &event("InvalidAnnotation"), Some(Cause::BadAnnotation)),
            (true, &event("CredentialsRefused"), Some(Cause::Refused)),
        ] {
            let settings = Settings { legacy_annotations, ..Settings::defaults().unwrap() };
            let overview = overview(&inventory, &Ok(settings), events);
            let found = overview.causes.first().map(|group| group.cause);
            assert_eq!(found, cause, "{legacy_annotations} {events:?}");
        }
    }
}
