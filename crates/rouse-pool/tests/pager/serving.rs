//! Pages come in when they are touched, or before; once, for all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rouse_pool::keeper::PagerError;

use crate::Test;
use crate::contents::{self, PAGE};
use crate::inside::{Body, Inside};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("pages_come_in_when_they_are_touched", on_demand),
    ("the_working_set_is_there_before_the_start", prefetch),
    ("only_what_comes_first_is_waited_for", first_pages),
    ("many_threads_of_many_instances_wait_at_once", crowd),
    ("system_calls_wait_for_pages_too", system_calls),
    ("a_pinned_pool_has_everything_and_keeps_it", pinned),
    ("pages_are_taken_out_while_they_are_read", eviction),
    ("pools_are_removed_when_nobody_maps_them", removal),
    ("impossible_registrations_are_refused", refused),
];

const PAGES: u64 = 2000;

fn verify_all() -> Body {
    Box::new(|inside: &Inside| inside.maps[0].verify_scattered(2))
}

fn on_demand() {
    let mut stage = Stage::start(vec![verify_all(), verify_all()]);
    let pool = stage.pool(PAGES);
    assert_eq!(pool.pool.resident_pages().unwrap(), 0);
    assert_eq!(stage.launch(0, &[&pool], false).wait(), 0);
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    let stats = stage.pager.stats().pools[&pool.pool.id()];
    assert_eq!(stats.pages, PAGES);
    assert_eq!(stats.demanded_pages, PAGES);
    assert_eq!(stats.prefetched_pages, 0);
    // The rest of a piece comes along.
    let pieces = contents::pieces(pool.seed, PAGES).len() as u64;
    assert!(stats.faults <= pieces, "{stats:?} for {pieces} pieces");
    assert!(stats.synthesized_pages > 0 && stats.read_bytes > 0);

    // The second one shares all of it.
    assert_eq!(stage.launch(1, &[&pool], false).wait(), 0);
    assert_eq!(stage.pager.stats().pools[&pool.pool.id()], stats);
    stage.end();
}

fn prefetch() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        let hot = (0..PAGES).filter(|page| contents::is_hot(*page));
        hot.for_each(|page| map.verify_page(page));
        inside.ask(1);
        map.verify(0..PAGES);
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(PAGES);
    let instance = stage.launch(0, &[&pool], true);
    let hot: u64 = contents::pieces(pool.seed, PAGES)
        .iter()
        .filter(|(first, _)| contents::is_hot(*first))
        .map(|(_, pages)| pages)
        .sum();
    instance.hear().unwrap();
    let stats = stage.pager.stats().pools[&pool.pool.id()];
    assert_eq!(stats.prefetched_pages, hot);
    // Pages that look hot at the end of a cold piece are not in the working set.
    assert!(stats.faults <= PAGES / 256 + 1, "{stats:?}");
    instance.tell(1);
    assert_eq!(instance.wait(), 0);
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    assert_eq!(stage.pager.prefetch(&pool.pool).unwrap(), 0);
    stage.end();
}

/// Instances go on while most of the working set is still on its way, and run into it.
fn first_pages() {
    const TURNS: usize = 8;
    let body = || -> Body {
        Box::new(|inside: &Inside| {
            thread::scope(|scope| {
                for turn in 0..4 {
                    scope.spawn(move || inside.maps[0].verify_scattered(turn));
                }
            });
        })
    };
    let mut stage = Stage::start((0..TURNS).map(|_| body()).collect());
    for turn in 0..TURNS {
        let pool = stage.pool(PAGES);
        let firsts = [
            vec![0..1],
            vec![300..310, 5..6],
            vec![PAGES - 1..PAGES],
            vec![],
        ];
        stage
            .pager
            .begin_prefetch(pool.pool.id(), &firsts[turn % 4]);
        // Asked for once more: what comes first may change while it is on its way.
        stage
            .pager
            .begin_prefetch(pool.pool.id(), &firsts[(turn + turn / 4) % 4]);
        let instance = stage.launch(turn, &[&pool], true);
        // This waits for all of it.
        assert_eq!(stage.pager.prefetch(&pool.pool).unwrap(), 0);
        assert_eq!(instance.wait(), 0);
        stage.settle(&pool);
        let stats = stage.pager.stats().pools[&pool.pool.id()];
        assert_eq!(
            stats.prefetched_pages + stats.demanded_pages,
            PAGES,
            "{stats:?}"
        );
        assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
        stage.remove(&pool);
    }
    assert_eq!(stage.pager.stats().rescues, 0);
    stage.end();
}

fn crowd() {
    let body = || -> Body {
        Box::new(|inside: &Inside| {
            thread::scope(|scope| {
                for turn in 0..8 {
                    scope.spawn(move || {
                        for map in &inside.maps {
                            map.verify_scattered(turn);
                        }
                    });
                }
            });
        })
    };
    let mut stage = Stage::start((0..6).map(|_| body()).collect());
    let pools = [stage.pool(PAGES), stage.pool(777), stage.pool(1)];
    let instances: Vec<_> = (0..6)
        .map(|i| stage.launch(i, &[&pools[0], &pools[1 + i % 2]], i % 2 == 0))
        .collect();
    assert_eq!(stage.pager.prefetch(&pools[1].pool).unwrap(), 0);
    for instance in instances {
        assert_eq!(instance.wait(), 0);
    }
    assert_eq!(stage.pager.stats().rescues, 0);
    stage.end();
}

fn system_calls() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        let (from, to) = rustix::pipe::pipe().unwrap();
        for page in 0..64 {
            let mut expected = [0; PAGE];
            contents::page(map.seed, page, &mut expected);
            // SAFETY: mapped memory, which nobody writes.
            let bytes = unsafe { std::slice::from_raw_parts(map.at(page), PAGE) };
            assert_eq!(rustix::io::write(&to, bytes).unwrap(), PAGE);
            let mut found = [0; PAGE];
            assert_eq!(rustix::io::read(&from, &mut found).unwrap(), PAGE);
            assert_eq!(found, expected);
        }
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(64);
    assert_eq!(stage.launch(0, &[&pool], false).wait(), 0);
    stage.end();
}

fn pinned() {
    let stage = Stage::start(vec![]);
    let pool = stage.pool(PAGES);
    let pinned = pool.pool.pin().unwrap();
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    let again = pinned.clone();
    drop(pinned);
    let all = 0..PAGES;
    let refused = stage.pager.evict(&pool.pool, std::slice::from_ref(&all));
    assert!(matches!(refused, Err(PagerError::Pinned(_))), "{refused:?}");
    for page in [0, 1, PAGES - 1] {
        let (mut found, mut expected) = ([0; PAGE], [0; PAGE]);
        rustix::io::pread(&again, &mut found, page * PAGE as u64).unwrap();
        contents::page(pool.seed, page, &mut expected);
        assert_eq!(found, expected);
    }
    drop(again);
    let evicted = stage.pager.evict(&pool.pool, &[10..20, 100..PAGES * 2]);
    assert_eq!(evicted.unwrap(), 10 + PAGES - 100);
    assert_eq!(pool.pool.resident_pages().unwrap(), 90);
    drop(pool);
    stage.end();
}

fn eviction() {
    let body = || -> Body {
        Box::new(|inside: &Inside| {
            let map = inside.maps[0];
            // A private copy stays, whatever happens to the pool.
            // SAFETY: mapped, writable memory of this process.
            unsafe { map.at(5).write(77) };
            let done = &AtomicBool::new(false);
            let until_done = move |verify: &dyn Fn()| {
                while !done.load(Ordering::Relaxed) {
                    verify();
                    assert_eq!(map.read(5)[0], 77);
                }
            };
            thread::scope(|scope| {
                scope.spawn(move || until_done(&|| map.verify(6..map.pages)));
                scope.spawn(move || {
                    until_done(&|| (6..map.pages).rev().for_each(|page| map.verify_page(page)));
                });
                // Until the test has seen enough.
                inside.ask(1);
                done.store(true, Ordering::Relaxed);
            });
        })
    };
    let mut stage = Stage::start(vec![body(), body()]);
    let pool = stage.pool(600);
    let instances = [0, 1].map(|i| stage.launch(i, &[&pool], i == 0));
    // What is taken out comes in again, many times.
    let mut evicted = 0;
    while evicted < 20 * 600 {
        for first in [0, 100, 300] {
            let range = first..first + 300;
            evicted += stage.pager.evict(&pool.pool, &[range]).unwrap();
        }
    }
    for instance in &instances {
        assert_eq!(instance.hear(), Some(1));
        instance.tell(1);
    }
    assert_eq!(instances.map(|instance| instance.wait()), [0, 0]);
    assert_eq!(
        stage.pager.stats().pools[&pool.pool.id()].evicted_pages,
        evicted
    );
    drop(pool);
    stage.end();
}

fn removal() {
    let body = |inside: &Inside| {
        inside.maps[0].verify_page(3);
        inside.ask(1);
        inside.maps[0].verify_scattered(2);
        inside.ask(2);
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(PAGES);
    let instance = stage.launch(0, &[&pool], false);
    instance.hear().unwrap();
    stage.pager.remove_pool(&pool.pool);
    // What is not there yet still comes; also from a pager that hears only from the one before that the pool is to go.
    stage.settle(&pool);
    stage.kill_pager();
    instance.tell(1);
    assert_eq!(instance.hear(), Some(2));
    assert!(stage.has(&pool));
    instance.tell(1);
    assert_eq!(instance.wait(), 0);
    // Nobody asks for it once more.
    while stage.has(&pool) {
        std::thread::yield_now();
    }
    // May be said again.
    stage.pager.remove_pool(&pool.pool);
    assert!(matches!(
        stage.pager.prefetch(&pool.pool),
        Err(PagerError::UnknownPool(_))
    ));
    assert_eq!(stage.pager.stats().watched, 0);
    drop(pool);
    stage.end();
}

fn refused() {
    use rouse_pool::keeper::PoolMapping;
    use rouse_pool::uffd::Device;

    let stage = Stage::start(vec![]);
    let pool = stage.pool(16);
    let mapping = PoolMapping {
        address: 1 << 32,
        pages: 16,
        pool: pool.pool.id(),
        pool_page: 0,
    };
    let device = Device::open().unwrap();
    let register = |mapping: PoolMapping| {
        let registered = stage
            .pager
            .register(device.create().unwrap(), &[mapping], false);
        registered.map(drop)
    };
    let too_long = PoolMapping {
        pool_page: 1,
        ..mapping
    };
    assert!(matches!(register(too_long), Err(PagerError::Malformed(_))));
    let not_a_page = PoolMapping {
        address: mapping.address + 1,
        ..mapping
    };
    assert!(matches!(
        register(not_a_page),
        Err(PagerError::Malformed(_))
    ));
    let unknown = PoolMapping {
        pool: rouse_pool::PoolId(99),
        ..mapping
    };
    assert!(matches!(register(unknown), Err(PagerError::UnknownPool(_))));
    // Nothing is mapped there.
    assert!(matches!(register(mapping), Err(PagerError::Kernel(_))));
    assert_eq!(stage.pager.prefetch(&pool.pool).unwrap(), 0);
    assert_eq!(stage.pager.stats().watched, 0);
    drop(pool);
    stage.end();
}
