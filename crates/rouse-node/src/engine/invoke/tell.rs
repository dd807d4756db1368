//! What is told of an invocation that is over: one event of the node's own log, and its trace.
//!
//! Nothing of what a caller sends or a function answers is in it, nor of its environment. The type of an error is the function's own
//! word, so it is cut.

use std::time::{Instant, SystemTime};

use rouse_process::instance::Stage;

use super::{InvokeOutcome, Request};
use crate::metrics::counters::ErrorKind;
use crate::node::Node;
use crate::traces::spans::Finished;

/// Most characters of an error's type.
const MOST_OF_A_TYPE: usize = 128;

impl Node {
    /// At `info` if something ended the function from outside (as often as the limit allows), else at `debug`.
    pub(super) fn log_invocation(
        &self,
        request: &Request<'_>,
        outcome: &InvokeOutcome,
        error: Option<ErrorKind>,
    ) {
        let is_noted = match error {
            None | Some(ErrorKind::Handler | ErrorKind::Response) => None,
            Some(_) => self.ended_log.pass(),
        };
        // Both levels with the same fields: a level is part of a call site.
        macro_rules! told {
            ($level:ident, $held_back:expr) => {
                tracing::$level!(
                    target: "invocation",
                    request_id = outcome.request_id,
                    function = request.revision.record.name,
                    version = outcome.executed_version,
                    boot = outcome.path.name(),
                    error_kind = error.map(ErrorKind::name),
                    error_type = outcome.error_type.as_deref().map(cut),
                    queue_us = of(&outcome.stages, "queue"),
                    start_us = of(&outcome.stages, "start"),
                    run_us = of(&outcome.stages, "run"),
                    total_us = of(&outcome.stages, "total"),
                    boot_us = %Written(boot_stages(&outcome.stages)),
                    held_back = $held_back,
                    "invoked"
                )
            };
        }
        match is_noted {
            Some(held_back) => told!(info, (held_back > 0).then_some(held_back)),
            None => told!(debug, None::<u64>),
        }
    }
}

impl Node {
    /// Hands the invocation to those who send traces, if it is traced. `moments`: when the request came, the launch began, the
    /// function had the event, and it was over.
    pub(super) fn trace_invocation(
        &self,
        request: &Request<'_>,
        outcome: &InvokeOutcome,
        error: Option<ErrorKind>,
        moments: [Instant; 4],
    ) {
        let (Some(traces), Some(trace)) = (&self.traces, request.trace) else {
            return;
        };
        if trace.context.is_sampled != Some(true) {
            return;
        }
        traces.send(Box::new(Finished {
            context: trace.context,
            parent: trace.parent,
            function: request.revision.record.name.clone(),
            version: outcome.executed_version.clone(),
            arn: request.event.function_arn.clone(),
            request_id: outcome.request_id.clone(),
            path: outcome.path,
            error,
            ended: SystemTime::now() - moments[3].elapsed(),
            moments,
            boot: boot_stages(&outcome.stages).to_vec(),
        }));
    }
}

/// The stages of the boot among those of an invocation.
pub(super) fn boot_stages(stages: &[Stage]) -> &[Stage] {
    // Before them comes `queue`, behind them `start`, `run` and `total`.
    let behind = stages.len().saturating_sub(3);
    stages.get(1..behind).unwrap_or_default()
}

fn of(stages: &[Stage], name: &str) -> Option<u64> {
    stages
        .iter()
        .find(|stage| stage.name == name)
        .map(|stage| stage.us)
}

fn cut(text: &str) -> &str {
    match text.char_indices().nth(MOST_OF_A_TYPE) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// `sandbox=51 order=12`, microseconds.
struct Written<'a>(&'a [Stage]);

impl std::fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, stage) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { " " };
            write!(f, "{separator}{}={}", stage.name, stage.us)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_lies_between_the_queue_and_the_start() {
        let stage = |name, us| Stage { name, us };
        let all = [
            stage("queue", 1),
            stage("sandbox", 2),
            stage("wake", 3),
            stage("start", 4),
            stage("run", 5),
            stage("total", 6),
        ];
        assert_eq!(Written(boot_stages(&all)).to_string(), "sandbox=2 wake=3");
        let warm = [all[0], all[3], all[4], all[5]];
        assert_eq!(Written(boot_stages(&warm)).to_string(), "");
        assert_eq!((of(&all, "run"), of(&all, "map")), (Some(5), None));
        assert_eq!(cut(&"\u{e4}".repeat(200)).chars().count(), MOST_OF_A_TYPE);
    }
}
