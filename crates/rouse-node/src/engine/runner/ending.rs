//! Waiting for an instance: for its answer, for its runtime to be parked, and for its end meanwhile.

use std::time::Duration;

use rouse_process::instance::{ExitReason, Failure};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Runner;
use crate::boot::BootError;
use crate::engine::lifecycle::{State, Step};
use crate::function::record::SnapshotPoint;
use crate::runtime_api::session::{Phase, RuntimeAnswer, RuntimeError, RuntimeState};

/// How long an answer that is on its way may take to arrive when its process has already ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How an invocation ended.
#[derive(Debug)]
pub enum Ended {
    /// The runtime answered.
    Answer(RuntimeAnswer),
    /// The function's time is over.
    TimedOut,
    /// The process ended.
    Exited(ExitReason),
    /// Init failed.
    InitFailed(RuntimeError),
    /// Init took too long.
    InitTimedOut,
    /// An after-restore hook failed.
    RestoreFailed(RuntimeError),
    /// The after-restore hooks took too long.
    RestoreTimedOut,
    /// The platform could not bring the process up.
    BootFailed(BootError),
}

impl Runner {
    /// Waits for the answer to the event that was begun. `start_limit` is the time until the event is delivered
    /// (init, or after-restore hooks), `timeout` the function's own time after that.
    pub async fn finish(
        &self,
        answer: oneshot::Receiver<RuntimeAnswer>,
        start_limit: Duration,
        timeout: Duration,
    ) -> Ended {
        let ended = self.wait(answer, start_limit, timeout).await;
        self.step(match &ended {
            Ended::Answer(_) => Step::Answered,
            Ended::Exited(_) => Step::End,
            _ => Step::Failed,
        });
        ended
    }

    async fn wait(
        &self,
        mut answer: oneshot::Receiver<RuntimeAnswer>,
        start_limit: Duration,
        timeout: Duration,
    ) -> Ended {
        let begin = Instant::now();
        let mut exit = self.exit.clone();
        let mut phases = self.session.phases();
        let timer = tokio::time::sleep(start_limit.min(timeout));
        tokio::pin!(timer);
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => match answered {
                    Ok(answer) => return Ended::Answer(answer),
                    // Only a session that got another event drops the sender, which no caller does.
                    Err(_) => return Ended::Exited(ExitReason::Code(-1)),
                },
                changed = phases.changed() => {
                    if changed.is_ok() && let Some(ended) = failed_start(&phases.borrow_and_update()) {
                        return ended;
                    }
                }
                reason = ended(&mut exit) => return self.exited(answer, reason).await,
                () = &mut timer => {
                    let limit = match self.session.delivered() {
                        Some(delivered) => Instant::from_std(delivered) + timeout,
                        None => begin + start_limit,
                    };
                    if Instant::now() < limit {
                        timer.as_mut().reset(limit);
                    } else if self.session.delivered().is_some() {
                        return Ended::TimedOut;
                    } else if self.session.state() == RuntimeState::Restoring {
                        return Ended::RestoreTimedOut;
                    } else {
                        return Ended::InitTimedOut;
                    }
                }
            }
        }
    }

    /// The process has ended: its last words count, if it left any.
    async fn exited(
        &self,
        mut answer: oneshot::Receiver<RuntimeAnswer>,
        reason: ExitReason,
    ) -> Ended {
        if self.session.state() == RuntimeState::InvocationResponse {
            // The answer is partly here; the rest is in the socket, or will never come.
            if let Ok(Ok(answer)) = tokio::time::timeout(LAST_WORDS, &mut answer).await {
                return Ended::Answer(answer);
            }
        }
        if let Ok(answer) = answer.try_recv() {
            return Ended::Answer(answer);
        }
        if let Some(ended) = failed_start(&self.session.phases().borrow()) {
            return ended;
        }
        match self.live.failure() {
            Some(failure) => never_ran(failure),
            None => Ended::Exited(reason),
        }
    }

    /// Waits until the runtime is parked in a request; the port is the client's.
    pub async fn parked(&self, limit: Duration) -> Result<(SnapshotPoint, u16), Ended> {
        let parked = self
            .phase(limit, |phase| match phase {
                Phase::Parked { point, port } => Some((*point, *port)),
                _ => None,
            })
            .await;
        // After warm-up events it was up before.
        if self.state() == State::Booting {
            self.step(match parked {
                Ok(_) => Step::CameUp,
                Err(_) => Step::Failed,
            });
        }
        parked
    }

    /// Waits until the runtime asks for warm-up events (`None`), or is parked without having done so.
    pub async fn asks_for_warm_up(&self, limit: Duration) -> Result<Option<SnapshotPoint>, Ended> {
        self.phase(limit, |phase| match phase {
            Phase::WarmUp => Some(None),
            Phase::Parked { point, .. } => Some(Some(*point)),
            _ => None,
        })
        .await
    }

    async fn phase<T>(
        &self,
        limit: Duration,
        wanted: impl Fn(&Phase) -> Option<T>,
    ) -> Result<T, Ended> {
        let mut exit = self.exit.clone();
        let mut phases = self.session.phases();
        let timer = tokio::time::sleep(limit);
        tokio::pin!(timer);
        loop {
            {
                let phase = phases.borrow_and_update();
                if let Some(found) = wanted(&phase) {
                    return Ok(found);
                }
                if let Some(ended) = failed_start(&phase) {
                    return Err(ended);
                }
            }
            tokio::select! {
                biased;
                _ = phases.changed() => {}
                reason = ended(&mut exit) => {
                    if let Some(ended) = failed_start(&self.session.phases().borrow()) {
                        return Err(ended);
                    }
                    return Err(match self.live.failure() {
                        Some(failure) => never_ran(failure),
                        None => Ended::Exited(reason),
                    });
                }
                () = &mut timer => {
                    return Err(if self.session.state() == RuntimeState::Restoring { Ended::RestoreTimedOut } else { Ended::InitTimedOut });
                }
            }
        }
    }
}

async fn ended(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    match exit.wait_for(Option::is_some).await {
        // The clone is what `wait_for` has just seen.
        Ok(reason) => reason.clone().unwrap_or(ExitReason::Code(-1)),
        // The launcher is gone, and with it every instance.
        Err(_) => ExitReason::Signal(9),
    }
}

/// The function's own fault is an init error, as in Lambda; all else is the platform's.
fn never_ran(failure: Failure) -> Ended {
    match failure {
        Failure::Program(reason) => {
            let error_type = "Runtime.InvalidEntrypoint".to_owned();
            let body = serde_json::json!({ "errorType": error_type, "errorMessage": format!("Error: fork/exec {reason}") });
            Ended::InitFailed(RuntimeError {
                error_type,
                body: body.to_string().into(),
            })
        }
        Failure::Platform(reason) => Ended::BootFailed(BootError::new(reason)),
        Failure::Lost(reason) => Ended::BootFailed(BootError::from_outside(reason)),
    }
}

fn failed_start(phase: &Phase) -> Option<Ended> {
    match phase {
        Phase::InitError(error) => Some(Ended::InitFailed(error.clone())),
        Phase::RestoreError(error) => Some(Ended::RestoreFailed(error.clone())),
        Phase::Working | Phase::WarmUp | Phase::Parked { .. } | Phase::Template { .. } => None,
    }
}
