//! Who wrote a manifest: a keyed digest behind its last section.
//!
//! ```text
//!  0                                    n         n + 8      n + 32      n + 64
//!  +------------------- ... ------------+---------+----------+-----------+
//!  | header, section table, sections    | magic   | key id   | signature |
//!  +------------------- ... ------------+---------+----------+-----------+
//!   `------------------- what is signed --------------------'
//! ```
//!
//! The checksums in front find damage and say where it is. The signature finds forgery: a node
//! only restores what it has written itself. Since the manifest names its page map by a digest,
//! and the page map each chunk, everything that a snapshot consists of is signed.

use std::fmt;

use super::ManifestError;
use super::container::Container;
use super::layout::{FORMAT_VERSION, MAGIC};

const TRAILER_MAGIC: [u8; 8] = *b"ROUSESIG";
const KEY_ID_LEN: usize = 24;
const SIGNATURE_LEN: usize = 32;
/// Bytes behind the manifest.
pub(super) const TRAILER_LEN: usize = TRAILER_MAGIC.len() + KEY_ID_LEN + SIGNATURE_LEN;

// The format is what files on disk look like: a change here is a new format version.
const _: () = assert!(TRAILER_LEN == 64);

/// Signs manifests.
#[derive(Clone)]
pub struct ManifestKey {
    key: [u8; 32],
    id: [u8; KEY_ID_LEN],
}

impl ManifestKey {
    /// A key of these bytes, which must be secret.
    pub fn new(key: [u8; 32]) -> Self {
        let digest = blake3::keyed_hash(&key, b"id of the key");
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&digest.as_bytes()[..KEY_ID_LEN]);
        Self { key, id }
    }
}

impl fmt::Debug for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ManifestKey")
    }
}

/// Signs an encoded manifest: what comes back is what is written to disk.
pub fn sign(mut manifest: Vec<u8>, key: &ManifestKey) -> Vec<u8> {
    manifest.extend_from_slice(&TRAILER_MAGIC);
    manifest.extend_from_slice(&key.id);
    let signature = blake3::keyed_hash(&key.key, &manifest);
    manifest.extend_from_slice(signature.as_bytes());
    manifest
}

/// Checks that this key signed these bytes, and returns the manifest in them.
///
/// # Errors
/// Damage is told apart from forgery, and from the key of another node.
pub fn verify<'a>(signed: &'a [u8], key: &ManifestKey) -> Result<&'a [u8], ManifestError> {
    // Another version may be signed differently: its owner wants to hear "version".
    let found = signed.len();
    let start = signed
        .first_chunk::<12>()
        .ok_or(ManifestError::Short { found })?;
    if start[..8] != MAGIC {
        return Err(ManifestError::Magic);
    }
    let version = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    if version != FORMAT_VERSION {
        return Err(ManifestError::FormatVersion { found: version });
    }
    let (manifest, trailer) = signed
        .split_last_chunk::<TRAILER_LEN>()
        .ok_or(ManifestError::Short { found })?;
    // Whatever is wrong with the signature, damage in front of it is the better explanation.
    let unless_damaged = |error| match Container::open(manifest) {
        Ok(_) => error,
        Err(damage) => damage,
    };
    let (magic, rest) = trailer.split_at(TRAILER_MAGIC.len());
    let (id, signature) = rest.split_at(KEY_ID_LEN);
    if magic != TRAILER_MAGIC {
        return Err(unless_damaged(ManifestError::Unsigned));
    }
    if id != key.id {
        return Err(unless_damaged(ManifestError::OtherKey));
    }
    let expected = blake3::keyed_hash(&key.key, &signed[..found - SIGNATURE_LEN]);
    // Compares in constant time.
    if !blake3::Hash::from_slice(signature).is_ok_and(|signature| signature == expected) {
        return Err(unless_damaged(ManifestError::Signature));
    }
    Ok(manifest)
}
