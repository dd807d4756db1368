//! What other kinds of sandboxes share with processes: the store, the pager and its accounts.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rouse_pool::SnapshotStore;
use rouse_pool::keeper::{PagerError, PoolMapping, Registration};
use rouse_pool::memory::ImageMemory;
use rouse_pool::snapshot_store::StoredSnapshot;
use rouse_sandbox::{LentGroup, Limits, SandboxError};

use super::{Launcher, PoolOwner, SnapshotError};

impl Launcher {
    /// Control groups with limits, for processes that are not the spawner's. Blocks for a millisecond or so.
    ///
    /// # Errors
    /// If they cannot be made, or the spawner has ended.
    pub fn lend_group(&self, limits: Limits) -> Result<LentGroup, SandboxError> {
        self.inner.spawner.lend_group(limits)
    }

    /// Where all snapshots are.
    pub fn store(&self) -> &SnapshotStore {
        &self.inner.store
    }

    /// The pages of a stored snapshot: in a pool of the pager, which fills it when they are needed, and with the working set at
    /// once, if that is `soon`; or, where there is no pager, all of them. Blocks.
    ///
    /// # Errors
    /// Files that cannot be read; without a pager, pages that are damaged.
    pub fn memory_of<S: Sync>(
        &self,
        stored: &StoredSnapshot<S>,
        soon: bool,
    ) -> Result<ImageMemory, SnapshotError> {
        match self.paged_memory(stored, soon)? {
            Some(memory) => Ok(memory),
            None => Ok(ImageMemory::Whole(stored.load()?)),
        }
    }

    /// Counts the memory of a snapshot, and tells its owner when a page of it cannot be filled. To be called again when it lies
    /// in another pool.
    pub fn follow(&self, owner: Arc<dyn PoolOwner>) {
        if let Some(paging) = &self.inner.paging {
            paging.follow(owner);
        }
    }

    /// Has the pager fill the memory of a process; see [`PagerHandle::register`](rouse_pool::keeper::PagerHandle::register), and
    /// [`register_exactly`](rouse_pool::keeper::PagerHandle::register_exactly) if its touches are to be seen `exactly`. Blocks until
    /// the working set is in.
    ///
    /// # Errors
    /// [`PagerError::Gone`] if there is no pager; else those of that call.
    pub fn watch_memory(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        exactly: bool,
    ) -> Result<Registration, PagerError> {
        let paging = self.inner.paging.as_ref().ok_or(PagerError::Gone)?;
        paging.register(uffd, mappings, exactly)
    }
}
