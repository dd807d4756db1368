//! One instance, its runtime API and its output.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rouse_process::instance::{BootPath, ExitReason, Failure, MemoryUse, Stage};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::function::Revision;
use super::lifecycle::{State, Step};
use crate::boot::{Booted, Live, LoadedImage};
use crate::function::record::SnapshotPoint;
use crate::logs::capture::Capture;
use crate::logs::files::FunctionLog;
use crate::runtime_api::server;
use crate::runtime_api::session::{
    Event, Phase, RuntimeAnswer, RuntimeError, RuntimeState, Session,
};

/// How long an answer that is on its way may take to arrive when its process has already ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// An instance. Dropping it ends the process tree and everything that serves it.
pub struct Runner {
    /// What it runs.
    pub revision: Arc<Revision>,
    /// How it came to be.
    pub path: BootPath,
    /// What it is a copy of.
    pub image: Option<LoadedImage>,
    state: Mutex<State>,
    /// Its runtime API.
    pub session: Arc<Session>,
    /// Its output.
    pub capture: Arc<Capture>,
    exit: watch::Receiver<Option<ExitReason>>,
    // Before `live`: nobody serves a process that is gone.
    tasks: JoinSet<()>,
    live: Box<dyn Live>,
    _gauge: Gauge,
}

/// Counts an instance while it exists.
struct Gauge(Arc<AtomicUsize>);

impl Gauge {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Gauge(Arc::clone(count))
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

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
    BootFailed(String),
}

impl Runner {
    /// Takes over an instance that starts from nothing.
    pub fn cold(
        mut booted: Booted,
        revision: Arc<Revision>,
        snapshotting: bool,
        log: &Arc<FunctionLog>,
        count: &Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let session = Arc::new(Session::started(snapshotting));
        serve(&mut booted, session, log)?.with(booted, revision, count, State::Booting)
    }

    /// As [`cold`](Self::cold), of an instance that is going to be snapshotted after warm-up events.
    pub fn warming(
        mut booted: Booted,
        revision: Arc<Revision>,
        log: &Arc<FunctionLog>,
        count: &Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let session = Arc::new(Session::warming(revision.launches.snapshotting));
        serve(&mut booted, session, log)?.with(booted, revision, count, State::Booting)
    }

    /// Takes over a copy of a language template and makes it the function: from here on it is as after a start from
    /// nothing.
    pub fn of_template(
        mut booted: Booted,
        revision: Arc<Revision>,
        warming: bool,
        log: &Arc<FunctionLog>,
        count: &Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let snapshotting = revision.launches.snapshotting;
        let session = Arc::new(match warming {
            true => Session::warming(snapshotting),
            false => Session::started(snapshotting),
        });
        let parked = booted.parked.take();
        let mut parts = serve(&mut booted, Arc::clone(&session), log)?;
        let parked = parked.ok_or(io::ErrorKind::NotConnected)?;
        let port = parked.peer_addr()?.port();
        let answer = server::template_answer(&revision.launches.snapshot);
        answer_parked(parked, port, answer, session, &mut parts.tasks)?;
        parts.with(booted, revision, count, State::Booting)
    }

    /// Takes over a copy of a snapshot whose parked request is answered: with `event`, or, without, so that the
    /// after-restore hooks run. A request for the next event without an event stays parked in `held`.
    pub fn restored(
        mut booted: Booted,
        revision: Arc<Revision>,
        point: SnapshotPoint,
        event: Option<(Event, &str)>,
        log: &Arc<FunctionLog>,
        count: &Arc<AtomicUsize>,
    ) -> io::Result<Restored> {
        let session = Arc::new(Session::restored(point));
        let parked = booted.parked.take();
        let mut parts = serve(&mut booted, Arc::clone(&session), log)?;
        let mut answer = None;
        let bytes = match (point, event) {
            (SnapshotPoint::RestoreWithEvent, None) => Some(server::restore_answer()),
            (SnapshotPoint::RestoreNext, event) => {
                if let Some((event, version)) = event {
                    parts.capture.begin(&event.request_id, version);
                    answer = Some(session.begin(event));
                }
                Some(server::restore_answer())
            }
            (
                SnapshotPoint::InvocationNext | SnapshotPoint::RestoreWithEvent,
                Some((event, version)),
            ) => {
                parts.capture.begin(&event.request_id, version);
                answer = Some(session.begin_parked(&event));
                Some(server::event_answer(&event))
            }
            (SnapshotPoint::InvocationNext, None) => None,
        };
        let state = match answer {
            Some(_) => State::Busy,
            None => State::Booting,
        };
        let mut held = None;
        match (parked, bytes) {
            // No snapshot is taken of it, so that nobody asks for the client's port.
            (Some(parked), Some(bytes)) => {
                answer_parked(parked, 0, bytes, session, &mut parts.tasks)?
            }
            (parked, _) => held = parked,
        }
        Ok(Restored {
            runner: parts.with(booted, revision, count, state)?,
            answer,
            held,
        })
    }

    /// Gives the runtime an event, now or when it asks.
    pub fn begin(&self, event: Event, version: &str) -> oneshot::Receiver<RuntimeAnswer> {
        self.step(Step::Begin);
        self.capture.begin(&event.request_id, version);
        self.session.begin(event)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step. One that is not possible is a mistake of the engine, which must not go on with this instance.
    fn step(&self, step: Step) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.after(step) {
            Ok(next) => *state = next,
            Err(illegal) => {
                *state = State::Poisoned;
                drop(state);
                panic!("{illegal}");
            }
        }
    }

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

    /// Becomes `Some` when its first process has ended.
    pub fn exit(&self) -> watch::Receiver<Option<ExitReason>> {
        self.exit.clone()
    }

    /// Does its first process run?
    pub fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Why the process ended or could not start, if so.
    pub fn problem(&self) -> Option<String> {
        if let Some(failure) = self.live.failure() {
            return Some(failure.to_string());
        }
        self.exit.borrow().as_ref().map(super::report::exit_text)
    }

    /// Stages of its boot.
    pub fn stages(&self) -> Vec<Stage> {
        self.live.stages()
    }

    /// Waits until all is known that the instance says about its boot.
    pub async fn told(&self) {
        self.live.told().await;
    }

    /// Memory of its first process.
    pub fn memory(&self) -> io::Result<MemoryUse> {
        self.live.memory()
    }

    /// Peak memory, bytes.
    pub fn memory_peak(&self) -> u64 {
        self.live.memory_peak()
    }

    /// Processor time of its first process so far; none where it cannot be told.
    pub fn cpu_time(&self) -> Duration {
        self.live.cpu_time().unwrap_or_default()
    }

    /// Takes note of what the instance has touched, for later boots, if that is wanted. It must have answered, and
    /// still lives afterwards.
    pub async fn observed(self) -> Option<Self> {
        if !self.live.is_to_be_observed() {
            return Some(self);
        }
        let task = tokio::task::spawn_blocking(move || {
            self.live.learn();
            self
        });
        // Cancelled only when the node ends, and the instance with it.
        task.await.ok()
    }

    /// Lets an instance run that was made ahead.
    pub fn resume(&self) -> io::Result<()> {
        self.live.resume()
    }

    /// Might its own instructions have run? To be asked once its end is known.
    pub fn has_run(&self) -> bool {
        self.live.has_run()
    }

    /// Ends the process tree at once.
    pub fn kill(&self) {
        self.live.kill();
    }

    /// For a checkpoint, which wants the instance itself. The output and the connections stay until it is done.
    pub fn into_parts(self) -> (Box<dyn Live>, JoinSet<()>, Arc<Capture>) {
        (self.live, self.tasks, self.capture)
    }
}

/// A copy of a snapshot.
pub struct Restored {
    /// The instance.
    pub runner: Runner,
    /// Yields the answer to the event, if there was one.
    pub answer: Option<oneshot::Receiver<RuntimeAnswer>>,
    /// The connection on which the parked request still waits.
    pub held: Option<std::net::TcpStream>,
}

struct Parts {
    session: Arc<Session>,
    capture: Arc<Capture>,
    tasks: JoinSet<()>,
}

/// Starts to serve an instance's runtime API and to read its output.
fn serve(booted: &mut Booted, session: Arc<Session>, log: &Arc<FunctionLog>) -> io::Result<Parts> {
    let capture = Arc::new(Capture::new(booted.log.take(), Arc::clone(log))?);
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let capture = Arc::clone(&capture);
        async move { capture.run().await }
    });
    if let Some(listener) = booted.listener.take() {
        listener.set_nonblocking(true)?;
        tasks.spawn(server::accept(
            TcpListener::from_std(listener)?,
            Arc::clone(&session),
        ));
    }
    Ok(Parts {
        session,
        capture,
        tasks,
    })
}

impl Parts {
    fn with(
        self,
        booted: Booted,
        revision: Arc<Revision>,
        count: &Arc<AtomicUsize>,
        state: State,
    ) -> io::Result<Runner> {
        Ok(Runner {
            revision,
            path: booted.path,
            image: None,
            state: Mutex::new(state),
            session: self.session,
            capture: self.capture,
            exit: booted.exit,
            tasks: self.tasks,
            live: booted.live,
            _gauge: Gauge::new(count),
        })
    }
}

/// Writes as much of the answer as the socket takes at once, and leaves the rest to the connection's task.
fn answer_parked(
    parked: std::net::TcpStream,
    port: u16,
    mut bytes: Bytes,
    session: Arc<Session>,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    parked.set_nonblocking(true)?;
    match (&parked).write(&bytes) {
        Ok(n) => bytes.advance(n),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) => {}
        Err(error) => return Err(error),
    }
    tasks.spawn(server::serve_parked(
        TcpStream::from_std(parked)?,
        port,
        bytes,
        session,
    ));
    Ok(())
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
        Failure::Platform(reason) => Ended::BootFailed(reason),
    }
}

fn failed_start(phase: &Phase) -> Option<Ended> {
    match phase {
        Phase::InitError(error) => Some(Ended::InitFailed(error.clone())),
        Phase::RestoreError(error) => Some(Ended::RestoreFailed(error.clone())),
        Phase::Working | Phase::WarmUp | Phase::Parked { .. } | Phase::Template { .. } => None,
    }
}
