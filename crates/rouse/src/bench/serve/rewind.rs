//! Requests that find an instance that was put back to its snapshot, against those that use an idle one again and those
//! that restore one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::bench::functions::{FUNCTIONS, Function};
use crate::bench::paths::BenchPath;
use crate::bench::report::Row;
use crate::bench::run::{self, Plan, Subject};
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// The paths that are compared.
const PATHS: [BenchPath; 3] = [BenchPath::Warm, BenchPath::Rewind, BenchPath::Restore];
/// Requests in which is learnt what calls touch.
const LEARNING: usize = 40;

/// All functions.
#[derive(Debug, Serialize)]
pub struct Figures {
    functions: Vec<OfFunction>,
}

#[derive(Debug, Serialize)]
struct OfFunction {
    name: String,
    paths: BTreeMap<BenchPath, Row>,
}

/// Measures each function on all paths in turn. The node must rewind.
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
    let directory = stage.prepare(function)?;
    stage.deploy(function, function.name, &directory)?;
    let subject = Subject {
        endpoint: &stage.session.endpoint,
        function,
        floor: None,
        paths: &PATHS,
    };
    let plan = Plan {
        requests: n,
        cold_requests: 0,
        measurements: 3,
        gap,
    };
    let learning = Plan {
        requests: LEARNING,
        ..plan
    };
    let stop = &stage.session.interrupted;
    let label = format!("{}, rewound, warm and restored", function.name);
    let step = stage.progress.spinner(label);
    run::measure(&subject, 1, learning, stop, &step)?;
    let samples = run::measure(&subject, 1, plan, stop, &step)?;
    step.done("measured");
    stage.client.delete(function.name)?;
    Ok(OfFunction {
        name: function.name.to_owned(),
        paths: samples
            .iter()
            .map(|(path, samples)| (*path, Row::new(1, samples)))
            .collect(),
    })
}

impl Figures {
    /// Answers that were wrong or did not come.
    pub fn wrong(&self) -> u64 {
        let rows = (self.functions.iter()).flat_map(|function| function.paths.values());
        rows.map(|row| row.wrong).sum()
    }

    /// The figures for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for function in &self.functions {
            let _ = writeln!(text, "{}", function.name);
            for (path, row) in &function.paths {
                let _ = writeln!(text, "{}", row.line(*path));
            }
        }
        text.trim_end().to_owned()
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        (self.functions.iter())
            .flat_map(OfFunction::targets)
            .collect()
    }
}

impl OfFunction {
    fn targets(&self) -> Vec<Target> {
        let ratio = |one, other, figure: fn(&Row) -> Option<f64>| {
            let of = |path: BenchPath| {
                let row = self.paths.get(&path).and_then(figure);
                row.ok_or_else(|| format!("no figure for {}", path.name()))
            };
            Ok(of(one)? / of(other)?)
        };
        let start = |row: &Row| {
            let mut stages = row.stages_us.iter();
            stages.find(|(name, _)| name == "start").map(|(_, us)| *us)
        };
        let name = &self.name;
        vec![
            target(
                format!("{name}: start of rewind p50 / start of restore p50"),
                Bound::AtMost(0.5),
                ratio(BenchPath::Rewind, BenchPath::Restore, start),
            ),
            target(
                format!("{name}: rewind p50 / warm p50"),
                Bound::AtMost(1.5),
                ratio(BenchPath::Rewind, BenchPath::Warm, |row| row.p50_us),
            ),
        ]
    }
}
