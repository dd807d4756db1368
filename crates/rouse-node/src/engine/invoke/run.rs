//! From a boot path to an answer: an instance is launched, given the event, and let go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rouse_process::instance::{BootPath, ExitReason};
use tokio::sync::oneshot;

use super::end::{End, Usage, stages};
use super::{InvokeOutcome, Problem, Request};
use crate::boot::LoadedImage;
use crate::engine::report::verdict;
use crate::engine::runner::{Ended, Runner};
use crate::function::record::SnapshotPoint;
use crate::node::Node;
use crate::runtime_api::session::RuntimeAnswer;
use crate::serving::policy::KeepAlive;

/// An instance with the event begun.
struct Running {
    runner: Runner,
    answer: oneshot::Receiver<RuntimeAnswer>,
    start_limit: Duration,
    keep: bool,
    launched: Instant,
    /// Processor time that it had used before.
    cpu_before: Duration,
}

impl Node {
    /// Takes exactly this path, or says why not.
    pub(super) async fn on_path(
        self: &Arc<Self>,
        request: &Request<'_>,
        path: BootPath,
        image: Option<(LoadedImage, SnapshotPoint)>,
        keep: bool,
    ) -> Result<InvokeOutcome, Problem> {
        if path == BootPath::Warm {
            match self.on_idle(request).await {
                Err(Problem::Stale) => {}
                other => return other,
            }
        }
        let running = match (path, image) {
            (BootPath::Cold, _) => self.launch_cold(request, keep).await?,
            (BootPath::Warm, _) => self.launch_cold(request, true).await?,
            (_, Some((image, point))) => self.copy(request, path, &image, point, keep).await?,
            (_, None) => return Err(Problem::Boot("there is no snapshot".into())),
        };
        self.run(request, running).await
    }

    /// Takes an instance that has answered before; stale when there is none.
    pub(super) async fn on_idle(
        self: &Arc<Self>,
        request: &Request<'_>,
    ) -> Result<InvokeOutcome, Problem> {
        while let Some(runner) = request.function.take_idle(&request.revision) {
            let running = self.reuse(request, runner);
            match self.run(request, running).await {
                Err(Problem::Stale) => {}
                other => return other,
            }
        }
        Err(Problem::Stale)
    }

    fn reuse(&self, request: &Request<'_>, mut runner: Runner) -> Running {
        let launched = Instant::now();
        drop(request.start_slot());
        let cpu_before = runner.cpu_time();
        runner.path = BootPath::Warm;
        let answer = runner.begin(request.event.clone(), &request.revision.record.version);
        Running {
            runner,
            answer,
            start_limit: request.event.timeout,
            keep: true,
            launched,
            cpu_before,
        }
    }

    async fn launch_cold(&self, request: &Request<'_>, keep: bool) -> Result<Running, Problem> {
        let launched = Instant::now();
        let booted = self
            .boot
            .cold(&request.revision.launches.cold)
            .await
            .map_err(|e| Problem::Boot(e.0))?;
        let counters = &request.function.counters;
        let runner = Runner::cold(
            booted,
            Arc::clone(&request.revision),
            false,
            &request.function.log,
            &counters.instances,
        )
        .map_err(|e| Problem::Boot(format!("the instance could not be served: {e}")))?;
        let answer = runner.begin(request.event.clone(), &request.revision.record.version);
        if let Some(slot) = request.start_slot() {
            runner.session.started_on_delivery(slot);
        }
        let start_limit =
            Duration::from_secs(self.config.init_timeout_s).max(request.event.timeout);
        Ok(Running {
            runner,
            answer,
            start_limit,
            keep,
            launched,
            cpu_before: Duration::ZERO,
        })
    }

    async fn copy(
        &self,
        request: &Request<'_>,
        path: BootPath,
        image: &LoadedImage,
        point: SnapshotPoint,
        keep: bool,
    ) -> Result<Running, Problem> {
        let launched = Instant::now();
        let spec = &request.revision.launches.snapshot;
        let booted = match path {
            BootPath::Parked => {
                let make = request.options.boot == Some(BootPath::Parked);
                match self.boot.parked(image, spec, make).await {
                    Ok(None) => return Err(Problem::Stale),
                    Ok(Some(booted)) => Ok(booted),
                    Err(error) => Err(error),
                }
            }
            BootPath::Rewind => match self.boot.rewound(image, spec) {
                Ok(None) => return Err(Problem::Stale),
                Ok(Some(booted)) => Ok(booted),
                Err(error) => Err(error),
            },
            BootPath::Fork => self.boot.fork(image, spec).await,
            _ => self.boot.restore_to_invoke(image, spec).await,
        }
        .map_err(|e| Problem::Boot(e.0))?;
        let event = (
            request.event.clone(),
            request.revision.record.version.as_str(),
        );
        let count = &request.function.counters.instances;
        let restored = Runner::restored(
            booted,
            Arc::clone(&request.revision),
            point,
            Some(event),
            &request.function.log,
            count,
        )
        .map_err(|e| Problem::Boot(format!("the instance could not be served: {e}")))?;
        let answer = restored.answer.ok_or_else(|| {
            Problem::Boot("the instance has no connection for its parked request".into())
        })?;
        // One that was rewound has used some for earlier requests.
        let cpu_before = match path {
            BootPath::Rewind => restored.runner.cpu_time(),
            _ => Duration::ZERO,
        };
        // The answer to its parked request is there when it wakes.
        restored
            .runner
            .resume()
            .map_err(|e| Problem::Boot(format!("the instance could not be resumed: {e}")))?;
        let start_limit = Duration::from_secs(self.config.restore_timeout_s);
        let mut runner = restored.runner;
        if let Some(slot) = request.start_slot() {
            runner.session.started_on_delivery(slot);
        }
        runner.image = Some(image.clone());
        Ok(Running {
            runner,
            answer,
            start_limit,
            keep,
            launched,
            cpu_before,
        })
    }

    async fn run(
        self: &Arc<Self>,
        request: &Request<'_>,
        running: Running,
    ) -> Result<InvokeOutcome, Problem> {
        let Running {
            runner,
            answer,
            start_limit,
            keep,
            launched,
            cpu_before,
        } = running;
        let ended = runner
            .finish(answer, start_limit, request.event.timeout)
            .await;
        let done = Instant::now();
        // Of a process that has ended it would be nothing.
        let is_alive = matches!(ended, Ended::Answer(_) | Ended::TimedOut);
        let usage = is_alive.then(|| Usage {
            gate: self.gate.clone(),
            time: done.saturating_duration_since(request.admitted),
            cpu: runner.cpu_time().saturating_sub(cpu_before),
        });
        let delivered = runner.session.delivered();
        let ended = match ended {
            Ended::BootFailed(reason) => return Err(Problem::Boot(reason)),
            Ended::Exited(_) if runner.path == BootPath::Warm && delivered.is_none() => {
                return Err(Problem::Stale);
            }
            // One that died while it was parked, so late that it could still be taken: the event has not been seen.
            Ended::Exited(_) if !runner.has_run() => return Err(Problem::Stale),
            Ended::Answer(answer) => {
                runner.told().await;
                Ended::Answer(answer)
            }
            other => match self.damage(runner.image.as_ref(), &other).await {
                Some(problem) if delivered.is_none() => return Err(Problem::Boot(problem)),
                Some(problem) => return Err(Problem::Damaged(problem)),
                None => other,
            },
        };
        let path = runner.path;
        request.revision.succeeded(path);
        if request.revision.note_call() {
            self.try_later_snapshot(request.function, &request.revision);
        }
        let counters = &request.function.counters;
        if let Ended::Exited(reason) = &ended {
            counters.died(reason);
        }
        // An instance that answered can go on; one that timed out or ended cannot.
        let keep = keep && matches!(ended, Ended::Answer(_));
        let verdict = verdict(
            ended,
            &request.event.request_id,
            request.event.timeout,
            start_limit,
        );
        let memory = if request.options.measure_memory {
            runner.memory().ok()
        } else {
            None
        };
        let stages = stages(request.received, launched, delivered, done, &runner);
        let duration = done.saturating_duration_since(request.received);
        let error_kind = verdict.error_kind;
        counters.answered(path, error_kind, duration);
        self.metrics.stages.observe(path, &stages);
        let mut outcome = InvokeOutcome {
            status: 200,
            payload: verdict.payload,
            function_error: verdict.error_type.as_ref().map(|_| "Unhandled"),
            error_type: verdict.error_type,
            log_tail: None,
            executed_version: request.revision.record.version.clone(),
            path,
            stages,
            request_id: request.event.request_id.clone(),
            trace_id: request.event.trace_id.clone(),
            memory,
        };
        self.log_invocation(request, &outcome, error_kind);
        let moments = [request.received, launched, delivered.unwrap_or(done), done];
        self.trace_invocation(request, &outcome, error_kind, moments);
        let end = End {
            note: verdict.note,
            started: delivered.map_or(Duration::ZERO, |at| at.saturating_duration_since(launched)),
            duration: done.saturating_duration_since(delivered.unwrap_or(launched)),
            request_id: outcome.request_id.clone(),
            error_type: outcome.error_type.clone(),
            usage,
        };
        if keep {
            end.write(&runner);
            if request.options.log_tail {
                outcome.log_tail = Some(runner.capture.tail());
            }
            request.function.keep(runner, self.config.max_idle);
        } else {
            let mut end = Some(end);
            if let Some(end) = end.take_if(|_| request.options.log_tail) {
                end.write(&runner);
                outcome.log_tail = Some(runner.capture.tail());
            }
            let has_failed = outcome.error_type.is_some();
            let rewinds = self.config.rewind && !has_failed && runner.image.is_some();
            let keep_alive = match self.serving(request.function).keep_alive {
                KeepAlive::Fixed(seconds) => Duration::from_secs(seconds),
                KeepAlive::Histogram => Duration::from_secs(self.config.keep_alive_s),
            };
            let (node, key) = (Arc::clone(self), request.function.key.clone());
            tokio::spawn(async move {
                let observed = match has_failed {
                    false => runner.observed().await,
                    true => Some(runner),
                };
                let Some(runner) = observed else { return };
                if !rewinds {
                    runner.kill();
                }
                if let Some(end) = end {
                    end.write(&runner);
                }
                if rewinds {
                    node.rewind(&key, runner, keep_alive).await;
                }
            });
        }
        Ok(outcome)
    }
}

impl Node {
    /// Puts an instance that has answered back to its snapshot, for a later request; one that cannot be rewound is ended,
    /// and a restore takes its place when it is needed.
    async fn rewind(&self, function: &str, runner: Runner, keep: Duration) {
        let (live, mut channels, _capture) = runner.into_parts();
        // Its port must be free, and nobody may read what it says from now on.
        channels.shutdown().await;
        if let Err(error) = self.boot.rewind(live, self.config.max_idle, keep).await {
            tracing::info!(
                function,
                reason = error.0,
                "an instance could not be rewound and is replaced"
            );
        }
    }

    /// Did an instance end because its snapshot is damaged?
    async fn damage(&self, image: Option<&LoadedImage>, ended: &Ended) -> Option<String> {
        let image = image?;
        // The end of the process may be told faster than what led to it.
        let is_likely = matches!(ended, Ended::Exited(ExitReason::Signal(libc::SIGBUS)))
            && !self.boot.is_resident(image);
        match is_likely {
            true => tokio::time::timeout(LAST_NEWS, self.boot.problem_found(image))
                .await
                .ok(),
            false => self.boot.problem(image),
        }
    }
}

/// How long the news of a damaged page may take to come after the end of a process that touched it.
const LAST_NEWS: Duration = Duration::from_millis(200);
