//! Which mappings of an instance the pager must know.

use rouse_pool::keeper::PoolMapping;
use rouse_pool::memory::Hold;
use rouse_snapshot::model::{Backing, PAGE_SIZE, ProcessSnapshot};
use rouse_snapshot::working_set::WorkingSet;

use crate::plan::copied::{Copies, CopyPolicy, Layout};

/// The mappings of an instance that must be registered: those of pools that are not held; and those of all that the pager
/// has, if `all` are asked for. `pools` says what is relied on, in the order in which runs number pools.
pub(crate) fn to_register(
    snapshot: &ProcessSnapshot,
    pools: &[Hold],
    all: bool,
    copying: &CopyPolicy,
) -> Vec<PoolMapping> {
    let nothing = WorkingSet::default();
    let mut mappings = Vec::new();
    for mapping in &snapshot.mappings {
        // The rest is copied when the instance is made, from pages that are never taken out.
        if !matches!(
            mapping.backing,
            Backing::Anonymous | Backing::PrivateFile { .. }
        ) {
            continue;
        }
        let layout = Layout::copying(mapping, &nothing, Copies::Nothing, copying);
        for run in &layout.mapped {
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
