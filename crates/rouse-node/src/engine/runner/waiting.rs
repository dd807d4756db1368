//! Instances that wait for their next event on the connection on which the process waited that they are copies of, and
//! copies of instances that wait.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::Runner;
use super::start::serve;
use crate::boot::{Boot, Booted, Branch, BranchError};
use crate::engine::function::Revision;
use crate::engine::lifecycle::{State, Step};
use crate::function::record::SnapshotPoint;
use crate::logs::files::FunctionLog;
use crate::runtime_api::answers::WakesAs;
use crate::runtime_api::server;
use crate::runtime_api::session::{Next, Session};

/// How long a runtime may take from its answer until it asks for more.
const ASKS_AGAIN: Duration = Duration::from_secs(5);

impl Runner {
    /// Takes over a copy of a process that waits in `invocation/next`. It gets its event by
    /// [`begin`](Self::begin), as one that has asked by itself.
    pub fn waiting(
        mut booted: Booted,
        revision: Arc<Revision>,
        wakes_as: WakesAs,
        log: &Arc<FunctionLog>,
        count: &Arc<AtomicUsize>,
    ) -> io::Result<Self> {
        let session = Arc::new(Session::restored(SnapshotPoint::InvocationNext));
        let parked = booted.parked.take().ok_or(io::ErrorKind::NotConnected)?;
        let port = parked.port()?;
        parked.set_nonblocking(true)?;
        let mut parts = serve(&mut booted, Arc::clone(&session), log)?;
        let Ok(Next::Wait(event)) = session.next(port) else {
            unreachable!("a session that is ready and has no event lets the runtime wait");
        };
        parts.tasks.spawn(server::serve_waiting(
            parked, port, event, wakes_as, session,
        ));
        let runner = parts.with(booted, revision, count, State::Booting)?;
        runner.step(Step::CameUp);
        Ok(runner)
    }

    /// A snapshot in memory of this instance, which must wait for its next event, and goes on waiting.
    pub async fn branch(&self, boot: &dyn Boot) -> Result<Branch, BranchError> {
        let parked = self.parked(ASKS_AGAIN).await;
        let (point, port) = parked.map_err(|ended| {
            let reason = self.problem();
            let reason = reason.unwrap_or_else(|| format!("it does not ask for work: {ended:?}"));
            BranchError::Ended(reason)
        })?;
        if point != SnapshotPoint::InvocationNext {
            return Err(BranchError::Refused("it does not wait for an event".into()));
        }
        let spec = match self.image {
            Some(_) => &self.revision.launches.snapshot,
            None => &self.revision.launches.cold,
        };
        boot.branch(&*self.live, port, spec).await
    }
}
