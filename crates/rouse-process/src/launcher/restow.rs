//! Stores a snapshot's pages anew, in the order in which its function needs them.

use std::sync::Arc;

use rouse_pool::codec::Choice;
use rouse_pool::cost::CostChoice;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions, WriteReport};

use super::{Launcher, SnapshotError};
use crate::image::Image;
use crate::image::resemblance::base_of;
use crate::instance::Origin;

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
    /// - all pages of the pool in use are brought in, since where they come from is about to go;
    /// - the pages are stored anew;
    /// - the new pool is as resident as the old one before it takes its place.
    fn store_anew(
        &self,
        image: &Arc<Image>,
        choice: &dyn Choice,
    ) -> Result<WriteReport, SnapshotError> {
        let store = &self.inner.store;
        let name = store.name_of(image.directory())?;
        let old = image.memory();
        let is_resident = old.is_resident();
        old.make_resident()?;
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
        let report = match store.rewrite(&name, &options) {
            Ok(report) => report,
            Err(error) => {
                if !is_resident {
                    old.release()?;
                }
                return Err(error.into());
            }
        };
        let stored = store.open_snapshot(&name)?;
        let Some(memory) = self.paged_memory(&name, &stored)? else {
            return Ok(report);
        };
        if is_resident {
            memory.make_resident()?;
        }
        let known = self.inner.pools.add(image, memory.view());
        known.map_err(|source| crate::image::ImageError::Store(source.into()))?;
        image.set_memory(memory);
        image.stowage().lies_as(&stored.map);
        if let Some(paging) = &self.inner.paging {
            paging.follow(image);
        }
        Ok(report)
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

    /// A pool for a stored snapshot, filled by the pager; `None` without a pager, or pages.
    pub(super) fn paged_memory(
        &self,
        name: &str,
        stored: &StoredSnapshot,
    ) -> Result<Option<crate::image::memory::ImageMemory>, SnapshotError> {
        match &self.inner.paging {
            Some(paging) if stored.map.pages() > 0 => {
                let source = self.inner.store.source(name, stored)?;
                Ok(Some(paging.memory(stored, source)?))
            }
            _ => Ok(None),
        }
    }
}
