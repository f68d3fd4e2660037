//! What Prometheus scrapes. Handles are resolved once; labels are bounded; no pod, role or address is one.

use http::StatusCode;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// The statuses that pods are answered with.
const STATUSES: [StatusCode; 7] = [
    StatusCode::OK,
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// A kind of request, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A session token.
    Token,
    /// The role's name.
    RoleName,
    /// A role's document.
    RoleDocument,
    /// What is said of the node, or of the role beside its credentials.
    Node,
    /// What the real metadata service is asked for.
    Allowed,
    /// A role's document, of the container endpoint.
    ContainerCredentials,
    /// Anything else.
    Other,
}

const KINDS: [(RequestKind, &str); 7] = [
    (RequestKind::Token, "token"),
    (RequestKind::RoleName, "role_name"),
    (RequestKind::RoleDocument, "role_document"),
    (RequestKind::Node, "node"),
    (RequestKind::Allowed, "allowed"),
    (RequestKind::ContainerCredentials, "container_credentials"),
    (RequestKind::Other, "other"),
];

/// Why we closed a pod's connection, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The pod has as many as it may.
    PodConnections,
    /// All pods together have.
    NodeConnections,
    /// No request came for too long.
    Idle,
    /// A request took too long to come.
    SlowRequest,
    /// An answer was not read for too long.
    SlowReader,
    /// What came was no request.
    Malformed,
    /// A request's head was too large.
    LargeHead,
    /// A request's body was too large.
    LargeBody,
}

impl Closed {
    fn label(self) -> &'static str {
        match self {
            Self::PodConnections => "pod_connections",
            Self::NodeConnections => "node_connections",
            Self::Idle => "idle",
            Self::SlowRequest => "slow_request",
            Self::SlowReader => "slow_reader",
            Self::Malformed => "malformed",
            Self::LargeHead => "large_head",
            Self::LargeBody => "large_body",
        }
    }
}

/// What the state directory is for, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateUse {
    /// Session keys that outlive us.
    SessionKeys,
    /// The offer of our sockets to the next daemon.
    HandOver,
    /// The lock that keeps two daemons from writing rules.
    RulesLock,
}

impl StateUse {
    fn label(self) -> &'static str {
        match self {
            Self::SessionKeys => "session_keys",
            Self::HandOver => "hand_over",
            Self::RulesLock => "rules_lock",
        }
    }
}

/// All metrics of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By kind and status, resolved.
    requests: Vec<IntCounter>,
    /// Connections closed because they did not come through the redirect.
    pub direct_connections: IntCounter,
    /// Connections that pods have open.
    pub connections: IntGauge,
    /// Connections of pods that we closed, by reason.
    connections_closed: IntCounterVec,
    /// Times that no connection could be accepted.
    pub accept_errors: IntCounter,
    /// Requests that waited because their pod makes too many.
    pub throttled_requests: IntCounter,
    /// Requests from addresses that are no known pod's, by reason.
    pub unidentified: IntCounterVec,
    /// Requests with a session token that is not good for their address.
    pub bad_session_tokens: IntCounter,
    /// Requests of the metadata service's content without a session token.
    pub requests_without_session: IntCounter,
    /// Those that were refused for it.
    pub refused_without_session: IntCounter,
    /// Requests of an allowed path that the real metadata service was not asked for, or that it did not answer.
    pub not_passed: IntCounterVec,
    /// Requests to the container endpoint with a `Host` or a token that is not good, by reason.
    pub refused_container_requests: IntCounterVec,
    /// TokenRequests, by result.
    pub token_requests: IntCounterVec,
    /// Calls of STS, by action and result.
    pub exchanges: IntCounterVec,
    /// Seconds that a call of STS took.
    pub exchange_seconds: Histogram,
    /// Seconds by which our wall clock is ahead of STS's.
    pub clock_skew: IntGauge,
    /// Sessions whose credentials are held or being fetched.
    pub slots: IntGauge,
    /// Those with nothing to serve since their last fetch failed.
    pub slots_failed: IntGauge,
    /// Those with less than a quarter of their life left.
    pub slots_low: IntGauge,
    /// Fetches that wait for their turn.
    pub fetches_queued: IntGauge,
    /// Pods of this node that are known.
    pub pods: IntGauge,
    /// Addresses that several pods claim.
    pub disputed_addresses: IntGauge,
    /// Pods whose service account's annotations cannot be meant.
    pub pods_with_invalid_role: IntGauge,
    /// Addresses whose pod's link ended or changed.
    pub suspended_addresses: IntGauge,
    /// Times that a pod's link ended or changed, by reason.
    pub suspensions: IntCounterVec,
    /// Times that news of links was lost and all was looked at again.
    pub link_overruns: IntCounter,
    /// Objects whose form was not understood.
    pub unreadable_objects: IntCounter,
    /// Look-ups of addresses that no watch had told of, by result.
    pub lookups: IntCounterVec,
    /// Events on pods, by what became of them.
    pub events: IntCounterVec,
    /// Removals of the start-up taint, by what became of them.
    pub startup_taint_removals: IntCounterVec,
    /// Watches that broke, by resource.
    pub watch_errors: IntCounterVec,
    /// Events of watches that were older than what was heard before, by resource.
    pub stale_events: IntCounterVec,
    /// Namespaces whose service accounts are watched.
    pub service_account_watches: IntGauge,
    /// 1 for the mode of token access in force.
    pub token_access: IntGaugeVec,
    /// 1 if we were found to have rights that the mode in force does not need.
    pub excess_rights: IntGauge,
    /// Connections that were meant for an address that we serve.
    pub redirected_connections: IntCounter,
    /// Connections that pods were seen to begin while nothing is redirected, by what they would get.
    pub observed_connections: IntCounterVec,
    /// Pods that were seen to.
    pub observed_pods: IntGaugeVec,
    /// 1 for each kind of obstacle in the way of pods' packets.
    pub obstacles: IntGaugeVec,
    /// 1 for the way in which requests are intercepted.
    pub intercept: IntGaugeVec,
    /// Times that rules were found missing and put back, by part.
    pub rules_restored: IntCounterVec,
    /// 1 while the state directory cannot be used for this.
    state_dir_unusable: IntGaugeVec,
    /// Questions to the kernel whose a connection is that came from no pod's address, by result.
    pub host_lookups: IntCounterVec,
    /// 1 for what becomes of pods on the node's network.
    pub host_network: IntGaugeVec,
    /// 1 while these rules for them are in place.
    pub host_rules: IntGaugeVec,
    /// 1 while ready.
    pub ready: IntGauge,
}

impl Metrics {
    /// The metrics, all at zero.
    ///
    /// # Errors
    /// When two of them have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("kube2irsa".to_owned()), None)?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let requests = counters("requests_total", "Requests of pods, by kind and HTTP status.", &["kind", "status"])?;
        let requests = KINDS
            .iter()
            .flat_map(|(_, kind)| STATUSES.map(|status| requests.with_label_values(&[kind, status.as_str()])))
            .collect();
        let exchange_seconds = Histogram::with_opts(
            HistogramOpts::new("sts_exchange_duration_seconds", "Seconds that a call of STS took.")
                .buckets(vec![0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5]),
        )?;
        registry.register(Box::new(exchange_seconds.clone()))?;
        let intercept = IntGaugeVec::new(Opts::new("intercept_info", "1 for the way of interception."), &["backend"])?;
        registry.register(Box::new(intercept.clone()))?;
        let obstacles =
            Opts::new("intercept_obstacle", "1 if this keeps, or may keep, pods' packets from coming here.");
        let obstacles = IntGaugeVec::new(obstacles, &["kind"])?;
        registry.register(Box::new(obstacles.clone()))?;
        let observed_pods = Opts::new(
            "observed_pods",
            "With --intercept observe: pods, and addresses that are no known pod's, that have begun such connections.",
        );
        let observed_pods = IntGaugeVec::new(observed_pods, &["outcome"])?;
        registry.register(Box::new(observed_pods.clone()))?;
        let host_network = Opts::new("host_network_info", "1 for what becomes of pods on the node's network.");
        let host_network = IntGaugeVec::new(host_network, &["mode"])?;
        registry.register(Box::new(host_network.clone()))?;
        let host_rules =
            Opts::new("host_network_rules", "1 while these rules for pods on the node's network are in place.");
        let host_rules = IntGaugeVec::new(host_rules, &["part"])?;
        registry.register(Box::new(host_rules.clone()))?;
        let token_access = Opts::new("token_access_info", "1 for the mode of token access in force.");
        let token_access = IntGaugeVec::new(token_access, &["mode"])?;
        registry.register(Box::new(token_access.clone()))?;
        let state_dir = Opts::new("state_dir_unusable", "1 while the state directory cannot be used for this.");
        let state_dir_unusable = IntGaugeVec::new(state_dir, &["for"])?;
        registry.register(Box::new(state_dir_unusable.clone()))?;
        for state_use in [StateUse::SessionKeys, StateUse::HandOver, StateUse::RulesLock] {
            state_dir_unusable.with_label_values(&[state_use.label()]).set(0);
        }
        let build = IntGaugeVec::new(Opts::new("build_info", "1 for the version that runs."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            requests,
            direct_connections: counter(
                "direct_connections_total",
                "Connections closed because they did not come through the redirect.",
            )?,
            connections: gauge("connections", "Connections that pods have open.")?,
            connections_closed: counters(
                "connections_closed_total",
                "Connections of pods that were closed by a limit or for what came on them, by reason.",
                &["reason"],
            )?,
            accept_errors: counter(
                "accept_errors_total",
                "Times that no connection could be accepted, for want of descriptors or memory.",
            )?,
            throttled_requests: counter(
                "throttled_requests_total",
                "Requests that waited because their pod makes more than --requests-per-pod.",
            )?,
            unidentified: counters(
                "unidentified_requests_total",
                "Requests from addresses that could not be told to be one pod's, by reason.",
                &["reason"],
            )?,
            bad_session_tokens: counter(
                "bad_session_tokens_total",
                "Requests with a session token that is not good for their address.",
            )?,
            requests_without_session: counter(
                "requests_without_session_total",
                "GET and HEAD requests without a session token (IMDSv1).",
            )?,
            refused_without_session: counter(
                "requests_without_session_refused_total",
                "Those of them that were refused, since a session token was required.",
            )?,
            not_passed: counters(
                "allowed_paths_failed_total",
                "Requests of a path of --allow-path without an answer of the real metadata service, by reason.",
                &["reason"],
            )?,
            refused_container_requests: counters(
                "refused_container_requests_total",
                "Requests to the container endpoint with a Host header or a token that is not good, by reason.",
                &["reason"],
            )?,
            token_requests: counters(
                "token_requests_total",
                "TokenRequests to the API server, by result: ok, timeout, unreachable, mismatch or HTTP status.",
                &["result"],
            )?,
            exchanges: counters(
                "sts_exchanges_total",
                "Calls of STS, by action and by result: ok, AWS's error code, Timeout or Unreachable.",
                &["action", "result"],
            )?,
            exchange_seconds,
            clock_skew: gauge("clock_skew_seconds", "Seconds by which this node's clock is ahead of that of STS.")?,
            slots: gauge("credential_slots", "Sessions whose credentials are held or being fetched.")?,
            slots_failed: gauge(
                "credential_slots_failed",
                "Sessions with no credentials to serve since the last fetch failed.",
            )?,
            slots_low: gauge(
                "credential_slots_low",
                "Sessions whose credentials have less than a quarter of their life left: renewals fail or lag.",
            )?,
            fetches_queued: gauge(
                "credential_fetches_queued",
                "Fetches that wait for their turn within --sts-rate, --sts-burst and --sts-concurrency.",
            )?,
            pods: gauge("pods", "Pods of this node that are known.")?,
            disputed_addresses: gauge(
                "disputed_addresses",
                "Addresses that several pods claim; nobody is served there.",
            )?,
            pods_with_invalid_role: gauge(
                "pods_with_invalid_role",
                "Pods whose service account has annotations that cannot be meant or a role that is not permitted.",
            )?,
            suspended_addresses: gauge(
                "suspended_addresses",
                "Addresses whose pod's link ended or changed; nobody is served there.",
            )?,
            suspensions: counters(
                "suspensions_total",
                "Times that a pod's link ended or changed, by reason.",
                &["reason"],
            )?,
            link_overruns: counter(
                "link_overruns_total",
                "Times that news of links was lost and all were looked at again.",
            )?,
            unreadable_objects: counter(
                "unreadable_objects_total",
                "Kubernetes objects whose form was not understood.",
            )?,
            lookups: counters(
                "lookups_total",
                "Look-ups of addresses that no watch had told of: found, nobody, failed or limited.",
                &["result"],
            )?,
            events: counters("events_total", "Events on pods, by result: written, failed or dropped.", &["result"])?,
            startup_taint_removals: counters(
                "startup_taint_removals_total",
                "Removals of the taint kube2irsa.io/not-ready, by result: removed, conflict, forbidden or failed.",
                &["result"],
            )?,
            watch_errors: counters("watch_errors_total", "Watches that broke, by resource.", &["resource"])?,
            stale_events: counters(
                "stale_events_total",
                "Events of watches that said nothing new, by resource; they are not heeded.",
                &["resource"],
            )?,
            service_account_watches: gauge(
                "service_account_watches",
                "Namespaces whose service accounts are watched.",
            )?,
            token_access,
            excess_rights: gauge("excess_rights", "1 if we have Kubernetes rights beyond the mode of token access.")?,
            redirected_connections: counter(
                "redirected_connections_total",
                "Connections that were meant for an address that we serve.",
            )?,
            observed_connections: counters(
                "observed_connections_total",
                "With --intercept observe: connections to addresses that would be redirected, by what would come of it.",
                &["outcome"],
            )?,
            observed_pods,
            obstacles,
            intercept,
            rules_restored: counters(
                "rules_restored_total",
                "Times that the guard or the redirect was found missing and put back.",
                &["part"],
            )?,
            state_dir_unusable,
            host_lookups: counters(
                "host_network_lookups_total",
                "Connections from no pod's address of which the kernel was asked whose they are, by result.",
                &["result"],
            )?,
            host_network,
            host_rules,
            ready: gauge("ready", "1 while the daemon is ready.")?,
            registry,
        })
    }

    /// Counts an answered request.
    pub fn answered(&self, kind: RequestKind, status: StatusCode) {
        let status = STATUSES.iter().position(|known| *known == status);
        let kind = KINDS.iter().position(|(known, _)| *known == kind);
        if let (Some(kind), Some(status)) = (kind, status)
            && let Some(counter) = self.requests.get(kind * STATUSES.len() + status)
        {
            counter.inc();
        }
    }

    /// How many connections came that were no pods' on the node's network: what their redirect counts is counted apart.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        let of_host = ["pod", "process"].map(|result| self.host_lookups.with_label_values(&[result]).get());
        self.redirected_connections.get().saturating_sub(of_host.iter().sum())
    }

    /// Counts a connection that we close.
    pub fn closed(&self, why: Closed) {
        self.connections_closed.with_label_values(&[why.label()]).inc();
    }

    /// Notes whether the state directory cannot be used for this. Returns what was noted before.
    pub fn lacks_state_dir(&self, state_use: StateUse, lacks: bool) -> bool {
        let gauge = self.state_dir_unusable.with_label_values(&[state_use.label()]);
        let before = gauge.get() == 1;
        gauge.set(lacks.into());
        before
    }

    /// All metrics in Prometheus's text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn text(&self) -> Result<(Vec<u8>, String), prometheus::Error> {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&self.registry.gather(), &mut text)?;
        Ok((text, encoder.format_type().to_owned()))
    }
}
