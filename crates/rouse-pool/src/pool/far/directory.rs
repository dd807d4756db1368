//! The directory in which pools of the far tier lie.
//!
//! Its files have no names, so that nobody else opens them by accident and nothing of them is left when the node ends.
//! What can be known of the directory ahead is tried out when it is opened: a file there must be such that it can be
//! reserved, mapped for execution, and recognised in `/proc/PID/maps`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rouse_snapshot::model::PAGE_SIZE;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::FarError;

/// A directory, held open, and what of it is in use.
#[derive(Debug)]
pub struct FarDirectory {
    path: PathBuf,
    directory: OwnedFd,
    identity: Identity,
    is_dax: bool,
    /// Bytes of files that exist.
    pub(super) held: AtomicU64,
    lost: OnceLock<String>,
}

/// By what a directory is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

impl FarDirectory {
    /// Opens a directory, and tries it out with a file of one page.
    ///
    /// # Errors
    /// It is not there, cannot be written to, or its file system lacks something.
    pub fn open(path: &Path) -> Result<Self, FarError> {
        let failed = |what| {
            move |error: Errno| FarError::Directory {
                path: path.to_path_buf(),
                what,
                source: error.into(),
            }
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed("it cannot be opened"))?;
        let identity = Identity::of(directory.as_fd()).map_err(|source| FarError::Directory {
            path: path.to_path_buf(),
            what: "it cannot be looked at",
            source,
        })?;
        let mut opened = Self {
            path: path.to_path_buf(),
            directory,
            identity,
            is_dax: false,
            held: AtomicU64::new(0),
            lost: OnceLock::new(),
        };
        let file = opened.new_file(PAGE_SIZE)?;
        rustix::io::pwrite(&file, &[1; PAGE_SIZE as usize], 0)
            .map_err(failed("a file cannot be written"))?;
        let shown = shown_identity(&file).map_err(|source| FarError::Directory {
            path: path.to_path_buf(),
            what: "a file cannot be mapped",
            source,
        })?;
        if shown != Identity::of(file.as_fd()).ok() {
            return Err(FarError::Numbers(path.to_path_buf()));
        }
        let statx = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        opened.is_dax = statx.is_ok_and(|stat| {
            stat.stx_attributes_mask.contains(StatxAttributes::DAX)
                && stat.stx_attributes.contains(StatxAttributes::DAX)
        });
        Ok(opened)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Are its files mapped in place, without a copy in the page cache?
    pub fn is_dax(&self) -> bool {
        self.is_dax
    }

    /// Bytes of its file system.
    ///
    /// # Errors
    /// What `fstatvfs` says.
    pub fn bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.directory)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    /// Bytes that it holds and can hold, with what others have there now; 0 when it cannot be asked.
    pub(super) fn room(&self) -> u64 {
        let free = rustix::fs::fstatvfs(&self.directory)
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        free.saturating_add(self.held.load(Ordering::Relaxed))
    }

    /// Why it is not used any more.
    pub(super) fn problem(&self) -> Option<String> {
        if self.lost.get().is_none()
            && let Err(error) = self.check()
        {
            self.lose(&error);
        }
        self.lost.get().cloned()
    }

    /// Is it still found where it was?
    pub(super) fn check(&self) -> Result<(), FarError> {
        let there = rustix::fs::stat(&self.path).map_err(|error| FarError::Directory {
            path: self.path.clone(),
            what: "it cannot be looked at any more",
            source: error.into(),
        })?;
        let there = Identity {
            device: there.st_dev,
            inode: there.st_ino,
        };
        match there == self.identity {
            true => Ok(()),
            false => Err(FarError::Vanished(self.path.clone())),
        }
    }

    /// From now on it is of no use, if this error says so. The first reason is the one to be told.
    pub(super) fn lose(&self, error: &FarError) {
        if error.is_loss() && self.lost.set(with_causes(error)).is_ok() {
            let reason = with_causes(error);
            tracing::error!(reason, "the far memory is not used any more");
        }
    }

    /// A new file without a name, with room for that many bytes, which nobody else has.
    pub(crate) fn new_file(&self, bytes: u64) -> Result<OwnedFd, FarError> {
        let file = self.unnamed().map_err(|source| FarError::Directory {
            path: self.path.clone(),
            what: "a file without a name cannot be made",
            source: source.into(),
        })?;
        // A hole that finds no room later would end whoever reads it.
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(file),
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Err(FarError::Full {
                path: self.path.clone(),
                bytes,
            }),
            Err(error) => Err(FarError::Directory {
                path: self.path.clone(),
                what: "room for a file cannot be reserved",
                source: error.into(),
            }),
        }
    }

    fn unnamed(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        // Instances may open what they have mapped, by `/proc`: never for writing.
        let mode = Mode::RUSR;
        match rustix::fs::openat(&self.directory, ".", flags | OFlags::TMPFILE, mode) {
            // File systems that know no such files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let name = format!(".rouse-far-{}-{}", std::process::id(), next_number());
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                let file = rustix::fs::openat(&self.directory, &name, flags, mode)?;
                rustix::fs::unlinkat(&self.directory, &name, AtFlags::empty())?;
                Ok(file)
            }
            other => other,
        }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// How a mapping of a file shows up in `/proc/self/maps`.
fn shown_identity(file: &OwnedFd) -> io::Result<Option<Identity>> {
    let len = PAGE_SIZE as usize;
    // Code is mapped as well as data: a file system that allows no execution is no use.
    let protection = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            MapFlags::PRIVATE,
            file,
            0,
        )
    }?;
    let maps = std::fs::read_to_string("/proc/self/maps");
    // SAFETY: the mapping was made above, and nothing refers to it.
    unsafe { rustix::mm::munmap(base, len) }?;
    let prefix = format!("{:x}-", base as usize);
    Ok(maps?
        .lines()
        .find(|line| line.starts_with(&prefix))
        .and_then(identity_in))
}

/// `start-end perms offset major:minor inode name`
fn identity_in(line: &str) -> Option<Identity> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some(Identity {
        device: rustix::fs::makedev(number(major)?, number(minor)?),
        inode: fields.next()?.parse().ok()?,
    })
}

/// A descriptor of the same file that cannot write.
pub(super) fn read_only(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// What the kernel says of a file there.
pub(super) fn file_error(
    directory: &FarDirectory,
    what: &'static str,
) -> impl Fn(Errno) -> FarError {
    let path = directory.path.clone();
    move |error| FarError::File {
        path: path.clone(),
        what,
        source: error.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_recognised() {
        let line = "7f00-7f01 rwxp 00000000 fe:1a 4711       /mnt/far/#4711 (deleted)";
        let found = identity_in(line).unwrap();
        assert_eq!(found.device, rustix::fs::makedev(0xfe, 0x1a));
        assert_eq!(found.inode, 4711);
        assert_eq!(identity_in("7f00-7f01 rwxp"), None);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let error = FarDirectory::open(Path::new("/proc/version")).unwrap_err();
        assert!(error.is_loss() && error.to_string().contains("/proc/version"));
        // Nothing can be made there.
        assert!(FarDirectory::open(Path::new("/proc")).is_err());
    }
}
