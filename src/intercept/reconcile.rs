//! Keeps guard and redirect in place: looks once a second, puts back what is missing.

use std::{sync::Arc, time::Duration};

use super::{Firewall, Part};
use crate::{
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// What another program flushed is back within a second; a look takes milliseconds.
const INTERVAL: Duration = Duration::from_millis(900);
/// A command that hangs must not leave us believing that all is well.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// Puts the parts in place, in their order, and then keeps them there; never ends.
pub async fn keep(
    parts: Vec<(Part, Box<dyn Firewall>)>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    installed: tokio::sync::oneshot::Sender<()>,
) {
    let mut installed = Some(installed);
    let mut first = true;
    let mut was_well = true;
    loop {
        let result = tokio::time::timeout(TIME_LIMIT, restore(&parts, first, &metrics)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_elapsed) => Some(format!("no result within {} s", TIME_LIMIT.as_secs())),
        };
        match &problem {
            None => readiness.holds(Condition::Rules),
            Some(problem) => {
                if was_well {
                    tracing::error!("rules are not in place, and tried again: {problem}");
                }
                readiness.lacks(Condition::Rules, problem);
            }
        }
        if problem.is_none() && !was_well {
            tracing::info!("rules are in place");
        }
        was_well = problem.is_none();
        first = first && !was_well;
        if let Some(installed) = installed.take() {
            // Whoever waited for the first try may have given up.
            let _ = installed.send(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn restore(parts: &[(Part, Box<dyn Firewall>)], first: bool, metrics: &Metrics) -> Result<(), String> {
    for (part, firewall) in parts {
        let named = |error| format!("{part}: {error}");
        // The first time also what is present is written anew: an earlier run may have had another port.
        if first {
            firewall.install().await.map_err(named)?;
        }
        if firewall.present().await.map_err(named)? {
            continue;
        }
        if first {
            return Err(format!("{part}: put in place, and not there"));
        }
        tracing::warn!(%part, "rules of ours were missing; they are put back");
        firewall.install().await.map_err(named)?;
        metrics.rules_restored.with_label_values(&[part.label()]).inc();
    }
    Ok(())
}
