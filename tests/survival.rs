//! Death and trouble: whatever becomes of the daemon or of its state directory, a pod is refused or waits and never gets the
//! node's role, and all is well by itself afterwards. Each test shows first that the pod gets the node's role without us.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs, io,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use sandbox::{
    cloud::NODE_ROLE,
    sandbox::{Pod, Sandbox},
};
use support::{
    Daemon, ROLE_NAME, ask, connect, eventually, http::Connection, metric, role_status, rules, sandbox, sdk,
};

/// What a pod saw that asked for the node's role all the time.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Connections that were refused or closed, and requests that nobody answered in time.
    nothing: AtomicUsize,
    answered: AtomicUsize,
}

/// A pod with a role, which has got the node's without us.
fn exposed_pod(sandbox: &Sandbox) -> (Pod, Connection) {
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let mut old = connect(&web).unwrap();
    old.send("GET", &node_role(), &[]).unwrap();
    assert_eq!(old.answer().unwrap().status, 200, "without us a pod must get the node's role, or this proves nothing");
    assert!(sandbox.cloud.imds.credential_requests() > 0);
    (web, old)
}

fn node_role() -> String {
    format!("{ROLE_NAME}{NODE_ROLE}")
}

/// Asks for the node's role until told to stop, on kept connections for as long as they last.
fn ask_on(pod: &Pod, mut kept: Option<Connection>, keeps: bool, seen: &Seen) {
    while !seen.stop.load(Ordering::Relaxed) {
        let asked = |connection: Option<Connection>| -> io::Result<Connection> {
            let mut connection = connection.map_or_else(|| connect(pod), Ok)?;
            connection.send("GET", &node_role(), &[])?;
            let answer = connection.answer()?;
            assert!(answer.status != 200, "the node's role was handed out");
            Ok(connection)
        };
        match asked(kept.take()) {
            Ok(connection) => {
                seen.answered.fetch_add(1, Ordering::Relaxed);
                kept = keeps.then_some(connection);
            }
            Err(_) => drop(seen.nothing.fetch_add(1, Ordering::Relaxed)),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goes through `trouble` while the pod asks without pause, on new connections, on one kept from before us and on kept ones
/// of ours: the real service hands out nothing, and is not reached. The pod is served when it is over.
fn never_the_nodes(sandbox: &Sandbox, web: &Pod, old: Connection, trouble: impl FnOnce(&Seen)) {
    let seen = Seen::default();
    let before = sandbox.cloud.imds.credential_requests();
    thread::scope(|scope| {
        let asking = [(Some(old), true), (None, true), (None, false)].map(|(kept, keeps)| {
            let seen = &seen;
            scope.spawn(move || ask_on(web, kept, keeps, seen))
        });
        {
            // Also if it fails: the scope waits for them.
            let _stop = Stop(&seen.stop);
            trouble(&seen);
        }
        asking.into_iter().for_each(|asking| asking.join().unwrap());
    });
    let (answered, nothing) = (seen.answered.into_inner(), seen.nothing.into_inner());
    println!("{answered} answers without it, {nothing} times no answer");
    assert!(answered > 0 && nothing > 0);
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
    eventually("the pod is served", || ask(web, "GET", ROLE_NAME, &[]).is_ok_and(|answer| answer.status == 200));
    assert!(sdk(sandbox, web).arn.unwrap().contains("assumed-role/web/"));
}

fn flush_redirect(sandbox: &Sandbox) {
    let flushed = sandbox.node().command("nft").args(["delete", "table", "inet", "kube2irsa"]).status();
    assert!(flushed.unwrap().success());
}

/// Waits until the pod has seen so many more refusals.
fn some_more(of: &AtomicUsize) {
    let before = of.load(Ordering::Relaxed);
    // The kernel says only so often that it refuses; who is not told waits.
    eventually("the pod goes on asking", || of.load(Ordering::Relaxed) > before + 2);
}

#[test]
fn killed_or_ended_in_any_way_it_leaves_refusals_and_goes_on_when_it_is_started_again() {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let mut daemon = Daemon::ready(&sandbox, &[]);
    let installed = rules(&sandbox);
    never_the_nodes(&sandbox, &web, old, |seen| {
        for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT, Signal::SIGKILL] {
            some_more(&seen.answered);
            daemon.process.signal(signal).unwrap();
            let status = daemon.process.wait().unwrap();
            assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
            some_more(&seen.nothing);
            assert_eq!(rules(&sandbox), installed);
            // Nobody is there to put it back.
            flush_redirect(&sandbox);
            some_more(&seen.nothing);
            daemon = Daemon::ready(&sandbox, &[]);
        }
        some_more(&seen.answered);
    });
}

fn stopped_for(time: Duration) {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let mut daemon = Daemon::ready(&sandbox, &[]);
    let installed = rules(&sandbox);
    let mut waits = connect(&web).unwrap();
    never_the_nodes(&sandbox, &web, old, |seen| {
        some_more(&seen.answered);
        daemon.process.signal(Signal::SIGSTOP).unwrap();
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.process.id())).unwrap();
        let threads = threads.map(|thread| thread.unwrap().path().join("status")).collect::<Vec<_>>();
        let stopped = |thread: &PathBuf| fs::read_to_string(thread).is_ok_and(|status| status.contains("State:\tT"));
        eventually("it stands still", || threads.iter().all(stopped));
        waits.send("GET", ROLE_NAME, &[]).unwrap();
        let nothing = waits.answer_to_head().err().map(|error| error.kind());
        assert_eq!(nothing, Some(io::ErrorKind::WouldBlock), "it waits");
        // Nobody is there to put it back.
        flush_redirect(&sandbox);
        some_more(&seen.nothing);
        thread::sleep(time);
        daemon.process.signal(Signal::SIGCONT).unwrap();
        let answer = waits.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (200, "web"), "what waited is answered");
        eventually("the redirect is back", || rules(&sandbox) == installed);
        daemon.wait_until_ready(&sandbox);
        some_more(&seen.answered);
    });
    assert!(daemon.stop().success());
}

#[test]
fn stopped_for_seconds_it_goes_on_where_it_was() {
    stopped_for(Duration::from_secs(3));
}

#[test]
#[ignore = "takes 40 s: make test-survival"]
fn stopped_for_half_a_minute_it_goes_on_where_it_was() {
    stopped_for(Duration::from_secs(30));
}

/// A memory limit of its own; dropped, it is gone.
struct MemoryLimit {
    directory: PathBuf,
    /// The files of the present version of cgroups, or of the one before.
    unified: bool,
}

impl MemoryLimit {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = mounts.filter_map(|mount| {
            let at = Path::new(mount[1]);
            let unified = mount[2] == "cgroup2";
            let controllers = fs::read_to_string(at.join("cgroup.subtree_control")).unwrap_or_default();
            let has_memory =
                if unified { &controllers } else { mount[3] }.split([' ', ',', '\n']).any(|c| c == "memory");
            (mount[2].starts_with("cgroup") && has_memory).then(|| (at.to_owned(), unified))
        });
        let (root, unified) =
            found.max_by_key(|(_, unified)| *unified).expect("no memory controller of cgroups is mounted here");
        let directory = root.join(format!("kube2irsa-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self { directory, unified }
    }

    fn add(&self, pid: u32) {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Lets what is in it have so many bytes more than it has.
    fn leave(&self, bytes: u64) {
        let [usage, limit] = match self.unified {
            true => ["memory.current", "memory.max"],
            false => ["memory.usage_in_bytes", "memory.limit_in_bytes"],
        };
        let usage = fs::read_to_string(self.directory.join(usage)).unwrap().trim().parse::<u64>().unwrap();
        fs::write(self.directory.join(limit), (usage + bytes).to_string()).unwrap();
        if self.unified {
            // Where there is no swap, there is no such file.
            fs::write(self.directory.join("memory.swap.max"), "0").ok();
        } else {
            fs::write(self.directory.join("memory.swappiness"), "0").unwrap();
        }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // What ran in it takes a moment to leave.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
#[ignore = "needs a memory controller of cgroups that it can write to: make test-survival"]
fn killed_for_want_of_memory_it_leaves_refusals_and_goes_on_when_it_is_started_again() {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let limit = MemoryLimit::new();
    // Counted from its beginning: what a process has already is not taken along.
    let go = sandbox.directory().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.02; done; exec \"$@\"", go.display());
    let binary = support::daemon_binary().to_str().unwrap();
    let mut daemon = Daemon::of(&sandbox, sandbox.daemon_under("sh", &["-c", &wait, "sh", binary]));
    limit.add(daemon.process.id());
    fs::write(&go, "").unwrap();
    daemon.wait_until_ready(&sandbox);
    assert_eq!(role_status(&web), 200);
    let installed = rules(&sandbox);
    never_the_nodes(&sandbox, &web, old, |seen| {
        some_more(&seen.answered);
        limit.leave(4 << 20);
        // Heads that do not end.
        let mut flood = Vec::new();
        let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(15_000));
        let status = loop {
            if let Ok(mut connection) = connect(&web) {
                connection.send_bytes(head.as_bytes()).ok();
                flood.push(connection);
            }
            if let Some(status) = daemon.process.try_wait().unwrap() {
                break status;
            }
        };
        println!("killed by {} connections", flood.len());
        assert_eq!(status.signal(), Some(9), "{}", daemon.log());
        drop(flood);
        some_more(&seen.nothing);
        assert_eq!(rules(&sandbox), installed);
        daemon = Daemon::ready(&sandbox, &[]);
        some_more(&seen.answered);
    });
}

/// A disk of its own for the state directory, which this thread and what it starts can see, and nobody else.
struct Disk(PathBuf);

impl Disk {
    fn new(sandbox: &Sandbox) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let at = sandbox.state_dir();
        fs::create_dir(&at).unwrap();
        let disk = Self(at);
        disk.run("mount", &["--make-rprivate", "/"]);
        disk.run("mount", &["-t", "tmpfs", "-o", "size=64k,nr_inodes=16,mode=0700", "tmpfs", disk.0.to_str().unwrap()]);
        disk
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
    }

    /// Neither a byte nor a file more.
    fn fill(&self) {
        fs::write(self.0.join("full"), [0; 1 << 20]).unwrap_err();
        let full = (0..100).any(|number| fs::write(self.0.join(number.to_string()), "").is_err());
        assert!(full);
    }

    fn clear(&self) {
        for file in fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap() == "full" || file.file_name().unwrap().len() < 3 {
                fs::remove_file(file).unwrap();
            }
        }
    }

    /// The disk itself, for all who see it; not the way by which we see it.
    fn become_read_only(&self) {
        self.run("mount", &["-o", "remount,ro", self.0.to_str().unwrap()]);
        self.run("mount", &["-o", "remount,bind,rw", self.0.to_str().unwrap()]);
        assert_eq!(fs::write(self.0.join("1"), "").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    fn become_writable(&self) {
        self.run("mount", &["-o", "remount,rw", self.0.to_str().unwrap()]);
    }

    /// Whether somebody hands over: what is there may be a dead daemon's.
    fn has_offer(&self) -> bool {
        UnixStream::connect(self.0.join("handover.sock")).is_ok()
    }
}

fn lacks(sandbox: &Sandbox, what: &str) -> bool {
    metric(sandbox, &format!("kube2irsa_state_dir_unusable{{for=\"{what}\"}}")) == 1.0
}

fn session_token(web: &Pod) -> String {
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "600")];
    ask(web, "PUT", "/latest/api/token", &ttl).unwrap().text().to_owned()
}

fn status_with(web: &Pod, token: &str) -> u16 {
    ask(web, "GET", ROLE_NAME, &[("X-aws-ec2-metadata-token", token)]).unwrap().status
}

/// Started while nothing can be written, it serves; when something can, it does what it could not.
fn starts_without_a_disk(take: impl Fn(&Disk), give_back: impl Fn(&Disk)) {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let disk = Disk::new(&sandbox);
    take(&disk);
    let mut daemon = Daemon::ready(&sandbox, &[]);
    let log = daemon.log();
    assert!(log.contains("the session keys cannot be kept") && log.contains("the sockets cannot be offered"), "{log}");
    assert!(lacks(&sandbox, "session_keys") && lacks(&sandbox, "hand_over") && !lacks(&sandbox, "rules_lock"));
    assert!(lacks(&sandbox, "admin_socket") && log.contains("--admin-socket"), "{log}");
    let token = session_token(&web);
    assert_eq!(status_with(&web, &token), 200);
    never_the_nodes(&sandbox, &web, old, |seen| {
        some_more(&seen.answered);
        daemon.process.signal(Signal::SIGKILL).unwrap();
        daemon.process.wait().unwrap();
        some_more(&seen.nothing);
        daemon = Daemon::ready(&sandbox, &[]);
        some_more(&seen.answered);
    });
    assert_eq!(status_with(&web, &token), 401, "its keys were nowhere else");
    let token = session_token(&web);
    flush_redirect(&sandbox);
    eventually("rules are kept", || ask(&web, "GET", ROLE_NAME, &[]).is_ok_and(|answer| answer.status == 200));

    give_back(&disk);
    eventually("keys are written, and sockets offered", || disk.0.join("session.key").exists() && disk.has_offer());
    let uses = ["session_keys", "hand_over", "admin_socket"];
    eventually("nothing is lacking", || !uses.iter().any(|what| lacks(&sandbox, what)));
    assert!(UnixStream::connect(sandbox.admin_socket()).is_ok());
    let next = Daemon::started(&sandbox, &[]);
    eventually("the next one took over", || next.log().contains("took over from the daemon that ran here"));
    assert!(daemon.stop().success());
    assert_eq!(status_with(&web, &token), 200, "the keys that it had are the ones that it wrote");
}

#[test]
fn it_starts_with_a_full_disk_and_makes_up_for_it_later() {
    starts_without_a_disk(Disk::fill, Disk::clear);
}

#[test]
fn it_starts_with_a_read_only_disk_and_makes_up_for_it_later() {
    starts_without_a_disk(Disk::become_read_only, Disk::become_writable);
}

#[test]
fn a_directory_that_cannot_even_be_made_is_made_later() {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let disk = Disk::new(&sandbox);
    disk.become_read_only();
    let below = disk.0.join("below");
    let admin_socket = below.join("admin.sock");
    let flags = ["--state-dir", below.to_str().unwrap(), "--admin-socket", admin_socket.to_str().unwrap()];
    let mut daemon = Daemon::ready(&sandbox, &flags);
    let uses = ["session_keys", "hand_over", "rules_lock", "admin_socket"];
    assert!(uses.iter().all(|what| lacks(&sandbox, what)), "{}", daemon.log());
    assert!(daemon.log().contains("the rules are kept without a lock"));
    never_the_nodes(&sandbox, &web, old, |seen| {
        some_more(&seen.answered);
        daemon.process.signal(Signal::SIGKILL).unwrap();
        daemon.process.wait().unwrap();
        some_more(&seen.nothing);
        daemon = Daemon::ready(&sandbox, &flags);
        some_more(&seen.answered);
    });
    disk.become_writable();
    eventually("nothing is lacking", || !uses.iter().any(|what| lacks(&sandbox, what)));
    let lock = fs::File::open(&below).unwrap();
    assert!(matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)), "the rules are this daemon's");
}

#[test]
fn a_disk_that_fills_up_or_becomes_read_only_stops_neither_service_nor_upgrade() {
    let sandbox = sandbox();
    let (web, old) = exposed_pod(&sandbox);
    let disk = Disk::new(&sandbox);
    let mut daemon = Daemon::ready(&sandbox, &[]);
    let token = session_token(&web);
    never_the_nodes(&sandbox, &web, old, |seen| {
        for (trouble, upgrades) in [(Disk::fill as fn(&Disk), 1), (Disk::become_read_only, 2)] {
            trouble(&disk);
            some_more(&seen.answered);
            flush_redirect(&sandbox);
            eventually("rules are kept", || ask(&web, "GET", ROLE_NAME, &[]).is_ok_and(|answer| answer.status == 200));
            // It is handed the sockets; what it can offer itself, it finds out later.
            let next = Daemon::started(&sandbox, &[]);
            let took_over = || next.log().matches("took over from the daemon that ran here").count() == upgrades;
            eventually("the next one took over", took_over);
            assert!(std::mem::replace(&mut daemon, next).stop().success());
            daemon.wait_until_ready(&sandbox);
            assert_eq!(status_with(&web, &token), 200, "the keys can be read");
            disk.become_writable();
            disk.clear();
            eventually("its sockets are offered", || disk.has_offer());
            assert!(!lacks(&sandbox, "hand_over"));
        }
    });
}
