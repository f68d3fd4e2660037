//! The sandbox's own client: an unmodified AWS SDK for Rust with its default chain of credentials.

use std::time::{Duration, Instant};

use aws_config::BehaviorVersion;
use aws_sdk_sts::error::DisplayErrorContext;
use serde::{Deserialize, Serialize};

/// What the SDK came back with; printed as one line of JSON.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    /// Who STS says that the caller is.
    pub arn: Option<String>,
    /// Why there is no answer.
    pub error: Option<String>,
    /// How long the default chain took for credentials, the first time.
    pub first: Duration,
    /// The same for a new chain of the same pod.
    pub again: Duration,
}

/// Loads credentials twice, each time as a process of its own would, and asks STS who they are.
pub async fn report() -> Report {
    let (first, error) = load().await;
    let (again, _) = load().await;
    if error.is_some() {
        return Report { arn: None, error, first, again };
    }
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    match aws_sdk_sts::Client::new(&config).get_caller_identity().send().await {
        Ok(identity) => Report { arn: identity.arn, error: None, first, again },
        Err(error) => Report { arn: None, error: Some(DisplayErrorContext(&error).to_string()), first, again },
    }
}

/// Asks STS who the caller is so often, so far apart, with one client; gives each answer to `tell`.
pub async fn rounds(count: u32, pause: Duration, mut tell: impl FnMut(Result<String, String>)) {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = aws_sdk_sts::Client::new(&config);
    for number in 0..count {
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        let answer = client.get_caller_identity().send().await;
        let answer = answer.map_err(|error| DisplayErrorContext(&error).to_string());
        tell(answer.map(|identity| identity.arn.unwrap_or_default()));
    }
}

async fn load() -> (Duration, Option<String>) {
    use aws_sdk_sts::config::ProvideCredentials as _;
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let start = Instant::now();
    let credentials = match config.credentials_provider() {
        Some(chain) => {
            chain.provide_credentials().await.map(drop).map_err(|error| DisplayErrorContext(&error).to_string())
        }
        None => Err("the default chain is empty".to_owned()),
    };
    (start.elapsed(), credentials.err())
}
