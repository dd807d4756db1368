//! The launcher's end of the pager: pools that are filled when they are needed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rouse_pool::keeper::{
    self, DamageReason, Keeper, KeeperError, PagerError, PagerEvent, PagerHandle, PagerStats,
};
use rouse_pool::snapshot_store::StoredSnapshot;
use rouse_pool::uffd::Device;
use rouse_pool::{PoolId, PoolSource, SparsePool};
use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::page_class::hot_pool_pages;
use rouse_snapshot::working_set::WorkingSet;

use super::Launcher;
use crate::image::memory::{Graveyard, Hold, ImageMemory, PagedMemory, to_register};
use crate::image::{Image, chain};
use crate::monitor::Watch;

/// What is needed to let pages come when they are touched.
#[derive(Debug)]
pub(super) struct Paging {
    /// First, so that it is gone before the pager is told to end: see [`follow`].
    images: Arc<Images>,
    pager: PagerHandle,
    device: Device,
    graveyard: Arc<Graveyard>,
    next_pool: AtomicU64,
    prefetch: AtomicBool,
}

/// Whose pool it is.
type Images = Mutex<HashMap<PoolId, Weak<Image>>>;

/// A keeper that was forked, and the device that makes userfaultfds.
pub(super) struct Started {
    keeper: Keeper,
    device: Device,
}

/// Forks the keeper. `None` where the kernel offers no `/dev/userfaultfd` (Linux 6.1): images are
/// then always resident.
pub(super) fn start_keeper() -> Option<Started> {
    let started = keeper::start().and_then(|keeper| {
        let device = Device::open().map_err(KeeperError::Device)?;
        Ok(Started { keeper, device })
    });
    started
        .inspect_err(|error| {
            let error = chain(error);
            tracing::warn!(error, "snapshots stay in memory: there is no pager");
        })
        .ok()
}

impl Paging {
    /// Talks to the pager, and follows what it reports.
    pub(super) fn connect(started: Started) -> io::Result<Self> {
        let (pager, events) = started.keeper.connect()?;
        let graveyard = Arc::new(Graveyard::new(pager.clone())?);
        let images = Arc::new(Images::default());
        let known = images.clone();
        std::thread::Builder::new()
            .name("pager-events".into())
            .spawn(move || follow(&events, &known))?;
        Ok(Self {
            pager,
            device: started.device,
            graveyard,
            next_pool: AtomicU64::new(1),
            images,
            prefetch: AtomicBool::new(true),
        })
    }

    /// The memory of a stored snapshot. What a boot copies from the pool as from a file is brought in now; the rest when
    /// it is needed.
    pub(super) fn memory(
        &self,
        stored: &StoredSnapshot,
        source: PoolSource,
    ) -> Result<ImageMemory, PagerError> {
        self.graveyard.sweep(&self.pager);
        let sparse = SparsePool::new(stored.pool_name(), stored.map.pages())?;
        let id = PoolId(self.next_pool.fetch_add(1, Ordering::Relaxed));
        let pool = self.pager.add_pool(id, sparse, source.clone())?;
        let (pager, graveyard) = (self.pager.clone(), self.graveyard.clone());
        let memory = PagedMemory::new(pool.clone(), source, pager, graveyard);
        pool.wire(hot_pool_pages(&stored.snapshot, &WorkingSet::default()))?;
        Ok(ImageMemory::Paged(Box::new(memory)))
    }

    /// Tells the image when pages of its pool turn out to be damaged.
    pub(super) fn follow(&self, image: &Arc<Image>) {
        if let Some(pool) = image.memory().pool() {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            images.retain(|_, image| image.strong_count() > 0);
            images.insert(pool, Arc::downgrade(image));
        }
    }

    /// Are working sets brought in when a restore begins?
    pub(super) fn set_prefetch(&self, on: bool) {
        self.prefetch.store(on, Ordering::Relaxed);
    }

    /// What the pagers have done so far.
    pub(super) fn stats(&self) -> PagerStats {
        self.pager.stats()
    }

    /// Has the pager ended, and nobody starts another?
    pub(super) fn is_gone(&self) -> bool {
        self.pager.is_gone()
    }

    /// Pages that all pools hold in near memory.
    pub(super) fn resident_pages(&self) -> u64 {
        self.graveyard.sweep(&self.pager);
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<_> = images.values().filter_map(Weak::upgrade).collect();
        // One that was stored anew is there twice.
        let mut counted = HashSet::new();
        live.iter()
            .filter(|image| counted.insert(Arc::as_ptr(image)))
            .filter_map(|image| {
                let pages = image.resident_pages().ok()?;
                Some(pages.saturating_sub(image.far_pages()))
            })
            .sum()
    }

    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The working sets of what an instance relies on are needed soon: reading and decoding begins while its sandbox and its
    /// address space are made. Nothing of it is needed but the pools.
    pub(super) fn begin(&self, holds: &[Hold]) {
        if !self.prefetch.load(Ordering::Relaxed) {
            return;
        }
        for hold in holds {
            if let Hold::Absent(pool) = hold {
                self.pager.begin_prefetch(*pool);
            }
        }
    }

    /// What is to be watched of an instance: pages that may be absent; and all, if its touches are to be seen exactly.
    pub(super) fn watch(&self, snapshot: &ProcessSnapshot, holds: &[Hold], exact: bool) -> Watch {
        Watch {
            pager: self.pager.clone(),
            mappings: to_register(snapshot, holds, exact),
            prefetch: self.prefetch.load(Ordering::Relaxed),
            exact,
        }
    }
}

fn follow(events: &Receiver<PagerEvent>, images: &Arc<Images>) {
    while let Ok(event) = events.recv() {
        match &event {
            PagerEvent::Damaged {
                pool,
                page,
                reason,
                detail,
                ..
            } => {
                tracing::error!(?event, "a page of a snapshot could not be filled");
                // Nothing is wrong with the snapshot then.
                if *reason == DamageReason::OutOfMemory {
                    continue;
                }
                let images = images.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(image) = images.get(pool).and_then(Weak::upgrade) {
                    image.set_problem(format!("page {page} of its pool is damaged: {detail}"));
                }
            }
            PagerEvent::Started { generation: 1 } => {}
            // The node ends, and the pager with it.
            PagerEvent::Gone if Arc::strong_count(images) == 1 => {}
            PagerEvent::Started { generation } => {
                tracing::warn!(generation, "the pager had died; another one has taken over");
            }
            _ => tracing::error!(?event, "the pager is in trouble"),
        }
    }
}

impl Launcher {
    /// The pager, if an instance that relies on `holds` needs it: because pages may be absent, or, if `exact`, so that its
    /// touches are seen exactly.
    pub(super) fn paging_for(&self, holds: &[Hold], exact: bool) -> Option<&Paging> {
        let is_watched = |hold: &Hold| match hold {
            Hold::Absent(_) => true,
            Hold::Pinned(_) => exact,
            Hold::Whole => false,
        };
        self.inner
            .paging
            .as_ref()
            .filter(|_| holds.iter().any(is_watched))
    }
}
