//! Where the node is in AWS: as flags say, or as the real metadata service does.

use std::time::Duration;

use http::Uri;

use crate::{
    config::{ComposeRoleArn, Source, StsLocation},
    identity::annotations::PlainNames,
    imds::upstream::{self, UpstreamError},
    readiness::{Condition, Readiness},
};

/// Between two questions to the metadata service.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The region and endpoint of STS.
pub(super) async fn of_sts(location: StsLocation, readiness: &Readiness) -> (Option<String>, Option<String>) {
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
pub(super) async fn account(compose: ComposeRoleArn, readiness: &Readiness) -> PlainNames {
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
