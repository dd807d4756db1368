//! From new code to a snapshot that is known to work.
//!
//! Order: start, from the runtime's language template or cold; run warm-up events, if there are any; wait until the runtime is parked; checkpoint into `<revision>.new`; rename (a name without
//! suffix is whole); load as any restart would; try a restore, and a fork; only then let invocations use it. A
//! function whose snapshot cannot be made is served cold, and `describe` says why. What goes wrong with the template and
//! not with the function leads to a cold start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rouse_process::instance::BootPath;
use rouse_process::launcher::Residency;

use super::function::{Function, ReadySnapshot, Revision, SnapshotStatus};
use super::rehearsal;
use super::report::verdict;
use super::runner::{Ended, Runner};
use super::trial::trial;
use crate::boot::{BootError, LoadedImage, Purpose};
use crate::function::record::{
    Because, FunctionRecord, SnapshotPoint, SnapshotRecord, State, WarmUpDone, now_ms,
};
use crate::node::Node;
use crate::refusal::chain;
use crate::runtime_api::session::Event;
use crate::templates::Template;
use crate::versions::history::History;
use crate::versions::warm_up::{self, WarmUp, WarmUpError};

/// Why a build runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occasion {
    /// Created or updated: the function's state waits for the build.
    Change,
    /// After a restart: the function is served cold meanwhile.
    Restart {
        /// What was wrong with the snapshot that was there, if one was.
        problem: Option<String>,
    },
}

/// Starts a build in the background.
pub fn spawn(
    node: &Arc<Node>,
    function: Arc<Function>,
    revision: Arc<Revision>,
    occasion: Occasion,
) {
    let node = Arc::clone(node);
    tokio::spawn(async move { build(&node, &function, revision, occasion).await });
}

async fn build(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: Arc<Revision>,
    occasion: Occasion,
) {
    // The semaphore is never closed.
    let _permit = node.builds.acquire().await;
    if !node.is_current(function, &revision.record) {
        return;
    }
    revision.set_snapshot(SnapshotStatus::Pending {
        reason: "The snapshot is being taken.".into(),
    });
    // What was there could not be used.
    remove_all(node, &revision.record).await;
    let (version, package) = (
        revision.with_history(History::number),
        revision.pin.directory(),
    );
    let (warm_up, mut note) = node.first_warm_up(&function.record(), package);
    let problem = match &occasion {
        Occasion::Restart { problem } => problem.clone(),
        Occasion::Change => None,
    };
    let because = match problem {
        Some(_) => Because::Damaged,
        None => Because::Deployed,
    };
    let mut result = make(node, function, &revision, version, &warm_up, because).await;
    if let Err(NotMade::WarmUp(reason)) = &result {
        // The function works, perhaps not with these events: it is snapshotted where its init ends.
        note = Some(format!("The warm-up failed: {reason}"));
        let nothing = WarmUp::default();
        result = make(node, function, &revision, version, &nothing, because).await;
    }
    let result = result.map_err(|(NotMade::Other(reason) | NotMade::WarmUp(reason))| reason);
    if let Err(reason) = &result {
        tracing::info!(
            function = function.key,
            reason,
            "the function has no snapshot and is served cold"
        );
        let directory = node.snapshot_directory(&revision.record, version);
        remove_directory(directory).await;
        node.collect_snapshots();
    }
    revision.with_history(|history| {
        // Whatever there was could not be used.
        history.kept.clear();
        history.problem = note;
    });
    let stored = result.as_ref().ok().map(|made| made.record.clone());
    let (status, fork_problem) = match result {
        Ok(made) => {
            let ready = ReadySnapshot {
                image: made.image,
                record: made.record,
                rebuilt_because: problem,
            };
            (SnapshotStatus::Ready(Arc::new(ready)), made.fork_problem)
        }
        Err(reason) => {
            let reason = match problem {
                Some(problem) => format!("{reason} (before that: {problem})"),
                None => reason,
            };
            (SnapshotStatus::Failed { reason }, None)
        }
    };
    revision.switch_snapshot(status, fork_problem);
    publish(node, function, revision, stored).await;
}

/// Makes the result of a build what invocations run, unless the function was changed or deleted meanwhile.
async fn publish(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: Arc<Revision>,
    stored: Option<SnapshotRecord>,
) {
    let _changes = node.changes.lock().await;
    if !node.is_current(function, &revision.record) {
        remove_all(node, &revision.record).await;
        return;
    }
    let mut record = FunctionRecord::clone(&function.record());
    record.state = State::Done;
    record.last_update = State::Done;
    let record = Arc::new(record);
    let written = {
        let (store, record) = (Arc::clone(&node.store), Arc::clone(&record));
        let history = revision.with_history(|history| history.clone());
        tokio::task::spawn_blocking(move || store.put_build(&record, stored.as_ref(), &history))
            .await
    };
    match written {
        Ok(Ok(())) => {}
        // The function works from memory; after a restart it is built again.
        Ok(Err(error)) => tracing::error!(
            function = function.key,
            error = chain(&error),
            "a build could not be stored"
        ),
        Err(error) => {
            tracing::error!(function = function.key, %error, "a build could not be stored")
        }
    }
    let old = function.serving();
    function.set_record(record);
    function.serve(Arc::clone(&revision));
    node.plan_trial(function, &revision);
    if let Some(old) = old.filter(|old| old.record.revision_id != revision.record.revision_id) {
        remove_all(node, &old.record).await;
    }
}

/// A snapshot that was just taken, loaded and tried.
pub struct Made {
    /// Loaded.
    pub image: LoadedImage,
    /// To be stored.
    pub record: SnapshotRecord,
    /// Why it cannot be forked, if so.
    pub fork_problem: Option<String>,
}

/// Why a snapshot could not be made, for people.
pub enum NotMade {
    /// The warm-up events failed.
    WarmUp(String),
    /// Something else did.
    Other(String),
}

/// Why there is no snapshot, for people.
enum Failed {
    /// The function failed, and would after any start.
    Function(String),
    /// It failed in an event that was to warm it up.
    WarmUp(String),
    /// The platform failed, perhaps only with this kind of start.
    Platform(String),
}

/// Takes a snapshot of the revision under a number that is its own, loads it and tries it. Nobody uses it yet. What is left
/// of a failure is in the version's directory, which the caller removes.
pub async fn make(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    version: u64,
    warm_up: &WarmUp,
    because: Because,
) -> Result<Made, NotMade> {
    let wanted = Wanted {
        version,
        warm_up,
        because,
    };
    let kind = function.record().serving.sandbox();
    match node.template_for(kind, revision).await {
        Ok(template) => match attempt(node, function, revision, &wanted, Some(&template)).await {
            Ok(made) => return Ok(made),
            Err(Failed::Function(reason)) => return Err(NotMade::Other(reason)),
            Err(Failed::WarmUp(reason)) => return Err(NotMade::WarmUp(reason)),
            Err(Failed::Platform(reason)) => tracing::warn!(
                function = function.key,
                template = template.name,
                reason,
                "the function could not be made of its template and is started from nothing"
            ),
        },
        Err(reason) => {
            tracing::debug!(
                function = function.key,
                reason,
                "the function is started from nothing"
            );
        }
    }
    attempt(node, function, revision, &wanted, None)
        .await
        .map_err(|failed| match failed {
            Failed::WarmUp(reason) => NotMade::WarmUp(reason),
            Failed::Function(reason) | Failed::Platform(reason) => NotMade::Other(reason),
        })
}

/// Which snapshot is to be made.
struct Wanted<'a> {
    version: u64,
    warm_up: &'a WarmUp,
    because: Because,
}

/// Starts the function, of a template or from nothing, and takes and tries its snapshot.
async fn attempt(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    wanted: &Wanted<'_>,
    template: Option<&Template>,
) -> Result<Made, Failed> {
    let boot = node
        .boot_of(function)
        .map_err(|error| Failed::Platform(error.reason))?;
    let directory = &*node.snapshot_directory(&revision.record, wanted.version);
    let warms_up = wanted.warm_up.rounds > 0;
    let spec = &revision.launches.snapshot;
    let begin = Instant::now();
    let booted = match template {
        Some(template) => {
            // Of an instance whose pages may be absent no snapshot can be taken.
            let resident = with_all_pages(&template.image).await;
            resident.map_err(|e| Failed::Platform(format!("The template has no memory: {e}")))?;
            template.image.restore(spec).await
        }
        None => boot.cold(spec).await,
    }
    .map_err(|e| Failed::Platform(format!("The runtime could not be started: {e}")))?;
    let (log, count) = (&function.log, &function.counters.instances);
    let runner = match template {
        Some(_) => Runner::of_template(booted, Arc::clone(revision), warms_up, log, count),
        None if warms_up => Runner::warming(booted, Arc::clone(revision), log, count),
        None => Runner::cold(
            booted,
            Arc::clone(revision),
            revision.launches.snapshotting,
            log,
            count,
        ),
    }
    .map_err(|e| Failed::Platform(format!("The instance could not be served: {e}")))?;
    let limit = Duration::from_secs(
        node.config
            .snapshot_init_timeout_s
            .max(u64::from(revision.record.settings.timeout_s)),
    );
    let failed = |ended: Ended| {
        runner.capture.end(&[]);
        let failed = match &ended {
            Ended::BootFailed(_) => Failed::Platform,
            _ => Failed::Function,
        };
        failed(format!("Init failed: {}", ended_text(ended, limit)))
    };
    let warmed_up = match warms_up {
        true => match warm_up::run(node, revision, &runner, wanted.warm_up, limit).await {
            Ok(done) => done,
            Err(WarmUpError::Init(ended)) => return Err(failed(ended)),
            Err(WarmUpError::Events(reason)) => return Err(Failed::WarmUp(reason)),
        },
        false => WarmUpDone::default(),
    };
    let (point, port) = runner.parked(limit).await.map_err(failed)?;
    let init_us = micros(begin).saturating_sub(warmed_up.us);
    runner.capture.end(&[format!(
        "INIT_REPORT Init Duration: {:.2} ms\tPhase: init\tStatus: success",
        init_us as f64 / 1000.0
    )]);
    // What was there could not be used.
    remove_directory(directory.to_owned()).await;
    // The connections and the pipe stay open until the process has been copied.
    let rehearses = runner.session.rehearses();
    let (live, tasks, capture) = runner.into_parts();
    let taken = boot.checkpoint(live, Purpose::Function, port, spec, directory);
    let report = taken.await;
    drop((tasks, capture));
    // What was written is there as a whole, and counts only once the metadata names it.
    let report = report
        .map_err(|error| Failed::Platform(format!("The snapshot could not be taken: {error}")))?;
    let image = boot
        .load(directory, &ancestors(template), Residency::Now)
        .await
        .map_err(|e| Failed::Platform(format!("The new snapshot could not be loaded: {e}")))?;
    let rehearsal = rehearsal::events(node, revision, point, rehearses, wanted.warm_up);
    first_restore(node, function, revision, &image, point, rehearsal)
        .await
        .map_err(|reason| {
            Failed::Platform(format!("The new snapshot failed its trial: {reason}"))
        })?;
    let fork_problem = fork_problem(node, function, revision, &image, point).await;
    let record = SnapshotRecord {
        revision_id: revision.record.revision_id.clone(),
        point,
        taken_at_ms: now_ms(),
        pause_us: report.pause_us,
        resident_bytes: report.resident_bytes,
        saved_pages: report.saved_pages,
        disk_bytes: report.stored_bytes + size_of(directory).unwrap_or(0),
        init_us,
        // None where the client has found that it had to start over.
        parent: template
            .filter(|_| image.parent_pages > 0)
            .map(|template| template.name.clone()),
        version: wanted.version,
        because: wanted.because,
        warm_up: warmed_up,
    };
    Ok(Made {
        image,
        record,
        fork_problem,
    })
}

/// Why a loaded snapshot cannot be forked, if so: it is tried once.
pub async fn fork_problem(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    image: &LoadedImage,
    point: SnapshotPoint,
) -> Option<String> {
    let tried = trial(node, function, revision, image, point, BootPath::Fork).await;
    let reason = tried.err()?;
    tracing::info!(
        function = function.key,
        reason,
        "the function is not forked"
    );
    Some(format!("The template failed its trial: {reason}"))
}

/// Restores for the first time: with a rehearsal, if there are events for it and they are answered; else for trial alone.
async fn first_restore(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    image: &LoadedImage,
    point: SnapshotPoint,
    events: Vec<Event>,
) -> Result<(), String> {
    if !events.is_empty() {
        match rehearsal::run(node, function, revision, image, point, events).await {
            Ok(()) => {
                // It may have been stored anew.
                node.collect_snapshots();
                return Ok(());
            }
            // The trial says whether something is wrong with the snapshot.
            Err(reason) => tracing::debug!(
                function = function.key,
                reason,
                "nothing is known of what the function's first call will touch"
            ),
        }
    }
    trial(node, function, revision, image, point, BootPath::Restore).await
}

fn ancestors(template: Option<&Template>) -> Vec<LoadedImage> {
    template.map_or_else(Vec::new, Template::ancestors)
}

/// Brings all pages into memory, unless they are there already, near or far.
pub(super) async fn with_all_pages(image: &LoadedImage) -> Result<(), BootError> {
    match image.is_resident() {
        true => Ok(()),
        false => image.make_resident(None).await,
    }
}

/// Loads a revision's snapshot as it is on disk.
pub async fn load_stored(
    node: &Arc<Node>,
    function: &Function,
    revision: &Arc<Revision>,
    stored: &SnapshotRecord,
    residency: Residency,
) -> Result<LoadedImage, BootError> {
    let directory = node.snapshot_directory(&revision.record, stored.version);
    let template = match &stored.parent {
        Some(parent) => {
            let kind = function.record().serving.sandbox();
            node.parent_of(kind, revision, parent).await
        }
        None => None,
    };
    let ancestors = ancestors(template.as_ref());
    let boot = node.boot_of(function)?;
    boot.load(&directory, &ancestors, residency).await
}

/// How a start or an invocation ended, for people.
pub fn ended_text(ended: Ended, limit: Duration) -> String {
    match ended {
        Ended::InitTimedOut => format!(
            "the runtime did not ask for work within {} s",
            limit.as_secs()
        ),
        Ended::RestoreTimedOut => format!(
            "the after-restore hooks took more than {} s",
            limit.as_secs()
        ),
        Ended::BootFailed(error) => error.reason,
        Ended::Exited(reason) => super::report::exit_text(&reason),
        other => {
            let verdict = verdict(other, "", limit, limit);
            let json: Option<serde_json::Value> = serde_json::from_slice(&verdict.payload).ok();
            let message = json
                .as_ref()
                .and_then(|j| j.get("errorMessage"))
                .and_then(|m| m.as_str())
                .unwrap_or_default();
            format!("{}: {message}", verdict.error_type.unwrap_or_default())
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Removes all versions of a revision's snapshot.
pub async fn remove_all(node: &Node, record: &FunctionRecord) {
    let folder = node.snapshots_of(record);
    let revision = record.revision_id.clone();
    let found = tokio::task::spawn_blocking(move || {
        let Ok(entries) = fs::read_dir(&folder) else {
            return Vec::new();
        };
        let is_version = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let rest = name.strip_prefix(revision.as_str());
            rest.is_some_and(|rest| {
                rest.is_empty() || rest.strip_prefix('-').is_some_and(is_number)
            })
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(is_version).collect()
    });
    for directory in found.await.unwrap_or_default() {
        remove_directory(directory).await;
    }
    node.collect_snapshots();
}

/// Removes a snapshot, and its function's directory when it was the last one there.
pub async fn remove_directory(directory: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || {
        // What is learnt from an instance that has just answered may be written into it at this moment, once for each.
        let removed = (0..10).map(|_| fs::remove_dir_all(&directory)).find(|removed| {
            !matches!(removed, Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty)
        });
        match removed {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %directory.display(), %error, "cannot remove a snapshot");
            }
            None => tracing::warn!(path = %directory.display(), "cannot empty a snapshot"),
            _ => {}
        }
        if let Some(parent) = directory.parent() {
            // Fails while other snapshots are in it.
            let _ = fs::remove_dir(parent);
        }
    });
    if removed.await.is_err() {
        tracing::warn!("the removal of a snapshot was cancelled");
    }
}

fn size_of(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}
