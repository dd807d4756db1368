//! Sends the requests: all paths in turn, round after round, so that whatever else the machine does in a second
//! falls on all of them alike.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::caller::{Caller, InstanceMemory, Sample};
use super::floor::{Floor, FloorCommand, FloorError};
use super::functions::Function;
use super::paths::BenchPath;
use super::samples::Samples;
use crate::client::connection::ExchangeError;
use crate::client::endpoint::Endpoint;
use crate::output::error::chain;
use crate::output::progress::Step;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Timed requests on each path.
    pub requests: usize,
    /// Timed requests on the cold path, which takes a hundred times as long.
    pub cold_requests: usize,
    /// Requests on each path whose memory is measured.
    pub measurements: usize,
    /// Pause before each request.
    pub gap: Duration,
}

/// What is measured.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Where the node is.
    pub endpoint: &'a Endpoint,
    /// The function, deployed.
    pub function: &'a Function,
    /// Its floor, if it has one.
    pub floor: Option<&'a FloorCommand>,
    /// Paths to measure.
    pub paths: &'a [BenchPath],
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The floor does not start.
    #[error("the floor does not start")]
    Floor(#[from] FloorError),
    /// The node does not accept connections.
    #[error("no connection to the node")]
    Connect(#[from] ExchangeError),
}

/// Requests in a row on one path at concurrency 8, between two barriers: enough to keep all connections busy, few
/// enough that paths stay interleaved.
const BATCH: usize = 4;
/// Untimed requests of each thread on each path.
const WARM_UP: usize = 3;

/// Measures a function at one concurrency.
pub fn measure(
    subject: &Subject<'_>,
    concurrency: usize,
    plan: Plan,
    stop: &AtomicBool,
    step: &Step,
) -> Result<BTreeMap<BenchPath, Samples>, RunError> {
    let mut drivers = (0..concurrency)
        .map(|_| Driver::open(subject))
        .collect::<Result<Vec<_>, _>>()?;
    let schedule = Schedule::new(subject.paths, concurrency, plan);
    let barrier = Barrier::new(concurrency);
    let mut all: BTreeMap<BenchPath, Samples> = BTreeMap::new();
    thread::scope(|scope| {
        let threads: Vec<_> = drivers
            .iter_mut()
            .map(|driver| scope.spawn(|| driver.run(&schedule, &barrier, plan.gap, stop, step)))
            .collect();
        for thread in threads {
            let seen = thread
                .join()
                .expect("a measuring thread only counts what it sees");
            for (path, samples) in seen {
                all.entry(path).or_default().merge(samples);
            }
        }
    });
    Ok(all)
}

/// Requests that all threads send at the same time, on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    path: BenchPath,
    requests: usize,
    kind: BatchKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BatchKind {
    WarmUp,
    Timed,
    Measured,
}

/// All batches of a run, the same for each thread.
#[derive(Debug)]
struct Schedule(Vec<Batch>);

impl Schedule {
    fn new(paths: &[BenchPath], concurrency: usize, plan: Plan) -> Self {
        let batch = if concurrency == 1 { 1 } else { BATCH };
        let rounds = plan.requests.div_ceil(concurrency * batch).max(1);
        // Cold requests come one at a time, spread evenly over the rounds.
        let cold_rounds = plan.cold_requests.div_ceil(concurrency).clamp(1, rounds);
        let measured = plan.measurements.div_ceil(concurrency).max(1);
        let mut batches = Vec::new();
        let warm_up = paths.iter().map(|path| Batch {
            path: *path,
            requests: if *path == BenchPath::Cold { 1 } else { WARM_UP },
            kind: BatchKind::WarmUp,
        });
        batches.extend(warm_up);
        for round in 0..rounds {
            let is_cold = (round + 1) * cold_rounds / rounds > round * cold_rounds / rounds;
            for index in 0..paths.len() {
                // Each path follows each other one equally often: what a path leaves behind (a sandbox to be made again,
                // an instance to be torn down) falls on all alike.
                let path = paths[(index + round) % paths.len()];
                match path {
                    BenchPath::Cold if is_cold => batches.push(Batch {
                        path,
                        requests: 1,
                        kind: BatchKind::Timed,
                    }),
                    BenchPath::Cold => {}
                    _ => batches.push(Batch {
                        path,
                        requests: batch,
                        kind: BatchKind::Timed,
                    }),
                }
            }
        }
        for _ in 0..measured {
            batches.extend(paths.iter().map(|path| Batch {
                path: *path,
                requests: 1,
                kind: BatchKind::Measured,
            }));
        }
        Self(batches)
    }
}

/// One thread's connection and floor.
struct Driver<'a> {
    function: &'a Function,
    caller: Caller,
    floor: Option<Floor>,
    next: u64,
}

impl<'a> Driver<'a> {
    fn open(subject: &Subject<'a>) -> Result<Self, RunError> {
        Ok(Self {
            function: subject.function,
            caller: Caller::open(subject.endpoint, subject.function.name)?,
            floor: subject.floor.map(Floor::start).transpose()?,
            next: 0,
        })
    }

    fn run(
        &mut self,
        schedule: &Schedule,
        barrier: &Barrier,
        gap: Duration,
        stop: &AtomicBool,
        step: &Step,
    ) -> BTreeMap<BenchPath, Samples> {
        let mut seen: BTreeMap<BenchPath, Samples> = BTreeMap::new();
        for batch in &schedule.0 {
            // A thread that left would leave the others at the barrier for ever: so failures are counted, and a
            // stopped run is walked through without requests.
            let leader = barrier.wait().is_leader();
            if stop.load(Ordering::Relaxed) {
                continue;
            }
            if leader && batch.kind == BatchKind::Timed {
                step.message(batch.path.name());
            }
            let samples = seen.entry(batch.path).or_default();
            for _ in 0..batch.requests {
                if !gap.is_zero() {
                    thread::sleep(gap);
                }
                self.next += 1;
                match self.once(*batch, self.next) {
                    Ok(Seen::Time(sample)) if batch.kind == BatchKind::Timed => samples.add(sample),
                    Ok(Seen::Time(_)) => {}
                    Ok(Seen::Memory(memory)) => samples.add_memory(memory),
                    // The first requests on `warm` find no idle instance: that is what warming up is for.
                    Err(_) if batch.kind == BatchKind::WarmUp => {}
                    Err(reason) => samples.add_wrong(|| reason),
                }
                if batch.kind == BatchKind::Timed {
                    step.advance();
                }
            }
        }
        seen
    }

    fn once(&mut self, batch: Batch, n: u64) -> Result<Seen, String> {
        let event = self.function.event(n);
        let boot = batch.path.name();
        let (seen, answer) = match (batch.path, batch.kind) {
            (BenchPath::Floor, kind) => {
                let floor = self.floor.as_mut().ok_or("there is no floor")?;
                if kind == BatchKind::Measured {
                    floor.measure(&event).map(|(memory, answer)| {
                        (
                            Seen::Memory(InstanceMemory {
                                memory,
                                ..InstanceMemory::default()
                            }),
                            answer,
                        )
                    })
                } else {
                    floor.call(&event).map(|(us, answer)| {
                        (
                            Seen::Time(Sample {
                                us,
                                stages: Vec::new(),
                            }),
                            answer,
                        )
                    })
                }
                .map_err(|error| chain(&error).join(": "))?
            }
            (_, BatchKind::Measured) => self
                .caller
                .measure(boot, &event)
                .map(|(memory, answer)| (Seen::Memory(memory), answer))
                .map_err(|error| chain(&error).join(": "))?,
            _ => self
                .caller
                .call(boot, &event)
                .map(|(sample, answer)| (Seen::Time(sample), answer))
                .map_err(|error| chain(&error).join(": "))?,
        };
        if self.function.is_right(n, &answer) {
            Ok(seen)
        } else {
            Err(format!(
                "a wrong answer to event {n}: {}",
                String::from_utf8_lossy(&answer)
            ))
        }
    }
}

enum Seen {
    Time(Sample),
    Memory(InstanceMemory),
}

/// Timed requests that a run will send, for its progress bar.
pub fn timed_requests(paths: &[BenchPath], concurrency: usize, plan: Plan) -> u64 {
    let batches = Schedule::new(paths, concurrency, plan).0;
    let requests = batches
        .iter()
        .filter(|batch| batch.kind == BatchKind::Timed)
        .map(|batch| batch.requests);
    (requests.sum::<usize>() * concurrency) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        requests: 200,
        cold_requests: 20,
        measurements: 10,
        gap: Duration::ZERO,
    };

    #[test]
    fn every_path_gets_its_requests_at_any_concurrency() {
        for concurrency in [1, 8] {
            let schedule = Schedule::new(&BenchPath::ALL, concurrency, PLAN);
            for path in BenchPath::ALL {
                let count = |kind| {
                    schedule
                        .0
                        .iter()
                        .filter(|batch| batch.path == path && batch.kind == kind)
                        .map(|batch| batch.requests)
                        .sum::<usize>()
                        * concurrency
                };
                let asked = if path == BenchPath::Cold { 20 } else { 200 };
                let timed = count(BatchKind::Timed);
                assert!(
                    (asked..asked + BATCH * concurrency).contains(&timed),
                    "{path:?} at {concurrency}: {timed}"
                );
                assert!(count(BatchKind::Measured) >= 10 && count(BatchKind::WarmUp) >= 1);
            }
        }
    }

    #[test]
    fn no_path_is_always_first_in_a_round() {
        let schedule = Schedule::new(&BenchPath::ALL[..4], 1, PLAN);
        let timed: Vec<_> = schedule
            .0
            .iter()
            .filter(|batch| batch.kind == BatchKind::Timed)
            .map(|batch| batch.path)
            .collect();
        let first: std::collections::BTreeSet<_> = timed.chunks(4).map(|round| round[0]).collect();
        assert_eq!(first.len(), 4);
    }

    #[test]
    fn a_floor_alone_is_measured_by_many_threads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let function = &super::super::functions::FUNCTIONS[0];
        let python = std::path::Path::new("/usr/bin/python3");
        function
            .prepare(python, dir.path(), dir.path())
            .expect("prepare");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"))
            .parse()
            .expect("endpoint");
        let floor = FloorCommand::python(python, dir.path(), function.handler);
        let subject = Subject {
            endpoint: &endpoint,
            function,
            floor: Some(&floor),
            paths: &[BenchPath::Floor],
        };
        let plan = Plan {
            requests: 8,
            cold_requests: 1,
            measurements: 2,
            gap: Duration::ZERO,
        };
        let step = crate::output::progress::Progress::new(true).spinner("floor");
        let samples = measure(&subject, 2, plan, &AtomicBool::new(false), &step).expect("measure");
        let floor = &samples[&BenchPath::Floor];
        assert_eq!(
            (floor.len(), floor.wrong, floor.first_wrong.as_deref()),
            (8, 0, None)
        );
        assert!(
            floor
                .memory(|memory| memory.memory.uss_kib)
                .is_some_and(|kib| kib > 0)
        );
    }
}
