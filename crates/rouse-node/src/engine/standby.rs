//! Instances that are to be ready before their requests, where parking does not make them.
//!
//! A function with a snapshot has parked instances, see [`super::parking`]; here its snapshot is loaded so that they can be
//! made. One that can only start from nothing has idle instances, which are started here, one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::function::{Function, Revision, SnapshotStatus};
use super::runner::Runner;
use crate::config::BootPolicy;
use crate::node::Node;

/// Before another instance is started after one did not come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Brings a function closer to having `wanted` instances ready.
pub(super) fn prepare(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    wanted: usize,
) {
    let status = match node.config.boot {
        BootPolicy::Cold => None,
        _ => Some(revision.snapshot()),
    };
    match status {
        Some(SnapshotStatus::Ready(_) | SnapshotStatus::Pending { .. }) => {}
        Some(SnapshotStatus::Stored(_)) => {
            let Some(turn) = function.standby.turn(Instant::now()) else {
                return;
            };
            let (node, function) = (Arc::clone(node), Arc::clone(function));
            let revision = Arc::clone(revision);
            tokio::spawn(async move {
                let loaded = node.usable_snapshot(&function, &revision).await;
                turn.end(loaded.is_some());
            });
        }
        Some(SnapshotStatus::Failed { .. }) | None => {
            let reuses = node.serving(function).isolation.reuses(false);
            if !reuses || function.idle_count() >= wanted {
                return;
            }
            let Some(turn) = function.standby.turn(Instant::now()) else {
                return;
            };
            let (node, function) = (Arc::clone(node), Arc::clone(function));
            let revision = Arc::clone(revision);
            tokio::spawn(async move {
                let started = start(&node, &function, &revision).await;
                if let Err(reason) = &started {
                    let function = &function.key;
                    tracing::warn!(function, reason, "no instance could be made ready");
                }
                turn.end(started.is_ok());
            });
        }
    }
}

/// Starts an instance from nothing, waits until it asks for work, and keeps it.
async fn start(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
) -> Result<(), String> {
    let kind = function.record().serving.sandbox();
    let boot = node.boot_of(function).map_err(|error| error.reason)?;
    let booted = boot.cold(&revision.launches.cold).await;
    let runner = Runner::cold(
        booted.map_err(|error| error.reason)?,
        Arc::clone(revision),
        false,
        &function.log,
        &function.counters.instances,
    )
    .map_err(|error| format!("the instance could not be served: {error}"))?;
    let mut runner = runner.in_sandbox(kind);
    let limit = Duration::from_secs(node.config.init_timeout_s);
    runner
        .parked(limit)
        .await
        .map_err(|ended| format!("it did not come to ask for work: {ended:?}"))?;
    node.instances.enlist(&mut runner, &function.key);
    function.keep(runner);
    Ok(())
}

/// Whose turn it is: one preparation at a time, and a pause after one that failed.
#[derive(Debug, Default)]
pub struct Standby(Arc<std::sync::Mutex<Progress>>);

#[derive(Debug, Default)]
enum Progress {
    #[default]
    Idle,
    Running,
    FailedAt(Instant),
}

/// The right to prepare. Dropped without [`end`](Turn::end) it counts as a failure.
struct Turn(Arc<std::sync::Mutex<Progress>>);

impl Standby {
    fn turn(&self, now: Instant) -> Option<Turn> {
        let mut progress = lock(&self.0);
        let is_free = match *progress {
            Progress::Idle => true,
            Progress::Running => false,
            Progress::FailedAt(at) => now.saturating_duration_since(at) >= PATIENCE,
        };
        is_free.then(|| {
            *progress = Progress::Running;
            Turn(Arc::clone(&self.0))
        })
    }
}

impl Turn {
    fn end(self, is_done: bool) {
        if is_done {
            *lock(&self.0) = Progress::Idle;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut progress = lock(&self.0);
        if matches!(*progress, Progress::Running) {
            *progress = Progress::FailedAt(Instant::now());
        }
    }
}

fn lock(progress: &std::sync::Mutex<Progress>) -> std::sync::MutexGuard<'_, Progress> {
    progress
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_a_pause_after_a_failure() {
        let standby = Standby::default();
        let now = Instant::now();
        let first = standby.turn(now).unwrap();
        assert!(standby.turn(now).is_none());
        first.end(true);
        drop(standby.turn(now).unwrap());
        assert!(standby.turn(now).is_none());
        assert!(standby.turn(Instant::now() + PATIENCE).is_some());
    }
}
