//! Snapshots are stored anew, collected and removed while instances run on their pages, and pagers die meanwhile.

use std::path::Path;

use rouse_pool::codec::DefaultChoice;
use rouse_pool::keeper::PagerEvent;
use rouse_pool::snapshot_store::{GcOptions, SnapshotStore, StoredSnapshot, WriteOptions};
use rouse_pool::{Pool, PoolBuilder};

use crate::Test;
use crate::contents::{self, PAGE};
use crate::inside::{Body, Inside};
use crate::outside::{Stage, TestPool};
use crate::store_sample::{snapshot, store};

pub const TESTS: &[Test] = &[
    (
        "a_snapshot_is_stored_anew_between_its_reading_and_its_pool",
        || {
            before_the_pool(store_anew);
        },
    ),
    (
        "a_snapshot_is_removed_between_its_reading_and_its_pool",
        || {
            before_the_pool(remove);
        },
    ),
    (
        "pages_of_a_snapshot_that_was_stored_anew_outlive_a_pager",
        || {
            while_it_runs(store_anew);
        },
    ),
    (
        "pages_of_a_snapshot_that_was_removed_outlive_a_pager",
        || {
            while_it_runs(remove);
        },
    ),
    (
        "pools_that_were_removed_leave_no_descriptors",
        no_descriptors,
    ),
];

const PAGES: u64 = 600;
const SEED: u64 = 77;
const NAME: &str = "f/1";
const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};

fn pool() -> Pool {
    let mut builder = PoolBuilder::new("test").unwrap();
    for page in 0..PAGES {
        let mut bytes = [0; PAGE];
        contents::page(SEED, page, &mut bytes);
        builder.append(&bytes).unwrap();
    }
    builder.finish().unwrap()
}

/// A store with one snapshot, which shares a pack with one that is removed.
fn written(root: &Path) -> (SnapshotStore, StoredSnapshot) {
    let (store, pool, snapshot) = (store(root), pool(), snapshot(PAGES));
    let options = WriteOptions::new("default");
    store.write(NAME, &snapshot, &pool, &options).unwrap();
    let stored = store.open_snapshot(NAME).unwrap();
    (store, stored)
}

/// Every file that there was is gone afterwards.
fn store_anew(store: &SnapshotStore) {
    let hot = [40..90];
    let options = WriteOptions {
        hot: &hot,
        choice: &DefaultChoice,
        ..WriteOptions::new("default")
    };
    store.rewrite(NAME, &options).unwrap();
    assert_eq!(store.gc(EAGER).unwrap().removed_packs, 1);
}

fn remove(store: &SnapshotStore) {
    store.remove(NAME).unwrap();
    assert_eq!(store.gc(EAGER).unwrap().removed_packs, 1);
}

fn pool_of(stage: &Stage, store: &SnapshotStore, stored: &StoredSnapshot) -> TestPool {
    stage.pool_from(&store.source(stored).unwrap(), PAGES, SEED)
}

fn body() -> Body {
    Box::new(|inside: &Inside| {
        let map = inside.maps[0];
        map.verify(0..PAGES / 2);
        inside.ask(1);
        map.verify_scattered(1);
    })
}

/// What a load has read of a snapshot is what its instances get, whatever happens to the snapshot.
fn before_the_pool(change: fn(&SnapshotStore)) {
    let root = tempfile::tempdir().unwrap();
    let mut stage = Stage::start(vec![body()]);
    let (store, stored) = written(root.path());
    change(&store);
    let pool = pool_of(&stage, &store, &stored);
    drop(stored);
    let instance = stage.launch(0, &[&pool], true);
    assert_eq!(instance.hear(), Some(1));
    instance.tell(1);
    assert_eq!(instance.wait(), 0);
    drop(pool);
    stage.end();
}

/// A pager that is new finds what the one before had, though it has no name any more; also the copy in memory.
fn while_it_runs(change: fn(&SnapshotStore)) {
    let root = tempfile::tempdir().unwrap();
    let mut stage = Stage::start(vec![body(), body()]);
    let (store, stored) = written(root.path());
    let source = store.source(&stored).unwrap();
    let pool = pool_of(&stage, &store, &stored);
    drop(stored);
    let instances = [0, 1].map(|i| stage.launch(i, &[&pool], i == 0));
    for instance in &instances {
        assert_eq!(instance.hear(), Some(1));
    }
    change(&store);
    stage.kill_pager();
    stage.event(|event| matches!(event, PagerEvent::Started { generation: 2 }));
    stage.pager.evict(&pool.pool, &[0..PAGES]).unwrap();
    let copy = stage.pager.hold_compressed(&pool.pool, &source).unwrap();
    stage.kill_pager();
    stage.event(|event| matches!(event, PagerEvent::Started { generation: 3 }));
    instances[0].tell(1);
    let [first, second] = instances;
    assert_eq!(first.wait(), 0);
    stage.pager.drop_compressed(&pool.pool, copy).unwrap();
    stage.pager.evict(&pool.pool, &[0..PAGES]).unwrap();
    stage.kill_pager();
    second.tell(1);
    assert_eq!(second.wait(), 0);
    assert_eq!(stage.pager.stats().poisoned_pages, 0);
    drop(pool);
    stage.end();
}

/// Descriptors of the table that keeper and pagers share.
fn descriptors(stage: &Stage) -> usize {
    let dir = format!("/proc/{}/fd", stage.keeper);
    std::fs::read_dir(dir).unwrap().count()
}

fn no_descriptors() {
    let root = tempfile::tempdir().unwrap();
    let stage = Stage::start(Vec::new());
    let (store, stored) = written(root.path());
    let source = store.source(&stored).unwrap();
    let cycle = |number: u64| {
        let pool = stage.pool_from(&source, PAGES, SEED + number);
        let copy = stage.pager.hold_compressed(&pool.pool, &source).unwrap();
        drop(pool.pool.pin().unwrap());
        if number % 3 == 2 {
            stage.kill_pager();
        }
        if number % 2 == 1 {
            stage.pager.drop_compressed(&pool.pool, copy).unwrap();
        }
        stage.remove(&pool);
    };
    // What a pager opens for itself is open then.
    cycle(0);
    let before = descriptors(&stage);
    (1..20).for_each(cycle);
    stage.kill_pager();
    // The answer comes from the last pager.
    cycle(21);
    // Those of the pool that was removed last may still be closing, here as there. One that is forgotten in each round is 19.
    for _ in 0..600 {
        if descriptors(&stage) <= before {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let left = descriptors(&stage);
    assert!(left <= before, "{left} descriptors, {before} before");
    stage.end();
}
