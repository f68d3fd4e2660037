//! Instructions and allocations for one cached request, as valgrind counts them in user space.

use std::{env, fs};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use sandbox::sandbox::METADATA;

use crate::{
    cached::load,
    place::{BARE, Place},
    report::Report,
};

/// What was seen last, and may be seen again with 3 % more. Whoever changes it says in the commit why.
const INSTRUCTIONS: f64 = 13_420.0;
/// Start-up counts differently each time (it gathers randomness from the clock), so that the runs must differ by a lot.
const REQUESTS: [u32; 2] = [6_400, 64_000];
/// Where callgrind's profile is to be kept.
const PROFILE: &str = "KUBE2IRSA_PROFILE";

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    // The bare server answers what a daemon answered.
    place.daemon(&[], &[])?.stop();
    let out = env::var_os(PROFILE).map_or_else(|| place.sandbox.directory().join("counted"), Into::into);
    let callgrind = ["valgrind", "--quiet", "--tool=callgrind", &format!("--callgrind-out-file={}", out.display())]
        .map(str::to_owned);
    let instructions = both(&place, &callgrind, || total(&fs::read_to_string(&out)?, "totals: "))?;
    report.compared("cached request, instructions in user space", instructions);
    report.at_most("the same, and no more than it was", instructions[0].round(), (INSTRUCTIONS * 1.03).round());
    let log = place.sandbox.directory().join("allocated");
    let memcheck =
        ["--tool=memcheck", "--leak-check=no", "--undef-value-errors=no", &format!("--log-file={}", log.display())];
    let memcheck = ["valgrind"].into_iter().chain(memcheck).map(str::to_owned).collect::<Vec<_>>();
    let heap = || fs::read_to_string(&log);
    let allocations = both(&place, &memcheck, || total(&heap()?, "total heap usage: "))?;
    report.compared("cached request, allocations", allocations);
    Ok(())
}

fn total(text: &str, before: &str) -> anyhow::Result<f64> {
    let total = text.lines().find_map(|line| Some(line.split_once(before)?.1)).context("valgrind counted nothing")?;
    Ok(total.split(' ').next().unwrap_or_default().replace(',', "").parse::<f64>()?)
}

/// For a request to the bare server and to the daemon: the difference between two runs of different length. The daemon's
/// longer run is the last.
fn both(place: &Place, tool: &[String], total: impl Fn() -> anyhow::Result<f64>) -> anyhow::Result<[f64; 2]> {
    let under = tool.iter().map(String::as_str).collect::<Vec<_>>();
    let more = f64::from(REQUESTS[1] - REQUESTS[0]);
    let mut bare = Vec::new();
    for requests in REQUESTS {
        let mut process = place.bare(&under)?;
        load(place.pod.network(), BARE, requests)?;
        process.signal(Signal::SIGTERM)?;
        process.wait()?;
        bare.push(total()?);
    }
    let mut ours = Vec::new();
    for requests in REQUESTS {
        let daemon = place.daemon(&[], &under)?;
        load(place.pod.network(), METADATA, requests)?;
        daemon.stop();
        ours.push(total()?);
    }
    Ok([(ours[1] - ours[0]) / more, (bare[1] - bare[0]) / more])
}
