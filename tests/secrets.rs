//! Secrets leave the daemon by the answers to their pods alone: not by a core dump, not by its memory, and they do not
//! stay in memory longer than they are good for something.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sandbox::sandbox::Pod;
use support::{Daemon, ROLE_NAME, ask, eventually, total};

const PODS: usize = 5;
/// A part of a secret from its middle: the head of what was given back is overwritten by whoever keeps the free memory.
const PART: std::ops::Range<usize> = 8..32;

/// All memory of a process that can have been written to, piece by piece; what is no text is replaced.
fn memory(pid: u32) -> io::Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let writable = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")));
    Ok(writable
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            let mut piece = vec![0; usize::try_from(end - start).unwrap()];
            // A stack that shrank, or an arena that was given back, since it was listed.
            let read = memory.read_at(&mut piece, start).unwrap_or(0);
            piece.truncate(read);
            String::from_utf8_lossy(&piece).into_owned()
        })
        .collect())
}

fn count(memory: &[String], secret: &str) -> usize {
    memory.iter().map(|piece| piece.matches(&secret[PART]).count()).sum()
}

/// How many pieces of service account tokens there are that name one of these pods.
fn count_tokens(memory: &[String], pods: &[&str]) -> usize {
    let names_pod = |text: &&str| {
        (0..4).any(|skip| {
            let whole = text.get(skip..).unwrap_or_default();
            let decoded = URL_SAFE_NO_PAD.decode(&whole[..whole.len() / 4 * 4]).unwrap_or_default();
            let decoded = String::from_utf8_lossy(&decoded);
            pods.iter().any(|pod| decoded.contains(pod))
        })
    };
    let other = |character: char| !character.is_ascii_alphanumeric() && !matches!(character, '-' | '_');
    let texts = memory.iter().flat_map(|piece| piece.split(other));
    texts.filter(|text| text.len() > 64).filter(names_pod).count()
}

/// The pod's secret key and session token.
fn credentials(pod: &Pod) -> [String; 2] {
    let document = ask(pod, "GET", &format!("{ROLE_NAME}web"), &[("Connection", "close")]).unwrap().json();
    ["SecretAccessKey", "Token"].map(|name| document[name].as_str().unwrap().to_owned())
}

#[test]
fn what_a_pod_had_is_not_in_memory_when_the_pod_is_gone() {
    let sandbox = support::with_an_account();
    let daemon = Daemon::ready(&sandbox, &[]);
    let pods = (0..PODS).map(|number| sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap());
    let pods = pods.map(|pod| (credentials(&pod), pod)).collect::<Vec<_>>();
    let secrets = pods.iter().map(|(secrets, pod)| (secrets.clone(), pod.uid.clone())).collect::<Vec<_>>();
    let figures = |when: &str| {
        let memory = memory(daemon.process.id()).unwrap();
        let sum = |which: usize| secrets.iter().map(|(secrets, _)| count(&memory, &secrets[which])).sum::<usize>();
        let uids = secrets.iter().map(|(_, uid)| uid.as_str()).collect::<Vec<_>>();
        let figures = [sum(0), sum(1), count_tokens(&memory, &uids)];
        println!("{when}: {figures:?} secret keys, session tokens, service account tokens");
        figures
    };
    let alive = figures("while the pods live");
    assert!(alive[0] >= 2 * PODS && alive[1] >= 2 * PODS, "both documents of each are there, or nothing is looked at");
    for (_, pod) in pods {
        sandbox.remove_pod(pod).unwrap();
    }
    eventually("their credentials are let go", || total(&sandbox, "kube2irsa_sessions") == 0.0);
    let left = figures("when they are gone");
    assert!(left.iter().all(|count| *count <= 1), "{left:?}: more than the last answer on a connection that is kept");
    sandbox.cloud.reset_api_connections();
    sandbox.cloud.reset_other_connections();
    eventually("nothing is left when those are closed", || figures("when connections are closed") == [0, 0, 0]);
}
