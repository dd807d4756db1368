//! A guest's memory, as it lies in this process.
//!
//! ```text
//!  guest        0          run 1              run 2                     end
//!               +----------+=========+--------+=========+---------------+
//!  this process | zeros    | pool 0  | zeros  | pool 1  | zeros         |   one reservation
//!               +----------+=========+--------+=========+---------------+
//!                 anonymous  MAP_PRIVATE of a snapshot's pool
//! ```
//!
//! As with processes: what the guest only reads is shared with every other machine of the snapshot, what it writes is
//! copied, and memory that nobody has touched costs nothing. KVM faults pages in on behalf of this process, so that absent
//! pages come from the pager by the userfaultfd of this process, whoever runs the guest.
//!
//! Invariant: no page of a pool that may be absent is touched, by the guest or by this process, before the userfaultfd is
//! with the pager. So [`Mapped`] gives no access; only what [`Mapped::watch`] returns does.

mod collect;
mod images;
mod predict;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rouse_pool::keeper::PoolMapping;
use rouse_pool::pagemap::Pagemap;
use rouse_pool::uffd::Device;
use rouse_pool::{PinnedPool, Pool, PoolId, RegisteredPool};
use rouse_snapshot::model::{PAGE_SIZE, PageRun, ParentPool};
use rouse_snapshot::working_set::WorkingSet;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::MemorySize;

pub use collect::{CollectError, Collected};
pub use predict::{Known, known_pages, likely_pages};

/// A pool that guest memory may lie in.
#[derive(Debug, Clone)]
pub enum Source {
    /// All its pages are there.
    Whole(Arc<Pool>),
    /// All its pages are there, as long as this lives.
    Pinned(PinnedPool),
    /// The pager brings its pages.
    Registered(RegisteredPool),
    /// The view of a pool that another process has, which keeps it as it must be; or the image of a disk.
    Given {
        /// For private mappings.
        view: Arc<OwnedFd>,
        /// Its length.
        pages: u64,
        /// By what the pager knows it, if its pages may be absent.
        absent: Option<PoolId>,
    },
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Whole(pool) => pool.as_fd(),
            Self::Pinned(pool) => pool.as_fd(),
            Self::Registered(pool) => pool.as_fd(),
            Self::Given { view, .. } => view.as_fd(),
        }
    }
}

impl Source {
    fn pages(&self) -> u64 {
        match self {
            Self::Whole(pool) => pool.pages(),
            Self::Pinned(pool) => pool.pool().pages(),
            Self::Registered(pool) => pool.pool().pages(),
            Self::Given { pages, .. } => *pages,
        }
    }

    /// By what the pager knows it, if its pages may be absent.
    fn absent(&self) -> Option<PoolId> {
        match self {
            Self::Whole(_) | Self::Pinned(_) => None,
            Self::Registered(pool) => Some(pool.pool().id()),
            Self::Given { absent, .. } => *absent,
        }
    }
}

/// A pool, and by what a snapshot names it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The pool.
    pub source: Source,
    /// Its identity and length, by which a child of the snapshot names it; `None` if no snapshot on disk has it.
    pub name: Option<ParentPool>,
}

/// Memory cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The host does not give it.
    #[error("the host has no memory for the guest")]
    Map(#[source] io::Error),
    /// The snapshot refers to a pool that was not given, or beyond its end.
    #[error("guest memory at {address:#x} lies in pool {pool}, which is not there or too short")]
    NoPool {
        /// Guest-physical address.
        address: u64,
        /// Number of the pool.
        pool: usize,
    },
    /// No userfaultfd.
    #[error("cannot watch the guest's memory")]
    Watch(#[source] io::Error),
}

/// What the kernel tells of this process's pages. Opened once: whoever is jailed has no `/proc`, and opens it before.
///
/// # Errors
/// What opening it says.
pub fn pagemap() -> io::Result<&'static Pagemap> {
    static OWN: OnceLock<Pagemap> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let opened = Pagemap::own()?;
    Ok(OWN.get_or_init(|| opened))
}

/// A reservation of addresses. Unmapped when it is dropped.
#[derive(Debug)]
struct Reservation {
    start: usize,
    len: usize,
}

impl Reservation {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }? as usize;
        let reservation = Self { start, len };
        // Huge pages would copy 2 MiB for each page that is written, and blur which ones were.
        // SAFETY: the range is this mapping, whose contents advice does not change.
        unsafe { rustix::mm::madvise(start as *mut _, len, Advice::LinuxNoHugepage) }?;
        Ok(reservation)
    }

    /// Maps pages of a pool privately in the place of zeros. The caller has checked that all lies inside.
    fn map(&self, at: usize, len: usize, pool: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        debug_assert!(at + len <= self.len);
        // SAFETY: the range lies in this reservation, which nobody refers to yet.
        unsafe {
            rustix::mm::mmap(
                (self.start + at) as *mut _,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
                pool,
                offset,
            )
        }
        .map(drop)
        .map_err(Into::into)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; what refers to it is dropped with or before it (see `Memory`).
        let result = unsafe { rustix::mm::munmap(self.start as *mut _, self.len) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

/// Memory that is mapped and may not be touched yet.
#[derive(Debug)]
pub struct Mapped {
    reservation: Reservation,
    runs: Vec<PageRun>,
    layers: Vec<Layer>,
}

impl Mapped {
    /// Maps `runs` of `layers`, whose order is that of [`PageRun::pool`]; the rest is zeros.
    ///
    /// # Errors
    /// If a run does not lie in its pool or in the memory, or the host gives no memory.
    pub fn new(pages: u64, runs: &[PageRun], layers: Vec<Layer>) -> Result<Self, MapError> {
        let len = usize::try_from(pages * PAGE_SIZE).expect("addresses have 64 bits");
        let reservation = Reservation::new(len).map_err(MapError::Map)?;
        for run in runs {
            let no_pool = || MapError::NoPool {
                address: run.address,
                pool: run.pool(),
            };
            let layer = layers.get(run.pool()).ok_or_else(no_pool)?;
            let end = run.page_in_pool().checked_add(run.pages);
            let inside = run.address.checked_add(run.pages.saturating_mul(PAGE_SIZE));
            if end.is_none_or(|end| end > layer.source.pages())
                || inside.is_none_or(|end| end > len as u64)
            {
                return Err(no_pool());
            }
            reservation
                .map(
                    run.address as usize,
                    (run.pages * PAGE_SIZE) as usize,
                    layer.source.as_fd(),
                    run.page_in_pool() * PAGE_SIZE,
                )
                .map_err(MapError::Map)?;
        }
        Ok(Self {
            reservation,
            runs: runs.to_vec(),
            layers,
        })
    }

    /// Where guest address 0 is in this process.
    pub fn base(&self) -> u64 {
        self.reservation.start as u64
    }

    /// What the pager must know of this memory: all runs of pools whose pages may be absent.
    pub fn mappings(&self) -> Vec<PoolMapping> {
        let mapping = |run: &PageRun| {
            let pool = self.layers[run.pool()].source.absent()?;
            Some(PoolMapping {
                address: self.base() + run.address,
                pages: run.pages,
                pool,
                pool_page: run.page_in_pool(),
            })
        };
        self.runs.iter().filter_map(mapping).collect()
    }

    /// Makes a userfaultfd, if pages may be absent, and hands it to `watch`, which returns when the pager has it. Afterwards
    /// the memory may be touched.
    ///
    /// # Errors
    /// Of `watch`, or if there is no userfaultfd.
    pub fn watch<E: From<MapError>>(
        self,
        device: Option<&Device>,
        watch: impl FnOnce(OwnedFd, &[PoolMapping]) -> Result<(), E>,
    ) -> Result<Memory, E> {
        let mappings = self.mappings();
        if !mappings.is_empty() {
            let missing = || io::Error::other("there is no device to make a userfaultfd with");
            let uffd = device
                .ok_or_else(missing)
                .and_then(Device::create)
                .map_err(MapError::Watch)?;
            watch(uffd, &mappings)?;
        }
        Ok(Memory::of(self)?)
    }
}

/// The memory of a guest. Whoever has [`Memory::guest`] must not outlive it.
pub struct Memory {
    // Before what it refers to.
    guest: GuestMemoryMmap,
    reservation: Reservation,
    runs: Vec<PageRun>,
    layers: Vec<Layer>,
}

impl Memory {
    /// Zeros.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub fn zeros(size: MemorySize) -> Result<Self, MapError> {
        Self::of(Mapped::new(size.bytes() / PAGE_SIZE, &[], Vec::new())?)
    }

    fn of(mapped: Mapped) -> Result<Self, MapError> {
        let Mapped {
            reservation,
            runs,
            layers,
        } = mapped;
        // SAFETY: the range is mapped for reading and writing, and stays so for as long as `reservation` lives, which is
        // dropped after `guest`.
        let region = unsafe {
            MmapRegionBuilder::new(reservation.len)
                .with_raw_mmap_pointer(reservation.start as *mut u8)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .build()
        }
        .map_err(|error| MapError::Map(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(0))
            .ok_or_else(|| MapError::Map(io::ErrorKind::InvalidInput.into()))?;
        let guest = GuestMemoryMmap::from_regions(vec![region])
            .map_err(|error| MapError::Map(io::Error::other(error)))?;
        Ok(Self {
            guest,
            reservation,
            runs,
            layers,
        })
    }

    /// As devices use it.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// In pages.
    pub fn pages(&self) -> u64 {
        self.reservation.len as u64 / PAGE_SIZE
    }

    /// Ranges of guest addresses that this machine has written to since it was made.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn written(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(self.to_guest(pagemap()?.private_pages(&self.range())?))
    }

    /// Ranges of guest addresses that this machine has touched since it was made: the working set. What it only read is
    /// known in pieces of up to 16 pages, unless the pager was asked to watch exactly.
    ///
    /// # Errors
    /// What the kernel says; it needs Linux 6.7.
    pub fn touched(&self) -> io::Result<WorkingSet> {
        let pages = pagemap()?;
        Ok(WorkingSet {
            written: self.to_guest(pages.private_pages(&self.range())?),
            read: self.to_guest(pages.file_pages(&self.range())?),
        })
    }

    /// Puts all memory back to what it was when it was made: private copies are dropped, and what lies in a pool shows up
    /// again. Returns how many pages that were. The guest must not run.
    ///
    /// # Errors
    /// What the kernel says. The guest must not go on then.
    pub fn rewind(&self) -> io::Result<u64> {
        let written = self.written()?;
        for range in &written {
            let start = self.reservation.start + range.start as usize;
            let len = (range.end - range.start) as usize;
            // SAFETY: the range lies in the reservation. Its contents change as if the guest had written them, which every
            // access through `guest` reckons with. KVM is told by the kernel and forgets what it had mapped.
            unsafe { rustix::mm::madvise(start as *mut _, len, Advice::LinuxDontNeed) }?;
        }
        Ok(written
            .iter()
            .map(|range| (range.end - range.start) / PAGE_SIZE)
            .sum())
    }

    fn range(&self) -> Range<u64> {
        let start = self.reservation.start as u64;
        start..start + self.reservation.len as u64
    }

    fn to_guest(&self, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let start = self.reservation.start as u64;
        ranges
            .into_iter()
            .map(|range| range.start - start..range.end - start)
            .collect()
    }
}

/// The pages of a machine's own pool that it touched, as a store wants them: what is fetched first when it is restored.
pub fn hot_pages(set: &WorkingSet, memory: &[PageRun]) -> Vec<Range<u64>> {
    let mut hot: Vec<Range<u64>> = Vec::new();
    let own = memory.iter().filter(|run| run.pool() == 0);
    for run in own {
        let end = run.address + run.pages * PAGE_SIZE;
        let touched = set.written.iter().chain(&set.read);
        hot.extend(touched.filter_map(|range| {
            let part = range.start.max(run.address)..range.end.min(end);
            let page = |address: u64| run.page_in_pool() + (address - run.address) / PAGE_SIZE;
            (part.start < part.end).then(|| page(part.start)..page(part.end))
        }));
    }
    hot.sort_by_key(|range| range.start);
    hot.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    hot
}

#[cfg(test)]
mod tests;
