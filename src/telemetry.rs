//! Logs: one line an event on standard error, as text or JSON.
//!
//! Only our own events follow `--log-level`. What other crates say is limited to warnings, and the
//! Kubernetes client is silent: it logs answers that it cannot read, and a token could be in one.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogLevel};

/// Starts logging; the first call counts.
pub fn start(format: LogFormat, level: LogLevel) {
    let filter = format!("warn,kube_client=off,kube2irsa={}", level.as_str());
    let lines = fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    // A test starts more than one daemon in a process.
    let _already = match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
