//! Packs: the files of the chunk store.
//!
//! A pack holds the chunks of one snapshot that were not stored before, those of the working set
//! first and side by side. It is written once and never changed; other snapshots may refer to its
//! chunks. It goes when nothing refers to it.

mod directory;
mod index;
mod layout;
mod writer;

pub use directory::PackDir;
pub(crate) use directory::reopen;
pub(crate) use index::read_label;
pub use index::{PackEntry, PackError, PackIndex, read_index};
pub use writer::{PackWriter, SealedPack};

/// Start of the names of files that are not packs (yet).
pub(crate) const TEMPORARY_PREFIX: &str = ".tmp-";
