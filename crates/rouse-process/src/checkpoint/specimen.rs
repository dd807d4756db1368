//! Pages that another descendant of the same template has, too.
//!
//! ```text
//!  template's pool    |TTTTTTTTTTTTTTTTTTTTTTTT|
//!  specimen's pool      |ss|    |sss|   |s|         a small function of nobody, made once for each template
//!  a function           |ss|  |aassaaa|   |aa|      s: the same bytes at the same addresses
//!  its own pool               |aa| |aaa|  |aa|      the rest
//! ```
//! Every function of a template writes the same things to many pages: counters, lists of what was allocated, the runtime client's own
//! state. These pages differ from the template's, and not from each other. A specimen has them once for all.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rouse_pool::memory::Hold;
use rouse_snapshot::model::{PAGE_SIZE, PageRun, pool_page};

use super::delta::read_exact;
use super::error::CheckpointError;
use super::memory::Memory;
use crate::image::{Behind, Image};

/// A page, in bytes.
const PAGE: usize = PAGE_SIZE as usize;

/// An image whose pages are compared with those of the process.
pub(super) struct Specimen<'a> {
    image: &'a Arc<Image>,
    /// Number of its pool in the new snapshot.
    pool: u32,
    /// What lies in its own pool, by address.
    runs: Vec<PageRun>,
    /// An absent page would look like zeros.
    _hold: Hold,
}

/// Pages of a process, divided.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Divided {
    /// Pages to be saved, sorted. A group has none of the specimen's pages inside.
    pub own: Vec<Vec<Range<u64>>>,
    /// Pages that lie in the specimen's pool.
    pub shared: Vec<PageRun>,
}

impl<'a> Specimen<'a> {
    /// `None` if some of its pages may be absent.
    pub fn of(image: &'a Arc<Image>, pool: u32) -> Option<Self> {
        let hold = image.memory().hold();
        if matches!(hold, Hold::Absent(_)) {
            return None;
        }
        let saved = image.snapshot().mappings.iter().flat_map(|m| &m.saved);
        let mut runs: Vec<PageRun> = saved.filter(|run| run.pool() == 0).copied().collect();
        runs.sort_unstable_by_key(|run| run.address);
        Some(Self {
            image,
            pool,
            runs,
            _hold: hold,
        })
    }

    /// Finds those of `ranges` (sorted, disjoint) that it has at the same addresses with the same bytes, and of which the same
    /// stands behind, which `behind` tells by address: what descends from this snapshot must find there what it would have found.
    pub fn divide<'b>(
        &self,
        memory: &Memory,
        ranges: &[Range<u64>],
        behind: impl Fn(u64) -> Behind<'b>,
    ) -> Result<Divided, CheckpointError> {
        let image_memory = self.image.memory();
        let mut divided = Divider::default();
        let (mut ours, mut theirs) = ([0; PAGE], [0; PAGE]);
        for address in ranges.iter().flat_map(|r| r.clone().step_by(PAGE)) {
            let page = match self.page_at(address) {
                Some(page) if self.stands_for_the_same(page, &behind(address)) => {
                    memory.read(address, &mut ours)?;
                    self.read(image_memory.view(), page, &mut theirs)?;
                    (ours == theirs).then(|| pool_page(self.pool, page))
                }
                _ => None,
            };
            divided.add(address, page);
        }
        Ok(divided.0)
    }

    fn page_at(&self, address: u64) -> Option<u64> {
        let at = self.runs.partition_point(|run| run.address <= address);
        let run = self.runs.get(at.checked_sub(1)?)?;
        let distance = (address - run.address) / PAGE_SIZE;
        (distance < run.pages).then(|| run.page_in_pool() + distance)
    }

    fn stands_for_the_same(&self, page: u64, ours: &Behind<'_>) -> bool {
        let theirs = self.image.behind(page..page + 1);
        match (theirs.first().map(|(_, behind)| behind), ours) {
            (Some(Behind::Zeros), Behind::Zeros) => true,
            (
                Some(Behind::File {
                    identity, offset, ..
                }),
                Behind::File {
                    identity: other,
                    offset: other_offset,
                    ..
                },
            ) => identity == other && offset == other_offset,
            _ => false,
        }
    }

    fn read(
        &self,
        pool: BorrowedFd<'_>,
        page: u64,
        bytes: &mut [u8],
    ) -> Result<(), CheckpointError> {
        read_exact(pool, bytes, page * PAGE_SIZE).map_err(CheckpointError::ParentPool)
    }
}

/// Puts pages together again.
#[derive(Debug, Default)]
struct Divider(Divided);

impl Divider {
    /// The next page, and where it lies in the specimen's pool.
    fn add(&mut self, address: u64, shared: Option<u64>) {
        let Divided { own, shared: runs } = &mut self.0;
        let end = address + PAGE_SIZE;
        let Some(pool_page) = shared else {
            let follows_shared = runs.last().is_some_and(|run| {
                own.last()
                    .and_then(|g| g.last())
                    .is_none_or(|r| r.end <= run.address)
            });
            if own.is_empty() || follows_shared {
                own.push(Vec::new());
            }
            let group = own.last_mut().expect("one was just made sure of");
            match group.last_mut() {
                Some(last) if last.end == address => last.end = end,
                _ => group.push(address..end),
            }
            return;
        };
        match runs.last_mut() {
            Some(run)
                if run.address + run.pages * PAGE_SIZE == address
                    && run.pool_page + run.pages == pool_page =>
            {
                run.pages += 1;
            }
            _ => runs.push(PageRun {
                address,
                pages: 1,
                pool_page,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_group_of_own_pages_goes_across_a_shared_one() {
        let mut divider = Divider::default();
        let pages = [
            (0, None),
            (1, Some(10)),
            (2, Some(11)),
            (3, Some(20)),
            (4, None),
            (5, None),
            (9, None),
            (10, Some(21)),
            (12, None),
        ];
        for (page, shared) in pages {
            let shared = shared.map(|n| pool_page(2, n));
            divider.add(page * PAGE_SIZE, shared);
        }
        let range = |pages: Range<u64>| pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
        let run = |page: u64, pages, n| PageRun {
            address: page * PAGE_SIZE,
            pages,
            pool_page: pool_page(2, n),
        };
        let expected = Divided {
            own: vec![
                vec![range(0..1)],
                vec![range(4..6), range(9..10)],
                vec![range(12..13)],
            ],
            shared: vec![run(1, 2, 10), run(3, 1, 20), run(10, 1, 21)],
        };
        assert_eq!(divider.0, expected);
    }
}
