//! A node for the time of one command, in a temporary directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rouse_process::launcher::Launcher;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use super::{LocalNodeError, Prepared};
use crate::client::endpoint::Endpoint;
use crate::output::error::{Failed, INTERRUPTED};
use crate::settings::{ServeConfig, Settings};

/// What a command sees of its node.
#[derive(Debug)]
pub struct Session {
    /// Where the node answers.
    pub endpoint: Endpoint,
    /// Becomes true at the first Ctrl-C; the node is stopping then.
    pub interrupted: Arc<AtomicBool>,
    /// What starts its instances.
    pub launcher: Launcher,
    /// Where the launcher's work can be waited for.
    pub runtime: tokio::runtime::Handle,
    /// The node's state directory.
    pub state_dir: PathBuf,
}

impl Session {
    /// An error once Ctrl-C has been pressed.
    pub fn go_on(&self) -> Result<(), Interrupted> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}

/// Ended by Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Starts a node with `settings` in a temporary directory, runs `work` against it, and removes everything: the node, its
/// instances and the directory, also when `work` fails or Ctrl-C is pressed.
///
/// The process must have a single thread.
pub fn with_node<T>(
    settings: Settings,
    work: impl FnOnce(&Session) -> Result<T, Failed>,
) -> Result<T, Failed> {
    let dir = tempfile::Builder::new().prefix("rouse-").tempdir()?;
    let settings = Settings {
        state_dir: Some(dir.path().to_owned()),
        listen: Some(([127, 0, 0, 1], 0).into()),
        drain_timeout_s: Some(1),
        ..settings
    };
    let config = ServeConfig::resolve(settings, None)?;
    let prepared = Prepared::new(config)?;
    let spawner = prepared.spawner_end();
    let launcher = prepared.launcher();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(LocalNodeError::Tokio)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(Notify::new());
    watch_signals(&runtime, &interrupted, &stop)?;

    let (started, starting) = oneshot::channel();
    let stopped = Arc::clone(&stop);
    let server = runtime.spawn(prepared.run(async move { stopped.notified().await }, started));
    let result = match starting.blocking_recv() {
        Ok(endpoint) => work(&Session {
            endpoint,
            interrupted: Arc::clone(&interrupted),
            launcher,
            runtime: runtime.handle().clone(),
            state_dir: dir.path().to_owned(),
        }),
        // The node did not start: its own result says why.
        Err(_) => Err(Failed::from(Interrupted)),
    };
    stop.notify_one();
    let served = runtime.block_on(server).map_err(LocalNodeError::Panic)?;
    drop(runtime);
    spawner.wait();
    if let Err(error) = dir.close() {
        tracing::warn!(%error, "the temporary directory could not be removed");
    }
    if interrupted.load(Ordering::Relaxed) {
        // Whatever went wrong went wrong because the node was taken away.
        return Err(Failed {
            error: Box::new(Interrupted),
            code: INTERRUPTED,
        });
    }
    served?;
    result
}

/// At the first SIGINT or SIGTERM, says so and stops the node, so that requests that wait on it end, too.
fn watch_signals(
    runtime: &tokio::runtime::Runtime,
    interrupted: &Arc<AtomicBool>,
    stop: &Arc<Notify>,
) -> Result<(), LocalNodeError> {
    let _context = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(LocalNodeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(LocalNodeError::Signals)?;
    let (interrupted, stop) = (Arc::clone(interrupted), Arc::clone(stop));
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        interrupted.store(true, Ordering::Relaxed);
        stop.notify_one();
    });
    Ok(())
}
