//! From a boot path to an answer: an instance is launched, given the event, and let go.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rouse_pool::keeper::PageFault;
use rouse_process::instance::{BootPath, ExitReason};
use tokio::sync::oneshot;

use super::end::{End, Usage, stages};
use super::{InvokeOutcome, Problem, Request};
use crate::boot::{BootError, LoadedImage};
use crate::engine::admission::Permit;
use crate::engine::report::verdict;
use crate::engine::runner::{Ended, Runner};
use crate::function::record::SnapshotPoint;
use crate::node::Node;
use crate::runtime_api::session::RuntimeAnswer;
use crate::serving::policy::KeepAlive;

/// What becomes of an instance that has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It ends, or is rewound.
    End,
    /// It waits for any request.
    Keep,
    /// It goes back to where it was taken from.
    PutBack,
}

impl Then {
    fn keep_if(keep: bool) -> Self {
        match keep {
            true => Then::Keep,
            false => Then::End,
        }
    }
}

/// An instance with the event begun.
pub(super) struct Running {
    runner: Runner,
    answer: oneshot::Receiver<RuntimeAnswer>,
    start_limit: Duration,
    then: Then,
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
            (_, None) => return Err(Problem::boot("there is no snapshot")),
        };
        self.run(request, running).await
    }

    /// Takes an instance that has answered before; stale when there is none.
    pub(super) async fn on_idle(
        self: &Arc<Self>,
        request: &Request<'_>,
    ) -> Result<InvokeOutcome, Problem> {
        while let Some(runner) = request.function.take_idle(&request.revision) {
            let running = self.reuse(request, runner, Then::Keep);
            match self.run(request, running).await {
                Err(Problem::Stale) => {}
                other => return other,
            }
        }
        Err(Problem::Stale)
    }

    pub(super) fn reuse(&self, request: &Request<'_>, mut runner: Runner, then: Then) -> Running {
        let launched = Instant::now();
        drop(request.start_slot());
        let cpu_before = runner.cpu_time();
        runner.path = BootPath::Warm;
        let answer = runner.begin(request.event.clone(), &request.revision.record.version);
        Running {
            runner,
            answer,
            start_limit: request.event.timeout,
            then,
            launched,
            cpu_before,
        }
    }

    async fn launch_cold(&self, request: &Request<'_>, keep: bool) -> Result<Running, Problem> {
        let launched = Instant::now();
        let kind = request.function.record().serving.sandbox();
        let boot = self.boot_of(request.function).map_err(Problem::Boot)?;
        let booted = boot.cold(&request.revision.launches.cold).await;
        let booted = booted.map_err(Problem::Boot)?;
        let counters = &request.function.counters;
        let runner = Runner::cold(
            booted,
            Arc::clone(&request.revision),
            false,
            &request.function.log,
            &counters.instances,
        )
        .map_err(|e| Problem::boot(format!("the instance could not be served: {e}")))?;
        let runner = runner.in_sandbox(kind);
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
            then: Then::keep_if(keep),
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
        // Until it runs: what it has not got by then comes when it is touched.
        let _stay = request.stay();
        let spec = &request.revision.launches.snapshot;
        let booted = match path {
            BootPath::Parked => {
                let make = request.options.boot == Some(BootPath::Parked);
                match image.parked(spec, make).await {
                    Ok(None) => return Err(Problem::Stale),
                    Ok(Some(booted)) => Ok(booted),
                    Err(error) => Err(error),
                }
            }
            BootPath::Rewind => match image.rewound(spec) {
                Ok(None) => return Err(Problem::Stale),
                Ok(Some(booted)) => Ok(booted),
                Err(error) => Err(error),
            },
            BootPath::Fork => image.fork(spec).await,
            _ => image.restore_to_invoke(spec).await,
        }
        .map_err(Problem::Boot)?;
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
        .map_err(|e| Problem::boot(format!("the instance could not be served: {e}")))?;
        let answer = restored.answer.ok_or_else(|| {
            Problem::boot("the instance has no connection for its parked request")
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
            .map_err(|e| Problem::boot(format!("the instance could not be resumed: {e}")))?;
        let start_limit = Duration::from_secs(self.config.restore_timeout_s);
        let kind = request.function.record().serving.sandbox();
        let mut runner = restored.runner.in_sandbox(kind);
        if let Some(slot) = request.start_slot() {
            runner.session.started_on_delivery(slot);
        }
        runner.image = Some(image.clone());
        Ok(Running {
            runner,
            answer,
            start_limit,
            then: Then::keep_if(keep),
            launched,
            cpu_before,
        })
    }

    pub(super) async fn run(
        self: &Arc<Self>,
        request: &Request<'_>,
        running: Running,
    ) -> Result<InvokeOutcome, Problem> {
        let Running {
            mut runner,
            answer,
            start_limit,
            then,
            launched,
            cpu_before,
        } = running;
        let ended = tokio::select! {
            biased;
            ended = runner.finish(answer, start_limit, request.event.timeout) => ended,
            never = watch(&runner, request.permit) => match never {},
        };
        let done = Instant::now();
        // Of a process that has ended it would be nothing.
        let is_alive = matches!(ended, Ended::Answer(_) | Ended::TimedOut);
        let usage = is_alive.then(|| Usage {
            gate: self.gate.clone(),
            time: done.saturating_duration_since(request.admitted),
            cpu: runner.cpu_time().saturating_sub(cpu_before),
        });
        let delivered = runner.session.delivered();
        let may_lack_memory = match ended {
            Ended::BootFailed(_) => true,
            // The kernel itself may touch what is missing, as the area of restartable sequences: `SIGSEGV` then. A program
            // that is told so by a system call aborts.
            Ended::Exited(ExitReason::Signal(signal)) => {
                matches!(signal, libc::SIGBUS | libc::SIGSEGV | libc::SIGABRT)
            }
            // Its VMM is killed so, or KVM gives its processor up.
            Ended::Exited(ExitReason::Machine(_)) => true,
            _ => false,
        };
        if may_lack_memory && let Some(problem) = runner.verify_far().await {
            return Err(match delivered {
                None => Problem::boot(problem),
                Some(_) => Problem::FarLost(problem),
            });
        }
        if let Some(fault) = page_fault(&runner, &ended).await {
            return Err(match (fault, delivered) {
                (PageFault::Damaged(problem), None) => Problem::boot(problem),
                (PageFault::Damaged(problem), Some(_)) => Problem::Damaged(problem),
                (PageFault::NoMemory(why), None) => Problem::Boot(BootError::from_outside(why)),
                (PageFault::NoMemory(why), Some(_)) => Problem::NoMemory(why),
            });
        }
        let ended = match ended {
            Ended::BootFailed(error) => return Err(Problem::Boot(error)),
            Ended::Exited(_) if runner.path == BootPath::Warm && delivered.is_none() => {
                return Err(Problem::Stale);
            }
            // One that died while it was parked, so late that it could still be taken: the event has not been seen.
            Ended::Exited(_) if !runner.has_run() => return Err(Problem::Stale),
            Ended::Answer(answer) => {
                runner.told().await;
                Ended::Answer(answer)
            }
            other => other,
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
        let then = match ended {
            Ended::Answer(_) if then == Then::Keep && self.config.max_idle == 0 => Then::End,
            Ended::Answer(_) => then,
            _ => Then::End,
        };
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
        if then != Then::End {
            end.write(&runner);
            if request.options.log_tail {
                outcome.log_tail = Some(runner.capture.tail());
            }
            if let Some(badge) = &runner.badge {
                badge.card.answered.fetch_add(1, Ordering::Relaxed);
            }
            if then == Then::PutBack {
                self.put_back_named(runner);
            } else {
                self.instances.enlist(&mut runner, &request.function.key);
                request.function.keep(runner);
            }
        } else {
            let mut end = Some(end);
            if let Some(end) = end.take_if(|_| request.options.log_tail) {
                end.write(&runner);
                outcome.log_tail = Some(runner.capture.tail());
            }
            let has_failed = outcome.error_type.is_some();
            let can_rewind = runner
                .image
                .as_ref()
                .is_some_and(|image| image.can_rewind());
            let rewinds = self.config.rewind && !has_failed && can_rewind;
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
                reason = error.reason,
                "an instance could not be rewound and is replaced"
            );
        }
    }
}

/// Between two looks at whether a request that runs uses a processor. Most are answered before the first.
const LOOK: Duration = Duration::from_millis(50);
/// Who uses less than this part of one rests.
const RESTING: u32 = 16;

/// Tells admission while the request rests: it sleeps, or waits for what others do, perhaps for another invocation that is
/// to be admitted.
async fn watch(runner: &Runner, permit: &Permit) -> Infallible {
    let mut used = runner.cpu_time();
    loop {
        let begin = Instant::now();
        tokio::time::sleep(LOOK).await;
        let now = runner.cpu_time();
        permit.rests(now.saturating_sub(used) * RESTING < begin.elapsed());
        used = now;
    }
}

/// Did it end, or fail, because pages of its snapshot could not be filled? What a system call said of such a page a function
/// may tell as an error of its own.
async fn page_fault(runner: &Runner, ended: &Ended) -> Option<PageFault> {
    match ended {
        Ended::Answer(RuntimeAnswer::Response { .. }) => None,
        _ => runner.page_fault().await,
    }
}
