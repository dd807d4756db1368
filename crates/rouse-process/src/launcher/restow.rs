//! Stores a snapshot's pages anew, in the order in which its function needs them.

use std::sync::Arc;

use rouse_pool::codec::Choice;
use rouse_pool::cost::CostChoice;
use rouse_pool::memory::ImageMemory;
use rouse_pool::snapshot_store::{StoreError, StoredSnapshot, WriteOptions, WriteReport};

use super::paging::wire;
use super::{Launcher, SnapshotError};
use crate::image::Image;
use crate::image::resemblance::base_of;
use crate::instance::Origin;

/// Pages besides the working set that a first call would bring in, too, were the snapshot not stored anew: to bring in so many takes
/// two milliseconds.
const WORTH_STORING: u64 = 512;

impl Launcher {
    /// Stores the pages of an image anew: what its function is known to need in front, in one piece, coded as `choice`
    /// says. Instances that start from now on use that; others keep what they have. Only with a pager. Waits for what is
    /// being written; takes a read and a write of the whole snapshot.
    ///
    /// Returns `None` if there is no pager, or somebody else does this at the moment.
    pub async fn restow(
        &self,
        image: &Arc<Image>,
        choice: Arc<dyn Choice>,
    ) -> Result<Option<WriteReport>, SnapshotError> {
        let (launcher, image) = (self.clone(), image.clone());
        let task = tokio::task::spawn_blocking(move || {
            if launcher.inner.paging.is_none() {
                return Ok(None);
            }
            let Some(_claim) = image.stowage().claim() else {
                return Ok(None);
            };
            launcher.store_anew(&image, choice.as_ref()).map(Some)
        });
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    /// In this order:
    /// - a copy on far memory is left: what replaces the pool is not a copy of it, and the policy makes another one;
    /// - the pages are stored anew; who runs on the old pool meanwhile gets its pages from the files of before, which the pager
    ///   has open;
    /// - the new pool is as resident as the old one before it takes its place.
    fn store_anew(
        &self,
        image: &Arc<Image>,
        choice: &dyn Choice,
    ) -> Result<WriteReport, SnapshotError> {
        let store = &self.inner.store;
        let name = store.name_of(image.directory())?;
        image.leave_far();
        let old = image.memory();
        let is_resident = old.is_resident();
        let hot = image.hot_pages();
        // Without it the pages take more room.
        let base = image.template().and_then(|template| {
            base_of(store, image.snapshot(), template)
                .inspect_err(|error| tracing::warn!(%error, "a template's pages cannot be used"))
                .ok()
                .flatten()
        });
        let options = WriteOptions {
            hot: &hot,
            choice,
            base,
            dictionary: self.inner.dictionaries.of(image.snapshot()),
            // Both are those of the snapshot.
            ..WriteOptions::new(super::snapshots::TENANT)
        };
        let report = store.rewrite(&name, &options)?;
        let stored = store.open_snapshot(&name)?;
        let Some(memory) = self.paged_memory(&stored, false)? else {
            return Ok(report);
        };
        wire(&memory, &stored.snapshot)?;
        if is_resident {
            memory.make_resident()?;
        }
        let known = self.inner.pools.add(image, memory.view());
        known.map_err(|source| crate::image::ImageError::Store(source.into()))?;
        image.replace_memory(memory);
        image.stowage().lies_as(&stored.map);
        if let Some(paging) = &self.inner.paging {
            paging.follow(image.clone());
        }
        Ok(report)
    }

    /// At once, unless there is no pager, or nothing known, or it would save little: what is stored anew is not shared with other
    /// snapshots any more. What is on disk is as good as before if that fails.
    pub(super) fn restow_now(&self, image: &Arc<Image>) {
        let hot = image.hot_pages_count();
        let others = image.snapshot().pool_pages.saturating_sub(hot);
        if self.inner.paging.is_none() || hot == 0 || others < WORTH_STORING {
            return;
        }
        let Some(_claim) = image.stowage().claim() else {
            return;
        };
        if let Err(error) = self.store_anew(image, &CostChoice::new(self.costs())) {
            tracing::debug!(%error, "a snapshot could not be stored anew");
        }
    }

    /// In the background, if what was learnt makes it worth it.
    pub(super) fn restow_if_worth_it(&self, origin: &Origin) {
        let image = &origin.image;
        if self.inner.paging.is_none() || image.snapshot().pool_pages == 0 {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let report = image.working_set_report();
        let needed = image.hot_pages();
        let (seen, answered) = (report.observations, report.invocations);
        let Some(claim) = image.stowage().begin(&needed, seen, answered) else {
            return;
        };
        let (launcher, image, spec) = (self.clone(), image.clone(), origin.spec.clone());
        runtime.spawn(async move {
            let (by, of) = (launcher.clone(), image.clone());
            let task = tokio::task::spawn_blocking(move || {
                let choice = CostChoice::new(by.costs());
                let _claim = claim;
                by.store_anew(&of, &choice)
            });
            match task.await {
                Ok(Ok(report)) => tracing::debug!(?report, "a snapshot was stored anew"),
                // It may have been removed meanwhile; what is on disk is as good as before.
                Ok(Err(error)) => tracing::debug!(%error, "a snapshot could not be stored anew"),
                Err(_) => return,
            }
            // Instances and a template of the pool before would keep that pool in memory.
            image.drop_parked();
            if image.clones().is_some() {
                image.drop_clones();
                if let Err(error) = launcher.start_clones(&image, &spec).await {
                    tracing::warn!(%error, "the template could not be made anew");
                }
            }
        });
    }

    /// All snapshots in use.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.inner.pools.images()
    }

    /// Are working sets brought in before a restored instance goes on? They are, unless this is switched off to see what
    /// it saves.
    pub fn set_prefetch(&self, on: bool) {
        if let Some(paging) = &self.inner.paging {
            paging.set_prefetch(on);
        }
    }

    /// A pool for a stored snapshot, filled by the pager; `None` without a pager, or pages, or if they lie in too many files
    /// for that. If it is needed `soon`, its working set is begun at once.
    pub(super) fn paged_memory<S: Sync>(
        &self,
        stored: &StoredSnapshot<S>,
        soon: bool,
    ) -> Result<Option<ImageMemory>, SnapshotError> {
        match &self.inner.paging {
            Some(paging) if stored.map.pages() > 0 => {
                let source = match self.inner.store.source(stored) {
                    Err(error @ StoreError::Scattered { .. }) => {
                        tracing::warn!(%error, "a snapshot stays in memory");
                        return Ok(None);
                    }
                    source => source?,
                };
                Ok(Some(paging.memory(stored, source, soon)?))
            }
            _ => Ok(None),
        }
    }
}
