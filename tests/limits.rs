//! What one pod may take of the listener, what becomes of more, and that others do not notice.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs,
    io::{self, Write as _},
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    sandbox::{METADATA, Pod, Sandbox},
    sts::Call,
};
use support::{
    Daemon, PATIENCE, ROLE_NAME, ask, connect, daemon_binary, eventually,
    http::{Answer, Connection},
    metric, role_status, with_a_pod,
};

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";

/// Ends what goes on beside a test, also where it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A sandbox with two pods, of which the second has a role of its own.
fn with_two_pods() -> (Sandbox, Pod, Pod) {
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-b", "other", "other").unwrap();
    let other = sandbox.add_pod("team-b", "other-0", "other").unwrap();
    (sandbox, web, other)
}

fn closed(sandbox: &Sandbox, reason: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_connections_closed_total{{reason=\"{reason}\"}}"))
}

/// Bytes of memory that the daemon has.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A kept-alive connection on which one request has been answered.
fn open(pod: &Pod) -> io::Result<Connection> {
    let mut connection = connect(pod)?;
    connection.send("GET", "/latest/", &[])?;
    connection.answer()?;
    Ok(connection)
}

/// What is answered to these bytes, up to the end of the connection.
fn answers(pod: &Pod, bytes: &[u8]) -> String {
    let mut connection = connect(pod).unwrap();
    connection.send_bytes(bytes).unwrap();
    String::from_utf8(connection.rest().unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(bytes))))
        .unwrap()
}

/// The statuses of answers that have no body, or none with a line that looks like a status.
fn statuses(answers: &str) -> Vec<u16> {
    let status =
        |line: &str| Some(line.strip_prefix("HTTP/1.1 ").or(line.strip_prefix("HTTP/1.0 "))?[..3].parse().unwrap());
    // A body has no newline at its end: the next answer's first line follows on it.
    answers.split("HTTP/").skip(1).filter_map(|answer| status(&format!("HTTP/{answer}"))).collect()
}

// === connections ===

#[test]
fn a_pod_above_its_connections_is_closed_at_once_and_others_are_served() {
    let (sandbox, web, other) = with_two_pods();
    let flags = ["--max-connections-per-pod", "50", "--request-timeout", "30", "--idle-timeout", "60"];
    let _daemon = Daemon::ready(&sandbox, &flags);
    // Of those above some are closed before they know that they were open.
    let mut slow = (0..200).filter_map(|_| connect(&web).ok()).collect::<Vec<_>>();
    for connection in &mut slow {
        // Those that are closed already refuse it.
        drop(connection.send_bytes(b"GET /latest/ HTT"));
    }
    eventually("those above are closed", || closed(&sandbox, "pod_connections") == 150.0);
    assert_eq!(metric(&sandbox, "kube2irsa_connections"), 50.0);
    assert!(open(&web).is_err());
    for _ in 0..20 {
        assert_eq!(role_status(&other), 200);
    }
    let still_open = slow.iter_mut().filter_map(|connection| {
        connection.send_bytes(b"P/1.1\r\n\r\n").ok()?;
        connection.answer().ok()
    });
    assert_eq!(still_open.filter(|answer| answer.status == 200).count(), 50, "who was in goes on");
    drop(slow);
    eventually("places are free again", || open(&web).is_ok());
}

#[test]
fn all_pods_together_have_no_more_connections_than_the_node_may() {
    let (sandbox, web, other) = with_two_pods();
    let _daemon = Daemon::ready(&sandbox, &["--max-connections", "40", "--max-connections-per-pod", "20"]);
    let of_web = (0..20).map(|_| open(&web).unwrap()).collect::<Vec<_>>();
    // The last quarter is for those who have few.
    let _of_other = (0..16).map(|_| open(&other).unwrap()).collect::<Vec<_>>();
    assert!(open(&other).is_err());
    assert_eq!((closed(&sandbox, "node_connections"), closed(&sandbox, "pod_connections")), (1.0, 0.0));
    drop(of_web);
    eventually("places are free again", || open(&other).is_ok());
}

/// The daemon under other limits of open files, soft and hard.
fn with_descriptors(sandbox: &Sandbox, soft_and_hard: &str) -> sandbox::network::Process {
    let binary = daemon_binary().to_str().unwrap();
    let log = fs::File::create(sandbox.directory().join("daemon.log")).unwrap();
    let command = sandbox.daemon_under("prlimit", &[&format!("--nofile={soft_and_hard}"), binary]).stderr(log);
    let mut process = command.spawn().unwrap();
    sandbox::sandbox::wait_until_ready(sandbox.node(), &mut process, PATIENCE).unwrap();
    process
}

fn limit_of_descriptors(pid: u32) -> String {
    let limits = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("limits")).unwrap();
    limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned()
}

#[test]
fn the_limit_of_open_files_is_raised_and_connections_are_kept_below_it() {
    let (sandbox, web, _other) = with_two_pods();
    let process = with_descriptors(&sandbox, "64:400");
    let limits = limit_of_descriptors(process.id());
    assert_eq!(limits.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["400", "400"], "{limits}");
    let log = fs::read_to_string(sandbox.directory().join("daemon.log")).unwrap();
    assert!(log.contains("--max-connections 4096: only 200 fit below the limit of open files (400)"), "{log}");
    let mut connections = (0..250).filter_map(|_| open(&web).ok()).collect::<Vec<_>>();
    assert_eq!((connections.len(), closed(&sandbox, "pod_connections")), (100, 150.0));
    assert_eq!(metric(&sandbox, "kube2irsa_accept_errors_total"), 0.0);
    let first = connections.first_mut().unwrap();
    first.send("GET", ROLE_NAME, &[]).unwrap();
    assert_eq!(first.answer().unwrap().text(), "web");
}

#[test]
fn when_descriptors_run_out_all_the_same_who_is_connected_goes_on_and_who_waits_is_served_later() {
    let (sandbox, web, other) = with_two_pods();
    let process = with_descriptors(&sandbox, "1024:1024");
    assert_eq!((role_status(&web), role_status(&other)), (200, 200));
    let pid = process.id().to_string();
    let set = |limit: &str| {
        let limit = format!("--nofile={limit}:1024");
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(status.unwrap().success());
    };
    let mut connected = open(&other).unwrap();
    set("3");
    let mut waiting = connect(&web).unwrap();
    waiting.send("GET", ROLE_NAME, &[]).unwrap();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..20 {
        connected.send("GET", ROLE_NAME, &[]).unwrap();
        assert_eq!(connected.answer().unwrap().text(), "other");
    }
    set("1024");
    assert_eq!(waiting.answer().unwrap().text(), "web");
    assert!(metric(&sandbox, "kube2irsa_accept_errors_total") >= 1.0);
    let log = fs::read_to_string(sandbox.directory().join("daemon.log")).unwrap();
    assert_eq!(log.matches("cannot be accepted").count(), 1, "{log}");
}

// === requests ===

#[test]
fn requests_above_a_pods_share_wait_and_are_answered_and_others_do_not_wait() {
    let (sandbox, web, other) = with_two_pods();
    let _daemon = Daemon::ready(&sandbox, &["--requests-per-pod", "20", "--request-burst-per-pod", "10"]);
    let throttled = || metric(&sandbox, "kube2irsa_throttled_requests_total");
    let (start, mut connection) = (Instant::now(), connect(&web).unwrap());
    // In advance: however slow this machine is, they are too many.
    connection.send_bytes(format!("GET {ROLE_NAME} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(30).as_bytes()).unwrap();
    for _ in 0..30 {
        assert_eq!(connection.answer().unwrap().text(), "web");
    }
    assert!(start.elapsed() >= Duration::from_millis(980), "{:?}", start.elapsed());
    assert!((1.0..=20.0).contains(&throttled()), "{}", throttled());

    let before = throttled();
    for _ in 0..9 {
        assert_eq!(role_status(&other), 200);
    }
    assert_eq!(throttled(), before, "another pod's share is its own");

    // A new connection for each request is no way around it. (A slow machine may not make them in time to be too many.)
    eventually("they wait", || {
        let start = Instant::now();
        thread::scope(|scope| {
            (0..20).for_each(|_| _ = scope.spawn(|| assert_eq!(role_status(&web), 200)));
        });
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        throttled() > before
    });
}

#[test]
fn requests_in_advance_are_answered_in_order() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let paths =
        [(ROLE_NAME, 200, "web"), ("/latest/user-data", 404, ""), ("/latest/dynamic/", 200, "instance-identity/")];
    let mut connection = connect(&web).unwrap();
    let requests = paths.iter().cycle().take(300).map(|(path, ..)| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    connection.send_bytes(requests.collect::<String>().as_bytes()).unwrap();
    for (path, status, body) in paths.iter().cycle().take(300) {
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (*status, *body), "{path}");
    }
}

/// Sends this request until no more is taken, and reads nothing. Whether the connection was closed on us, and how many
/// bytes were taken.
fn send_and_never_read(pod: &Pod, request: &str) -> (bool, usize) {
    let stream = pod.network().enter(|| TcpStream::connect(METADATA)).unwrap().unwrap();
    stream.set_nonblocking(true).unwrap();
    let (start, many, mut taken) = (Instant::now(), request.repeat(1000), 0);
    while start.elapsed() < PATIENCE && taken < 256 << 20 {
        match (&stream).write(&many.as_bytes()[taken % many.len()..]) {
            Ok(written) => taken += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(_) => return (true, taken),
        }
    }
    (false, taken)
}

#[test]
fn who_does_not_read_the_answers_is_not_read_from_and_in_the_end_closed() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(
        &sandbox,
        &["--request-timeout", "2", "--requests-per-pod", "1000000", "--request-burst-per-pod", "1000000"],
    );
    assert_eq!(role_status(&web), 200);
    for path in ["/x", &format!("{ROLE_NAME}web")] {
        let before = resident(&daemon);
        let stop = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = before;
                while !stop.load(Relaxed) {
                    most = most.max(resident(&daemon));
                    thread::sleep(Duration::from_millis(20));
                }
                most
            });
            let (closed, taken) = {
                let _end = End(&stop);
                send_and_never_read(&web, &format!("GET {path} HTTP/1.1\r\n\r\n"))
            };
            assert!(closed, "{path}: {taken} bytes were taken");
            watch.join().unwrap()
        });
        assert!(most < before + (8 << 20), "{path}: {before} bytes of memory became {most}");
    }
    assert_eq!(closed(&sandbox, "slow_reader"), 2.0);
    assert_eq!(role_status(&web), 200);
}

// === sizes ===

#[test]
fn a_head_or_a_body_that_is_too_large_is_said_to_be_and_the_connection_closed() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--max-request-head", "2048", "--max-request-body", "100"]);
    let head = |bytes: usize| format!("GET /latest/ HTTP/1.1\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(bytes));
    assert_eq!(statuses(&answers(&web, head(1900).as_bytes())), [200]);
    // The answer also comes through to who goes on sending.
    for bytes in [2048, 10_000, 200_000] {
        assert_eq!(statuses(&answers(&web, head(bytes).as_bytes())), [431], "{bytes}");
    }
    let many = format!("GET /latest/ HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
    assert_eq!(statuses(&answers(&web, many.as_bytes())), [431]);
    eventually("all are counted", || closed(&sandbox, "large_head") == 4.0);

    let sized = |method: &str, bytes: usize| {
        let head = format!("{method} /latest/api/token HTTP/1.1\r\n{TTL}Content-Length: {bytes}\r\n\r\n");
        format!("{head}{}GET /latest/ HTTP/1.1\r\nConnection: close\r\n\r\n", "x".repeat(bytes))
    };
    let chunked = |bytes: usize| {
        let head = format!("PUT /latest/api/token HTTP/1.1\r\n{TTL}Transfer-Encoding: chunked\r\n\r\n");
        format!(
            "{head}{bytes:x}\r\n{}\r\n0\r\n\r\nGET /latest/ HTTP/1.1\r\nConnection: close\r\n\r\n",
            "x".repeat(bytes)
        )
    };
    assert_eq!(statuses(&answers(&web, sized("PUT", 100).as_bytes())), [200, 200]);
    assert_eq!(statuses(&answers(&web, sized("GET", 100).as_bytes())), [405, 200]);
    assert_eq!(statuses(&answers(&web, chunked(100).as_bytes())), [200, 200]);
    for large in [sized("PUT", 101), sized("GET", 101), sized("PUT", 200_000), chunked(101), chunked(200_000)] {
        let answer = answers(&web, large.as_bytes());
        assert_eq!(statuses(&answer), [413], "{}", large.lines().next().unwrap());
        assert!(answer.contains("Server: EC2ws\r\n") && answer.contains("Connection: close\r\n"), "{answer}");
    }
    eventually("all are counted", || closed(&sandbox, "large_body") == 5.0);
}

// === time ===

#[test]
fn a_request_that_does_not_come_to_its_end_is_not_waited_for_nor_one_that_comes_byte_by_byte() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--request-timeout", "2", "--idle-timeout", "60"]);
    let mut idle = open(&web).unwrap();
    let mut silent = connect(&web).unwrap();
    let mut half = connect(&web).unwrap();
    half.send_bytes(b"GET /latest/ HTTP/1.1\r\nHost:").unwrap();
    let mut second_half = open(&web).unwrap();
    second_half.send_bytes(b"G").unwrap();
    let mut by_bytes = connect(&web).unwrap();
    let start = Instant::now();
    let sent = b"GET /".iter().chain(std::iter::repeat(&b'x')).take_while(|byte| {
        thread::sleep(Duration::from_millis(50));
        start.elapsed() < PATIENCE && by_bytes.send_bytes(&[**byte]).is_ok()
    });
    assert!(sent.count() < 200, "it is closed long before");
    for (what, connection) in [("half", &mut half), ("second half", &mut second_half)] {
        assert!(connection.is_closed(), "{what}");
    }
    assert_eq!(closed(&sandbox, "slow_request"), 3.0);
    // Neither rests too long, nor is a request late that begins now.
    for connection in [&mut silent, &mut idle] {
        connection.send_bytes(b"GET /latest/ HTTP/1.1\r\n").unwrap();
        thread::sleep(Duration::from_millis(100));
        connection.send_bytes(b"\r\n").unwrap();
        assert_eq!(connection.answer().unwrap().status, 200);
    }
}

#[test]
fn a_connection_without_requests_is_closed_and_one_with_them_is_not() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--idle-timeout", "3"]);
    let (mut silent, mut idle, mut used) = (connect(&web).unwrap(), open(&web).unwrap(), open(&web).unwrap());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        thread::sleep(Duration::from_millis(300));
        used.send("GET", ROLE_NAME, &[]).unwrap();
        assert_eq!(used.answer().unwrap().status, 200);
    }
    assert!(silent.is_closed() && idle.is_closed());
    assert_eq!(closed(&sandbox, "idle"), 2.0);
}

// === what is no request ===

#[test]
fn what_is_no_request_is_answered_400_and_the_connection_closed() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let malformed: [&[u8]; 27] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03TLS",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET /latest/ HTTP/2.0\r\n\r\n",
        b"GET /latest/ HTTP/1.2\r\n\r\n",
        b"GET /latest/\r\n\r\n",
        b"GET /latest/ HTTP/1.1 x\r\n\r\n",
        b"GET  /latest/ HTTP/1.1\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"GET /latest\x00 HTTP/1.1\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\nA: b\rc\r\n\r\n",
        b"GET /latest/ HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET latest HTTP/1.1\r\n\r\n",
        b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nx",
        b"PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n",
    ];
    for (at, bytes) in malformed.iter().enumerate() {
        // Also where more follows that would be a request.
        for follows in ["", "GET /latest/ HTTP/1.1\r\n\r\n"] {
            let answer = answers(&web, &[bytes, follows.as_bytes()].concat());
            assert_eq!(statuses(&answer), [400], "{at} {follows}");
            assert!(answer.to_ascii_lowercase().contains("content-length: 0\r\n"), "{at}: {answer}");
        }
    }
    eventually("all are counted", || closed(&sandbox, "malformed") == 2.0 * malformed.len() as f64);
    assert_eq!(role_status(&web), 200);
}

#[test]
fn a_body_is_never_taken_for_a_request() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let inner = format!("PUT /latest/api/token HTTP/1.1\r\n{TTL}\r\n");
    let (size, hex) = (inner.len(), format!("{:x}", inner.len()));
    let end = "GET /latest/ HTTP/1.1\r\nConnection: close\r\n\r\n";
    let get = |headers: &str| format!("GET /latest/dynamic/ HTTP/1.1\r\n{headers}\r\n");
    let smuggled = [
        (format!("{}{inner}{end}", get(&format!("Content-Length: {size}\r\n"))), &[200, 200][..]),
        (format!("{}{inner}{end}", get(&format!("Content-Length: {size}\r\nContent-Length: {size}\r\n"))), &[200, 200]),
        (format!("{}{hex}\r\n{inner}\r\n0\r\n\r\n{end}", get("Transfer-Encoding: chunked\r\n")), &[200, 200]),
        (
            format!(
                "{}{hex};ext=\"{size}\"\r\n{inner}\r\n0\r\nTrailer: x\r\n\r\n{end}",
                get("Transfer-Encoding: chunked\r\n")
            ),
            &[200, 200],
        ),
        // Whose end is in doubt is the last.
        (format!("{}0\r\n\r\n{inner}", get("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")), &[200]),
        (format!("{}0\r\n\r\n{inner}", get("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n")), &[200]),
        (format!("{}{inner}", get("Content-Length: 0\r\nContent-Length: 5\r\n")), &[400]),
        (format!("{}{inner}", get("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n")), &[400]),
        (format!("{}{inner}", get("Content-Length:\x0b5\r\n")), &[400]),
        // An expectation, met or not.
        (
            format!("{}{inner}{end}", get(&format!("Expect: 100-continue\r\nContent-Length: {size}\r\n"))),
            &[100, 200, 200],
        ),
        (format!("{}{inner}{end}", get(&format!("Expect: something\r\nContent-Length: {size}\r\n"))), &[200, 200]),
        (format!("{}{inner}", get("Expect: 100-continue\r\nContent-Length: 999999\r\n")), &[413]),
        // Without a body what follows is a request of its own, whatever was asked for besides.
        (
            format!(
                "{}{end}",
                get("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")
            ),
            &[200, 200],
        ),
        (format!("HEAD /latest/ HTTP/1.1\r\nContent-Length: {size}\r\n\r\n{inner}{end}"), &[200, 200]),
        (format!("POST /latest/ HTTP/1.1\r\nContent-Length: {size}\r\n\r\n{inner}{end}"), &[404, 200]),
    ];
    for (bytes, expected) in smuggled {
        let answer = answers(&web, bytes.as_bytes());
        assert_eq!(statuses(&answer), expected, "{bytes}\n{answer}");
        assert!(!answer.to_ascii_lowercase().contains("token-ttl"), "{bytes}\n{answer}");
    }
    let token = answers(&web, format!("{}{inner}{end}", get("")).as_bytes());
    assert_eq!(statuses(&token), [200, 200, 200], "what is a request of its own is answered");
}

#[test]
fn of_a_target_only_the_path_counts_and_the_host_is_nobodys() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    for (bytes, body) in [
        (format!("GET http://169.254.169.254{ROLE_NAME} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "web"),
        (format!("GET http://example.com{ROLE_NAME} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "web"),
        (format!("GET {ROLE_NAME}?x=/../#y HTTP/1.1\r\nConnection: close\r\n\r\n"), "web"),
        (format!("GET {ROLE_NAME} HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"), "web"),
        (format!("GET {ROLE_NAME} HTTP/1.0\r\n\r\n"), "web"),
        ("GET http://169.254.169.254 HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "latest"),
    ] {
        let answer = answers(&web, bytes.as_bytes());
        assert!(statuses(&answer) == [200] && answer.ends_with(&format!("\r\n\r\n{body}")), "{bytes}\n{answer}");
    }
    for bytes in ["OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n", "GET * HTTP/1.1\r\nConnection: close\r\n\r\n"] {
        assert_eq!(statuses(&answers(&web, bytes.as_bytes())), [404], "{bytes}");
    }
}

// === a flood ===

#[test]
fn a_pod_that_floods_fails_no_request_of_another_and_costs_neither_api_server_nor_sts_anything() {
    let (sandbox, web, other) = with_two_pods();
    // Without a role, so that its requests are nobody's.
    sandbox.annotate("team-a", "idle", &[]);
    let idle = sandbox.add_pod("team-a", "idle-0", "idle").unwrap();
    let _daemon = Daemon::ready(&sandbox, &["--max-connections-per-pod", "64"]);
    assert_eq!((role_status(&web), role_status(&other), role_status(&idle)), (200, 200, 404));
    let asked = || {
        let of_api = sandbox.cloud.kubernetes.requests();
        (of_api.iter().filter(|request| request.verb != "watch").count(), sandbox.cloud.sts.calls() as Vec<Call>)
    };
    let (api_before, sts_before) = asked();
    let (stop, flooded) = (AtomicBool::new(false), AtomicU64::new(0));
    let flood = |pod: &Pod, bytes: &[u8], reads: bool| {
        let _: Result<(), _> = pod.network().enter(|| {
            while !stop.load(Relaxed) {
                let Ok(stream) = TcpStream::connect_timeout(&METADATA, Duration::from_millis(500)) else {
                    continue;
                };
                drop(stream.set_read_timeout(Some(Duration::from_millis(500))));
                let mut connection = Connection(stream);
                let sent = connection.send_bytes(bytes);
                if reads && sent.is_ok() {
                    drop(connection.rest());
                }
                flooded.fetch_add(1, Relaxed);
            }
        });
    };
    let one = format!("GET {ROLE_NAME}web HTTP/1.1\r\nConnection: close\r\n\r\n");
    let advance = format!("GET {ROLE_NAME} HTTP/1.1\r\n\r\n").repeat(200);
    let (flood, one, advance) = (&flood, one.as_bytes(), advance.as_bytes());
    thread::scope(|scope| {
        let _end = End(&stop);
        for pod in [&web, &idle] {
            scope.spawn(move || flood(pod, one, true));
            scope.spawn(move || flood(pod, advance, false));
            scope.spawn(move || flood(pod, b"\x00nonsense\r\n\r\n", false));
            scope.spawn(move || flood(pod, b"", false));
        }
        let start = Instant::now();
        let (mut kept, mut served) = (connect(&other).unwrap(), 0);
        let good = |answer: &Answer| answer.status == 200 && answer.text() == "other";
        while start.elapsed() < Duration::from_secs(4) {
            kept.send("GET", ROLE_NAME, &[]).unwrap();
            let on_kept = kept.answer().unwrap();
            let on_new = ask(&other, "GET", ROLE_NAME, &[]).unwrap();
            assert!(good(&on_kept) && good(&on_new), "{on_kept:?} {on_new:?}");
            served += 2;
        }
        println!("{served} requests of the other pod beside {} connections of the flood", flooded.load(Relaxed));
    });
    assert!(flooded.load(Relaxed) > 500, "that was no flood");
    let overflows = "nstat -asz TcpExtListenOverflows | awk '/Overflows/ { print $2 }'";
    let overflows = sandbox.node().command("sh").args(["-c", overflows]).output().unwrap();
    let overflows = String::from_utf8(overflows.stdout).unwrap().trim().parse::<u64>().unwrap();
    // On a machine that leaves the daemon no time to accept, some are, and come again.
    assert!(overflows * 10 < flooded.load(Relaxed), "{overflows} were kept from the queue of connections");
    let (api_after, sts_after) = asked();
    assert_eq!((api_after, sts_after.len()), (api_before, sts_before.len()));
    eventually("nothing is left of it", || metric(&sandbox, "kube2irsa_connections") == 0.0);
}
