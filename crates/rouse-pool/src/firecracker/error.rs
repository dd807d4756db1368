//! What goes wrong with another VMM.

use std::io;

/// A VMM said something else than its regions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The connection.
    #[error("cannot receive the regions of the VMM")]
    Receive(#[source] io::Error),
    /// It said nothing more for too long.
    #[error("the VMM did not send its regions in time")]
    Timeout,
    /// It closed the connection.
    #[error("the VMM ended before it had sent its regions")]
    Closed,
    /// More than any list of regions has.
    #[error("the VMM sent more than {most} bytes")]
    TooLong {
        /// Bytes.
        most: usize,
    },
    /// No list of regions.
    #[error("what the VMM sent is no list of regions")]
    Json(#[source] serde_json::Error),
    /// No descriptor, or several.
    #[error("the VMM sent {found} descriptors with its regions, not one")]
    Descriptors {
        /// So many.
        found: usize,
    },
    /// A region that cannot be.
    #[error("region {index} of the VMM {why}")]
    Region {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// A VMM can be served no longer. Its guest waits for ever where memory is absent, and must be ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The userfaultfd or the connection.
    #[error("cannot follow the memory of the VMM")]
    Events(#[source] io::Error),
    /// There is no memory, for so long.
    #[error("cannot fill memory of the VMM at {address:#x}")]
    Fill {
        /// In the VMM.
        address: u64,
        /// Why.
        source: io::Error,
    },
    /// A page cannot be read, and cannot be made unusable either.
    #[error("page {page} cannot be read")]
    Read {
        /// Of the memory file.
        page: u64,
        /// Why.
        source: io::Error,
    },
}
