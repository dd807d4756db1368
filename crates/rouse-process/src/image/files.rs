//! The files that a snapshot refers to: open, and still what they were.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rouse_snapshot::model::FileRef;

use super::{Image, ImageError};

#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    pub(super) file: File,
}

impl Image {
    /// Is every file still the one that the snapshot saw? Asked before each boot: a file that was
    /// replaced or written since then must not be mixed with memory that knew the old one.
    pub fn verify_files(&self) -> Result<(), ImageError> {
        self.snapshot
            .files
            .iter()
            .zip(&self.files)
            .try_for_each(|(expected, open)| {
                let metadata =
                    std::fs::symlink_metadata(&open.path).map_err(|source| ImageError::File {
                        path: open.path.display().to_string(),
                        source,
                    })?;
                unchanged(expected, &open.path, &metadata)
            })
    }

    /// A file of the snapshot, by the identity that a mapping of it shows.
    pub(crate) fn file(&self, inode: u64, size: u64) -> Option<&FileRef> {
        let is_it = |file: &&FileRef| file.inode == inode && file.size == size;
        self.snapshot.files.iter().find(is_it)
    }
}

pub(super) fn open(expected: &FileRef) -> Result<OpenFile, ImageError> {
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&expected.host_path));
    let failed = |source| ImageError::File {
        path: path.display().to_string(),
        source,
    };
    let file = File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    unchanged(expected, &path, &metadata)?;
    Ok(OpenFile { path, file })
}

fn unchanged(expected: &FileRef, path: &Path, found: &std::fs::Metadata) -> Result<(), ImageError> {
    let time = |seconds: i64, nanoseconds: i64| {
        i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
    };
    let what = if (found.dev(), found.ino()) != (expected.device, expected.inode) {
        "was replaced"
    } else if found.size() != expected.size {
        "has another size"
    } else if time(found.mtime(), found.mtime_nsec()) != expected.mtime_ns {
        "was written"
    } else {
        return Ok(());
    };
    Err(ImageError::FileChanged {
        path: path.display().to_string(),
        what,
    })
}
