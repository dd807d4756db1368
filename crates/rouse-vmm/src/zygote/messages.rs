//! What supervisor and VMM say to each other.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

use rouse_pool::PoolId;
use rouse_pool::keeper::PoolMapping;
use rouse_snapshot::manifest::Subject;
use rouse_snapshot::model::MachineSnapshot;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::kernel::KernelFormat;
use crate::machine::Ended;

/// A pool, whose descriptor comes with the order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GivenLayer {
    pub pages: u64,
    /// Its name, if pages may be absent.
    pub pool: Option<u64>,
    /// By what a child of the snapshot names it, if it is on disk.
    pub identity: Option<[u8; 32]>,
}

/// What a machine is made of. Its descriptors come with the order: of the snapshot and the console, then of all these, one each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parts {
    pub layers: Vec<GivenLayer>,
    /// Names of its disks.
    pub disks: Vec<String>,
    /// Ports to which its guest may connect, if it can connect.
    pub ports: Option<Vec<u32>>,
}

/// A machine that is to be booted. Its descriptors come with the order: of the console, the kernel and its initramfs, then of
/// the devices of `parts`, which has no layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fresh {
    pub memory_mib: u32,
    pub vcpus: u8,
    pub command_line: String,
    pub kernel: KernelFormat,
    pub parts: Parts,
}

/// To the VMM.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// A machine from nothing.
    Boot(Fresh),
    /// A machine from a snapshot.
    Restore(Parts),
    /// The memory may be touched.
    Go,
    /// Put the machine back to its snapshot, and let it go on.
    Rewind,
    /// Write the machine down, and let it go on. With images of its disks, whose descriptors come with the order.
    Snapshot(Vec<GivenLayer>),
}

/// From the VMM.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is jailed.
    Ready,
    /// With a userfaultfd, if pages may be absent: guest memory begins at this address.
    Mapped {
        base: u64,
    },
    Restored,
    Booted,
    Rewound {
        pages: u64,
    },
    /// With descriptors of the snapshot and the pool.
    Written,
    Ended(Ended),
    /// The sentence that says why.
    Failed(String),
}

/// A message's bytes.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).expect("plain data can always be encoded")
}

/// Bytes for another process, which cannot change them any more.
pub fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("snapshot", flags)?;
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::pwrite(file.as_fd(), &bytes[done..], done as u64)?;
    }
    rouse_pool::seal(file.as_fd())?;
    Ok(file)
}

/// The machine in a file that [`memory_file`] has made.
pub fn read_snapshot(file: OwnedFd) -> Result<MachineSnapshot, String> {
    /// Larger manifests are none.
    const MOST: u64 = 64 << 20;
    let mut bytes = Vec::new();
    // From its beginning, wherever the position is that both processes share.
    let mut file = File::from(file);
    file.rewind()
        .and_then(|()| file.take(MOST).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match MachineSnapshot::decode(&bytes) {
        Ok(manifest) => Ok(manifest.snapshot),
        Err(error) => Err(error.to_string()),
    }
}

/// What of a memory at `base` the pager must know.
pub fn mappings(base: u64, snapshot: &MachineSnapshot, layers: &[GivenLayer]) -> Vec<PoolMapping> {
    let mapping = |run: &rouse_snapshot::model::PageRun| {
        let pool = layers.get(run.pool())?.pool?;
        Some(PoolMapping {
            address: base + run.address,
            pages: run.pages,
            pool: PoolId(pool),
            pool_page: run.page_in_pool(),
        })
    };
    snapshot.memory.iter().filter_map(mapping).collect()
}
