//! A disk that can only be read: an image in a file.
//!
//! Each request is served as it comes, from the host's page cache into the guest's memory. What the guest may ask for is decided
//! in `request.rs`, before anything is done.

mod request;

pub use request::{HEADER, Request, RequestError};

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{Buffers, Event, GuestQueue, Violation, Violations, VirtioDevice, Work};
use crate::devices::{State, StateError};

/// Of a request's data: Linux merges as many pages as this into one.
const SEGMENTS: usize = 128;
/// And its header and its status.
const DESCRIPTORS: usize = SEGMENTS + 2;
/// So many requests, and then it is another device's turn.
const TURN: usize = 64;

/// An image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open the image {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not say how long it is.
    #[error("cannot read the length of the image of the disk {name}")]
    Length {
        /// The disk.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Its name is longer than a disk's name can be.
    #[error("a disk's name has at most {VIRTIO_BLK_ID_BYTES} bytes: {0}")]
    Name(String),
}

/// The disk.
#[derive(Debug)]
pub struct Block {
    image: File,
    /// In sectors. What does not fill the last one is not there.
    sectors: u64,
    name: [u8; VIRTIO_BLK_ID_BYTES as usize],
}

impl Block {
    /// A disk with what is in the file `image`, whose position nobody else uses. The guest sees it by `name` (its serial
    /// number).
    ///
    /// # Errors
    /// If the image has no length, or the name is too long.
    pub fn new(name: &str, mut image: File) -> Result<Self, DiskError> {
        // A jailed process may seek, and not ask for a file's metadata: the C library does that by a path.
        let length = image.seek(SeekFrom::End(0));
        let length = length.map_err(|source| DiskError::Length {
            name: name.to_owned(),
            source,
        })?;
        let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
        bytes
            .get_mut(..name.len())
            .ok_or_else(|| DiskError::Name(name.to_owned()))?
            .copy_from_slice(name.as_bytes());
        Ok(Self {
            image,
            sectors: length / request::SECTOR,
            name: bytes,
        })
    }

    /// Serves one request: how many bytes were written for the guest.
    fn answer(
        &mut self,
        buffers: &Buffers,
        memory: &GuestMemoryMmap,
        notes: &mut Violations,
    ) -> Result<u32, Violation> {
        let mut header = [0; HEADER];
        buffers.read(memory, 0, &mut header)?;
        let status_at = buffers
            .writable()
            .checked_sub(1)
            .ok_or(Violation::Small("for the status of a request"))?;
        let more = buffers.readable() - HEADER as u64;
        let (status, length) = match Request::parse(header, more, status_at, self.sectors) {
            Ok(Request::Read { offset, length }) => {
                match self.read(buffers, memory, offset, length) {
                    Ok(()) => (VIRTIO_BLK_S_OK, length),
                    // The image is damaged or gone. That is not the guest's fault.
                    Err(_) => (VIRTIO_BLK_S_IOERR, 0),
                }
            }
            Ok(Request::Name { length }) => {
                buffers.write(memory, 0, &self.name[..length])?;
                (VIRTIO_BLK_S_OK, length as u64)
            }
            Err(error) => {
                notes.note(&error);
                match error {
                    RequestError::Unknown(_) => (VIRTIO_BLK_S_UNSUPP, 0),
                    _ => (VIRTIO_BLK_S_IOERR, 0),
                }
            }
        };
        let status = u8::try_from(status).expect("a status is a small number");
        buffers.write(memory, status_at, &[status])?;
        Ok(u32::try_from(length + 1).expect("requests are short"))
    }

    fn read(
        &mut self,
        buffers: &Buffers,
        memory: &GuestMemoryMmap,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.image.seek(SeekFrom::Start(offset))?;
        for part in buffers.writable_parts(0, length) {
            memory
                .read_exact_volatile_from(part.address, &mut self.image, part.length as usize)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    const KIND: u32 = VIRTIO_ID_BLOCK;
    const QUEUES: &'static [u16] = &[128];

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_SEG_MAX
    }

    fn config(&self) -> Vec<u8> {
        let segments = u32::try_from(SEGMENTS).expect("a small number");
        let mut bytes = self.sectors.to_le_bytes().to_vec();
        // The greatest segment is not offered.
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(segments.to_le_bytes());
        bytes
    }

    fn serve(
        &mut self,
        _event: Event,
        queues: &mut [GuestQueue],
        memory: &GuestMemoryMmap,
        notes: &mut Violations,
    ) -> Result<Work, Violation> {
        let [queue] = queues else {
            unreachable!("a disk has one queue")
        };
        for _ in 0..TURN {
            let Some(buffers) = queue.pop(memory, DESCRIPTORS)? else {
                return Ok(Work::Done);
            };
            let written = self.answer(&buffers, memory, notes)?;
            queue.finish(memory, &buffers, written)?;
        }
        Ok(Work::More)
    }

    /// It may be another disk of the same name: a driver reads what it is when it begins.
    fn restore_unused(&mut self, saved: SavedBlock) -> Result<(), StateError> {
        match saved.name == self.name {
            true => Ok(()),
            false => self.restore(saved),
        }
    }

    fn reset(&mut self) {}
}

/// What a disk is recognised by.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBlock {
    sectors: u64,
    name: [u8; VIRTIO_BLK_ID_BYTES as usize],
}

impl State for Block {
    const NAME: &'static str = "block";
    const VERSION: u16 = 1;
    type Saved = SavedBlock;

    fn save(&self) -> SavedBlock {
        SavedBlock {
            sectors: self.sectors,
            name: self.name,
        }
    }

    fn restore(&mut self, saved: SavedBlock) -> Result<(), StateError> {
        // The guest has parts of the image in its memory.
        if saved == self.save() {
            Ok(())
        } else {
            Err(StateError::Impossible {
                name: Self::NAME,
                reason: "it was another disk".to_owned(),
            })
        }
    }
}
