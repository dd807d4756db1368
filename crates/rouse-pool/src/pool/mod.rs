//! Pools in memory.
//!
//! | kind | pages | mapped |
//! |---|---|---|
//! | [`Pool`] | all present, sealed | by anybody |
//! | [`PagedPool`] | present or not | as a [`PinnedPool`], or as a [`RegisteredPool`] |
//! | [`FarPool`] | all present, in a file on far memory | by anybody |
//!
//! An absent page of a memory file reads as zeros when nobody watches. So there is no way to the
//! memory file of a [`PagedPool`] but through the two types that say how absent pages are dealt
//! with.

mod compressed;
mod far;
mod huge;
mod numa;
mod paged;
mod sealed;

pub use compressed::CompressedCopy;
pub(crate) use compressed::bases;
pub use far::{FarDirectory, FarError, FarMemory, FarPool};
pub use huge::{HUGE_PAGES, SharedHuge};
pub use numa::NumaNode;
pub(crate) use numa::prefer;
pub use paged::{PagedPool, PinnedPool, PoolId, RegisteredPool, SparsePool};
pub(crate) use sealed::write_all_at;
pub use sealed::{Pool, PoolBuilder, seal};
