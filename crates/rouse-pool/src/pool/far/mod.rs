//! Far memory: slower than DRAM, but read in place.
//!
//! | kind | how Linux shows it | how pools get there |
//! |---|---|---|
//! | [`FarMemory::Node`] | a NUMA node without processors | the kernel moves pages of the pool's memory file ([`super::numa`]) |
//! | [`FarMemory::Directory`] | a file system, best one with DAX | pages are copied to a file there, which instances map |

mod copy;
mod directory;
mod error;

use std::io;
use std::sync::Arc;

use super::NumaNode;

pub use copy::FarPool;
pub use directory::FarDirectory;
pub use error::FarError;

/// Where the far tier is.
#[derive(Debug, Clone)]
pub enum FarMemory {
    /// On this NUMA node.
    Node(NumaNode),
    /// In files of this directory.
    Directory(Arc<FarDirectory>),
}

impl FarMemory {
    /// Bytes that it holds when it is empty.
    ///
    /// # Errors
    /// What the file system says.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::Node(node) => Ok(node.bytes()),
            Self::Directory(directory) => directory.bytes(),
        }
    }

    /// What others have left of `budget` bytes.
    pub fn within(&self, budget: u64) -> u64 {
        match self {
            Self::Node(_) => budget,
            Self::Directory(directory) => budget.min(directory.room()),
        }
    }

    /// Why it cannot be used any more, as soon as something is known. Looks at it; takes some microseconds.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Node(_) => None,
            Self::Directory(directory) => directory.problem(),
        }
    }
}
