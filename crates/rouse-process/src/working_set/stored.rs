//! The file `working-set` beside a manifest.
//!
//! It is replaced as a whole, by a rename, and it is only advice: one that is missing or damaged
//! costs a few invocations their preparation.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::working_set::{Record, WorkingSetError};

/// Name of the file in a snapshot's directory.
pub(crate) const NAME: &str = "working-set";
/// Bytes of a file that is read at all: 24 for each run of pages, and no function touches millions of runs.
const LONGEST: u64 = 64 << 20;

/// Why a stored working set is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoredError {
    /// It cannot be read.
    #[error("the stored working set cannot be read")]
    Read(#[source] io::Error),
    /// It is far too large.
    #[error("the stored working set has {0} bytes")]
    TooLong(u64),
    /// It is damaged, or of another snapshot or version.
    #[error("the stored working set cannot be used")]
    Unusable(#[from] WorkingSetError),
}

/// What is stored in the directory of `snapshot`, if anything is. Removes what a killed node has left half written.
pub(crate) fn load(
    directory: &Path,
    snapshot: &ProcessSnapshot,
) -> Result<Option<Record>, StoredError> {
    let _ = std::fs::remove_file(fresh(directory));
    let path = directory.join(NAME);
    let length = match std::fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoredError::Read(error)),
    };
    if length > LONGEST {
        return Err(StoredError::TooLong(length));
    }
    let bytes = std::fs::read(&path).map_err(StoredError::Read)?;
    Ok(Some(Record::decode(&bytes, snapshot)?))
}

/// Replaces what is stored. With `durable`, the new file is on disk before it gets the name; without, a loss of power
/// may leave a file that is then found damaged.
pub(crate) fn store(directory: &Path, record: &Record, durable: bool) -> io::Result<()> {
    let fresh = fresh(directory);
    let written = write(&fresh, &record.encode(), durable)
        .and_then(|()| std::fs::rename(&fresh, directory.join(NAME)));
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    Ok(())
}

/// Where a new file is written before it gets the name.
fn fresh(directory: &Path) -> PathBuf {
    directory.join(format!(".{NAME}.new"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_replaces_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = Record {
            snapshot: [3; 32].into(),
            version: 1,
            on: true,
            invocations: 1,
            horizon: 1,
            residual: 0,
            gain_ns: 0,
            runs: Vec::new(),
        };
        for durable in [false, true] {
            record.version += 1;
            store(directory.path(), &record, durable).unwrap();
            let bytes = std::fs::read(directory.path().join(NAME)).unwrap();
            assert_eq!(Record::decode_unbound(&bytes).unwrap(), record);
        }
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 1, "no temporary file is left");
    }
}
