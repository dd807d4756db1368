//! The figures: as JSON, as tables and as charts.

use std::collections::BTreeMap;
use std::fmt::Write;

use console::style;
use serde::Serialize;

use super::fleet::{Idle, Shared};
use super::live::Live;
use super::restores::Seen;
use super::situation::Situation;
use crate::bench::machine::Machine;
use crate::bench::report::targets_table;
use crate::bench::targets::Target;
use crate::output::quantity::{bytes, microseconds};
use crate::output::table::{Align, Table};

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How reads were limited to 500 MB/s, and how fast they were then.
    pub paced: Option<PacedReport>,
    /// One for each function.
    pub functions: Vec<FunctionReport>,
    /// Live instances, if they were measured.
    pub live: Option<Live>,
    /// Functions that share a template, if they were measured.
    pub shared: Option<Shared>,
    /// Idle functions, if they were measured.
    pub idle: Option<Idle>,
    /// What was asked for, and what was reached.
    pub targets: Vec<Target>,
}

/// How reads were limited.
#[derive(Debug, Clone, Serialize)]
pub struct PacedReport {
    /// By what.
    pub by: &'static str,
    /// To what, bytes a second.
    pub limit: u64,
    /// What a program read, bytes a second.
    pub measured: f64,
}

/// Restores of one function.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionReport {
    /// Its name.
    pub name: String,
    /// Pages of its snapshot's pool.
    pub pool_pages: u64,
    /// Of these, pages that are brought in ahead.
    pub hot_pages: u64,
    /// What its snapshot takes on disk, compressed and uncompressed, bytes.
    pub stored_bytes: [u64; 2],
    /// What it takes in DRAM as it is on disk, bytes; zero if it was not tried.
    pub compressed_bytes: u64,
    /// What was seen in each situation.
    pub situations: BTreeMap<Situation, Seen>,
}

impl FunctionReport {
    /// p50 in one situation as a multiple of another one's.
    pub fn ratio(&self, above: Situation, below: Situation) -> Option<f64> {
        let p50 = |situation| self.situations.get(&situation)?.row.p50_us;
        Some(p50(above)? / p50(below)?)
    }
}

impl Report {
    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        let seen = self.functions.iter().flat_map(|f| f.situations.values());
        let others = [
            self.live.map(|live| live.wrong),
            self.shared.map(|shared| shared.wrong),
            self.idle.map(|idle| idle.wrong),
        ];
        seen.map(|seen| seen.row.wrong).sum::<u64>()
            + others.into_iter().flatten().sum::<usize>() as u64
    }

    /// Tables for people.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", self.machine);
        if let Some(paced) = &self.paced {
            let _ = writeln!(
                out,
                "limited reads: {}, measured {:.0} MB/s",
                paced.by,
                paced.measured / 1e6
            );
        }
        for function in &self.functions {
            let _ = write!(
                out,
                "\n{}: {} in its pool, {} hot, {} stored ({} uncompressed)\n{}",
                style(&function.name).bold().cyan(),
                bytes(function.pool_pages * 4096),
                bytes(function.hot_pages * 4096),
                bytes(function.stored_bytes[0]),
                bytes(function.stored_bytes[1]),
                function_table(function)
            );
            for (situation, seen) in &function.situations {
                if let Some(reason) = &seen.row.first_wrong {
                    let _ = writeln!(
                        out,
                        "{} {}: {} wrong, first: {reason}",
                        style("✘").red(),
                        situation.name(),
                        seen.row.wrong
                    );
                }
            }
        }
        if let Some(live) = &self.live {
            let _ = writeln!(
                out,
                "\n{} live instances: one more costs {} KiB (system: {} KiB), {} KiB of it written by it",
                live.many.instances, live.added_kib, live.system_kib, live.private_kib
            );
        }
        if let Some(shared) = &self.shared {
            let _ = writeln!(
                out,
                "{} functions with one template: {} stored of {}, {} in DRAM of {}",
                shared.functions,
                bytes(shared.stored_kib * 1024),
                bytes(shared.full_stored_kib * 1024),
                bytes(shared.dram_kib * 1024),
                bytes(shared.full_dram_kib * 1024)
            );
        }
        if let Some(idle) = &self.idle {
            let _ = writeln!(
                out,
                "{} idle functions: {} KiB in DRAM for each",
                idle.functions, idle.each_kib
            );
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
        ("from", Align::Left),
        ("n", Align::Right),
        ("p50", Align::Right),
        ("p99", Align::Right),
        ("x dram", Align::Right),
        ("faults", Align::Right),
        ("demanded", Align::Right),
        ("prefetched", Align::Right),
        ("read KiB", Align::Right),
        ("stages", Align::Left),
    ]);
    let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), microseconds);
    for (situation, seen) in &function.situations {
        let (row, paged) = (&seen.row, &seen.paged);
        let ratio = function
            .ratio(*situation, Situation::Dram)
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        table.row([
            situation.name().to_owned(),
            row.n.to_string(),
            time(row.p50_us),
            time(row.p99_us),
            ratio,
            format!("{:.0}", paged.faults),
            format!("{:.0}", paged.demanded_pages),
            format!("{:.0}", paged.prefetched_pages),
            format!("{:.0}", paged.read_kib),
            row.stages(),
        ]);
    }
    table
}
