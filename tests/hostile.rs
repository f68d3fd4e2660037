//! Hostile pods: random bytes, connections by the thousand, and paths and requests that are meant to get through to
//! what no pod may have. Each for seconds here, and for as long as one likes by `make test-hostile`
//! (`KUBE2IRSA_MINUTES`, 10 by default). Seeds are printed; `KUBE2IRSA_SEED` repeats one.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use sandbox::{
    imds::USER_DATA_SECRET,
    network::NODE_ADDRESS,
    sandbox::{METADATA, Pod, Sandbox},
};
use support::{Daemon, ROLE_NAME, admin, ask, connect, eventually, metric, role_status, with_a_pod};

/// Who sends at once.
const SENDERS: u64 = 6;
const SHORT: Duration = Duration::from_secs(4);

fn long() -> Duration {
    let minutes = std::env::var("KUBE2IRSA_MINUTES").map_or(10.0, |minutes| minutes.parse().unwrap());
    Duration::from_secs_f64(minutes * 60.0)
}

fn seed() -> u64 {
    let seed = std::env::var("KUBE2IRSA_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KUBE2IRSA_SEED={seed}");
    seed
}

/// Ends what goes on beside a test, also where it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

// === what is looked at ===

/// What the daemon has: bytes of memory, sockets, connections of pods.
#[derive(Clone, Copy, Debug)]
struct Held {
    resident: u64,
    sockets: usize,
    connections: f64,
}

fn held(sandbox: &Sandbox, daemon: &Daemon) -> Held {
    let process = format!("/proc/{}", daemon.process.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let connections = metric(sandbox, "kube2irsa_connections");
    // Pipes come and go with the commands that look after the rules.
    let socket =
        |path: &std::path::Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let sockets =
        fs::read_dir(format!("{process}/fd")).unwrap().filter(|file| socket(&file.as_ref().unwrap().path())).count();
    Held { resident, sockets, connections }
}

impl Held {
    fn mib(self) -> f64 {
        self.resident as f64 / f64::from(1 << 20)
    }
}

fn closed(sandbox: &Sandbox) -> String {
    let (_, text) = admin(sandbox, "/metrics");
    let lines = text.lines().filter_map(|line| line.strip_prefix("kube2irsa_connections_closed_total"));
    lines.collect::<Vec<_>>().join(", ")
}

/// How long a pod's requests take, one after the other for so long: every second one on a new connection. All must be
/// answered with its own role.
fn latencies(pod: &Pod, role: &str, during: Duration) -> Vec<Duration> {
    let path = format!("{ROLE_NAME}{role}");
    let (start, mut times, mut kept) = (Instant::now(), Vec::new(), connect(pod).unwrap());
    while start.elapsed() < during {
        let one = Instant::now();
        kept.send("GET", &path, &[]).unwrap();
        let answer = kept.answer().unwrap();
        times.push(one.elapsed());
        let one = Instant::now();
        let on_new = ask(pod, "GET", &path, &[]).unwrap();
        times.push(one.elapsed());
        assert!(answer.status == 200 && answer.body == on_new.body, "{answer:?} {on_new:?}");
        thread::sleep(Duration::from_millis(2));
    }
    times.sort();
    times
}

fn told(what: &str, times: &[Duration]) -> Duration {
    let at = |share: usize| times[(times.len() - 1) * share / 1000];
    println!("{what}: {} requests, p50 {:?}, p99 {:?}, worst {:?}", times.len(), at(500), at(990), at(1000));
    at(990)
}

// === random bytes, and requests that look valid ===

const WORDS: [&str; 30] = [
    "GET ",
    "PUT ",
    "HEAD ",
    "POST ",
    "OPTIONS ",
    "CONNECT ",
    "/",
    "/latest/api/token",
    "/latest/meta-data/iam/security-credentials/",
    "web",
    " HTTP/1.1",
    " HTTP/1.0",
    " HTTP/2.0",
    "\r\n",
    "\n",
    "\r",
    "Host: 169.254.169.254",
    "Content-Length: ",
    "10",
    "0",
    "99999999999999999999",
    "Transfer-Encoding: chunked",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "Expect: 100-continue",
    "Connection: close",
    "X-aws-ec2-metadata-token-ttl-seconds: 60",
    ": ",
    "\0",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

fn nonsense(random: &mut Rng) -> Vec<u8> {
    match random.u8(0..4) {
        0 => (0..random.usize(0..3000)).map(|_| random.u8(..)).collect(),
        1 => (0..random.usize(0..30)).flat_map(|_| random.choice(WORDS).unwrap().bytes()).collect(),
        // A request with a few bytes changed, added or left out.
        2 => {
            let mut bytes = format!("GET {ROLE_NAME}web HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")
                .repeat(random.usize(1..20))
                .into_bytes();
            for _ in 0..random.usize(0..6) {
                let at = random.usize(0..bytes.len());
                match random.u8(0..3) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes.insert(at, random.u8(..)),
                    _ => drop(bytes.remove(at)),
                }
            }
            bytes
        }
        _ => case(random).0.into_bytes(),
    }
}

/// Connections with nonsense until `stop`: whole or in pieces, read from or not, ended or left.
fn torment(pod: &Pod, seed: u64, stop: &AtomicBool, count: &AtomicU64) {
    pod.network()
        .enter(|| {
            let mut random = Rng::with_seed(seed);
            let mut left = Vec::new();
            while !stop.load(Relaxed) {
                let Ok(mut stream) = TcpStream::connect_timeout(&METADATA, Duration::from_secs(1)) else { continue };
                drop(stream.set_read_timeout(Some(Duration::from_millis(random.u64(1..50)))));
                drop(stream.set_write_timeout(Some(Duration::from_millis(200))));
                let bytes = nonsense(&mut random);
                let pieces = if random.u8(0..10) == 0 { random.usize(1..5) } else { 1 };
                for piece in bytes.chunks(bytes.len() / pieces + 1) {
                    if stream.write_all(piece).is_err() {
                        break;
                    }
                }
                count.fetch_add(1, Relaxed);
                match random.u8(0..4) {
                    0 => drop(stream.read(&mut [0; 4096])),
                    1 => drop(stream.shutdown(std::net::Shutdown::Write)),
                    2 => {
                        left.push(stream);
                        if left.len() > 100 {
                            left.swap_remove(random.usize(0..left.len()));
                        }
                    }
                    _ => {}
                }
            }
        })
        .unwrap();
}

fn random_bytes(during: Duration, flags: &[&str]) {
    let (seed, (sandbox, web)) = (seed(), with_a_pod());
    sandbox.add_service_account("team-b", "other", "other").unwrap();
    let other = sandbox.add_pod("team-b", "other-0", "other").unwrap();
    let mut daemon = Daemon::ready(&sandbox, flags);
    assert_eq!((role_status(&web), role_status(&other)), (200, 200));
    let quiet = told("without", &latencies(&other, "other", (during / 4).min(Duration::from_secs(30))));

    let count = AtomicU64::new(0);
    let flood = |during: Duration| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = End(&stop);
            for sender in 0..SENDERS {
                let (web, stop, count) = (&web, &stop, &count);
                scope.spawn(move || torment(web, seed.wrapping_add(sender), stop, count));
            }
            latencies(&other, "other", during)
        })
    };
    let rest = || {
        eventually("its connections are gone", || metric(&sandbox, "kube2irsa_connections") == 0.0);
        held(&sandbox, &daemon)
    };
    // What is needed once for each worker, and kept, is there after the first part.
    drop(flood(during / 10));
    let before = rest();
    let flooded = told("beside", &flood(during));
    let after = rest();
    println!(
        "{} connections in {during:?}; p99 beside : without = {:.2}; throttled {}; closed {}",
        count.load(Relaxed),
        flooded.as_secs_f64() / quiet.as_secs_f64(),
        metric(&sandbox, "kube2irsa_throttled_requests_total"),
        closed(&sandbox),
    );
    println!(
        "{:.1} MiB, {} sockets before; {:.1} MiB, {} after",
        before.mib(),
        before.sockets,
        after.mib(),
        after.sockets
    );
    assert!(daemon.process.try_wait().unwrap().is_none(), "it ended: {}", daemon.log());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    let open = "ss -Htn state established state close-wait state fin-wait-1 sport = :9169 | wc -l";
    let open = sandbox.node().command("sh").args(["-c", open]).output().unwrap();
    assert_eq!(String::from_utf8(open.stdout).unwrap().trim(), "0", "the kernel still has connections of theirs");
    // Connections to the API server are begun anew now and then.
    assert!(after.sockets <= before.sockets + 3, "sockets leak");
    assert!(after.mib() < before.mib() + 8.0, "memory grows");
}

#[test]
fn random_bytes_for_a_moment() {
    random_bytes(SHORT, &["--idle-timeout", "1", "--request-timeout", "1"]);
}

#[test]
#[ignore = "minutes; make test-hostile"]
fn random_bytes_for_minutes() {
    random_bytes(long(), &["--idle-timeout", "5"]);
}

// === thousands of slow connections ===

#[test]
#[ignore = "a minute; make test-hostile"]
fn five_thousand_slow_connections_of_one_pod() {
    const MANY: usize = 5000;
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-b", "other", "other").unwrap();
    let other = sandbox.add_pod("team-b", "other-0", "other").unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!((role_status(&web), role_status(&other)), (200, 200));
    let quiet = told("without", &latencies(&other, "other", Duration::from_secs(15)));
    let before = held(&sandbox, &daemon);
    let (stop, opened) = (AtomicBool::new(false), AtomicU64::new(0));
    let (beside, most) = thread::scope(|scope| {
        let _end = End(&stop);
        let (web, stop, opened) = (&web, &stop, &opened);
        scope.spawn(move || {
            web.network()
                .enter(|| {
                    // Each sends a byte of an endless head a second, and comes back as soon as it is closed.
                    let open = || -> Option<TcpStream> {
                        let stream = TcpStream::connect_timeout(&METADATA, Duration::from_millis(100)).ok()?;
                        stream.set_nonblocking(true).ok()?;
                        opened.fetch_add(1, Relaxed);
                        Some(stream)
                    };
                    let mut slow = (0..MANY).map(|_| open()).collect::<Vec<_>>();
                    while !stop.load(Relaxed) {
                        let round = Instant::now();
                        for stream in &mut slow {
                            let sent = stream.as_ref().is_some_and(|mut stream| stream.write(b"G").is_ok());
                            if !sent && !stop.load(Relaxed) {
                                *stream = open();
                            }
                        }
                        thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
                    }
                })
                .unwrap();
        });
        let watch = scope.spawn(|| {
            let mut most = before;
            while !stop.load(Relaxed) {
                let now = held(&sandbox, &daemon);
                most = Held {
                    resident: most.resident.max(now.resident),
                    sockets: most.sockets.max(now.sockets),
                    connections: most.connections.max(now.connections),
                };
                thread::sleep(Duration::from_millis(250));
            }
            most
        });
        let beside = latencies(&other, "other", Duration::from_secs(45));
        stop.store(true, Relaxed);
        (beside, watch.join().unwrap())
    });
    let beside = told("beside", &beside);
    println!(
        "{} opened by {MANY}; at most {} held, {} sockets, {:.1} MiB ({:.1} before); p99 beside : without = {:.2}; closed {}",
        opened.load(Relaxed),
        most.connections,
        most.sockets,
        most.mib(),
        before.mib(),
        beside.as_secs_f64() / quiet.as_secs_f64(),
        closed(&sandbox),
    );
    // The one that leaves may be counted beside the one that comes.
    assert!(most.connections <= 1024.0 + 10.0);
    eventually("its connections are gone", || metric(&sandbox, "kube2irsa_connections") == 0.0);
    let after = held(&sandbox, &daemon);
    assert!(after.sockets <= before.sockets + 3, "sockets leak: {before:?} {after:?}");
}

// === paths, and what is around them ===

const SEGMENTS: [&str; 52] = [
    "latest",
    "1.0",
    "2021-07-15",
    "2021-7-15",
    "LATEST",
    "latest;x",
    "latest%00",
    "latest%2fmeta-data",
    "meta-data",
    "Meta-Data",
    "iam",
    "IAM",
    "iam%2finfo",
    "info",
    "security-credentials",
    "security-credentials-extended",
    "security-credentials%2f",
    "security%2dcredentials",
    "web",
    "node",
    "%6eode",
    "web%2f..%2fnode",
    "web;node",
    "web%00node",
    "other",
    "placement",
    "region",
    "availability-zone",
    "instance-id",
    "dynamic",
    "instance-identity",
    "document",
    "signature",
    "pkcs7",
    "rsa2048",
    "identity-credentials",
    "ec2",
    "ec2-instance",
    "user-data",
    "hostname",
    "public-keys",
    "network",
    "api",
    "token",
    "..",
    ".",
    "%2e%2e",
    "%2e",
    "\\",
    "..\\..",
    "%5c",
    "",
];
/// Where the real service keeps what no pod may have.
const SECRETS: [&str; 5] = [
    "latest/meta-data/iam/security-credentials/node",
    "latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "latest/user-data",
    "latest/dynamic/instance-identity/pkcs7",
    "2021-07-15/meta-data/iam/security-credentials/node",
];
const ANSWERED: [&str; 9] = [
    "latest/meta-data/iam/security-credentials/web",
    "latest/meta-data/iam/security-credentials/",
    "latest/meta-data/iam/info",
    "latest/meta-data/placement/region",
    "latest/meta-data/placement/availability-zone",
    "latest/meta-data/instance-id",
    "latest/dynamic/instance-identity/document",
    "latest/api/token",
    "latest/meta-data/",
];

fn path(random: &mut Rng) -> String {
    let mut segments: Vec<&str> = match random.u8(0..4) {
        0 => (0..random.usize(0..8)).map(|_| random.choice(SEGMENTS).unwrap()).collect(),
        1 => random.choice(ANSWERED).unwrap().split('/').collect(),
        _ => random.choice(SECRETS).unwrap().split('/').collect(),
    };
    // What is changed in many ways at once is only ever answered 404.
    let (changes, plain) = (if random.bool() { 0 } else { random.usize(1..4) }, random.u8(0..4) > 0);
    for _ in 0..changes {
        let at = random.usize(0..=segments.len());
        match random.u8(0..3) {
            0 => segments.insert(at, random.choice(SEGMENTS).unwrap()),
            1 if at < segments.len() => drop(segments.remove(at)),
            _ => segments.insert(at, ""),
        }
    }
    let mut path = String::from("/");
    for (at, segment) in segments.iter().enumerate() {
        if at > 0 && plain {
            path.push('/');
        } else if at > 0 {
            path += random.choice(["/", "/", "/", "/", "/", "//", "%2f", "\\", "/./", "/../", ";/"]).unwrap();
        }
        path += segment;
    }
    match random.u8(0..30) {
        0 => path.to_uppercase(),
        1 => path + "?" + random.choice(SECRETS).unwrap(),
        2 => path + "#" + random.choice(SECRETS).unwrap(),
        3 => path + &"/..".repeat(random.usize(1..9)) + "/" + random.choice(SECRETS).unwrap(),
        4 => path + &"x".repeat(random.usize(1..9000)),
        5 => path
            .bytes()
            .map(|byte| if random.u8(0..4) == 0 { format!("%{byte:02x}") } else { char::from(byte).to_string() })
            .collect(),
        _ => path,
    }
}

/// One case: bytes of one or more requests, and how many there seem to be.
fn case(random: &mut Rng) -> (String, u64) {
    let mut bytes = String::new();
    let requests = if random.u8(0..4) == 0 { random.u64(2..6) } else { 1 };
    for _ in 0..requests {
        let method = random
            .choice(["GET", "GET", "GET", "GET", "HEAD", "PUT", "POST", "OPTIONS", "DELETE", "get", "PATCH"])
            .unwrap();
        let path = path(random);
        let target = match random.u8(0..14) {
            0 => format!("http://169.254.169.254{path}"),
            1 => format!("http://10.0.0.10:9170{path}"),
            2 => format!("https://sts.amazonaws.com{path}"),
            3 => format!("//169.254.169.254{path}"),
            4 => path.trim_start_matches('/').to_owned(),
            5 => format!("http://user:pass@169.254.169.254{path}"),
            _ => path,
        };
        let version = random.choice(["1.1", "1.1", "1.1", "1.1", "1.0", "2.0"]).unwrap();
        bytes += &format!("{method} {target} HTTP/{version}\r\n");
        for _ in 0..random.usize(0..4) {
            bytes += random
                .choice([
                    "Host: 169.254.169.254\r\n",
                    "Host: \r\n",
                    "Host: 127.0.0.1:9170\r\n",
                    "Host: fd00:ec2::254\r\n",
                    "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n",
                    "X-aws-ec2-metadata-token: nonsense\r\n",
                    "X-Forwarded-For: 10.0.0.1\r\n",
                    "X-Original-URL: /latest/user-data\r\n",
                    "X-Rewrite-URL: /latest/user-data\r\n",
                    "X-HTTP-Method-Override: PUT\r\n",
                    "Upgrade: h2c\r\n",
                    "Connection: keep-alive\r\n",
                    "User-Agent: aws-sdk-crt/1\r\n",
                    "Expect: 100-continue\r\n",
                    "Range: bytes=0-1\r\n",
                    "Transfer-Encoding:\tchunked, chunked\r\n",
                    "Content-Length: 0\r\n",
                ])
                .unwrap();
        }
        // A second request in the first one's body, by one length or the other.
        let secret = random.choice(SECRETS).unwrap();
        let inner = format!("GET /{secret} HTTP/1.1\r\nHost: x\r\n\r\n");
        bytes += &match random.u8(0..12) {
            0 => format!("Content-Length: {}\r\n\r\n{inner}", inner.len()),
            1 => format!(
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
                inner.len()
            ),
            2 => format!("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
            3 => format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
            4 => format!("Transfer-Encoding: identity\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
            5 => format!("X: a\r\n\tContent-Length: {}\r\n\r\n{inner}", inner.len()),
            _ => "\r\n".to_owned(),
        };
    }
    (bytes, requests)
}

/// What a pod may read of the real service where all is allowed that can be.
const ALLOWED: &str = "/latest/meta-data/,/latest/dynamic/";

/// Whether this may be asked of the real service for a pod.
fn may_be_asked(method: &str, path: &str) -> bool {
    let never = ["/meta-data/iam", "/meta-data/identity-credentials", "/dynamic/instance-identity/pkcs7"];
    let below = |never: &str| {
        let rest = path.strip_prefix("/latest").and_then(|path| path.strip_prefix(never));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let never = never.into_iter().any(below);
    (method, path) == ("PUT", "/latest/api/token")
        || method == "GET" && !never && ALLOWED.split(',').any(|allowed| path.starts_with(allowed))
}

/// All that the real service says below this folder, which ends in a slash, but for what may not be asked.
fn all_below(pod: &Pod, folder: &str, texts: &mut Vec<Vec<u8>>) {
    let listing = ask(pod, "GET", folder, &[]).unwrap();
    assert_eq!(listing.status, 200, "{folder}");
    texts.push(listing.body.clone());
    for name in listing.text().lines() {
        // The top has its folders without a slash.
        let path = format!("{folder}{name}");
        let answer = ask(pod, "GET", &path, &[]).unwrap();
        match answer.status {
            _ if !may_be_asked("GET", &path) => {}
            200 if name.ends_with('/') => all_below(pod, &path, texts),
            200 => texts.push(answer.body),
            _ => all_below(pod, &format!("{path}/"), texts),
        }
    }
}

/// What may be answered to a pod.
struct Oracle {
    texts: Vec<Vec<u8>>,
    /// The passage answers with more.
    statuses: &'static [u16],
    forbidden: Vec<Vec<u8>>,
}

impl Oracle {
    /// What a pod may get is asked for one by one; what none may get is what the node has.
    fn new(web: &Pod, other: &Pod, of_node: &serde_json::Value, of_service: Vec<Vec<u8>>) -> Self {
        let text = |pod: &Pod, path: &str| {
            let answer = ask(pod, "GET", path, &[]).unwrap();
            assert_eq!(answer.status, 200, "{path}");
            answer
        };
        let mut texts =
            ["latest", "dynamic\nmeta-data", "iam/\ninstance-id\nplacement/", "availability-zone\nregion"].to_vec();
        texts.extend(["instance-identity/", "document", "info\nsecurity-credentials/", "web"]);
        let mut texts = texts.into_iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        for path in ANSWERED.iter().filter(|path| !path.ends_with("token") && !path.ends_with("info")) {
            texts.push(text(web, &format!("/{path}")).body);
        }
        let of_other = text(other, &format!("{ROLE_NAME}other")).json();
        let mut forbidden =
            vec![USER_DATA_SECRET.as_bytes().to_vec(), b"role/node".to_vec(), b"instance-profile/node".to_vec()];
        for document in [of_node, &of_other] {
            for key in ["AccessKeyId", "SecretAccessKey", "Token"] {
                forbidden.push(document[key].as_str().unwrap().as_bytes().to_vec());
            }
        }
        // 503 where the passage is asked too much.
        let statuses: &[u16] = if of_service.is_empty() { &[] } else { &[503] };
        texts.extend(of_service);
        Self { texts, statuses, forbidden }
    }

    fn judge(&self, sent: &str, answers: &[u8], statuses: &mut BTreeMap<u16, u64>) {
        for forbidden in &self.forbidden {
            let found = answers.windows(forbidden.len()).any(|window| window == &forbidden[..]);
            assert!(!found, "{sent:?} was answered with what no pod may have");
        }
        for (status, body) in parse(answers) {
            *statuses.entry(status).or_default() += 1;
            let known = match status {
                200 => body.is_empty() || self.texts.contains(&body) || is_token(&body) || is_info(&body),
                100 | 400 | 401 | 403 | 404 | 405 | 413 | 414 | 431 => body.is_empty(),
                _ => self.statuses.contains(&status) && body.is_empty(),
            };
            assert!(known, "{sent:?} was answered with {status} {:?}", String::from_utf8_lossy(&body));
        }
    }
}

fn is_token(body: &[u8]) -> bool {
    body.len() == 54 && body.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
}

fn is_info(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body)
        .is_ok_and(|info| info["InstanceProfileArn"] == "arn:aws:iam::111122223333:instance-profile/web")
}

/// Answers one after the other. One to HEAD has a length and no body; no body begins like an answer.
fn parse(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut answers = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end + 4..];
        assert!(head.starts_with("HTTP/1."), "{head}");
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length = length.unwrap_or(0_usize);
        let body = if bytes.starts_with(b"HTTP/1.") || bytes.len() < length { 0 } else { length };
        answers.push((head[9..12].parse().unwrap(), bytes[..body].to_vec()));
        bytes = &bytes[body..];
    }
    answers
}

/// What comes until the other side closes, or is silent for a moment.
fn all_that_comes(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A connection that is reset ends here as well.
    let _: io::Result<usize> = stream.read_to_end(&mut all);
    all
}

fn fuzz_paths(during: Duration, allow: bool) {
    let (seed, (sandbox, web)) = (seed(), with_a_pod());
    sandbox.add_service_account("team-b", "other", "other").unwrap();
    let other = sandbox.add_pod("team-b", "other-0", "other").unwrap();
    let of_node = ask(&web, "GET", &format!("/{}", SECRETS[0]), &[]).unwrap();
    assert_eq!(of_node.status, 200, "without us a pod must get the node's role, or this proves nothing");
    let user_data = ask(&web, "GET", "/latest/user-data", &[]).unwrap();
    assert!(user_data.text().contains(USER_DATA_SECRET));

    let mut of_service = Vec::new();
    if allow {
        ALLOWED.split(',').for_each(|folder| all_below(&web, folder, &mut of_service));
        assert!(of_service.len() > 10, "{of_service:?}");
    }
    let before_us = sandbox.cloud.imds.requests().len();
    let many = ["--requests-per-pod", "1000000", "--request-burst-per-pod", "1000000"];
    let mut flags = [&["--request-timeout", "0.2", "--idle-timeout", "0.2"][..], &many].concat();
    flags.extend(allow.then_some(["--allow-path", ALLOWED]).iter().flatten());
    let _daemon = Daemon::ready(&sandbox, &flags);
    let oracle = Oracle::new(&web, &other, &of_node.json(), of_service);
    let handed_out = sandbox.cloud.imds.credential_requests();
    let asked = sandbox.cloud.imds.requests();
    let of_us =
        asked[before_us..].iter().map(|request| format!("{} {}", request.method, request.path)).collect::<Vec<_>>();
    assert!(
        asked[before_us..].iter().all(|request| request.peer.is_some_and(|peer| peer.ip() == NODE_ADDRESS)),
        "{of_us:?}"
    );

    let (cases, requests, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let statuses = thread::scope(|scope| {
        let (web, oracle, cases, requests) = (&web, &oracle, &cases, &requests);
        let run = move |sender: u64| {
            let (mut random, mut statuses) = (Rng::with_seed(seed.wrapping_add(sender)), BTreeMap::new());
            while start.elapsed() < during {
                let (mut bytes, count) = case(&mut random);
                // Mostly the end comes at once; where a body takes this for itself, the time limits bring it.
                bytes += "GET /end HTTP/1.1\r\nConnection: close\r\n\r\n";
                let Ok(mut stream) = TcpStream::connect_timeout(&METADATA, Duration::from_secs(2)) else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                if stream.write_all(bytes.as_bytes()).is_ok() {
                    oracle.judge(&bytes, &all_that_comes(&mut stream), &mut statuses);
                }
                cases.fetch_add(1, Relaxed);
                requests.fetch_add(count, Relaxed);
            }
            statuses
        };
        let senders = (0..SENDERS).map(|sender| scope.spawn(move || web.network().enter(|| run(sender)).unwrap()));
        let mut all = BTreeMap::<u16, u64>::new();
        for sender in senders.collect::<Vec<_>>() {
            for (status, count) in sender.join().unwrap() {
                *all.entry(status).or_default() += count;
            }
        }
        all
    });
    println!(
        "{} cases with {} requests in {:?}; answers by status {statuses:?}; the real service was asked {} times, by us, at the start: {of_us:?}",
        cases.load(Relaxed),
        requests.load(Relaxed),
        start.elapsed(),
        of_us.len(),
    );
    let more = &sandbox.cloud.imds.requests()[asked.len()..];
    println!("and {} times for what is allowed", more.len());
    assert_eq!(more.is_empty(), !allow, "{more:?}");
    for request in more {
        assert!(may_be_asked(request.method.as_str(), &request.path), "the real service was asked: {request:?}");
    }
    assert_eq!(sandbox.cloud.imds.credential_requests(), handed_out);
    for status in [200, 400, 404] {
        assert!(statuses.get(&status).is_some_and(|count| *count > 50), "too few to prove anything: {statuses:?}");
    }
}

#[test]
fn no_path_leads_to_what_is_the_nodes_for_a_moment() {
    fuzz_paths(SHORT, false);
}

#[test]
fn nor_does_one_where_all_is_allowed_that_can_be_for_a_moment() {
    fuzz_paths(SHORT, true);
}

#[test]
#[ignore = "minutes; make test-hostile"]
fn no_path_leads_to_what_is_the_nodes_for_minutes() {
    fuzz_paths(long() / 2, false);
    fuzz_paths(long() / 2, true);
}
