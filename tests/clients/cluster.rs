//! A sandbox for clients: a role, an object and a pod for each, and what came of running one in its pod.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use sandbox::{
    cloud::{ACCOUNT, BUCKET},
    network::Process,
    sandbox::{Pod, Sandbox},
};
use tempfile::TempDir;

use crate::{
    catalogue::{Asks, Client},
    install::{Tools, tools},
    support,
};

/// The Kubernetes namespace of all of them.
pub(crate) const NAMESPACE: &str = "clients";
/// What every object holds: something that each client can read.
const CONTENTS: &str = "city,country\nRiga,Latvia\n";

pub(crate) struct Cluster {
    pub(crate) sandbox: Sandbox,
    tools: &'static Tools,
    truststore: PathBuf,
}

/// A client that runs.
pub(crate) struct Running {
    process: Process,
    started: Instant,
    lines: Lines,
    reads: JoinHandle<()>,
    said: JoinHandle<String>,
    home: TempDir,
}

/// What a client has written to its standard output so far.
type Lines = Arc<Mutex<Vec<(Instant, String)>>>;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Run {
    /// `None`: it was ended for taking too long.
    pub(crate) status: Option<ExitStatus>,
    /// The lines of its standard output, and when they came.
    pub(crate) lines: Vec<(Instant, String)>,
    /// Its standard error.
    pub(crate) said: String,
    pub(crate) took: Duration,
}

impl Cluster {
    /// Without service accounts; the roles are there, and trust them.
    pub(crate) fn new(clients: &[&Client]) -> Self {
        let tools = tools();
        let sandbox = support::sandbox();
        let truststore = sandbox.directory().join("truststore");
        let mut keytool = Command::new("keytool");
        keytool.args(["-importcert", "-noprompt", "-alias", "sandbox", "-storepass", "sandbox", "-file"]);
        keytool.arg(sandbox.ca_file()).arg("-keystore").arg(&truststore);
        assert!(keytool.output().unwrap().status.success());
        for client in clients {
            let subject = format!("system:serviceaccount:{NAMESPACE}:{}", client.name);
            sandbox.cloud.sts.put_role(&role(client), sandbox.trust_policy(&subject)).unwrap();
            let put = |key: &str, contents: Vec<u8>| sandbox.cloud.s3.put_object(BUCKET, key, contents);
            match client.name {
                "deltalake" => put("deltalake/_delta_log/00000000000000000000.json", b"{}\n".to_vec()),
                "restic" => {
                    for (name, contents) in tools.repository() {
                        put(&format!("restic/{name}"), contents);
                    }
                }
                name => put(name, CONTENTS.into()),
            }
        }
        Self { sandbox, tools, truststore }
    }

    /// The client's pod. Its service account is another's affair.
    pub(crate) fn pod(&self, client: &Client) -> Pod {
        self.sandbox.add_pod(NAMESPACE, &format!("{}-0", client.name), client.name).unwrap()
    }

    /// The client's service account, with its role and these annotations.
    pub(crate) fn annotate(&self, client: &Client, others: &[(&str, &str)]) {
        let role = role(client);
        let annotations = [&[("eks.amazonaws.com/role-arn", &*role)], others].concat();
        self.sandbox.annotate(NAMESPACE, client.name, &annotations);
    }

    /// Starts the client in its pod: an empty home, no setting of AWS's but the region.
    pub(crate) fn start(&self, client: &Client, pod: &Pod, rounds: Rounds) -> Running {
        let home = tempfile::tempdir().unwrap();
        let known = HashMap::from([
            ("{tools}", self.tools.folder.display().to_string()),
            ("{source}", self.tools.source.display().to_string()),
            ("{sandbox}", self.tools.sandbox.to_owned()),
            ("{ca}", self.sandbox.ca_file().display().to_string()),
            ("{truststore}", self.truststore.display().to_string()),
            ("{object}", client.name.to_owned()),
            ("{count}", rounds.count.to_string()),
            ("{pause}", rounds.pause.as_millis().to_string()),
        ]);
        let fill = |text: &str| known.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
        let mut command = self.sandbox.in_pod(pod, &fill(client.command[0]));
        command = command.args(client.command[1..].iter().map(|argument| fill(argument)));
        // It is a setting of AWS's.
        command = command.env_remove("AWS_CA_BUNDLE");
        for (name, value) in client.environment {
            command = command.env(name, fill(value));
        }
        // Some of Python's programs are in the checkout, which stays as it is.
        command = command.env("HOME", home.path()).env("PYTHONPYCACHEPREFIX", self.tools.folder.join("bytecode"));
        command = command.current_dir(home.path());
        let started = Instant::now();
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let lines = Lines::default();
        let reads = thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                let read = BufReader::new(stdout).lines().map_while(Result::ok);
                read.for_each(|line| lines.lock().unwrap().push((Instant::now(), line)));
            }
        });
        let said = thread::spawn(move || {
            let mut said = Vec::new();
            stderr.read_to_end(&mut said).ok();
            String::from_utf8_lossy(&said).into_owned()
        });
        Running { process, started, lines, reads, said, home }
    }

    /// The ARN of the session that STS opened for the client's pod, if it did.
    pub(crate) fn session(&self, client: &Client) -> Option<String> {
        let role = role(client);
        let mut calls = self.sandbox.cloud.sts.calls().into_iter();
        let opened = calls.rfind(|call| call.outcome == "Success" && call.role.as_ref() == Some(&role))?;
        Some(format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/{}", client.name, opened.session_name?))
    }

    /// Who the client was, each time that it was told or had signed a request.
    pub(crate) fn identities(&self, client: &Client, run: &Run) -> Vec<String> {
        match client.asks {
            Asks::Sts => {
                let words = run.lines.iter().flat_map(|(_, line)| line.split_whitespace());
                words.filter(|word| word.starts_with("arn:aws:")).map(str::to_owned).collect()
            }
            Asks::S3 => {
                let its = |key: &str| key.split('/').next() == Some(client.name);
                let calls = self.sandbox.cloud.s3.calls().into_iter();
                let calls = calls.filter(|call| call.outcome == "Success" && call.key.as_deref().is_some_and(its));
                calls.filter_map(|call| call.caller).collect()
            }
        }
    }
}

/// How often a client asks in one process, and what it waits in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) count: u32,
    pub(crate) pause: Duration,
}

impl Rounds {
    pub(crate) const ONE: Self = Self { count: 1, pause: Duration::ZERO };
}

impl Running {
    /// Waits for its end, which it is given after `limit`.
    pub(crate) fn end(self, limit: Duration) -> Run {
        self.end_when(limit, |_| false)
    }

    /// The same, or when it has written `enough`.
    pub(crate) fn end_when(mut self, limit: Duration, enough: impl Fn(&[(Instant, String)]) -> bool) -> Run {
        let mut status = None;
        while status.is_none() && self.started.elapsed() < limit && !enough(&self.lines.lock().unwrap()) {
            thread::sleep(Duration::from_millis(10));
            status = self.process.try_wait().unwrap();
        }
        let took = self.started.elapsed();
        // With what it started itself.
        killpg(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGKILL).ok();
        drop(self.process);
        self.reads.join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        // Where its home was is of no interest.
        let said = self.said.join().unwrap().replace(&*self.home.path().to_string_lossy(), "~");
        Run { status, lines, said, took }
    }
}

impl Run {
    /// The first line that tells of no error.
    pub(crate) fn first_well(&self) -> Option<Instant> {
        self.lines.iter().find(|(_, line)| is_well(line)).map(|(at, _)| *at)
    }

    pub(crate) fn errors(&self) -> usize {
        self.lines.iter().filter(|(_, line)| !is_well(line)).count()
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The last error of its rounds, or all that it said, in one line.
    pub(crate) fn last_words(&self) -> String {
        let error = self.lines.iter().rev().find_map(|(_, line)| line.strip_prefix("error "));
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = || Some(words(&self.said)).filter(|said| !said.is_empty());
        let last = error.map(words).or_else(said).or_else(|| Some(self.lines.last()?.1.clone()));
        let last = last.unwrap_or_else(|| "nothing".to_owned());
        match self.status {
            None => format!("still running after {} s; {last}", self.took.as_secs()),
            Some(status) if status.code().is_none() => format!("{status}; {last}"),
            Some(_) => last,
        }
    }
}

/// Whether a program's line tells of no error.
pub(crate) fn is_well(line: &str) -> bool {
    !line.starts_with("error ")
}

/// The client's role.
pub(crate) fn role(client: &Client) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{}", client.name)
}

/// Does the same for all, so many at a time.
pub(crate) fn for_each<T: Send>(
    clients: &[&'static Client],
    at_once: usize,
    work: impl Fn(&'static Client) -> T + Sync,
) -> Vec<(&'static Client, T)> {
    let (send, next) = mpsc::channel();
    clients.iter().for_each(|client| send.send(*client).unwrap());
    drop(send);
    let next = Mutex::new(next);
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    loop {
                        let Ok(client) = next.lock().unwrap().recv() else { return done };
                        done.push((client, work(client)));
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let place = |name: &str| clients.iter().position(|client| client.name == name);
    done.sort_by_key(|(client, _)| place(client.name));
    done
}
