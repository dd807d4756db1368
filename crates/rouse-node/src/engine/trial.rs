//! A snapshot is tried before anybody relies on it.

use std::sync::Arc;
use std::time::Duration;

use rouse_process::instance::{BootPath, ExitReason};

use super::build::{ended_text, with_all_pages};
use super::function::{Function, Revision};
use super::runner::{Ended, Runner};
use crate::boot::{BootError, LoadedImage};
use crate::function::record::SnapshotPoint;
use crate::node::Node;

/// How long a copy that cannot be asked anything must stay alive to pass its trial.
const SILENCE: Duration = Duration::from_millis(100);
/// How often a trial is made that comes to nothing because something was killed or short.
const ATTEMPTS: usize = 3;
/// Nothing that a copy does by itself ends like this.
const KILLED: ExitReason = ExitReason::Signal(libc::SIGKILL);

/// Restores or forks once, and says why that does not work, if so. What fails because of something else is tried again: the
/// function would be without a snapshot until it is deployed anew.
pub async fn trial(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    image: &LoadedImage,
    point: SnapshotPoint,
    path: BootPath,
) -> Result<(), String> {
    let mut attempt = 1;
    loop {
        match once(node, function, revision, image, point, path).await {
            Err(error) if error.is_from_outside && attempt < ATTEMPTS => {
                tracing::info!(
                    function = function.key,
                    reason = error.reason,
                    "a trial is made again"
                );
                attempt += 1;
            }
            tried => return tried.map_err(|error| error.reason),
        }
    }
}

/// A copy parked in `restore/next` is answered and must then ask for work; one parked in `invocation/next` cannot be asked
/// anything without running the function, so it must stay alive and connected.
async fn once(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    image: &LoadedImage,
    point: SnapshotPoint,
    path: BootPath,
) -> Result<(), BootError> {
    let spec = &revision.launches.snapshot;
    let booted = match path {
        BootPath::Fork => {
            // Those of its template, too.
            with_all_pages(image).await?;
            image.fork(spec).await
        }
        _ => image.restore(spec).await,
    }?;
    let restored = Runner::restored(
        booted,
        Arc::clone(revision),
        point,
        None,
        &function.log,
        &function.counters.instances,
    )
    .map_err(|error| BootError::new(format!("the copy could not be served: {error}")))?;
    let runner = restored.runner;
    match (point, restored.held) {
        (SnapshotPoint::RestoreNext | SnapshotPoint::RestoreWithEvent, _) => {
            let limit = Duration::from_secs(node.config.restore_timeout_s);
            let parked = runner.parked(limit).await;
            parked.map(drop).map_err(|ended| failure(ended, limit))
        }
        (SnapshotPoint::InvocationNext, Some(held)) => {
            let silence = tokio::time::timeout(SILENCE, held.readable()).await;
            let exit = runner.exit().borrow().clone();
            match (exit, runner.problem(), silence) {
                (Some(KILLED), Some(problem), _) => Err(BootError::from_outside(problem)),
                (_, Some(problem), _) => Err(BootError::new(problem)),
                (_, None, Err(_)) => Ok(()),
                (_, None, Ok(_)) => Err(BootError::new("the copy did not keep its connection")),
            }
        }
        (SnapshotPoint::InvocationNext, None) => Err(BootError::new("the copy has no connection")),
    }
}

fn failure(ended: Ended, limit: Duration) -> BootError {
    match ended {
        Ended::BootFailed(error) => error,
        ended @ Ended::Exited(KILLED) => BootError::from_outside(ended_text(ended, limit)),
        ended => BootError::new(ended_text(ended, limit)),
    }
}
