//! The packets of which connections between guest and host are made (virtio specification, 5.10.6).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a packet's header.
pub const HEADER: usize = size_of::<Wire>();
/// The host's number.
pub const HOST: u64 = 2;
/// No packet carries more, in bytes. Linux sends 64 KiB at most.
pub const MOST: u32 = 64 << 10;
/// A stream of bytes; the other kind (messages) is not offered.
const STREAM: u16 = 1;
const RECEIVES_NO_MORE: u32 = 1;
const SENDS_NO_MORE: u32 = 2;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Wire {
    source: U64,
    destination: U64,
    source_port: U32,
    destination_port: U32,
    length: U32,
    kind: U16,
    operation: U16,
    flags: U32,
    room: U32,
    taken: U32,
}

const _: () = assert!(HEADER == 44);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ports {
    /// In the guest.
    pub guest: u32,
    /// On this side.
    pub host: u32,
}

impl Ports {
    /// Both as one number.
    pub(super) fn number(self) -> u64 {
        u64::from(self.guest) << 32 | u64::from(self.host)
    }

    /// What has this [`number`](Self::number).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of a number"
    )]
    pub(super) fn of_number(number: u64) -> Self {
        Self {
            guest: (number >> 32) as u32,
            host: number as u32,
        }
    }
}

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// To open a connection.
    Request,
    /// It is open.
    Response,
    /// There is no such connection, or not any more.
    Reset,
    /// The sender will do less with it.
    Shutdown {
        /// It takes no more.
        receives: bool,
        /// It sends no more.
        sends: bool,
    },
    /// So many bytes follow, at least one.
    Data(u32),
    /// The sender has more room.
    CreditUpdate,
    /// The sender asks for one.
    CreditRequest,
}

/// What the sender can take: flow control is that nobody sends more than fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credit {
    /// Bytes of its buffer.
    pub room: u32,
    /// Bytes that have left this buffer since the connection began, modulo 2^32.
    pub taken: u32,
}

/// A packet, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Of which connection.
    pub ports: Ports,
    /// What for.
    pub operation: Operation,
    /// What its sender can take.
    pub credit: Credit,
}

/// A guest sent something that is no packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It is not the guest's.
    #[error("a packet says that it comes from {0}")]
    Source(u64),
    /// It is for somebody else.
    #[error("a packet is for {0}, which is not the host")]
    Destination(u64),
    /// Of a kind that is not offered.
    #[error("a packet is of kind {0}, not of a stream")]
    Kind(u16),
    /// There is no such operation.
    #[error("a packet is for operation {0}")]
    Operation(u16),
    /// Its length is not that of its data, or no packet is that long.
    #[error("a packet has {length} bytes of data, in a buffer of {room}")]
    Length {
        /// As it says.
        length: u32,
        /// Bytes behind the header.
        room: u64,
    },
}

impl Packet {
    /// What guest `cid` sent, with `room` bytes behind it.
    ///
    /// # Errors
    /// If it is no packet.
    pub fn parse(bytes: [u8; HEADER], cid: u64, room: u64) -> Result<Self, PacketError> {
        let wire: Wire = zerocopy::transmute!(bytes);
        if wire.source.get() != cid {
            return Err(PacketError::Source(wire.source.get()));
        }
        if wire.destination.get() != HOST {
            return Err(PacketError::Destination(wire.destination.get()));
        }
        if wire.kind.get() != STREAM {
            return Err(PacketError::Kind(wire.kind.get()));
        }
        let length = wire.length.get();
        let operation = match wire.operation.get() {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown {
                receives: wire.flags.get() & RECEIVES_NO_MORE != 0,
                sends: wire.flags.get() & SENDS_NO_MORE != 0,
            },
            5 if length == 0 || length > MOST || u64::from(length) > room => {
                return Err(PacketError::Length { length, room });
            }
            5 => Operation::Data(length),
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            operation => return Err(PacketError::Operation(operation)),
        };
        if length != 0 && !matches!(operation, Operation::Data(_)) {
            return Err(PacketError::Length { length, room });
        }
        Ok(Self {
            ports: Ports {
                guest: wire.source_port.get(),
                host: wire.destination_port.get(),
            },
            operation,
            credit: Credit {
                room: wire.room.get(),
                taken: wire.taken.get(),
            },
        })
    }

    /// The same as bytes, from this side to guest `cid`.
    #[must_use]
    pub fn to_guest(&self, cid: u64) -> [u8; HEADER] {
        let (operation, length, flags) = match self.operation {
            Operation::Request => (1, 0, 0),
            Operation::Response => (2, 0, 0),
            Operation::Reset => (3, 0, 0),
            Operation::Shutdown { receives, sends } => (
                4,
                0,
                (u32::from(receives) * RECEIVES_NO_MORE) | (u32::from(sends) * SENDS_NO_MORE),
            ),
            Operation::Data(length) => (5, length, 0),
            Operation::CreditUpdate => (6, 0, 0),
            Operation::CreditRequest => (7, 0, 0),
        };
        zerocopy::transmute!(Wire {
            source: HOST.into(),
            destination: cid.into(),
            source_port: self.ports.host.into(),
            destination_port: self.ports.guest.into(),
            length: length.into(),
            kind: STREAM.into(),
            operation: U16::new(operation),
            flags: flags.into(),
            room: self.credit.room.into(),
            taken: self.credit.taken.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that are a packet, or nearly.
    fn nearly() -> impl Strategy<Value = [u8; HEADER]> {
        (any::<[u8; HEADER]>(), 0_u16..10, 0_u32..200, 0_u8..16).prop_map(
            |(mut bytes, operation, length, keep)| {
                let mut put = |bit: u8, at: usize, value: &[u8]| {
                    if keep >> bit & 1 == 0 {
                        bytes[at..at + value.len()].copy_from_slice(value);
                    }
                };
                put(0, 0, &3_u64.to_le_bytes());
                put(1, 8, &HOST.to_le_bytes());
                put(2, 28, &STREAM.to_le_bytes());
                put(3, 30, &operation.to_le_bytes());
                bytes[24..28].copy_from_slice(&length.to_le_bytes());
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn a_packet_is_what_it_says(bytes in nearly(), room in 0_u64..200) {
            let Ok(packet) = Packet::parse(bytes, 3, room) else { return Ok(()) };
            if let Operation::Data(length) = packet.operation {
                prop_assert!(length > 0 && u64::from(length) <= room);
            }
            // Sent back by the host it is the same but for the two ends and flags that nobody knows.
            let mut back = packet.to_guest(3);
            back[..16].rotate_left(8);
            back[16..24].rotate_left(4);
            let again = Packet::parse(back, 3, room).expect("it was a packet");
            prop_assert_eq!(again, packet);
            prop_assert_eq!(&back[..36 - 4], &bytes[..36 - 4]);
        }
    }
}
