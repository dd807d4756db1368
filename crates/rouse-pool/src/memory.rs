//! Where the pages of an image are, and what an instance may rely on.
//!
//! ```text
//!              pin                       release
//!  absent ------------> resident  ------------------> absent        (Paged)
//!     |                    |
//!     | restore: every     | restore, fork: mapped as they are;
//!     | mapping registered | each instance holds a pin
//! ```
//! Without a pager on the host, an image is [`Whole`](ImageMemory::Whole): always resident. [`Far`](ImageMemory::Far) is
//! a copy of all pages in a file on far memory, in the place of a paged pool that has let its pages go. Which of them
//! new instances map, and what follows when that changes, is [`PlacedMemory`]'s.

mod placed;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use placed::{MemoryOwner, PlacedMemory};

use crate::keeper::{PagerError, PagerHandle};
use crate::{
    CompressedCopy, FarDirectory, FarError, FarPool, HUGE_PAGES, NumaNode, PagedPool, PinnedPool,
    Pool, PoolId, PoolSource, RegisteredPool,
};

/// The pages of one image.
#[derive(Debug)]
pub enum ImageMemory {
    /// All of them, in a pool that never changes.
    Whole(Pool),
    /// In a pool that the pager fills and empties.
    Paged(Box<PagedMemory>),
    /// All of them, in a file on far memory that never changes.
    Far(FarCopy),
}

/// A file on far memory, and the pool that it is a copy of.
#[derive(Debug)]
pub struct FarCopy {
    file: FarPool,
    /// What is mapped again when the pages leave far memory. Paged.
    near: Arc<ImageMemory>,
}

/// A pool of the pager, and whether all of it is to stay.
#[derive(Debug)]
pub struct PagedMemory {
    pool: PagedPool,
    view: RegisteredPool,
    pager: PagerHandle,
    pinned: Mutex<Option<PinnedPool>>,
    /// Where its pages come from.
    source: PoolSource,
    compressed: Mutex<Option<CompressedCopy>>,
    /// Pages that lie on far memory, while all are pinned.
    far: AtomicU64,
    /// Pages of 2 MiB, while all are pinned.
    huge: AtomicU64,
}

impl PagedMemory {
    /// Those of `pool`, which the pager has and fills from `source`.
    pub fn new(pool: PagedPool, source: PoolSource, pager: PagerHandle) -> Self {
        Self {
            view: pool.registered(),
            pool,
            pager,
            pinned: Mutex::new(None),
            source,
            compressed: Mutex::new(None),
            far: AtomicU64::new(0),
            huge: AtomicU64::new(0),
        }
    }
}

impl Drop for PagedMemory {
    fn drop(&mut self) {
        *lock(&self.pinned) = None;
        // Processes of its last instances may still be ending: the pager sees when they have.
        self.pager.remove_pool(&self.pool);
    }
}

/// What an instance's mappings of one image rely on. It must live until the last process is gone that has
/// them: an absent page that is touched and not watched enters the pool as zeros, for all to see.
#[derive(Debug, Clone)]
pub enum Hold {
    /// Nothing: the pool never changes, and is gone when the last mapping is.
    Whole,
    /// All pages are there as long as this lives.
    Pinned(PinnedPool),
    /// Pages may be absent: every mapping must be registered before it is touched.
    Absent(PoolId),
}

impl ImageMemory {
    /// A copy of all pages on far memory. Blocks for as long as reading and writing them takes. `None` for what is no pool
    /// of the pager, or is on far memory already.
    pub fn copy_far(
        memory: &Arc<Self>,
        directory: &Arc<FarDirectory>,
    ) -> Result<Option<Self>, FarError> {
        let Self::Paged(paged) = memory.as_ref() else {
            return Ok(None);
        };
        Ok(Some(Self::Far(FarCopy {
            file: FarPool::copy(directory, &paged.pool)?,
            near: memory.clone(),
        })))
    }

    /// The file on far memory, if all pages are in one.
    pub fn far_file(&self) -> Option<&FarPool> {
        match self {
            Self::Far(far) => Some(&far.file),
            Self::Whole(_) | Self::Paged(_) => None,
        }
    }

    /// The pool of which this is a copy on far memory.
    pub fn near(&self) -> Option<&Arc<Self>> {
        match self {
            Self::Far(far) => Some(&far.near),
            Self::Whole(_) | Self::Paged(_) => None,
        }
    }

    /// The pool of the pager, here or behind the copy on far memory.
    fn paged(&self) -> Option<&PagedMemory> {
        match self {
            Self::Whole(_) => None,
            Self::Paged(paged) => Some(paged),
            Self::Far(far) => far.near.paged(),
        }
    }

    /// A descriptor that instances map.
    pub fn view(&self) -> BorrowedFd<'_> {
        match self {
            Self::Whole(pool) => pool.as_fd(),
            Self::Paged(paged) => paged.view.as_fd(),
            Self::Far(far) => far.file.as_fd(),
        }
    }

    /// All files whose mappings show these pages.
    pub fn views(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.view()).chain(self.near().map(|near| near.view()))
    }

    /// What an instance that starts now relies on.
    pub fn hold(&self) -> Hold {
        match self {
            Self::Whole(_) | Self::Far(_) => Hold::Whole,
            Self::Paged(paged) => match &*lock(&paged.pinned) {
                Some(pinned) => Hold::Pinned(pinned.clone()),
                None => Hold::Absent(paged.pool.id()),
            },
        }
    }

    /// Its name at the pager.
    pub fn pool(&self) -> Option<PoolId> {
        self.paged().map(|paged| paged.pool.id())
    }

    /// Are all pages there, to stay?
    pub fn is_resident(&self) -> bool {
        !matches!(self.hold(), Hold::Absent(_))
    }

    /// Brings some pages in. They may go again.
    pub fn bring_in(&self, pages: Range<u64>) -> Result<(), PagerError> {
        match self {
            Self::Paged(paged) if !self.is_resident() => paged.pool.fill(&[pages]),
            _ => Ok(()),
        }
    }

    /// Brings everything in, to stay. Blocks for as long as reading takes.
    pub fn make_resident(&self) -> Result<(), PagerError> {
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
    pub fn release(&self) -> Result<u64, PagerError> {
        let Some(paged) = self.paged() else {
            return Ok(0);
        };
        *lock(&paged.pinned) = None;
        paged.huge.store(0, Ordering::Relaxed);
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
    pub fn place(&self, far: Option<NumaNode>, hot: &[Range<u64>]) -> Result<u64, PagerError> {
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

    /// Makes pages of 2 MiB of what is near and pinned, once. Blocks for some milliseconds for each.
    pub fn enlarge(&self) -> io::Result<()> {
        let Self::Paged(paged) = self else {
            return Ok(());
        };
        let pinned = lock(&paged.pinned).clone();
        match pinned {
            Some(pinned) if paged.huge.load(Ordering::Relaxed) == 0 => {
                paged.huge.store(pinned.enlarge()?, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }

    /// Pages that lie in pages of 2 MiB.
    pub fn huge_pages(&self) -> u64 {
        let huge = (self.paged()).map_or(0, |paged| paged.huge.load(Ordering::Relaxed));
        huge * HUGE_PAGES
    }

    /// Pages that lie on far memory.
    pub fn far_pages(&self) -> u64 {
        match self {
            Self::Whole(_) => 0,
            Self::Paged(paged) => paged.far.load(Ordering::Relaxed),
            Self::Far(far) => far.file.pages(),
        }
    }

    /// Keeps what is on disk of it in memory, or no more.
    pub fn hold_compressed(&self, wanted: bool) -> Result<(), PagerError> {
        let Some(paged) = self.paged() else {
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
    pub fn compressed_bytes(&self) -> u64 {
        self.paged()
            .and_then(|paged| Some(lock(&paged.compressed).as_ref()?.bytes()))
            .unwrap_or(0)
    }

    /// Brings pages in, to stay as long as this lives. The pool must not have been used yet.
    ///
    /// # Errors
    /// [`PagerError::Pool`]: pages that cannot be filled.
    pub fn wire(&self, pages: Vec<Range<u64>>) -> Result<(), PagerError> {
        match self {
            Self::Paged(paged) => paged.pool.wire(pages),
            Self::Whole(_) | Self::Far(_) => Ok(()),
        }
    }

    /// What a process maps that the pager watches.
    pub fn registered(&self) -> Option<&RegisteredPool> {
        self.paged().map(|paged| &paged.view)
    }

    /// Pages that stay in DRAM when all others are let go of.
    pub fn wired_pages(&self) -> u64 {
        match self {
            Self::Whole(pool) => pool.pages(),
            Self::Paged(paged) => paged.pool.wired_pages(),
            Self::Far(far) => far.near.wired_pages(),
        }
    }

    /// Has what is on disk of it been stored anew, or removed, since it was loaded? Absent pages still come from the files of
    /// before, which take room on the disk until then.
    pub fn is_stale(&self) -> bool {
        self.paged()
            .is_some_and(|paged| has_no_name(&paged.source.page_map))
    }

    /// Which pages are in DRAM, in order.
    pub fn resident_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        match self {
            Self::Whole(pool) => Ok(std::iter::once(0..pool.pages()).collect()),
            Self::Paged(paged) => paged.pool.resident_ranges(),
            Self::Far(far) => far.near.resident_ranges(),
        }
    }

    /// Pages in memory, near and far.
    pub fn resident_pages(&self) -> io::Result<u64> {
        match self {
            Self::Whole(pool) => Ok(pool.pages()),
            Self::Paged(paged) => paged.pool.resident_pages(),
            Self::Far(far) => Ok(far.near.resident_pages()? + far.file.pages()),
        }
    }
}

/// Has a file been removed?
fn has_no_name(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// What an instance relies on that maps `memories`.
pub fn hold_all(memories: &[Arc<ImageMemory>]) -> Vec<Hold> {
    memories.iter().map(|memory| memory.hold()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
