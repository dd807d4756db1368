//! What is written down when an invocation is over.

use std::time::{Duration, Instant};

use rouse_process::instance::{BootPath, Stage};

use crate::engine::admission::Gate;
use crate::engine::admission::estimate::Observed;
use crate::engine::report::Report;
use crate::engine::runner::Runner;

/// The last lines of an invocation's log.
pub(super) struct End {
    pub note: Option<String>,
    pub started: Duration,
    pub duration: Duration,
    pub request_id: String,
    pub error_type: Option<String>,
    /// For admission, if it can be told.
    pub usage: Option<Usage>,
}

/// What an invocation has taken.
pub(super) struct Usage {
    pub gate: Gate,
    /// From its admission to its answer.
    pub time: Duration,
    /// Processor time.
    pub cpu: Duration,
}

impl End {
    pub fn write(&self, runner: &Runner) {
        let memory = runner.memory_peak();
        if let Some(usage) = &self.usage {
            let observed = Observed {
                time: usage.time,
                cpu: usage.cpu,
                memory,
            };
            let name = &runner.revision.record.name;
            usage.gate.learn(name, &observed);
        }
        let report = Report {
            request_id: &self.request_id,
            duration: self.duration,
            memory_mib: runner.revision.record.settings.memory_mib,
            peak_bytes: memory,
            init: (runner.path == BootPath::Cold).then_some(self.started),
            restore: matches!(
                runner.path,
                BootPath::Restore | BootPath::Fork | BootPath::Parked | BootPath::Rewind
            )
            .then_some(self.started),
            error_type: self.error_type.as_deref(),
        };
        let mut lines: Vec<String> = self
            .note
            .iter()
            .flat_map(|note| note.lines().map(str::to_owned))
            .collect();
        lines.extend(report.lines());
        runner.capture.end(&lines);
    }
}

/// What took how long, in order.
pub(super) fn stages(
    received: Instant,
    launched: Instant,
    delivered: Option<Instant>,
    done: Instant,
    runner: &Runner,
) -> Vec<Stage> {
    let us = |from: Instant, to: Instant| {
        u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
    };
    let mut stages = vec![Stage {
        name: "queue",
        us: us(received, launched),
    }];
    if runner.path != BootPath::Warm {
        stages.extend(runner.stages());
    }
    let delivered = delivered.unwrap_or(done);
    stages.push(Stage {
        name: "start",
        us: us(launched, delivered),
    });
    stages.push(Stage {
        name: "run",
        us: us(delivered, done),
    });
    stages.push(Stage {
        name: "total",
        us: us(received, done),
    });
    stages
}
