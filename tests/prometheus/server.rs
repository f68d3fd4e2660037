//! The real Prometheus: its programs, and what they know of a metric.

use std::{
    fmt::Write as _, fs, io::Write as _, net::SocketAddr, path::Path, path::PathBuf, process::Stdio, sync::OnceLock,
};

use kube2irsa::metrics::{Kind, Metric, Metrics};
use sandbox::{
    network::Process,
    packages,
    sandbox::{ADMIN, Sandbox, get},
};
use serde_json::Value;

use super::support::eventually;

/// In the node's own namespace, where nobody else listens.
const LISTEN: &str = "127.0.0.1:9090";

/// Debian's `prometheus` or `promtool`: that of the system, or else unpacked beside the build. The package is not installed,
/// for on a machine with systemd it starts a service.
fn program(name: &str) -> PathBuf {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(installed) = packages::find(name) {
        return installed;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let package = PACKAGE.get_or_init(|| {
        packages::unpacked("prometheus", folder, &mut |line| println!("{line}"))
            .unwrap_or_else(|error| panic!("{error}"))
    });
    package.join("usr/bin").join(name)
}

/// What `promtool` says of this; it must be content and say nothing else.
pub(super) fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = std::process::Command::new(program("promtool"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// A file of the repository.
pub(super) fn file(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).to_str().unwrap().to_owned()
}

/// Prometheus on the sandbox's node, which scrapes the daemon there each second. It ends with this.
pub(super) struct Prometheus<'a> {
    sandbox: &'a Sandbox,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    /// Starts it with the alerts of `daemonset/`.
    pub(super) fn started(sandbox: &'a Sandbox) -> Self {
        let folder = sandbox.directory().join("prometheus");
        fs::create_dir(&folder).unwrap();
        let configuration = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [file("daemonset/alerts.yaml")],
            "scrape_configs": [{"job_name": "kube2irsa", "static_configs": [{"targets": [ADMIN.to_string()]}]}],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), configuration.to_string()).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let command = sandbox.node().command(program("prometheus"));
        let command = command
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={LISTEN}"))
            .stdin(Stdio::null())
            .stderr(log);
        let prometheus = Self { sandbox, _process: command.spawn().unwrap() };
        eventually("Prometheus is ready", || {
            get(sandbox.node(), address(), "/-/ready").is_ok_and(|(status, _)| status == 200)
        });
        prometheus
    }

    /// What its API answers.
    pub(super) fn api(&self, path: &str) -> Value {
        let (_, answer) = get(self.sandbox.node(), address(), path).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {path}: {answer}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The values that a query gives now.
    pub(super) fn query(&self, query: &str) -> Vec<f64> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in query.bytes() {
            let _ = write!(path, "%{byte:02X}");
        }
        let data = self.api(&path);
        assert_eq!(data["resultType"], "vector", "{query}");
        let values = data["result"].as_array().unwrap().iter().map(|series| series["value"][1].as_str().unwrap());
        values.map(|value| value.parse().unwrap()).collect()
    }
}

fn address() -> SocketAddr {
    LISTEN.parse().unwrap()
}

/// The metrics that a query names must be some of ours, and the values of labels that it compares with some of theirs.
pub(super) fn assert_known(query: &str) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut named = 0;
    for (at, prefix) in ["kube2irsa_", "process_"].iter().flat_map(|prefix| query.match_indices(prefix)) {
        if query[..at].ends_with(is_name) {
            continue;
        }
        let name = query[at..].split(|c| !is_name(c)).next().unwrap();
        let metric = metric(name).unwrap_or_else(|| panic!("{prefix}: there is no metric {name}: {query}"));
        let rest = &query[at + name.len()..];
        let matchers =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(matchers, _)| matchers);
        for matcher in matchers.split("\",").filter(|matcher| !matcher.is_empty()) {
            let (label, value) = matcher.trim_end_matches('"').split_once('"').unwrap();
            let label = label.trim().trim_end_matches(['=', '~', '!']);
            if ["instance", "job"].contains(&label) {
                continue;
            }
            let label =
                metric.labels.iter().find(|known| known.name == label).unwrap_or_else(|| panic!("{matcher}: {query}"));
            let known = |value| label.values.is_empty() || label.values.contains(&value);
            assert!(value.split('|').all(known), "{matcher}: {query}");
        }
        named += 1;
    }
    assert!(named > 0 || query.starts_with("up{"), "it names no metric: {query}");
}

/// The metric of which this is a sample's name.
fn metric(name: &str) -> Option<&'static Metric> {
    let mut metrics = Metrics::SECTIONS.iter().flat_map(|(_, metrics)| *metrics);
    metrics.find(|metric| match name.strip_prefix(metric.name) {
        Some("") => metric.kind != Kind::Histogram,
        Some("_bucket" | "_sum" | "_count") => metric.kind == Kind::Histogram,
        _ => false,
    })
}
