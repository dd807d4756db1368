//! The figures: as JSON, and as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use console::style;
use serde::{Serialize, Serializer};

use super::machine::Machine;
use super::paths::BenchPath;
use super::samples::Samples;
use super::targets::Target;
use crate::output::quantity::microseconds;
use crate::output::table::{Align, Table};

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Pause before each request, microseconds.
    pub gap_us: u64,
    /// One for each function.
    pub functions: Vec<FunctionReport>,
    /// What was asked for, and what was reached.
    pub targets: Vec<Target>,
}

/// Figures of one function.
#[derive(Debug, Serialize)]
pub struct FunctionReport {
    /// Its name.
    pub name: String,
    /// Rows of each path, one for each concurrency.
    pub paths: BTreeMap<BenchPath, Vec<Row>>,
    /// Why it has no floor, if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_floor: Option<String>,
}

/// Figures of one path at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Requests in flight.
    pub concurrency: usize,
    /// Timed requests.
    pub n: usize,
    /// Median from request sent to answer read, microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile of it, microseconds.
    pub p99_us: Option<f64>,
    /// Median of each stage, microseconds.
    #[serde(serialize_with = "ordered_map")]
    pub stages_us: Vec<(String, f64)>,
    /// Median of minor faults of an instance that has answered once.
    pub minor_faults: Option<u64>,
    /// Median of its proportional set size, KiB.
    pub pss_kib: Option<u64>,
    /// Median of its unique set size, KiB.
    pub uss_kib: Option<u64>,
    /// Median of what it has copied, KiB.
    pub copied_kib: Option<u64>,
    /// Answers that were wrong or did not come; they are in no other figure.
    pub wrong: u64,
    /// What the first of them was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_wrong: Option<String>,
}

impl Row {
    /// The figures of a path, for people: one line, or two if answers were wrong.
    pub fn line(&self, path: BenchPath) -> String {
        let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), microseconds);
        let mut text = format!(
            "{:8} p50 {}, p99 {}; {}",
            path.name(),
            time(self.p50_us),
            time(self.p99_us),
            self.stages()
        );
        if let Some(reason) = &self.first_wrong {
            let _ = write!(text, "\n{:8} {} wrong, first: {reason}", "", self.wrong);
        }
        text
    }

    /// Medians of the stages, for a table.
    pub fn stages(&self) -> String {
        let stage = |(name, us): &(String, f64)| format!("{name} {us:.0}");
        self.stages_us
            .iter()
            .map(stage)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The figures of `samples`.
    pub fn new(concurrency: usize, samples: &Samples) -> Self {
        Self {
            concurrency,
            n: samples.len(),
            p50_us: samples.percentile(50).map(tenths),
            p99_us: samples.percentile(99).map(tenths),
            stages_us: samples
                .stages()
                .into_iter()
                .map(|(name, us)| (name, tenths(us)))
                .collect(),
            minor_faults: samples.memory(|memory| memory.memory.minor_faults),
            pss_kib: samples.memory(|memory| memory.memory.pss_kib),
            uss_kib: samples.memory(|memory| memory.memory.uss_kib),
            copied_kib: samples.memory(|memory| memory.memory.copied_kib),
            wrong: samples.wrong,
            first_wrong: samples.first_wrong.clone(),
        }
    }
}

impl FunctionReport {
    /// The row of a path at a concurrency.
    pub fn row(&self, path: BenchPath, concurrency: usize) -> Option<&Row> {
        self.paths
            .get(&path)?
            .iter()
            .find(|row| row.concurrency == concurrency)
    }
}

impl Report {
    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        self.functions
            .iter()
            .flat_map(|function| function.paths.values().flatten())
            .map(|row| row.wrong)
            .sum()
    }

    /// Tables for people.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", self.machine);
        for function in &self.functions {
            let _ = write!(
                out,
                "\n{}\n{}\n",
                style(&function.name).bold().cyan(),
                function_table(function)
            );
            if let Some(reason) = &function.no_floor {
                let _ = writeln!(out, "no floor: {reason}");
            }
            for (path, row) in function
                .paths
                .iter()
                .flat_map(|(path, rows)| rows.iter().map(move |row| (path, row)))
            {
                if let Some(reason) = &row.first_wrong {
                    let _ = writeln!(
                        out,
                        "{} {} at {}: {} wrong, first: {reason}",
                        style("✘").red(),
                        path.name(),
                        row.concurrency,
                        row.wrong
                    );
                }
            }
        }
        let _ = write!(
            out,
            "\n{}\n{}",
            style("targets").bold().cyan(),
            targets_table(&self.targets)
        );
        out
    }
}

fn function_table(function: &FunctionReport) -> Table {
    let mut table = Table::new([
        ("path", Align::Left),
        ("at", Align::Right),
        ("n", Align::Right),
        ("p50", Align::Right),
        ("p99", Align::Right),
        ("x floor", Align::Right),
        ("faults", Align::Right),
        ("copied KiB", Align::Right),
        ("uss KiB", Align::Right),
        ("pss KiB", Align::Right),
        ("stages", Align::Left),
    ]);
    let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), microseconds);
    let count =
        |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    for (path, row) in function
        .paths
        .iter()
        .flat_map(|(path, rows)| rows.iter().map(move |row| (path, row)))
    {
        let floor = function
            .row(BenchPath::Floor, row.concurrency)
            .and_then(|floor| floor.p50_us);
        let ratio = row.p50_us.zip(floor).map_or_else(
            || "-".to_owned(),
            |(us, floor)| format!("{:.2}", us / floor),
        );
        table.row([
            path.name().to_owned(),
            row.concurrency.to_string(),
            row.n.to_string(),
            time(row.p50_us),
            time(row.p99_us),
            ratio,
            count(row.minor_faults),
            count(row.copied_kib),
            count(row.uss_kib),
            count(row.pss_kib),
            row.stages(),
        ]);
    }
    table
}

/// The targets, for people.
pub fn targets_table(targets: &[Target]) -> Table {
    let mut table = Table::new([
        ("", Align::Left),
        ("target", Align::Left),
        ("asked", Align::Right),
        ("reached", Align::Right),
        ("", Align::Left),
    ]);
    for target in targets {
        let mark = match target.met {
            Some(true) => style("✔").green(),
            Some(false) => style("✘").red(),
            None => style("?").yellow(),
        };
        let value = target
            .value
            .map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        table.row([
            mark.to_string(),
            target.name.clone(),
            target.asked.to_string(),
            value,
            target.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// A tenth of a microsecond is less than any two runs differ.
fn tenths(us: f64) -> f64 {
    (us * 10.0).round() / 10.0
}

fn ordered_map<S: Serializer>(stages: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(stages.iter().map(|(name, us)| (name, us)))
}
