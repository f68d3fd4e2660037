//! Keeps guard and redirect in place: looks whenever the kernel announces a change of routing rules, and once in
//! a while in any case, and puts back what is missing.

use std::time::Duration;

use futures::StreamExt as _;

use super::{Firewall, Part, guard};
use crate::{
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

/// A flush of NAT rules is announced to nobody; a look takes milliseconds.
const INTERVAL: Duration = Duration::from_millis(800);
/// A command that hangs must not leave us believing that all is well.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// Puts the parts in place, in their order, and then keeps them there; never ends.
pub async fn keep(parts: &[(Part, Box<dyn Firewall>)], readiness: &Readiness, metrics: &Metrics) {
    let mut announcements = guard::announcements();
    let mut first = true;
    let mut was_well = true;
    loop {
        let result = tokio::time::timeout(TIME_LIMIT, restore(parts, first, metrics)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_elapsed) => Some(format!("no result within {} s", TIME_LIMIT.as_secs())),
        };
        match &problem {
            None => {
                if !was_well {
                    tracing::info!("rules are in place");
                }
                readiness.holds(Condition::Rules);
            }
            Some(problem) => {
                if was_well {
                    tracing::error!("rules are not in place, and tried again: {problem}");
                }
                readiness.lacks(Condition::Rules, problem);
            }
        }
        was_well = problem.is_none();
        first = first && !was_well;
        let announced = async {
            match &mut announcements {
                // What was announced up to now is one reason to look, also what we did ourselves.
                Ok(announcements) => announcements.next().await.is_some(),
                Err(_) => false,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            heard = announced => if !heard {
                // The socket is gone or could not be had; without it there is still the clock.
                tokio::time::sleep(INTERVAL).await;
                announcements = guard::announcements();
            },
        }
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
