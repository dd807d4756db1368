//! What the daemon and the pager say to each other.
//!
//! One message per packet of a `SOCK_SEQPACKET` pair, descriptors beside it. The daemon keeps a
//! request until it is answered and sends it again to the next pager; so every request may arrive
//! more than once, and doing it again must do no harm. Packets arrive in order.

use std::ops::Range;

use super::source::{MAX_FILES, Names};
use super::wire::{Reader, Writer};
use crate::uffd::Neighbours;

/// The most mappings of one instance: what fits into a packet.
pub(crate) const MAX_MAPPINGS: usize = 4096;
/// The most ranges of one request: the same.
pub(crate) const MAX_RANGES: usize = 2 * MAX_MAPPINGS;
/// The most bytes of a packet; below what a socket takes by default.
pub(crate) const MAX_PACKET: usize = 160 * 1024;

const _: () = assert!(
    MAX_MAPPINGS * 32 + 64 <= MAX_PACKET,
    "the largest registration fits into a packet"
);

/// The most descriptors beside a packet: a new pool's.
pub(crate) const MAX_DESCRIPTORS: usize = 1 + MAX_FILES;
const _: () = assert!(MAX_DESCRIPTORS <= 253, "the kernel takes them at once");

/// A run of pool pages as the daemon names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WireMapping {
    pub address: u64,
    pub pages: u64,
    pub pool: u64,
    pub page: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// With the pool's memory file, and the files of the source.
    AddPool {
        pool: u64,
        pages: u64,
        source: Names,
    },
    /// As soon as nobody maps it.
    RemovePool {
        pool: u64,
    },
    /// Nothing: whoever hears the answer has heard all that was said before.
    Echo,
    /// With the userfaultfd, and with the file to which touches are written down, if they are reported.
    Register {
        token: u64,
        prefetch: bool,
        /// How exactly touches are to be seen.
        neighbours: Neighbours,
        mappings: Vec<WireMapping>,
    },
    Unregister {
        token: u64,
    },
    /// Brings the working set in. Answered when these pages of it are in; all, if there are none.
    Prefetch {
        pool: u64,
        first: Vec<Range<u64>>,
    },
    FillAll {
        pool: u64,
    },
    Fill {
        pool: u64,
        ranges: Vec<Range<u64>>,
    },
    Evict {
        pool: u64,
        ranges: Vec<Range<u64>>,
    },
    /// With a memory file that holds the stored pieces.
    HoldCompressed {
        pool: u64,
    },
    DropCompressed {
        pool: u64,
    },
}

impl Request {
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(id);
        match self {
            Self::AddPool {
                pool,
                pages,
                source,
            } => {
                out.words(&[1, *pool, *pages]);
                out.bytes(&source.encode());
            }
            Self::RemovePool { pool } => {
                out.words(&[2, *pool]);
            }
            Self::Register {
                token,
                prefetch,
                neighbours,
                mappings,
            } => {
                let flags = u64::from(*prefetch) | code(*neighbours) << 1;
                out.words(&[3, *token, flags, mappings.len() as u64]);
                for mapping in mappings {
                    out.words(&[mapping.address, mapping.pages, mapping.pool, mapping.page]);
                }
            }
            Self::Unregister { token } => {
                out.words(&[4, *token]);
            }
            Self::Prefetch { pool, first } => put_ranges(&mut out, 5, *pool, first),
            Self::FillAll { pool } => {
                out.words(&[6, *pool]);
            }
            Self::HoldCompressed { pool } => {
                out.words(&[9, *pool]);
            }
            Self::DropCompressed { pool } => {
                out.words(&[10, *pool]);
            }
            Self::Echo => out.words(&[11, 0]),
            Self::Evict { pool, ranges } => put_ranges(&mut out, 7, *pool, ranges),
            Self::Fill { pool, ranges } => put_ranges(&mut out, 8, *pool, ranges),
        }
        out.finish()
    }

    pub fn decode(bytes: &[u8]) -> Option<(u64, Self)> {
        let mut input = Reader::new(bytes);
        let id = input.u64()?;
        let request = match (input.u64()?, input.u64()?) {
            (1, pool) => Self::AddPool {
                pool,
                pages: input.u64()?,
                source: Names::decode(input.bytes()?)?,
            },
            (2, pool) => Self::RemovePool { pool },
            (3, token) => {
                let flags = input.u64()?;
                let count = input.u64()?;
                let mapping = |input: &mut Reader<'_>| {
                    Some(WireMapping {
                        address: input.u64()?,
                        pages: input.u64()?,
                        pool: input.u64()?,
                        page: input.u64()?,
                    })
                };
                let mappings = (0..count)
                    .map(|_| mapping(&mut input))
                    .collect::<Option<_>>()?;
                Self::Register {
                    token,
                    prefetch: flags & 1 != 0,
                    neighbours: neighbours(flags >> 1)?,
                    mappings,
                }
            }
            (4, token) => Self::Unregister { token },
            (5, pool) => Self::Prefetch {
                pool,
                first: take_ranges(&mut input)?,
            },
            (6, pool) => Self::FillAll { pool },
            (7, pool) => Self::Evict {
                pool,
                ranges: take_ranges(&mut input)?,
            },
            (8, pool) => Self::Fill {
                pool,
                ranges: take_ranges(&mut input)?,
            },
            (9, pool) => Self::HoldCompressed { pool },
            (10, pool) => Self::DropCompressed { pool },
            (11, _) => Self::Echo,
            _ => return None,
        };
        Some((id, request))
    }
}

fn code(neighbours: Neighbours) -> u64 {
    match neighbours {
        Neighbours::Mapped => 0,
        Neighbours::Left => 1,
        Neighbours::Reported => 2,
    }
}

fn neighbours(wanted: u64) -> Option<Neighbours> {
    let all = [Neighbours::Mapped, Neighbours::Left, Neighbours::Reported];
    all.into_iter().find(|one| code(*one) == wanted)
}

fn put_ranges(out: &mut Writer, code: u64, pool: u64, ranges: &[Range<u64>]) {
    out.words(&[code, pool, ranges.len() as u64]);
    for range in ranges {
        out.words(&[range.start, range.end]);
    }
}

fn take_ranges(input: &mut Reader<'_>) -> Option<Vec<Range<u64>>> {
    let count = input.u64()?;
    (0..count)
        .map(|_| Some(input.u64()?..input.u64()?))
        .collect()
}

/// Why a request failed, as a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    UnknownPool = 1,
    Busy = 2,
    Full = 3,
    Kernel = 4,
    Memory = 5,
    Damaged = 6,
    Malformed = 7,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::UnknownPool,
        Self::Busy,
        Self::Full,
        Self::Kernel,
        Self::Memory,
        Self::Damaged,
        Self::Malformed,
    ];
}

/// A request's end: a number that depends on the request, or why there is none.
pub(crate) type Outcome = Result<u64, (Failure, String)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A pager has taken over.
    Hello { generation: u64 },
    /// The end of a request.
    Answer { id: u64, outcome: Outcome },
    /// A page could not be filled. `token` is 0 when nobody waited for it.
    Damaged {
        pool: u64,
        page: u64,
        token: u64,
        reason: Failure,
        detail: String,
    },
    /// A page that an instance waits for is about to be made unusable in it.
    Poisoned {
        token: u64,
        reason: Failure,
        detail: String,
    },
    /// The keeper has died; the pager goes on, but nobody will start another one.
    Orphaned,
    /// Something that a person should know.
    Trouble { token: u64, detail: String },
}

impl Notice {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Hello { generation } => {
                out.words(&[1, *generation]);
            }
            Self::Answer { id, outcome } => {
                let (code, value, text) = match outcome {
                    Ok(value) => (0, *value, ""),
                    Err((failure, text)) => (*failure as u64, 0, text.as_str()),
                };
                out.words(&[2, *id, code, value]);
                out.bytes(text.as_bytes());
            }
            Self::Damaged {
                pool,
                page,
                token,
                reason,
                detail,
            } => {
                out.words(&[3, *pool, *page, *token, *reason as u64]);
                out.bytes(detail.as_bytes());
            }
            Self::Poisoned {
                token,
                reason,
                detail,
            } => {
                out.words(&[6, *token, *reason as u64]);
                out.bytes(detail.as_bytes());
            }
            Self::Orphaned => {
                out.words(&[4, 0]);
            }
            Self::Trouble { token, detail } => {
                out.words(&[5, *token]);
                out.bytes(detail.as_bytes());
            }
        }
        out.finish()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        let failure = |code| Failure::ALL.into_iter().find(|f| *f as u64 == code);
        Some(match (input.u64()?, input.u64()?) {
            (1, generation) => Self::Hello { generation },
            (2, id) => {
                let (code, value, text) = (input.u64()?, input.u64()?, input.text()?);
                let outcome = match code {
                    0 => Ok(value),
                    code => Err((failure(code)?, text)),
                };
                Self::Answer { id, outcome }
            }
            (3, pool) => Self::Damaged {
                pool,
                page: input.u64()?,
                token: input.u64()?,
                reason: failure(input.u64()?)?,
                detail: input.text()?,
            },
            (4, _) => Self::Orphaned,
            (6, token) => Self::Poisoned {
                token,
                reason: failure(input.u64()?)?,
                detail: input.text()?,
            },
            (5, token) => Self::Trouble {
                token,
                detail: input.text()?,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_notices_come_back_as_they_were() {
        let requests = [
            Request::RemovePool { pool: 7 },
            Request::Echo,
            Request::Register {
                token: 3,
                prefetch: true,
                neighbours: Neighbours::Reported,
                mappings: vec![
                    WireMapping {
                        address: 1 << 20,
                        pages: 2,
                        pool: 7,
                        page: 9,
                    };
                    3
                ],
            },
            Request::Unregister { token: 3 },
            Request::Prefetch {
                pool: 8,
                first: vec![2..3, 5..6],
            },
            Request::FillAll { pool: 8 },
            Request::HoldCompressed { pool: 8 },
            Request::DropCompressed { pool: 8 },
            Request::Fill {
                pool: 8,
                ranges: vec![0..1, 7..9],
            },
            Request::Evict {
                pool: 8,
                ranges: vec![1..3, 9..10],
            },
        ];
        for request in requests {
            let bytes = request.encode(42);
            let (id, again) = Request::decode(&bytes).expect("it was just encoded");
            assert_eq!((id, format!("{again:?}")), (42, format!("{request:?}")));
            assert!(Request::decode(&bytes[..bytes.len() - 1]).is_none());
        }
        let notices = [
            Notice::Hello { generation: 2 },
            Notice::Answer {
                id: 5,
                outcome: Ok(77),
            },
            Notice::Answer {
                id: 5,
                outcome: Err((Failure::Busy, "in use".into())),
            },
            Notice::Damaged {
                pool: 1,
                page: 2,
                token: 3,
                reason: Failure::Damaged,
                detail: "checksum".into(),
            },
            Notice::Poisoned {
                token: 3,
                reason: Failure::Memory,
                detail: "no memory".into(),
            },
            Notice::Orphaned,
            Notice::Trouble {
                token: 4,
                detail: "no slot".into(),
            },
        ];
        for notice in notices {
            assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }
    }
}
