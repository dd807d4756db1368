//! Snapshots that are on disk only, until somebody calls their function.

use std::sync::Arc;

use rouse_process::launcher::Residency;

use crate::boot::LoadedImage;
use crate::engine::build::{self, Occasion};
use crate::engine::function::{Function, ReadySnapshot, Revision, SnapshotStatus, StoredSnapshot};
use crate::node::Node;

impl Node {
    /// The snapshot of a revision, loaded if it is not, or `None` if it has none that can be used.
    ///
    /// Loading reads the manifest and verifies files and host; pages come when they are touched.
    pub(crate) async fn usable_snapshot(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
    ) -> Option<Arc<ReadySnapshot>> {
        self.snapshot_for(function, revision, Residency::OnDemand)
            .await
    }

    /// The same for a request that is going to be served from it: its working set is on its way when this returns.
    pub(crate) async fn snapshot_to_invoke(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
    ) -> Option<Arc<ReadySnapshot>> {
        self.snapshot_for(function, revision, Residency::ForCall)
            .await
    }

    async fn snapshot_for(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        residency: Residency,
    ) -> Option<Arc<ReadySnapshot>> {
        match revision.snapshot() {
            SnapshotStatus::Ready(ready) => match ready.image.problem() {
                None => Some(ready),
                Some(problem) => {
                    self.condemn(function, revision, &ready, problem);
                    // Another version may have been kept.
                    self.load_stored(function, revision, Some(residency)).await
                }
            },
            SnapshotStatus::Stored(_) => {
                self.load_stored(function, revision, Some(residency)).await
            }
            SnapshotStatus::Pending { .. } | SnapshotStatus::Failed { .. } => None,
        }
    }

    /// Verifies a snapshot that was found at the start; it stays on disk if nobody has called its function meanwhile.
    pub(crate) async fn check_stored(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
    ) {
        self.load_stored(function, revision, None).await;
    }

    /// Loads a stored snapshot, to keep it in that way, or only to see whether it can be used.
    async fn load_stored(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        keep: Option<Residency>,
    ) -> Option<Arc<ReadySnapshot>> {
        // Whoever comes second finds what the first one has loaded.
        let _one_at_a_time = revision.loading.lock().await;
        // A version that cannot be loaded is replaced by one that was kept, as long as there are any.
        loop {
            let stored = match revision.snapshot() {
                SnapshotStatus::Stored(stored) => stored,
                SnapshotStatus::Ready(ready) => return Some(ready),
                SnapshotStatus::Pending { .. } | SnapshotStatus::Failed { .. } => return None,
            };
            let residency = keep.unwrap_or(Residency::OnDemand);
            match build::load_stored(self, function, revision, &stored.record, residency).await {
                Ok(image) if keep.is_some() => {
                    let ready = ready(image, &stored);
                    revision.set_snapshot(SnapshotStatus::Ready(Arc::clone(&ready)));
                    return Some(ready);
                }
                Ok(image) => {
                    revision.set_snapshot(SnapshotStatus::Stored(Arc::new(StoredSnapshot {
                        is_checked: true,
                        mapped_pages: Some(image.mapped_pages),
                        parent_pages: image.parent_pages,
                        working_set: image.working_set(),
                        ..StoredSnapshot::clone(&stored)
                    })));
                    drop_aside(image);
                    return None;
                }
                Err(error) => {
                    let problem = match stored.is_checked {
                        false => {
                            format!("The snapshot found at the start could not be used: {error}")
                        }
                        true => format!("The stored snapshot could not be used any more: {error}"),
                    };
                    if !self.fall_back(function, revision, &stored.record, &problem) {
                        self.rebuild(function, revision, problem);
                        return None;
                    }
                }
            }
        }
    }

    /// Takes a damaged snapshot out of use: another version takes its place, or the function is served cold until there is a
    /// new one.
    pub(crate) fn condemn(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        ready: &Arc<ReadySnapshot>,
        problem: String,
    ) {
        let problem = format!("The snapshot turned out to be damaged: {problem}");
        let pending = SnapshotStatus::Pending {
            reason: problem.clone(),
        };
        // Whoever comes second has nothing to do.
        if !revision.replace_ready(ready, pending) {
            return;
        }
        if !self.fall_back(function, revision, &ready.record, &problem) {
            self.rebuild(function, revision, problem);
        }
    }

    /// Restores of a snapshot have failed too often: another version takes its place, if one was kept.
    pub(crate) fn give_up(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        ready: &Arc<ReadySnapshot>,
    ) {
        if let SnapshotStatus::Failed { reason } = revision.snapshot() {
            self.fall_back(function, revision, &ready.record, &reason);
        }
    }

    fn rebuild(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        problem: String,
    ) {
        tracing::warn!(function = function.key, problem, "building a new snapshot");
        revision.set_snapshot(SnapshotStatus::Pending {
            reason: problem.clone(),
        });
        let occasion = Occasion::Restart {
            problem: Some(problem),
        };
        build::spawn(self, Arc::clone(function), Arc::clone(revision), occasion);
    }

    /// Leaves a loaded snapshot on disk only.
    pub(crate) fn unload(&self, revision: &Revision, ready: &Arc<ReadySnapshot>) {
        let stored = SnapshotStatus::Stored(Arc::new(StoredSnapshot {
            record: ready.record.clone(),
            rebuilt_because: ready.rebuilt_because.clone(),
            mapped_pages: Some(ready.image.mapped_pages),
            parent_pages: ready.image.parent_pages,
            working_set: ready.image.working_set(),
            is_checked: true,
        }));
        if revision.replace_ready(ready, stored) {
            drop_aside(Arc::clone(ready));
        }
    }

    /// Verifies, one after the other, what was found at the start.
    pub(crate) async fn check_all(self: Arc<Self>) {
        for function in self.all() {
            let Some(revision) = function.serving() else {
                continue;
            };
            let unchecked =
                matches!(revision.snapshot(), SnapshotStatus::Stored(stored) if !stored.is_checked);
            if unchecked {
                // The semaphore is never closed.
                let _permit = self.builds.acquire().await;
                self.check_stored(&function, &revision).await;
            }
        }
    }
}

fn ready(image: LoadedImage, stored: &StoredSnapshot) -> Arc<ReadySnapshot> {
    Arc::new(ReadySnapshot {
        image,
        record: stored.record.clone(),
        rebuilt_because: stored.rebuilt_because.clone(),
    })
}

/// The last owner of an image tells the pager, which takes a round trip.
pub(crate) fn drop_aside<T: Send + 'static>(value: T) {
    tokio::task::spawn_blocking(move || drop(value));
}
