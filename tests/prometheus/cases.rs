//! For each alert what makes it fire, and what must not: series as promtool takes them, a value a minute.

/// What is scraped for 130 minutes, and whether an alert fires meanwhile.
pub(super) struct Case {
    pub(super) alert: &'static str,
    pub(super) what: &'static str,
    pub(super) fires: bool,
    pub(super) series: &'static [(&'static str, &'static str)],
}

const fn fires(alert: &'static str, what: &'static str, series: &'static [(&'static str, &'static str)]) -> Case {
    Case { alert, what, fires: true, series }
}

const fn rests(alert: &'static str, what: &'static str, series: &'static [(&'static str, &'static str)]) -> Case {
    Case { alert, what, fires: false, series }
}

#[rustfmt::skip]
pub(super) const ALL: &[Case] = &[
    fires("Kube2irsaPodsRefusedByAws", "a trust policy is wrong", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="refused_by_aws"}"#, "0x10 2x120"),
    ]),
    rests("Kube2irsaPodsRefusedByAws", "a role is made some minutes after its pods", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="refused_by_aws"}"#, "0x30 3x10 0x90"),
    ]),
    fires("Kube2irsaPodsInvalid", "an annotation is wrong", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="invalid"}"#, "0x10 1x120"),
    ]),
    rests("Kube2irsaPodsInvalid", "an annotation is mended within minutes", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="invalid"}"#, "0x30 1x10 0x90"),
    ]),
    rests("Kube2irsaPodsInvalid", "pods have no role at all", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="invalid"}"#, "0x130"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="no_role"}"#, "9x130"),
    ]),
    fires("Kube2irsaPodsRefusedByKubernetes", "the daemon's rights are gone", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="refused_by_kubernetes"}"#, "0x10 20x120"),
    ]),
    rests("Kube2irsaPodsRefusedByKubernetes", "the rights come after the daemon", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="refused_by_kubernetes"}"#, "20x5 0x125"),
    ]),
    fires("Kube2irsaPodsFailing", "STS cannot be reached", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="failing"}"#, "0x10 20x120"),
    ]),
    rests("Kube2irsaPodsFailing", "STS is away for some minutes", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="failing"}"#, "0x30 50x8 0x92"),
    ]),
    rests("Kube2irsaPodsFailing", "pods of one node after the other fail for moments", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="failing"}"#, "0x30 1x5 0x95"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="b",credentials="failing"}"#, "0x35 1x5 0x90"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="c",credentials="failing"}"#, "0x40 1x5 0x85"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="d",credentials="failing"}"#, "0x45 1x5 0x80"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="e",credentials="failing"}"#, "0x50 1x5 0x75"),
    ]),
    fires("Kube2irsaPodsNotKnown", "a ServiceAccount is deleted while its pods run", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="not_known"}"#, "0x10 1x120"),
    ]),
    rests("Kube2irsaPodsNotKnown", "namespaces come to one node after the other", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="not_known"}"#, "0x30 1x5 0x95"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="b",credentials="not_known"}"#, "0x35 1x5 0x90"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="c",credentials="not_known"}"#, "0x40 1x5 0x85"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="d",credentials="not_known"}"#, "0x45 1x5 0x80"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="e",credentials="not_known"}"#, "0x50 1x5 0x75"),
    ]),
    fires("Kube2irsaPodsWithheld", "a pod's link was replaced", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="withheld"}"#, "0x10 1x120"),
    ]),
    rests("Kube2irsaPodsWithheld", "pods end on one node after the other", &[
        (r#"kube2irsa_pods{job="kube2irsa",instance="a",credentials="withheld"}"#, "0x30 1x5 0x95"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="b",credentials="withheld"}"#, "0x35 1x5 0x90"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="c",credentials="withheld"}"#, "0x40 1x5 0x85"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="d",credentials="withheld"}"#, "0x45 1x5 0x80"),
        (r#"kube2irsa_pods{job="kube2irsa",instance="e",credentials="withheld"}"#, "0x50 1x5 0x75"),
    ]),
    fires("Kube2irsaRenewalsFailing", "a role is deleted while its credentials are served", &[
        (r#"kube2irsa_sessions{job="kube2irsa",instance="a",state="renewal_failing"}"#, "0x10 1x120"),
    ]),
    rests("Kube2irsaRenewalsFailing", "STS is away for some minutes", &[
        (r#"kube2irsa_sessions{job="kube2irsa",instance="a",state="renewal_failing"}"#, "0x30 40x10 0x90"),
        (r#"kube2irsa_sessions{job="kube2irsa",instance="a",state="good"}"#, "50x130"),
    ]),
    rests("Kube2irsaRenewalsFailing", "a renewal fails once on one node after the other", &[
        (r#"kube2irsa_sessions{job="kube2irsa",instance="a",state="renewal_failing"}"#, "0x30 1x5 0x95"),
        (r#"kube2irsa_sessions{job="kube2irsa",instance="b",state="renewal_failing"}"#, "0x35 1x5 0x90"),
        (r#"kube2irsa_sessions{job="kube2irsa",instance="c",state="renewal_failing"}"#, "0x40 1x5 0x85"),
        (r#"kube2irsa_sessions{job="kube2irsa",instance="d",state="renewal_failing"}"#, "0x45 1x5 0x80"),
        (r#"kube2irsa_sessions{job="kube2irsa",instance="e",state="renewal_failing"}"#, "0x50 1x5 0x75"),
    ]),
    fires("Kube2irsaLifeLow", "credentials are about to expire", &[
        (r#"kube2irsa_sessions_low{job="kube2irsa",instance="a"}"#, "0x30 3x15 0x85"),
    ]),
    rests("Kube2irsaLifeLow", "a renewal comes late, but comes", &[
        (r#"kube2irsa_sessions_low{job="kube2irsa",instance="a"}"#, "0x30 3x1 0x99"),
    ]),
    fires("Kube2irsaStsBudgetExhausted", "more is to be fetched than may be", &[
        (r#"kube2irsa_credential_fetches{job="kube2irsa",instance="a",state="queued"}"#, "0x10 40x120"),
    ]),
    rests("Kube2irsaStsBudgetExhausted", "a full node starts", &[
        (r#"kube2irsa_credential_fetches{job="kube2irsa",instance="a",state="queued"}"#, "0x10 230x1 0x119"),
        (r#"kube2irsa_credential_fetches{job="kube2irsa",instance="a",state="in_flight"}"#, "5x130"),
    ]),
    fires("Kube2irsaStsThrottles", "the account's limit is reached", &[
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="Throttling"}"#, "0+2x130"),
    ]),
    rests("Kube2irsaStsThrottles", "a call is throttled now and then", &[
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="Throttling"}"#, "0+0.4x130"),
    ]),
    fires("Kube2irsaStsThrottles", "one call in ten is throttled", &[
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="Throttling"}"#, "0+2x130"),
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="ok"}"#, "0+18x130"),
    ]),
    rests("Kube2irsaStsThrottles", "of a thousand nodes' calls one in a thousand is throttled", &[
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="Throttling"}"#, "0+2x130"),
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="ok"}"#, "0+1998x130"),
    ]),
    rests("Kube2irsaStsThrottles", "many nodes start at once", &[
        (r#"kube2irsa_sts_exchanges_total{job="kube2irsa",instance="a",action="web_identity",result="Throttling"}"#, "0x30 90x100"),
    ]),
    fires("Kube2irsaClockSkew", "a clock is behind", &[
        (r#"kube2irsa_clock_skew_seconds{job="kube2irsa",instance="a"}"#, "-90x130"),
    ]),
    fires("Kube2irsaClockSkew", "a clock is ahead", &[
        (r#"kube2irsa_clock_skew_seconds{job="kube2irsa",instance="a"}"#, "61x130"),
    ]),
    rests("Kube2irsaClockSkew", "a clock is set", &[
        (r#"kube2irsa_clock_skew_seconds{job="kube2irsa",instance="a"}"#, "0x30 300x5 0x95"),
    ]),
    rests("Kube2irsaClockSkew", "a clock is not quite right", &[
        (r#"kube2irsa_clock_skew_seconds{job="kube2irsa",instance="a"}"#, "-50x130"),
    ]),
    fires("Kube2irsaAbsent", "nothing is scraped", &[
        (r#"up{job="something else"}"#, "1x130"),
    ]),
    fires("Kube2irsaAbsent", "the last daemon goes", &[
        (r#"kube2irsa_build_info{job="kube2irsa",instance="a",version="1"}"#, "1x60 _x70"),
    ]),
    rests("Kube2irsaAbsent", "all daemons are replaced", &[
        (r#"kube2irsa_build_info{job="kube2irsa",instance="a",version="1"}"#, "1x60 stale"),
        (r#"kube2irsa_build_info{job="kube2irsa",instance="a",version="2"}"#, "_x65 1x65"),
    ]),
    fires("Kube2irsaDown", "a daemon is gone", &[
        (r#"up{job="kube2irsa",instance="a"}"#, "1x30 0x100"),
    ]),
    fires("Kube2irsaDown", "a daemon that a PodMonitor finds is gone", &[
        (r#"up{job="kube2irsa/kube2irsa",instance="a"}"#, "1x30 0x100"),
    ]),
    rests("Kube2irsaDown", "a node goes, and a daemon is restarted", &[
        (r#"up{job="kube2irsa",instance="a"}"#, "1x30 0x5 stale"),
        (r#"up{job="kube2irsa",instance="b"}"#, "1x30 0x3 1x97"),
    ]),
    rests("Kube2irsaDown", "something else is gone", &[
        (r#"up{job="not-kube2irsa",instance="a"}"#, "0x130"),
    ]),
    fires("Kube2irsaNotReady", "a daemon lacks something", &[
        (r#"kube2irsa_ready{job="kube2irsa",instance="a"}"#, "1x30 0x100"),
    ]),
    rests("Kube2irsaNotReady", "a daemon starts", &[
        (r#"kube2irsa_ready{job="kube2irsa",instance="a"}"#, "0x3 1x127"),
    ]),
    fires("Kube2irsaRulesMissing", "the guard cannot be put back", &[
        (r#"kube2irsa_rules_present{job="kube2irsa",instance="a",part="guard"}"#, "1x30 0x100"),
    ]),
    fires("Kube2irsaRulesMissing", "the redirect cannot be put back", &[
        (r#"kube2irsa_rules_present{job="kube2irsa",instance="a",part="redirect"}"#, "1x30 0x100"),
    ]),
    rests("Kube2irsaRulesMissing", "a daemon starts", &[
        (r#"kube2irsa_rules_present{job="kube2irsa",instance="a",part="guard"}"#, "0x1 1x129"),
        (r#"kube2irsa_rules_present{job="kube2irsa",instance="a",part="beside"}"#, "0x130"),
    ]),
    fires("Kube2irsaRulesFoughtOver", "another program flushes rules again and again", &[
        (r#"kube2irsa_rules_restored_total{job="kube2irsa",instance="a",part="redirect"}"#, "0+1x130"),
    ]),
    rests("Kube2irsaRulesFoughtOver", "rules were flushed twice, and the daemon restarted", &[
        (r#"kube2irsa_rules_restored_total{job="kube2irsa",instance="a",part="redirect"}"#, "0x30 2x30 0x70"),
        (r#"kube2irsa_rules_restored_total{job="kube2irsa",instance="a",part="guard"}"#, "9x30 0x100"),
    ]),
    fires("Kube2irsaObstacle", "no packet arrives", &[
        (r#"kube2irsa_intercept_obstacle{job="kube2irsa",instance="a",kind="lost"}"#, "0x30 1x100"),
    ]),
    rests("Kube2irsaObstacle", "a firewall is reloaded", &[
        (r#"kube2irsa_intercept_obstacle{job="kube2irsa",instance="a",kind="lost"}"#, "0x30 1x3 0x97"),
    ]),
    fires("Kube2irsaNotIntercepting", "an uninstallation is left undone", &[
        (r#"kube2irsa_intercept_info{job="kube2irsa",instance="a",backend="remove"}"#, "1x130"),
    ]),
    rests("Kube2irsaNotIntercepting", "kube2irsa is uninstalled", &[
        (r#"kube2irsa_intercept_info{job="kube2irsa",instance="a",backend="remove"}"#, "1x40 _x90"),
        (r#"kube2irsa_intercept_info{job="kube2irsa",instance="b",backend="nft"}"#, "1x130"),
    ]),
    fires("Kube2irsaWatchSilent", "the API server cannot be reached", &[
        (r#"kube2irsa_watch_silence_seconds{job="kube2irsa",instance="a",resource="pods"}"#, "30x30 60+60x100"),
    ]),
    rests("Kube2irsaWatchSilent", "the API server is replaced", &[
        (r#"kube2irsa_watch_silence_seconds{job="kube2irsa",instance="a",resource="pods"}"#, "30x30 60+60x8 20x92"),
    ]),
    fires("Kube2irsaAddressesDisputed", "two pods have one address", &[
        (r#"kube2irsa_disputed_addresses{job="kube2irsa",instance="a"}"#, "0x30 1x100"),
    ]),
    rests("Kube2irsaAddressesDisputed", "an address passes from pod to pod", &[
        (r#"kube2irsa_disputed_addresses{job="kube2irsa",instance="a"}"#, "0x30 1x2 0x98"),
    ]),
    fires("Kube2irsaConnectionLimit", "a pod floods", &[
        (r#"kube2irsa_connections_closed_total{job="kube2irsa",instance="a",reason="pod_connections"}"#, "0+20x130"),
    ]),
    rests("Kube2irsaConnectionLimit", "a pod opens too many now and then", &[
        (r#"kube2irsa_connections_closed_total{job="kube2irsa",instance="a",reason="node_connections"}"#, "0+2x130"),
    ]),
    rests("Kube2irsaConnectionLimit", "a pod opened too many once", &[
        (r#"kube2irsa_connections_closed_total{job="kube2irsa",instance="a",reason="pod_connections"}"#, "0x30 500x100"),
        (r#"kube2irsa_connections_closed_total{job="kube2irsa",instance="a",reason="idle"}"#, "0+50x130"),
    ]),
    fires("Kube2irsaStateDirUnusable", "a disk is full", &[
        (r#"kube2irsa_state_dir_unusable{job="kube2irsa",instance="a",for="hand_over"}"#, "0x30 1x100"),
    ]),
    rests("Kube2irsaStateDirUnusable", "a disk was full for minutes", &[
        (r#"kube2irsa_state_dir_unusable{job="kube2irsa",instance="a",for="hand_over"}"#, "0x30 1x5 0x95"),
    ]),
    fires("Kube2irsaTaintStays", "the right is missing", &[
        (r#"kube2irsa_startup_taint_removals_total{job="kube2irsa",instance="a",result="forbidden"}"#, "0+1x130"),
    ]),
    rests("Kube2irsaTaintStays", "the API server failed once, and taints are removed", &[
        (r#"kube2irsa_startup_taint_removals_total{job="kube2irsa",instance="a",result="failed"}"#, "0x30 2x100"),
        (r#"kube2irsa_startup_taint_removals_total{job="kube2irsa",instance="a",result="removed"}"#, "0+1x130"),
    ]),
    fires("Kube2irsaTokenMismatch", "a token is for another pod", &[
        (r#"kube2irsa_token_requests_total{job="kube2irsa",instance="a",result="mismatch"}"#, "0x30 1x100"),
    ]),
    rests("Kube2irsaTokenMismatch", "tokens are refused, and a daemon restarts", &[
        (r#"kube2irsa_token_requests_total{job="kube2irsa",instance="a",result="mismatch"}"#, "1x30 0x100"),
        (r#"kube2irsa_token_requests_total{job="kube2irsa",instance="a",result="403"}"#, "0+1x130"),
    ]),
    fires("Kube2irsaForeignToken", "a pod shows another's token", &[
        (r#"kube2irsa_refused_container_requests_total{job="kube2irsa",instance="a",reason="another_pod"}"#, "0x30 1x100"),
    ]),
    rests("Kube2irsaForeignToken", "pods show tokens that have expired", &[
        (r#"kube2irsa_refused_container_requests_total{job="kube2irsa",instance="a",reason="another_pod"}"#, "0x130"),
        (r#"kube2irsa_refused_container_requests_total{job="kube2irsa",instance="a",reason="expired"}"#, "0+1x130"),
    ]),
    fires("Kube2irsaAddressTakenOver", "a pod answers for others' addresses", &[
        (r#"kube2irsa_suspensions_total{job="kube2irsa",instance="a",reason="mac_changed"}"#, "0x30 5x100"),
    ]),
    rests("Kube2irsaAddressTakenOver", "pods come and go, and an address changes hands at once", &[
        (r#"kube2irsa_suspensions_total{job="kube2irsa",instance="a",reason="link_gone"}"#, "0+3x130"),
        (r#"kube2irsa_suspensions_total{job="kube2irsa",instance="a",reason="mac_changed"}"#, "0x30 2x100"),
    ]),
    fires("Kube2irsaExcessRights", "rights of both modes are granted", &[
        (r#"kube2irsa_excess_rights{job="kube2irsa",instance="a"}"#, "1x130"),
    ]),
    rests("Kube2irsaExcessRights", "one mode follows the other", &[
        (r#"kube2irsa_excess_rights{job="kube2irsa",instance="a"}"#, "1x30 0x100"),
    ]),
    fires("Kube2irsaAuditLinesLost", "the disk is full for long", &[
        (r#"kube2irsa_audit_lines_total{job="kube2irsa",instance="a",result="failed"}"#, "0x30 1x100"),
    ]),
    fires("Kube2irsaAuditLinesLost", "what reads the pipe is too slow", &[
        (r#"kube2irsa_audit_lines_total{job="kube2irsa",instance="a",result="dropped"}"#, "0x30 40x100"),
    ]),
    rests("Kube2irsaAuditLinesLost", "all is written, and a daemon that lost lines restarts", &[
        (r#"kube2irsa_audit_lines_total{job="kube2irsa",instance="a",result="written"}"#, "0+10x130"),
        (r#"kube2irsa_audit_lines_total{job="kube2irsa",instance="a",result="failed"}"#, "9x30 0x100"),
        (r#"kube2irsa_audit_lines_total{job="kube2irsa",instance="a",result="dropped"}"#, "9x30 0x100"),
    ]),
    fires("Kube2irsaAuditLinesWaiting", "the disk is full", &[
        (r#"kube2irsa_audit_lines_waiting{job="kube2irsa",instance="a"}"#, "0x30 1+20x100"),
    ]),
    rests("Kube2irsaAuditLinesWaiting", "a disk is slow for minutes", &[
        (r#"kube2irsa_audit_lines_waiting{job="kube2irsa",instance="a"}"#, "0x30 50x3 0x97"),
    ]),
];
