//! The table of files that a snapshot refers to, with the proof of their identity.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rouse_snapshot::model::{FileId, FileRef};

/// Files by number.
pub(super) struct FileTable<'a> {
    host_path: &'a dyn Fn(&[u8]) -> Option<PathBuf>,
    files: Vec<FileRef>,
    /// By path in the sandbox, inode and size as the function sees them.
    known: HashMap<(Vec<u8>, u64, u64), Option<FileId>>,
}

impl<'a> FileTable<'a> {
    pub(super) fn new(host_path: &'a dyn Fn(&[u8]) -> Option<PathBuf>) -> Self {
        Self {
            host_path,
            files: Vec::new(),
            known: HashMap::new(),
        }
    }

    pub(super) fn into_files(self) -> Vec<FileRef> {
        self.files
    }

    /// The regular file that the process has open or mapped as `path`. `link` leads to what it really has:
    /// a link below `/proc/PID/fd` or `/proc/PID/map_files`, or `/proc/PID/exe`.
    ///
    /// `None` when the host has no such file at that path (any more).
    pub(super) fn identify(&mut self, path: &[u8], link: &str) -> Option<FileId> {
        let seen = fs::metadata(link).ok()?;
        let key = (path.to_vec(), seen.ino(), seen.size());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let id = self.on_host(path, &seen, link).map(|file| {
            self.files.push(file);
            FileId(self.files.len() as u32 - 1)
        });
        self.known.insert(key, id);
        id
    }

    /// A file that an earlier snapshot knew.
    pub(super) fn adopt(&mut self, file: &FileRef) -> FileId {
        if let Some(known) = self.files.iter().position(|known| known == file) {
            return FileId(known as u32);
        }
        self.files.push(file.clone());
        FileId(self.files.len() as u32 - 1)
    }

    fn on_host(&self, path: &[u8], seen: &Metadata, link: &str) -> Option<FileRef> {
        let host_path = (self.host_path)(path)?;
        let host = fs::metadata(&host_path).ok()?;
        if !host.is_file() || host.size() != seen.size() {
            return None;
        }
        // An overlay shows another device number, but the inode number of the file below it; where it does not
        // (layers on several file systems), the bytes decide.
        let same_file = host.ino() == seen.ino() && mtime_ns(&host) == mtime_ns(seen);
        if !same_file && hash(Path::new(link))? != hash(&host_path)? {
            return None;
        }
        Some(FileRef {
            path: path.to_vec(),
            host_path: host_path.into_os_string().into_vec(),
            device: host.dev(),
            inode: host.ino(),
            size: host.size(),
            mtime_ns: mtime_ns(&host),
            ctime_ns: i128::from(host.ctime()) * 1_000_000_000 + i128::from(host.ctime_nsec()),
        })
    }
}

fn mtime_ns(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

fn hash(path: &Path) -> Option<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).ok()?).ok()?;
    Some(hasher.finalize())
}

/// A path of bytes.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
