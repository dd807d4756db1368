//! The launcher's end of the pager: pools that are filled when they are needed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rouse_pool::keeper::{
    self, DamageReason, Keeper, KeeperError, PageFault, PagerError, PagerEvent, PagerHandle,
    PagerStats, PoolMapping, Registration,
};
use rouse_pool::memory::{Hold, ImageMemory, PagedMemory};
use rouse_pool::snapshot_store::StoredSnapshot;
use rouse_pool::uffd::Device;
use rouse_pool::{PoolId, PoolSource, SparsePool};
use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::page_class::hot_pool_pages;
use rouse_snapshot::working_set::WorkingSet;
use tokio::sync::Notify;

use super::Launcher;
use crate::image::registered::to_register;
use crate::image::{Image, chain};
use crate::instance::Origin;
use crate::monitor::{Sight, Watch};
use crate::plan::copied::{CopyPolicy, copied_in_any_case};

/// What is needed to let pages come when they are touched.
#[derive(Debug)]
pub(super) struct Paging {
    /// First, so that it is gone before the pager is told to end: see [`follow`].
    images: Arc<Images>,
    pager: PagerHandle,
    device: Device,
    next_pool: AtomicU64,
    shortage: Arc<Notify>,
    prefetch: AtomicBool,
}

/// Whose pool it is.
type Images = Mutex<HashMap<PoolId, Weak<dyn PoolOwner>>>;

/// A snapshot whose pages lie in a pool of the pager.
pub trait PoolOwner: Send + Sync {
    /// Where they lie now.
    fn memory(&self) -> Arc<ImageMemory>;
    /// Do its instances map pages of that one, too?
    fn descends_from(&self, other: &dyn PoolOwner) -> bool;
    /// From now on it is useless: a page cannot be filled.
    fn set_problem(&self, problem: String);
}

impl PoolOwner for Image {
    fn memory(&self) -> Arc<ImageMemory> {
        self.placed_memory()
    }

    fn descends_from(&self, other: &dyn PoolOwner) -> bool {
        let mut parents = self.parents().iter();
        parents.any(|parent| std::ptr::addr_eq(Arc::as_ptr(parent), other))
    }

    fn set_problem(&self, problem: String) {
        self.set_problem(problem);
    }
}

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
        let images = Arc::new(Images::default());
        let shortage = Arc::<Notify>::default();
        let (known, short) = (images.clone(), shortage.clone());
        std::thread::Builder::new()
            .name("pager-events".into())
            .spawn(move || follow(&events, &known, &short))?;
        Ok(Self {
            pager,
            device: started.device,
            next_pool: AtomicU64::new(1),
            images,
            shortage,
            prefetch: AtomicBool::new(true),
        })
    }

    /// The memory of a stored snapshot. It is brought in when it is needed; if that is `soon`, the working set is begun at once.
    pub(super) fn memory<S: Sync>(
        &self,
        stored: &StoredSnapshot<S>,
        source: PoolSource,
        soon: bool,
    ) -> Result<ImageMemory, PagerError> {
        let sparse = SparsePool::new(stored.pool_name(), stored.map.pages())?;
        let id = PoolId(self.next_pool.fetch_add(1, Ordering::Relaxed));
        let pool = self.pager.add_pool(id, sparse, &source)?;
        if soon && self.prefetch.load(Ordering::Relaxed) {
            self.pager.begin_prefetch(id, &[]);
        }
        let memory = PagedMemory::new(pool, source, self.pager.clone());
        Ok(ImageMemory::Paged(Box::new(memory)))
    }

    /// Tells the owner when pages of its pool turn out to be damaged.
    pub(super) fn follow(&self, owner: Arc<dyn PoolOwner>) {
        if let Some(pool) = owner.memory().pool() {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            images.retain(|_, image| image.strong_count() > 0);
            images.insert(pool, Arc::downgrade(&owner));
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

    /// Heard whenever there is no memory for a page that somebody waits for.
    pub(super) fn shortage(&self) -> Arc<Notify> {
        self.shortage.clone()
    }

    /// Has the pager ended, and nobody starts another?
    pub(super) fn is_gone(&self) -> bool {
        self.pager.is_gone()
    }

    /// Pages that all pools hold in near memory.
    pub(super) fn resident_pages(&self) -> u64 {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<_> = images.values().filter_map(Weak::upgrade).collect();
        // One that was stored anew is there twice.
        let mut counted = HashSet::new();
        live.iter()
            .filter(|image| counted.insert(Arc::as_ptr(image).cast::<()>()))
            .filter_map(|image| {
                let memory = image.memory();
                let pages = memory.resident_pages().ok()?;
                Some(pages.saturating_sub(memory.far_pages()))
            })
            .sum()
    }

    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The working sets of what an instance relies on are needed soon: reading and decoding begins while its sandbox and its
    /// address space are made. Nothing of it is needed but the pools. Of its own pool, the instance needs these pages before it goes on;
    /// all, if there are none.
    pub(super) fn begin(&self, holds: &[Hold], first: &[Range<u64>]) {
        if !self.prefetch.load(Ordering::Relaxed) {
            return;
        }
        let firsts = std::iter::once(first).chain(std::iter::repeat(&[][..]));
        for (hold, first) in holds.iter().zip(firsts) {
            if let Hold::Absent(pool) = hold {
                self.pager.begin_prefetch(*pool, first);
            }
        }
    }

    /// Has the pager watch memory.
    pub(super) fn register(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        exactly: bool,
    ) -> Result<Registration, PagerError> {
        let prefetch = self.prefetch.load(Ordering::Relaxed);
        match exactly {
            true => self.pager.register_exactly(uffd, mappings, prefetch),
            false => self.pager.register(uffd, mappings, prefetch),
        }
    }

    /// What is to be watched of an instance: pages that may be absent; and all, unless all that is asked for is that they
    /// come.
    pub(super) fn watch(
        &self,
        snapshot: &ProcessSnapshot,
        copying: &CopyPolicy,
        holds: &[Hold],
        sight: Sight,
    ) -> Watch {
        let all = !matches!(sight, Sight::Blurred);
        Watch {
            pager: self.pager.clone(),
            mappings: to_register(snapshot, holds, all, copying),
            prefetch: self.prefetch.load(Ordering::Relaxed),
            sight,
        }
    }
}

fn follow(events: &Receiver<PagerEvent>, images: &Arc<Images>, shortage: &Notify) {
    while let Ok(event) = events.recv() {
        match &event {
            PagerEvent::Damaged {
                pool,
                page,
                reason,
                detail,
                ..
            } => {
                if *reason != DamageReason::OutOfMemory {
                    tracing::error!(?event, "a page of a snapshot could not be filled");
                }
                // Nothing is wrong with the snapshot then.
                if *reason == DamageReason::OutOfMemory {
                    shortage.notify_one();
                    continue;
                }
                let images = images.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(image) = images.get(pool).and_then(Weak::upgrade) else {
                    continue;
                };
                image.set_problem(format!("page {page} of its pool is damaged: {detail}"));
                for child in images.values().filter_map(Weak::upgrade) {
                    if child.descends_from(&*image) {
                        let problem =
                            format!("page {page} of its template's pool is damaged: {detail}");
                        child.set_problem(problem);
                    }
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
    /// Why an instance has got a signal, or an error from a system call, if that was because a page of an image could not be
    /// filled: see [`PagerHandle::fault_of`].
    pub(crate) fn fault_of(&self, token: u64, origin: &Origin) -> Option<PageFault> {
        let paging = self.inner.paging.as_ref()?;
        // With a pager that is gone everything ends.
        let fault = paging.pager.fault_of(token).ok().flatten();
        if let Some(PageFault::Damaged(problem)) = &fault {
            origin.image.set_problem(problem.clone());
        }
        fault
    }

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

/// Keeps in memory what each boot copies from the pool as from a file.
pub(super) fn wire(memory: &ImageMemory, snapshot: &ProcessSnapshot) -> Result<(), PagerError> {
    let mut needed = hot_pool_pages(snapshot, &WorkingSet::default(), &BTreeMap::new());
    needed.extend(copied_in_any_case(snapshot));
    memory.wire(needed)
}
