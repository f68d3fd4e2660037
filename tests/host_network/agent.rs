//! A process in a cgroup of the node's, which does what it is told.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{ChildStdin, ChildStdout, Stdio},
};

use sandbox::{
    network::{Command, Process},
    sandbox::{HostPod, Sandbox},
};
use serde_json::{Value, json};

use crate::support::ROLE_NAME;

const PROGRAM: &str = include_str!("agent.py");

/// What was answered: a status of HTTP, 0 where it was done and there is none, -1 where it could not be.
pub type Done = (i64, String);

pub struct Agent {
    _process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Agent {
    pub fn in_pod(sandbox: &Sandbox, pod: &HostPod) -> Self {
        Self::of(sandbox.in_host_pod(pod, "python3").unwrap())
    }

    pub fn on_node(sandbox: &Sandbox, cgroup: &str) -> Self {
        sandbox.cgroups().unwrap().make(cgroup).unwrap();
        Self::of(sandbox.on_node_in(cgroup, "python3").unwrap())
    }

    pub fn of(command: Command) -> Self {
        let command = command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { _process: process, input, output: BufReader::new(output) }
    }

    pub fn tell(&mut self, what: Value) {
        writeln!(self.input, "{what}").unwrap();
    }

    pub fn told(&mut self) -> Done {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    pub fn does(&mut self, what: Value) -> Done {
        self.tell(what);
        self.told()
    }

    /// A page on a connection of its own.
    pub fn get(&mut self, path: &str) -> Done {
        self.does(json!({"what": "get", "path": path}))
    }

    /// The roles that it is offered.
    pub fn role(&mut self) -> Done {
        self.get(ROLE_NAME)
    }

    /// The same, on this connection.
    pub fn role_on(&mut self, name: &str) -> Done {
        self.does(json!({"what": "ask", "name": name, "path": ROLE_NAME}))
    }
}
