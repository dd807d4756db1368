//! Pools: the memory of snapshots, shared by every instance that was restored from them.
//!
//! A [`Pool`] is a sealed memfd. Instances map it `MAP_PRIVATE`: reads are shared, writes are
//! copied. On disk its pages are compressed chunks, which snapshots share and which are verified
//! one by one while they enter memory again: see [`SnapshotStore`], `docs/snapshot-format.md` and
//! `docs/chunk-store.md`.

pub mod chunk;
pub mod codec;
pub mod cost;
pub mod firecracker;
pub mod keeper;
pub mod key;
pub mod memory;
pub mod packs;
pub mod pagemap;
mod pager;
mod pool;
pub mod snapshot_store;
mod touches;
pub mod uffd;

pub use pager::PoolSource;
pub use pool::{
    CompressedCopy, FarDirectory, FarError, FarMemory, FarPool, HUGE_PAGES, NumaNode, PagedPool,
    PinnedPool, Pool, PoolBuilder, PoolId, RegisteredPool, SharedHuge, SparsePool, seal,
};
pub use snapshot_store::{SnapshotStore, StoreError};
pub use touches::TouchRecord;
