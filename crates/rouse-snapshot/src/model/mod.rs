//! What a snapshot knows about a process or a virtual machine, as plain valid types.
//!
//! `rouse-process::checkpoint` fills these from a stopped process, `rouse-process::plan` turns
//! them into the operation list of the restorer. A [`MachineSnapshot`] is filled and used by
//! `rouse-vmm`. Nothing here talks to the kernel.

mod machine;
mod memory;
mod memory_image;
mod open_files;
mod process;
mod thread;
mod tmp;

pub use machine::*;
pub use memory::*;
pub use memory_image::*;
pub use open_files::*;
pub use process::*;
pub use thread::*;
pub use tmp::*;

/// Bytes in a page. rouse runs on x86-64 only, where this is a constant of the architecture.
pub const PAGE_SIZE: u64 = 4096;

/// Everything about one process that a restore needs, but for the bytes of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSnapshot {
    /// The host on which the snapshot was taken; a restore elsewhere is refused.
    pub host: HostFingerprint,
    /// State that belongs to the process as a whole.
    pub process: ProcessState,
    /// All threads; the first is the leader (its tid is the pid). Tids as seen in the sandbox.
    pub threads: Vec<Thread>,
    /// Mappings sorted by address, without overlap.
    pub mappings: Vec<Mapping>,
    /// Files that mappings, descriptors and the executable refer to, by [`FileId`].
    pub files: Vec<FileRef>,
    /// Open file descriptions, by [`DescriptionId`]. Several descriptors may share one.
    pub descriptions: Vec<Description>,
    /// File descriptors, sorted by number.
    pub descriptors: Vec<Descriptor>,
    /// What lies in `/tmp`, parents before children.
    pub tmp: Vec<TmpEntry>,
    /// Length of its own pool in pages.
    pub pool_pages: u64,
    /// Pools of other snapshots that runs may lie in: those that the process was itself started
    /// from, and did not write to. Empty when the snapshot stands alone.
    pub parents: Vec<ParentPool>,
}

/// The pool of a snapshot from which this one descends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentPool {
    /// [Identity](crate::manifest::Binding::pool) of the pool.
    pub pool: [u8; 32],
    /// Its length in pages.
    pub pages: u64,
}

/// Identifies the host a snapshot belongs to. All fields must be equal at restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFingerprint {
    /// `uname -r` and `uname -v`, joined by a space.
    pub kernel: String,
    /// BLAKE3 of the vDSO's bytes: code of the function may hold addresses into it.
    pub vdso: [u8; 32],
    /// BLAKE3 of the CPU vendor, model and feature flags of `/proc/cpuinfo`.
    pub cpu: [u8; 32],
    /// Bytes of the XSAVE area in standard format, as `PTRACE_GETREGSET` returns it.
    pub xsave_len: u32,
    /// `boot_id` of the kernel: says whether monotonic clocks can be compared directly.
    pub boot_id: [u8; 16],
}

/// Index into [`ProcessSnapshot::files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Index into [`ProcessSnapshot::descriptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DescriptionId(pub u32);

/// A file outside the snapshot, with what proves that it is still the same file.
///
/// The identity is that of the file on the host, not of the overlay through which the function
/// sees it: an overlay reports another device number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    /// Path as the function sees it.
    pub path: Vec<u8>,
    /// Path on the host through which the node opens it.
    pub host_path: Vec<u8>,
    /// Device number on the host.
    pub device: u64,
    /// Inode number on the host.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, ns since the epoch.
    pub mtime_ns: i128,
    /// Change time, ns since the epoch: also moves when the contents are put back by `touch`.
    pub ctime_ns: i128,
}
