//! The rows: what, what it must be, what was seen, and whether that holds.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use crate::machine;

const HEAD: &str = "# Results

`make bench` writes this; [README.md](README.md) says how each figure is taken. A ratio is kube2irsa's figure by that of a bare
hyper server in the same run, or what was seen by what it must be. Times are those of one machine; counts are not.
";
const SCALE_IS_MISSING: &str =
    "`make bench-scale` has not been run here; [docs/scale.md](../docs/scale.md) has its figures.\n";

pub(crate) struct Report {
    started: Instant,
    rows: Vec<[String; 5]>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), rows: Vec::new() }
    }

    /// Ours and the bare server's; ours may be so many times as much.
    pub(crate) fn ratio(&mut self, what: &str, [ours, bare]: [f64; 2], most: f64) {
        let ratio = ours / bare;
        let must = format!("≤ {most} × bare");
        self.row(what, must, format!("{} : {}", number(ours), number(bare)), Some(ratio), verdict(ratio <= most));
    }

    /// Ours and the bare server's, for the record.
    pub(crate) fn compared(&mut self, what: &str, [ours, bare]: [f64; 2]) {
        self.row(what, String::new(), format!("{} : {}", number(ours), number(bare)), Some(ours / bare), "");
    }

    pub(crate) fn at_most(&mut self, what: &str, seen: f64, most: f64) {
        let held = verdict(seen <= most);
        self.row(what, format!("≤ {}", number(most)), number(seen), Some(seen / most), held);
    }

    pub(crate) fn exactly(&mut self, what: &str, seen: usize, must: usize) {
        self.row(what, must.to_string(), seen.to_string(), None, verdict(seen == must));
    }

    pub(crate) fn noted(&mut self, what: &str, seen: f64) {
        self.row(what, String::new(), number(seen), None, "");
    }

    fn row(&mut self, what: &str, must: String, seen: String, ratio: Option<f64>, verdict: &str) {
        let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        println!("{what:<72} {must:>14} {seen:>20} {ratio:>7} {verdict}");
        self.rows.push([what.to_owned(), must, seen, ratio, verdict.to_owned()]);
    }

    /// Writes all of it, with the last run of `make bench-scale`. `described` is of before the run.
    pub(crate) fn write(&self, described: &str) -> anyhow::Result<()> {
        let mut text =
            format!("{HEAD}\n{described}\n| what | must be | seen | ratio | |\n| --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            writeln!(text, "| {} |", row.join(" | "))?;
        }
        let missed = self.rows.iter().filter(|row| row[4] == verdict(false)).count();
        writeln!(
            text,
            "\n{missed} missed; {} s in all.\n\n## A full node of a large cluster\n",
            self.started.elapsed().as_secs()
        )?;
        text.push_str(&fs::read_to_string(machine::SCALE).unwrap_or(SCALE_IS_MISSING.to_owned()));
        fs::write(machine::RESULTS, text)?;
        println!("{missed} missed; {} is written", machine::RESULTS);
        Ok(())
    }
}

fn verdict(held: bool) -> &'static str {
    if held { "held" } else { "**missed**" }
}

/// Three digits or more.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    text.strip_suffix(".00").unwrap_or(&text).to_owned()
}

/// Of sorted values or not, the one that this share of a hundred is not above.
pub(crate) fn percentile(values: &[f64], share: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get((values.len() * share / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

pub(crate) fn largest(values: &[f64]) -> f64 {
    percentile(values, 100)
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
