//! Snapshots and pools for the tests of the store.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::error::Error;
use std::path::Path;

use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::SnapshotStore;
use rouse_pool::{Pool, PoolBuilder};
use rouse_snapshot::model::{PAGE_SIZE, ProcessSnapshot};

#[path = "../../../rouse-snapshot/tests/sample/mod.rs"]
mod sample;

pub const PAGE: usize = PAGE_SIZE as usize;

pub fn key() -> NodeKey {
    NodeKey::new([7; 32])
}

pub fn store(root: &Path) -> SnapshotStore {
    SnapshotStore::open(root, key()).unwrap()
}

/// A page by its number: 0 to 9 repeat that byte, from 1,000,000 on they are noise, the rest can be compressed.
pub fn page(seed: u64) -> Vec<u8> {
    let mut state = seed;
    match seed {
        0..10 => vec![seed as u8; PAGE],
        1_000_000.. => (0..PAGE)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect(),
        _ => (0..PAGE as u64 / 8)
            .flat_map(|at| (seed * 0x1_0001 + at % 37 * 8).to_le_bytes())
            .collect(),
    }
}

pub fn pool(seeds: impl IntoIterator<Item = u64>) -> Pool {
    let mut builder = PoolBuilder::new("test").unwrap();
    for seed in seeds {
        builder.append(&page(seed)).unwrap();
    }
    builder.finish().unwrap()
}

/// A snapshot that fits a pool of so many pages.
pub fn snapshot(pages: u64) -> ProcessSnapshot {
    let mut snapshot = sample::sample(2, 0);
    assert!(
        snapshot.pool_pages <= pages,
        "the sample needs {} pages",
        snapshot.pool_pages
    );
    snapshot.pool_pages = pages;
    snapshot
}

/// A snapshot and a pool of pages that can be compressed.
pub fn of_pages(seeds: impl IntoIterator<Item = u64>) -> (ProcessSnapshot, Pool) {
    let pool = pool(seeds);
    (snapshot(pool.pages()), pool)
}

pub fn contents(pool: &Pool) -> Vec<u8> {
    let mut bytes = vec![0; pool.pages() as usize * PAGE];
    pool.read(0, &mut bytes).unwrap();
    bytes
}

/// The messages of an error and its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
