//! Connections between programs in the guest and the node ("vsock"). The host's end of them is in this process: so it is saved
//! and restored with the machine, and connections stay open across that.
//!
//! The guest opens all connections. When it connects to port N, this side gets it to the node (`dialer.rs`): to the Unix socket N
//! in the machine's directory, or out of a jail.
//!
//! Flow control holds both ways: the guest cannot make this process keep more than `connection.rs` says, and the node's data
//! stays in its socket until the guest has room for it.

mod connection;
mod dialer;
mod hub;
mod packet;

pub use dialer::{Connections, Dialer, Incoming};
pub use packet::{Credit, HEADER, Operation, Packet, PacketError, Ports};

use std::io;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;

use super::{Event, GuestQueue, Violation, Violations, VirtioDevice, Work};
use crate::devices::{State, StateError};
use connection::SavedConnection;
use hub::{Hub, MOST_CONNECTIONS, Next};

/// The guest's number. Machines do not see each other, so all have the same: a clone need not be told a new one.
pub const GUEST: u64 = 3;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// A packet's header and data may lie in many pieces.
const DESCRIPTORS: usize = 64;
/// So many packets each way, and then it is another device's turn.
const TURN: usize = 64;

/// The host's end of connections cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for sockets")]
pub struct VsockError(#[from] io::Error);

/// The device.
pub struct VsockDevice {
    hub: Hub,
    data: Vec<u8>,
}

impl VsockDevice {
    /// Connections lead to the node by `dialer`.
    ///
    /// # Errors
    /// If the system refuses what it waits with.
    pub fn new(dialer: Dialer) -> Result<Self, VsockError> {
        Ok(Self {
            hub: Hub::new(dialer)?,
            data: vec![0; packet::MOST as usize],
        })
    }

    /// Takes what the guest sends. Returns how many packets there were.
    fn transmit(
        &mut self,
        queue: &mut GuestQueue,
        memory: &GuestMemoryMmap,
        notes: &mut Violations,
    ) -> Result<usize, Violation> {
        for count in 0..TURN {
            if self.hub.is_full() {
                return Ok(count);
            }
            let Some(buffers) = queue.pop(memory, DESCRIPTORS)? else {
                return Ok(count);
            };
            let mut header = [0; HEADER];
            buffers.read(memory, 0, &mut header)?;
            match Packet::parse(header, GUEST, buffers.readable() - HEADER as u64) {
                Ok(packet) => {
                    let length = match packet.operation {
                        Operation::Data(length) => length as usize,
                        _ => 0,
                    };
                    let data = &mut self.data[..length];
                    buffers.read(memory, HEADER as u64, data)?;
                    self.hub.take(packet, data, notes);
                }
                Err(error) => notes.note(&error),
            }
            queue.finish(memory, &buffers, 0)?;
        }
        Ok(TURN)
    }

    /// Gives the guest what is there for it, as far as it has buffers. Returns how many packets there were.
    fn receive(
        &mut self,
        queue: &mut GuestQueue,
        memory: &GuestMemoryMmap,
    ) -> Result<usize, Violation> {
        for count in 0..TURN {
            let Some(next) = self.hub.next() else {
                return Ok(count);
            };
            let Some(buffers) = queue.pop(memory, DESCRIPTORS)? else {
                if let Next::Answer(packet) = next {
                    self.hub.put_back(packet);
                }
                return Ok(count);
            };
            let room = buffers
                .writable()
                .checked_sub(HEADER as u64)
                .ok_or(Violation::Small("for a packet"))?;
            let (packet, length) = match next {
                Next::Answer(packet) => (packet, 0),
                Next::Data(_) if room == 0 => return Err(Violation::Small("for a packet's data")),
                Next::Data(ports) => {
                    let most = usize::try_from(room)
                        .unwrap_or(usize::MAX)
                        .min(self.data.len());
                    let Some(packet) = self.hub.read(ports, &mut self.data[..most]) else {
                        queue.put_back();
                        continue;
                    };
                    let length = match packet.operation {
                        Operation::Data(length) => length,
                        _ => unreachable!("what is read is data"),
                    };
                    (packet, length)
                }
            };
            buffers.write(memory, 0, &packet.to_guest(GUEST))?;
            buffers.write(memory, HEADER as u64, &self.data[..length as usize])?;
            let header = u32::try_from(HEADER).expect("a small number");
            queue.finish(memory, &buffers, header + length)?;
        }
        Ok(TURN)
    }
}

impl VirtioDevice for VsockDevice {
    const KIND: u32 = VIRTIO_ID_VSOCK;
    // The third one is for news that this device never has.
    const QUEUES: &'static [u16] = &[128, 128, 8];

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        GUEST.to_le_bytes().to_vec()
    }

    fn serve(
        &mut self,
        event: Event,
        queues: &mut [GuestQueue],
        memory: &GuestMemoryMmap,
        notes: &mut Violations,
    ) -> Result<Work, Violation> {
        if event == Event::Source {
            self.hub.poll();
        }
        let taken = self.transmit(&mut queues[TRANSMIT], memory, notes)?;
        let given = self.receive(&mut queues[RECEIVE], memory)?;
        // What was given may have made room for more to be taken, and the other way round.
        Ok(if taken + given > 0 {
            Work::More
        } else {
            Work::Done
        })
    }

    fn reset(&mut self) {
        self.hub.clear();
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.hub.source())
    }
}

/// All connections.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedVsock {
    connections: Vec<SavedConnection>,
    answers: Vec<Packet>,
}

impl State for VsockDevice {
    const NAME: &'static str = "vsock";
    const VERSION: u16 = 1;
    type Saved = SavedVsock;

    fn save(&self) -> SavedVsock {
        let (connections, answers) = self.hub.save();
        SavedVsock {
            connections,
            answers,
        }
    }

    fn restore(&mut self, saved: SavedVsock) -> Result<(), StateError> {
        let possible = saved.connections.len() <= MOST_CONNECTIONS
            && saved.connections.iter().all(SavedConnection::is_possible);
        if !possible {
            return Err(StateError::Impossible {
                name: Self::NAME,
                reason: "more connections or data than there can be".to_owned(),
            });
        }
        self.hub.restore(saved.connections, saved.answers);
        Ok(())
    }
}
