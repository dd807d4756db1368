//! A [`ProcessSnapshot`] as bytes and back.
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
mod layout;
mod records;
mod signature;
mod wire;

pub use container::HostDigests;
pub use error::{ManifestError, WireError};
pub use layout::FORMAT_VERSION;
pub use signature::{ManifestKey, sign, verify};

use crate::model::ProcessSnapshot;
use crate::page_map::Domain;
use crate::validate::validate;
use container::{Builder, Container};
use layout::Section;
use records::PoolSection;

/// What a manifest says: a process, and which page map says where its pages are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The process.
    pub snapshot: ProcessSnapshot,
    /// Where its pages are; `None` in a manifest that was never stored.
    pub binding: Option<Binding>,
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

/// The bytes of a manifest that is not bound to a page map.
///
/// The same snapshot always gives the same bytes. The caller has made sure with
/// [`validate`](crate::validate()) that the snapshot makes sense: [`decode`] refuses it otherwise.
pub fn encode(snapshot: &ProcessSnapshot) -> Vec<u8> {
    encode_parts(snapshot, None)
}

/// Like [`encode`], bound to a page map.
pub fn encode_with_map(snapshot: &ProcessSnapshot, binding: &Binding) -> Vec<u8> {
    encode_parts(snapshot, Some(binding.clone()))
}

/// Reads a manifest and says only what process it describes.
///
/// # Errors
/// As [`decode_with_map`].
pub fn decode(bytes: &[u8]) -> Result<ProcessSnapshot, ManifestError> {
    decode_with_map(bytes).map(|manifest| manifest.snapshot)
}

/// Reads a whole manifest.
///
/// # Errors
/// Anything that is damaged, unknown or inconsistent; the error names the section and the reason.
pub fn decode_with_map(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let container = Container::open(bytes)?;
    let pool: PoolSection = container.read(Section::Pool)?;
    let snapshot = ProcessSnapshot {
        host: container.read(Section::Host)?,
        process: container.read(Section::Process)?,
        threads: container.read(Section::Threads)?,
        mappings: container.read(Section::Mappings)?,
        files: container.read(Section::Files)?,
        descriptions: container.read(Section::Descriptions)?,
        descriptors: container.read(Section::Descriptors)?,
        tmp: container.read(Section::Tmp)?,
        pool_pages: pool.pages,
        parents: match container.read_optional(Section::Parents)? {
            Some(parents) if Vec::is_empty(&parents) => return Err(ManifestError::NoParents),
            parents => parents.unwrap_or_default(),
        },
    };
    if HostDigests::of(&snapshot.host) != container.host_digests() {
        return Err(ManifestError::HostDigest);
    }
    validate(&snapshot)?;
    Ok(Manifest {
        snapshot,
        binding: pool.binding,
    })
}

/// Reads only the digests of the host from a manifest, to refuse one of another host early.
///
/// # Errors
/// What can be found wrong without looking into the sections' contents.
pub fn host_digests(bytes: &[u8]) -> Result<HostDigests, ManifestError> {
    Container::open(bytes).map(|container| container.host_digests())
}

fn encode_parts(snapshot: &ProcessSnapshot, binding: Option<Binding>) -> Vec<u8> {
    let mut builder = Builder::new(HostDigests::of(&snapshot.host));
    builder.section(Section::Host, &snapshot.host);
    builder.section(Section::Process, &snapshot.process);
    builder.section(Section::Threads, &snapshot.threads);
    builder.section(Section::Mappings, &snapshot.mappings);
    builder.section(Section::Files, &snapshot.files);
    builder.section(Section::Descriptions, &snapshot.descriptions);
    builder.section(Section::Descriptors, &snapshot.descriptors);
    builder.section(Section::Tmp, &snapshot.tmp);
    builder.section(
        Section::Pool,
        &PoolSection {
            pages: snapshot.pool_pages,
            binding,
        },
    );
    if !snapshot.parents.is_empty() {
        builder.section(Section::Parents, &snapshot.parents);
    }
    builder.finish()
}
