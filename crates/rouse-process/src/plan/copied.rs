//! Pages that a restore copies, so that it need not map them.
//!
//! ```text
//!  saved        |PPPPPP|o|PPPPPPPPP|oo|PPPP|ooooooo|PPP|      P the template's pool, o pages of its own
//!  mapped       |PPPPPP.PPPPPPPPPPPPPPPPPP| ooooooo|PPP|      one mapping in the place of five
//!  copied              |o|         |oo|                       by one read for all that lie side by side in the pool
//! ```
//! A delta's own pages lie in pieces between its template's, and each piece costs two mappings, and as much when a clone
//! of them is made. What a call writes would be copied in any case: then it needs no mapping of its own. Whether a piece
//! is mapped or copied follows from what both cost on this host (`rouse_pool::cost::MapOrCopy`).
//!
//! However many pieces there are, mappings stay few: from [`MOST_RUNS`] pieces on, the shortest ones are copied in any
//! case, by watched instances too. What those copy is kept in the pool, since an absent page would be read as zeros.

use std::collections::HashMap;
use std::ops::Range;

use rouse_pool::cost::MapOrCopy;
use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE, PageRun, ProcessSnapshot};
use rouse_snapshot::working_set::{WorkingSet, contains, preparable};

/// Runs that an instance maps, at most, if others can be copied.
pub(crate) const MOST_RUNS: usize = 1024;

/// What is copied of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CopyPolicy {
    costs: MapOrCopy,
    /// Runs of at most so many pages are copied in any case.
    in_any_case: u64,
}

impl CopyPolicy {
    /// By these costs.
    pub fn new(snapshot: &ProcessSnapshot, costs: MapOrCopy) -> Self {
        let policy = |in_any_case| Self { costs, in_any_case };
        let mapped = |policy: Self| -> usize {
            let mappings = snapshot.mappings.iter();
            let nothing = WorkingSet::default();
            mappings
                .map(|m| {
                    Layout::copying(m, &nothing, Copies::Nothing, &policy)
                        .mapped
                        .len()
                })
                .sum()
        };
        let lengths = std::iter::successors(Some(1_u64), |pages| pages.checked_mul(2));
        let saved = |m: &Mapping| m.saved.iter().map(|run| run.pages).max().unwrap_or(0);
        let longest = snapshot.mappings.iter().map(saved).max().unwrap_or(0);
        std::iter::once(0)
            .chain(lengths.take_while(|pages| *pages < 2 * longest))
            .map(policy)
            .find(|policy| mapped(*policy) <= MOST_RUNS)
            // There is no more to be copied.
            .unwrap_or(policy(longest))
    }

    fn copies(&self, run: &PageRun, set: &WorkingSet, by: Copies) -> bool {
        if run.pool() != 0 {
            return false;
        }
        if run.pages <= self.in_any_case {
            return true;
        }
        // An empty set proves nothing, and such a boot is to show what is touched.
        if set.is_empty() {
            return false;
        }
        let addresses = (0..run.pages).map(|page| run.address + page * PAGE_SIZE);
        let is_written = |address: &u64| contains(&set.written, *address);
        let written = addresses.filter(is_written).count() as u64;
        match by {
            Copies::Nothing => false,
            Copies::Restore => self.costs.restore_copies(run.pages, written),
            Copies::Host => self.costs.template_copies(run.pages, written),
        }
    }
}

/// Who copies pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Nobody, as far as it can be avoided: some pages may be absent.
    Nothing,
    /// An instance, for itself.
    Restore,
    /// A template host, once for all clones. They share what they do not write.
    Host,
}

/// What is made of the saved pages of one mapping.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Runs to map, sorted. Those of a template may go on below pages that are copied.
    pub mapped: Vec<PageRun>,
    /// Runs to copy, sorted.
    pub copied: Vec<PageRun>,
}

impl Layout {
    /// Copies what may be copied.
    pub fn copying(mapping: &Mapping, set: &WorkingSet, by: Copies, policy: &CopyPolicy) -> Self {
        let is_writable = mapping.prot & libc::PROT_WRITE as u32 != 0;
        // A key may forbid what its rights allow.
        if !is_writable || mapping.pkey != 0 || !preparable(mapping) {
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
                if is_next && is_inside && policy.copies(run, set, by) {
                    last.pages += run.pages;
                    layout.copied.push(*run);
                    continue;
                }
            } else if mapping.backing == Backing::Anonymous
                && !follows
                && policy.copies(run, set, by)
            {
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

/// All runs that are copied.
pub(super) fn copied(
    snapshot: &ProcessSnapshot,
    set: &WorkingSet,
    by: Copies,
    policy: &CopyPolicy,
) -> Vec<PageRun> {
    let mappings = snapshot.mappings.iter();
    mappings
        .flat_map(|mapping| Layout::copying(mapping, set, by, policy).copied)
        .collect()
}

/// Pages of the pool that even watched instances copy.
pub(crate) fn copied_in_any_case(snapshot: &ProcessSnapshot) -> Vec<Range<u64>> {
    let policy = CopyPolicy::new(snapshot, MapOrCopy::default());
    let copied = copied(snapshot, &WorkingSet::default(), Copies::Nothing, &policy);
    let pages = |run: &PageRun| run.pool_page..run.pool_page + run.pages;
    copied.iter().map(pages).collect()
}

/// What an instance has copied, one way or the other: `set.written` and the pages of these runs. Sorted.
pub(crate) fn all_written(
    snapshot: &ProcessSnapshot,
    set: &WorkingSet,
    by: Copies,
    policy: &CopyPolicy,
) -> Vec<Range<u64>> {
    let copied = copied(snapshot, set, by, policy);
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

    fn mapping(backing: Backing, saved: &[PageRun]) -> Mapping {
        Mapping {
            range: 0..100 * PAGE,
            prot: (libc::PROT_READ | libc::PROT_WRITE) as u32,
            backing,
            flags: Default::default(),
            pkey: 0,
            name: Default::default(),
            saved: saved.to_vec(),
        }
    }

    fn policy(in_any_case: u64) -> CopyPolicy {
        CopyPolicy {
            costs: MapOrCopy::default(),
            in_any_case,
        }
    }

    fn layout(backing: Backing, saved: &[PageRun], written: &[Range<u64>]) -> Layout {
        let mapping = mapping(backing, saved);
        let pages = |range: &Range<u64>| range.start * PAGE..range.end * PAGE;
        let set = WorkingSet {
            written: written.iter().map(pages).collect(),
            read: vec![],
        };
        Layout::copying(&mapping, &set, Copies::Restore, &policy(0))
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
    fn what_must_be_few_is_copied_by_all() {
        let saved: Vec<PageRun> = (0..20)
            .map(|n| run(4 * n + 1, 1 + n % 3, 0, 10 * n))
            .collect();
        let mapping = mapping(Backing::Anonymous, &saved);
        let mapped = |in_any_case, by| {
            let nothing = WorkingSet::default();
            let layout = Layout::copying(&mapping, &nothing, by, &policy(in_any_case));
            assert_eq!(layout.mapped.len() + layout.copied.len(), 20);
            assert!(layout.copied.iter().all(|run| run.pages <= in_any_case));
            layout.mapped.len()
        };
        for by in [Copies::Nothing, Copies::Restore, Copies::Host] {
            assert_eq!(mapped(0, by), 20);
            assert_eq!(mapped(1, by), 13);
            assert_eq!(mapped(2, by), 6);
            assert_eq!(mapped(3, by), 0);
        }
    }

    #[test]
    fn what_is_copied_is_not_copied_again() {
        let ranges = [0..10 * PAGE, 20 * PAGE..22 * PAGE, 30 * PAGE..31 * PAGE];
        let runs = [run(2, 3, 0, 0), run(9, 1, 0, 3), run(20, 2, 0, 4)];
        let rest = [0..2 * PAGE, 5 * PAGE..9 * PAGE, 30 * PAGE..31 * PAGE];
        assert_eq!(without(&ranges, &runs), rest);
    }
}
