//! Several at once store the same snapshot anew; and how many files a snapshot may need.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::fs;
use std::thread;

use rouse_pool::snapshot_store::{GcOptions, PAGE_MAP_PREFIX, WriteOptions};
use store_sample::*;

const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};

#[test]
fn of_many_who_store_it_anew_none_leaves_anything_behind() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions::new("default");
    store.write("f/1", &snapshot, &pool, &options).unwrap();
    thread::scope(|scope| {
        for turn in 0..6 {
            let (store, options) = (&store, &options);
            scope.spawn(move || {
                let hot = [turn * 20..turn * 20 + 40];
                let options = WriteOptions {
                    hot: &hot,
                    ..options.clone()
                };
                store.rewrite("f/1", &options).unwrap();
                let read = store.open_snapshot("f/1").unwrap().load().unwrap();
                assert!(contents(&read) == contents(&self::pool(1000..1200)));
            });
        }
        scope.spawn(|| (0..6).for_each(|_| drop(store.gc(EAGER).unwrap())));
    });
    let entries = fs::read_dir(store.path_of("f/1").unwrap()).unwrap();
    let names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    let maps = names
        .iter()
        .filter(|name| name.to_str().unwrap().starts_with(PAGE_MAP_PREFIX));
    assert_eq!((maps.count(), names.len()), (1, 2), "{names:?}");
    store.gc(EAGER).unwrap();
    assert_eq!(store.packs().list().unwrap().len(), 1);
}

#[test]
fn a_snapshot_that_is_removed_is_not_stored_anew() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let options = WriteOptions::new("default");
    assert!(store.rewrite("f/1", &options).is_err());
    assert!(!store.path_of("f/1").unwrap().exists());
}

/// Much of the last snapshot is in packs that have little of it each: it refers to some of them, and stores the rest.
#[test]
fn a_snapshot_refers_to_a_bounded_number_of_packs() {
    const PACKS: u64 = 120;
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let options = WriteOptions::new("default");
    // Pieces of 20 pages, so that they are cut alike wherever they lie.
    let block = |number: u64| 1000 + number * 20..1020 + number * 20;
    for number in 0..PACKS {
        let (snapshot, pool) = of_pages((10_000..10_050).chain(block(number)));
        let name = format!("f/{number}");
        store.write(&name, &snapshot, &pool, &options).unwrap();
    }
    let (snapshot, pool) = of_pages((0..PACKS).flat_map(block));
    let report = store.write("g/1", &snapshot, &pool, &options).unwrap();
    let stored = store.open_snapshot("g/1").unwrap();
    assert!(report.deduplicated_pieces > 0);
    assert_eq!(stored.map.packs().len(), 41);
    store.source(&stored).unwrap();
    let all = (0..PACKS).flat_map(block);
    assert!(contents(&stored.load().unwrap()) == contents(&self::pool(all)));
}
