//! What a process leaves outside of itself: files in its sandbox, objects of its namespaces, sockets.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;

use super::RewindError;
use crate::checkpoint::proc_files;

/// Directories in directories that are removed. Each takes a descriptor and stack of the node.
const DEEPEST: usize = 64;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Where a function may leave files.
const WRITABLE: [&str; 2] = ["tmp", "dev/shm"];

/// Empties the writable directories of the sandbox of a stopped process.
///
/// Each must be a mount of its own in another mount namespace, or nothing is touched.
pub(super) fn empty_directories(pid: i32) -> Result<(), RewindError> {
    let other = proc_files::read_link(pid, "ns/mnt")?;
    if fs::read_link("/proc/self/ns/mnt")
        .is_ok_and(|own| own.as_os_str().as_encoded_bytes() == other)
    {
        return Err(RewindError::Lasting("it has no mount namespace".into()));
    }
    let root = format!("/proc/{pid}/root");
    let device = |path: &str| {
        fs::metadata(path)
            .map(|m| m.dev())
            .map_err(RewindError::Files)
    };
    let of_root = device(&root)?;
    for name in WRITABLE {
        let path = format!("{root}/{name}");
        if device(&path)? == of_root {
            continue;
        }
        let directory = open(&path, DIRECTORY, Mode::empty());
        empty(&directory.map_err(|e| RewindError::Files(e.into()))?, 0)?;
    }
    Ok(())
}

/// By descriptors, so that nothing that a function has made can lead elsewhere.
fn empty(directory: &OwnedFd, depth: usize) -> Result<(), RewindError> {
    let failed = |error: Errno| RewindError::Files(error.into());
    if depth == DEEPEST {
        return Err(RewindError::Lasting("its directories lie too deep".into()));
    }
    for entry in Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = match entry.file_type() {
            FileType::Directory => {
                let child = openat(directory, name, DIRECTORY, Mode::empty()).map_err(failed)?;
                empty(&child, depth + 1)?;
                AtFlags::REMOVEDIR
            }
            _ => AtFlags::empty(),
        };
        unlinkat(directory, name, flags).map_err(failed)?;
    }
    Ok(())
}

/// Fails when the kernel still remembers connections that were closed: the next request could see their ports.
pub(super) fn refuse_old_connections(pid: i32) -> Result<(), RewindError> {
    let text = proc_files::read_text(pid, "net/sockstat")?;
    let waiting = text
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))
        .and_then(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "tw");
            words.nth(1)?.parse::<u64>().ok()
        });
    match waiting {
        Some(0) => Ok(()),
        Some(_) => Err(RewindError::Lasting(
            "the kernel remembers connections that it has closed".into(),
        )),
        None => Err(RewindError::Lasting("its sockets cannot be counted".into())),
    }
}
