//! Where and of what figures were taken.

#![allow(dead_code, reason = "each bench uses a part")]

use std::{fmt::Write as _, fs, process::Command};

use anyhow::Context as _;

/// What `make bench` writes.
pub(crate) const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/results.md");
/// What `make bench-scale` writes, and the former includes.
pub(crate) const SCALE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/scale.md");
/// What much of the time is spent in.
const CRATES: [&str; 6] = ["hyper", "tokio", "rustls", "aws-lc-rs", "aws-sdk-sts", "kube"];

/// A table of date, commit, machine and versions.
pub(crate) fn described() -> anyhow::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let of_cpu =
        |field| cpus.lines().find_map(|line| Some(line.strip_prefix(field)?.trim_start_matches(['\t', ' ', ':'])));
    let processors = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg")?;
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"))?;
    let crates = CRATES.map(|name| format!("{name} {}", version(&lock, name).unwrap_or("of unknown version")));
    let mut text = "| | |\n| --- | --- |\n".to_owned();
    for (what, value) in [
        ("date", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("commit", commit()?),
        ("processors", format!("{processors} × {}", of_cpu("model name").unwrap_or("of unknown kind"))),
        ("busy before the run", format!("{} (load average of a minute)", load.split(' ').next().unwrap_or_default())),
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("compiler", said("rustc", &["--version"])?),
        ("crates", crates.join(", ")),
    ] {
        writeln!(text, "| {what} | {value} |")?;
    }
    Ok(text)
}

/// The commit, and whether something was changed since it besides what benches write.
fn commit() -> anyhow::Result<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changes = said("git", &["status", "--porcelain", "--", ".", ":!bench/results.md", ":!bench/scale.md"])?;
    Ok(if changes.is_empty() { commit } else { format!("{commit}, with changes") })
}

fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1.split('"').next()
}

fn said(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.with_context(|| program.to_owned())?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
