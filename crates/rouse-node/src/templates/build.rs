//! Makes the snapshot of a template.

use std::sync::Arc;
use std::time::Duration;

use rouse_process::instance::ExitReason;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Template;
use super::plan::{EMPTY_PACKAGE, TemplatePlan};
use crate::engine::build::remove_directory;
use crate::engine::report::exit_text;
use crate::node::Node;
use crate::runtime_api::server;
use crate::runtime_api::session::{Phase, Session};

/// How long the interpreter may take until it is parked.
const LIMIT: Duration = Duration::from_secs(60);

/// How long its last words may take to arrive.
const GRACE: Duration = Duration::from_millis(100);

/// Bytes of its output that are kept, to say why it failed.
const LAST_WORDS: usize = 2048;

impl Node {
    pub(super) async fn make_template(&self, plan: &TemplatePlan) -> Result<Template, String> {
        let package = self.config.state_dir.join(EMPTY_PACKAGE);
        tokio::fs::create_dir_all(&package)
            .await
            .map_err(|error| format!("{}: {error}", package.display()))?;
        let directory = self.template_directory(&plan.name);
        // What was there could not be used.
        remove_directory(directory.clone()).await;
        let mut booted = self
            .boot
            .cold(&plan.launch)
            .await
            .map_err(|error| error.to_string())?;
        let session = Arc::new(Session::template());
        let mut tasks = JoinSet::new();
        if let Some(listener) = booted.listener.take() {
            listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
                .map(|listener| tasks.spawn(server::accept(listener, Arc::clone(&session))))
                .map_err(|error| format!("its runtime API cannot be served: {error}"))?;
        }
        let output = booted.log.take().map(pipe::Receiver::from_owned_fd);
        let output = output
            .transpose()
            .map_err(|error| format!("its output cannot be read: {error}"))?;
        let (said, mut words) = watch::channel(String::new());
        tasks.spawn(async move {
            let Some(mut output) = output else { return };
            let mut all = Vec::new();
            while let Ok(1..) = output.read_buf(&mut all).await {
                let surplus = all.len().saturating_sub(LAST_WORDS);
                all.drain(..surplus);
                said.send_replace(String::from_utf8_lossy(&all).into_owned());
            }
        });
        let mut phases = session.phases();
        let parked = tokio::select! {
            asked = asked(&mut phases) => asked,
            reason = ended(&mut booted.exit) => {
                // The pipe may be read after the end is known.
                let _ = tokio::time::timeout(GRACE, words.changed()).await;
                let words = words.borrow();
                Err(format!("{}: {}", exit_text(&reason), words.trim()))
            }
            () = tokio::time::sleep(LIMIT) => {
                Err(format!("it was not ready within {} s", LIMIT.as_secs()))
            }
        }?;
        // The connection and the pipe stay open until the process has been copied.
        let report = self
            .boot
            .checkpoint_template(booted.live, parked, &plan.launch, &directory)
            .await;
        drop(tasks);
        let report = report.map_err(|error| error.to_string())?;
        tracing::info!(
            template = plan.name,
            pages = report.saved_pages,
            bytes = report.stored_bytes,
            "a language template was made"
        );
        self.load_template(plan).await
    }
}

/// Waits until the client asks for something; the port is the client's.
async fn asked(phases: &mut watch::Receiver<Phase>) -> Result<u16, String> {
    let asked = phases.wait_for(|phase| !matches!(phase, Phase::Working));
    match asked.await.as_deref() {
        Ok(Phase::Template { port }) => Ok(*port),
        _ => Err("it asked for something else than to be a template".into()),
    }
}

async fn ended(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    match exit.wait_for(Option::is_some).await {
        // The clone is what `wait_for` has just seen.
        Ok(reason) => reason.clone().unwrap_or(ExitReason::Code(-1)),
        Err(_) => ExitReason::Signal(9),
    }
}
