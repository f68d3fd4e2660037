//! All figures that the daemon must keep, in one run: times against a bare hyper server's of the same run, and counts.
//! Writes `bench/results.md`; with names of parts it prints those alone.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod cached;
#[path = "../cluster/mod.rs"]
mod cluster;
mod cold;
mod counts;
mod first;
#[path = "../machine.rs"]
mod machine;
mod place;
mod report;
#[path = "../../tests/support/mod.rs"]
mod support;
mod trouble;

use std::path::Path;

use anyhow::{Context as _, bail};
use report::Report;

type Part = (&'static str, fn(&mut Report) -> anyhow::Result<()>);

const PARTS: [Part; 9] = [
    ("cached", cached::measure),
    ("counts", counts::measure),
    ("first", first::measure),
    ("callers", cold::a_thousand_callers),
    ("node", cold::a_full_node),
    ("unknown", trouble::unknown_address),
    ("upgrade", trouble::rolling_upgrade),
    ("flush", trouble::rules_flushed),
    ("start", trouble::start),
];

fn main() -> anyhow::Result<()> {
    let named = std::env::args().skip(1).filter(|argument| argument != "--bench").collect::<Vec<_>>();
    if named.first().is_some_and(|first| first == "bare") {
        return place::serve_bare(Path::new(named.get(1).context("the body's file is missing")?));
    }
    let names = PARTS.map(|(name, _)| name);
    if let Some(unknown) = named.iter().find(|named| !names.contains(&named.as_str())) {
        bail!("{unknown}: try no argument, or some of {}", names.join(", "));
    }
    let (described, mut report) = (machine::described()?, Report::new());
    for (_, measure) in PARTS.iter().filter(|(name, _)| named.is_empty() || named.iter().any(|named| named == name)) {
        measure(&mut report)?;
    }
    if named.is_empty() { report.write(&described) } else { Ok(()) }
}
