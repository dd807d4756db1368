//! A directory whose files can be read at so many bytes a second and no faster: a FUSE file system in front of it.
//!
//! The kernel's own limit (`blkio.throttle.read_bps_device`, `io.max`) is of no use for this. It counts in slices of 100
//! ms: after a pause, a twentieth of a gigabyte passes unhindered at 500 MB/s, which is more than any snapshot's
//! working set. Here each read ends when a disk of that speed would be done with it and with all reads before it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, PollEvents, PollFlags,
    PollNotifier, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll, Request,
    SessionACL,
};

/// How long the kernel may believe what it was told of a file. They do not change.
const TTL: Duration = Duration::from_secs(60);
/// Requests that are served at the same time.
const THREADS: usize = 4;
/// Bytes that the kernel may ask for at once.
const MAX_READ: u32 = 1 << 20;

/// A mounted file system; unmounted when it is dropped.
pub struct Paced(Option<BackgroundSession>);

impl Paced {
    /// Covers `directory` with a read-only view of its files that is read at `bytes_per_second`.
    ///
    /// # Errors
    /// What opening the directory or mounting says.
    pub fn mount(directory: &Path, bytes_per_second: u64) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::FSName("rouse-bench-paced".into()),
        ];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let files = Files {
            // What is below the mount stays reachable through this.
            directory: File::open(directory)?,
            open: Mutex::default(),
            disk: Disk {
                bytes_per_second,
                free_at: Mutex::new(Instant::now()),
            },
        };
        let session = fuser::spawn_mount(files, directory, &config)?;
        Ok(Self(Some(session)))
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        if let Some(session) = self.0.take()
            && let Err(error) = session.umount_and_join()
        {
            tracing::warn!(%error, "the paced file system could not be unmounted");
        }
    }
}

/// One read after the other.
struct Disk {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Disk {
    /// When a read of so many bytes that is asked for now is over.
    fn end_of(&self, bytes: u64) -> Instant {
        let takes = Duration::from_nanos(bytes * 1_000_000_000 / self.bytes_per_second);
        let mut free_at = lock(&self.free_at);
        *free_at = (*free_at).max(Instant::now()) + takes;
        *free_at
    }
}

/// A file's attributes, and its bytes.
type Contents = (FileAttr, Arc<Vec<u8>>);

struct Files {
    directory: File,
    /// Contents of files that were looked up: serving them must take no longer than the disk that is played.
    open: Mutex<HashMap<u64, Contents>>,
    disk: Disk,
}

impl Files {
    fn path(&self, name: &OsStr) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(name)
    }

    fn find(&self, name: &OsStr) -> io::Result<FileAttr> {
        let file = File::open(self.path(name))?;
        let metadata = file.metadata()?;
        let number = metadata.ino();
        if let Some((attributes, _)) = lock(&self.open).get(&number) {
            return Ok(*attributes);
        }
        let mut bytes = vec![0; metadata.len() as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let attributes = attributes(INodeNo(number), &metadata);
        lock(&self.open).insert(number, (attributes, Arc::new(bytes)));
        Ok(attributes)
    }

    fn file(&self, number: INodeNo) -> Option<Contents> {
        lock(&self.open).get(&number.0).cloned()
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(name) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As much as the kernel grants: the pager reads up to 256 KiB at a time.
        if let Err(granted) = config.set_max_readahead(MAX_READ) {
            let _ = config.set_max_readahead(granted);
        }
        Ok(())
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if number == INodeNo::ROOT {
            return match self.directory.metadata() {
                Ok(metadata) => reply.attr(&TTL, &attributes(number, &metadata)),
                Err(error) => reply.error(error.into()),
            };
        }
        match self.file(number) {
            Some((attributes, _)) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing may be remembered between reads.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, bytes)) = self.file(number) else {
            return reply.error(Errno::ENOENT);
        };
        let start = (offset as usize).min(bytes.len());
        let end = (start + size as usize).min(bytes.len());
        let over = self.disk.end_of((end - start) as u64);
        thread::sleep(over.saturating_duration_since(Instant::now()));
        reply.data(&bytes[start..end]);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then takes files for always readable.
        reply.error(Errno::ENOSYS);
    }
}

fn attributes(number: INodeNo, metadata: &Metadata) -> FileAttr {
    let is_dir = metadata.is_dir();
    FileAttr {
        ino: number,
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_dir {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if is_dir { 0o500 } else { 0o400 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Reads of [`speed`] at the same time: as a program that reads ahead.
const READERS: u64 = 4;
/// Bytes of each of them.
const READ: u64 = 256 * 1024;

/// How fast a file is read in pieces of 256 KiB, four at a time, bytes a second.
pub fn speed(file: &Path) -> io::Result<f64> {
    let file = File::open(file)?;
    let len = file.metadata()?.len();
    let begin = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|first| {
                let file = &file;
                scope.spawn(move || {
                    let mut bytes = vec![0; READ as usize];
                    (first * READ..len)
                        .step_by((READERS * READ) as usize)
                        .try_for_each(|at| {
                            let part = &mut bytes[..READ.min(len - at) as usize];
                            file.read_exact_at(part, at)
                        })
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
        })
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a speed is an estimate")]
    Ok(len as f64 / begin.elapsed().as_secs_f64())
}

/// The largest file of a directory.
pub fn largest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut largest = (0, None);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let len = entry.metadata()?.len();
        if len > largest.0 {
            largest = (len, Some(entry.path()));
        }
    }
    Ok(largest.1)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_queue_up() {
        let disk = Disk {
            bytes_per_second: 1_000_000,
            free_at: Mutex::new(Instant::now()),
        };
        let first = disk.end_of(500_000);
        assert_eq!(disk.end_of(250_000) - first, Duration::from_millis(250));
    }

    #[test]
    fn files_read_the_same_through_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bytes: Vec<u8> = (0..1_000_003_u32).map(|i| (i / 7) as u8).collect();
        fs::write(dir.path().join("a.pack"), &bytes).expect("write");
        let paced = Paced::mount(dir.path(), 1_000_000_000).expect("mount");
        assert_eq!(fs::read(dir.path().join("a.pack")).expect("read"), bytes);
        assert!(fs::read(dir.path().join("b.pack")).is_err());
        assert!(fs::write(dir.path().join("c.pack"), b"x").is_err());
        drop(paced);
        fs::write(dir.path().join("c.pack"), b"x").expect("unmounted");
    }
}
