//! What lies in `/tmp`.

use std::collections::HashMap;

use super::{Check, Invalid, check_path, check_runs, ensure};
use crate::model::{PAGE_SIZE, ProcessSnapshot, TmpEntry, TmpKind};

const ROOT: &[u8] = b"/tmp";

/// Entries are created one after the other, so every one needs its parent to be there already,
/// as a directory: a symbolic link or `..` in its place would lead out of `/tmp`.
pub(super) fn check_tmp(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    let mut seen = HashMap::from([(ROOT, &TmpKind::Directory)]);
    for entry in &snapshot.tmp {
        check_entry(entry, snapshot.pool_pages, &seen).map_err(|why| Invalid::Tmp {
            path: String::from_utf8_lossy(&entry.path).into_owned(),
            why,
        })?;
        seen.insert(&entry.path, &entry.kind);
    }
    Ok(())
}

fn check_entry(entry: &TmpEntry, pool_pages: u64, seen: &HashMap<&[u8], &TmpKind>) -> Check {
    let path = entry.path.as_slice();
    check_path(path)?;
    let slash = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .ok_or("its path is not absolute")?;
    let (parent, name) = (&path[..slash], &path[slash + 1..]);
    ensure(
        !name.is_empty() && name != b"." && name != b"..",
        "its name names no file",
    )?;
    ensure(
        seen.get(parent) == Some(&&TmpKind::Directory),
        "its directory is not listed before it",
    )?;
    ensure(!seen.contains_key(path), "it is there twice")?;
    ensure(
        entry.mode <= 0o7777,
        "its mode has bits that are no permissions",
    )?;
    match &entry.kind {
        TmpKind::Directory | TmpKind::Fifo | TmpKind::Socket => Ok(()),
        TmpKind::HardLink { target } => ensure(
            matches!(seen.get(target.as_slice()), Some(TmpKind::File { .. })),
            "the file that it is another name of is not listed before it",
        ),
        TmpKind::Symlink { target } => ensure(
            !target.is_empty() && !target.contains(&0),
            "its target is not a path",
        ),
        TmpKind::File { size, saved } => {
            ensure(*size <= i64::MAX as u64 - PAGE_SIZE, "it is too large")?;
            check_runs(saved, 0, size.next_multiple_of(PAGE_SIZE), &[pool_pages])
        }
    }
}
