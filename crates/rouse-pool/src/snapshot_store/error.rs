//! Why a snapshot cannot be stored, read or collected.

use std::io;
use std::path::{Path, PathBuf};

use rouse_snapshot::Invalid;
use rouse_snapshot::manifest::ManifestError;
use rouse_snapshot::page_map::{DictionaryId, PackId, PageMapError};

use crate::chunk::PieceError;
use crate::packs::PackError;

/// Why a snapshot cannot be written, read, removed or collected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Not a name for a snapshot.
    #[error("{name:?} cannot be the name of a snapshot")]
    BadName {
        /// The name.
        name: String,
    },
    /// There is one of this name.
    #[error("there is a snapshot at {path} already")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The snapshot to be written makes no sense.
    #[error("the snapshot contradicts itself")]
    Invalid(#[from] Invalid),
    /// Snapshot and pool to be written do not belong together.
    #[error("the snapshot has a pool of {snapshot} pages, but the pool given has {pool}")]
    PoolLength {
        /// Pages that the snapshot speaks of.
        snapshot: u64,
        /// Pages of the pool.
        pool: u64,
    },
    /// The file system says no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Memory of a pool cannot be read or filled.
    #[error("cannot {action} the pool's memory")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The manifest is refused.
    #[error("the manifest {path} cannot be used")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A file is larger than any that was written.
    #[error("{path} is too large")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The manifest does not say which page map it belongs to.
    #[error("the manifest {path} names no page map")]
    Unbound {
        /// The manifest.
        path: PathBuf,
    },
    /// The page map is refused.
    #[error("the page map {path} cannot be used")]
    PageMap {
        /// The page map.
        path: PathBuf,
        /// What is wrong with it.
        source: PageMapError,
    },
    /// The page map is intact but not the one that the manifest names.
    #[error("the page map {path} belongs to another snapshot")]
    WrongPageMap {
        /// The page map.
        path: PathBuf,
    },
    /// A pack is refused.
    #[error("the pack {path} cannot be used")]
    Pack {
        /// The pack.
        path: PathBuf,
        /// What is wrong with it.
        source: PackError,
    },
    /// A piece is refused.
    #[error(
        "piece {index} (pages {first_page} to {end_page}) at byte {offset} of pack {pack} cannot be used"
    )]
    Piece {
        /// Which one of the page map.
        index: usize,
        /// First page in the pool.
        first_page: u64,
        /// One past the last page.
        end_page: u64,
        /// File that holds it.
        pack: PackId,
        /// Where in the pack, bytes.
        offset: u64,
        /// What is wrong with it.
        source: PieceError,
    },
    /// Another snapshot has taken its place while it was stored anew.
    #[error("{path} is another snapshot by now")]
    Exchanged {
        /// Where.
        path: PathBuf,
    },
    /// A dictionary that the page map names is not there.
    #[error("the dictionary {id} is missing")]
    NoDictionary {
        /// Its name.
        id: DictionaryId,
    },
    /// A file that is open cannot be opened once more.
    #[error("a file of the snapshot cannot be opened for the pager")]
    Reopen {
        /// Why.
        source: io::Error,
    },
    /// More files than the pager takes for one pool.
    #[error(
        "its pages lie in {files} files, which are too many for pages to come when they are needed"
    )]
    Scattered {
        /// Packs, dictionaries and page map.
        files: usize,
    },
    /// Encoding failed.
    #[error("a piece cannot be encoded")]
    Encode(#[source] io::Error),
}

/// Says what was tried with which file.
pub(super) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io {
            action,
            path: path.into(),
            source: source.into(),
        })
    }
}
