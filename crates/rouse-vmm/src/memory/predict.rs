//! Which pages of a snapshot a restored machine will need, before any was seen to run: by what they belong to.
//!
//! A process's snapshot tells its mappings. That of a machine is pages of which the host knows nothing, until a restored
//! machine has touched some. What the guest's agent says ([`Owners`]) is nearly as good as mappings: memory that the function
//! itself uses is touched by its next answer far more often than what its kernel keeps for everybody.

use std::ops::Range;

use rouse_snapshot::model::{PAGE_SIZE, PageRun};

use crate::agent::{Owner, Owners};

/// Whose pages are likely to be touched by the next answer, the likeliest first. `rouse bench microvm` shows how often each is.
const LIKELY: [Owner; 7] = [
    Owner::Stack,
    Owner::PageTable,
    Owner::Data,
    Owner::Heap,
    Owner::Code,
    Owner::Anonymous,
    Owner::Other,
];

/// A run of pages of a machine's own pool that belong to one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Pages of the pool.
    pub pages: Range<u64>,
    /// Whom they belong to.
    pub owner: Owner,
}

/// Whose the pages of a machine's own pool are, in the order of their addresses.
pub fn known_pages(owners: &Owners, memory: &[PageRun]) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    for run in memory.iter().filter(|run| run.pool() == 0) {
        let first = run.address / PAGE_SIZE;
        for page in 0..run.pages {
            let owner = owners.of_page(first + page);
            let at = run.page_in_pool() + page;
            match known.last_mut() {
                Some(last) if last.owner == owner && last.pages.end == at => last.pages.end += 1,
                _ => known.push(Known {
                    pages: at..at + 1,
                    owner,
                }),
            }
        }
    }
    known
}

/// The pages of a machine's own pool that are likely needed, the likeliest first, as a store wants them: what is fetched first
/// as long as no working set is known. None, if nothing is known of the pages.
pub fn likely_pages(owners: &Owners, memory: &[PageRun]) -> Vec<Range<u64>> {
    let known = known_pages(owners, memory);
    let of = |owner: Owner| {
        (known.iter())
            .filter(move |run| run.owner == owner)
            .map(|run| run.pages.clone())
    };
    LIKELY.into_iter().flat_map(of).collect()
}
