//! Changes which version of a snapshot is current.
//!
//! Order: the new version's directory is whole and synced before anything names it; one transaction says which version is
//! current and which are kept; then requests get the new one; then directories that nothing names are removed. A node that
//! is killed in between finds the old or the new version, and removes the rest when it starts.

use std::sync::Arc;

use rouse_process::instance::BootPath;
use rouse_process::launcher::Residency;

use super::history::History;
use super::policy::next_rounds;
use crate::engine::build::{self, Made, remove_directory};
use crate::engine::function::{Function, ReadySnapshot, Revision, SnapshotStatus, StoredSnapshot};
use crate::engine::trial::trial;
use crate::function::arn::FunctionRef;
use crate::function::record::SnapshotRecord;
use crate::function::snapshot_point::PointPolicy;
use crate::node::Node;
use crate::refusal::{Refusal, chain};
use crate::residency::load::drop_aside;

impl Node {
    /// Makes a new snapshot the current one, and keeps the one before. With `against`, only if that is still current.
    /// What was given is removed when it does not come to that.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        made: Made,
        against: Option<u64>,
        edit: impl FnOnce(&mut History),
    ) -> Result<(), String> {
        let _changes = self.changes.lock().await;
        let _loading = revision.loading.lock().await;
        let before = revision.snapshot();
        let current = before.record().cloned();
        let is_expected = against
            .is_none_or(|version| current.as_ref().is_some_and(|now| now.version == version));
        let result = if !self.is_current(function, &revision.record) || !is_expected {
            Err("The function was changed meanwhile.".to_owned())
        } else {
            let mut history = revision.with_history(|history| history.clone());
            let gone = match current {
                Some(current) => history.retire(current, self.config.snapshot_versions),
                None => Vec::new(),
            };
            edit(&mut history);
            self.write_versions(function, revision, made.record.clone(), history)
                .await
                .map(|()| gone)
        };
        let gone = match result {
            Ok(gone) => gone,
            Err(reason) => {
                let version = made.record.version;
                drop_aside(made);
                self.remove_version(revision, version).await;
                return Err(reason);
            }
        };
        let ready = ReadySnapshot {
            image: made.image,
            record: made.record,
            rebuilt_because: None,
        };
        let version = ready.record.version;
        revision.switch_snapshot(SnapshotStatus::Ready(Arc::new(ready)), made.fork_problem);
        drop_aside(before);
        tracing::info!(
            function = function.key,
            version,
            "another version of the snapshot is used"
        );
        for record in gone {
            self.remove_version(revision, record.version).await;
        }
        Ok(())
    }

    /// Goes back to a version that was kept: that one, or the newest before the current one. Requests that run end on the
    /// version that they began with. Returns its number.
    pub async fn rollback(
        self: &Arc<Self>,
        target: &FunctionRef,
        version: Option<u64>,
    ) -> Result<u64, Refusal> {
        let node = Arc::clone(self);
        let target = target.clone();
        // A caller that goes away does not end it half-way.
        let task = tokio::spawn(async move { node.roll_back(&target, version).await });
        task.await
            .unwrap_or_else(|error| Err(Refusal::Service(error.to_string())))
    }

    async fn roll_back(
        self: &Arc<Self>,
        target: &FunctionRef,
        version: Option<u64>,
    ) -> Result<u64, Refusal> {
        let _changes = self.changes.lock().await;
        let function = self.find(target)?;
        let busy = || {
            Refusal::ResourceConflict(
                "The snapshot of the function is being taken; try again later.".into(),
            )
        };
        let revision = function.serving().ok_or_else(busy)?;
        if !self.is_current(&function, &revision.record) {
            return Err(busy());
        }
        let _loading = revision.loading.lock().await;
        let before = revision.snapshot();
        let current = before.record().cloned().ok_or_else(busy)?;
        if version == Some(current.version) {
            return Ok(current.version);
        }
        let mut history = revision.with_history(|history| history.clone());
        let chosen = history.take(version, current.version).ok_or_else(|| {
            Refusal::ResourceNotFound(match version {
                Some(version) => format!("The function has no version {version} of its snapshot."),
                None => "There is no older version of the function's snapshot.".into(),
            })
        })?;
        let unusable = |reason: String| {
            Refusal::ResourceConflict(format!(
                "Version {} of the snapshot cannot be used: {reason}",
                chosen.version
            ))
        };
        let image = build::load_stored(self, &function, &revision, &chosen, Residency::Now)
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let point = chosen.point;
        trial(self, &function, &revision, &image, point, BootPath::Restore)
            .await
            .map_err(&unusable)?;
        let fork_problem = build::fork_problem(self, &function, &revision, &image, point).await;
        // One comes and one goes: never one too many.
        history.retire(current, self.config.snapshot_versions);
        history.is_pinned = true;
        self.write_versions(&function, &revision, chosen.clone(), history)
            .await
            .map_err(Refusal::Service)?;
        let number = chosen.version;
        let ready = ReadySnapshot {
            image,
            record: chosen,
            rebuilt_because: None,
        };
        revision.switch_snapshot(SnapshotStatus::Ready(Arc::new(ready)), fork_problem);
        drop_aside(before);
        revision.try_after(None);
        tracing::info!(
            function = function.key,
            version = number,
            "the snapshot was rolled back"
        );
        Ok(number)
    }

    /// Uses another version instead of a damaged one, if one was kept, and says whether. A new version like the damaged one
    /// follows.
    pub(crate) fn fall_back(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        damaged: &SnapshotRecord,
        problem: &str,
    ) -> bool {
        let kept = revision.with_history(|history| history.fall_back(damaged.version));
        let Some(previous) = kept else {
            return false;
        };
        tracing::warn!(
            function = function.key,
            problem,
            version = damaged.version,
            instead = previous.version,
            "an older version of the snapshot is used"
        );
        let stored = StoredSnapshot::unchecked(previous, Some(problem.to_owned()));
        revision.switch_snapshot(SnapshotStatus::Stored(Arc::new(stored)), None);
        let (node, function, revision) =
            (Arc::clone(self), Arc::clone(function), Arc::clone(revision));
        let damaged = damaged.clone();
        tokio::spawn(async move {
            node.settle(&function, &revision, &damaged).await;
            node.replace_damaged(&function, &revision, &damaged).await;
        });
        true
    }

    /// Stores that a damaged version is not used any more. A node that is killed before finds the damage again.
    async fn settle(
        &self,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        damaged: &SnapshotRecord,
    ) {
        let _changes = self.changes.lock().await;
        if !self.is_current(function, &revision.record) {
            return;
        }
        let Some(current) = revision.snapshot().record().cloned() else {
            return;
        };
        if current.version == damaged.version {
            return;
        }
        let history = revision.with_history(|history| {
            let gone = |one: &SnapshotRecord| {
                one.version == damaged.version || one.version == current.version
            };
            history.kept.retain(|one| !gone(one));
            history.clone()
        });
        match self
            .write_versions(function, revision, current, history)
            .await
        {
            Ok(()) => self.remove_version(revision, damaged.version).await,
            Err(reason) => tracing::error!(
                function = function.key,
                reason,
                "a damaged version of a snapshot is still named"
            ),
        }
    }

    /// Writes, then remembers, what is current and what is kept. Under `changes`.
    pub(super) async fn write_versions(
        &self,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        current: SnapshotRecord,
        mut history: History,
    ) -> Result<(), String> {
        // Numbers that were given out meanwhile are gone.
        history.next = revision.with_history(|now| now.next.max(history.next));
        let (store, key, stored) = (
            Arc::clone(&self.store),
            function.key.clone(),
            history.clone(),
        );
        let written =
            tokio::task::spawn_blocking(move || store.put_versions(&key, &current, &stored)).await;
        written
            .map_err(|error| error.to_string())?
            .map_err(|error| chain(&error))?;
        revision.with_history(|now| {
            history.next = now.next.max(history.next);
            *now = history;
        });
        Ok(())
    }

    /// Removes a version's directory, and, soon, what only it has needed.
    pub(super) async fn remove_version(&self, revision: &Revision, version: u64) {
        remove_directory(self.snapshot_directory(&revision.record, version)).await;
        self.collect_snapshots();
    }

    /// Says when a later snapshot is to be tried, if ever.
    pub(crate) fn plan_trial(&self, function: &Function, revision: &Revision) {
        let point = self.point_of(&function.record());
        let is_wanted = point.policy == PointPolicy::Auto
            && revision.with_history(|history| {
                !history.is_pinned && next_rounds(&history.trials()).is_some()
            });
        let after = point.after.unwrap_or(self.config.snapshot_auto_after);
        revision.try_after(is_wanted.then_some(after));
    }
}
