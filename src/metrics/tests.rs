//! The page for operators, made from the definitions, and what all of them keep to.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use http::StatusCode;

use super::{KIND, Kind, Metric, Metrics, RequestKind, STATUS};

const PAGE: &str = "docs/metrics.md";
/// Set, the page is written instead of compared.
const WRITE: &str = "KUBE2IRSA_WRITE_DOCS";
const HEAD: &str = "\
# Metrics

On `/metrics` of `--admin-listen`, in Prometheus's text format. No label holds a pod, a role or an address. What is bold calls
for somebody. All series but those in italics are there from the start, at 0.

This page is made from `src/metrics.rs`, by `make docs`.

## To Grafana and Prometheus

[daemonset/dashboard.json](../daemonset/dashboard.json) is a dashboard for Grafana 10 and later, with any Prometheus as its
source: import it. Its first row says whether pods get their credentials now. [daemonset/alerts.yaml](../daemonset/alerts.yaml)
are alerts, as a file of rules for Prometheus. Both expect

- the job `kube2irsa`, or a PodMonitor of that name;
- the node's name as `instance`: relabel `__meta_kubernetes_pod_node_name` to `instance`;
- that the daemon listens where Prometheus reaches it: `--admin-listen` is on 127.0.0.1 if not told otherwise.

Of these a cached request for credentials pays a counter and a histogram, and no look at the clock more. Figures of
pods and sessions are taken when they are asked for.
";

fn all() -> impl Iterator<Item = &'static Metric> {
    Metrics::SECTIONS.iter().flat_map(|(_, metrics)| *metrics)
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (section, metrics) in Metrics::SECTIONS {
        let _ =
            write!(page, "\n## {section}\n\n| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n");
        for metric in *metrics {
            let name = if metric.on_demand { format!("*`{}`*", metric.name) } else { format!("`{}`", metric.name) };
            let _ = writeln!(page, "| {name} | {} | {} | {} |", metric.kind.name(), labels(metric), says(metric));
        }
    }
    page
}

fn labels(metric: &Metric) -> String {
    let labels = metric.labels.iter().map(|label| {
        let values = label.values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
        if values.is_empty() { format!("`{}`", label.name) } else { format!("`{}` ({values})", label.name) }
    });
    labels.collect::<Vec<_>>().join(", ")
}

/// The sentence that Prometheus is told, with flags and paths as code, and what else there is to say.
fn says(metric: &Metric) -> String {
    let as_code = |word: &str| {
        let code = word.trim_end_matches([',', '.', ':', ';']);
        let is_code = code.starts_with("--") || code.starts_with('/');
        if is_code { format!("`{code}`{}", &word[code.len()..]) } else { word.to_owned() }
    };
    let help = metric.help.split(' ').map(as_code).collect::<Vec<_>>().join(" ");
    if metric.note.is_empty() { help } else { format!("{help} {}", metric.note) }
}

#[test]
fn the_page_for_operators_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = page();
    if std::env::var_os(WRITE).is_some() {
        fs::write(path, page).unwrap();
        return;
    }
    assert!(fs::read_to_string(path).unwrap() == page, "{PAGE} is not what src/metrics.rs says: make docs");
}

#[test]
fn names_say_the_unit_and_whether_it_only_grows() {
    let mut names = BTreeSet::new();
    for metric in all() {
        assert!(names.insert(metric.name), "{} is defined twice", metric.name);
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert_eq!(!metric.buckets.is_empty(), metric.kind == Kind::Histogram, "{}", metric.name);
        assert!(metric.help.ends_with('.') && !metric.help.contains(['`', '|', '\n']), "{}", metric.help);
        assert!(!metric.note.contains(['|', '\n']), "{}", metric.note);
        for label in metric.labels {
            let values = label.values.iter().collect::<BTreeSet<_>>();
            assert_eq!(values.len(), label.values.len(), "{} of {}", label.name, metric.name);
        }
    }
}

#[test]
fn a_series_is_there_before_there_is_something_to_count() {
    let (text, _) = Metrics::new().unwrap().text().unwrap();
    let text = String::from_utf8(text).unwrap();
    for metric in all() {
        for values in metric.series() {
            let labels = metric.labels.iter().zip(&values).map(|(label, value)| format!("{}=\"{value}\"", label.name));
            let labels = labels.collect::<Vec<_>>();
            let sample = if metric.kind == Kind::Histogram { "_count" } else { "" };
            let line = text.lines().find(|line| {
                line.strip_prefix(metric.name)
                    .and_then(|rest| rest.strip_prefix(sample))
                    .is_some_and(|rest| rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label)))
            });
            assert_eq!(line.is_none(), metric.on_demand, "{} {values:?}", metric.name);
        }
    }
}

#[test]
fn a_request_is_counted_by_its_own_kind_and_status() {
    let kinds = [
        RequestKind::Token,
        RequestKind::RoleName,
        RequestKind::RoleDocument,
        RequestKind::Node,
        RequestKind::Allowed,
        RequestKind::ContainerCredentials,
        RequestKind::Other,
    ];
    for (kind, name) in kinds.into_iter().zip(KIND.values) {
        for status in STATUS.values {
            let metrics = Metrics::new().unwrap();
            metrics.answered(kind, status.parse::<StatusCode>().unwrap());
            let text = String::from_utf8(metrics.text().unwrap().0).unwrap();
            let counted =
                text.lines().filter(|line| line.starts_with("kube2irsa_requests_total") && line.ends_with(" 1"));
            let expected = format!("kube2irsa_requests_total{{kind=\"{name}\",status=\"{status}\"}} 1");
            assert_eq!(counted.collect::<Vec<_>>(), [expected]);
        }
    }
}
