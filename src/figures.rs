//! What is counted when somebody looks: pods, sessions, the API server's silence, and what this process takes of the
//! node.

use std::{collections::BTreeMap, fs};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage},
    time::TimeValLike as _,
};

use crate::{
    clock::{self, Now},
    credentials::{Standing, Store},
    identity::{Directory, Reach, Role, directory::LegacyFigures},
    metrics::Metrics,
};

const STANDINGS: [Standing; 6] = [
    Standing::Good,
    Standing::RenewalFailing,
    Standing::Fetching,
    Standing::RefusedByAws,
    Standing::RefusedByKubernetes,
    Standing::Failing,
];

/// Notes what holds now of pods and sessions.
pub fn take(metrics: &Metrics, directory: &Directory, store: &Store) {
    let now = clock::now();
    let mut pods = BTreeMap::<_, i64>::new();
    directory.each_pod(|reach, main, withheld| {
        *pods.entry(credentials(reach, main, withheld, store, now)).or_default() += 1;
    });
    for class in CLASSES {
        metrics.pods.with_label_values(&[class]).set(pods.get(class).copied().unwrap_or_default());
    }
    let figures = directory.figures();
    metrics.disputed_addresses.set(count(figures.disputed));
    metrics.suspended_addresses.set(count(figures.suspended));
    metrics.pods_with_invalid_role.set(count(figures.invalid));
    if let Some(LegacyFigures { used, superseded, refused, not_known }) = figures.legacy {
        for (role, pods) in [("used", used), ("superseded", superseded), ("refused", refused), ("not_known", not_known)]
        {
            metrics.legacy_pods.with_label_values(&[role]).set(count(pods));
        }
    }
    let sessions = store.figures(now);
    for standing in STANDINGS {
        let in_it = sessions.standings.get(&standing).copied().unwrap_or_default();
        metrics.sessions.with_label_values(&[standing.label()]).set(count(in_it));
    }
    metrics.sessions_low.set(count(sessions.low));
    metrics.life_left.set(sessions.least_left);
    metrics.watch_silence.look(now.monotonic);
}

/// Notes what this process takes of the node.
pub fn take_process(metrics: &Metrics) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        #[expect(clippy::cast_precision_loss, reason = "exact for three centuries")]
        let more = micros as f64 / 1e6 - metrics.process_cpu.get();
        metrics.process_cpu.inc_by(more.max(0.0));
    }
    if let Some(bytes) = resident_memory() {
        metrics.process_resident_memory.set(bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The folder itself is one of them, for so long.
        metrics.process_open_fds.set(count(open.count().saturating_sub(1)));
    }
    if let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        metrics.process_max_fds.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
}

const CLASSES: [&str; 11] = [
    "served",
    "fetching",
    "on_request",
    "no_role",
    "invalid",
    "refused_by_aws",
    "refused_by_kubernetes",
    "failing",
    "withheld",
    "not_known",
    "exempt",
];

/// Whether the pod can get its main role's credentials now, as a metric's label.
fn credentials(reach: Reach, main: &Role, withheld: bool, store: &Store, now: Now) -> &'static str {
    match reach {
        Reach::Node | Reach::Ours | Reach::Ended => return "exempt",
        Reach::Denied => return "no_role",
        Reach::Address | Reach::Cgroup => {}
    }
    match main {
        Role::Unknown => "not_known",
        Role::None => "no_role",
        Role::Invalid(_) => "invalid",
        Role::Granted(grant) => match store.standing(grant, now) {
            None | Some(Standing::Good | Standing::RenewalFailing) if withheld => "withheld",
            None => "on_request",
            Some(Standing::Good | Standing::RenewalFailing) => "served",
            Some(standing) => standing.label(),
        },
    }
}

fn resident_memory() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Some(resident?.parse::<i64>().ok()? * 1024)
}

fn count(figure: usize) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_memory_files_and_time() {
        let metrics = Metrics::new().unwrap();
        take_process(&metrics);
        assert!(metrics.process_resident_memory.get() > 1 << 20);
        assert!(metrics.process_cpu.get() > 0.0);
        let open = metrics.process_open_fds.get();
        assert!(open > 0 && open <= metrics.process_max_fds.get());
        // It only grows, by what was used in between.
        let before = metrics.process_cpu.get();
        take_process(&metrics);
        assert!(metrics.process_cpu.get() >= before && metrics.process_cpu.get() < before + 60.0);
    }
}
