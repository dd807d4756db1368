//! The sandbox pool: how long a request waits for a ready sandbox, and what making a used one ready again costs.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bench::functions::FUNCTIONS;
use crate::bench::paths::BenchPath;
use crate::bench::plot::Plot;
use crate::bench::run::{self, Plan, Subject};
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// The pool's figures.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Requests that took a sandbox.
    requests: usize,
    /// From asking for a sandbox to having one, microseconds.
    taken_p50_us: Option<f64>,
    taken_p99_us: Option<f64>,
    /// Sandboxes that were ended and made ready again, one after the other.
    repurposed: u32,
    /// CPU of the spawner and all processes that it made for one of them, microseconds.
    repurpose_cpu_us: f64,
    /// Time for one of them, microseconds.
    repurpose_us: f64,
    /// Answers that were wrong or did not come.
    pub wrong: u64,
}

/// Rounds of ending a sandbox and making it ready again. CPU time is counted in hundredths of a second.
const ROUNDS: u32 = 1000;
const TICK_US: f64 = 10_000.0;

/// Measures both.
pub fn measure(stage: &Stage<'_>, n: usize, gap: Duration) -> Result<Figures, Failed> {
    let step = stage
        .progress
        .spinner("ending sandboxes, and making them ready again".to_owned());
    let (launcher, spawner) = (
        &stage.session.launcher,
        stage.session.launcher.spawner_pid(),
    );
    // The slot that is used again and again is made by the first one.
    launcher.cycle_sandbox()?;
    let (cpu, begin) = (cpu_us(spawner), Instant::now());
    for _ in 0..ROUNDS {
        launcher.cycle_sandbox()?;
    }
    let wall = begin.elapsed().as_secs_f64() * 1e6;
    let cpu = cpu_us(spawner) - cpu;
    step.done("done");
    stage.session.go_on()?;

    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    stage.deploy(function, function.name, &directory)?;
    let paths = [BenchPath::Restore];
    let subject = Subject {
        endpoint: &stage.session.endpoint,
        function,
        floor: None,
        paths: &paths,
    };
    let plan = Plan {
        requests: n,
        cold_requests: 0,
        measurements: 1,
        gap,
    };
    let step = stage.progress.bar(
        "taking ready sandboxes".to_owned(),
        run::timed_requests(&paths, 1, plan),
    );
    let samples = run::measure(&subject, 1, plan, &stage.session.interrupted, &step)?;
    step.done("measured");
    stage.client.delete(function.name)?;
    let samples = samples
        .get(&BenchPath::Restore)
        .cloned()
        .unwrap_or_default();
    Ok(Figures {
        requests: samples.len(),
        taken_p50_us: samples.stage_percentile("sandbox", 50),
        taken_p99_us: samples.stage_percentile("sandbox", 99),
        repurposed: ROUNDS,
        repurpose_cpu_us: cpu / f64::from(ROUNDS),
        repurpose_us: wall / f64::from(ROUNDS),
        wrong: samples.wrong,
    })
}

/// CPU time of a process and of all its children that it has waited for, microseconds.
fn cpu_us(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name: field 3 is the state, utime is field 14, then stime, cutime, cstime.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks = rest.split_whitespace().skip(11).take(4);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        * TICK_US
}

impl Figures {
    /// The figures for people.
    pub fn text(&self) -> String {
        let us = |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{us:.0} us"));
        format!(
            "sandbox pool\n{} requests had a sandbox after p50 {}, p99 {}\n\
             a used sandbox is ready again after {:.0} us, {:.0} us of CPU",
            self.requests,
            us(self.taken_p50_us),
            us(self.taken_p99_us),
            self.repurpose_us,
            self.repurpose_cpu_us
        )
    }

    /// The figures as a chart.
    pub fn plot(&self) -> Plot {
        let bar = |name: &str, us: f64| (name.to_owned(), us / 1e3);
        let taken = [("p50", self.taken_p50_us), ("p99", self.taken_p99_us)];
        let taken = taken.map(|(name, us)| bar(name, us.unwrap_or(0.0)));
        let again = [
            bar("time", self.repurpose_us),
            bar("processor time", self.repurpose_cpu_us),
        ];
        Plot {
            file: "pool",
            title: "Taking a ready sandbox, and making a used one ready again".to_owned(),
            unit: "ms",
            groups: vec![
                ("taking one".to_owned(), taken.to_vec()),
                ("making one ready again".to_owned(), again.to_vec()),
            ],
        }
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        let taken = self.taken_p99_us.map(|us| us / 1000.0);
        vec![
            target(
                "a ready sandbox from the pool, p99, ms".to_owned(),
                Bound::AtMost(0.2),
                taken.ok_or_else(|| "no request reports how long it waited".to_owned()),
            ),
            target(
                "repurposing a sandbox, ms of CPU".to_owned(),
                Bound::AtMost(1.0),
                Ok(self.repurpose_cpu_us / 1000.0),
            ),
        ]
    }
}
