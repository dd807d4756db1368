//! A [`ProcessSnapshot`] or a [`MachineSnapshot`](crate::model::MachineSnapshot) as bytes and back.
//!
//! ```text
//!  0          192              192 + 64 n
//!  +----------+----------------+-----------+---+-----------+---+--...--+-----------+
//!  | header   | section table  | section 1 | 0 | section 2 | 0 |       | section n |
//!  +----------+----------------+-----------+---+-----------+---+--...--+-----------+
//!   checksums   n entries, each  starts on a     padding of                         ^ total length,
//!   itself and  checksums its    64-byte         zeros                                end of file
//!   the table   section          boundary
//! ```
//!
//! Every byte is covered by a checksum or must be zero, so that damage anywhere is noticed.
//! Decoding allocates in proportion to its input, never to a number written in it.

mod container;
mod error;
mod forms;
mod layout;
mod machine_records;
mod records;
mod signature;
mod subject;
mod wire;

pub use container::HostDigests;
pub use error::{ManifestError, WireError};
pub use layout::FORMAT_VERSION;
pub use signature::{ManifestKey, sign, verify};
pub use subject::{AnySnapshot, SnapshotKind, Subject};

use crate::model::ProcessSnapshot;
use crate::page_map::Domain;
use container::Container;

/// What a manifest says: a process or a machine, and which page map says where its pages are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest<S = ProcessSnapshot> {
    /// The process or machine.
    pub snapshot: S,
    /// Where its pages are; `None` in a manifest that was never stored.
    pub binding: Option<Binding>,
}

impl<S> Manifest<S> {
    /// The same about something else.
    fn map<T>(self, change: impl FnOnce(S) -> T) -> Manifest<T> {
        Manifest {
            snapshot: change(self.snapshot),
            binding: self.binding,
        }
    }
}

/// What ties a manifest to a page map, and both to a sharing domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// [Digest](crate::page_map::PageMap::digest) of the page map.
    pub page_map: [u8; 32],
    /// Identity of the pool: digest of the page map that it was first stored with. Stays when the
    /// pages are stored anew in another order, so that children can name their parent by it.
    pub pool: [u8; 32],
    /// Whose snapshot it is.
    pub tenant: String,
    /// Whose key names its chunks: the tenant's, or that of the operator's templates.
    pub domain: Domain,
}

/// The bytes of a manifest that is not bound to a page map; see [`Subject::encode`].
pub fn encode<S: Subject>(snapshot: &S) -> Vec<u8> {
    snapshot.encode(None)
}

/// Like [`encode`], bound to a page map.
pub fn encode_with_map<S: Subject>(snapshot: &S, binding: &Binding) -> Vec<u8> {
    snapshot.encode(Some(binding))
}

/// Reads a manifest and says only what process it describes.
///
/// # Errors
/// As [`Subject::decode`].
pub fn decode(bytes: &[u8]) -> Result<ProcessSnapshot, ManifestError> {
    decode_with_map(bytes).map(|manifest| manifest.snapshot)
}

/// Reads a whole manifest of a process.
///
/// # Errors
/// As [`Subject::decode`].
pub fn decode_with_map(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    ProcessSnapshot::decode(bytes)
}

/// Reads only the digests of the host from a manifest, to refuse one of another host early.
///
/// # Errors
/// What can be found wrong without looking into the sections' contents.
pub fn host_digests(bytes: &[u8]) -> Result<HostDigests, ManifestError> {
    Container::open(bytes).map(|container| container.host_digests())
}
