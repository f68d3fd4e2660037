//! A cached credential request, through the real redirect, against a bare hyper server that returns the same
//! bytes: server CPU and latency, or (`-- counts`) instructions and allocations as valgrind counts them; and
//! (`-- first`) the first three requests of a pod whose credentials were fetched before it asked.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{
    convert::Infallible,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::signal::Signal;
use sandbox::{
    network::{PodNetwork, Process},
    sandbox::{METADATA, Pod, Sandbox, get, wait_until_ready},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const CONNECTIONS: u64 = 32;
const ROUNDS: usize = 5;
/// Of the first requests.
const PODS: usize = 100;
const SETTLED: Duration = Duration::from_millis(300);
const REQUESTS: u64 = 64_000;
const PATH: &str = "/latest/meta-data/iam/security-credentials/web";
const BARE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(sandbox::network::NODE_ADDRESS), 9269);
/// Start-up counts differently each time (it gathers randomness from the clock), so that the runs must differ by a lot.
const COUNTED: [u64; 2] = [6_400, 64_000];
const READY: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect::<Vec<_>>();
    match arguments.first().map(String::as_str) {
        Some("bare") => bare(Path::new(arguments.get(1).context("the body's file is missing")?)),
        Some("counts") => counts(),
        Some("first") => first(),
        None => cpu(),
        Some(other) => bail!("{other}: try no argument, counts or first"),
    }
}

/// The baseline: hyper as the daemon uses it, and nothing else.
fn bare(body: &Path) -> anyhow::Result<()> {
    let body = Bytes::from(fs::read(body)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let listener = TcpListener::bind(BARE).await?;
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

struct Bench {
    sandbox: Sandbox,
    pod: Pod,
    body: PathBuf,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let sandbox = Sandbox::new(PodNetwork::Routed, &mut |_| {})?;
        sandbox.add_service_account("team-a", "web", "web")?;
        let pod = sandbox.add_pod("team-a", "web-0", "web")?;
        let body = sandbox.directory().join("body");
        Ok(Self { sandbox, pod, body })
    }

    fn daemon(&self, under: &[&str]) -> anyhow::Result<Process> {
        let binary = env!("CARGO_BIN_EXE_kube2irsa");
        let mut command = match under.split_first() {
            None => self.sandbox.daemon(Path::new(binary)),
            Some((program, arguments)) => {
                let flags = [arguments, &[binary]].concat();
                self.sandbox.daemon_under(program, &flags)
            }
        };
        // One pod asks as often as it can.
        let unlimited = ["--requests-per-pod", "1000000", "--request-burst-per-pod", "1000000"];
        command = command.args(["--worker-threads", "1"]).args(unlimited).stderr(Stdio::null());
        let mut daemon = command.spawn()?;
        wait_until_ready(self.sandbox.node(), &mut daemon, READY).map_err(anyhow::Error::msg)?;
        // Once the first is answered all that follow are cached.
        let deadline = Instant::now() + READY;
        loop {
            match get(self.pod.network(), METADATA, PATH) {
                Ok((200, body)) => {
                    fs::write(&self.body, body)?;
                    return Ok(daemon);
                }
                _ if Instant::now() > deadline => bail!("no credentials"),
                _ => {}
            }
        }
    }

    fn bare(&self, under: &[&str]) -> anyhow::Result<Process> {
        let own = std::env::current_exe()?;
        let mut words = under.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        words.push(own.to_str().context("this binary's path is no text")?.to_owned());
        let (program, arguments) = words.split_first().context("no program")?;
        let server = self.sandbox.node().command(program).args(arguments).arg("bare").arg(&self.body);
        let server = server.stderr(Stdio::null()).spawn()?;
        let deadline = Instant::now() + READY;
        while get(self.sandbox.node(), BARE, "/").is_err() {
            if Instant::now() > deadline {
                bail!("the bare server does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Requests over keep-alive connections from the pod; how long each took.
    fn load(&self, server: SocketAddr, requests: u64) -> anyhow::Result<Vec<Duration>> {
        self.pod.network().enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let each = requests / CONNECTIONS;
                let connections = (0..CONNECTIONS).map(|_| tokio::spawn(one(server, each)));
                let mut times = Vec::new();
                for connection in connections.collect::<Vec<_>>() {
                    times.extend(connection.await??);
                }
                anyhow::Ok(times)
            })
        })?
    }
}

async fn one(server: SocketAddr, requests: u64) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
    let mut buffer = vec![0; 16 * 1024];
    let mut times = Vec::new();
    for _ in 0..requests {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut read = 0;
        loop {
            let more = stream.read(&mut buffer[read..]).await?;
            if more == 0 {
                bail!("the server closed");
            }
            read += more;
            // The body is JSON without nesting: its end is the first closing brace.
            if buffer[..read].ends_with(b"}") {
                break;
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("the server refused");
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

fn cpu() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let daemon = bench.daemon(&[])?;
    let bare = bench.bare(&[])?;
    let mut results = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    bench.load(METADATA, REQUESTS / 8)?;
    bench.load(BARE, REQUESTS / 8)?;
    for _ in 0..ROUNDS {
        for ((cpu, times), (process, server)) in results.iter_mut().zip([(&daemon, METADATA), (&bare, BARE)]) {
            let before = cpu_time(process.id())?;
            times.extend(bench.load(server, REQUESTS)?);
            let spent = cpu_time(process.id())?.saturating_sub(before);
            cpu.push(spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(REQUESTS)?));
        }
    }
    let [(daemon_cpu, daemon_times), (bare_cpu, bare_times)] = results;
    row("", "kube2irsa", "bare hyper", "ratio");
    compare("server CPU, µs a request (median of rounds)", median(daemon_cpu), median(bare_cpu));
    for (name, share) in [("latency p50, µs", 50), ("latency p99, µs", 99)] {
        compare(name, percentile(&daemon_times, share), percentile(&bare_times, share));
    }
    println!("{ROUNDS} rounds of {REQUESTS} requests, {CONNECTIONS} connections, one worker");
    Ok(())
}

/// What valgrind counts, for one request.
fn counts() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let out = bench.sandbox.directory().join("counted");
    let callgrind = ["--tool=callgrind".to_owned(), format!("--callgrind-out-file={}", out.display())];
    let memcheck = ["--tool=memcheck", "--leak-check=no", "--undef-value-errors=no"].map(str::to_owned);
    let memcheck = [&memcheck[..], &[format!("--log-file={}", out.display())]].concat();
    row("", "kube2irsa", "bare hyper", "ratio");
    for (name, tool, before) in [
        ("instructions a request, user space", &callgrind[..], "totals: "),
        ("allocations a request", &memcheck, "total heap usage: "),
    ] {
        let of = |daemon| {
            counted(&bench, daemon, tool, || {
                let text = fs::read_to_string(&out)?;
                let total = text.lines().find_map(|line| Some(line.split_once(before)?.1));
                let number = total.context("valgrind counted nothing")?.split(' ').next().unwrap_or_default();
                Ok(number.replace(',', "").parse::<f64>()?)
            })
        };
        compare(name, of(true)?, of(false)?);
    }
    Ok(())
}

/// The difference between two runs of different length.
fn counted(
    bench: &Bench,
    daemon: bool,
    tool: &[String],
    total: impl Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<f64> {
    let under = ["valgrind"].into_iter().chain(tool.iter().map(String::as_str)).collect::<Vec<_>>();
    let mut totals = Vec::new();
    for requests in COUNTED {
        let (mut process, server) =
            if daemon { (bench.daemon(&under)?, METADATA) } else { (bench.bare(&under)?, BARE) };
        bench.load(server, requests)?;
        process.signal(Signal::SIGTERM)?;
        process.wait()?;
        totals.push(total()?);
    }
    let more = f64::from(u32::try_from(COUNTED[1] - COUNTED[0])?);
    Ok((totals[1] - totals[0]) / more)
}

/// A pod appears, its credentials are fetched, it asks as an SDK does: token, name, document, on one connection.
fn first() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let _daemon = bench.daemon(&[])?;
    let mut times = Vec::new();
    for number in 0..PODS {
        let fetched = bench.sandbox.cloud.sts.calls().len();
        let pod = bench.sandbox.add_pod("team-a", &format!("first-{number}"), "web")?;
        while bench.sandbox.cloud.sts.calls().len() == fetched {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Its address becomes known a moment after the pod does.
        std::thread::sleep(SETTLED);
        times.push(pod.network().enter(three_requests)??);
        bench.sandbox.remove_pod(pod)?;
    }
    println!("{:<46} {:>12.0}", "first three requests, µs, p50", percentile(&times, 50));
    println!("{:<46} {:>12.0}", "first three requests, µs, p99", percentile(&times, 99));
    println!("{PODS} pods, one after the other; to connect is part of it");
    Ok(())
}

fn three_requests() -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut stream = std::net::TcpStream::connect(METADATA)?;
    stream.set_nodelay(true)?;
    let mut ask = |line: &str, headers: &str| -> anyhow::Result<String> {
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n").as_bytes())?;
        let mut buffer = vec![0; 16 * 1024];
        let mut read = 0;
        // A body is shorter than a packet: it comes with its head, or soon after.
        while !buffer[..read].windows(4).any(|window| window == b"\r\n\r\n") || buffer[..read].ends_with(b"\r\n\r\n") {
            let more = stream.read(&mut buffer[read..])?;
            if more == 0 {
                bail!("the server closed");
            }
            read += more;
        }
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("refused: {head}");
        }
        Ok(body.to_owned())
    };
    let token = ask("PUT /latest/api/token", "Content-Length: 0\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n")?;
    let session = format!("X-Aws-Ec2-Metadata-Token: {token}\r\n");
    let folder = PATH.trim_end_matches("web");
    let name = ask(&format!("GET {folder}"), &session)?;
    ask(&format!("GET {folder}{name}"), &session)?;
    Ok(start.elapsed())
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentile(times: &[Duration], share: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() * share / 100].as_secs_f64() * 1e6
}

fn compare(name: &str, ours: f64, theirs: f64) {
    row(name, &format!("{ours:.1}"), &format!("{theirs:.1}"), &format!("{:.2}", ours / theirs));
}

fn row(name: &str, ours: &str, theirs: &str, ratio: &str) {
    println!("{name:<46} {ours:>12} {theirs:>12} {ratio:>8}");
}
