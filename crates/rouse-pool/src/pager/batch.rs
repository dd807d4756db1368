//! Pieces on their way into a pool, and the threads that decode them ahead of need.
//!
//! What somebody waits for is decoded by the pager's main thread as soon as it is read. Everything
//! else goes through [`Decoders`], so that it never stands in the way.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{MAX_PIECE_PAGES, PageMap, PieceKind};
use rustix::event::EventfdFlags;

use super::protocol::Failure;
use super::reads;
use super::target::Target;
use crate::chunk::Decoder;

/// A pool as the threads need it.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    pub map: Arc<PageMap>,
    pub decoder: Arc<Decoder>,
    pub target: Arc<Target>,
}

/// Pieces that are filled together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Slot of the pool.
    pub pool: usize,
    /// Which pieces of its page map.
    pub pieces: Vec<usize>,
    /// Where the bytes of all of them are.
    pub stored: Stored,
    /// Who wants it.
    pub purpose: Purpose,
    /// The end of its job is told before the rest of it is in, when all such batches are.
    pub is_first: bool,
}

/// Where the stored bytes of a batch are.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Nowhere: nothing is stored of these pieces, or it has not been read yet.
    Nowhere,
    /// They were read from a pack.
    Read(reads::Piece),
    /// In a memory file, from where whoever fills the batch copies them: bytes of the pack, and where it begins.
    Held {
        file: Arc<File>,
        base: u64,
        range: Range<u64>,
    },
}

/// Memory of a thread that fills batches. New memory would cost a page fault for each page, each time.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    plain: Vec<u8>,
    stored: Vec<u8>,
}

/// Why pieces are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody waits for a page of it.
    Demand,
    /// Part of that job.
    Job(u64),
}

/// A piece that was not filled.
#[derive(Debug)]
pub(crate) struct Unfilled {
    pub piece: usize,
    pub reason: Failure,
    pub detail: String,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// Pages that were absent and are present now.
    pub pages: u64,
    /// Of these, pages for which nothing was read.
    pub synthesized: u64,
    pub unfilled: Vec<Unfilled>,
    /// Between which pages of the pool it was filled: to be unmapped, some time ([`Target::unmap`]).
    pub mapped: Option<Range<u64>>,
}

impl Batch {
    /// Decodes, verifies and fills. Pages that are present already stay as they are.
    pub fn fill(&self, contents: &Contents, scratch: &mut Scratch) -> Filled {
        let mut result = Filled::default();
        let Scratch { plain, stored } = scratch;
        plain.resize(MAX_PIECE_PAGES as usize * PAGE_SIZE as usize, 0);
        if let Stored::Held { file, base, range } = &self.stored {
            stored.resize((range.end - range.start) as usize, 0);
            if let Err(error) = file.read_exact_at(stored, base + range.start) {
                let detail = format!("cannot read its pack: {error}");
                return Filled::unreadable(&self.pieces, &detail);
            }
        }
        for index in &self.pieces {
            let piece = &contents.map.pieces()[*index];
            let plain = &mut plain[..piece.len_bytes()];
            result.mapped = Some(hull(result.mapped, piece.range()));
            match self.fill_piece(contents, *index, stored, plain) {
                Ok(pages) => {
                    result.pages += pages;
                    if piece.chunk().is_none() {
                        result.synthesized += pages;
                    }
                }
                Err(unfilled) => result.unfilled.push(unfilled),
            }
        }
        result
    }

    fn fill_piece(
        &self,
        contents: &Contents,
        index: usize,
        held: &[u8],
        plain: &mut [u8],
    ) -> Result<u64, Unfilled> {
        let piece = &contents.map.pieces()[index];
        let unfilled = |reason, detail| Unfilled {
            piece: index,
            reason,
            detail,
        };
        let stored = match &piece.kind {
            PieceKind::Zero | PieceKind::Repeated(_) => Some(&[][..]),
            PieceKind::Chunk(chunk) => {
                let len = chunk.stored_len as usize;
                match &self.stored {
                    Stored::Nowhere => None,
                    Stored::Read(read) => read.at(chunk.offset, len),
                    Stored::Held { range, .. } => (chunk.offset.checked_sub(range.start))
                        .and_then(|at| held.get(at as usize..at as usize + len)),
                }
            }
        };
        let Some(stored) = stored else {
            let detail = "its stored bytes were not read".to_owned();
            return Err(unfilled(Failure::Damaged, detail));
        };
        // Only verified bytes come out of this.
        contents
            .decoder
            .decode(piece, stored, plain)
            .map_err(|error| unfilled(Failure::Damaged, chain(&error)))?;
        contents
            .target
            .fill(piece.first_page, plain)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM) => unfilled(Failure::Memory, chain(&error)),
                _ => unfilled(Failure::Kernel, chain(&error)),
            })
    }
}

impl Filled {
    /// Of these pieces nothing could be read.
    pub fn unreadable(pieces: &[usize], detail: &str) -> Self {
        let unfilled = pieces.iter().map(|piece| Unfilled {
            piece: *piece,
            reason: Failure::Kernel,
            detail: detail.to_owned(),
        });
        Self {
            unfilled: unfilled.collect(),
            ..Self::default()
        }
    }

    /// Nothing is wrong with them: there was no memory. It is tried again.
    pub fn lacks_memory(&mut self) {
        for unfilled in &mut self.unfilled {
            unfilled.reason = Failure::Memory;
        }
    }
}

/// The smallest range that holds both.
pub(crate) fn hull(one: Option<Range<u64>>, other: Range<u64>) -> Range<u64> {
    match one {
        Some(one) => one.start.min(other.start)..one.end.max(other.end),
        None => other,
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Pieces to fill with one read, before the read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Slot of the pool.
    pub pool: usize,
    pub pieces: Vec<usize>,
    /// Pack (by a piece in it) and bytes to read.
    pub read: Option<Range<u64>>,
    /// Is it waited for before the rest of its job?
    pub is_first: bool,
}

/// Bytes that are read ahead with one call: enough for a disk to be busy, and little enough for
/// a read that somebody waits for to get its turn soon.
const MAX_READ: u64 = 256 * 1024;
/// The least that is read with one call where there is more: a small working set is cut into so many parts that all decoders
/// have something to do from the first read on.
const MIN_READ: u64 = 32 * 1024;
const PARTS: u64 = 12;
/// Bytes that may be read in vain between two pieces.
const MAX_GAP: u64 = 16 * 1024;
/// Pages filled at a time when nothing is read.
const MAX_SYNTHESIZED: usize = 16;

/// Puts pieces that lie side by side in a pack together, in the order of the disk.
pub(crate) fn plans(pool: usize, map: &PageMap, mut pieces: Vec<usize>) -> Vec<Plan> {
    // The pack with the working set first: it is what is touched first.
    let hot = map.hot_extent().map(|(pack, _)| pack);
    pieces.sort_by_key(|index| {
        let chunk = map.pieces()[*index].chunk();
        chunk.map(|chunk| (Some(chunk.pack) != hot, chunk.pack, chunk.offset))
    });
    let chunks = pieces
        .iter()
        .filter_map(|index| map.pieces()[*index].chunk());
    let all: u64 = chunks.map(|chunk| u64::from(chunk.stored_len)).sum();
    let max_read = (all / PARTS).clamp(MIN_READ, MAX_READ);
    let mut plans: Vec<Plan> = Vec::new();
    for index in pieces {
        let chunk = map.pieces()[index].chunk();
        let bytes = chunk.map(|chunk| chunk.offset..chunk.offset + u64::from(chunk.stored_len));
        if let Some(last) = plans.last_mut() {
            let joined = match (&last.read, &bytes) {
                (None, None) => (last.pieces.len() < MAX_SYNTHESIZED).then_some(None),
                (Some(read), Some(bytes)) => {
                    let previous = last.pieces.last().and_then(|i| map.pieces()[*i].chunk());
                    let same_pack = previous.map(|p| p.pack) == chunk.map(|c| c.pack);
                    let end = read.end.max(bytes.end);
                    let near = bytes.start <= read.end + MAX_GAP && end - read.start <= max_read;
                    (same_pack && near).then_some(Some(read.start..end))
                }
                _ => None,
            };
            if let Some(read) = joined {
                last.pieces.push(index);
                last.read = read;
                continue;
            }
        }
        plans.push(Plan {
            pool,
            pieces: vec![index],
            read: bytes,
            is_first: true,
        });
    }
    plans
}

struct Shared {
    queue: Mutex<VecDeque<(Batch, Contents)>>,
    filled: Mutex<Vec<(Batch, Filled)>>,
    work: Condvar,
    done: OwnedFd,
}

/// Threads that fill what nobody waits for yet.
pub(crate) struct Decoders {
    shared: Arc<Shared>,
}

impl Decoders {
    /// Starts as many threads as there are processors, up to four. They end with the process.
    pub fn start() -> io::Result<Self> {
        let threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(4);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            queue: Mutex::new(VecDeque::new()),
            filled: Mutex::new(Vec::new()),
            work: Condvar::new(),
            done: rustix::event::eventfd(0, flags)?,
        });
        for _ in 0..threads {
            let shared = shared.clone();
            thread::Builder::new()
                .name("rouse-decoder".into())
                .spawn(move || decode(&shared))?;
        }
        Ok(Self { shared })
    }

    /// Becomes readable when something is done.
    pub fn wakeup(&self) -> RawFd {
        self.shared.done.as_fd().as_raw_fd()
    }

    /// Fills a batch some time.
    pub fn push(&self, batch: Batch, contents: Contents) {
        lock(&self.shared.queue).push_back((batch, contents));
        self.shared.work.notify_one();
    }

    /// Takes a batch back that fills this piece of a pool, if nobody has begun with it.
    pub fn take_back(&self, pool: usize, piece: usize) -> Option<(Batch, Contents)> {
        let mut queue = lock(&self.shared.queue);
        let at = (queue.iter())
            .position(|(batch, _)| batch.pool == pool && batch.pieces.contains(&piece))?;
        queue.remove(at)
    }

    /// Takes what is done.
    pub fn take(&self) -> Vec<(Batch, Filled)> {
        // Empty when somebody was woken for what was taken already.
        let _ = rustix::io::read(&self.shared.done, &mut [0; 8]);
        std::mem::take(&mut *lock(&self.shared.filled))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn decode(shared: &Shared) {
    let mut scratch = Scratch::default();
    loop {
        let mut queue = lock(&shared.queue);
        let (batch, contents) = loop {
            match queue.pop_front() {
                Some(work) => break work,
                None => {
                    queue = shared
                        .work
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        drop(queue);
        let filled = batch.fill(&contents, &mut scratch);
        lock(&shared.filled).push((batch, filled));
        // Cannot fail: the counter is read before it is full.
        let _ = rustix::io::write(&shared.done, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use rouse_snapshot::page_map::{
        Chunk, ChunkId, Class, CodecId, Domain, PackId, Piece as MapPiece,
    };

    use super::*;

    fn map(chunks: &[Option<(u64, u64, u32)>]) -> PageMap {
        let pieces = chunks.iter().enumerate().map(|(i, chunk)| MapPiece {
            first_page: i as u64 * 16,
            pages: 16,
            class: Class::Cold,
            kind: match *chunk {
                None => PieceKind::Zero,
                Some((pack, offset, stored_len)) => PieceKind::Chunk(Chunk {
                    id: ChunkId([0; 32]),
                    domain: Domain::Tenant,
                    pack: PackId(pack),
                    offset,
                    stored_len,
                    codec: CodecId::Lz4,
                    dictionary: None,
                }),
            },
        });
        PageMap::new(pieces.collect(), None).unwrap()
    }

    #[test]
    fn pieces_that_lie_side_by_side_are_read_together() {
        let map = map(&[
            Some((1, 4096, 5000)),
            None,
            Some((2, 4096, 100)),
            Some((1, 9096, 3000)),
            Some((1, 500_000, 3000)),
            None,
        ]);
        let plans = plans(3, &map, (0..6).collect());
        let reads: Vec<_> = plans
            .iter()
            .map(|plan| (plan.pieces.clone(), plan.read.clone()))
            .collect();
        assert_eq!(
            reads,
            [
                (vec![1, 5], None),
                (vec![0, 3], Some(4096..12096)),
                (vec![4], Some(500_000..503_000)),
                (vec![2], Some(4096..4196)),
            ]
        );
        assert!(plans.iter().all(|plan| plan.pool == 3));
    }

    #[test]
    fn no_read_is_long() {
        let chunks: Vec<_> = (0..100_u64)
            .map(|i| Some((1, 4096 + i * 60_000, 60_000)))
            .collect();
        let map = map(&chunks);
        let plans = plans(0, &map, (0..100).collect());
        assert_eq!(
            plans.iter().map(|plan| plan.pieces.len()).sum::<usize>(),
            100
        );
        for plan in plans {
            let read = plan.read.unwrap();
            assert!(read.end - read.start <= MAX_READ);
        }
    }
}
