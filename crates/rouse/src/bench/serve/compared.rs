//! One function on several boot paths in turn, and ratios between them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::bench::functions::Function;
use crate::bench::paths::BenchPath;
use crate::bench::report::Row;
use crate::bench::run::{self, Plan, Subject};
use crate::bench::stage::Stage;
use crate::output::error::Failed;

/// Requests on each path in which is learnt what calls touch.
const LEARNING: usize = 40;

/// What was seen on each path.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Paths(BTreeMap<BenchPath, Row>);

impl Paths {
    /// Deploys a function, lets its calls be learnt, and sends `requests` on each path, one at a time with a pause of
    /// `gap`. The function stays.
    pub fn measure(
        stage: &Stage<'_>,
        function: &Function,
        paths: &[BenchPath],
        requests: usize,
        gap: Duration,
    ) -> Result<Self, Failed> {
        let directory = stage.prepare(function)?;
        stage.deploy(function, function.name, &directory)?;
        let subject = Subject {
            endpoint: &stage.session.endpoint,
            function,
            floor: None,
            paths,
        };
        let plan = Plan {
            requests,
            cold_requests: 0,
            measurements: 3,
            gap,
        };
        let learning = Plan {
            requests: LEARNING,
            ..plan
        };
        let stop = &stage.session.interrupted;
        let label = format!("learning {}", function.name);
        let step = stage.progress.spinner(label);
        run::measure(&subject, 1, learning, stop, &step)?;
        step.done("done");
        let names: Vec<_> = paths.iter().map(|path| path.name()).collect();
        let label = format!("{}: {}", function.name, names.join(", "));
        let timed = run::timed_requests(paths, 1, plan);
        let step = stage.progress.bar(label, timed);
        let samples = run::measure(&subject, 1, plan, stop, &step)?;
        step.done("measured");
        let rows = samples.iter();
        Ok(Self(
            rows.map(|(path, samples)| (*path, Row::new(1, samples)))
                .collect(),
        ))
    }

    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        self.0.values().map(|row| row.wrong).sum()
    }

    /// A line for each path.
    pub fn lines(&self) -> String {
        let rows = self.0.iter();
        rows.map(|(path, row)| row.line(*path) + "\n").collect()
    }

    /// Bars of a chart: p50 and p99 of each path, milliseconds.
    pub fn bars(&self) -> Vec<(String, f64)> {
        let bars = |(path, row): (&BenchPath, &Row)| {
            let bar = |name, us: Option<f64>| {
                let ms = us.unwrap_or(0.0) / 1e3;
                (format!("{}, {name}", path.name()), ms)
            };
            [bar("p50", row.p50_us), bar("p99", row.p99_us)]
        };
        self.0.iter().flat_map(bars).collect()
    }

    /// A figure of one path as a multiple of another's.
    ///
    /// # Errors
    /// Which path has no such figure.
    pub fn ratio(
        &self,
        one: BenchPath,
        other: BenchPath,
        figure: fn(&Row) -> Option<f64>,
    ) -> Result<f64, String> {
        let of = |path: BenchPath| {
            let row = self.0.get(&path).and_then(figure);
            row.ok_or_else(|| format!("no figure for {}", path.name()))
        };
        Ok(of(one)? / of(other)?)
    }
}
