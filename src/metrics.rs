//! What Prometheus scrapes. Each metric is defined here, once, and `docs/metrics.md` is made from it.
//!
//! Handles are resolved once; labels are bounded, and no pod, role or address is one.

mod definition;
mod silence;

use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Counter, Encoder as _, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, TextEncoder,
};

use self::definition::{Handle, Resolved, metrics};
pub use self::{
    definition::{Kind, Label, Metric},
    silence::{Heard, Silence},
};
use crate::clock;

/// What pods ask for: see [`RequestKind`], whose order is this one.
const KIND: Label =
    Label::new("kind", &["token", "role_name", "role_document", "node", "allowed", "container_credentials", "other"]);
/// The statuses that pods are answered with.
const STATUS: Label = Label::new("status", &["200", "400", "401", "403", "404", "405", "503"]);
/// See [`Source`], whose order is this one.
const SOURCE: Label = Label::new("source", &["cache", "prefetch", "sts", "none"]);
/// Kubernetes' kinds of objects that we watch.
const RESOURCE: Label = Label::new("resource", &["pods", "serviceaccounts", "namespaces"]);

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

/// Where an answer to a request for credentials came from, as a label: see `SOURCE`, whose order is this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// They were there.
    Cache,
    /// They were there before anybody asked; the first answer.
    Prefetch,
    /// They were waited for.
    Sts,
    /// There were none in time.
    Nowhere,
}

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
    /// The admin socket, which may be in another directory.
    AdminSocket,
}

impl StateUse {
    fn label(self) -> &'static str {
        match self {
            Self::SessionKeys => "session_keys",
            Self::HandOver => "hand_over",
            Self::RulesLock => "rules_lock",
            Self::AdminSocket => "admin_socket",
        }
    }
}

metrics! {
    /// All metrics of the daemon.
    #[derive(Debug)]
    pub struct Metrics {
        "Whether pods are served" {
            pub ready: IntGauge = "kube2irsa_ready",
                "1 while the daemon is ready: what /readyz says.";
            pub pods: IntGaugeVec = "kube2irsa_pods",
                "Pods of this node that are known, by whether they can get the credentials of their main role now.",
                by(&[Label::new("credentials", &["served", "fetching", "on_request", "no_role", "invalid", "refused_by_aws",
                    "refused_by_kubernetes", "failing", "withheld", "not_known", "exempt"])]),
                note("`served`: they are there; `fetching`: for the first time; `on_request`: fetched when the pod asks, for \
                      it brings its own token for STS, or has not asked for long; `no_role`: the service account names none. \
                      **`invalid`: annotations that cannot be meant, or a role that is not permitted; `refused_by_aws`, \
                      `refused_by_kubernetes`: until somebody mends it, and then until the pod asks again (or is \
                      restarted), for what nobody asks for is not tried again; `failing`: no answer, for now; `withheld`: \
                      it would be served, but its address is [disputed, suspended or not bound](#who-is-behind-an-address) \
                      (moments of this are normal where pods start and end); `not_known`: the service account is missing \
                      or has not been read, or what its namespace permits.** `exempt`: the pod is on the node's network \
                      and left [the node's role](host-network.md), or has ended. Those there that are denied any are `no_role`.");
            pub pods_with_invalid_role: IntGauge = "kube2irsa_pods_with_invalid_role",
                "Pods whose service account has annotations that cannot be meant, or asks for a role that its namespace does \
                 not permit.",
                note("The log and [Events](events.md) name them.");
            pub legacy_pods: IntGaugeVec = "kube2irsa_legacy_pods",
                "With --legacy-annotations: pods that name a role by the annotations of kube2iam and kiam, by what becomes of it.",
                by(&[Label::new("role", &["used", "superseded", "refused", "not_known"])]), on_demand(),
                note("See [the page of it](legacy.md). `used`: they live of it; `superseded`: their service account names one, so \
                      that the annotation can go; `refused`: it cannot be meant, or is not permitted. **Once `used` is 0 on \
                      all nodes for as long as your rarest job takes to come, the flag can go.**");
            requests: Resolved<IntCounter> = "kube2irsa_requests_total",
                "Answers to pods, by what was asked for and HTTP status.",
                by(&[KIND, STATUS]),
                note("`node`: of the node, and what stands beside the credentials; `allowed`: a path of `--allow-path`.");
            pub unidentified: IntCounterVec = "kube2irsa_unidentified_requests_total",
                "Requests from addresses that could not be told to be one pod's.",
                by(&[Label::new("reason", &["not_yet_known", "disputed", "suspended", "unbound", "unknown", "link_local",
                    "host_process"])]),
                note("**`link_local`: pods of [a cluster of IPv6](interception.md#whose-address-where-a-request-comes-from) \
                      ask over IPv4.** `host_process`: a process on [the node's network](host-network.md) whose cgroup is no \
                      pod's.");
        }
        "Credentials and STS" {
            answer_seconds: Resolved<Histogram> = "kube2irsa_credential_request_duration_seconds",
                "Seconds from a request for credentials (the role's name, its document) to the answer, of pods that have a \
                 role.",
                by(&[SOURCE]), buckets(&[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.9]),
                note("`prefetch`: the first answer from credentials that were fetched before the pod asked; `sts`: waited \
                      for a fetch; `none`: refused, or not in time. Clients leave after a second.");
            pub sessions: IntGaugeVec = "kube2irsa_sessions",
                "Sessions at STS, of one pod and one role each unless pods share them.",
                by(&[Label::new("state", &["good", "renewal_failing", "fetching", "refused_by_aws", "refused_by_kubernetes",
                    "failing"])]),
                note("`good`: served, and the last fetch succeeded. **`renewal_failing`: served until they expire.** The \
                      others as with `kube2irsa_pods`.");
            pub sessions_low: IntGauge = "kube2irsa_sessions_low",
                "Sessions whose credentials are served and have less than a quarter of their life left.",
                note("**Renewals fail or lag.**");
            pub life_left: Gauge = "kube2irsa_session_life_left_min_ratio",
                "What is left of the life of the session that has least of it, of its whole life; 1 where nothing is served.",
                note("5/12 or more in normal running.");
            pub fetches: IntGaugeVec = "kube2irsa_credential_fetches",
                "Fetches that wait for their turn within --sts-rate, --sts-burst and --sts-concurrency, and those in flight.",
                by(&[Label::new("state", &["queued", "in_flight"])]);
            pub sts_budget: Gauge = "kube2irsa_sts_budget_calls",
                "Calls of STS that may be made at once now; below 0 where fetches needed more calls than one.",
                note("Refilled by `--sts-rate` a second.");
            pub sts_budget_limit: IntGauge = "kube2irsa_sts_budget_limit_calls",
                "Calls of STS that may be made at once after a rest: --sts-burst.";
            pub token_requests: IntCounterVec = "kube2irsa_token_requests_total",
                "TokenRequests to the API server, by result: ok, an HTTP status, or what else came of it.",
                by(&[Label::new("result", &["ok", "timeout", "unreachable", "mismatch", "400", "401", "403", "404", "409",
                    "422", "429", "5xx", "other"])]),
                note("**`mismatch`: the API server gave a token for something else: alarm.**");
            pub token_request_seconds: Histogram = "kube2irsa_token_request_duration_seconds",
                "Seconds that a TokenRequest took.",
                buckets(&[0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5]);
            pub exchanges: IntCounterVec = "kube2irsa_sts_exchanges_total",
                "Calls of STS, by action and by result: ok, AWS's error code, or our word for what happened on the way.",
                by(&[
                    Label::new("action", &["web_identity", "assume_role"]),
                    Label::new("result", &["ok", "AccessDenied", "ExpiredToken", "ExpiredTokenException",
                        "IDPCommunicationError", "IDPRejectedClaim", "InternalFailure", "InvalidClientTokenId",
                        "InvalidIdentityToken", "MalformedPolicyDocument", "NoCredentials", "NoIdentity", "NoRegion",
                        "OwnRole", "PackedPolicyTooLarge", "RegionDisabledException", "ServiceUnavailable",
                        "SignatureDoesNotMatch", "Throttling", "Timeout", "Unreachable", "Unreadable", "ValidationError", "other"]),
                ]),
                note("`assume_role`: the second hop, and of roles that pods name with `--legacy-source assume-role`; **`NoIdentity`: the \
                      keys for those are not to be had.**");
            pub exchange_seconds: Histogram = "kube2irsa_sts_exchange_duration_seconds",
                "Seconds that a call of STS took.",
                buckets(&[0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5]);
            pub clock_skew: IntGauge = "kube2irsa_clock_skew_seconds",
                "Seconds by which this node's clock is ahead of that of STS, by the last answer's date.",
                note("**Beyond 60 in either direction: set the clock.**");
        }
        "Session tokens and other ways to ask" {
            pub bad_session_tokens: IntCounter = "kube2irsa_bad_session_tokens_total",
                "Requests with an IMDSv2 token that is not good for their address (401).";
            pub requests_without_session: IntCounter = "kube2irsa_requests_without_session_total",
                "GET and HEAD requests without a session token (IMDSv1).",
                note("**At rest before `--require-imdsv2` breaks nobody.**");
            pub refused_without_session: IntCounter = "kube2irsa_requests_without_session_refused_total",
                "Those of them that got 401, since a token was required.";
            pub not_passed: IntCounterVec = "kube2irsa_allowed_paths_failed_total",
                "Requests of a path of --allow-path that the real service was not asked for, or did not answer.",
                by(&[Label::new("reason", &["limited", "failed"])]);
            pub refused_container_requests: IntCounterVec = "kube2irsa_refused_container_requests_total",
                "Requests to the container endpoint whose Host header or token is not good.",
                by(&[Label::new("reason", &["host", "no_token", "form", "key", "signature", "expired", "not_yet_valid",
                    "audience", "another_pod", "no_keys"])]),
                note("See [the page of it](container-credentials.md). All but `host` are of the token; `no_token`: one is \
                      required; **`another_pod`: a pod shows a token that is not its own**; `no_keys`: the API server's \
                      keys are not to be had.");
        }
        "Connections and limits" {
            pub connections: IntGauge = "kube2irsa_connections",
                "Connections that pods have open.";
            connections_closed: IntCounterVec = "kube2irsa_connections_closed_total",
                "Connections of pods that a limit ended, or what came on them.",
                by(&[Label::new("reason", &["pod_connections", "node_connections", "idle", "slow_request", "slow_reader",
                    "malformed", "large_head", "large_body"])]),
                note("See [limits](limits.md). **`pod_connections` or `node_connections`: some pod floods, or \
                      `--max-connections…` is too low.**");
            pub throttled_requests: IntCounter = "kube2irsa_throttled_requests_total",
                "Requests, and new connections, that waited for their turn because their pod makes more than \
                 --requests-per-pod.";
            pub accept_errors: IntCounter = "kube2irsa_accept_errors_total",
                "Times that no connection could be accepted, for want of descriptors or memory.";
            pub direct_connections: IntCounter = "kube2irsa_direct_connections_total",
                "Connections closed because they did not come through the redirect.";
            pub redirected_connections: IntCounter = "kube2irsa_redirected_connections_total",
                "Connections that were meant for an address that is served.";
        }
        "Who is behind an address" {
            pub disputed_addresses: IntGauge = "kube2irsa_disputed_addresses",
                "Addresses that several pods claim; nobody is served there.";
            pub suspended_addresses: IntGauge = "kube2irsa_suspended_addresses",
                "Addresses whose pod's link ended or changed; nobody is served there until the API server tells of another \
                 pod or a new container.",
                note("Pods that end pass through it.");
            pub suspensions: IntCounterVec = "kube2irsa_suspensions_total",
                "Times that a pod's link ended or changed.",
                by(&[Label::new("reason", &["link_gone", "link_changed", "mac_changed"])]),
                note("**`mac_changed` or `link_changed` without a change of pods: some pod answers for another's address.**");
            pub link_overruns: IntCounter = "kube2irsa_link_overruns_total",
                "Times that the kernel's news of links was lost or not understood, and all were looked at again.";
            pub lookups: IntCounterVec = "kube2irsa_lookups_total",
                "Addresses that no watch had told of and that were asked for directly.",
                by(&[Label::new("result", &["found", "nobody", "failed", "limited"])]),
                note("Many `found`: the watch lags.");
        }
        "The API server" {
            pub watch_silence: Silence = "kube2irsa_watch_silence_seconds",
                "Seconds since the API server was heard, by the watch of the resource that has been silent for longest.",
                by(&[RESOURCE]), on_demand(),
                note("It speaks each minute, if only to say that nothing happened. **Minutes: what happens to pods and \
                      roles is not seen.**");
            pub watch_errors: IntCounterVec = "kube2irsa_watch_errors_total",
                "Watches that broke: connections, errors, answers that were not understood (they are resumed).",
                by(&[RESOURCE]);
            pub stale_events: IntCounterVec = "kube2irsa_stale_events_total",
                "Events of watches that were not newer than what was heard before; they are not heeded.",
                by(&[RESOURCE]),
                note("**More than a few: something between us and the API server repeats what it said.**");
            pub service_account_watches: IntGauge = "kube2irsa_service_account_watches",
                "Namespaces whose service accounts are watched.";
            pub unreadable_objects: IntCounter = "kube2irsa_unreadable_objects_total",
                "Pods, service accounts and namespaces whose form was not understood, each time; who depends on one is not \
                 served.",
                note("The log names it.");
            pub token_access: IntGaugeVec = "kube2irsa_token_access_info",
                "1 for the mode of token access in force; none until it is decided.",
                by(&[Label::new("mode", &["node", "direct"])]), on_demand();
            pub excess_rights: IntGauge = "kube2irsa_excess_rights",
                "1 if the daemon acts as its node and still may list all pods as itself.",
                note("**Rights of both modes are granted, so node mode does not limit it.**");
            pub events: IntCounterVec = "kube2irsa_events_total",
                "Events on pods, by what became of them.",
                by(&[Label::new("result", &["written", "failed", "dropped"])]),
                note("See [Events](events.md). `failed`: the log says why, once; `dropped`: too many at once.");
            pub audit_lines: IntCounterVec = "kube2irsa_audit_lines_total",
                "Lines of --audit-log, by what became of them.",
                by(&[Label::new("result", &["written", "failed", "dropped"])]),
                note("See [the audit log](audit.md). Lost are those that `failed`, could not be written, and that were \
                      `dropped`, came faster than they were taken. **`failed` or `dropped`: it has a gap.**");
            pub audit_lines_waiting: IntGauge = "kube2irsa_audit_lines_waiting",
                "Lines of --audit-log that wait to be written.",
                note("**Above 0 for a minute: the disk is full or the reader stands still, and beyond 4096 they are lost.**");
            pub startup_taint_removals: IntCounterVec = "kube2irsa_startup_taint_removals_total",
                "Removals of the start-up taint with --remove-taint.",
                by(&[Label::new("result", &["removed", "conflict", "forbidden", "failed"])]),
                note("See [the page of it](startup-taint.md). `conflict`: others moved it meanwhile; **`forbidden` or \
                      `failed` that grows: the node gets no pods**, and the log says why, once.");
        }
        "Interception" {
            pub intercept: IntGaugeVec = "kube2irsa_intercept_info",
                "1 for the way of interception.",
                by(&[Label::new("backend", &["nft", "iptables", "observe", "none", "remove"])]), on_demand(),
                note("**`remove`: pods of the node [get its role](interception.md#when-nobody-is-to-be-left).**");
            pub rules_present: IntGaugeVec = "kube2irsa_rules_present",
                "1 if these rules of ours were in place when it was looked last, put back if need be.",
                by(&[Label::new("part", &["guard", "redirect", "beside"])]), on_demand(),
                note("Where pods' requests are redirected. **`guard`: only the redirect keeps pods from the node's role; \
                      `redirect`: pods are refused.** `beside`: what lets packets in past the node's firewall, and keeps an \
                      earlier redirect out.");
            pub rules_restored: IntCounterVec = "kube2irsa_rules_restored_total",
                "Times that rules of ours were found missing and put back.",
                by(&[Label::new("part", &["guard", "redirect", "input", "leftover", "host_redirect"])]),
                note("**Some other program removes them.**");
            pub obstacles: IntGaugeVec = "kube2irsa_intercept_obstacle",
                "1 while this keeps, or may keep, pods' packets from coming here.",
                by(&[Label::new("kind", &["routing_rule", "cilium", "lost"])]),
                note("See [what may be in the way](interception.md#what-may-be-in-the-way).");
            pub host_network: IntGaugeVec = "kube2irsa_host_network_info",
                "1 for what becomes of pods on the node's network.",
                by(&[Label::new("mode", &["off", "deny", "serve"])]), on_demand(),
                note("See [the page of it](host-network.md). **`off`: they have the node's role**, and the log says why.");
            pub host_rules: IntGaugeVec = "kube2irsa_host_network_rules",
                "1 while these rules for pods on the node's network are in place.",
                by(&[Label::new("part", &["redirect", "guard"])]), on_demand(),
                note("Where they are served or denied. `redirect` is 0 too where kubelet has run no pod yet. **`guard` at 0: a \
                      flush of nftables opens the node's role to them until the rules are back.**");
            pub host_lookups: IntCounterVec = "kube2irsa_host_network_lookups_total",
                "Connections from no pod's address of which the kernel was asked whose they are.",
                by(&[Label::new("result", &["pod", "process", "none", "failed"])]),
                note("`process`: no pod's, or its cgroup is gone; `none`: no socket of the node's network, or closed.");
            pub observed_connections: IntCounterVec = "kube2irsa_observed_connections_total",
                "With --intercept observe: connections that would be redirected, by what would come of them.",
                by(&[Label::new("outcome", &["role", "no_role", "invalid", "unidentified"])]), on_demand(),
                note("See [observing](interception.md#look-before-you-leap). `invalid`: annotations that cannot be meant, or \
                      a role that is not permitted; `unidentified`: could not be told to be one pod's.");
            pub observed_pods: IntGaugeVec = "kube2irsa_observed_pods",
                "With --intercept observe: the pods, and the addresses that are no known pod's, that began them.",
                by(&[Label::new("outcome", &["role", "no_role", "invalid", "unidentified"])]), on_demand(),
                note("**All but `role` lose the node's role and get none.**");
        }
        "The daemon" {
            state_dir_unusable: IntGaugeVec = "kube2irsa_state_dir_unusable",
                "1 while --state-dir, or the directory of --admin-socket, cannot be used for this.",
                by(&[Label::new("for", &["session_keys", "hand_over", "rules_lock", "admin_socket"])]),
                note("[What that costs](rights.md#when-the-state-directory-cannot-be-written).");
            build: IntGaugeVec = "kube2irsa_build_info",
                "1 for the version that runs.",
                by(&[Label::new("version", &[])]), on_demand();
            pub process_cpu: Counter = "process_cpu_seconds_total",
                "Seconds of CPU time that the process has used.";
            pub process_resident_memory: IntGauge = "process_resident_memory_bytes",
                "Bytes of memory that the process holds.";
            pub process_open_fds: IntGauge = "process_open_fds",
                "Files and sockets that the process has open.";
            pub process_max_fds: IntGauge = "process_max_fds",
                "Files and sockets that it may have open.";
            pub process_start_time: IntGauge = "process_start_time_seconds",
                "When the process started, in seconds since 1970.";
        }
    }
}

impl Metrics {
    /// The metrics of a process that starts.
    ///
    /// # Errors
    /// When two of them have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self::registered()?;
        metrics.build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.life_left.set(1.0);
        metrics.process_start_time.set(i64::try_from(clock::now().unix_seconds()).unwrap_or_default());
        Ok(metrics)
    }

    /// Notes how long an answer took.
    pub fn waited(&self, source: Source, time: Duration) {
        if let Some(seconds) = self.answer_seconds.get(source as usize) {
            seconds.observe(time.as_secs_f64());
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, kind: RequestKind, status: StatusCode) {
        if let Some(status) = STATUS.values.iter().position(|known| *known == status.as_str())
            && let Some(counter) = self.requests.get(kind as usize * STATUS.values.len() + status)
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

    /// What is told of the interception in force: the backend's name.
    #[must_use]
    pub fn interception(&self) -> Option<String> {
        let families = prometheus::core::Collector::collect(&self.intercept);
        let in_force = families.iter().flat_map(|family| family.get_metric());
        in_force.flat_map(|metric| metric.get_label()).map(|label| label.value().to_owned()).next()
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

#[cfg(test)]
mod tests;
