//! What the function has left in `/tmp`.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rouse_snapshot::model::{PAGE_SIZE, TmpEntry, TmpKind};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, readlinkat, statat};

use super::error::{CheckpointError, Obstacle, Subject};
use super::pages::PageSaver;
use super::proc_files;
use super::shared_memory::data_extents;

const ROOT: &str = "/tmp";
/// Times of access are the function's.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOATIME);

/// Reads the `/tmp` of a process and saves its files.
///
/// A process in the node's own mount namespace has no `/tmp` of its own; nothing is read then.
pub(super) fn read(pid: i32, pages: &mut PageSaver) -> Result<Vec<TmpEntry>, CheckpointError> {
    let namespace = proc_files::read_link(pid, "ns/mnt")?;
    if std::fs::read_link("/proc/self/ns/mnt")
        .is_ok_and(|own| own.as_os_str().as_encoded_bytes() == namespace)
    {
        return Ok(Vec::new());
    }
    refuse_shared_files(pid)?;
    let root_path = format!("/proc/{pid}/root{ROOT}");
    let root = match open(&root_path, READ | OFlags::DIRECTORY, Mode::empty()) {
        Ok(root) => root,
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => {
            return Err(CheckpointError::Read {
                path: root_path,
                source: error.into(),
            });
        }
    };
    let mut walk = Walk {
        pages,
        entries: Vec::new(),
        linked: HashMap::new(),
    };
    let mut directories = vec![(root, ROOT.as_bytes().to_vec())];
    while let Some((directory, path)) = directories.pop() {
        walk.directory(&directory, &path, &mut directories)?;
    }
    Ok(walk.entries)
}

/// Files in `/dev/shm` are shared memory with a name; what is mapped from there would not be found again.
fn refuse_shared_files(pid: i32) -> Result<(), CheckpointError> {
    let path = format!("/proc/{pid}/root/dev/shm");
    let own_mount = |path: &str| Some(std::fs::metadata(path).ok()?.dev());
    // Not mounted by itself: a plain directory of the read-only root.
    if own_mount(&path) == own_mount(&format!("/proc/{pid}/root/dev")) {
        return Ok(());
    }
    if let Some(entry) = std::fs::read_dir(&path)
        .ok()
        .and_then(|mut entries| entries.next())
    {
        let name = entry
            .map_err(|source| CheckpointError::Read { path, source })?
            .file_name();
        let path = [b"/dev/shm/".as_slice(), name.as_encoded_bytes()].concat();
        return Err(Obstacle::new(Subject::Path(path), "named shared memory").into());
    }
    Ok(())
}

struct Walk<'a> {
    pages: &'a mut PageSaver,
    entries: Vec<TmpEntry>,
    /// First name of each file that has several, by its inode.
    linked: HashMap<u64, Vec<u8>>,
}

impl Walk<'_> {
    /// Lists one directory, by descriptor and without following links: their targets are the function's choice.
    fn directory(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        directories: &mut Vec<(OwnedFd, Vec<u8>)>,
    ) -> Result<(), CheckpointError> {
        let failed = |path: &[u8]| {
            let path = String::from_utf8_lossy(path).into_owned();
            |error: rustix::io::Errno| CheckpointError::Read {
                path,
                source: error.into(),
            }
        };
        for entry in Dir::read_from(directory).map_err(failed(path))? {
            let entry = entry.map_err(failed(path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let entry_path = [path, b"/", name.to_bytes()].concat();
            let stat =
                statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&entry_path))?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let child = openat(directory, name, READ | OFlags::DIRECTORY, Mode::empty())
                        .map_err(failed(&entry_path))?;
                    directories.push((child, entry_path.clone()));
                    TmpKind::Directory
                }
                FileType::Symlink => {
                    let target =
                        readlinkat(directory, name, Vec::new()).map_err(failed(&entry_path))?;
                    TmpKind::Symlink {
                        target: target.into_bytes(),
                    }
                }
                FileType::RegularFile => {
                    let file = openat(directory, name, READ, Mode::empty())
                        .map_err(failed(&entry_path))?;
                    if has_extended_attributes(&file) {
                        return Err(obstacle(entry_path, "file with extended attributes"));
                    }
                    match self.linked.get(&stat.st_ino) {
                        Some(first) => TmpKind::HardLink {
                            target: first.clone(),
                        },
                        None => self.file(&file, stat.st_size as u64, &entry_path)?,
                    }
                }
                FileType::Socket => TmpKind::Socket,
                FileType::Fifo => TmpKind::Fifo,
                _ => return Err(obstacle(entry_path, "device")),
            };
            if stat.st_nlink > 1 && matches!(kind, TmpKind::File { .. }) {
                self.linked.insert(stat.st_ino, entry_path.clone());
            } else if stat.st_nlink > 1
                && !matches!(kind, TmpKind::Directory | TmpKind::HardLink { .. })
            {
                return Err(obstacle(
                    entry_path,
                    "second name of something that is no file",
                ));
            }
            self.entries.push(TmpEntry {
                path: entry_path,
                mode: stat.st_mode & 0o7777,
                accessed_ns: time_ns(stat.st_atime as i64, stat.st_atime_nsec as i64),
                modified_ns: time_ns(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
                kind,
            });
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, size: u64, path: &[u8]) -> Result<TmpKind, CheckpointError> {
        let failed = |source| CheckpointError::Read {
            path: String::from_utf8_lossy(path).into_owned(),
            source,
        };
        let extents = data_extents(file, 0..size.next_multiple_of(PAGE_SIZE)).map_err(failed)?;
        let saved = self.pages.save_nonzero_from(&extents, |offset, bytes| {
            // The last page may reach beyond the end of the file.
            let len = (size.saturating_sub(offset) as usize).min(bytes.len());
            bytes[len..].fill(0);
            read_exact(file, offset, &mut bytes[..len], path)
        })?;
        Ok(TmpKind::File { size, saved })
    }
}

/// `system.` and `security.` ones are the file system's own.
fn has_extended_attributes(file: &OwnedFd) -> bool {
    let mut names = [0u8; 4096];
    match rustix::fs::flistxattr(file, &mut names) {
        Ok(len) => names[..len]
            .split(|byte| *byte == 0)
            .any(|name| name.starts_with(b"user.")),
        Err(error) => error == rustix::io::Errno::RANGE,
    }
}

fn time_ns(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

fn obstacle(path: Vec<u8>, reason: &str) -> CheckpointError {
    Obstacle::new(Subject::Path(path), reason).into()
}

fn read_exact(
    file: &OwnedFd,
    offset: u64,
    bytes: &mut [u8],
    path: &[u8],
) -> Result<(), CheckpointError> {
    let mut done = 0;
    while done < bytes.len() {
        let failed = |source| CheckpointError::Read {
            path: String::from_utf8_lossy(path).into_owned(),
            source,
        };
        match rustix::io::pread(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}
