//! How an instance is taken over: from nothing, of a language template, or as a copy of a snapshot.

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Gauge, Runner};
use crate::boot::{Booted, ParkedStream};
use crate::engine::function::Revision;
use crate::engine::lifecycle::State;
use crate::function::record::SnapshotPoint;
use crate::logs::capture::Capture;
use crate::logs::files::FunctionLog;
use crate::runtime_api::session::{Event, RuntimeAnswer, Session};
use crate::runtime_api::{answers, server};
use crate::serving::policy::SandboxChoice;

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
        let port = parked.port()?;
        let answer = answers::template(&revision.launches.snapshot);
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
            (SnapshotPoint::RestoreWithEvent, None) => Some(answers::restore()),
            (SnapshotPoint::RestoreNext, event) => {
                if let Some((event, version)) = event {
                    parts.capture.begin(&event.request_id, version);
                    answer = Some(session.begin(event));
                }
                Some(answers::restore())
            }
            (
                SnapshotPoint::InvocationNext | SnapshotPoint::RestoreWithEvent,
                Some((event, version)),
            ) => {
                // A rehearsal is nobody's invocation.
                if !event.rehearsal {
                    parts.capture.begin(&event.request_id, version);
                }
                answer = Some(session.begin_parked(&event));
                Some(answers::event(&event))
            }
            (SnapshotPoint::InvocationNext, None) => None,
        };
        let state = match answer {
            Some(_) => State::Busy,
            None => State::Booting,
        };
        let mut held = None;
        match (parked, bytes) {
            (Some(parked), Some(bytes)) => {
                let port = parked.port()?;
                answer_parked(parked, port, bytes, session, &mut parts.tasks)?
            }
            (parked, _) => held = parked,
        }
        Ok(Restored {
            runner: parts.with(booted, revision, count, state)?,
            answer,
            held,
        })
    }
}

/// A copy of a snapshot.
pub struct Restored {
    /// The instance.
    pub runner: Runner,
    /// Yields the answer to the event, if there was one.
    pub answer: Option<oneshot::Receiver<RuntimeAnswer>>,
    /// The connection on which the parked request still waits.
    pub held: Option<ParkedStream>,
}

pub(super) struct Parts {
    session: Arc<Session>,
    capture: Arc<Capture>,
    pub(super) tasks: JoinSet<()>,
}

/// Starts to serve an instance's runtime API and to read its output.
pub(super) fn serve(
    booted: &mut Booted,
    session: Arc<Session>,
    log: &Arc<FunctionLog>,
) -> io::Result<Parts> {
    let capture = Arc::new(Capture::new(booted.log.take(), Arc::clone(log))?);
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let capture = Arc::clone(&capture);
        async move { capture.run().await }
    });
    if let Some(listener) = booted.listener.take() {
        server::spawn(listener, Arc::clone(&session), &mut tasks)?;
    }
    Ok(Parts {
        session,
        capture,
        tasks,
    })
}

impl Parts {
    pub(super) fn with(
        self,
        booted: Booted,
        revision: Arc<Revision>,
        count: &Arc<AtomicUsize>,
        state: State,
    ) -> io::Result<Runner> {
        Ok(Runner {
            revision,
            path: booted.path,
            sandbox: SandboxChoice::Process,
            image: None,
            badge: None,
            state: Arc::new(Mutex::new(state)),
            session: self.session,
            capture: self.capture,
            exit: booted.exit,
            is_followed: false,
            tasks: self.tasks,
            live: booted.live,
            _gauge: Gauge::new(count),
        })
    }
}

/// Writes as much of the answer as the socket takes at once, and leaves the rest to the connection's task.
pub(crate) fn answer_parked(
    parked: ParkedStream,
    port: u16,
    mut bytes: Bytes,
    session: Arc<Session>,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    parked.set_nonblocking(true)?;
    match parked.write(&bytes) {
        Ok(n) => bytes.advance(n),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) => {}
        Err(error) => return Err(error),
    }
    tasks.spawn(server::serve_parked(parked, port, bytes, session));
    Ok(())
}
