//! Requests that resume a parked instance, against requests that use an idle one again; and what a parked one costs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::compared::Paths;
use crate::bench::functions::{FUNCTIONS, Function};
use crate::bench::paths::BenchPath;
use crate::bench::plot::Plot;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// The paths that are compared.
const PATHS: [BenchPath; 3] = [BenchPath::Warm, BenchPath::Parked, BenchPath::Restore];
/// Instances of a function that are to wait.
pub const WAITING: usize = 2;
/// How long to wait until they do.
const PATIENCE: Duration = Duration::from_secs(20);
/// What one may cost beside 1.3 times the pages that it writes.
const ALLOWANCE: f64 = 256.0 * 1024.0;
const PAGE: u64 = 4096;

/// All functions.
#[derive(Debug, Serialize)]
pub struct Figures {
    functions: Vec<OfFunction>,
}

#[derive(Debug, Serialize)]
struct OfFunction {
    name: String,
    paths: Paths,
    /// Bytes charged to the control group of an instance that waits: its pages, page tables, kernel records and its init.
    waiting_bytes: Option<u64>,
    /// Bytes of the pages that a call is known to write.
    written_bytes: Option<u64>,
}

/// Measures each function on both paths in turn.
pub fn measure(stage: &Stage<'_>, n: usize, gap: Duration) -> Result<Figures, Failed> {
    let mut functions = Vec::new();
    for function in FUNCTIONS {
        functions.push(measure_one(stage, &function, n, gap)?);
        stage.session.go_on()?;
    }
    Ok(Figures { functions })
}

fn measure_one(
    stage: &Stage<'_>,
    function: &Function,
    n: usize,
    gap: Duration,
) -> Result<OfFunction, Failed> {
    let paths = Paths::measure(stage, function, &PATHS, n, gap)?;
    let waiting_bytes = waiting_bytes(stage, function)?;
    let description = stage.client.describe(function.name)?;
    let written = &description["snapshot"]["working_set"]["predicted_written"];
    stage.client.delete(function.name)?;
    Ok(OfFunction {
        name: function.name.to_owned(),
        paths,
        waiting_bytes,
        written_bytes: written.as_u64().map(|pages| pages * PAGE),
    })
}

/// Bytes charged to the control group of an instance that waits, on average.
fn waiting_bytes(stage: &Stage<'_>, function: &Function) -> Result<Option<u64>, Failed> {
    let begin = Instant::now();
    loop {
        let description = stage.client.describe(function.name)?;
        let parked = description["instances"]["parked"].as_u64().unwrap_or(0);
        if parked >= WAITING as u64 || begin.elapsed() > PATIENCE {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    // Charges of what has just ended are taken back a little later.
    thread::sleep(Duration::from_millis(300));
    let charged: Vec<u64> = (waiting(stage, function).into_iter())
        .filter_map(charged_bytes)
        .collect();
    let count = charged.len() as u64;
    Ok((count > 0).then(|| charged.iter().sum::<u64>() / count.max(1)))
}

/// Pids of instances that wait, as `/proc` has them.
pub fn waiting(stage: &Stage<'_>, function: &Function) -> Vec<i32> {
    let interpreter = function.runtime.trim_end_matches(char::is_numeric);
    let all = instances(stage.session.launcher.spawner_pid()).into_iter();
    all.filter(|pid| is_waiting(*pid, interpreter)).collect()
}

/// Children of the spawner that are pid 2 of a pid namespace of their own.
fn instances(spawner: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children"));
    let children = children.unwrap_or_default();
    let is_second = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        line.is_some_and(|ids| ids.split_whitespace().skip(1).eq(["2"]))
    };
    let pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.filter(is_second).collect()
}

/// Is it in the `read` of one byte that ends the restorer's work? An idle instance waits for its next event instead, a
/// blank process for a message.
fn is_waiting(pid: i32, interpreter: &str) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = call.split_whitespace();
    let is_read = words.next() == Some("0");
    let length = words.nth(2);
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = line.split('\0').next().unwrap_or_default();
    let is_ours = program.contains(interpreter) || program.ends_with("/node");
    is_read && length == Some("0x1") && is_ours
}

/// What the memory controller counts for its control group.
pub fn charged_bytes(pid: i32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let file = if controllers.split(',').any(|name| name == "memory") {
            PathBuf::from("/sys/fs/cgroup/memory")
                .join(path)
                .join("memory.usage_in_bytes")
        } else if controllers.is_empty() {
            PathBuf::from("/sys/fs/cgroup")
                .join(path)
                .join("memory.current")
        } else {
            return None;
        };
        fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

impl Figures {
    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        (self.functions.iter())
            .map(|function| function.paths.wrong())
            .sum()
    }

    /// The figures for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for function in &self.functions {
            let _ = writeln!(text, "{}", function.name);
            text.push_str(&function.paths.lines());
            if let (Some(waiting), Some(written)) = (function.waiting_bytes, function.written_bytes)
            {
                let _ = writeln!(
                    text,
                    "a parked instance is charged {} KiB; a call writes {} KiB",
                    waiting / 1024,
                    written / 1024
                );
            }
            text.push('\n');
        }
        text.trim_end().to_owned()
    }

    /// The figures as a chart.
    pub fn plot(&self) -> Plot {
        let group = |function: &OfFunction| (function.name.clone(), function.paths.bars());
        Plot {
            file: "parked",
            title: "An invocation by an idle, a parked and a restored instance".to_owned(),
            unit: "ms",
            groups: self.functions.iter().map(group).collect(),
        }
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        self.functions
            .iter()
            .flat_map(OfFunction::targets)
            .collect()
    }
}

impl OfFunction {
    fn targets(&self) -> Vec<Target> {
        let name = &self.name;
        let ratio = |figure| (self.paths).ratio(BenchPath::Parked, BenchPath::Warm, figure);
        #[expect(
            clippy::cast_precision_loss,
            reason = "bytes of one process fit 52 bits"
        )]
        let memory = match (self.waiting_bytes, self.written_bytes) {
            (Some(waiting), Some(written)) if written > 0 => {
                Ok((waiting as f64 - ALLOWANCE) / written as f64)
            }
            _ => Err("no instance was found waiting, or nothing is known of its pages".to_owned()),
        };
        vec![
            target(
                format!("{name}: parked p50 / warm p50"),
                Bound::AtMost(1.2),
                ratio(|row| row.p50_us),
            ),
            target(
                format!("{name}: parked p99 / warm p99"),
                Bound::AtMost(1.5),
                ratio(|row| row.p99_us),
            ),
            target(
                format!("{name}: (memory of a parked instance - 256 KiB) / its write set"),
                Bound::AtMost(1.3),
                memory,
            ),
        ]
    }
}
