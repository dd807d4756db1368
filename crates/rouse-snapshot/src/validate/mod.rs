//! Does a snapshot make sense?
//!
//! Checked where a snapshot is made and where one is read, so that planning a restore can index,
//! subtract and allocate without asking again. It says nothing about the host: whether files are
//! unchanged and the fingerprint is right is for the restore to find out.

mod machine;
mod memory;
mod open_files;
mod process;
mod tmp;

use crate::model::{FileId, PAGE_SIZE, POOL_PAGE_BITS, PageRun, ParentPool, ProcessSnapshot};

pub use machine::{validate_devices, validate_image, validate_machine};

/// One past the last address that a process can map (`TASK_SIZE` with four-level page tables,
/// which the kernel uses for every mapping that does not ask for more).
pub const ADDRESS_END: u64 = 0x7fff_ffff_f000;

/// `PATH_MAX` with its terminating NUL.
const PATH_MAX: usize = 4096;

/// Why a snapshot makes no sense; the variant says which part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The host's fingerprint.
    #[error("host: {why}")]
    Host {
        /// What is wrong.
        why: &'static str,
    },
    /// The process as a whole.
    #[error("process: {why}")]
    Process {
        /// What is wrong.
        why: &'static str,
    },
    /// The list of threads, or one of them.
    #[error("thread {tid}: {why}")]
    Thread {
        /// Thread id; 0 when it is about the list.
        tid: i32,
        /// What is wrong.
        why: &'static str,
    },
    /// A mapping.
    #[error("mapping {start:#x}-{end:#x}: {why}")]
    Mapping {
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A file reference.
    #[error("file {index}: {why}")]
    File {
        /// Index into the list of files.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An open file description.
    #[error("open file {index}: {why}")]
    Description {
        /// Index into the list of descriptions.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A file descriptor.
    #[error("fd {fd}: {why}")]
    Descriptor {
        /// The descriptor.
        fd: i32,
        /// What is wrong.
        why: &'static str,
    },
    /// The pools.
    #[error("pools: {why}")]
    Pools {
        /// What is wrong.
        why: &'static str,
    },
    /// A virtual machine as a whole.
    #[error("machine: {why}")]
    Machine {
        /// What is wrong.
        why: &'static str,
    },
    /// A processor of a virtual machine.
    #[error("processor {index}: {why}")]
    Vcpu {
        /// Its number.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A device of a virtual machine.
    #[error("device {name:?}: {why}")]
    Device {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Something in `/tmp`.
    #[error("{path:?}: {why}")]
    Tmp {
        /// Path in the sandbox.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// What a check of one property says: the reason when it does not hold.
type Check = Result<(), &'static str>;

/// Checks everything that can be known from the snapshot alone.
///
/// # Errors
/// The first thing that makes no sense.
pub fn validate(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    check_pools(snapshot.pool_pages, &snapshot.parents).map_err(|why| Invalid::Pools { why })?;
    process::check_host(&snapshot.host).map_err(|why| Invalid::Host { why })?;
    process::check_threads(snapshot)?;
    process::check_process(snapshot).map_err(|why| Invalid::Process { why })?;
    memory::check_mappings(snapshot)?;
    memory::check_objects(snapshot)?;
    open_files::check_files(snapshot)?;
    open_files::check_descriptions(snapshot)?;
    open_files::check_descriptors(snapshot)?;
    tmp::check_tmp(snapshot)
}

/// Parents are few: each is a descriptor and a mapping more for every instance.
pub const MAX_PARENTS: usize = 8;

fn check_pools(own: u64, parents: &[ParentPool]) -> Check {
    ensure(parents.len() <= MAX_PARENTS, "there are too many parents")?;
    ensure(
        pools(own, parents)
            .iter()
            .all(|pages| *pages <= 1 << POOL_PAGE_BITS),
        "a pool is longer than page numbers count",
    )?;
    ensure(
        all_unique(parents.iter().map(|parent| parent.pool)),
        "a parent is there twice",
    )
}

fn ensure(holds: bool, why: &'static str) -> Check {
    if holds { Ok(()) } else { Err(why) }
}

fn is_page_aligned(value: u64) -> bool {
    value.is_multiple_of(PAGE_SIZE)
}

fn check_file_id(snapshot: &ProcessSnapshot, id: FileId) -> Check {
    ensure(
        (id.0 as usize) < snapshot.files.len(),
        "refers to a file that is not in the list",
    )
}

/// A path that can be handed to the kernel and does not depend on a working directory.
fn check_path(path: &[u8]) -> Check {
    ensure(path.first() == Some(&b'/'), "its path is not absolute")?;
    ensure(path.len() < PATH_MAX, "its path is too long")?;
    ensure(!path.contains(&0), "its path holds a NUL")
}

/// Lengths of the pools that private memory may lie in, in pages.
fn pools(own: u64, parents: &[ParentPool]) -> Vec<u64> {
    let parents = parents.iter().map(|parent| parent.pages);
    std::iter::once(own).chain(parents).collect()
}

/// Runs are sorted, disjoint, whole pages inside `start..end` and inside their pools, whose lengths
/// in pages are given.
fn check_runs(runs: &[PageRun], start: u64, end: u64, pools: &[u64]) -> Check {
    let mut free_from = start;
    for run in runs {
        ensure(run.pages > 0, "a run of saved pages is empty")?;
        ensure(
            is_page_aligned(run.address),
            "a run of saved pages is not page aligned",
        )?;
        ensure(
            run.address >= free_from,
            "its saved pages are not sorted, or overlap",
        )?;
        let run_end = run
            .pages
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| run.address.checked_add(bytes))
            .filter(|run_end| *run_end <= end)
            .ok_or("a run of saved pages lies outside of it")?;
        let pages = pools
            .get(run.pool())
            .ok_or("its saved pages lie in a pool that it may not use")?;
        let last = run.page_in_pool().checked_add(run.pages);
        ensure(
            last.is_some_and(|last| last <= *pages),
            "its saved pages lie outside the pool",
        )?;
        free_from = run_end;
    }
    Ok(())
}

/// Are all elements different?
fn all_unique<T: Ord>(items: impl Iterator<Item = T>) -> bool {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.array_windows().all(|[a, b]| a != b)
}
