//! The balloon: by it the guest's kernel tells which of its memory holds nothing, and the host takes that back.
//!
//! A kernel does so by itself for what has been free for some seconds ("free page reporting"). It is never asked for more than
//! that. A page that was given back has some old content, or zeros, when it is touched again, and the kernel does not care which.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Buffers, Event, GuestQueue, Violation, Violations, VirtioDevice, Work};
use crate::devices::{State, StateError};

const PAGE: u64 = 4096;
/// Feature: pages are reported that are free.
const REPORTING: u32 = 5;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORT: usize = 2;
/// Linux sends so many page numbers at once, in one buffer.
const NUMBERS: usize = 256;
/// Linux reports so many ranges at once.
const RANGES: usize = 32;
/// So many chains, and then it is another device's turn.
const TURN: usize = 64;

/// Pages of a guest that hold nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeRange {
    /// Of its first page.
    pub address: GuestAddress,
    /// In bytes, a number of pages; not 0.
    pub length: u64,
}

impl FreeRange {
    /// The whole pages of `length` bytes from `address` on, if there are any.
    #[must_use]
    pub fn within(address: u64, length: u64) -> Option<Self> {
        let begin = address.checked_next_multiple_of(PAGE)?;
        let end = address.checked_add(length)? / PAGE * PAGE;
        (begin < end).then(|| Self {
            address: GuestAddress(begin),
            length: end - begin,
        })
    }
}

/// Whoever has the guest's memory, and can take some of it back.
pub trait FreePages: Send + Sync {
    /// Takes `range` back. It lies in the guest's memory.
    ///
    /// # Errors
    /// If the host refuses it. The guest does not care.
    fn give_back(&self, memory: &GuestMemoryMmap, range: FreeRange) -> io::Result<()>;
}

/// For private memory: the pages are forgotten.
#[derive(Debug, Default)]
pub struct Forget;

impl FreePages for Forget {
    fn give_back(&self, memory: &GuestMemoryMmap, range: FreeRange) -> io::Result<()> {
        let length = usize::try_from(range.length).map_err(io::Error::other)?;
        let slice = GuestMemoryBackend::get_slice(memory, range.address, length)
            .map_err(io::Error::other)?;
        let place = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: the slice was seen to be `length` bytes of the guest's memory, which stays mapped while `memory` lives.
        // All access to it is by volatile copies, which do not mind that its bytes change.
        unsafe { rustix::mm::madvise(place, length, rustix::mm::Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

/// The device.
pub struct Balloon {
    owner: Arc<dyn FreePages>,
    /// Pages that the guest says it has given.
    given: u32,
}

impl Balloon {
    /// What is given back goes to `owner`.
    #[must_use]
    pub fn new(owner: Arc<dyn FreePages>) -> Self {
        Self { owner, given: 0 }
    }

    fn give_back(&self, memory: &GuestMemoryMmap, range: FreeRange) {
        // Memory that stays in use costs no more than before.
        if let Err(error) = self.owner.give_back(memory, range) {
            tracing::debug!(%error, address = range.address.0, "free pages stay in memory");
        }
    }

    fn inflate(&self, buffers: &Buffers, memory: &GuestMemoryMmap) -> Result<(), Violation> {
        let count = usize::try_from(buffers.readable() / 4).unwrap_or(usize::MAX);
        if count > NUMBERS {
            return Err(Violation::Long(NUMBERS));
        }
        let mut numbers = vec![0; count * 4];
        buffers.read(memory, 0, &mut numbers)?;
        for number in numbers.as_chunks().0 {
            let address = u64::from(u32::from_le_bytes(*number)) * PAGE;
            if !memory.check_range(GuestAddress(address), 4096) {
                return Err(Violation::Outside {
                    address,
                    length: 4096,
                });
            }
            if let Some(range) = FreeRange::within(address, PAGE) {
                self.give_back(memory, range);
            }
        }
        Ok(())
    }

    fn report(&self, buffers: &Buffers, memory: &GuestMemoryMmap) {
        for part in buffers.writable_parts(0, u64::MAX) {
            if let Some(range) = FreeRange::within(part.address.0, part.length.into()) {
                self.give_back(memory, range);
            }
        }
    }
}

impl VirtioDevice for Balloon {
    const KIND: u32 = VIRTIO_ID_BALLOON;
    const QUEUES: &'static [u16] = &[64, 64, 64];

    fn features(&self) -> u64 {
        1 << REPORTING
    }

    fn config(&self) -> Vec<u8> {
        // The first number is how many pages the host wants.
        [0, self.given].map(u32::to_le_bytes).concat()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (4, Ok(data)) = (offset, data.try_into()) {
            self.given = u32::from_le_bytes(data);
        }
    }

    fn serve(
        &mut self,
        event: Event,
        queues: &mut [GuestQueue],
        memory: &GuestMemoryMmap,
        _notes: &mut Violations,
    ) -> Result<Work, Violation> {
        let Event::Queue(number) = event else {
            return Ok(Work::Done);
        };
        let queue = &mut queues[number];
        for _ in 0..TURN {
            let Some(buffers) = queue.pop(memory, RANGES)? else {
                return Ok(Work::Done);
            };
            match number {
                INFLATE => self.inflate(&buffers, memory)?,
                REPORT => self.report(&buffers, memory),
                // A page that is touched again is there.
                DEFLATE => {}
                _ => unreachable!("a balloon has three queues"),
            }
            queue.finish(memory, &buffers, 0)?;
        }
        Ok(Work::More)
    }

    fn reset(&mut self) {
        self.given = 0;
    }
}

/// What the guest has said.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedBalloon {
    given: u32,
}

impl State for Balloon {
    const NAME: &'static str = "balloon";
    const VERSION: u16 = 1;
    type Saved = SavedBalloon;

    fn save(&self) -> SavedBalloon {
        SavedBalloon { given: self.given }
    }

    fn restore(&mut self, saved: SavedBalloon) -> Result<(), StateError> {
        self.given = saved.given;
        Ok(())
    }
}
