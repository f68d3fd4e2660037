//! Where it is measured: a node with one pod, the server on one core and whoever loads it on another.

use std::{
    convert::Infallible,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use sandbox::{
    network::{PodNetwork, Process},
    sandbox::{METADATA, Pod, Sandbox, get, wait_until_ready},
};

use crate::support::{Daemon, daemon_binary};

/// Where the bare server listens on the node.
pub(crate) const BARE: SocketAddr = SocketAddr::new(IpAddr::V4(sandbox::network::NODE_ADDRESS), 9269);
/// Where a redirect leads there from.
pub(crate) const BARE_REDIRECTED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 249)), 80);
/// The document of the pod's role.
pub(crate) const DOCUMENT: &str = "/latest/meta-data/iam/security-credentials/web";
/// One pod asks as often as it can.
pub(crate) const UNLIMITED: [&str; 6] =
    ["--requests-per-pod", "1000000", "--request-burst-per-pod", "1000000", "--max-connections-per-pod", "2000"];
/// Also under valgrind.
const READY: Duration = Duration::from_secs(120);

const SETTLED: Duration = Duration::from_millis(300);

/// Which of the two cores.
#[derive(Clone, Copy)]
pub(crate) enum Core {
    Load,
    Server,
}

/// Keeps what `work` does and what it starts to one core.
pub(crate) fn on<T>(core: Core, work: impl FnOnce() -> T) -> anyhow::Result<T> {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this)?;
    let mut ours = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false));
    let first = ours.next();
    let core = match core {
        Core::Load => first,
        Core::Server => ours.next_back().or(first),
    };
    let mut only = CpuSet::new();
    only.set(core.context("no core")?)?;
    sched_setaffinity(this, &only)?;
    let done = work();
    sched_setaffinity(this, &all)?;
    Ok(done)
}

pub(crate) struct Place {
    pub(crate) sandbox: Sandbox,
    pub(crate) pod: Pod,
    /// A file with the answer's body.
    body: PathBuf,
}

impl Place {
    /// A node with the pod `team-a/web-0`, whose service account has the role `web`.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let sandbox = Sandbox::new(PodNetwork::Routed, &mut |line| println!("{line}"))?;
        sandbox.add_service_account("team-a", "web", "web")?;
        let pod = sandbox.add_pod("team-a", "web-0", "web")?;
        let body = sandbox.directory().join("body");
        Ok(Self { sandbox, pod, body })
    }

    /// The daemon with one worker and these flags, the pod's credentials cached; under a program that counts, if one is
    /// named.
    pub(crate) fn daemon(&self, flags: &[&str], under: &[&str]) -> anyhow::Result<Daemon> {
        let command = match under.split_first() {
            None => self.sandbox.daemon(daemon_binary()),
            Some((program, arguments)) => {
                let binary = daemon_binary().to_str().context("the daemon's path is no text")?;
                self.sandbox.daemon_under(program, &[arguments, &[binary]].concat())
            }
        };
        let command = command.args(["--worker-threads", "1"]).args(UNLIMITED).args(flags);
        let mut daemon = on(Core::Server, || Daemon::of(&self.sandbox, command))?;
        wait_until_ready(self.sandbox.node(), &mut daemon.process, READY).map_err(anyhow::Error::msg)?;
        let deadline = Instant::now() + READY;
        loop {
            match get(self.pod.network(), METADATA, DOCUMENT) {
                Ok((200, body)) => {
                    fs::write(&self.body, body)?;
                    return Ok(daemon);
                }
                _ if Instant::now() > deadline => bail!("no credentials"),
                _ => {}
            }
        }
    }

    /// This program as the bare server, which answers what the daemon answered; as itself, and behind a redirect as the
    /// daemon's.
    pub(crate) fn bare(&self, under: &[&str]) -> anyhow::Result<Process> {
        let own = std::env::current_exe()?;
        let mut words = under.to_vec();
        words.push(own.to_str().context("this binary's path is no text")?);
        let (program, arguments) = words.split_first().context("no program")?;
        let command = self.sandbox.node().command(program).args(arguments).arg("bare").arg(&self.body);
        let server = on(Core::Server, || command.spawn())??;
        let (to, port) = (BARE_REDIRECTED.ip(), BARE_REDIRECTED.port());
        let redirect = format!(
            "add table ip bare; delete table ip bare; table ip bare {{ chain prerouting {{ \
             type nat hook prerouting priority -100; ip daddr {to} tcp dport {port} dnat to {BARE}; }}; }}"
        );
        let written = self.sandbox.node().command("nft").arg(redirect).status()?;
        ensure!(written.success(), "no redirect: {written}");
        let deadline = Instant::now() + READY;
        while get(self.sandbox.node(), BARE, "/").is_err() {
            if Instant::now() > deadline {
                bail!("the bare server does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Another pod of the same service account, whose credentials were fetched and which has asked nothing.
    pub(crate) fn prefetched(&self, name: &str) -> anyhow::Result<Pod> {
        let fetched = self.sandbox.cloud.sts.calls().len();
        let pod = self.sandbox.add_pod("team-a", name, "web")?;
        while self.sandbox.cloud.sts.calls().len() == fetched {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Its address becomes known a moment after the pod does.
        std::thread::sleep(SETTLED);
        Ok(pod)
    }
}

/// The baseline: hyper as the daemon uses it, and nothing else.
pub(crate) fn serve_bare(body: &Path) -> anyhow::Result<()> {
    let body = Bytes::from(fs::read(body)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let listener = tokio::net::TcpListener::bind(BARE).await?;
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                _ = end.recv() => return Ok(()),
            };
            stream.set_nodelay(true)?;
            let body = body.clone();
            tokio::spawn(async move {
                let service = service_fn(move |_request| {
                    let mut response = Response::new(Full::new(body.clone()));
                    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("EC2ws"));
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut connection = http1::Builder::new();
                connection
                    .timer(TokioTimer::new())
                    .title_case_headers(true)
                    .header_read_timeout(Duration::from_secs(60));
                connection.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    })
}
