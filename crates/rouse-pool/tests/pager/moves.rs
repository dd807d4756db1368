//! Functions that fork, move, drop and unmap memory while its pages are absent.

use std::ptr::null_mut;
use std::thread;

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use crate::Test;
use crate::contents::PAGE;
use crate::inside::{Body, Inside, Map, in_child};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("forked_processes_read_what_their_parents_would", forks),
    ("moved_memory_keeps_its_contents", mremap),
    ("dropped_memory_shows_the_pool_again", dontneed),
    ("unmapped_memory_can_be_something_else", munmap),
    ("everything_at_once_in_many_threads", everything),
    ("thousands_of_forks_leave_nothing_watched", many_forks),
];

const PAGES: u64 = 1500;

fn run(body: impl Fn(&Inside) + 'static) -> Stage {
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pools = [stage.pool(PAGES), stage.pool(PAGES)];
    assert_eq!(stage.launch(0, &[&pools[0], &pools[1]], false).wait(), 0);
    stage.settle(&pools[0]);
    stage
}

fn forks() {
    let stage = run(|inside| {
        let [map, other] = inside.maps[..] else {
            panic!("two pools")
        };
        map.verify(0..100);
        // SAFETY: mapped, writable memory of this process; so below.
        unsafe { map.at(200).write(1) };
        in_child(|| {
            map.verify(50..200);
            assert_eq!(map.read(200)[0], 1);
            // SAFETY: as above.
            unsafe { map.at(201).write(2) };
            in_child(|| {
                map.verify(202..400);
                other.verify(0..50);
                assert_eq!([map.read(200)[0], map.read(201)[0]], [1, 2]);
            });
            in_child(|| map.verify(400..500));
            map.verify(500..600);
        });
        map.verify(201..PAGES);
        other.verify_scattered(1);
    });
    let stats = stage.pager.stats();
    assert_eq!((stats.forks, stats.rescues), (3, 0));
    stage.end();
}

/// Somewhere for that many pages: reserved, so that no other thread takes it, until they are moved there.
pub fn reserve(pages: u64) -> *mut u8 {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe {
        rustix::mm::mmap_anonymous(null_mut(), pages as usize * PAGE, ProtFlags::empty(), flags)
    };
    start.unwrap().cast()
}

/// Moves some pages of a mapping to an address.
pub fn relocate(map: &Map, first: u64, pages: u64, to: *mut u8) -> Map {
    let len = pages as usize * PAGE;
    // SAFETY: the pages belong to this test, and the target too.
    let moved = unsafe {
        rustix::mm::mremap_fixed(
            map.at(first).cast(),
            len,
            len,
            MremapFlags::MAYMOVE,
            to.cast(),
        )
    };
    assert_eq!(moved.unwrap().cast(), to);
    Map {
        start: to,
        pages,
        seed: map.seed,
        page: map.page + first,
    }
}

fn mremap() {
    let stage = run(|inside| {
        let [map, other] = inside.maps[..] else {
            panic!("two pools")
        };
        // From the middle: what is left lies on both sides.
        let moved = relocate(&map, 500, 300, reserve(300));
        moved.verify(0..100);
        map.verify(400..500);
        map.verify(800..900);
        // Again, a part of what was moved.
        let again = relocate(&moved, 150, 100, reserve(100));
        again.verify(0..100);
        moved.verify(100..150);
        moved.verify(250..300);
        // Over memory of another pool, which is gone then.
        let over = relocate(&map, 1000, 200, other.at(700));
        over.verify(0..200);
        other.verify(600..700);
        other.verify(900..1000);
        // Back to where something else of the same pool was.
        let back = relocate(&other, 0, 300, map.at(500));
        back.verify(0..300);
        in_child(|| {
            map.verify(0..400);
            relocate(&map, 1300, 100, map.at(100)).verify(0..100);
            other.verify(300..600);
        });
        map.verify(0..500);
        // The pages behind come with a mapping that grows.
        // SAFETY: a mapping of this test, which is not used under its old address again.
        let grown = unsafe {
            let (old, new) = (100 * PAGE, 180 * PAGE);
            rustix::mm::mremap(map.at(1200).cast(), old, new, MremapFlags::MAYMOVE).unwrap()
        };
        let grown = Map {
            start: grown.cast(),
            pages: 180,
            seed: map.seed,
            page: 1200,
        };
        grown.verify(0..180);
    });
    assert!(stage.pager.stats().moves >= 5);
    stage.end();
}

fn advise(map: &Map, first: u64, pages: u64, advice: Advice) {
    // SAFETY: memory of this test, which expects that it changes.
    let result =
        unsafe { rustix::mm::madvise(map.at(first).cast(), pages as usize * PAGE, advice) };
    result.unwrap();
}

fn dontneed() {
    let stage = run(|inside| {
        let map = inside.maps[0];
        for page in 10..20 {
            // SAFETY: mapped, writable memory of this process.
            unsafe { map.at(page).write_bytes(0x11, PAGE) };
        }
        assert_eq!(map.read(15), [0x11; PAGE]);
        // Written, absent, and both.
        advise(&map, 12, 4, Advice::LinuxDontNeed);
        advise(&map, 600, 100, Advice::LinuxDontNeed);
        advise(&map, 18, 100, Advice::LinuxDontNeed);
        map.verify(12..16);
        map.verify(18..118);
        map.verify(590..710);
        assert_eq!(map.read(16), [0x11; PAGE]);
        assert_eq!(map.read(11), [0x11; PAGE]);
        in_child(|| {
            advise(&map, 0, PAGES, Advice::LinuxDontNeed);
            map.verify(0..PAGES);
        });
        assert_eq!(map.read(16), [0x11; PAGE]);
        advise(&map, 0, PAGES, Advice::LinuxDontNeed);
        map.verify_scattered(3);
    });
    assert!(stage.pager.stats().moves >= 4);
    stage.end();
}

fn unmap(map: &Map, first: u64, pages: u64) {
    // SAFETY: memory of this test, which does not touch it again.
    unsafe { rustix::mm::munmap(map.at(first).cast(), pages as usize * PAGE) }.unwrap();
}

fn munmap() {
    let stage = run(|inside| {
        let map = inside.maps[0];
        unmap(&map, 100, 50);
        unmap(&map, 700, PAGES - 700);
        // What is mapped there now is ordinary memory.
        // SAFETY: the range was unmapped a moment ago.
        let anonymous = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            rustix::mm::mmap_anonymous(map.at(110).cast(), 20 * PAGE, protection, flags)
        };
        assert_eq!(anonymous.unwrap().cast(), map.at(110));
        for page in 110..130 {
            assert_eq!(map.read(page), [0; PAGE]);
        }
        map.verify(0..100);
        map.verify(150..700);
    });
    assert!(stage.pager.stats().moves >= 2);
    stage.end();
}

/// Moves, forks and drops memory that belongs to one thread. Returns where it is now.
pub fn churn(map: &Map, turn: u64) -> Map {
    let moved = relocate(map, 0, map.pages, reserve(map.pages));
    moved.verify_page(turn % map.pages);
    in_child(|| {
        moved.verify_scattered(turn);
        advise(&moved, 0, moved.pages, Advice::LinuxDontNeed);
        moved.verify_page((turn * 7) % moved.pages);
    });
    advise(&moved, 0, moved.pages, Advice::LinuxDontNeed);
    let again = relocate(&moved, 0, moved.pages, reserve(moved.pages));
    again.verify_scattered(turn + 1);
    again
}

/// A part of a map.
pub fn part(map: &Map, first: u64, pages: u64) -> Map {
    Map {
        start: map.at(first),
        pages,
        seed: map.seed,
        page: map.page + first,
    }
}

fn everything() {
    let body = || -> Body {
        Box::new(|inside: &Inside| {
            let [map, other] = inside.maps[..] else {
                panic!("two pools")
            };
            thread::scope(|scope| {
                scope.spawn(|| (0..20).fold(part(&map, 0, 200), |map, turn| churn(&map, turn)));
                for turn in 0..3 {
                    scope.spawn(move || {
                        (0..10).for_each(|_| part(&map, 200, 1300).verify_scattered(turn));
                        other.verify_scattered(turn);
                    });
                }
            });
        })
    };
    let mut stage = Stage::start(vec![body(), body()]);
    let pools = [stage.pool(PAGES), stage.pool(PAGES)];
    let instances = [0, 1].map(|i| stage.launch(i, &[&pools[0], &pools[1]], i == 1));
    thread::scope(|scope| {
        let running = scope.spawn(move || instances.map(|instance| instance.wait()));
        while !running.is_finished() {
            stage.pager.evict(&pools[0].pool, &[0..700]).unwrap();
        }
        assert_eq!(running.join().unwrap(), [0, 0]);
    });
    drop(pools);
    stage.end();
}

fn many_forks() {
    let stage = run(|inside| {
        let map = inside.maps[0];
        for turn in 0..2000 {
            in_child(|| map.verify_page(turn % PAGES));
        }
    });
    assert_eq!(stage.pager.stats().forks, 2000);
    // Ends only when nothing is watched any more.
    stage.end();
}
