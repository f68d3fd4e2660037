//! The sandbox's binary: shows, in a cluster of one node made of network namespaces, what a pod gets
//! without kube2irsa and with it; or runs a command in a pod.

mod show;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use sandbox::{client, network::PodNetwork};

/// Tries kube2irsa in a cluster of one node, made of network namespaces on this machine.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version)]
struct Cli {
    /// The daemon's binary. Absent: built from this checkout.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,

    /// How pods are connected to the node.
    #[arg(long, value_enum, default_value = "routed")]
    pod_network: Shape,

    /// Show the daemon's log.
    #[arg(long)]
    log: bool,

    /// Be what runs in a pod if no command is given: the AWS SDK for Rust, asked once.
    #[arg(long, hide = true)]
    client: bool,

    /// The same, asked so often, so many milliseconds apart: a line for each answer.
    #[arg(long, hide = true, num_args = 2.., value_names = ["COUNT", "PAUSE"])]
    client_rounds: Vec<String>,

    /// Where the command runs: in a pod (of team-a web-0, plain-0 without a role, refused-0 with one that does not trust it;
    /// of team-b worker-0), or on the node, where `kube2irsa explain team-a/refused-0`, `rules check` and `probe ready` ask
    /// the daemon.
    #[arg(long = "in", value_name = "NAMESPACE/POD|node", default_value = "team-a/web-0")]
    place: show::Place,

    /// A command to run, instead of the demonstration.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// A link without address and a host route for each pod, as Calico and the VPC CNI do.
    Routed,
    /// One bridge for all pods.
    Bridge,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            // Nothing better can be done about a closed standard error.
            let _ = writeln!(std::io::stderr(), "sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if cli.client {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(client::report());
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
        return Ok(if report.arn.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let [count, pause, ..] = &cli.client_rounds[..] {
        return rounds(count.parse()?, Duration::from_millis(pause.parse()?));
    }
    // Before there is another thread.
    sandbox::userns::be_root()?;
    let shape = match cli.pod_network {
        Shape::Routed => PodNetwork::Routed,
        Shape::Bridge => PodNetwork::Bridge,
    };
    let daemon = match &cli.daemon {
        Some(daemon) => daemon.canonicalize().with_context(|| format!("--daemon {}", daemon.display()))?,
        None => build_daemon()?,
    };
    show::Show::new(shape, daemon, cli.log)?.run(&cli.place, &cli.command)
}

/// The exit code is the last answer's.
fn rounds(count: u32, pause: Duration) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut code = ExitCode::FAILURE;
    runtime.block_on(client::rounds(count, pause, |answer| {
        let (line, next) = match answer {
            Ok(arn) => (format!("arn {arn}"), ExitCode::SUCCESS),
            Err(error) => (format!("error {error}"), ExitCode::FAILURE),
        };
        code = next;
        writeln!(std::io::stdout(), "{line}").ok();
    }));
    Ok(code)
}

/// Builds the daemon from the checkout that this binary was built from, with cargo's own progress.
fn build_daemon() -> anyhow::Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the checkout is gone")?;
    let target = std::env::current_exe()?.parent().context("the target folder is gone")?.to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(package).args(["build", "--locked", "--bin", "kube2irsa"]);
    if target.ends_with("release") {
        build.arg("--release");
    }
    if !build.status().context("cargo cannot be started; name a daemon with --daemon")?.success() {
        bail!("the daemon could not be built");
    }
    Ok(target.join("kube2irsa"))
}
