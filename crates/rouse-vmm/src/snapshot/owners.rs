//! The file `owners` beside a manifest: whose the pages of a machine are, as its guest said when it was written down.
//!
//! ```text
//!  0         8         12     44         76
//!  +---------+---------+------+----------+---- ... ----+
//!  | magic   | version | pool | checksum | table       |     `rouse_guest::owners` has the table
//!  +---------+---------+------+----------+---- ... ----+
//! ```
//!
//! It is advice, as a working set is: one that is missing, damaged or of another snapshot costs time, and nothing else. So it
//! has a checksum, and no signature.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::agent::{Owners, OwnersError};

/// Name of the file in a snapshot's directory.
pub const OWNERS_FILE: &str = "owners";
const FRESH: &str = ".owners.new";
const MAGIC: [u8; 8] = *b"ROUSEOWN";
const VERSION: u32 = 1;
const HEADER: usize = 76;
/// No file is longer, bytes.
const MOST: u64 = HEADER as u64 + rouse_guest::owners::MOST_BYTES as u64;

/// What is stored of pages' owners cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnersFileError {
    /// It cannot be read or written.
    #[error("cannot read or write whose the pages of a machine are")]
    Io(#[from] io::Error),
    /// It is cut off, too long, of another version, or changed.
    #[error("what is stored of the owners of pages is damaged, or of another version")]
    Damaged,
    /// It is of another snapshot.
    #[error("what is stored of the owners of pages is of another snapshot")]
    Other,
    /// Whoever wrote it wrote nonsense.
    #[error(transparent)]
    Table(#[from] OwnersError),
}

/// Stores `owners` in the directory of the snapshot whose pool is `pool`
/// ([`Binding::pool`](rouse_snapshot::manifest::Binding::pool)), in place of what was there.
///
/// # Errors
/// Those of the file system. What was there stays then.
pub fn store_owners(directory: &Path, pool: &[u8; 32], owners: &Owners) -> io::Result<()> {
    let table = owners.encode();
    let version = VERSION.to_le_bytes();
    let bytes = [&MAGIC[..], &version, pool, &checksum(pool, &table), &table].concat();
    let fresh = directory.join(FRESH);
    let written =
        fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, directory.join(OWNERS_FILE)));
    if written.is_err() {
        // It may not be there at all.
        drop(fs::remove_file(&fresh));
    }
    written
}

/// What is stored there of the snapshot whose pool is `pool`, if anything is.
///
/// # Errors
/// See [`OwnersFileError`].
pub fn load_owners(directory: &Path, pool: &[u8; 32]) -> Result<Option<Owners>, OwnersFileError> {
    let file = match fs::File::open(directory.join(OWNERS_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    parse(&bytes, pool).map(Some)
}

fn parse(bytes: &[u8], pool: &[u8; 32]) -> Result<Owners, OwnersFileError> {
    let (header, table) = bytes
        .split_at_checked(HEADER)
        .filter(|_| bytes.len() as u64 <= MOST)
        .ok_or(OwnersFileError::Damaged)?;
    let (magic, rest) = header.split_at(8);
    let (version, rest) = rest.split_at(4);
    let (of, sum) = rest.split_at(32);
    if magic != MAGIC || version != VERSION.to_le_bytes() {
        return Err(OwnersFileError::Damaged);
    }
    let of: &[u8; 32] = of.try_into().map_err(|_| OwnersFileError::Damaged)?;
    if checksum(of, table) != sum {
        return Err(OwnersFileError::Damaged);
    }
    if of != pool {
        return Err(OwnersFileError::Other);
    }
    Ok(Owners::decode(table)?)
}

fn checksum(pool: &[u8; 32], table: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(pool).update(table);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::Owner;

    const POOL: [u8; 32] = [7; 32];

    fn owners() -> Owners {
        let kinds = [Owner::Kernel, Owner::Heap, Owner::Free];
        Owners::of(&kinds.map(|owner| [owner; 100]).concat())
    }

    #[test]
    fn owners_are_kept_beside_their_snapshot() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let at = directory.path();
        assert!(load_owners(at, &POOL).expect("none is none").is_none());
        store_owners(at, &POOL, &Owners::default()).expect("there is room");
        store_owners(at, &POOL, &owners()).expect("it is replaced");
        assert_eq!(load_owners(at, &POOL).expect("it is good"), Some(owners()));
        assert!(matches!(
            load_owners(at, &[8; 32]),
            Err(OwnersFileError::Other)
        ));
        assert_eq!(fs::read_dir(at).expect("it is there").count(), 1);
        // Where it cannot be written nothing is left.
        assert!(store_owners(&at.join("nowhere"), &POOL, &owners()).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_file_is_found(at in any::<prop::sample::Index>(), change in 1_u8..) {
            let directory = tempfile::tempdir().expect("a directory can be made");
            store_owners(directory.path(), &POOL, &owners()).expect("there is room");
            let mut bytes = fs::read(directory.path().join(OWNERS_FILE)).expect("it was written");
            let cut = at.index(bytes.len());
            prop_assert!(parse(&bytes[..cut], &POOL).is_err());
            bytes[cut] ^= change;
            prop_assert!(parse(&bytes, &POOL).is_err());
        }

        #[test]
        fn no_file_is_too_strange(bytes: Vec<u8>) {
            prop_assert!(parse(&bytes, &POOL).is_err());
        }
    }
}
