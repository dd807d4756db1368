//! Many requests at once for functions of which nothing runs.

use std::sync::Barrier;
use std::thread;

use serde::Serialize;

use crate::bench::caller::{CallError, Caller, Sample};
use crate::bench::functions::{FUNCTIONS, Function};
use crate::bench::plot::Plot;
use crate::bench::samples::Samples;
use crate::bench::stage::Stage;
use crate::bench::targets::{Bound, Target, target};
use crate::output::error::{Failed, chain};

/// Functions, and requests for them.
const MANY: usize = 20;
const REQUESTS: usize = 200;

/// How a burst went.
#[derive(Debug, Serialize)]
pub struct Figures {
    functions: usize,
    requests: usize,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Medians of the stages that the node reports, microseconds.
    stages_us: Vec<(String, f64)>,
    /// Answers that were wrong or did not come.
    pub wrong: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_wrong: Option<String>,
}

/// Deploys the functions, and calls all of them at once for the first time.
pub fn measure(stage: &Stage<'_>) -> Result<Figures, Failed> {
    let function = &FUNCTIONS[0];
    let directory = stage.prepare(function)?;
    let names: Vec<String> = (0..MANY).map(|number| format!("burst-{number}")).collect();
    for name in &names {
        stage.deploy(function, name, &directory)?;
        stage.session.go_on()?;
    }
    let step = stage
        .progress
        .spinner(format!("{REQUESTS} requests at once"));
    let mut callers = (0..REQUESTS)
        .map(|number| Caller::open(&stage.session.endpoint, &names[number % MANY]))
        .collect::<Result<Vec<_>, _>>()?;
    let barrier = Barrier::new(REQUESTS);
    let mut samples = Samples::default();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (n, caller) in (0u64..).zip(&mut callers) {
            let barrier = &barrier;
            threads.push(scope.spawn(move || {
                barrier.wait();
                once(caller, function, n)
            }));
        }
        for thread in threads {
            let seen = thread
                .join()
                .expect("a measuring thread only counts what it sees");
            match seen {
                Ok(sample) => samples.add(sample),
                Err(reason) => samples.add_wrong(|| reason),
            }
        }
    });
    step.done("measured");
    for name in &names {
        stage.client.delete(name)?;
    }
    Ok(Figures {
        functions: MANY,
        requests: samples.len(),
        p50_us: samples.percentile(50),
        p99_us: samples.percentile(99),
        stages_us: samples.stages(),
        wrong: samples.wrong,
        first_wrong: samples.first_wrong.clone(),
    })
}

fn once(caller: &mut Caller, function: &Function, n: u64) -> Result<Sample, String> {
    let answer = caller.call("restore", &function.event(n));
    let (sample, answer) = answer.map_err(|error: CallError| chain(&error).join(": "))?;
    match function.is_right(n, &answer) {
        true => Ok(sample),
        false => Err(String::from_utf8_lossy(&answer).into_owned()),
    }
}

impl Figures {
    /// The figures for people.
    pub fn text(&self) -> String {
        let ms = |value: Option<f64>| {
            value.map_or("-".to_owned(), |us| format!("{:.1} ms", us / 1000.0))
        };
        let stages: Vec<String> = self
            .stages_us
            .iter()
            .map(|(name, us)| format!("{name} {us:.0}"))
            .collect();
        format!(
            "burst\n{} requests at once for {} functions: p50 {}, p99 {}; {}",
            self.requests,
            self.functions,
            ms(self.p50_us),
            ms(self.p99_us),
            stages.join(", ")
        )
    }

    /// The figures as a chart.
    pub fn plot(&self) -> Plot {
        let bar = |name: &str, us: f64| (name.to_owned(), us / 1e3);
        let ends = [("p50", self.p50_us), ("p99", self.p99_us)];
        let ends = ends.map(|(name, us)| bar(name, us.unwrap_or(0.0)));
        let stages = self.stages_us.iter().map(|(name, us)| bar(name, *us));
        Plot {
            file: "burst",
            title: format!(
                "{} requests at once for {} functions",
                self.requests, self.functions
            ),
            unit: "ms",
            groups: vec![
                ("until the answer".to_owned(), ends.to_vec()),
                ("stages, p50".to_owned(), stages.collect()),
            ],
        }
    }

    /// What is asked of it.
    pub fn targets(&self) -> Vec<Target> {
        let ratio = self.p99_us.zip(self.p50_us).map(|(p99, p50)| p99 / p50);
        vec![target(
            format!("burst of {REQUESTS} cold requests for {MANY} functions: p99 / p50"),
            Bound::AtMost(3.0),
            ratio.ok_or_else(|| "no request was answered".to_owned()),
        )]
    }
}
