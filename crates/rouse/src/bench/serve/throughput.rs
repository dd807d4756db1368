//! How many restored instances a second the machine sustains, each answering one request, against a bare fork.

use std::time::Duration;

use serde::Serialize;

use super::lanes::{Lane, Tally, slice};
use crate::bench::floor::{Floor, FloorCommand};
use crate::bench::functions::FUNCTIONS;
use crate::bench::plot::Plot;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// Requests in flight for each processor: enough that none is idle while an answer travels.
const LANES_PER_CORE: usize = 2;
/// Long enough that what was made ahead is a small part of it.
const SLICE: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;

/// What was reached.
#[derive(Debug, Serialize)]
pub struct Figures {
    cores: usize,
    /// Requests in flight.
    lanes: usize,
    /// Answers of restored instances a second.
    restore_per_s: Option<f64>,
    /// Answers of forked children a second.
    floor_per_s: Option<f64>,
    /// Medians of the stages that the node reports, microseconds.
    stages_us: Vec<(String, f64)>,
    /// Answers that were wrong or did not come.
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_wrong: Option<String>,
}

/// Measures both in turn.
pub fn measure(stage: &Stage<'_>) -> Result<Figures, Failed> {
    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    stage.deploy(function, function.name, &directory)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = LANES_PER_CORE * cores;
    let mut restores = Lane::to_node(stage, function.name, "restore", count)?;
    let command = FloorCommand::python(stage.python, &directory, function.handler);
    let start = |_| Ok(Lane::Floor(Floor::start(&command)?));
    let mut floors = (0..count).map(start).collect::<Result<Vec<_>, Failed>>()?;
    let step = stage.progress.bar("restores a second", (ROUNDS * 2) as u64);
    let no_gap = Duration::ZERO;
    // What is prepared is learnt in the first requests.
    slice(
        &mut restores,
        function,
        (Duration::from_secs(2), no_gap),
        &mut Tally::default(),
    );
    let (mut restored, mut forked) = (Tally::default(), Tally::default());
    for _ in 0..ROUNDS {
        for (lanes, tally) in [(&mut restores, &mut restored), (&mut floors, &mut forked)] {
            stage.session.go_on()?;
            slice(lanes, function, (SLICE, no_gap), tally);
            step.advance();
        }
    }
    step.done("measured");
    stage.client.delete(function.name)?;
    let first_wrong = restored.samples.first_wrong.clone();
    Ok(Figures {
        cores,
        lanes: count,
        restore_per_s: restored.rate(),
        floor_per_s: forked.rate(),
        stages_us: restored.samples.stages(),
        wrong: restored.samples.wrong + forked.samples.wrong,
        first_wrong: first_wrong.or(forked.samples.first_wrong),
    })
}

impl Figures {
    /// The figures for people.
    pub fn text(&self) -> String {
        let rate = |value: Option<f64>| value.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        let stages: Vec<String> = (self.stages_us.iter())
            .map(|(name, us)| format!("{name} {us:.0}"))
            .collect();
        format!(
            "throughput\n{} answers a second by restores, {} by the floor, on {} cores with {} requests in flight; {}",
            rate(self.restore_per_s),
            rate(self.floor_per_s),
            self.cores,
            self.lanes,
            stages.join(", ")
        )
    }

    /// What is asked of it.
    pub fn targets(&self) -> Vec<Target> {
        let ratio = self.restore_per_s.zip(self.floor_per_s);
        vec![target(
            format!("restores a second / floor's, on {} cores", self.cores),
            Bound::AtLeast(0.6),
            ratio
                .map(|(restore, floor)| restore / floor)
                .ok_or_else(|| "nothing was answered".to_owned()),
        )]
    }

    /// The chart.
    pub fn plot(&self) -> Plot {
        let bar = |name: &str, value: Option<f64>| (name.to_owned(), value.unwrap_or(0.0));
        Plot {
            file: "throughput",
            title: format!("Answers of new instances, {} cores", self.cores),
            unit: "a second",
            groups: vec![(
                "python".to_owned(),
                vec![
                    bar("floor", self.floor_per_s),
                    bar("restore", self.restore_per_s),
                ],
            )],
        }
    }
}
