//! What the node costs on a `warm` invocation, against the same handler behind a bare HTTP server.

use std::time::Duration;

use serde::Serialize;

use super::bare::{Bare, Kind};
use super::lanes::{Lane, Tally, slice};
use crate::bench::functions::FUNCTIONS;
use crate::bench::plot::Plot;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// Requests in flight.
pub const CONCURRENCIES: [usize; 2] = [1, 64];
const SLICE: Duration = Duration::from_millis(700);
const ROUNDS: usize = 8;

/// Both concurrencies.
#[derive(Debug, Serialize)]
pub struct Figures {
    concurrencies: Vec<At>,
    /// Answers that were wrong or did not come.
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_wrong: Option<String>,
}

/// One concurrency.
#[derive(Debug, Serialize)]
struct At {
    concurrency: usize,
    warm: Row,
    /// Servers without rouse.
    bare: Vec<(Kind, Row)>,
    /// Medians of the stages that the node reports, microseconds.
    stages_us: Vec<(String, f64)>,
}

/// What was seen of one server.
#[derive(Debug, Serialize)]
struct Row {
    requests: usize,
    per_s: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

impl Row {
    fn of(tally: &Tally) -> Self {
        Self {
            requests: tally.samples.len(),
            per_s: tally.rate(),
            p50_us: tally.samples.percentile(50),
            p99_us: tally.samples.percentile(99),
        }
    }
}

/// Measures all servers in turn.
pub fn measure(stage: &Stage<'_>) -> Result<Figures, Failed> {
    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    stage.deploy(function, function.name, &directory)?;
    let kinds = [Kind::Loop, Kind::Standard];
    let start = |kind: &Kind| Bare::start(stage.python, function, &directory, *kind);
    let servers = kinds.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let mut figures = Figures {
        concurrencies: Vec::new(),
        wrong: 0,
        first_wrong: None,
    };
    for concurrency in CONCURRENCIES {
        let mut lanes = vec![Lane::to_node(stage, function.name, "warm", concurrency)?];
        for server in &servers {
            lanes.push(Lane::to_server(&server.endpoint, concurrency)?);
        }
        let label = format!("warm and bare, {concurrency} at a time");
        let step = stage.progress.bar(label, (ROUNDS * lanes.len()) as u64);
        let mut tallies: Vec<Tally> = lanes.iter().map(|_| Tally::default()).collect();
        for round in 0..=ROUNDS {
            for (lanes, tally) in lanes.iter_mut().zip(&mut tallies) {
                stage.session.go_on()?;
                // The first round finds instances to be started: it is not counted.
                let mut untold = Tally::default();
                let tally = if round == 0 { &mut untold } else { tally };
                slice(lanes, function, (SLICE, Duration::ZERO), tally);
                if round > 0 {
                    step.advance();
                }
            }
        }
        step.done("measured");
        for tally in &tallies {
            figures.wrong += tally.samples.wrong;
            let first = tally.samples.first_wrong.clone();
            figures.first_wrong = figures.first_wrong.take().or(first);
        }
        figures.concurrencies.push(At {
            concurrency,
            warm: Row::of(&tallies[0]),
            bare: kinds
                .into_iter()
                .zip(tallies[1..].iter().map(Row::of))
                .collect(),
            stages_us: tallies[0].samples.stages(),
        });
    }
    stage.client.delete(function.name)?;
    Ok(figures)
}

impl Figures {
    /// The figures for people.
    pub fn text(&self) -> String {
        let us = |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{us:.0} us"));
        let mut lines = vec!["overhead of the node on a warm invocation".to_owned()];
        for at in &self.concurrencies {
            let mut line = |name: &str, row: &Row| {
                lines.push(format!(
                    "  {} at a time, {name}: p50 {}, p99 {}, {:.0} a second",
                    at.concurrency,
                    us(row.p50_us),
                    us(row.p99_us),
                    row.per_s.unwrap_or(0.0)
                ));
            };
            line("warm", &at.warm);
            for (kind, row) in &at.bare {
                line(kind.name(), row);
            }
        }
        lines.join("\n")
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for at in &self.concurrencies {
            for (kind, bare) in &at.bare {
                for (percentile, warm, bare) in [
                    ("p50", at.warm.p50_us, bare.p50_us),
                    ("p99", at.warm.p99_us, bare.p99_us),
                ] {
                    let ratio = warm.zip(bare).map(|(warm, bare)| warm / bare);
                    targets.push(target(
                        format!(
                            "warm {percentile} / bare HTTP server ({}), at concurrency {}",
                            kind.name(),
                            at.concurrency
                        ),
                        Bound::AtMost(1.5),
                        ratio.ok_or_else(|| "nothing was answered".to_owned()),
                    ));
                }
            }
        }
        targets
    }

    /// The chart.
    pub fn plot(&self) -> Plot {
        let ms = |us: Option<f64>| us.unwrap_or(0.0) / 1e3;
        let mut groups = Vec::new();
        for at in &self.concurrencies {
            let mut bars = Vec::new();
            let rows = std::iter::once(("warm", &at.warm));
            let rows = rows.chain(at.bare.iter().map(|(kind, row)| (kind.name(), row)));
            for (name, row) in rows {
                bars.push((format!("{name}, p50"), ms(row.p50_us)));
                bars.push((format!("{name}, p99"), ms(row.p99_us)));
            }
            groups.push((format!("{} at a time", at.concurrency), bars));
        }
        Plot {
            file: "overhead",
            title: "A warm invocation, and the same handler behind a bare HTTP server".to_owned(),
            unit: "ms",
            groups,
        }
    }
}
