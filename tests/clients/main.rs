//! Other ecosystems' clients, unmodified, each in a pod: an empty home, no setting of AWS's but the region, the real
//! redirect, and a comparison of the ARN that comes back.
//!
//! `make test-clients` runs each client once; `make clients` the whole matrix, of which it writes `docs/clients.md`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod catalogue;
mod cluster;
mod columns;
mod install;
mod page;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::thread;

use catalogue::{CLIENTS, Client};
use columns::{Cell, Column};

/// All, or those that `CLIENTS` names (`CLIENTS=boto3,restic`), for whoever works on one. `COLUMNS_OF_CLIENTS` does the same
/// for the matrix's columns (`COLUMNS_OF_CLIENTS=Cold0,NoRole`).
fn clients() -> Vec<&'static Client> {
    let Ok(names) = std::env::var("CLIENTS") else { return CLIENTS.iter().collect() };
    let named = |name| CLIENTS.iter().find(|client| client.name == name).unwrap_or_else(|| panic!("no client {name}"));
    names.split(',').map(named).collect()
}

/// What is not as expected: a cell that fails without an exception, or does not fail with one.
fn unexpected(column: Column, cells: &[Cell]) -> Vec<String> {
    let mut unexpected = Vec::new();
    for cell in cells {
        let exception = cell.client.exceptions.iter().find(|(excepted, _)| *excepted == column);
        match (&cell.verdict, exception) {
            (Ok(()), None) | (Err(_), Some(_)) => {}
            // One that is seen by chance.
            (Ok(()), Some((Column::Renewal, _))) => {}
            (Ok(()), Some((_, why))) => unexpected.push(format!("{column}: {cell}; but {why}?")),
            (Err(_), None) => unexpected.push(format!("{column}: {cell}")),
        }
    }
    unexpected
}

#[test]
#[ignore = "needs Go, Node, Java and the registries: run by make test-clients"]
fn each_client_gets_the_nodes_role_without_us_and_its_pods_own_with_us() {
    let clients = clients();
    let mut unexpected_ones = Vec::new();
    for (client, verdict) in columns::without_us(&clients) {
        if let Err(error) = verdict {
            unexpected_ones.push(format!("without us: {}: {error}", client.name));
        }
    }
    unexpected_ones.extend(unexpected(Column::Cold0, &Column::Cold0.run(&clients)));
    assert!(unexpected_ones.is_empty(), "{}", unexpected_ones.join("\n"));
    println!("{} clients", clients.len());
}

#[test]
#[ignore = "takes twenty minutes: run by make clients"]
fn the_whole_matrix_is_as_documented() {
    let clients = clients();
    let names = std::env::var("COLUMNS_OF_CLIENTS").ok();
    let wanted =
        |column: &Column| names.as_ref().is_none_or(|names| names.split(',').any(|name| name == format!("{column:?}")));
    let run = |column: Column| {
        let cells = column.run(&clients);
        if clients.len() == CLIENTS.len() {
            page::keep(column, &cells);
        }
        unexpected(column, &cells)
    };
    // What must be in time comes first, alone; what takes longest is mostly waiting.
    let (timed, others) = Column::ALL.into_iter().filter(wanted).partition::<Vec<_>, _>(|column| column.is_timed());
    let (waiting, others) = others.into_iter().partition::<Vec<_>, _>(|column| *column == Column::Renewal);
    let mut unexpected = timed.into_iter().flat_map(run).collect::<Vec<_>>();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| waiting.into_iter().flat_map(run).collect::<Vec<_>>());
        unexpected.extend(others.into_iter().flat_map(run));
        unexpected.extend(waiting.join().unwrap());
    });
    page::write();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
}
