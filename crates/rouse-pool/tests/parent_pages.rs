//! Deltas that are stored as what differs from a template's pages.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::fs;
use std::path::Path;

use rouse_pool::chunk::Base;
use rouse_pool::snapshot_store::{GcOptions, SnapshotStore, WriteOptions, WriteReport};
use rouse_pool::{Pool, PoolBuilder};
use rouse_snapshot::page_map::Domain;
use store_sample::*;

/// Everything is worth rewriting.
const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};
/// First page of the template: noise, in which zstd finds nothing.
const NOISE: u64 = 1_000_000;
const PAGES: u64 = 100;

fn template(store: &SnapshotStore) {
    // As real ones do, it has stretches of zeros.
    let seeds = (NOISE..NOISE + PAGES).chain([0; 20]);
    let (snapshot, pool) = of_pages(seeds);
    let options = WriteOptions {
        domain: Domain::Templates,
        ..WriteOptions::new("default")
    };
    store.write("@t/1", &snapshot, &pool, &options).unwrap();
}

/// Every second page of the template with one word changed, the last ones its own.
fn delta(word: u64) -> (Pool, Vec<u32>) {
    let mut builder = PoolBuilder::new("test").unwrap();
    let mut like = Vec::new();
    for number in (0..PAGES).step_by(2) {
        let mut bytes = page(NOISE + number);
        let at = (number as usize * 8) % PAGE;
        bytes[at..at + 8].copy_from_slice(&(word + number).to_le_bytes());
        builder.append(&bytes).unwrap();
        like.push(number as u32 + 1);
    }
    for number in 0..10 {
        builder.append(&page(2 * NOISE + number)).unwrap();
        like.push(0);
    }
    (builder.finish().unwrap(), like)
}

fn write(store: &SnapshotStore, name: &str, word: u64) -> WriteReport {
    let (pool, pages) = delta(word);
    let options = WriteOptions {
        base: Some(Base {
            parent: store.parent_pages("@t/1").unwrap().unwrap(),
            pages,
        }),
        ..WriteOptions::new("default")
    };
    let snapshot = snapshot(pool.pages());
    store.write(name, &snapshot, &pool, &options).unwrap()
}

fn assert_holds(store: &SnapshotStore, name: &str, word: u64) {
    let loaded = store.open_snapshot(name).unwrap().load().unwrap();
    assert!(contents(&loaded) == contents(&delta(word).0), "{name}");
}

fn dictionaries(root: &Path) -> usize {
    fs::read_dir(root.join("dictionaries")).map_or(0, Iterator::count)
}

#[test]
fn only_what_differs_is_stored() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    template(&store);
    let report = write(&store, "f/1", 5);
    // Ten pages have nothing that they could be compared with, and are noise.
    assert!(report.pack_bytes < 20 * PAGE as u64, "{report:?}");
    assert_holds(&store, "f/1", 5);
    // Nobody else has to know of the template.
    let other = SnapshotStore::open(root.path(), key()).unwrap();
    assert_holds(&other, "f/1", 5);
    assert!(store.fsck().unwrap().is_clean());
    assert_eq!(dictionaries(root.path()), 1);
}

#[test]
fn the_working_set_needs_no_other_pages() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    template(&store);
    write(&store, "f/1", 5);
    let stored = store.open_snapshot("f/1").unwrap();
    let hot = [0..stored.map.pages()];
    let (_, pages) = delta(5);
    let options = WriteOptions {
        hot: &hot,
        base: Some(Base {
            parent: store.parent_pages("@t/1").unwrap().unwrap(),
            pages,
        }),
        ..WriteOptions::new("default")
    };
    store.rewrite("f/1", &options).unwrap();
    let stored = store.open_snapshot("f/1").unwrap();
    assert_eq!(stored.map.dictionaries(), []);
    assert_holds(&store, "f/1", 5);
    store.gc(EAGER).unwrap();
    assert_eq!(dictionaries(root.path()), 0);
    assert_holds(&store, "f/1", 5);
}

#[test]
fn a_template_stays_readable_while_it_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    template(&store);
    write(&store, "f/1", 5);
    write(&store, "f/2", 6);
    store.remove("@t/1").unwrap();
    let report = store.fsck().unwrap();
    assert!(report.is_clean() && report.orphans.is_empty(), "{report:?}");
    // Half of its chunks are needed by nobody now; they cannot go, since it is named by all of them.
    let report = store.gc(EAGER).unwrap();
    assert_eq!((report.removed_packs, report.rewritten_packs), (0, 0));
    let store = SnapshotStore::open(root.path(), key()).unwrap();
    assert_holds(&store, "f/1", 5);
    assert_holds(&store, "f/2", 6);
    store.remove("f/1").unwrap();
    store.gc(EAGER).unwrap();
    assert_holds(&store, "f/2", 6);
    store.remove("f/2").unwrap();
    store.gc(EAGER).unwrap();
    assert_eq!(store.packs().list().unwrap(), []);
    assert_eq!(dictionaries(root.path()), 0);
}

#[test]
fn only_templates_are_relied_on() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1100);
    let options = WriteOptions::new("default");
    store.write("f/1", &snapshot, &pool, &options).unwrap();
    assert!(store.parent_pages("f/1").unwrap().is_none());
}

/// Any byte of the template's pack or of what names it: refused or right, and named either way.
#[test]
fn a_damaged_template_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    template(&store(root.path()));
    let packs: Vec<_> = store(root.path()).packs().list().unwrap();
    write(&store(root.path()), "f/1", 5);
    store(root.path()).remove("@t/1").unwrap();
    let mut paths: Vec<_> = fs::read_dir(root.path().join("dictionaries"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.extend(
        packs
            .iter()
            .map(|id| store(root.path()).packs().path_of(*id)),
    );
    assert_eq!(paths.len(), 2);
    let mut refused = 0;
    for path in paths {
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(1 + good.len() / 40) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let store = store(root.path());
            let loaded = store.open_snapshot("f/1").unwrap().load();
            match loaded {
                Ok(loaded) => assert!(contents(&loaded) == contents(&delta(5).0)),
                Err(_) => {
                    refused += 1;
                    assert_eq!(
                        store.fsck().unwrap().affected(),
                        ["f/1"],
                        "byte {at} of {}",
                        path.display()
                    );
                }
            }
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(refused > 30);
    assert_holds(&store(root.path()), "f/1", 5);
}
