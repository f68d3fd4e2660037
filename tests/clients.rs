//! Other ecosystems' clients, unmodified, in a pod: a tier of its own (`make test-clients`), for it needs
//! Debian's `aws` and boto3 from PyPI.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{fs, path::PathBuf, process::Command, sync::OnceLock, thread};

use sandbox::{
    packages::{self, Package},
    sandbox::{Pod, Sandbox},
};
use support::{Daemon, sandbox};

const NEEDS: &str = "run by make test-clients";
const BOTO3: &str = "boto3==1.44.8";

struct Cluster {
    sandbox: Sandbox,
    web: Pod,
    worker: Pod,
    plain: Pod,
}

fn cluster() -> Cluster {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    sandbox.add_service_account("team-b", "worker", "worker").unwrap();
    sandbox.annotate("team-a", "plain", &[]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let worker = sandbox.add_pod("team-b", "worker-0", "worker").unwrap();
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    Cluster { sandbox, web, worker, plain }
}

/// Runs a program in the pod: its standard output if it succeeds, else what it said.
fn run(sandbox: &Sandbox, pod: &Pod, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = sandbox.in_pod(pod, program).args(arguments).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The client is given the node's role without us, each pod's own with us, and none without a role.
fn assert_each_its_own(program: &str, arguments: &[&str]) {
    let Cluster { sandbox, web, worker, plain } = cluster();
    let without = run(&sandbox, &web, program, arguments).unwrap();
    assert!(without.contains(":assumed-role/node/i-"), "{without}");
    let _daemon = Daemon::ready(&sandbox, &[]);
    let (of_web, of_worker, of_plain) = thread::scope(|scope| {
        let sandbox = &sandbox;
        let ask = |pod| scope.spawn(move || run(sandbox, pod, program, arguments));
        let (of_web, of_worker, of_plain) = (ask(&web), ask(&worker), ask(&plain));
        (of_web.join().unwrap().unwrap(), of_worker.join().unwrap().unwrap(), of_plain.join().unwrap())
    });
    assert!(of_web.contains("assumed-role/web/team-a.web-0-"), "{of_web}");
    assert!(of_worker.contains("assumed-role/worker/team-b.worker-0-"), "{of_worker}");
    let said = of_plain.expect_err("a pod without a role gets none");
    assert!(said.contains("Unable to locate credentials"), "{said}");
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 2, "one for each pod with a role");
}

#[test]
#[ignore = "needs Debian's aws: run by make test-clients"]
fn debians_aws_command_line_gets_each_pods_own_role() {
    // The name may also be that of another one earlier in the path.
    let aws = "/usr/bin/aws";
    packages::ensure(&[Package { command: aws, package: "awscli" }], &mut |line| println!("{line}")).unwrap();
    let version = Command::new(aws).arg("--version").output().unwrap();
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("aws-cli/2."), "{NEEDS}");
    assert_each_its_own(aws, &["sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
}

#[test]
#[ignore = "needs Python and boto3: run by make test-clients"]
fn boto3_gets_each_pods_own_role() {
    let script = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    assert_each_its_own(python().to_str().unwrap(), &["-c", script]);
}

/// A Python with boto3, made once.
fn python() -> &'static PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("boto3");
        let python = folder.join("bin/python");
        let done = folder.join(BOTO3);
        if !done.exists() {
            let run = |program: &str, arguments: &[&str]| {
                assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
            };
            run("python3", &["-m", "venv", "--clear", folder.to_str().unwrap()]);
            run(python.to_str().unwrap(), &["-m", "pip", "install", "--quiet", BOTO3]);
            fs::write(done, "").unwrap();
        }
        python
    })
}
