//! The address space, and where its pages lie.

use std::ops::Range;

use super::FileId;

/// One virtual memory area, in the address order of `/proc/pid/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses, page aligned.
    pub range: Range<u64>,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` bits.
    pub prot: u32,
    /// What lies behind the mapping where no page was saved.
    pub backing: Backing,
    /// Further attributes.
    pub flags: MappingFlags,
    /// Protection key, 0 when none.
    pub pkey: u32,
    /// Name that `PR_SET_VMA_ANON_NAME` gave to anonymous memory; empty when none.
    pub name: Vec<u8>,
    /// Runs of pages whose contents are in the pool image; sorted, inside `range`, disjoint.
    /// Pages in no run are those of the backing (a file's page, or zero).
    pub saved: Vec<PageRun>,
}

/// What a mapping shows where nothing was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory: zeros.
    Anonymous,
    /// The main stack: private anonymous memory that grows downwards.
    Stack,
    /// `MAP_PRIVATE` of a file.
    PrivateFile {
        /// The file.
        file: FileId,
        /// Offset of the first page, bytes.
        offset: u64,
    },
    /// `MAP_SHARED`, read-only, of a file that is not written.
    SharedFile {
        /// The file.
        file: FileId,
        /// Offset of the first page, bytes.
        offset: u64,
    },
    /// `MAP_SHARED` anonymous memory or a memfd: a fresh object for each instance, filled
    /// from the pool. Mappings with the same `object` show the same memory.
    /// Each page of it is saved once: with its [`DescriptionKind::MemFd`] if there is one, else
    /// with the first mapping that shows it.
    SharedMemory {
        /// Number of the object inside this snapshot.
        object: u32,
        /// Size of the object in bytes.
        size: u64,
        /// Offset of the first page, bytes.
        offset: u64,
    },
    /// The kernel's `[vdso]` page(s).
    Vdso,
    /// The kernel's `[vvar]` or `[vvar_vclock]` pages; the index tells them apart, in address order.
    Vvar {
        /// 0 for the first vvar area, 1 for the second (`[vvar_vclock]`, kernel 6.13).
        index: u32,
    },
}

/// Attributes of a mapping that `mmap` and `madvise` set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named after the advice or flag")]
pub struct MappingFlags {
    pub no_reserve: bool,
    pub dont_fork: bool,
    pub dont_dump: bool,
    pub wipe_on_fork: bool,
    pub huge_page: bool,
    pub no_huge_page: bool,
    pub mergeable: bool,
    pub locked: bool,
    pub random_read: bool,
    pub sequential_read: bool,
    /// `MAP_DROPPABLE` (kernel 6.11): comes back zeroed.
    pub droppable: bool,
    /// All of it is guard pages (`MADV_GUARD_INSTALL`, kernel 6.13): an attribute of its pages, so that for the kernel
    /// it may be one mapping with its neighbours.
    pub guard: bool,
}

/// A run of pages of a mapping whose contents lie in the pool image, contiguous there too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first page.
    pub address: u64,
    /// Number of pages, at least one.
    pub pages: u64,
    /// Where the first page lies.
    ///
    /// ```text
    ///  63        40 39                     0
    ///  +-----------+-----------------------+
    ///  | pool      | page in that pool     |   pool 0: the snapshot's own; n: `parents[n - 1]`
    ///  +-----------+-----------------------+
    /// ```
    pub pool_page: u64,
}

/// Bits of [`PageRun::pool_page`] that count pages.
pub const POOL_PAGE_BITS: u32 = 40;

/// The number of a page in one of a snapshot's pools, as [`PageRun::pool_page`] holds it.
pub const fn pool_page(pool: u32, page: u64) -> u64 {
    ((pool as u64) << POOL_PAGE_BITS) | page
}

impl PageRun {
    /// Which pool it lies in: 0 for the snapshot's own, `n` for `parents[n - 1]`.
    pub fn pool(&self) -> usize {
        (self.pool_page >> POOL_PAGE_BITS) as usize
    }

    /// Number of its first page in that pool.
    pub fn page_in_pool(&self) -> u64 {
        self.pool_page & ((1 << POOL_PAGE_BITS) - 1)
    }
}
