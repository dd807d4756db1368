//! Which page of a template each page of a delta was.
//!
//! ```text
//!  template   |AAAABBBBBBBB|      at some addresses, pages 0.. of its pool
//!  delta          |x|  |yy|       the same addresses: x was page 4 of the template's pool, y pages 7 and 8
//! ```
//! A delta's pages are stored as what differs from these.

use rouse_pool::chunk::Base;
use rouse_pool::snapshot_store::{SnapshotStore, StoreError};
use rouse_snapshot::model::{PAGE_SIZE, PageRun, ProcessSnapshot};

use super::Image;

/// What the pages of `snapshot`, which descends from `template`, are to be stored beside. `None` if the template is itself a delta
/// or cannot be relied on.
pub(crate) fn base_of(
    store: &SnapshotStore,
    snapshot: &ProcessSnapshot,
    template: &Image,
) -> Result<Option<Base>, StoreError> {
    if !template.parents.is_empty() {
        return Ok(None);
    }
    let parent = store.parent_pages(&store.name_of(template.directory())?)?;
    Ok(parent.map(|parent| Base {
        parent,
        pages: resemblance(snapshot, template.snapshot()),
    }))
}

/// For each page of the pool of `snapshot` the number of the page of `template`'s pool at the same address, plus one;
/// zero where it has none.
fn resemblance(snapshot: &ProcessSnapshot, template: &ProcessSnapshot) -> Vec<u32> {
    let mut before: Vec<PageRun> = own_runs(template).collect();
    before.sort_unstable_by_key(|run| run.address);
    let mut pages = vec![0; snapshot.pool_pages as usize];
    for run in own_runs(snapshot) {
        for index in 0..run.pages {
            let address = run.address + index * PAGE_SIZE;
            let at = before.partition_point(|run| run.address <= address);
            let Some(old) = at.checked_sub(1).map(|at| before[at]) else {
                continue;
            };
            let distance = (address - old.address) / PAGE_SIZE;
            if let Some(page) = pages.get_mut((run.pool_page + index) as usize)
                && distance < old.pages
            {
                *page = u32::try_from(old.pool_page + distance + 1).unwrap_or(0);
            }
        }
    }
    pages
}

/// Runs that lie in the snapshot's own pool.
fn own_runs(snapshot: &ProcessSnapshot) -> impl Iterator<Item = PageRun> {
    let saved = snapshot.mappings.iter().flat_map(|mapping| &mapping.saved);
    saved.filter(|run| run.pool() == 0).copied()
}
