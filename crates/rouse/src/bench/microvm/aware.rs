//! What it is worth to know whose the pages of a machine are: how well that predicts which of them an answer touches.

use std::ops::Range;

use rouse_snapshot::model::PageRun;
use rouse_vmm::agent::{Owner, Owners};
use rouse_vmm::memory::{known_pages, likely_pages};
use serde::Serialize;

/// Pages of the snapshot's pool of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OfOwner {
    /// The owner's name.
    pub owner: &'static str,
    /// All.
    pub pages: u64,
    /// Those that the next answer touched.
    pub touched: u64,
}

/// How well a prediction of the touched pages is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    /// Pages that were predicted.
    pub pages: u64,
    /// Part of them that was touched.
    pub precision: f64,
    /// Part of the touched pages that was predicted.
    pub recall: f64,
}

/// What is known, and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Awareness {
    /// Pages by owner.
    pub owners: Vec<OfOwner>,
    /// By their owners.
    pub with: Prediction,
    /// As many pages without knowing anything of them: what any choice comes to on average.
    pub without: Prediction,
}

impl Awareness {
    /// Of a snapshot whose runs are `memory`, where `touched` pages of its pool were touched: sorted, disjoint.
    pub fn of(owners: &Owners, memory: &[PageRun], touched: &[Range<u64>]) -> Self {
        let hits = |range: &Range<u64>| -> u64 {
            let common = |other: &Range<u64>| {
                let (start, end) = (range.start.max(other.start), range.end.min(other.end));
                end.saturating_sub(start)
            };
            touched.iter().map(common).sum()
        };
        let known = known_pages(owners, memory);
        let of = |owner: Owner| {
            let runs = known.iter().filter(|run| run.owner == owner);
            let (mut pages, mut touched) = (0, 0);
            for run in runs {
                pages += run.pages.end - run.pages.start;
                touched += hits(&run.pages);
            }
            (pages > 0).then(|| OfOwner {
                owner: owner.name(),
                pages,
                touched,
            })
        };
        let owned: Vec<OfOwner> = Owner::ALL.into_iter().filter_map(of).collect();
        let (pool, all_touched) = owned.iter().fold((0, 0), |(pages, touched), of| {
            (pages + of.pages, touched + of.touched)
        });
        let likely = likely_pages(owners, memory);
        let predicted: u64 = likely.iter().map(|range| range.end - range.start).sum();
        let hit: u64 = likely.iter().map(hits).sum();
        Self {
            owners: owned,
            with: Prediction {
                pages: predicted,
                precision: part(hit, predicted),
                recall: part(hit, all_touched),
            },
            without: Prediction {
                pages: predicted,
                precision: part(all_touched, pool),
                recall: part(predicted, pool),
            },
        }
    }
}

fn part(of: u64, all: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "pages of one machine fit 52 bits"
    )]
    let (of, all) = (of as f64, all as f64);
    if all > 0.0 { of / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use rouse_snapshot::model::PAGE_SIZE;

    use super::*;

    #[test]
    fn a_prediction_is_compared_with_what_was_touched() {
        let mut pages = vec![Owner::Kernel; 20];
        pages[10..14].fill(Owner::Heap);
        // Pages 0 to 9 of the pool are pages 8 to 17 of memory: the heap is 2 to 5.
        let run = PageRun {
            address: 8 * PAGE_SIZE,
            pages: 10,
            pool_page: 0,
        };
        let found = Awareness::of(&Owners::of(&pages), &[run], &[0..1, 3..6, 9..10]);
        assert_eq!(
            found.owners,
            [("kernel", 6, 2), ("heap", 4, 3)].map(|(owner, pages, touched)| OfOwner {
                owner,
                pages,
                touched
            })
        );
        assert_eq!(
            (found.with.precision, found.with.recall),
            (3.0 / 4.0, 3.0 / 5.0)
        );
        assert_eq!(
            (found.without.precision, found.without.recall),
            (5.0 / 10.0, 4.0 / 10.0)
        );
        let nothing = Awareness::of(&Owners::default(), &[], &[]);
        assert_eq!((nothing.with.pages, nothing.with.recall), (0, 0.0));
    }
}
