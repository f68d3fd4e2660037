//! STS, asked as the daemon asks it: with its HTTP stack, certificates, proxies and time limit, and with a token that is none.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use secrecy::SecretString;

use super::{checks, report::Report};
use crate::{
    clock,
    identity::{RoleArn, Wish},
    metrics::Metrics,
    operator::inventory::Read,
    sts::{self, Ask, Exchange as _, Sts},
};

/// Of the two seconds that an SDK waits.
const SLOW: Duration = Duration::from_secs(1);
/// A role that is nobody's.
const ROLE: &str = "arn:aws:iam::000000000000:role/kube2irsa-doctor";
/// What an answer is called that never came, or cannot be read.
const NOT_HAD: [&str; 3] = ["Timeout", "Unreachable", "Unreadable"];
const DISABLED: &str = "RegionDisabledException";
/// The region whose endpoint is the global one.
const GLOBAL: &str = "aws-global";

/// One STS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

/// What came of asking it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) place: Place,
    pub(super) answered: Read<Answered>,
}

/// Its answer.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) took: Duration,
    /// AWS's code, which a token that is none must have.
    pub(super) code: String,
    /// Seconds that our clock is ahead of its.
    pub(super) ahead: i64,
}

// === impl Place ===

impl Place {
    pub(super) fn global() -> Self {
        Self { region: Some(GLOBAL.to_owned()), endpoint: None }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.endpoint, &self.region) {
            (Some(endpoint), _) => f.write_str(endpoint),
            (None, Some(region)) if region == GLOBAL => f.write_str("the global endpoint"),
            (None, Some(region)) => f.write_str(region),
            (None, None) => f.write_str("nowhere"),
        }
    }
}

/// Asks each of them.
pub(super) async fn ask(places: BTreeSet<Place>, ca_bundle: Option<&[u8]>) -> Vec<Answer> {
    let asked = places.into_iter().map(|place| async move {
        let answered = ask_one(&place, ca_bundle).await;
        Answer { place, answered }
    });
    futures::future::join_all(asked).await
}

async fn ask_one(Place { region, endpoint }: &Place, ca_bundle: Option<&[u8]>) -> Read<Answered> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let over_tls = endpoint.as_ref().is_none_or(|endpoint| !endpoint.starts_with("http://"));
    let https = sts::https(ca_bundle.map(<[u8]>::to_vec), over_tls).map_err(|error| words(&error))?;
    let metrics = Arc::new(Metrics::new().map_err(|error| words(&error))?);
    let sts = Sts::new(https, region.clone(), endpoint.clone(), None, Arc::clone(&metrics));
    let role = ROLE.parse::<RoleArn>().map_err(|error| words(&error))?;
    let wish = Wish { role, target: None, audience: None, session_seconds: 3600, regional_sts: None, of_pod: None };
    let token = SecretString::from("none");
    let mut answered = Err(String::new());
    // A connection is kept, so that the second time is that of an answer alone.
    for _ in 0..2 {
        let ask = Ask { wish: &wish, session_name: "kube2irsa-doctor", tags: &[], token: Some(&token), told: &|_| {} };
        let start = clock::now();
        let error = match sts.exchange(ask).await {
            Ok(_) => return Err("it takes a token that is none".to_owned()),
            Err(error) => error,
        };
        let took = clock::now().monotonic.duration_since(start.monotonic);
        answered = match NOT_HAD.contains(&error.code.as_str()) {
            true => Err(error.message),
            false => Ok(Answered { took, code: error.code, ahead: metrics.clock_skew.get() }),
        };
        if answered.is_err() {
            break;
        }
    }
    answered
}

/// What follows from the answers, of a node's or from elsewhere, where the way to STS is another.
pub(super) fn look(answers: &[Answer], on_node: bool, report: &mut Report) {
    if answers.is_empty() {
        report.unseen("STS", "its region is not known: --region, or the nodes' label topology.kubernetes.io/region");
    }
    for Answer { place, answered } in answers {
        match answered {
            Ok(answered) => {
                let took = answered.took.as_millis();
                report.seen("STS", format!("{place}: answers in {took} ms"));
                if answered.code == DISABLED {
                    report.find(
                        &checks::STS_DISABLED,
                        format!("STS, {place}: {DISABLED}"),
                        "activate it: IAM console, Account settings, Security Token Service",
                    );
                }
                if on_node && answered.took > SLOW {
                    let mend = "use the region's own endpoint, or a VPC endpoint (docs/roles.md)";
                    report.find(&checks::STS_SLOW, format!("STS, {place}: {took} ms"), mend);
                }
            }
            Err(why) if on_node => report.find(
                &checks::STS_SILENT,
                format!("STS, {place}: {why}"),
                "look at the node's way there: DNS, routes, security groups, HTTPS_PROXY, --ca-bundle",
            ),
            Err(why) => report.unseen(
                format!("STS, {place}"),
                format!("from here: {why}; `kube2irsa doctor` in a daemon's pod asks from its node"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answered: Read<Answered>, on_node: bool) -> (Vec<&'static str>, usize) {
        let place = Place { region: Some("eu-central-1".to_owned()), endpoint: None };
        let mut report = Report::default();
        look(&[Answer { place, answered }], on_node, &mut report);
        (report.findings.iter().map(|finding| finding.check.id).collect(), report.not_looked_at.len())
    }

    #[test]
    fn what_cannot_be_reached_is_a_finding_on_a_node_alone() {
        let answer = |milliseconds, code: &str| {
            Ok(Answered { took: Duration::from_millis(milliseconds), code: code.to_owned(), ahead: 0 })
        };
        assert_eq!(found(answer(20, "InvalidIdentityToken"), true), (vec![], 0));
        assert_eq!(found(answer(1001, "InvalidIdentityToken"), true), (vec!["sts-slow"], 0));
        assert_eq!(found(answer(1001, "InvalidIdentityToken"), false), (vec![], 0));
        assert_eq!(found(answer(20, DISABLED), false), (vec!["sts-region-disabled"], 0));
        assert_eq!(found(Err("no route".to_owned()), true), (vec!["sts-unreachable"], 0));
        assert_eq!(found(Err("no route".to_owned()), false), (vec![], 1));
        let mut report = Report::default();
        look(&[], true, &mut report);
        assert_eq!(report.not_looked_at.len(), 1, "nothing that was not asked is well");
    }
}
