//! `docs/clients.md`, made of what a run of the whole matrix saw.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    catalogue::{CLIENTS, Client},
    columns::{Cell, Column, LIFE, OUTAGE},
    install::tools,
};

const INTRODUCTION: &str = "\
# Clients

What unmodified clients do with kube2irsa, each in a pod of the sandbox: an empty home, no setting of AWS's but the region,
the real redirect, an STS and an S3 that check every signature. What each of them says to the metadata service is read from
the pod's link. A cell is green when the ARN that comes back is that of the pod's own session, session name included (with no
role: when there is none). Before, in the same sandbox without kube2irsa, each client got the node's role.

This page is written by `make clients`, which takes twenty minutes; `make test-clients` tries each client once. The
clients are declared in `tests/clients/catalogue.rs`.
";

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

/// Writes the page.
pub(crate) fn write(all: &[(Column, Vec<Cell>)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md");
    fs::write(path, page(all)).unwrap();
}

fn page(all: &[(Column, Vec<Cell>)]) -> String {
    let mut page = String::from(INTRODUCTION);
    let cell = |column: Column, client: &Client| {
        let (_, cells) = all.iter().find(|(found, _)| *found == column)?;
        cells.iter().find(|cell| cell.client.name == client.name)
    };
    let mut languages = CLIENTS.iter().map(|client| client.language).collect::<Vec<_>>();
    languages.sort_unstable();
    languages.dedup();
    let cells = || all.iter().flat_map(|(_, cells)| cells);
    let green = cells().filter(|cell| cell.verdict.is_ok()).count();
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "\n{} clients in {} languages ({}); {green} of {} cells are green.\n",
        CLIENTS.len(),
        languages.len(),
        languages.join(", "),
        cells().count(),
    );

    page += "## The matrix\n\n";
    page += &row(["client".to_owned()].into_iter().chain(Column::ALL.map(|column| column.to_string())));
    page += &row(["---"; 8].map(str::to_owned));
    for client in CLIENTS {
        let marks = Column::ALL.map(|column| match cell(column, client) {
            None => "–".to_owned(),
            Some(Cell { verdict: Err(_), .. }) => "no".to_owned(),
            Some(cell) if column.is_timed() => cell.told.clone(),
            Some(_) => "yes".to_owned(),
        });
        page += &row([client.title.to_owned()].into_iter().chain(marks));
    }
    page += "\nTimes are from the first packet to the metadata service to its last answer, on a busy machine of two cores. In \
             these three columns STS is asked with the client's first packet: nothing was fetched ahead. –: the client is a \
             command that ends with its one request.\n";

    page += "\n## What is not green\n\n";
    for (column, cells) in all {
        for cell in cells.iter().filter(|cell| cell.verdict.is_err()) {
            let why = cell.client.exceptions.iter().find(|(excepted, _)| excepted == column);
            let why = why.map_or("not known", |(_, why)| *why);
            let error = cell.verdict.as_ref().err().map(String::as_str).unwrap_or_default();
            let _ = writeln!(
                page,
                "- {column}, {}: {why}. It said “{}”, and on the wire:\n",
                cell.client.title,
                plain(error)
            );
            for exchange in &cell.traffic.exchanges {
                let _ = writeln!(page, "      {exchange}");
            }
            page.push('\n');
        }
    }

    page += "## Versions, and what each asks\n\nOf a pod whose credentials nobody has asked for before, with STS at 0 s and at \
             0.7 s (where that differs). `role` and `keys` are the two requests for credentials.\n\n";
    page += &row(["client", "language", "version", "protocol", "requests", "connections"].map(str::to_owned));
    page += &row(["---"; 6].map(str::to_owned));
    for client in CLIENTS {
        let Some(first) = cell(Column::Cold0, client) else { continue };
        let mut story = first.traffic.story();
        if let Some(slow) = cell(Column::Cold700, client).map(|cell| cell.traffic.story()).filter(|slow| *slow != story)
        {
            story += &format!("; at 0.7 s: {slow}");
        }
        page += &row([
            client.title.to_owned(),
            client.language.to_owned(),
            tools().version(client.origin),
            first.traffic.version().to_owned(),
            story,
            first.traffic.connections.to_string(),
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
fn told(all: &[(Column, Vec<Cell>)], column: Column) -> String {
    let mut table = row(["client", "what it did", "requests"].map(str::to_owned));
    table += &row(["---"; 3].map(str::to_owned));
    for cell in all.iter().filter(|(found, _)| *found == column).flat_map(|(_, cells)| cells) {
        let what = match &cell.verdict {
            Ok(()) => plain(&cell.told),
            Err(error) => format!("**not green**: {}", plain(error)),
        };
        table += &row([cell.client.title.to_owned(), what, cell.traffic.summary()]);
    }
    table
}

/// On one line of a table; what a client says can be long.
fn plain(text: &str) -> String {
    const LONGEST: usize = 200;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "))
}
