//! Closed loops: each lane sends one request after the other, all lanes at once, for a slice of time.
//!
//! Kinds of lanes that are compared take turns, slice after slice, so that whatever else the machine does falls on all alike.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::bench::caller::{Caller, Sample};
use crate::bench::floor::Floor;
use crate::bench::functions::Function;
use crate::bench::samples::Samples;
use crate::bench::stage::Stage;
use crate::client::connection::{Connection, Request};
use crate::client::endpoint::Endpoint;
use crate::output::error::{Failed, chain};

/// One connection to whatever answers.
#[derive(Debug)]
pub enum Lane {
    /// The node, on a boot path.
    Node(Caller, &'static str),
    /// A server without rouse.
    Bare(Connection),
    /// An interpreter that forks.
    Floor(Floor),
}

/// What the lanes of one kind have done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Their requests.
    pub samples: Samples,
    /// For how long they were at it, seconds.
    pub seconds: f64,
}

impl Tally {
    /// Right answers a second.
    pub fn rate(&self) -> Option<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "requests of one run are far below 2^52"
        )]
        let answered = self.samples.len() as f64;
        (self.seconds > 0.0).then(|| answered / self.seconds)
    }
}

impl Lane {
    /// `count` lanes to a function of the node.
    pub fn to_node(
        stage: &Stage<'_>,
        function: &str,
        boot: &'static str,
        count: usize,
    ) -> Result<Vec<Self>, Failed> {
        let open = |_| {
            Ok(Self::Node(
                Caller::open(&stage.session.endpoint, function)?,
                boot,
            ))
        };
        (0..count).map(open).collect()
    }

    /// `count` lanes to a server that is not rouse.
    pub fn to_server(endpoint: &Endpoint, count: usize) -> Result<Vec<Self>, Failed> {
        let open = |_| Ok(Self::Bare(Connection::open(endpoint)?));
        (0..count).map(open).collect()
    }

    /// Sends the `n`th event and checks the answer.
    pub fn once(&mut self, function: &Function, n: u64) -> Result<Sample, String> {
        let event = function.event(n);
        let (sample, answer) = match self {
            Self::Node(caller, boot) => caller.call(boot, &event).map_err(|error| told(&error))?,
            Self::Floor(floor) => {
                let (us, answer) = floor.call(&event).map_err(|error| told(&error))?;
                (without_stages(us), answer)
            }
            Self::Bare(connection) => {
                let request = Request {
                    method: "POST",
                    path: "/",
                    headers: &[],
                    body: &event,
                };
                let begin = Instant::now();
                let answer = connection.exchange(&request);
                let us = begin.elapsed().as_secs_f64() * 1e6;
                (
                    without_stages(us),
                    answer.map_err(|error| told(&error))?.body,
                )
            }
        };
        match function.is_right(n, &answer) {
            true => Ok(sample),
            false => Err(format!(
                "a wrong answer to event {n}: {}",
                String::from_utf8_lossy(&answer)
            )),
        }
    }
}

/// All lanes send for `time`, with a pause before each request; what they saw is added to `tally`.
pub fn slice(
    lanes: &mut [Lane],
    function: &Function,
    (time, gap): (Duration, Duration),
    tally: &mut Tally,
) {
    let barrier = Barrier::new(lanes.len());
    let begin = Instant::now();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (lane, first) in lanes.iter_mut().zip(0u64..) {
            let barrier = &barrier;
            threads.push(scope.spawn(move || {
                let mut samples = Samples::default();
                // Numbers that no other lane uses.
                let mut numbers = (first * 1_000_000 + 1)..;
                barrier.wait();
                let begin = Instant::now();
                while begin.elapsed() < time {
                    if !gap.is_zero() {
                        thread::sleep(gap);
                    }
                    match lane.once(function, numbers.next().unwrap_or_default()) {
                        Ok(sample) => samples.add(sample),
                        Err(reason) => samples.add_wrong(|| reason),
                    }
                }
                samples
            }));
        }
        for thread in threads {
            let seen = thread.join();
            tally
                .samples
                .merge(seen.expect("a measuring thread only counts what it sees"));
        }
    });
    tally.seconds += begin.elapsed().as_secs_f64();
}

fn without_stages(us: f64) -> Sample {
    Sample {
        us,
        stages: Vec::new(),
    }
}

fn told(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).join(": ")
}
