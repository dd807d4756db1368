//! Pages that a restore copies, so that it need not map them.
//!
//! ```text
//!  saved        |PPPPPP|o|PPPPPPPPP|oo|PPPP|ooooooo|PPP|      P the template's pool, o pages of its own
//!  mapped       |PPPPPP.PPPPPPPPPPPPPPPPPP| ooooooo|PPP|      one mapping in the place of five
//!  copied              |o|         |oo|                       by one read for all that lie side by side in the pool
//! ```
//! A delta's own pages lie in pieces between its template's, and each piece costs two mappings (1.3 us each, and as much
//! when a clone of them is made). What a call writes would be copied in any case: then it needs no mapping of its own.
//! A run may have one page besides that is not written: a copy takes 1 us, and a page in each instance.

use std::collections::HashMap;
use std::ops::Range;

use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE, PageRun, ProcessSnapshot};
use rouse_snapshot::working_set::{WorkingSet, contains, preparable};

/// Pages of a run that a restore copies though no call is known to write them.
const UNWRITTEN: u64 = 1;
/// Pages of a run that a template host copies though calls write them: a clone's own copy of a page that the host has
/// copied takes 1 us more.
const WRITTEN: u64 = 2;
/// The most pages of a run that a template host copies.
const LONGEST: u64 = 16;

/// Who copies pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Nobody: some pages may be absent.
    Nothing,
    /// An instance, for itself.
    Restore,
    /// A template host, once for all clones. They share what they do not write.
    Host,
}

/// What is made of the saved pages of one mapping.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Runs to map, sorted. Those of a template may go on below pages that are copied.
    pub mapped: Vec<PageRun>,
    /// Runs to copy, sorted.
    pub copied: Vec<PageRun>,
}

impl Layout {
    /// Copies what may be copied.
    pub fn copying(mapping: &Mapping, is_delta: bool, set: &WorkingSet, by: Copies) -> Self {
        let is_writable = mapping.prot & libc::PROT_WRITE as u32 != 0;
        // An empty set proves nothing, and such a boot is to show what is touched.
        if by == Copies::Nothing
            || !is_delta
            || set.is_empty()
            || !is_writable
            // A key may forbid what its rights allow.
            || mapping.pkey != 0
            || !preparable(mapping)
        {
            return Self {
                mapped: mapping.saved.clone(),
                copied: Vec::new(),
            };
        }
        let last_of: HashMap<_, _> = (mapping.saved.iter().enumerate())
            .map(|(index, run)| (stretch(run), index))
            .collect();
        let mut layout = Self::default();
        // Up to where pages are mapped or copied without a gap.
        let mut end = mapping.range.start;
        for (index, run) in mapping.saved.iter().enumerate() {
            let follows = end == run.address;
            let last = layout.mapped.last_mut().filter(|_| follows);
            end = run.address + run.pages * PAGE_SIZE;
            if let Some(last) = last.filter(|last| last.pool() > 0) {
                let is_next = last.address + last.pages * PAGE_SIZE == run.address;
                if is_next && last.pool_page + last.pages == run.pool_page {
                    last.pages += run.pages;
                    continue;
                }
                // Where the template has pages behind it, too, it has at these addresses what was there before: a page
                // that is given back by the function is then what it would be.
                let is_inside = last_of.get(&stretch(last)).is_some_and(|at| *at > index);
                if is_next && is_inside && is_copied(run, set, by) {
                    last.pages += run.pages;
                    layout.copied.push(*run);
                    continue;
                }
            } else if mapping.backing == Backing::Anonymous && !follows && is_copied(run, set, by) {
                layout.copied.push(*run);
                continue;
            }
            layout.mapped.push(*run);
        }
        layout
    }
}

/// What runs have in common that are parts of one stretch of a pool.
fn stretch(run: &PageRun) -> (usize, u64) {
    let distance = (run.address / PAGE_SIZE).wrapping_sub(run.page_in_pool());
    (run.pool(), distance)
}

fn is_copied(run: &PageRun, set: &WorkingSet, by: Copies) -> bool {
    let addresses = (0..run.pages).map(|page| run.address + page * PAGE_SIZE);
    let is_written = |address: &u64| contains(&set.written, *address);
    let written = addresses.filter(is_written).count() as u64;
    run.pool() == 0
        && match by {
            Copies::Nothing => false,
            Copies::Restore => run.pages - written <= UNWRITTEN,
            Copies::Host => written <= WRITTEN && run.pages <= LONGEST,
        }
}

/// All runs that are copied.
pub(super) fn copied(snapshot: &ProcessSnapshot, set: &WorkingSet, by: Copies) -> Vec<PageRun> {
    let is_delta = !snapshot.parents.is_empty();
    let mappings = snapshot.mappings.iter();
    mappings
        .flat_map(|mapping| Layout::copying(mapping, is_delta, set, by).copied)
        .collect()
}

/// What an instance has copied, one way or the other: `set.written` and the pages of these runs. Sorted.
pub(crate) fn all_written(
    snapshot: &ProcessSnapshot,
    set: &WorkingSet,
    by: Copies,
) -> Vec<Range<u64>> {
    let copied = copied(snapshot, set, by);
    let mut ranges: Vec<Range<u64>> = set.written.clone();
    ranges.extend(copied.iter().map(addresses));
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// `ranges` without the pages of `runs`. Both are sorted.
pub(super) fn without(ranges: &[Range<u64>], runs: &[PageRun]) -> Vec<Range<u64>> {
    let mut out = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut at = range.start;
        let first = runs.partition_point(|run| addresses(run).end <= range.start);
        for run in runs[first..].iter().map(addresses) {
            if run.start >= range.end {
                break;
            }
            if at < run.start {
                out.push(at..run.start);
            }
            at = at.max(run.end);
        }
        if at < range.end {
            out.push(at..range.end);
        }
    }
    out
}

fn addresses(run: &PageRun) -> Range<u64> {
    run.address..run.address + run.pages * PAGE_SIZE
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
mod tests {
    use rouse_snapshot::model::pool_page;

    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    fn run(page: u64, pages: u64, pool: u32, first: u64) -> PageRun {
        PageRun {
            address: page * PAGE,
            pages,
            pool_page: pool_page(pool, first),
        }
    }

    fn layout(backing: Backing, saved: &[PageRun], written: &[Range<u64>]) -> Layout {
        let mapping = Mapping {
            range: 0..100 * PAGE,
            prot: (libc::PROT_READ | libc::PROT_WRITE) as u32,
            backing,
            flags: Default::default(),
            pkey: 0,
            name: Default::default(),
            saved: saved.to_vec(),
        };
        let pages = |range: &Range<u64>| range.start * PAGE..range.end * PAGE;
        let set = WorkingSet {
            written: written.iter().map(pages).collect(),
            read: vec![],
        };
        Layout::copying(&mapping, true, &set, Copies::Restore)
    }

    #[test]
    fn the_template_goes_on_below_what_is_copied() {
        let saved = [
            run(10, 6, 1, 0),
            run(16, 1, 0, 0),
            run(17, 4, 1, 7),
            run(21, 2, 0, 1),
            run(23, 2, 1, 13),
            run(25, 5, 0, 3),
            run(30, 3, 1, 20),
        ];
        let found = layout(Backing::Anonymous, &saved, &[16..17, 21..22]);
        assert_eq!(
            found.mapped,
            [run(10, 15, 1, 0), run(25, 5, 0, 3), run(30, 3, 1, 20)]
        );
        assert_eq!(found.copied, [run(16, 1, 0, 0), run(21, 2, 0, 1)]);
    }

    #[test]
    fn a_copy_needs_something_below() {
        let file = Backing::PrivateFile {
            file: rouse_snapshot::model::FileId(0),
            offset: 0,
        };
        let alone = [run(16, 1, 0, 0)];
        let written = [16..17_u64];
        assert_eq!(layout(file, &alone, &written).mapped, alone);
        assert_eq!(layout(Backing::Anonymous, &alone, &written).copied, alone);
        // Who knows what the template has there.
        let last = [run(10, 2, 1, 28), run(12, 1, 0, 0)];
        assert_eq!(layout(Backing::Anonymous, &last, &[12..13]).mapped, last);
        assert_eq!(layout(Backing::Anonymous, &alone, &[]).mapped, alone);
    }

    #[test]
    fn what_is_copied_is_not_copied_again() {
        let ranges = [0..10 * PAGE, 20 * PAGE..22 * PAGE, 30 * PAGE..31 * PAGE];
        let runs = [run(2, 3, 0, 0), run(9, 1, 0, 3), run(20, 2, 0, 4)];
        let rest = [0..2 * PAGE, 5 * PAGE..9 * PAGE, 30 * PAGE..31 * PAGE];
        assert_eq!(without(&ranges, &runs), rest);
    }
}
