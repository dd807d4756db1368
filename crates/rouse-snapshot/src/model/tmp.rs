//! What lies in `/tmp`.

use super::PageRun;

/// One file, directory or link below `/tmp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpEntry {
    /// Absolute path in the sandbox.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last access, ns since the epoch.
    pub accessed_ns: i128,
    /// Time of the last modification, ns since the epoch.
    pub modified_ns: i128,
    /// What it is.
    pub kind: TmpKind,
}

/// Kinds of [`TmpEntry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TmpKind {
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Runs of saved pages; `address` is the offset in the file. What none covers is a hole.
        saved: Vec<PageRun>,
    },
    /// Another name of a file that comes before it; mode and times are those of that file.
    HardLink {
        /// Path in the sandbox of the file.
        target: Vec<u8>,
    },
    /// A named pipe that nobody has open.
    Fifo,
    /// The name of a UNIX socket: of one that is bound there, or of one that is gone.
    Socket,
}
