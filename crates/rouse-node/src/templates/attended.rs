//! A process that becomes a template or a specimen: its runtime API is served, and its last words are kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rouse_process::instance::ExitReason;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::boot::{Booted, Live};
use crate::engine::report::exit_text;
use crate::engine::runner::answer_parked;
use crate::runtime_api::server;
use crate::runtime_api::session::{Phase, Session};

/// How long the interpreter may take until it is parked, at least.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// How long its last words may take to arrive.
const GRACE: Duration = Duration::from_millis(100);

/// Bytes of its output that are kept, to say why it failed.
const LAST_WORDS: usize = 2048;

/// A process, served.
pub(super) struct Attended {
    booted: Booted,
    session: Arc<Session>,
    /// Connections and output, which stay open as long as this lives.
    tasks: JoinSet<()>,
    words: watch::Receiver<String>,
}

impl Attended {
    /// Serves a process. If it waits for an answer already, `answer` is that.
    pub fn new(
        mut booted: Booted,
        session: Session,
        answer: Option<Bytes>,
    ) -> Result<Self, String> {
        let session = Arc::new(session);
        let mut tasks = JoinSet::new();
        let unserved = |error| format!("its runtime API cannot be served: {error}");
        if let Some(listener) = booted.listener.take() {
            server::spawn(listener, Arc::clone(&session), &mut tasks).map_err(unserved)?;
        }
        if let Some(answer) = answer {
            let parked = booted.parked.take();
            let parked = parked.ok_or("it has no connection to its runtime API")?;
            let port = parked.port().map_err(unserved)?;
            answer_parked(parked, port, answer, Arc::clone(&session), &mut tasks)
                .map_err(unserved)?;
        }
        let output = booted.log.take().map(pipe::Receiver::from_owned_fd);
        let output = output
            .transpose()
            .map_err(|error| format!("its output cannot be read: {error}"))?;
        let (said, words) = watch::channel(String::new());
        tasks.spawn(async move {
            let Some(mut output) = output else { return };
            let mut all = Vec::new();
            while let Ok(1..) = output.read_buf(&mut all).await {
                let surplus = all.len().saturating_sub(LAST_WORDS);
                all.drain(..surplus);
                said.send_replace(String::from_utf8_lossy(&all).into_owned());
            }
        });
        Ok(Self {
            booted,
            session,
            tasks,
            words,
        })
    }

    /// Waits until it is parked where `wanted` says: the client's port.
    pub async fn parked(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&Phase) -> Option<u16>,
    ) -> Result<u16, String> {
        let mut phases = self.session.phases();
        tokio::select! {
            asked = asked(&mut phases, wanted) => asked,
            reason = ended(&mut self.booted.exit) => {
                // The pipe may be read after the end is known.
                let _ = tokio::time::timeout(GRACE, self.words.changed()).await;
                let words = self.words.borrow();
                Err(format!("{}: {}", exit_text(&reason), words.trim()))
            }
            () = tokio::time::sleep(limit) => {
                Err(format!("it was not ready within {} s", limit.as_secs()))
            }
        }
    }

    /// For a checkpoint, which wants the process itself. What is beside it stays until that is done.
    pub fn into_parts(self) -> (Box<dyn Live>, JoinSet<()>) {
        (self.booted.live, self.tasks)
    }
}

/// Waits until the client asks for something.
async fn asked(
    phases: &mut watch::Receiver<Phase>,
    wanted: impl Fn(&Phase) -> Option<u16>,
) -> Result<u16, String> {
    let asked = phases.wait_for(|phase| !matches!(phase, Phase::Working));
    let port = asked.await.ok().and_then(|phase| wanted(&phase));
    port.ok_or_else(|| "it asked for something else than was to be expected".into())
}

async fn ended(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    match exit.wait_for(Option::is_some).await {
        // The clone is what `wait_for` has just seen.
        Ok(reason) => reason.clone().unwrap_or(ExitReason::Code(-1)),
        Err(_) => ExitReason::Signal(9),
    }
}
