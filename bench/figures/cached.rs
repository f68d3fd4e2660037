//! A cached credential request through the real redirect: CPU, throughput and latency.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sandbox::{network::Namespace, sandbox::METADATA};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    place::{BARE, BARE_REDIRECTED, Core, DOCUMENT, Place, on},
    report::{Report, percentile},
};

pub(crate) const CONNECTIONS: u32 = 32;
const ROUNDS: usize = 9;
const REQUESTS: u32 = 64_000;

/// Of one server, a figure a round.
#[derive(Default)]
struct Figures {
    /// Microseconds a request.
    cpu: Vec<f64>,
    /// Requests a second.
    throughput: Vec<f64>,
    /// Microseconds, of each request.
    latency: Vec<f64>,
}

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    let daemon = place.daemon(&[], &[])?;
    let bare = place.bare(&[])?;
    let servers = [(daemon.process.id(), METADATA), (bare.id(), BARE), (bare.id(), BARE_REDIRECTED)];
    for (_, server) in servers {
        load(place.pod.network(), server, REQUESTS / 8)?;
    }
    let mut figures = servers.map(|_| Figures::default());
    for _ in 0..ROUNDS {
        for (figures, (process, server)) in figures.iter_mut().zip(servers) {
            let (start, before) = (Instant::now(), cpu_time(process)?);
            let times = load(place.pod.network(), server, REQUESTS)?;
            let (took, spent) = (start.elapsed(), cpu_time(process)?.saturating_sub(before));
            figures.cpu.push(spent.as_secs_f64() * 1e6 / f64::from(REQUESTS));
            figures.throughput.push(f64::from(REQUESTS) / took.as_secs_f64());
            figures.latency.extend(times.iter().map(|time| time.as_secs_f64() * 1e6));
        }
    }
    let [ours, bare, redirected] = &figures;
    let of = |figure: fn(&Figures) -> f64| [figure(ours), figure(bare)];
    // What else runs on the machine only adds to it: the least is what it costs.
    let cpu = |figures: &Figures| percentile(&figures.cpu, 0);
    report.ratio("cached request, server CPU, least of 9 rounds, µs", [cpu(ours), cpu(bare)], 1.25);
    report.compared("the same, by the bare server behind a redirect too", [cpu(ours), cpu(redirected)]);
    report.compared("cached request, requests a second", of(|figures| percentile(&figures.throughput, 50)));
    report.compared("cached request, p50, µs", of(|figures| percentile(&figures.latency, 50)));
    report.ratio("cached request, p99, µs", of(|figures| percentile(&figures.latency, 99)), 1.5);
    Ok(())
}

/// Requests over keep-alive connections from a pod; how long each took.
pub(crate) fn load(pod: &Namespace, server: SocketAddr, requests: u32) -> anyhow::Result<Vec<Duration>> {
    let load = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connections = (0..CONNECTIONS).map(|_| tokio::spawn(one(server, requests / CONNECTIONS)));
            let mut times = Vec::new();
            for connection in connections.collect::<Vec<_>>() {
                times.extend(connection.await??);
            }
            anyhow::Ok(times)
        })
    };
    on(Core::Load, || pod.enter(load))??
}

async fn one(server: SocketAddr, requests: u32) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let request =
        format!("GET {DOCUMENT} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
    let mut buffer = vec![0; 16 * 1024];
    let mut times = Vec::new();
    for _ in 0..requests {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut read = 0;
        // The body is JSON without nesting: its end is the first closing brace.
        while !buffer[..read].ends_with(b"}") {
            let more = stream.read(&mut buffer[read..]).await?;
            if more == 0 {
                bail!("the server closed");
            }
            read += more;
        }
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("the server refused");
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Time on a CPU, user and system, of all threads.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}
