//! The demonstration: the same pods, first without kube2irsa, then with it.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::{ExitCode, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sandbox::{
    client::Report,
    cloud::NODE_ROLE,
    network::{Command, PodNetwork, Process},
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
    refused: Pod,
}

/// Where a command runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On the node, as its root.
    Node,
    /// In the pod of this namespace and name.
    Pod(String),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(place: &str) -> Result<Self, Infallible> {
        Ok(if place == "node" { Self::Node } else { Self::Pod(place.to_owned()) })
    }
}

impl Show {
    /// The network, the cloud and four pods.
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
        let role = sandbox.add_service_account("team-a", "refused", "refused")?;
        sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:another"))?;
        let refused = sandbox.add_pod("team-a", "refused-0", "refused")?;
        Ok(Self { sandbox, daemon, log, web, worker, plain, refused })
    }

    fn pods(&self) -> [&Pod; 4] {
        [&self.web, &self.worker, &self.plain, &self.refused]
    }

    /// Shows all, or runs `command` there.
    pub(crate) fn run(self, place: &Place, command: &[String]) -> anyhow::Result<ExitCode> {
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
            Some((program, arguments)) => self.run_in(place, program, arguments)?,
            None => self.show(&mut daemon)?,
        };
        daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
        daemon.wait()?;
        Ok(code)
    }

    fn run_in(&self, place: &Place, program: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
        if program == packages::AWS_CLI.command {
            packages::ensure(&[packages::AWS_CLI], &mut |line| drop(say(line)))?;
        }
        let command = match place {
            Place::Node => self.on_node(program)?,
            Place::Pod(name) => {
                let pods = self.pods();
                let pod = pods.into_iter().find(|pod| of(pod) == *name);
                let pod = pod.with_context(|| format!("--in {name}: there are node, {}", pods.map(of).join(", ")))?;
                self.sandbox.in_pod(pod, program)
            }
        };
        let name = match place {
            Place::Node => "the node".to_owned(),
            Place::Pod(name) => format!("pod {name}"),
        };
        line(&name, &format!("{program} {}", arguments.join(" ")))?;
        let status = command.args(arguments).status()?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
    }

    /// Where `kube2irsa` is the daemon's binary and finds the daemon.
    fn on_node(&self, program: &str) -> anyhow::Result<Command> {
        let folder = self.daemon.parent().context("the daemon's binary is in no folder")?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path)))?;
        // Which program it is, is looked up with our own PATH.
        let program = if program == "kube2irsa" { self.daemon.to_str().unwrap_or(program) } else { program };
        let command = self.sandbox.on_node(program).env("PATH", path);
        Ok(command
            .env("KUBE2IRSA_ADMIN_SOCKET", self.sandbox.admin_socket())
            .env("KUBE2IRSA_STATE_DIR", self.sandbox.state_dir())
            .env("KUBECONFIG", self.sandbox.kubeconfig()))
    }

    /// What an operator is told of the pod whose role does not trust it.
    fn explain(&self) -> anyhow::Result<bool> {
        say("\nwhy pod team-a/refused-0 gets none: its Event (kubectl describe pod)")?;
        let start = Instant::now();
        let note = loop {
            let events = self.sandbox.cloud.kubernetes.events();
            let of_pod = events.iter().find(|event| event["regarding"]["name"] == "refused-0");
            if let Some(note) = of_pod.and_then(|event| event["note"].as_str()) {
                break note.to_owned();
            }
            if start.elapsed() > READY_LIMIT {
                bail!("no Event was written");
            }
            thread::sleep(Duration::from_millis(50));
        };
        say(&format!("  {note}"))?;
        say("\nand on the node: kube2irsa explain team-a/refused-0")?;
        let output = self.on_node("kube2irsa")?.args(["explain", "team-a/refused-0"]).output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            say(&format!("  {line}"))?;
        }
        Ok(output.status.code() == Some(1))
    }

    fn show(&self, daemon: &mut Process) -> anyhow::Result<ExitCode> {
        let mut as_promised = true;
        for (pod, role) in self.pods().into_iter().zip([Some("web"), Some("worker"), None, None]) {
            let report = self.ask(pod)?;
            line(&format!("pod {}", of(pod)), &outcome(&report))?;
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
        as_promised &= self.explain()?;

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

fn of(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
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
