//! The demonstration: the same pods, first without kube2irsa, then with it.

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sandbox::{
    client::Report,
    cloud::NODE_ROLE,
    network::{PodNetwork, Process},
    packages,
    sandbox::{Pod, Sandbox, wait_until_ready},
};

/// What the pod's role may do: the example's own policy.
const PERMISSIONS: &str = include_str!("../../examples/aws-cli/permissions-policy.json");
const READY_LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Show {
    sandbox: Sandbox,
    daemon: PathBuf,
    log: bool,
    web: Pod,
    worker: Pod,
    plain: Pod,
}

impl Show {
    /// The network, the cloud and three pods.
    pub(crate) fn new(shape: PodNetwork, daemon: PathBuf, log: bool) -> anyhow::Result<Self> {
        say("making a cluster of one node: namespaces for the node, its pods and what is outside …")?;
        let sandbox = Sandbox::new(shape, &mut |line| drop(say(line)))?;
        sandbox.add_service_account("team-a", "web", "web")?;
        sandbox.permit("web", serde_json::from_str(PERMISSIONS)?)?;
        sandbox.add_service_account("team-b", "worker", "worker")?;
        sandbox.annotate("team-a", "plain", &[]);
        let web = sandbox.add_pod("team-a", "web-0", "web")?;
        let worker = sandbox.add_pod("team-b", "worker-0", "worker")?;
        let plain = sandbox.add_pod("team-a", "plain-0", "plain")?;
        Ok(Self { sandbox, daemon, log, web, worker, plain })
    }

    /// Shows all, or runs `command` in a pod that has a role.
    pub(crate) fn run(self, command: &[String]) -> anyhow::Result<ExitCode> {
        say("\nwithout kube2irsa")?;
        let without = self.ask(&self.web)?;
        let got_node = without.arn.as_deref().is_some_and(|arn| arn.contains(&format!("assumed-role/{NODE_ROLE}/")));
        line("pod team-a/web-0", &outcome(&without))?;
        if !got_node {
            bail!("the pod should have got the node's role; what follows would prove nothing");
        }
        line("", "that is the node's role: everything the node may do, every pod may")?;

        let start = Instant::now();
        let mut daemon = self.start()?;
        say(&format!("\nwith kube2irsa ({} run, ready after {})", self.daemon.display(), time(start.elapsed())))?;
        let code = match command.split_first() {
            Some((program, arguments)) => self.in_pod(program, arguments)?,
            None => self.show(&mut daemon)?,
        };
        daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
        daemon.wait()?;
        Ok(code)
    }

    fn in_pod(&self, program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
        if program == packages::AWS_CLI.command {
            packages::ensure(&[packages::AWS_CLI], &mut |line| drop(say(line)))?;
        }
        line("pod team-a/web-0", &format!("{program} {}", arguments.join(" ")))?;
        let status = self.sandbox.in_pod(&self.web, program).args(arguments).status()?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }

    fn show(&self, daemon: &mut Process) -> anyhow::Result<ExitCode> {
        let mut as_promised = true;
        for (pod, role) in [(&self.web, Some("web")), (&self.worker, Some("worker")), (&self.plain, None)] {
            let report = self.ask(pod)?;
            line(&format!("pod {}/{}", pod.namespace, pod.name), &outcome(&report))?;
            as_promised &= match role {
                Some(role) => {
                    line("", &format!("first time {}, then {}", time(report.first), time(report.again)))?;
                    report.arn.as_deref().is_some_and(|arn| arn.contains(&format!("assumed-role/{role}/")))
                }
                None => report.arn.is_none(),
            };
        }
        let node = self.sandbox.on_node(&own_binary()?).arg("--client");
        let node = report(node.output()?.stdout)?;
        line("the node itself", &outcome(&node))?;
        as_promised &= node.arn.is_some();

        let credentials = format!("/latest/meta-data/iam/security-credentials/{NODE_ROLE}");
        let refused = |when: &str, expected: &dyn Fn(&Result<u16, io::ErrorKind>) -> bool| {
            let got = fetch(&self.web, &credentials);
            let words = match &got {
                Ok(status) => format!("HTTP {status}"),
                Err(kind) => kind.to_string(),
            };
            line(when, &words)?;
            anyhow::Ok(expected(&got))
        };
        say("\nthe node's role, asked for by name from pod team-a/web-0")?;
        as_promised &= refused("with kube2irsa", &|got| matches!(got, Ok(404)))?;
        daemon.signal(nix::sys::signal::Signal::SIGKILL)?;
        daemon.wait()?;
        as_promised &= refused("kube2irsa killed", &|got| matches!(got, Err(io::ErrorKind::ConnectionRefused)))?;
        *daemon = self.start()?;
        as_promised &= refused("started again", &|got| matches!(got, Ok(404)))?;
        if as_promised {
            say("\nall as promised; nothing is left behind on this machine")?;
            Ok(ExitCode::SUCCESS)
        } else {
            bail!("not as promised: see above")
        }
    }

    fn start(&self) -> anyhow::Result<Process> {
        let log = self.sandbox.directory().join("daemon.log");
        let stderr = if self.log { Stdio::inherit() } else { File::create(&log)?.into() };
        let mut daemon = self.sandbox.daemon(&self.daemon).stderr(stderr).spawn()?;
        if let Err(lacks) = wait_until_ready(self.sandbox.node(), &mut daemon, READY_LIMIT) {
            bail!("the daemon is not ready: {lacks}\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        Ok(daemon)
    }

    /// The SDK for Rust in a pod.
    fn ask(&self, pod: &Pod) -> anyhow::Result<Report> {
        report(self.sandbox.in_pod(pod, &own_binary()?).arg("--client").output()?.stdout)
    }
}

fn own_binary() -> anyhow::Result<String> {
    let path = std::env::current_exe()?;
    path.into_os_string().into_string().ok().context("this binary's path is no text")
}

fn report(stdout: Vec<u8>) -> anyhow::Result<Report> {
    serde_json::from_slice(&stdout).context("the client in the pod failed")
}

fn outcome(report: &Report) -> String {
    match (&report.arn, &report.error) {
        (Some(arn), _) => arn.clone(),
        (None, Some(_)) => "no credentials".to_owned(),
        (None, None) => "nothing".to_owned(),
    }
}

fn fetch(pod: &Pod, path: &str) -> Result<u16, io::ErrorKind> {
    use sandbox::sandbox::{METADATA, SandboxError, get};
    match get(pod.network(), METADATA, path) {
        Ok((status, _)) => Ok(status),
        Err(SandboxError::Io(error)) => Err(error.kind()),
        Err(_) => Err(io::ErrorKind::Other),
    }
}

fn time(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn line(who: &str, what: &str) -> io::Result<()> {
    say(&format!("  {who:<20} {what}"))
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}
