use std::sync::Arc;

use proptest::prelude::*;
use rouse_snapshot::model::pool_page;
use rouse_snapshot::working_set::WorkingSet;
use vm_memory::Bytes;

use super::*;

const PAGE: usize = PAGE_SIZE as usize;

fn zeros(pages: u64) -> Memory {
    Memory::of(Mapped::new(pages, &[], Vec::new()).expect("there is memory")).expect("it is small")
}

fn fill(memory: &Memory, page: u64, byte: u8) {
    (memory.guest())
        .write_slice(&[byte; PAGE], GuestAddress(page * PAGE_SIZE))
        .expect("it is memory");
}

fn contents(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.pages() as usize * PAGE];
    memory
        .guest()
        .read_slice(&mut bytes, GuestAddress(0))
        .expect("it is memory");
    // One byte of each page says it all.
    bytes.chunks(PAGE).map(|page| page[0]).collect()
}

/// A machine restored from what was collected, as if it had been stored.
fn restored(pages: u64, collected: Collected, name: u8) -> Memory {
    let own = Layer {
        name: Some(ParentPool {
            pool: [name; 32],
            pages: collected.pool.pages(),
        }),
        source: Source::Whole(Arc::new(collected.pool)),
    };
    let layers = std::iter::once(own).chain(collected.layers).collect();
    Memory::of(Mapped::new(pages, &collected.runs, layers).expect("it fits")).expect("it is small")
}

fn unwatched(mapped: Mapped) -> Result<Memory, MapError> {
    mapped.watch(None, |_, _| panic!("no page can be absent"))
}

#[test]
fn memory_that_nobody_touched_costs_nothing() {
    let memory = zeros(1000);
    fill(&memory, 500, 1);
    // Written, and yet zeros.
    fill(&memory, 700, 0);
    let collected = memory.collect("test", &[]).expect("it can be read");
    assert_eq!(
        collected.runs,
        [PageRun {
            address: 500 * PAGE_SIZE,
            pages: 1,
            pool_page: 0
        }]
    );
    assert_eq!(collected.pool.pages(), 1);
}

#[test]
fn a_child_holds_only_what_it_wrote() {
    let memory = zeros(100);
    (10..60).for_each(|page| fill(&memory, page, page as u8));
    let child = restored(100, memory.collect("test", &[]).expect("it can be read"), 1);
    fill(&child, 20, 200);
    // Zeros in the place of something.
    fill(&child, 30, 0);
    let expected = contents(&child);
    let collected = child.collect("test", &[]).expect("it can be read");
    assert_eq!((collected.pool.pages(), collected.parents.len()), (1, 1));
    // What was written down is still what the child shows.
    assert_eq!(contents(&child), expected);
    let grandchild = restored(100, collected, 2);
    assert_eq!(contents(&grandchild), expected);
    assert_eq!(grandchild.written().expect("it can be asked"), []);
}

#[test]
fn what_was_put_back_is_its_parents() {
    let memory = zeros(100);
    (10..60).for_each(|page| fill(&memory, page, page as u8));
    let child = restored(100, memory.collect("test", &[]).expect("it can be read"), 1);
    for page in [20, 21, 22, 40] {
        fill(&child, page, 200);
        fill(&child, page, page as u8);
    }
    fill(&child, 30, 200);
    let expected = contents(&child);
    let collected = child.collect("test", &[]).expect("it can be read");
    assert_eq!(collected.pool.pages(), 1);
    assert_eq!(contents(&restored(100, collected, 2)), expected);
}

#[test]
fn the_smallest_gaps_are_filled_until_there_are_few_runs() {
    // Every other gap is of 10 pages, the others are of 20, but for one of 4.
    let memory = zeros(1 << 15);
    let mut page = 0;
    for number in 0..1000_u64 {
        fill(&memory, page, 7);
        page += match number {
            500 => 5,
            number if number % 2 == 0 => 11,
            _ => 21,
        };
    }
    let collected = memory.collect("test", &[]).expect("it can be read");
    assert_eq!(collected.runs.len(), 500);
    assert_eq!(collected.pool.pages(), 1000 + 4 + 499 * 10);
}

#[test]
fn blocks_of_a_disk_are_not_in_the_pool() {
    let mut image = tempfile::tempfile().expect("there is room");
    for block in 0..100 {
        let mut page = [block; PAGE];
        // Different, and yet alike where it is looked first.
        page[4] = block / 2;
        page[8..].fill(1);
        page[12] = block;
        std::io::Write::write_all(&mut image, &page).expect("there is room");
    }
    std::io::Write::write_all(&mut image, &[1; 100]).expect("there is room");
    let block = |number: u64| {
        let mut page = [0; PAGE];
        rustix::io::pread(&image, &mut page, number * PAGE_SIZE).expect("it is there");
        page
    };
    let images = [
        Layer::of_image(image.try_clone().expect("it is open"), [9; 32]).expect("it has a length"),
    ];
    let memory = zeros(200);
    let put = |page: u64, number: u64| {
        (memory.guest())
            .write_slice(&block(number), GuestAddress(page * PAGE_SIZE))
            .expect("it is memory");
    };
    // Twenty that follow one another, three, and twelve behind some others.
    (0..20).for_each(|n| put(40 + n, 50 + n));
    (0..3).for_each(|n| put(80 + n, 10 + n));
    (0..12).for_each(|n| put(110 + n, n));
    (100..110).for_each(|page| fill(&memory, page, 77));
    let expected = contents(&memory);
    let collected = memory.collect("test", &images).expect("it can be read");
    assert_eq!(collected.pool.pages(), 13);
    let [parent] = &collected.parents[..] else {
        panic!("{:?}", collected.parents)
    };
    assert_eq!((parent.pool, parent.pages), ([9; 32], 100));
    let child = restored(200, collected, 1);
    assert_eq!(contents(&child), expected);

    // A child of it has nothing more, even if it has changed some, and back.
    fill(&child, 41, 3);
    let changed = child.collect("test", &images).expect("it can be read");
    assert_eq!((changed.pool.pages(), changed.parents.len()), (1, 2));
    let grandchild = restored(200, changed, 2);
    assert_eq!(contents(&grandchild), contents(&child));
}

#[test]
fn zeros_are_given_back_to_the_host() {
    let memory = zeros(100);
    fill(&memory, 3, 1);
    (40..90).for_each(|page| fill(&memory, page, 0));
    memory.collect("test", &[]).expect("it can be read");
    let left = memory.written().expect("it can be asked");
    assert_eq!(left, std::slice::from_ref(&(3 * PAGE_SIZE..4 * PAGE_SIZE)));

    // Those beside and over a pool: what lies in the pool must not show up.
    let memory = zeros(100);
    (10..20).for_each(|page| fill(&memory, page, 7));
    let child = restored(100, memory.collect("test", &[]).expect("it can be read"), 1);
    (5..15).for_each(|page| fill(&child, page, 0));
    let expected = contents(&child);
    let grandchild = restored(100, child.collect("test", &[]).expect("it can be read"), 2);
    assert_eq!(contents(&child), expected);
    assert_eq!(contents(&grandchild), expected);
}

#[test]
fn a_rewound_memory_is_as_it_was() {
    let memory = zeros(100);
    (10..60).for_each(|page| fill(&memory, page, page as u8));
    let child = restored(100, memory.collect("test", &[]).expect("it can be read"), 1);
    let before = contents(&child);
    for page in [5, 20, 21, 99] {
        fill(&child, page, 222);
    }
    assert_eq!(child.rewind().expect("it can be dropped"), 4);
    assert_eq!(contents(&child), before);
    assert_eq!(child.rewind().expect("nothing is left"), 0);
}

#[test]
fn runs_that_lie_nowhere_are_refused() {
    let memory = zeros(8);
    fill(&memory, 1, 1);
    let pool = Arc::new(memory.collect("test", &[]).expect("it can be read").pool);
    let layer = Layer {
        source: Source::Whole(pool),
        name: None,
    };
    let run = |address, pages, pool_page| PageRun {
        address,
        pages,
        pool_page,
    };
    for bad in [
        run(0, 2, 0),
        run(0, 1, 1),
        run(8 * PAGE_SIZE, 1, 0),
        run(0, 1, pool_page(1, 0)),
        run(0, u64::MAX, 0),
    ] {
        let error = Mapped::new(8, &[bad], vec![layer.clone()]).expect_err("it lies nowhere");
        assert!(matches!(error, MapError::NoPool { .. }), "{error}");
    }
    let mapped = Mapped::new(8, &[run(PAGE_SIZE, 1, 0)], vec![layer]).expect("it fits");
    assert_eq!(mapped.mappings(), []);
    assert_eq!(contents(&unwatched(mapped).expect("it is small"))[1], 1);
}

#[test]
fn hot_pages_are_those_of_the_own_pool() {
    let runs = [(10, 5, 0), (20, 10, pool_page(1, 0)), (40, 5, 5)];
    let runs = runs.map(|(page, pages, pool_page)| PageRun {
        address: page * PAGE_SIZE,
        pages,
        pool_page,
    });
    let range = |start: u64, end: u64| start * PAGE_SIZE..end * PAGE_SIZE;
    let set = WorkingSet {
        written: vec![range(0, 12), range(25, 41)],
        read: vec![range(12, 13), range(44, 50)],
    };
    assert_eq!(hot_pages(&set, &runs), [0..3, 5..6, 9..10]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is written in three generations is what the last one shows.
    #[test]
    fn generations_show_what_was_written(
        steps in prop::collection::vec(prop::collection::vec((0..64_u64, 0..4_u8), 0..40), 3)
    ) {
        let mut memory = zeros(64);
        let mut expected = vec![0_u8; 64];
        for (generation, writes) in (1..).zip(steps) {
            for (page, byte) in writes {
                fill(&memory, page, byte);
                expected[page as usize] = byte;
            }
            let collected = memory.collect("test", &[]).expect("it can be read");
            let ends = collected.runs.iter().flat_map(|run| {
                [run.address, run.address + run.pages * PAGE_SIZE]
            });
            prop_assert!(ends.is_sorted());
            memory = restored(64, collected, generation);
            prop_assert_eq!(&contents(&memory), &expected);
        }
    }
}

#[test]
fn what_the_function_uses_comes_first() {
    use crate::agent::{Owner, Owners};
    let mut pages = vec![Owner::Kernel; 60];
    pages[10..12].fill(Owner::Heap);
    pages[12] = Owner::Stack;
    pages[21] = Owner::Stack;
    pages[43..50].fill(Owner::Heap);
    let owners = Owners::of(&pages);
    let runs = [(10, 5, 0), (20, 10, pool_page(1, 0)), (40, 5, 5)];
    let runs = runs.map(|(page, pages, pool_page)| PageRun {
        address: page * PAGE_SIZE,
        pages,
        pool_page,
    });
    // By pages of the own pool: page 21 lies in another one, 45 to 49 in none.
    assert_eq!(likely_pages(&owners, &runs), [2..3, 0..2, 8..10]);
    let known: u64 = known_pages(&owners, &runs)
        .iter()
        .map(|known| known.pages.end - known.pages.start)
        .sum();
    assert_eq!(known, 10);
    // A guest that says nothing, or less than it should.
    assert_eq!(likely_pages(&Owners::default(), &runs), []);
    assert_eq!(
        likely_pages(&Owners::of(&pages[..11]), &runs),
        std::slice::from_ref(&(0..1))
    );
}
