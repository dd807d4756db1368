//! What a guest may ask of a disk.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

/// Bytes of a request's header: its kind (4), nothing (4), its first sector (8).
pub const HEADER: usize = 16;
/// Bytes of a sector, whatever a disk's blocks are.
pub const SECTOR: u64 = 512;
/// No request is longer, in bytes: what one guest reads must not hold up the other devices.
const MOST: u64 = 4 << 20;

/// A request that can be served. Its data has room in the guest's buffers, and lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To read.
    Read {
        /// In the image, in bytes.
        offset: u64,
        /// In bytes; not 0.
        length: u64,
    },
    /// To tell the disk's name.
    Name {
        /// So much of it.
        length: usize,
    },
}

/// A request that cannot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Of a kind that this disk does not have.
    #[error("a disk was asked for something of kind {0}")]
    Unknown(u32),
    /// The disk cannot be written, and does not say that it could.
    #[error("a disk was written")]
    Write,
    /// Not a number of sectors, or none, or too many.
    #[error("{0} bytes were to be read from a disk")]
    Length(u64),
    /// Behind the end.
    #[error("{length} bytes from sector {sector} on do not lie on the disk")]
    Beyond {
        /// The first one.
        sector: u64,
        /// In bytes.
        length: u64,
    },
    /// There is data for a request that takes none.
    #[error("{0} bytes too many came with a request")]
    Trailing(u64),
}

impl Request {
    /// From `header`, which is followed by `more` readable bytes; there is `room` for so many bytes of data. The disk has so
    /// many `sectors`.
    ///
    /// # Errors
    /// If it cannot be served.
    pub fn parse(
        header: [u8; HEADER],
        more: u64,
        room: u64,
        sectors: u64,
    ) -> Result<Self, RequestError> {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_OUT => Err(RequestError::Write),
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID if more > 0 => Err(RequestError::Trailing(more)),
            VIRTIO_BLK_T_IN => {
                if room == 0 || !room.is_multiple_of(SECTOR) || room > MOST {
                    return Err(RequestError::Length(room));
                }
                let end = sector.checked_add(room / SECTOR);
                if end.is_none_or(|end| end > sectors) {
                    return Err(RequestError::Beyond {
                        sector,
                        length: room,
                    });
                }
                Ok(Self::Read {
                    offset: sector * SECTOR,
                    length: room,
                })
            }
            VIRTIO_BLK_T_GET_ID => Ok(Self::Name {
                length: usize::try_from(room)
                    .unwrap_or(usize::MAX)
                    .min(VIRTIO_BLK_ID_BYTES as usize),
            }),
            kind => Err(RequestError::Unknown(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u32, sector: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn what_is_read_lies_on_the_disk(
            kind in prop_oneof![Just(VIRTIO_BLK_T_IN), 0_u32..20, any::<u32>()],
            sector in prop_oneof![0_u64..2000, any::<u64>()],
            more in prop_oneof![Just(0_u64), any::<u64>()],
            room in prop_oneof![(0_u64..20_000).prop_map(|n| n * SECTOR), any::<u64>()],
            sectors in 0_u64..3000,
        ) {
            // Compared with the same in numbers that cannot overflow.
            let fits = u128::from(sector) + u128::from(room / SECTOR) <= u128::from(sectors);
            let plain = room > 0 && room.is_multiple_of(SECTOR) && room <= MOST && more == 0;
            match Request::parse(header(kind, sector), more, room, sectors) {
                Ok(Request::Read { offset, length }) => {
                    prop_assert!(fits && plain && kind == VIRTIO_BLK_T_IN);
                    prop_assert_eq!((offset, length), (sector * SECTOR, room));
                }
                Ok(Request::Name { length }) => {
                    prop_assert!(kind == VIRTIO_BLK_T_GET_ID && length as u64 <= room);
                }
                Err(_) => prop_assert!(kind != VIRTIO_BLK_T_IN || !fits || !plain),
            }
        }
    }
}
