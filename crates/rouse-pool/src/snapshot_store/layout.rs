//! Names and places of a store's files.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::error::Context;

/// Name of the manifest in a snapshot's directory.
pub const MANIFEST_FILE: &str = "manifest";
/// Start of the name of the page map in a snapshot's directory; part of its digest follows.
pub const PAGE_MAP_PREFIX: &str = "pages-";
/// Name of the directory of snapshots below the store's root.
pub const SNAPSHOTS: &str = "snapshots";
/// Start of the names of files and directories that are not what they will be (yet, or any more).
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";
const LOCK_FILE: &str = "store.lock";

/// Leaves room for the prefix and the random part of a temporary name in 255 bytes.
const MAX_NAME_LEN: usize = 200;

/// A snapshot's directory from its name: one or two visible components, joined by a slash.
pub(super) fn snapshot_dir(root: &Path, name: &str) -> Result<PathBuf, StoreError> {
    let visible = |part: &str| {
        !part.is_empty()
            && part.len() <= MAX_NAME_LEN
            && !part.starts_with('.')
            && !part.contains('\0')
    };
    if name.split('/').count() > 2 || !name.split('/').all(visible) {
        return Err(StoreError::BadName { name: name.into() });
    }
    Ok(root.join(SNAPSHOTS).join(name))
}

pub(super) fn lock_file(root: &Path) -> PathBuf {
    root.join(LOCK_FILE)
}

/// Name of the page map with this digest.
pub(super) fn page_map_file(digest: &[u8; 32]) -> String {
    let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    format!("{PAGE_MAP_PREFIX}{hex}")
}

pub(super) fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// All snapshots with their names, sorted; those being written are left out.
pub(super) fn list(root: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for (name, dir) in directories(&root.join(SNAPSHOTS))? {
        if dir.join(MANIFEST_FILE).exists() {
            found.push((name, dir));
            continue;
        }
        for (below, dir) in directories(&dir)? {
            // Also without a manifest: then something is missing, and must be named.
            found.push((format!("{name}/{below}"), dir));
        }
    }
    found.sort();
    Ok(found)
}

/// Directories in a directory that are not temporary and whose names are text.
fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for path in children(dir)? {
        let name = path.file_name().unwrap_or_default();
        if is_temporary(name) || !path.is_dir() {
            continue;
        }
        if let Some(name) = name.to_str() {
            found.push((name.to_owned(), path));
        }
    }
    Ok(found)
}

/// Everything in a directory. One that does not exist holds nothing.
pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("list", dir)?,
    };
    entries
        .map(|entry| Ok(entry.context("list", dir)?.path()))
        .collect()
}

/// Makes a directory that only its owner may look into, and what it lies in.
pub(super) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context("make", dir)
}

/// Writes a new file that only its owner may read, and syncs it.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .context("create", path)?;
    file.write_all(bytes).context("write", path)?;
    file.sync_all().context("write", path)
}

/// Reads a file of at most so many bytes.
pub(super) fn read_bounded(path: &Path, max_len: u64) -> Result<Vec<u8>, StoreError> {
    read_open(&File::open(path).context("open", path)?, path, max_len)
}

/// The same of a file that is open, from where it was read to.
pub(super) fn read_open(file: &File, path: &Path, max_len: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    // One more than allowed, so that a file that is too large is not just cut off.
    file.take(max_len + 1)
        .read_to_end(&mut bytes)
        .context("read", path)?;
    if bytes.len() as u64 > max_len {
        return Err(StoreError::TooLarge { path: path.into() });
    }
    Ok(bytes)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .context("sync", dir)
}
