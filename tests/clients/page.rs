//! `docs/clients.md`, made of what a run of the whole matrix saw.

use std::{fmt::Write as _, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    catalogue::{CLIENTS, Client},
    columns::{Cell, Column, LIFE, OUTAGE},
    install::{Tools, tools},
    wire::{Exchange, Traffic},
};

/// What the page needs to know of a cell. It is kept, so that one column can be tried again without the others.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    client: String,
    error: Option<String>,
    told: String,
    story: String,
    summary: String,
    version: String,
    connections: usize,
    wire: Vec<String>,
}

impl From<&Cell> for Record {
    fn from(cell: &Cell) -> Self {
        Self {
            client: cell.client.name.to_owned(),
            error: cell.verdict.as_ref().err().cloned(),
            told: cell.told.clone(),
            story: cell.traffic.story(),
            summary: cell.traffic.summary(),
            version: cell.traffic.version().to_owned(),
            connections: cell.traffic.connections,
            wire: wire(&cell.traffic),
        }
    }
}

/// The requests that were not granted, or all if that was no trouble.
fn wire(traffic: &Traffic) -> Vec<String> {
    let refused = |exchange: &&Exchange| exchange.status != Some(200);
    let wire = match traffic.exchanges.iter().any(|exchange| refused(&exchange)) {
        true => traffic.exchanges.iter().filter(refused).collect::<Vec<_>>(),
        false => traffic.exchanges.iter().collect(),
    };
    wire.into_iter().take(LONGEST_WIRE).map(ToString::to_string).collect()
}

const INTRODUCTION: &str = "\
# Clients

What unmodified clients do with kube2irsa, each in a pod of the sandbox: an empty home, no setting of AWS's but the region,
the real redirect, an STS and an S3 that check every signature. What each of them says to the metadata service is read from
the pod's link. A cell is green when the ARN that comes back is that of the pod's own session, session name included (with no
role: when there is none). Before, in the same sandbox without kube2irsa, each client got the node's role.

This page is written by `make clients`, which takes twenty minutes; `make test-clients` tries each client once. The
clients are declared in `tests/clients/catalogue.rs`.
";

/// How many requests are shown of what is not green.
const LONGEST_WIRE: usize = 12;

const LEFT_OUT: &str = "\
## Not tried

| client | why |
| --- | --- |
| SDK for .NET | NuGet and a .NET runtime are not among what the tests can rely on |
| SDK for PHP | Packagist is not; AsyncAws is in Debian |
| SDKs for Swift and Kotlin | no toolchain in Debian 12 |
| MinIO's client for JavaScript 8.0.7 | it reads `AccessKeyID`, which the metadata service calls `AccessKeyId`: it cannot work on EC2 either |
| Terraform before 2019 | its probe of `/latest` (`Server: EC2ws` within 100 ms) is in no module that can be imported alone; `tests/metadata.rs` checks what it looks for |
| Perl | Debian's modules leave the metadata service to one that is not packaged |
";

/// Keeps what came of a column.
pub(crate) fn keep(column: Column, cells: &[Cell]) {
    let records = cells.iter().map(Record::from).collect::<Vec<_>>();
    fs::write(kept(tools(), column), serde_json::to_string_pretty(&records).unwrap()).unwrap();
}

/// Writes the page of the last try of each column, if each has been tried.
pub(crate) fn write() {
    let mut all = Vec::new();
    for column in Column::ALL {
        let Ok(text) = fs::read_to_string(kept(tools(), column)) else {
            println!("{column} has not been tried: docs/clients.md stays as it is");
            return;
        };
        all.push((column, serde_json::from_str(&text).unwrap()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md");
    fs::write(path, page(&all)).unwrap();
}

fn kept(tools: &Tools, column: Column) -> std::path::PathBuf {
    tools.folder.join(format!("{column:?}.json"))
}

fn page(all: &[(Column, Vec<Record>)]) -> String {
    let mut page = String::from(INTRODUCTION);
    let record = |column: Column, client: &Client| {
        let (_, records) = all.iter().find(|(found, _)| *found == column)?;
        records.iter().find(|record| record.client == client.name)
    };
    let mut languages = CLIENTS.iter().map(|client| client.language).collect::<Vec<_>>();
    languages.sort_unstable();
    languages.dedup();
    let records = || all.iter().flat_map(|(_, records)| records);
    let green = records().filter(|record| record.error.is_none()).count();
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "\n{} clients in {} languages ({}); {green} of {} cells are green.\n",
        CLIENTS.len(),
        languages.len(),
        languages.join(", "),
        records().count(),
    );

    page += "## The matrix\n\n";
    page += &row(["client".to_owned()].into_iter().chain(Column::ALL.map(|column| column.to_string())));
    page += &row(["---"; 8].map(str::to_owned));
    for client in CLIENTS {
        let marks = Column::ALL.map(|column| match record(column, client) {
            None => "–".to_owned(),
            Some(Record { error: Some(_), .. }) => "**no**".to_owned(),
            Some(record) if column.is_timed() => record.told.clone(),
            Some(_) => "yes".to_owned(),
        });
        page += &row([client.title.to_owned()].into_iter().chain(marks));
    }
    page += "\nTimes are from the first packet to the metadata service to its last answer, on a busy machine of two cores. In \
             these three columns STS is asked with the client's first packet: nothing was fetched ahead; what is late is tried again, alone, up to twice. –: the client is a \
             command that ends with its one request.\n";

    page += "\n## What is not green\n\n";
    for (column, records) in all {
        for Record { client, error, wire, .. } in records {
            let Some(error) = error else { continue };
            let client = CLIENTS.iter().find(|known| known.name == client).unwrap();
            let why =
                client.exceptions.iter().find(|(excepted, _)| excepted == column).map_or("not known", |(_, why)| *why);
            let _ = writeln!(page, "**{column}, {}**: {why}. It said: {}\n", client.title, plain(error));
            for exchange in wire {
                let _ = writeln!(page, "    {exchange}");
            }
            page.push('\n');
        }
    }

    page += "## Versions, and what each asks\n\nOf a pod whose credentials nobody has asked for before, with STS at 0 s and at \
             0.7 s (where that differs). `role` and `keys` are the two requests for credentials.\n\n";
    page += &row(["client", "language", "version", "protocol", "requests", "connections"].map(str::to_owned));
    page += &row(["---"; 6].map(str::to_owned));
    for client in CLIENTS {
        let Some(first) = record(Column::Cold0, client) else { continue };
        let mut story = first.story.clone();
        if let Some(slow) = record(Column::Cold700, client).map(|slow| &slow.story).filter(|slow| **slow != story) {
            story += &format!("; at 0.7 s: {slow}");
        }
        page += &row([
            client.title.to_owned(),
            client.language.to_owned(),
            tools().version(client.origin),
            first.version.clone(),
            story,
            first.connections.to_string(),
        ]);
    }

    let _ = writeln!(
        page,
        "\n## Renewal\n\nSessions live {} s, the shortest that STS opens; a process asks every 10 s, past their end.\n",
        LIFE.as_secs()
    );
    page += &told(all, Column::Renewal);
    let _ = writeln!(
        page,
        "\n## STS away, then back\n\nSTS answers 503 to the daemon from before the client starts until {} s later. A process that \
         lives asks every second.\n",
        OUTAGE.as_secs()
    );
    page += &told(all, Column::Outage);
    page += "\n## No role\n\nHow each says that there are no credentials, and after what.\n\n";
    page += &told(all, Column::NoRole);
    page.push('\n');
    page += LEFT_OUT;
    page
}

/// What one column has to tell, and what was asked.
fn told(all: &[(Column, Vec<Record>)], column: Column) -> String {
    let mut table = row(["client", "what it did", "requests"].map(str::to_owned));
    table += &row(["---"; 3].map(str::to_owned));
    for record in all.iter().filter(|(found, _)| *found == column).flat_map(|(_, records)| records) {
        let client = CLIENTS.iter().find(|client| client.name == record.client).unwrap();
        let what = match &record.error {
            None => plain(&record.told),
            Some(error) => format!("**no**: {}", plain(error)),
        };
        table += &row([client.title.to_owned(), what, record.summary.clone()]);
    }
    table
}

/// On one line of a table; what a client says can be long.
fn plain(text: &str) -> String {
    const LONGEST: usize = 200;
    // Some write in colours.
    let text = text.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "))
}
