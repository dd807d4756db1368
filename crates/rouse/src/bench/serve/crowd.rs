//! How long an invocation takes while many other instances live and wait.
//!
//! The crowd is parked instances of another function: live processes in sandboxes of their own, stopped before their first
//! instruction. Few and many take turns.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::lanes::{Lane, Tally, slice};
use super::parked;
use crate::bench::functions::FUNCTIONS;
use crate::bench::plot::Plot;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// Live instances beside the one that is called.
const SIZES: [u64; 2] = [10, 1000];
const PATHS: [&str; 2] = ["warm", "restore"];
const ROUNDS: usize = 2;
/// How long the machine is left alone after the crowd came or went: charges and dead processes are cleared up.
const SETTLE: Duration = Duration::from_secs(2);
const SLICE: Duration = Duration::from_secs(3);
const GAP: Duration = Duration::from_millis(5);
/// How long the crowd may take to come.
const PATIENCE: Duration = Duration::from_secs(90);
const CROWD: &str = "crowd";

/// Why there is no crowd.
#[derive(Debug, thiserror::Error)]
#[error("of {asked} instances {found} wait after {} s", PATIENCE.as_secs())]
pub struct Few {
    asked: u64,
    found: u64,
}

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Each path with each size of the crowd.
    rows: Vec<Row>,
    /// Instances that were seen to wait in the larger crowd, each time.
    seen: Vec<usize>,
    /// What the control group of one of them is charged, KiB, on average: its pages, page tables, kernel records and its init.
    instance_kib: f64,
    /// How long the larger crowd took to come, seconds.
    gathering_s: f64,
    /// Answers that were wrong or did not come.
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_wrong: Option<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    path: &'static str,
    instances: u64,
    requests: usize,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Medians of the stages that the node reports, microseconds.
    stages_us: Vec<(String, f64)>,
}

/// Measures with few and with many in turn.
#[expect(
    clippy::cast_precision_loss,
    reason = "memory of a machine in KiB is far below 2^52"
)]
pub fn measure(stage: &Stage<'_>) -> Result<Figures, Failed> {
    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    stage.deploy(function, CROWD, &directory)?;
    stage.deploy(function, function.name, &directory)?;
    let mut lanes = Vec::new();
    for path in PATHS {
        lanes.push(Lane::to_node(stage, function.name, path, 1)?);
    }
    // What is prepared is learnt in the first requests, of both functions.
    let second = (Duration::from_secs(1), Duration::ZERO);
    for lanes in &mut lanes {
        slice(lanes, function, second, &mut Tally::default());
    }
    let mut learning = Lane::to_node(stage, CROWD, "restore", 1)?;
    slice(&mut learning, function, second, &mut Tally::default());

    let mut tallies: Vec<Vec<Tally>> = (SIZES.iter())
        .map(|_| PATHS.iter().map(|_| Tally::default()).collect())
        .collect();
    let (mut seen, mut instance_kib, mut gathering) = (Vec::new(), 0.0, 0.0);
    let steps = ROUNDS * SIZES.len() * PATHS.len();
    let step = stage.progress.bar("with few and many others", steps as u64);
    for _ in 0..ROUNDS {
        for (index, size) in SIZES.into_iter().enumerate() {
            step.message(format!("{size} others"));
            gathering = gather(stage, size)?;
            thread::sleep(SETTLE);
            if size == SIZES[1] {
                let pids = parked::waiting(stage, function);
                let charged = pids.iter().filter_map(|pid| parked::charged_bytes(*pid));
                instance_kib = charged.sum::<u64>() as f64 / 1024.0 / pids.len().max(1) as f64;
                seen.push(pids.len());
            }
            for (lanes, tally) in lanes.iter_mut().zip(&mut tallies[index]) {
                stage.session.go_on()?;
                slice(lanes, function, (SLICE, GAP), tally);
                step.advance();
            }
        }
    }
    step.done("measured");
    stage.client.delete(CROWD)?;
    stage.client.delete(function.name)?;

    let all = || tallies.iter().flatten();
    let mut rows = Vec::new();
    for (size, tallies) in SIZES.into_iter().zip(&tallies) {
        for (path, tally) in PATHS.into_iter().zip(tallies) {
            rows.push(Row {
                path,
                instances: size,
                requests: tally.samples.len(),
                p50_us: tally.samples.percentile(50),
                p99_us: tally.samples.percentile(99),
                stages_us: tally.samples.stages(),
            });
        }
    }
    Ok(Figures {
        rows,
        seen,
        instance_kib,
        gathering_s: gathering,
        wrong: all().map(|tally| tally.samples.wrong).sum(),
        first_wrong: all().find_map(|tally| tally.samples.first_wrong.clone()),
    })
}

/// Has `size` instances wait, and says how long that took, seconds.
fn gather(stage: &Stage<'_>, size: u64) -> Result<f64, Failed> {
    let policy = json!({ "parked_min": size, "parked_max": size });
    stage.client.set_serving(CROWD, &policy)?;
    let begin = Instant::now();
    loop {
        stage.session.go_on()?;
        let found = parked::waiting(stage, &FUNCTIONS[0]).len() as u64;
        // The function that is called has some, too. Processes count, not what the node has given up.
        if (size..=size + parked::WAITING as u64).contains(&found) {
            return Ok(begin.elapsed().as_secs_f64());
        }
        if begin.elapsed() > PATIENCE {
            let asked = size;
            return Err(Few { asked, found }.into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

impl Figures {
    fn row(&self, path: &str, instances: u64) -> Option<&Row> {
        let is_wanted = |row: &&Row| row.path == path && row.instances == instances;
        self.rows.iter().find(is_wanted)
    }

    /// The figures for people.
    pub fn text(&self) -> String {
        let us = |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{us:.0} us"));
        let mut lines = vec![format!(
            "crowd: {:?} instances were seen to wait, the last ones after {:.1} s, with {:.0} KiB each",
            self.seen, self.gathering_s, self.instance_kib
        )];
        for row in &self.rows {
            lines.push(format!(
                "  {} with {} live idle instances: p50 {}, p99 {}",
                row.path,
                row.instances,
                us(row.p50_us),
                us(row.p99_us)
            ));
        }
        lines.join("\n")
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        let [few, many] = SIZES;
        let of = |path| {
            let p50 = |instances| self.row(path, instances).and_then(|row| row.p50_us);
            target(
                format!("{path} p50 with {many} live idle instances / with {few}"),
                Bound::AtMost(1.2),
                (p50(many).zip(p50(few)))
                    .map(|(many, few)| many / few)
                    .ok_or_else(|| "nothing was answered".to_owned()),
            )
        };
        PATHS.into_iter().map(of).collect()
    }

    /// The chart.
    pub fn plot(&self) -> Plot {
        let bars = |path: &&'static str| {
            let rows = self.rows.iter().filter(|row| row.path == *path);
            let bars = rows.map(|row| {
                let name = format!("{} others", row.instances);
                (name, row.p50_us.unwrap_or(0.0) / 1e3)
            });
            ((*path).to_owned(), bars.collect())
        };
        Plot {
            file: "crowd",
            title: "An invocation among few and many live idle instances".to_owned(),
            unit: "p50, ms",
            groups: PATHS.iter().map(bars).collect(),
        }
    }
}
