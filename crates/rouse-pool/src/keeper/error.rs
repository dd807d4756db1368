//! What can go wrong.

use std::io;

use crate::pool::PoolId;

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The process has threads already.
    #[error("the keeper must be started before any thread")]
    Threads,
    /// The kernel offers no userfaultfd, or not to us.
    #[error("cannot open /dev/userfaultfd, which filling memory on demand needs")]
    Device(#[source] io::Error),
    /// The process could not be made.
    #[error("cannot start the keeper process")]
    Fork(#[source] io::Error),
}

/// Why the pager did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagerError {
    /// Keeper and pager have died. No instance may live on.
    #[error("the pager has died, and its keeper too")]
    Gone,
    /// The pool is not there.
    #[error("the pager does not know the pool: {0}")]
    UnknownPool(String),
    /// The pool is in use.
    #[error("the pool is in use: {0}")]
    Busy(String),
    /// The pool is pinned: all of its pages must stay.
    #[error("pool {0} is pinned; its pages cannot be taken out")]
    Pinned(PoolId),
    /// A limit of the pager.
    #[error("the pager cannot take more: {0}")]
    Full(String),
    /// Too much for one request.
    #[error("an instance may have {most} mappings of pools, not {found}")]
    TooManyMappings {
        /// Mappings asked for.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// The kernel refuses.
    #[error("the kernel refuses: {0}")]
    Kernel(String),
    /// No memory for a page.
    #[error("there is no memory for a page: {0}")]
    OutOfMemory(String),
    /// A piece is not what was stored, or cannot be read.
    #[error("the pool cannot be filled: {0}")]
    Damaged(String),
    /// Stored pieces could not be copied into memory.
    #[error("the stored pages cannot be copied into memory")]
    Copy(#[source] io::Error),
    /// A request that makes no sense.
    #[error("the request makes no sense: {0}")]
    Malformed(String),
    /// A call of the daemon itself failed.
    #[error("cannot talk to the pager")]
    Io(#[from] io::Error),
}
