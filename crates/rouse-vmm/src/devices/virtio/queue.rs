//! Virtqueues, and the buffers that a guest puts into them.
//!
//! A queue lies in the guest's memory, so all of it may be anything, and may change while it is looked at. A chain of
//! descriptors is therefore read once, into [`Buffers`]: from then on it is known to be short, in order and in memory, and
//! nothing that the guest does can change that.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// A guest broke the rules of a device. The device does nothing more until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A queue that was said to be ready cannot be used.
    #[error("queue {0} does not lie in memory")]
    Place(usize),
    /// The ring makes no sense.
    #[error("a ring makes no sense: {0}")]
    Ring(virtio_queue::Error),
    /// More descriptors than a device takes.
    #[error("a chain has more than {0} descriptors")]
    Long(usize),
    /// A chain leads on to where no descriptor is.
    #[error("a chain is broken")]
    Broken,
    /// What the device reads must come first.
    #[error("a chain has what is read behind what is written")]
    Order,
    /// Not in the guest's memory.
    #[error("a buffer of {length} bytes at {address:#x} does not lie in memory")]
    Outside {
        /// In the guest.
        address: u64,
        /// In bytes.
        length: u32,
    },
    /// The chain is too small for what it is meant for.
    #[error("a chain is too small: {0}")]
    Small(&'static str),
}

/// A part of the guest's memory that was seen to be there. It is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte.
    pub address: GuestAddress,
    /// In bytes.
    pub length: u32,
}

/// What one chain of descriptors holds.
#[derive(Debug)]
pub struct Buffers {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Buffers {
    fn parse(
        mut chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        most: usize,
    ) -> Result<Self, Violation> {
        let mut buffers = Self {
            head: chain.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut more = true;
        for count in 0.. {
            let Some(descriptor) = chain.next() else {
                break;
            };
            if count == most {
                return Err(Violation::Long(most));
            }
            more = descriptor.has_next();
            let segment = Segment {
                address: descriptor.addr(),
                length: descriptor.len(),
            };
            if segment.length == 0 {
                continue;
            }
            let length = segment.length as usize;
            let (access, list) = if descriptor.is_write_only() {
                (Permissions::Write, &mut buffers.writable)
            } else if buffers.writable.is_empty() {
                (Permissions::Read, &mut buffers.readable)
            } else {
                return Err(Violation::Order);
            };
            if !GuestMemory::check_range(memory, segment.address, length, access) {
                return Err(Violation::Outside {
                    address: segment.address.0,
                    length: segment.length,
                });
            }
            list.push(segment);
        }
        // The iterator ends early where it meets something that is wrong.
        if more {
            Err(Violation::Broken)
        } else {
            Ok(buffers)
        }
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        total(&self.writable)
    }

    /// Reads `bytes`, from `offset` of what is readable on.
    ///
    /// # Errors
    /// If it is less.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), Violation> {
        let mut rest = bytes;
        for part in parts(&self.readable, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(part.length as usize);
            memory
                .read_slice(now, part.address)
                .map_err(|_| outside(part))?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Violation::Small("to read"))
        }
    }

    /// Writes `bytes`, from `offset` of what is writable on.
    ///
    /// # Errors
    /// If there is less room.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let mut rest = bytes;
        for part in parts(&self.writable, offset, rest.len() as u64) {
            let (now, later) = rest.split_at(part.length as usize);
            memory
                .write_slice(now, part.address)
                .map_err(|_| outside(part))?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Violation::Small("to write"))
        }
    }

    /// The segments of `length` writable bytes from `offset` on, as far as there are so many.
    pub fn writable_parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Segment> + '_ {
        parts(&self.writable, offset, length)
    }
}

fn outside(part: Segment) -> Violation {
    Violation::Outside {
        address: part.address.0,
        length: part.length,
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|part| u64::from(part.length)).sum()
}

fn parts(segments: &[Segment], offset: u64, length: u64) -> impl Iterator<Item = Segment> + '_ {
    let end = offset.saturating_add(length);
    let mut position = 0;
    segments.iter().filter_map(move |segment| {
        let begin = position;
        position += u64::from(segment.length);
        let (from, to) = (offset.max(begin), end.min(position));
        (from < to).then(|| Segment {
            address: GuestAddress(segment.address.0 + (from - begin)),
            length: u32::try_from(to - from).expect("no longer than the segment"),
        })
    })
}

/// One queue of a device.
#[derive(Debug)]
pub struct GuestQueue {
    queue: Queue,
    /// Something was put into the used ring that the guest was not told of.
    used: bool,
}

impl GuestQueue {
    /// With so many entries at most, a power of two.
    pub fn new(size: u16) -> Self {
        Self {
            queue: Queue::new(size).expect("devices have queues of sizes that are powers of two"),
            used: false,
        }
    }

    /// As the driver set it up.
    pub fn ring(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Its state, for a snapshot.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// A queue in the state of `state`, which must have been one of `size`.
    ///
    /// # Errors
    /// If no queue can be in that state, or it does not lie in memory.
    pub fn with_state(
        state: QueueState,
        size: u16,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, String> {
        if state.max_size != size {
            return Err(format!(
                "a queue has {} entries, not {size}",
                state.max_size
            ));
        }
        let queue = Queue::try_from(state).map_err(|error| error.to_string())?;
        if queue.ready() && !queue.is_valid(memory) {
            return Err("a queue does not lie in memory".to_owned());
        }
        Ok(Self { queue, used: false })
    }

    /// Whether the driver has set it up, and it can be used.
    pub fn usable(&self, memory: &GuestMemoryMmap) -> bool {
        self.queue.is_valid(memory)
    }

    /// Takes the next chain, of at most `most` descriptors.
    ///
    /// # Errors
    /// If ring or chain are wrong.
    pub fn pop(
        &mut self,
        memory: &GuestMemoryMmap,
        most: usize,
    ) -> Result<Option<Buffers>, Violation> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let next = self.queue.iter(memory).map_err(Violation::Ring)?.next();
        next.map(|chain| Buffers::parse(chain, memory, most))
            .transpose()
    }

    /// Puts the chain back that was taken last.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives `buffers` back to the guest, of which `written` bytes were written.
    ///
    /// # Errors
    /// If the ring is wrong.
    pub fn finish(
        &mut self,
        memory: &GuestMemoryMmap,
        buffers: &Buffers,
        written: u32,
    ) -> Result<(), Violation> {
        self.queue
            .add_used(memory, buffers.head, written)
            .map_err(Violation::Ring)?;
        self.used = true;
        Ok(())
    }

    /// Whether the guest must be told of something. It is, after this.
    pub fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_the_bytes_that_were_asked_for(
            lengths in prop::collection::vec(1_u32..20, 0..6),
            offset in 0_u64..80,
            length in prop_oneof![0_u64..80, Just(u64::MAX)],
        ) {
            let segments: Vec<Segment> = (1_u64..)
                .zip(lengths)
                .map(|(place, length)| Segment { address: GuestAddress(place << 12), length })
                .collect();
            // Each byte's address, one by one.
            let bytes = |part: &Segment| (0..part.length).map(|at| part.address.0 + u64::from(at)).collect::<Vec<_>>();
            let wanted: Vec<u64> = segments
                .iter()
                .flat_map(bytes)
                .skip(usize::try_from(offset).expect("small"))
                .take(usize::try_from(length).expect("64 bits"))
                .collect();
            let found: Vec<Segment> = parts(&segments, offset, length).collect();
            prop_assert!(found.iter().all(|part| part.length > 0));
            prop_assert_eq!(found.iter().flat_map(bytes).collect::<Vec<_>>(), wanted);
        }
    }
}
