//! Whose address a request comes from: whatever the node translates, another node sends here or a pod forges, who asks
//! is the pod that has the address, or nobody.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod elsewhere;
mod forged;
#[path = "../support/mod.rs"]
mod support;
mod translated;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use sandbox::{
    cloud::NODE_ROLE,
    network::{METADATA_ADDRESS, Namespace, PodNetwork},
    sandbox::{METADATA, Pod, Sandbox},
};
use support::{
    ROLE_NAME, ask,
    http::{Answer, Connection},
};

const SHAPES: [PodNetwork; 2] = [PodNetwork::Routed, PodNetwork::Bridge];
/// Requests from an address that is no pod's.
const UNKNOWN: &str = "kube2irsa_unidentified_requests_total{reason=\"unknown\"}";
const LINK_CHANGED: &str = "kube2irsa_suspensions_total{reason=\"link_changed\"}";

/// A pod with a role of its own name.
fn pod(sandbox: &Sandbox, name: &str) -> Pod {
    sandbox.add_service_account("team-a", name, name).unwrap();
    sandbox.add_pod("team-a", name, name).unwrap()
}

/// The role's name, or the status.
fn role(pod: &Pod) -> Result<String, u16> {
    text_or_status(&ask(pod, "GET", ROLE_NAME, &[]).unwrap())
}

/// The role's name, or the status, for who asks from `source`, an address that the namespace has.
fn role_from(namespace: &Namespace, source: Ipv4Addr) -> io::Result<Result<String, u16>> {
    let mut connection = Connection::open_from(namespace, source, SocketAddrV4::new(METADATA_ADDRESS, 80))?;
    connection.send("GET", ROLE_NAME, &[])?;
    Ok(text_or_status(&connection.answer()?))
}

fn text_or_status(answer: &Answer) -> Result<String, u16> {
    if answer.status == 200 { Ok(answer.text().to_owned()) } else { Err(answer.status) }
}

/// What who asks from `source`, an address that the namespace was given, gets, if anything; and how many of the first
/// packets came as far as the node, which has judged nothing by then.
fn forged(sandbox: &Sandbox, namespace: &Namespace, source: Ipv4Addr) -> (Option<Result<String, u16>>, u64) {
    let rule = format!("PREROUTING -s {source}/32 -d {METADATA_ADDRESS}/32 -p tcp --syn");
    sh(sandbox.node(), &format!("iptables -w -t raw -A {rule}"));
    let answer = role_from(namespace, source);
    println!("from {source}: {answer:?}");
    let counted = sh(sandbox.node(), "iptables -w -t raw -vxnL PREROUTING | sed -n '3s/ *\\([0-9]*\\).*/\\1/p'");
    sh(sandbox.node(), &format!("iptables -w -t raw -D {rule}"));
    (answer.ok(), counted.parse().unwrap())
}

/// Answers to what it never asked that the pod has refused.
fn resets_by(pod: &Pod) -> u64 {
    let table = sh(pod.network(), "grep ^Tcp: /proc/net/snmp");
    let mut lines = table.lines().map(|line| line.split(' '));
    let names = lines.next().unwrap();
    let (_, value) = names.zip(lines.next().unwrap()).find(|(name, _)| *name == "OutRsts").unwrap();
    value.parse().unwrap()
}

/// Whether the node's credentials come back from there.
fn gets_the_node_role(namespace: &Namespace, server: SocketAddr) -> bool {
    let document = || {
        let mut connection = Connection::open(namespace, server)?;
        connection.send("GET", &format!("{ROLE_NAME}{NODE_ROLE}"), &[])?;
        connection.answer()
    };
    document().is_ok_and(|answer| answer.status == 200 && answer.text().contains("AccessKeyId"))
}

fn exposed(pod: &Pod) {
    let message = "without us a pod must get the node's role, or this proves nothing";
    assert!(gets_the_node_role(pod.network(), METADATA), "{message}");
}

/// Runs it, and returns what it said.
fn sh(namespace: &Namespace, script: &str) -> String {
    let output = namespace.command("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
