//! Pools: the memory of snapshots, shared by every instance that was restored from them.
//!
//! A [`Pool`] is a sealed memfd. Instances map it `MAP_PRIVATE`: reads are shared, writes are
//! copied. On disk its pages are compressed chunks, which snapshots share and which are verified
//! one by one while they enter memory again: see [`SnapshotStore`], `docs/snapshot-format.md` and
//! `docs/chunk-store.md`.

pub mod chunk;
pub mod codec;
pub mod cost;
pub mod keeper;
pub mod key;
pub mod packs;
mod pager;
mod pool;
pub mod snapshot_store;
pub mod uffd;

pub use pager::PoolSource;
pub use pool::{
    CompressedCopy, NumaNode, PagedPool, PinnedPool, Pool, PoolBuilder, PoolId, RegisteredPool,
    SparsePool,
};
pub use snapshot_store::{SnapshotStore, StoreError};
