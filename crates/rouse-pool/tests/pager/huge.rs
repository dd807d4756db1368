//! Pools whose pages become pages of 2 MiB, and small ones again, while instances read and write what they map of them.

use std::time::{Duration, Instant};

use rouse_pool::{HUGE_PAGES, PinnedPool};

use crate::Test;
use crate::inside::{Body, Inside};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("pages_become_large_while_instances_use_them", enlarged),
    ("large_pages_are_taken_out_as_a_whole", taken_out),
];

/// How long a large page may take to be had.
const PATIENCE: Duration = Duration::from_secs(60);

/// With a rest that is too small for a large page.
const PAGES: u64 = 4 * HUGE_PAGES + 100;

/// Reads all, again and again; then again when it is told to, with a page of its own in between.
fn body() -> Body {
    Box::new(|inside: &Inside| {
        let map = inside.maps[0];
        for _ in 0..5 {
            map.verify(0..PAGES);
        }
        inside.ask(1);
        // SAFETY: mapped writable and private; nobody else uses it.
        unsafe { map.at(HUGE_PAGES + 7).write_bytes(0xa5, 4096) };
        for _ in 0..3 {
            map.verify(0..HUGE_PAGES + 7);
            map.verify(HUGE_PAGES + 8..PAGES);
        }
        assert_eq!(map.read(HUGE_PAGES + 7), [0xa5; 4096]);
        inside.ask(2);
        map.verify(0..HUGE_PAGES + 7);
        map.verify(HUGE_PAGES + 8..PAGES);
        assert_eq!(map.read(HUGE_PAGES + 7), [0xa5; 4096]);
    })
}

/// Makes all of them large that can be. The kernel leaves one out whose pages somebody else has in his hands at that moment (in
/// migration, on a processor's list); it can be had a little later.
fn enlarge_all(pinned: &PinnedPool) {
    let deadline = Instant::now() + PATIENCE;
    while pinned.enlarge().unwrap() < PAGES / HUGE_PAGES {
        assert!(Instant::now() < deadline, "some never become large");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn enlarged() {
    let mut stage = Stage::start(vec![body(), body()]);
    let pool = stage.pool(PAGES);
    let pinned = pool.pool.pin().unwrap();
    let running: Vec<_> = (0..2)
        .map(|instance| stage.launch(instance, &[&pool], false))
        .collect();
    enlarge_all(&pinned);
    for word in [1, 2] {
        for instance in &running {
            assert_eq!(instance.hear(), Some(word));
            // They are large already.
            assert_eq!(pinned.enlarge().unwrap(), PAGES / HUGE_PAGES);
            instance.tell(0);
        }
    }
    for instance in running {
        assert_eq!(instance.wait(), 0);
    }
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    drop((pinned, pool));
    stage.end();
}

fn taken_out() {
    let mut stage = Stage::start(vec![body()]);
    let pool = stage.pool(PAGES);
    let pinned = pool.pool.pin().unwrap();
    enlarge_all(&pinned);
    let instance = stage.launch(0, &[&pool], false);
    assert_eq!(instance.hear(), Some(1));
    instance.tell(0);
    assert_eq!(instance.hear(), Some(2));
    drop(pinned);
    // A part of one stays; all of another, and small ones, go. The instance is registered, so they come back.
    let small = 4 * HUGE_PAGES + 10..4 * HUGE_PAGES + 20;
    let out = [100..200, HUGE_PAGES..2 * HUGE_PAGES, small];
    assert_eq!(
        stage.pager.evict(&pool.pool, &out).unwrap(),
        HUGE_PAGES + 10
    );
    instance.tell(0);
    assert_eq!(instance.wait(), 0);
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    drop(pool);
    stage.end();
}
