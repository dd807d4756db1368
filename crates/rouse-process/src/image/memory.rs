//! Where the pages of an image are, and what an instance may rely on.
//!
//! ```text
//!              pin                       release
//!  absent ------------> resident  ------------------> absent        (Paged)
//!     |                    |
//!     | restore: every     | restore, fork: mapped as they are;
//!     | mapping registered | each instance holds a pin
//! ```
//! Without a pager on the host, an image is [`Whole`](ImageMemory::Whole): always resident.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_pool::keeper::{PagerError, PagerHandle, PoolMapping};
use rouse_pool::{
    CompressedCopy, NumaNode, PagedPool, PinnedPool, Pool, PoolId, PoolSource, RegisteredPool,
};
use rouse_snapshot::model::{Backing, PAGE_SIZE, ProcessSnapshot};

/// The pages of one image.
#[derive(Debug)]
pub(crate) enum ImageMemory {
    /// All of them, in a pool that never changes.
    Whole(Pool),
    /// In a pool that the pager fills and empties.
    Paged(Box<PagedMemory>),
}

/// A pool of the pager, and whether all of it is to stay.
#[derive(Debug)]
pub(crate) struct PagedMemory {
    pool: PagedPool,
    view: RegisteredPool,
    pager: PagerHandle,
    pinned: Mutex<Option<PinnedPool>>,
    /// Where its pages come from.
    source: PoolSource,
    compressed: Mutex<Option<CompressedCopy>>,
    /// Pages that lie on far memory, while all are pinned.
    far: AtomicU64,
    graveyard: Arc<Graveyard>,
}

/// Pools whose images are gone, until the pager lets go of them: processes of their last instances
/// may still be ending.
#[derive(Debug)]
pub(crate) struct Graveyard {
    pools: Arc<Mutex<Vec<PagedPool>>>,
    /// Its other end is the thread that asks the pager: an image may be dropped where nobody may wait.
    new: Sender<()>,
}

impl Graveyard {
    /// An empty one, and a thread that ends with it.
    pub(crate) fn new(pager: PagerHandle) -> io::Result<Self> {
        let (new, arrivals) = channel();
        let pools = Arc::<Mutex<Vec<PagedPool>>>::default();
        let swept = pools.clone();
        std::thread::Builder::new()
            .name("graveyard".into())
            .spawn(move || {
                while arrivals.recv().is_ok() {
                    sweep(&swept, &pager);
                }
            })?;
        Ok(Self { pools, new })
    }

    fn bury(&self, pool: PagedPool) {
        lock(&self.pools).push(pool);
        // The thread lives as long as this.
        let _ = self.new.send(());
    }

    /// Gives back what can be given back now. Waits for the pager.
    pub(crate) fn sweep(&self, pager: &PagerHandle) {
        sweep(&self.pools, pager);
    }
}

fn sweep(pools: &Mutex<Vec<PagedPool>>, pager: &PagerHandle) {
    let taken = std::mem::take(&mut *lock(pools));
    let busy = taken
        .into_iter()
        .filter(|pool| matches!(pager.remove_pool(pool), Err(PagerError::Busy(_))))
        .collect::<Vec<_>>();
    lock(pools).extend(busy);
}

impl PagedMemory {
    pub(crate) fn new(
        pool: PagedPool,
        source: PoolSource,
        pager: PagerHandle,
        graveyard: Arc<Graveyard>,
    ) -> Self {
        Self {
            view: pool.registered(),
            pool,
            pager,
            pinned: Mutex::new(None),
            source,
            compressed: Mutex::new(None),
            far: AtomicU64::new(0),
            graveyard,
        }
    }
}

impl Drop for PagedMemory {
    fn drop(&mut self) {
        *lock(&self.pinned) = None;
        self.graveyard.bury(self.pool.clone());
    }
}

/// What an instance's mappings of one image rely on. It must live until the last process is gone that has
/// them: an absent page that is touched and not watched enters the pool as zeros, for all to see.
#[derive(Debug, Clone)]
pub(crate) enum Hold {
    /// Nothing: the pool never changes.
    Whole,
    /// All pages are there as long as this lives.
    Pinned(PinnedPool),
    /// Pages may be absent: every mapping must be registered before it is touched.
    Absent(PoolId),
}

impl ImageMemory {
    /// A descriptor that instances map.
    pub(crate) fn view(&self) -> BorrowedFd<'_> {
        match self {
            Self::Whole(pool) => pool.as_fd(),
            Self::Paged(paged) => paged.view.as_fd(),
        }
    }

    /// What an instance that starts now relies on.
    pub(crate) fn hold(&self) -> Hold {
        match self {
            Self::Whole(_) => Hold::Whole,
            Self::Paged(paged) => match &*lock(&paged.pinned) {
                Some(pinned) => Hold::Pinned(pinned.clone()),
                None => Hold::Absent(paged.pool.id()),
            },
        }
    }

    /// Its name at the pager.
    pub(crate) fn pool(&self) -> Option<PoolId> {
        match self {
            Self::Whole(_) => None,
            Self::Paged(paged) => Some(paged.pool.id()),
        }
    }

    /// Are all pages there, to stay?
    pub(crate) fn is_resident(&self) -> bool {
        !matches!(self.hold(), Hold::Absent(_))
    }

    /// Brings some pages in. They may go again.
    pub(crate) fn bring_in(&self, pages: Range<u64>) -> Result<(), PagerError> {
        match self {
            Self::Paged(paged) if !self.is_resident() => paged.pool.fill(&[pages]),
            _ => Ok(()),
        }
    }

    /// Brings everything in, to stay. Blocks for as long as reading takes.
    pub(crate) fn make_resident(&self) -> Result<(), PagerError> {
        if let Self::Paged(paged) = self
            && !self.is_resident()
        {
            let pinned = paged.pool.pin()?;
            *lock(&paged.pinned) = Some(pinned);
        }
        Ok(())
    }

    /// Lets pages go. Those that live instances rely on go when these have ended and this is
    /// called again. Returns by how many pages the pool became smaller.
    pub(crate) fn release(&self) -> Result<u64, PagerError> {
        let Self::Paged(paged) = self else {
            return Ok(0);
        };
        *lock(&paged.pinned) = None;
        if paged.far.swap(0, Ordering::Relaxed) > 0 {
            // Only a wish of where pages are to lie: what comes in again is right wherever it is.
            if let Err(error) = paged.pool.prefer(NumaNode::near()) {
                tracing::debug!(%error, "pages stay on far memory");
            }
        }
        let all = 0..paged.pool.pages();
        match paged.pager.evict(&paged.pool, std::slice::from_ref(&all)) {
            Err(PagerError::Pinned(_)) => Ok(0),
            other => other,
        }
    }

    /// Brings everything in, to stay: to near memory, or to far memory but for the pages in `hot`. What is there already is
    /// moved. Returns how many pages lie on far memory.
    pub(crate) fn place(
        &self,
        far: Option<NumaNode>,
        hot: &[Range<u64>],
    ) -> Result<u64, PagerError> {
        let Self::Paged(paged) = self else {
            return Ok(0);
        };
        if let Some(node) = far {
            // So that what comes in is not moved afterwards.
            paged.pool.prefer(node)?;
        }
        self.make_resident()?;
        let Some(pinned) = lock(&paged.pinned).clone() else {
            return Ok(0);
        };
        let all = 0..paged.pool.pages();
        let all = std::slice::from_ref(&all);
        let on_far = match far {
            Some(node) => {
                pinned.move_to(node, all)?;
                pinned.move_to(NumaNode::near(), hot)?;
                pinned.pages_on(node)?
            }
            None if paged.far.load(Ordering::Relaxed) > 0 => {
                pinned.move_to(NumaNode::near(), all)?;
                0
            }
            None => 0,
        };
        paged.far.store(on_far, Ordering::Relaxed);
        Ok(on_far)
    }

    /// Pages that lie on far memory.
    pub(crate) fn far_pages(&self) -> u64 {
        match self {
            Self::Whole(_) => 0,
            Self::Paged(paged) => paged.far.load(Ordering::Relaxed),
        }
    }

    /// Keeps what is on disk of it in memory, or no more.
    pub(crate) fn hold_compressed(&self, wanted: bool) -> Result<(), PagerError> {
        let Self::Paged(paged) = self else {
            return Ok(());
        };
        let mut copy = lock(&paged.compressed);
        match (wanted, copy.take()) {
            (true, None) => {
                *copy = Some(paged.pager.hold_compressed(&paged.pool, &paged.source)?);
            }
            (false, Some(held)) => paged.pager.drop_compressed(&paged.pool, held)?,
            (_, held) => *copy = held,
        }
        Ok(())
    }

    /// Bytes of what is on disk of it that are kept in memory.
    pub(crate) fn compressed_bytes(&self) -> u64 {
        match self {
            Self::Whole(_) => 0,
            Self::Paged(paged) => (lock(&paged.compressed).as_ref()).map_or(0, |c| c.bytes()),
        }
    }

    /// Pages that stay in DRAM when all others are let go of.
    pub(crate) fn wired_pages(&self) -> u64 {
        match self {
            Self::Whole(pool) => pool.pages(),
            Self::Paged(paged) => paged.pool.wired_pages(),
        }
    }

    /// Has what is on disk of it been stored anew since it was loaded? Then absent pages cannot come any more.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::Whole(_) => false,
            Self::Paged(paged) => !paged.source.page_map.exists(),
        }
    }

    /// Which pages are in DRAM, in order.
    pub(crate) fn resident_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        match self {
            Self::Whole(pool) => Ok(std::iter::once(0..pool.pages()).collect()),
            Self::Paged(paged) => paged.pool.resident_ranges(),
        }
    }

    /// Pages in DRAM.
    pub(crate) fn resident_pages(&self) -> io::Result<u64> {
        match self {
            Self::Whole(pool) => Ok(pool.pages()),
            Self::Paged(paged) => paged.pool.resident_pages(),
        }
    }
}

/// What an instance relies on that maps `memories`.
pub(crate) fn hold_all(memories: &[Arc<ImageMemory>]) -> Vec<Hold> {
    memories.iter().map(|memory| memory.hold()).collect()
}

/// The mappings of an instance that must be registered: those of pools that are not held; and those of all that the pager
/// has, if `all` are asked for. `pools` says what is relied on, in the order in which runs number pools.
pub(crate) fn to_register(
    snapshot: &ProcessSnapshot,
    pools: &[Hold],
    all: bool,
) -> Vec<PoolMapping> {
    let mut mappings = Vec::new();
    for mapping in &snapshot.mappings {
        // The rest is copied when the instance is made, from pages that are never taken out.
        if !matches!(
            mapping.backing,
            Backing::Anonymous | Backing::PrivateFile { .. }
        ) {
            continue;
        }
        for run in &mapping.saved {
            let pool = match pools.get(run.pool()) {
                Some(Hold::Absent(pool)) => Some(*pool),
                Some(Hold::Pinned(pinned)) if all => Some(pinned.pool().id()),
                _ => None,
            };
            if let Some(pool) = pool {
                mappings.push(PoolMapping {
                    address: run.address,
                    pages: run.pages,
                    pool,
                    pool_page: run.page_in_pool(),
                });
            }
        }
    }
    joined(mappings)
}

/// The kernel joins mappings that lie side by side, here and in the pool.
fn joined(mappings: Vec<PoolMapping>) -> Vec<PoolMapping> {
    let mut out: Vec<PoolMapping> = Vec::with_capacity(mappings.len());
    for next in mappings {
        match out.last_mut() {
            Some(last)
                if last.pool == next.pool
                    && last.address + last.pages * PAGE_SIZE == next.address
                    && last.pool_page + last.pages == next.pool_page =>
            {
                last.pages += next.pages;
            }
            _ => out.push(next),
        }
    }
    out
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
