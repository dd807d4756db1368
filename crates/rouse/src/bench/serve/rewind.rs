//! Requests that find an instance that was put back to its snapshot, against those that use an idle one again and those
//! that restore one.

use std::time::Duration;

use serde::Serialize;

use super::compared::Paths;
use crate::bench::functions::{FUNCTIONS, Function};
use crate::bench::paths::BenchPath;
use crate::bench::plot::Plot;
use crate::bench::report::Row;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// The paths that are compared.
const PATHS: [BenchPath; 3] = [BenchPath::Warm, BenchPath::Rewind, BenchPath::Restore];

/// All functions.
#[derive(Debug, Serialize)]
pub struct Figures {
    functions: Vec<OfFunction>,
}

#[derive(Debug, Serialize)]
struct OfFunction {
    name: String,
    paths: Paths,
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
    let paths = Paths::measure(stage, function, &PATHS, n, gap)?;
    stage.client.delete(function.name)?;
    Ok(OfFunction {
        name: function.name.to_owned(),
        paths,
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
        let functions = self.functions.iter();
        let tables: String = functions
            .map(|function| format!("{}\n{}", function.name, function.paths.lines()))
            .collect();
        tables.trim_end().to_owned()
    }

    /// The figures as a chart.
    pub fn plot(&self) -> Plot {
        let group = |function: &OfFunction| (function.name.clone(), function.paths.bars());
        Plot {
            file: "rewind",
            title: "An invocation by an idle, a rewound and a restored instance".to_owned(),
            unit: "ms",
            groups: self.functions.iter().map(group).collect(),
        }
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
        let start = |row: &Row| {
            let mut stages = row.stages_us.iter();
            stages.find(|(name, _)| name == "start").map(|(_, us)| *us)
        };
        let name = &self.name;
        vec![
            target(
                format!("{name}: start of rewind p50 / start of restore p50"),
                Bound::AtMost(0.5),
                self.paths
                    .ratio(BenchPath::Rewind, BenchPath::Restore, start),
            ),
            target(
                format!("{name}: rewind p50 / warm p50"),
                Bound::AtMost(1.5),
                self.paths
                    .ratio(BenchPath::Rewind, BenchPath::Warm, |row| row.p50_us),
            ),
        ]
    }
}
