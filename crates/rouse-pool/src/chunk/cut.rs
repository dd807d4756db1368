//! Where a pool is cut into pieces.
//!
//! Pages of one repeated byte first, by themselves. The rest is cut where it changes between the
//! working set and what is cold, and else by content: behind a page whose digest says so. Two
//! pools of one runtime hold the same pages at different numbers, since a page more in front
//! shifts all that follow; cuts by content come back into step with them, cuts at every
//! sixteenth page never would, and nothing behind the first difference would be found to be equal.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::thread;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{Class, MAX_PIECE_PAGES};

use crate::pool::Pool;

const PAGE: usize = PAGE_SIZE as usize;
/// Shorter pieces compress badly and cost as much to look up.
const MIN_PAGES: u64 = 4;
/// One page in so many ends a piece: about 10 pages a piece, with the bounds on both sides.
const CUT_ONE_IN: u8 = 8;
/// Cold pages between two hot ones are stored as hot if there are at most so many: reading them too is
/// cheaper than two small pieces in the place of one.
const HOT_GAP: u64 = 2;
/// Pages that a thread looks at in one go.
const BATCH: u64 = 256;

/// A piece, before it is known where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub first_page: u64,
    pub pages: u32,
    pub class: Class,
    /// Of pages that hold nothing else.
    pub byte: Option<u8>,
    /// Place in the order of first touch; only of hot pieces.
    pub rank: u32,
}

/// Cuts a pool. `hot` are the pages of its working set in the order of their first touch; what
/// lies beyond the pool is ignored.
pub(crate) fn cut(pool: &Pool, hot: &[Range<u64>]) -> io::Result<Vec<Cut>> {
    let marks = marks(pool)?;
    let ranks = ranks(&marks, hot);
    let mut cuts: Vec<Cut> = Vec::new();
    let mut open = false;
    for (page, (mark, rank)) in marks.iter().zip(&ranks).enumerate() {
        let class = match rank {
            Some(_) => Class::Hot,
            None => Class::Cold,
        };
        let byte = mark.byte();
        let rank = rank.unwrap_or(u32::MAX);
        match cuts.last_mut() {
            Some(last)
                if open
                    && last.pages < MAX_PIECE_PAGES
                    && last.byte == byte
                    && (last.class == class || byte.is_some()) =>
            {
                last.pages += 1;
                last.rank = last.rank.min(rank);
                if class == Class::Hot {
                    last.class = class;
                }
            }
            _ => cuts.push(Cut {
                first_page: page as u64,
                pages: 1,
                class,
                byte,
                rank,
            }),
        }
        let pages = cuts.last().map_or(0, |last| u64::from(last.pages));
        open = !(matches!(mark, Mark::End) && pages >= MIN_PAGES);
    }
    Ok(cuts)
}

/// What a page says about cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Repeated(u8),
    Inside,
    End,
}

impl Mark {
    fn of(page: &[u8]) -> Self {
        // Every byte equals the next one; `memcmp` is fast.
        if page[1..] == page[..PAGE - 1] {
            return Self::Repeated(page[0]);
        }
        if blake3::hash(page).as_bytes()[0].is_multiple_of(CUT_ONE_IN) {
            Self::End
        } else {
            Self::Inside
        }
    }

    fn byte(self) -> Option<u8> {
        match self {
            Self::Repeated(byte) => Some(byte),
            Self::Inside | Self::End => None,
        }
    }
}

fn marks(pool: &Pool) -> io::Result<Vec<Mark>> {
    let mut marks = vec![Mark::Inside; pool.pages() as usize];
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(4);
    let share = (pool.pages().div_ceil(BATCH).div_ceil(threads as u64) * BATCH).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = marks
            .chunks_mut(share as usize)
            .enumerate()
            .map(|(index, marks)| scope.spawn(move || mark(pool, index as u64 * share, marks)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(marks)
}

fn mark(pool: &Pool, first: u64, marks: &mut [Mark]) -> io::Result<()> {
    let mut buffer = vec![0; BATCH as usize * PAGE];
    for (index, marks) in marks.chunks_mut(BATCH as usize).enumerate() {
        let bytes = &mut buffer[..marks.len() * PAGE];
        pool.read(first + index as u64 * BATCH, bytes)?;
        for (mark, page) in marks.iter_mut().zip(bytes.chunks_exact(PAGE)) {
            *mark = Mark::of(page);
        }
    }
    Ok(())
}

/// The place of each page in the order of first touch; `None` for cold ones.
fn ranks(marks: &[Mark], hot: &[Range<u64>]) -> Vec<Option<u32>> {
    let mut ranks = vec![None; marks.len()];
    let mut next = 0;
    let len = marks.len() as u64;
    for range in hot {
        for page in range.start.min(len)..range.end.min(len) {
            let rank = &mut ranks[page as usize];
            if rank.is_none() {
                *rank = Some(next);
                next += 1;
            }
        }
    }
    let mut last_hot: Option<usize> = None;
    for page in 0..ranks.len() {
        if ranks[page].is_none() {
            continue;
        }
        if let Some(last) = last_hot
            && (page - last - 1) as u64 <= HOT_GAP
        {
            let between = last + 1..page;
            if marks[between.clone()]
                .iter()
                .all(|mark| mark.byte().is_none())
            {
                let rank = ranks[last];
                ranks[between].fill(rank);
            }
        }
        last_hot = Some(page);
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pool::PoolBuilder;

    fn page(seed: u64) -> Vec<u8> {
        match seed {
            0..4 => vec![seed as u8; PAGE],
            _ => (0..PAGE as u64 / 8)
                .flat_map(|at| (seed * 1000 + at).to_le_bytes())
                .collect(),
        }
    }

    fn pool(seeds: impl IntoIterator<Item = u64>) -> Pool {
        let mut builder = PoolBuilder::new("test").unwrap();
        for seed in seeds {
            builder.append(&page(seed)).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn cuts_come_back_into_step() {
        // The second pool has one page more in front.
        let ends = |pool: &Pool| -> Vec<u64> {
            cut(pool, &[])
                .unwrap()
                .iter()
                .map(|cut| pool.pages() - cut.first_page)
                .collect()
        };
        let one = ends(&pool(100..400));
        let other = ends(&pool(99..400));
        let common = one.iter().filter(|end| other.contains(end)).count();
        assert!(common > one.len() * 3 / 4, "{common} of {}", one.len());
    }

    #[test]
    fn repeated_bytes_are_apart() {
        let cuts = cut(&pool([9, 8, 0, 0, 1, 1, 1, 7, 0]), &[]).unwrap();
        let found: Vec<_> = cuts.iter().map(|cut| (cut.pages, cut.byte)).collect();
        assert_eq!(
            found,
            [
                (2, None),
                (2, Some(0)),
                (3, Some(1)),
                (1, None),
                (1, Some(0))
            ]
        );
    }

    #[test]
    fn the_working_set_keeps_its_order_and_closes_small_gaps() {
        let hot = [50..52, 10..12, 14..15, 100..1000, 5..6];
        let cuts = cut(&pool(100..160), &hot).unwrap();
        let mut hot: Vec<_> = cuts.iter().filter(|cut| cut.class == Class::Hot).collect();
        hot.sort_by_key(|cut| cut.rank);
        let mut pages: Vec<u64> = Vec::new();
        for cut in &hot {
            pages.extend(cut.first_page..cut.first_page + u64::from(cut.pages));
        }
        assert_eq!(pages, [50, 51, 10, 11, 12, 13, 14, 5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_page_is_in_one_piece_of_its_kind(
            seeds in prop::collection::vec(0..8_u64, 0..120),
            hot in prop::collection::vec((0..130_u64, 0..6_u64), 0..12),
        ) {
            let hot: Vec<_> = hot.into_iter().map(|(start, len)| start..start + len).collect();
            let cuts = cut(&pool(seeds.iter().copied()), &hot).unwrap();
            let mut next = 0;
            for cut in &cuts {
                prop_assert_eq!(cut.first_page, next);
                prop_assert!((1..=MAX_PIECE_PAGES).contains(&cut.pages));
                let end = next + u64::from(cut.pages);
                for page in next..end {
                    let seed = seeds[page as usize];
                    prop_assert_eq!(cut.byte, (seed < 4).then_some(seed as u8));
                    if hot.iter().any(|range| range.contains(&page)) {
                        prop_assert_eq!(cut.class, Class::Hot);
                    }
                }
                next = end;
            }
            prop_assert_eq!(next, seeds.len() as u64);
        }
    }
}
