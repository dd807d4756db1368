//! What can go wrong with far memory that is a directory.

use std::io;
use std::path::PathBuf;

use crate::keeper::PagerError;

/// Why pages are not, or no longer, on far memory.
#[derive(Debug, thiserror::Error)]
pub enum FarError {
    /// It cannot be opened or looked at.
    #[error("{path} cannot be used as far memory: {what}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Files there cannot be told apart by what `/proc/PID/maps` shows, by which memory calls are answered.
    #[error("{path} cannot be used as far memory: its file system shows mappings under other numbers than files", path = .0.display())]
    Numbers(PathBuf),
    /// Another directory is found under the path: unmounted, or mounted over.
    #[error("{path} is not the directory any more that it was when the node started", path = .0.display())]
    Vanished(PathBuf),
    /// There is no room.
    #[error("{path} has no room for {bytes} bytes", path = path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// What was to be stored.
        bytes: u64,
    },
    /// A file there has changed, though nobody but the node has it.
    #[error("a file in {path} is not what was written", path = .0.display())]
    Changed(PathBuf),
    /// A file there cannot be read or written.
    #[error("a file in {path} cannot be {what}", path = path.display())]
    File {
        /// The directory.
        path: PathBuf,
        /// `read`, `written`, ...
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pages to be copied there could not be brought in.
    #[error("the pages for far memory could not be brought in")]
    Source(#[from] PagerError),
    /// They could not be read.
    #[error("the pages for far memory could not be read")]
    Pool(#[source] io::Error),
}

impl FarError {
    /// Is it the far memory itself that is of no use any more?
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Source(_) | Self::Pool(_) => false,
            Self::Directory { .. }
            | Self::Numbers(_)
            | Self::Vanished(_)
            | Self::Changed(_)
            | Self::File { .. } => true,
        }
    }
}
