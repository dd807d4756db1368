//! Every page of a snapshot has exactly one class.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod arbitrary;
mod sample;

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use rouse_snapshot::model::{Backing, PAGE_SIZE, POOL_PAGE_BITS, ProcessSnapshot};
use rouse_snapshot::page_class::{
    ClassRun, Contents, PageClass, classify, hot_pool_pages, live_stack,
};
use rouse_snapshot::working_set::{WorkingSet, contains, preparable};

/// The class of one page, found the slow way.
fn oracle(
    snapshot: &ProcessSnapshot,
    set: &WorkingSet,
    mapping: usize,
    page: u64,
) -> (PageClass, Contents) {
    let mapping = &snapshot.mappings[mapping];
    let saved = mapping
        .saved
        .iter()
        .find(|run| run.address <= page && page < run.address + run.pages * PAGE_SIZE)
        .map(|run| Contents::Pool(run.pool_page + (page - run.address) / PAGE_SIZE));
    let contents = saved.unwrap_or(match mapping.backing {
        Backing::Anonymous | Backing::Stack | Backing::SharedMemory { .. } => Contents::Nothing,
        _ => Contents::Host,
    });
    let copied_anyway = match mapping.backing {
        Backing::SharedMemory { .. } => saved.is_some(),
        Backing::Stack => saved.is_some() && page >= live_stack(snapshot),
        _ => false,
    };
    let class = if copied_anyway || preparable(mapping) && contains(&set.written, page) {
        PageClass::Written
    } else if preparable(mapping) && contains(&set.read, page) {
        PageClass::Read
    } else {
        match contents {
            Contents::Pool(page) if page >> POOL_PAGE_BITS == 0 => PageClass::Cold,
            Contents::Pool(_) => PageClass::Parent,
            Contents::Host => PageClass::File,
            Contents::Nothing => PageClass::Zero,
        }
    };
    (class, contents)
}

/// A working set of some pages of a snapshot, chosen by the bits of `choice`.
fn some_pages(snapshot: &ProcessSnapshot, choice: &[u8]) -> WorkingSet {
    let mut set = WorkingSet::default();
    let mut bits = choice.iter().copied().cycle();
    let push = |ranges: &mut Vec<Range<u64>>, page| ranges.push(page..page + PAGE_SIZE);
    for mapping in &snapshot.mappings {
        for page in sampled(&mapping.range) {
            match bits.next().unwrap() % 4 {
                0 => push(&mut set.written, page),
                1 => push(&mut set.read, page),
                // In both: written counts.
                2 => {
                    push(&mut set.written, page);
                    push(&mut set.read, page);
                }
                _ => {}
            }
        }
    }
    set
}

/// At most 64 pages of a mapping, which may be huge.
fn sampled(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let pages = (range.end - range.start) / PAGE_SIZE;
    let step = pages.div_ceil(64).max(1);
    let start = range.start;
    (0..pages)
        .step_by(step as usize)
        .map(move |n| start + n * PAGE_SIZE)
}

fn check(snapshot: &ProcessSnapshot, set: &WorkingSet) {
    let classes = classify(snapshot, set);
    assert_eq!(classes.len(), snapshot.mappings.len());
    for (index, (mapping, runs)) in snapshot.mappings.iter().zip(&classes).enumerate() {
        let mut at = mapping.range.start;
        for run in runs {
            assert_eq!(run.range.start, at, "a gap or an overlap");
            assert!(run.range.start < run.range.end, "an empty run");
            at = run.range.end;
            let edges = [run.range.start, run.range.end - PAGE_SIZE];
            for page in edges.into_iter().chain(sampled(&run.range)) {
                assert_eq!(at_page(run, page), oracle(snapshot, set, index, page));
            }
        }
        assert_eq!(at, mapping.range.end, "a mapping is not covered");
        let mergeable = |pair: &[ClassRun]| {
            pair[0].class == pair[1].class
                && at_page(&pair[0], pair[0].range.end).1 == pair[1].contents
        };
        assert!(!runs.windows(2).any(mergeable), "runs that are one");
    }
}

fn at_page(run: &ClassRun, page: u64) -> (PageClass, Contents) {
    let contents = match run.contents {
        Contents::Pool(first) => Contents::Pool(first + (page - run.range.start) / PAGE_SIZE),
        other => other,
    };
    (run.class, contents)
}

#[test]
fn a_sample_has_every_class_that_can_be() {
    let snapshot = sample::sample(3, 12);
    let set = some_pages(&snapshot, &[0, 1, 2, 3, 3]);
    check(&snapshot, &set);
    let mut counts = BTreeMap::new();
    for run in classify(&snapshot, &set).iter().flatten() {
        *counts.entry(run.class).or_insert(0) += run.pages();
    }
    let classes: Vec<_> = PageClass::ALL
        .into_iter()
        .filter(|class| counts.contains_key(class))
        .map(PageClass::name)
        .collect();
    assert_eq!(classes, ["written", "read", "cold", "file", "zero"]);
}

#[test]
fn hot_pages_of_the_pool_come_once() {
    let snapshot = sample::sample(3, 12);
    let set = some_pages(&snapshot, &[0, 1, 2, 3, 3]);
    let mut hot: Vec<u64> = hot_pool_pages(&snapshot, &set, &BTreeMap::new())
        .into_iter()
        .flatten()
        .collect();
    let count = hot.len();
    hot.sort_unstable();
    hot.dedup();
    assert_eq!(hot.len(), count, "a page comes twice");
    assert!(hot.last().is_some_and(|last| *last < snapshot.pool_pages));
}

/// The addresses of the pages of `set` that can be prepared and lie in the pool, with their pool pages.
fn pages_of_the_pool(snapshot: &ProcessSnapshot, set: &WorkingSet) -> Vec<(u64, u64)> {
    let mut pages = Vec::new();
    for mapping in snapshot.mappings.iter().filter(|m| preparable(m)) {
        for run in mapping.saved.iter().filter(|run| run.pool() == 0) {
            for n in 0..run.pages {
                let address = run.address + n * PAGE_SIZE;
                if contains(&set.written, address) || contains(&set.read, address) {
                    pages.push((address, run.pool_page + n));
                }
            }
        }
    }
    pages
}

#[test]
fn hot_pages_come_in_the_order_of_first_touches() {
    let snapshot = sample::sample(3, 12);
    let set = some_pages(&snapshot, &[0, 1, 1, 0, 2]);
    let pages = pages_of_the_pool(&snapshot, &set);
    assert!(pages.len() > 3, "{pages:?}");
    // The last page first; of one page no place is known.
    let unknown = pages[1];
    let known: Vec<_> = (pages.iter().rev())
        .filter(|page| **page != unknown)
        .collect();
    let places = known.iter().zip(0..).map(|((a, _), place)| (*a, place));
    let hot: Vec<u64> = hot_pool_pages(&snapshot, &set, &places.collect())
        .into_iter()
        .flatten()
        .collect();
    let expected: Vec<u64> = (known.iter().map(|(_, page)| *page))
        .chain([unknown.1])
        .collect();
    assert_eq!(hot[hot.len() - expected.len()..], expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn classes_are_a_partition(
        snapshot in arbitrary::snapshot(),
        choice in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        check(&snapshot, &some_pages(&snapshot, &choice));
        check(&snapshot, &WorkingSet::default());
    }
}
