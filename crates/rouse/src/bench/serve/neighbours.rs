//! A steady function, alone and beside others that do harm.
//!
//! Both situations take turns, slice after slice. What makes trouble is sent its next request as soon as it has answered, or
//! was ended; its limits are those that any function of its size has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::lanes::{Lane, Tally, slice};
use crate::bench::caller::Caller;
use crate::bench::functions::{FUNCTIONS, TROUBLE};
use crate::bench::plot::Plot;
use crate::bench::samples::Samples;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::Failed;

/// Paths on which the steady function is called.
const PATHS: [&str; 2] = ["fork", "warm"];
/// What runs beside it: name, and what the troubling function is told to do. A burst is of another function.
const TROUBLES: [(&str, Option<&str>); 5] = [
    ("fork bomb", Some("fork")),
    ("memory hog", Some("memory")),
    ("disk filler", Some("disk")),
    ("output flooder", Some("output")),
    ("burst of 200 requests", None),
];
const BURST: usize = 200;
const BURSTING: &str = "bursting";
/// Turns for each kind of trouble and each path.
const ROUNDS: usize = 4;
const SLICE: Duration = Duration::from_millis(1500);
/// The steady function is not called all the time.
const GAP: Duration = Duration::from_millis(4);
/// For the trouble to begin, and to be over: what it has left is ended then.
const SETTLE: Duration = Duration::from_millis(300);

/// One kind of trouble, on one path.
#[derive(Debug, Serialize)]
struct Row {
    beside: &'static str,
    path: &'static str,
    alone: Seen,
    troubled: Seen,
    /// Requests of the trouble that came to an end, whatever it was.
    trouble_requests: u64,
}

/// What the steady function's callers have seen.
#[derive(Debug, Serialize)]
struct Seen {
    requests: usize,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Stages that the node reports, each with its 99th percentile, microseconds.
    stages_p99_us: Vec<(String, f64)>,
}

impl Seen {
    fn of(samples: &Samples) -> Self {
        let worst = |(name, _): (String, f64)| {
            let us = samples.stage_percentile(&name, 99)?;
            Some((name, us))
        };
        Self {
            requests: samples.len(),
            p50_us: samples.percentile(50),
            p99_us: samples.percentile(99),
            stages_p99_us: samples.stages().into_iter().filter_map(worst).collect(),
        }
    }
}

/// What was seen.
#[derive(Debug, Serialize)]
pub struct Figures {
    rows: Vec<Row>,
    /// Answers of the steady function that were wrong or did not come.
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_wrong: Option<String>,
}

/// Measures all kinds of trouble.
pub fn measure(stage: &Stage<'_>) -> Result<Figures, Failed> {
    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    stage.deploy(function, function.name, &directory)?;
    stage.deploy(function, BURSTING, &directory)?;
    stage.deploy(&TROUBLE, TROUBLE.name, &stage.prepare(&TROUBLE)?)?;
    let turns = TROUBLES.len() * PATHS.len() * ROUNDS;
    let step = stage.progress.bar("neighbours", turns as u64);
    let mut rows = Vec::new();
    let (mut wrong, mut first_wrong) = (0, None);
    for path in PATHS {
        let mut lanes = Lane::to_node(stage, function.name, path, 1)?;
        let warm_up = (Duration::from_millis(500), Duration::ZERO);
        slice(&mut lanes, function, warm_up, &mut Tally::default());
        for (beside, does) in TROUBLES {
            let (mut alone, mut troubled) = (Tally::default(), Tally::default());
            let mut trouble_requests = 0;
            for _ in 0..ROUNDS {
                stage.session.go_on()?;
                slice(&mut lanes, function, (SLICE, GAP), &mut alone);
                let stop = AtomicBool::new(false);
                trouble_requests += thread::scope(|scope| -> Result<u64, Failed> {
                    let maker = scope.spawn(|| make_trouble(stage, does, &stop));
                    thread::sleep(SETTLE);
                    slice(&mut lanes, function, (SLICE, GAP), &mut troubled);
                    stop.store(true, Ordering::Relaxed);
                    maker.join().expect("who makes trouble only counts")
                })?;
                thread::sleep(SETTLE);
                step.advance();
            }
            for tally in [&alone, &troubled] {
                wrong += tally.samples.wrong;
                first_wrong = first_wrong.or_else(|| tally.samples.first_wrong.clone());
            }
            rows.push(Row {
                beside,
                path,
                alone: Seen::of(&alone.samples),
                troubled: Seen::of(&troubled.samples),
                trouble_requests,
            });
        }
    }
    step.done("measured");
    for name in [function.name, BURSTING, TROUBLE.name] {
        stage.client.delete(name)?;
    }
    Ok(Figures {
        rows,
        wrong,
        first_wrong,
    })
}

/// Goes on until it is told to stop, and says how many requests came to an end. Most are to fail.
fn make_trouble(stage: &Stage<'_>, does: Option<&str>, stop: &AtomicBool) -> Result<u64, Failed> {
    let endpoint = &stage.session.endpoint;
    let mut count = 0;
    match does {
        Some(does) => {
            let mut caller = Caller::open(endpoint, TROUBLE.name)?;
            let seconds = SLICE.as_secs_f64() / 2.0;
            let event = format!("{{\"do\": \"{does}\", \"seconds\": {seconds}}}");
            while !stop.load(Ordering::Relaxed) {
                // Ended for its memory, for instance.
                let _ = caller.call("restore", event.as_bytes());
                count += 1;
            }
        }
        None => {
            let open = |_| Caller::open(endpoint, BURSTING);
            let mut callers = (0..BURST).map(open).collect::<Result<Vec<_>, _>>()?;
            while !stop.load(Ordering::Relaxed) {
                thread::scope(|scope| {
                    for caller in &mut callers {
                        // Those that do not fit into the queue are refused.
                        scope.spawn(move || drop(caller.call("restore", b"{\"n\": 1}")));
                    }
                });
                count += BURST as u64;
            }
        }
    }
    Ok(count)
}

impl Figures {
    /// The figures for people.
    pub fn text(&self) -> String {
        let ms =
            |value: Option<f64>| value.map_or("-".to_owned(), |us| format!("{:.2} ms", us / 1e3));
        let mut lines = vec!["neighbours".to_owned()];
        for row in &self.rows {
            lines.push(format!(
                "  {} beside a {}: p50 {} (alone {}), p99 {} (alone {}); {} requests of the trouble",
                row.path,
                row.beside,
                ms(row.troubled.p50_us),
                ms(row.alone.p50_us),
                ms(row.troubled.p99_us),
                ms(row.alone.p99_us),
                row.trouble_requests
            ));
        }
        lines.join("\n")
    }

    /// What is asked of them.
    pub fn targets(&self) -> Vec<Target> {
        let of = |row: &Row| {
            target(
                format!("{} p99 beside a {} / alone", row.path, row.beside),
                Bound::AtMost(2.0),
                (row.troubled.p99_us.zip(row.alone.p99_us))
                    .map(|(troubled, alone)| troubled / alone)
                    .ok_or_else(|| "nothing was answered".to_owned()),
            )
        };
        self.rows.iter().map(of).collect()
    }

    /// The chart.
    pub fn plot(&self) -> Plot {
        let ms = |value: Option<f64>| value.unwrap_or(0.0) / 1e3;
        let group = |row: &Row| {
            let bars = vec![
                ("alone".to_owned(), ms(row.alone.p99_us)),
                ("beside it".to_owned(), ms(row.troubled.p99_us)),
            ];
            (format!("{}, {}", row.beside, row.path), bars)
        };
        Plot {
            file: "neighbours",
            title: "A steady function alone and beside trouble".to_owned(),
            unit: "p99, ms",
            groups: self.rows.iter().map(group).collect(),
        }
    }
}
