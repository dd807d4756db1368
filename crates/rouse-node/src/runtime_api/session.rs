//! The state of one runtime, as its requests and the node's invocations move it.
//!
//! ```text
//! Started --restore/next--> RestoreReady --(restored)--> Restoring --next--> Ready
//!    |  \--init/error--> InitError                          |  \--restore/error--> RestoreError
//!    \--next--> Ready --event--> Running --response|error--> ResponseSent --next--> Ready
//! ```
//! A session of a language template knows one request more, `template/next`, in which it parks for ever:
//! ```text
//! Started --template/next--> TemplateReady
//! ```
//! A copy of it is in `Started`, as after a start from nothing. And a runtime whose init is to end with warm-up events gets
//! them by `warm-up/next`, which is answered with nothing once they are over:
//! ```text
//! Started --warm-up/next--> WarmUpReady --event--> Running --response|error--> ResponseSent --warm-up/next--> WarmUpReady
//!    ^------------------------- nothing -----------------------------------------'
//! ```
//!
//! Everything else is answered 403 and leaves the state as it is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::engine::admission::StartSlot;
use crate::function::record::SnapshotPoint;

/// States of a runtime, named as in AWS's runtime interface emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeState {
    /// Its init runs.
    Started,
    /// Its init failed.
    InitError,
    /// Parked in `template/next`.
    TemplateReady,
    /// Parked in `warm-up/next`.
    WarmUpReady,
    /// Parked in `restore/next`.
    RestoreReady,
    /// Its after-restore hooks run.
    Restoring,
    /// They failed.
    RestoreError,
    /// Parked in `invocation/next`.
    Ready,
    /// Handles an event.
    Running,
    /// Is sending its answer.
    InvocationResponse,
    /// Has answered and not yet asked for more.
    ResponseSent,
}

impl RuntimeState {
    /// Name in the texts of 403 answers.
    pub fn name(self) -> &'static str {
        match self {
            RuntimeState::Started => "Started",
            RuntimeState::InitError => "InitError",
            RuntimeState::TemplateReady => "TemplateReady",
            RuntimeState::WarmUpReady => "WarmUpReady",
            RuntimeState::RestoreReady => "RestoreReady",
            RuntimeState::Restoring => "Restoring",
            RuntimeState::RestoreError => "RuntimeRestoreErrorState",
            RuntimeState::Ready => "Ready",
            RuntimeState::Running => "Running",
            RuntimeState::InvocationResponse => "InvocationResponse",
            RuntimeState::ResponseSent => "RuntimeResponseSentState",
        }
    }
}

/// One event for the function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Request id.
    pub request_id: String,
    /// ARN that was invoked.
    pub function_arn: String,
    /// Time the function has from delivery.
    pub timeout: Duration,
    /// `Root=...;Parent=...;Sampled=0`.
    pub trace_id: String,
    /// JSON in one line.
    pub client_context: Option<String>,
    /// The event itself, JSON.
    pub payload: Bytes,
    /// Is it not for the handler, but for the runtime's client itself?
    pub rehearsal: bool,
}

/// What a runtime takes along with the answer to `restore/next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreAccepts {
    /// Its first event.
    pub invocation: bool,
    /// A rehearsal: an event that it answers without the handler.
    pub rehearsal: bool,
}

impl RestoreAccepts {
    /// What a runtime says in its header: a list of words, of which others than ours say nothing.
    pub fn parse(text: &str) -> Self {
        let says = |word| text.split(',').any(|found| found.trim() == word);
        let invocation = says("invocation");
        Self {
            invocation,
            // It comes as an event does.
            rehearsal: invocation && says("rehearsal"),
        }
    }
}

/// How an invocation ended, as the runtime says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeAnswer {
    /// The handler's result.
    Response {
        /// Body.
        body: Bytes,
        /// As the runtime gave it.
        content_type: Option<String>,
    },
    /// The handler failed.
    Error(RuntimeError),
    /// The result was larger than the limit.
    TooLarge,
}

/// An error that a runtime reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeError {
    /// For instance `Runtime.ImportModuleError`.
    pub error_type: String,
    /// JSON body, as the runtime gave it.
    pub body: Bytes,
}

/// What the runtime is about, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Not parked.
    Working,
    /// Waits for an answer on the connection from `port`.
    Parked {
        /// In which request.
        point: SnapshotPoint,
        /// The client's port of the connection.
        port: u16,
    },
    /// It asks for warm-up events.
    WarmUp,
    /// A language template waits to become a function, on the connection from `port`.
    Template {
        /// The client's port of the connection.
        port: u16,
    },
    /// Init failed.
    InitError(RuntimeError),
    /// An after-restore hook failed.
    RestoreError(RuntimeError),
}

/// A request that is not legal now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// 403.
    #[error(
        "State transition from {from} to {to} failed for runtime. Error: State transition is not allowed"
    )]
    Transition {
        /// State it was in.
        from: &'static str,
        /// State it would have gone to.
        to: &'static str,
    },
    /// 400.
    #[error("Invalid request ID")]
    RequestId,
}

/// An event or a restore, at last; or wait for it.
#[derive(Debug)]
pub enum Next {
    /// Answer now.
    Now(Event),
    /// Answer when it comes.
    Wait(oneshot::Receiver<Event>),
}

/// The session of one runtime.
#[derive(Debug)]
pub struct Session {
    /// Does the route `restore/next` exist?
    snapshotting: bool,
    /// Does the route `template/next` exist?
    template: bool,
    inner: Mutex<Inner>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug)]
struct Inner {
    state: RuntimeState,
    /// Are there warm-up events, or may there be more?
    warming: bool,
    /// Can it rehearse, as it said when it asked for its restore?
    rehearses: bool,
    /// Waits for the runtime to ask.
    queued: Option<Event>,
    /// The runtime waits for an event.
    waiter: Option<oneshot::Sender<Event>>,
    /// The runtime waits for the end of its snapshot; kept so that its connection stays open.
    restore_waiter: Option<oneshot::Sender<()>>,
    /// Id of the event that was delivered last.
    current: Option<String>,
    done: Option<oneshot::Sender<RuntimeAnswer>>,
    delivered: Option<Instant>,
    /// Dropped when the next event is delivered, which is what it waits for.
    until_delivery: Option<StartSlot>,
}

impl Session {
    /// Of a runtime that starts. With `snapshotting` it may park in `restore/next`.
    pub fn started(snapshotting: bool) -> Self {
        Self::in_state(RuntimeState::Started, snapshotting)
    }

    /// Of a runtime that is to become a language template.
    pub fn template() -> Self {
        Session {
            template: true,
            ..Self::in_state(RuntimeState::Started, false)
        }
    }

    /// Of a runtime that starts and may ask for warm-up events, until [`end_warm_up`](Self::end_warm_up).
    pub fn warming(snapshotting: bool) -> Self {
        let session = Self::in_state(RuntimeState::Started, snapshotting);
        session.lock().warming = true;
        session
    }

    /// Of a copy of a snapshot, whose parked request is going to be answered by the caller.
    pub fn restored(point: SnapshotPoint) -> Self {
        match point {
            SnapshotPoint::RestoreNext | SnapshotPoint::RestoreWithEvent => {
                Self::in_state(RuntimeState::Restoring, true)
            }
            SnapshotPoint::InvocationNext => Self::in_state(RuntimeState::Ready, false),
        }
    }

    fn in_state(state: RuntimeState, snapshotting: bool) -> Self {
        Session {
            snapshotting,
            template: false,
            inner: Mutex::new(Inner {
                state,
                warming: false,
                rehearses: false,
                queued: None,
                waiter: None,
                restore_waiter: None,
                current: None,
                done: None,
                delivered: None,
                until_delivery: None,
            }),
            phase: watch::Sender::new(Phase::Working),
        }
    }

    /// Is `restore/next` a route?
    pub fn snapshotting(&self) -> bool {
        self.snapshotting
    }

    /// Is `template/next` a route?
    pub fn is_template(&self) -> bool {
        self.template
    }

    /// State now.
    pub fn state(&self) -> RuntimeState {
        self.lock().state
    }

    /// When the current event reached the runtime.
    pub fn delivered(&self) -> Option<Instant> {
        self.lock().delivered
    }

    /// Gives back the right to start an instance when the present event is delivered, or at once if it was.
    pub fn started_on_delivery(&self, slot: StartSlot) {
        let mut inner = self.lock();
        if inner.delivered.is_none() {
            inner.until_delivery = Some(slot);
        }
    }

    /// Follows the runtime's phases.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Gives the runtime an event, now or when it asks; the receiver yields the answer.
    /// The session must not have an event that is not answered.
    pub fn begin(&self, event: Event) -> oneshot::Receiver<RuntimeAnswer> {
        let (done, answer) = oneshot::channel();
        let mut inner = self.lock();
        inner.done = Some(done);
        inner.delivered = None;
        match inner.waiter.take() {
            Some(waiter) => {
                let id = event.request_id.clone();
                match waiter.send(event) {
                    Ok(()) => inner.deliver(id),
                    // The connection is gone; the runtime will ask again.
                    Err(event) => inner.queued = Some(event),
                }
            }
            None => inner.queued = Some(event),
        }
        drop(inner);
        self.phase.send_replace(Phase::Working);
        answer
    }

    /// The event goes out on the connection that was parked in the snapshot.
    pub fn begin_parked(&self, event: &Event) -> oneshot::Receiver<RuntimeAnswer> {
        let (done, answer) = oneshot::channel();
        let mut inner = self.lock();
        inner.done = Some(done);
        let state = inner.state;
        inner.deliver(event.request_id.clone());
        // Together with the answer to `restore/next`: the hooks run first, and may fail.
        if state == RuntimeState::Restoring {
            inner.state = state;
        }
        answer
    }

    /// `GET invocation/next`.
    pub fn next(&self, port: u16) -> Result<Next, Denied> {
        let mut inner = self.lock();
        match inner.state {
            RuntimeState::Started
            | RuntimeState::Restoring
            | RuntimeState::Ready
            | RuntimeState::ResponseSent => {}
            from => {
                return Err(Denied::Transition {
                    from: from.name(),
                    to: RuntimeState::Ready.name(),
                });
            }
        }
        if let Some(event) = inner.queued.take() {
            inner.deliver(event.request_id.clone());
            return Ok(Next::Now(event));
        }
        let (waiter, event) = oneshot::channel();
        inner.waiter = Some(waiter);
        inner.state = RuntimeState::Ready;
        drop(inner);
        self.phase.send_replace(Phase::Parked {
            point: SnapshotPoint::InvocationNext,
            port,
        });
        Ok(Next::Wait(event))
    }

    /// `GET warm-up/next`: an event, or `None` when there is none (any more).
    pub fn warm_up_next(&self) -> Result<Option<Next>, Denied> {
        let mut inner = self.lock();
        match (inner.state, inner.current.is_some()) {
            (RuntimeState::Started | RuntimeState::WarmUpReady, _)
            | (RuntimeState::ResponseSent, true) => {}
            (from, _) => {
                return Err(Denied::Transition {
                    from: from.name(),
                    to: RuntimeState::WarmUpReady.name(),
                });
            }
        }
        if !inner.warming {
            inner.state = RuntimeState::Started;
            return Ok(None);
        }
        if let Some(event) = inner.queued.take() {
            inner.deliver(event.request_id.clone());
            return Ok(Some(Next::Now(event)));
        }
        let (waiter, event) = oneshot::channel();
        inner.waiter = Some(waiter);
        inner.state = RuntimeState::WarmUpReady;
        drop(inner);
        self.phase.send_replace(Phase::WarmUp);
        Ok(Some(Next::Wait(event)))
    }

    /// There are no more warm-up events: the runtime goes on with its init.
    pub fn end_warm_up(&self) {
        let mut inner = self.lock();
        inner.warming = false;
        if inner.state == RuntimeState::WarmUpReady {
            inner.state = RuntimeState::Started;
            inner.waiter = None;
        }
        drop(inner);
        self.phase.send_if_modified(|phase| {
            let was_asking = *phase == Phase::WarmUp;
            if was_asking {
                *phase = Phase::Working;
            }
            was_asking
        });
    }

    /// `GET template/next`. The receiver never yields: only the copies are answered.
    pub fn template_next(&self, port: u16) -> Result<oneshot::Receiver<()>, Denied> {
        let mut inner = self.lock();
        match inner.state {
            RuntimeState::Started | RuntimeState::TemplateReady => {}
            from => {
                return Err(Denied::Transition {
                    from: from.name(),
                    to: RuntimeState::TemplateReady.name(),
                });
            }
        }
        inner.state = RuntimeState::TemplateReady;
        let (waiter, released) = oneshot::channel();
        inner.restore_waiter = Some(waiter);
        drop(inner);
        self.phase.send_replace(Phase::Template { port });
        Ok(released)
    }

    /// Did the runtime say that it can rehearse?
    pub fn rehearses(&self) -> bool {
        self.lock().rehearses
    }

    /// `GET restore/next`, of a runtime that `accepts` this along with the answer.
    /// The receiver never yields: only the copies of the snapshot are answered.
    pub fn restore_next(
        &self,
        port: u16,
        accepts: RestoreAccepts,
    ) -> Result<oneshot::Receiver<()>, Denied> {
        let mut inner = self.lock();
        match inner.state {
            RuntimeState::Started | RuntimeState::RestoreReady => {}
            from => {
                return Err(Denied::Transition {
                    from: from.name(),
                    to: RuntimeState::RestoreReady.name(),
                });
            }
        }
        inner.state = RuntimeState::RestoreReady;
        inner.rehearses = accepts.rehearsal;
        let (waiter, released) = oneshot::channel();
        inner.restore_waiter = Some(waiter);
        drop(inner);
        let point = if accepts.invocation {
            SnapshotPoint::RestoreWithEvent
        } else {
            SnapshotPoint::RestoreNext
        };
        self.phase.send_replace(Phase::Parked { point, port });
        Ok(released)
    }

    /// `POST init/error`. While restoring it counts as `restore/error`.
    pub fn init_error(&self, error: RuntimeError) -> Result<(), Denied> {
        let mut inner = self.lock();
        let phase = match inner.state {
            RuntimeState::Started | RuntimeState::RestoreReady => {
                inner.state = RuntimeState::InitError;
                Phase::InitError(error)
            }
            RuntimeState::Restoring => {
                inner.state = RuntimeState::RestoreError;
                Phase::RestoreError(error)
            }
            from => {
                return Err(Denied::Transition {
                    from: from.name(),
                    to: RuntimeState::InitError.name(),
                });
            }
        };
        drop(inner);
        self.phase.send_replace(phase);
        Ok(())
    }

    /// `POST restore/error`.
    pub fn restore_error(&self, error: RuntimeError) -> Result<(), Denied> {
        let mut inner = self.lock();
        if inner.state != RuntimeState::Restoring {
            return Err(Denied::Transition {
                from: inner.state.name(),
                to: RuntimeState::RestoreError.name(),
            });
        }
        inner.state = RuntimeState::RestoreError;
        drop(inner);
        self.phase.send_replace(Phase::RestoreError(error));
        Ok(())
    }

    /// The first bytes of `POST invocation/{id}/response` or `/error`.
    pub fn answer_begins(&self, id: &str, to: &'static str) -> Result<(), Denied> {
        let mut inner = self.lock();
        if inner.current.as_deref() != Some(id) {
            return Err(Denied::RequestId);
        }
        // An event that came with the answer to `restore/next` is answered straight from `Restoring`.
        if !matches!(inner.state, RuntimeState::Running | RuntimeState::Restoring) {
            return Err(Denied::Transition {
                from: inner.state.name(),
                to,
            });
        }
        inner.state = RuntimeState::InvocationResponse;
        Ok(())
    }

    /// The answer is complete. Only after [`answer_begins`](Self::answer_begins).
    pub fn answer(&self, answer: RuntimeAnswer) {
        let mut inner = self.lock();
        inner.state = RuntimeState::ResponseSent;
        let done = inner.done.take();
        drop(inner);
        if let Some(done) = done {
            // Nobody waits any more when the invocation was cancelled or timed out.
            let _ = done.send(answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics while the lock is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn deliver(&mut self, id: String) {
        self.state = RuntimeState::Running;
        self.current = Some(id);
        self.delivered = Some(Instant::now());
        self.until_delivery = None;
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
