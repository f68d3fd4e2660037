//! The harness: a sandbox of one's own for each test, the real daemon in it, and HTTP by hand.
//!
//! Tests need root and fail without it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own and uses a part")]

pub mod accounts;
pub mod chart;
pub mod http;
pub mod node;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use kube2irsa::metrics::{Kind, Metrics};
use nix::sys::signal::Signal;
use sandbox::{
    client::Report,
    network::{Families, PodNetwork, Process},
    sandbox::{ADMIN, METADATA, METADATA_V6, Pod, Sandbox, get, wait_until_ready},
};

use self::http::Answer;

/// Long enough for a busy machine; nothing waits for its end unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const ROLE_NAME: &str = "/latest/meta-data/iam/security-credentials/";

pub fn sandbox() -> Sandbox {
    sandbox_with(PodNetwork::Routed)
}

pub fn sandbox_with(shape: PodNetwork) -> Sandbox {
    sandbox_of(shape, Families::V4)
}

pub fn sandbox_of(shape: PodNetwork, families: Families) -> Sandbox {
    Sandbox::with_families(shape, families, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error}"))
}

/// A sandbox with a pod `team-a/web-0`, whose service account `web` has a role of that name.
pub fn with_a_pod() -> (Sandbox, Pod) {
    let sandbox = with_an_account();
    let web = pod(&sandbox);
    (sandbox, web)
}

/// The same without the pod: what is set up before it comes meets the first fetch of its credentials.
pub fn with_an_account() -> Sandbox {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    sandbox
}

pub fn pod(sandbox: &Sandbox) -> Pod {
    sandbox.add_pod("team-a", "web-0", "web").unwrap()
}

pub fn daemon_binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kube2irsa"))
}

/// The sandbox's binary, whose `--client` is the AWS SDK for Rust.
pub fn sandbox_binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        // Cargo gives a test the binaries of its own package only.
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked", "--quiet", "--bin", "sandbox"]);
        let folder = daemon_binary().parent().unwrap();
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
        folder.join("sandbox").to_str().unwrap().to_owned()
    })
}

/// The daemon on the sandbox's node.
pub struct Daemon {
    pub process: Process,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub fn ready(sandbox: &Sandbox, flags: &[&str]) -> Self {
        let mut daemon = Self::started(sandbox, flags);
        daemon.wait_until_ready(sandbox);
        daemon
    }

    /// The same, with these variables in its environment.
    pub fn ready_in(sandbox: &Sandbox, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut daemon = Self::started_in(sandbox, environment, flags);
        daemon.wait_until_ready(sandbox);
        daemon
    }

    pub fn started(sandbox: &Sandbox, flags: &[&str]) -> Self {
        Self::started_in(sandbox, &[], flags)
    }

    pub fn started_in(sandbox: &Sandbox, environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let command = sandbox.daemon(daemon_binary()).args(flags);
        Self::of(sandbox, environment.iter().fold(command, |command, (name, value)| command.env(name, value)))
    }

    /// The daemon of this command.
    pub fn of(sandbox: &Sandbox, command: sandbox::network::Command) -> Self {
        let log = sandbox.directory().join("daemon.log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        Self { process: command.stderr(stderr).spawn().unwrap(), log }
    }

    pub fn wait_until_ready(&mut self, sandbox: &Sandbox) {
        if let Err(lacks) = wait_until_ready(sandbox.node(), &mut self.process, PATIENCE) {
            panic!("not ready: {lacks}\n{}", self.log());
        }
    }

    /// What it has logged so far; no secret may be in it.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.process.signal(Signal::SIGTERM).unwrap();
        self.process.wait().unwrap()
    }

    pub fn kill(mut self) {
        self.process.signal(Signal::SIGKILL).unwrap();
        self.process.wait().unwrap();
    }
}

/// Makes all read-only but `$1` and the iptables' lock, and goes on to the rest of its arguments. It has mounts of its own.
const READ_ONLY: &str = r#"
    set -e
    mkdir -p "$1"
    touch /run/xtables.lock
    for writable in "$1" /run/xtables.lock; do mount --bind "$writable" "$writable"; done
    for at in / /dev /dev/shm /run /tmp /var /var/tmp; do
        if mountpoint -q "$at"; then mount -o remount,bind,ro "$at"; fi
    done
    shift
    exec "$@"
"#;

/// The daemon with the rights that it has in a cluster (`docs/rights.md`): root with these capabilities alone, without a
/// way to more, on a read-only file system.
pub fn confined(sandbox: &Sandbox, capabilities: &[&str]) -> sandbox::network::Command {
    let [state, binary] = [&sandbox.state_dir(), daemon_binary()].map(|path| path.to_str().unwrap().to_owned());
    let bounding = without_but(capabilities);
    let set = ["setpriv", &bounding, "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"];
    let arguments = [&["-c", READ_ONLY, "sh", &state][..], &set, &[&binary]].concat();
    sandbox.daemon_under("sh", &arguments)
}

/// The flag of `setpriv` that leaves no capabilities but these.
pub fn without_but(capabilities: &[&str]) -> String {
    capabilities.iter().fold("--bounding-set=-all".to_owned(), |flag, capability| format!("{flag},+{capability}"))
}

/// A page of the operator's listener.
pub fn admin(sandbox: &Sandbox, path: &str) -> (u16, String) {
    let (status, text) = get(sandbox.node(), ADMIN, path).unwrap();
    if path == "/metrics" {
        text.lines().filter(|line| !line.starts_with('#')).for_each(assert_defined);
    }
    (status, text)
}

/// The series is one of those that the page for operators tells of.
fn assert_defined(sample: &str) {
    let (series, _) = sample.rsplit_once(' ').unwrap();
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let labels = labels.split("\",").filter(|label| !label.is_empty());
    let labels = labels.map(|label| label.trim_end_matches('"').split_once("=\"").unwrap());
    let labels = labels.filter(|(label, _)| *label != "le").collect::<Vec<_>>();
    let mut metrics = Metrics::SECTIONS.iter().flat_map(|(_, metrics)| *metrics);
    let defined = metrics.any(|metric| {
        let is_sample = name.strip_prefix(metric.name).is_some_and(|rest| {
            rest.is_empty() || metric.kind == Kind::Histogram && ["_bucket", "_sum", "_count"].contains(&rest)
        });
        is_sample
            && metric.labels.len() == labels.len()
            && metric.labels.iter().all(|label| {
                let value = labels.iter().find_map(|(name, value)| (*name == label.name).then_some(value));
                value.is_some_and(|value| label.values.is_empty() || label.values.contains(value))
            })
    });
    assert!(defined, "src/metrics.rs defines no such series: {series}");
}

/// The same, of a listener that may not be there yet.
pub fn admin_if_up(sandbox: &Sandbox, path: &str) -> Option<String> {
    get(sandbox.node(), ADMIN, path).ok().map(|(_, text)| text)
}

/// The value of a metric, with its labels as they are written; 0 if it is not there.
pub fn metric(sandbox: &Sandbox, name: &str) -> f64 {
    let (_, text) = admin(sandbox, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// The sum of a metric's series.
pub fn total(sandbox: &Sandbox, name: &str) -> f64 {
    let (_, text) = admin(sandbox, "/metrics");
    let of_it = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    of_it.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// What the SDK for Rust gets in the pod.
pub fn sdk(sandbox: &Sandbox, pod: &Pod) -> Report {
    sdk_with(sandbox, pod, &[])
}

/// The same, with these variables in its environment.
pub fn sdk_with(sandbox: &Sandbox, pod: &Pod, environment: &[(&str, &str)]) -> Report {
    let command = sandbox.in_pod(pod, sandbox_binary());
    report(environment.iter().fold(command, |command, (name, value)| command.env(name, value)))
}

/// What the SDK for Rust gets on the node.
pub fn sdk_on_node(sandbox: &Sandbox) -> Report {
    report(sandbox.on_node(sandbox_binary()))
}

/// What the SDK for Rust gets on the node for a token, which it exchanges itself.
pub fn exchange(sandbox: &Sandbox, token: &str, role: &str) -> Report {
    let file = tempfile::NamedTempFile::new_in(sandbox.directory()).unwrap();
    fs::write(file.path(), token).unwrap();
    let command = sandbox.on_node(sandbox_binary()).env("AWS_WEB_IDENTITY_TOKEN_FILE", file.path());
    report(command.env("AWS_ROLE_ARN", role).env("AWS_EC2_METADATA_DISABLED", "true"))
}

fn report(command: sandbox::network::Command) -> Report {
    let output = command.arg("--client").output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// One request from the pod to the metadata service, on a connection of its own.
pub fn ask(pod: &Pod, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Answer> {
    let mut connection = connect(pod)?;
    connection.send(method, path, headers)?;
    connection.answer()
}

pub fn connect(pod: &Pod) -> std::io::Result<http::Connection> {
    http::Connection::open(pod.network(), if pod.address().is_ipv4() { METADATA } else { METADATA_V6 })
}

/// The status of the role's list, for a pod.
pub fn role_status(pod: &Pod) -> u16 {
    ask(pod, "GET", ROLE_NAME, &[]).unwrap().status
}

/// Repeats until it is so.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All that is in force on the node: rules of routing, of iptables and of nftables.
pub fn rules(sandbox: &Sandbox) -> String {
    let script = "ip rule | sort; ip -6 rule | sort; iptables-save | grep -v '^[#:]'; ip6tables-save | grep -v '^[#:]'; \
        nft --stateless --terse list table inet kube2irsa 2>/dev/null; true";
    let output = sandbox.node().command("sh").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
