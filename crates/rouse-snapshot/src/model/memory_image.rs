//! The memory of a virtual machine of another VMM, which keeps everything else itself.

use std::ops::Range;

use super::{PAGE_SIZE, PageRun};

/// A memory file, as far as it is not zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryImage {
    /// Its length in pages.
    pub pages: u64,
    /// Runs of its pages that are in the pool, by their offset in the file in bytes; sorted and disjoint. All other pages are
    /// zeros.
    pub memory: Vec<PageRun>,
    /// Length of its pool in pages.
    pub pool_pages: u64,
}

impl MemoryImage {
    /// Where pages of the memory file lie in the pool, in the given order; those of zeros lie nowhere.
    pub fn pool_pages_of(&self, pages: &[u64]) -> Vec<Range<u64>> {
        pages
            .iter()
            .filter_map(|page| {
                let address = page.checked_mul(PAGE_SIZE)?;
                let behind = self.memory.partition_point(|run| run.address <= address);
                let run = self.memory.get(behind.checked_sub(1)?)?;
                let within = (address - run.address) / PAGE_SIZE;
                let in_pool = run.page_in_pool() + within;
                (within < run.pages).then_some(in_pool..in_pool + 1)
            })
            .collect()
    }
}
