//! Reads from packs, many at a time, without waiting for any: `io_uring`.
//!
//! Where the kernel has none (it can be switched off), reads are done one after the other, and
//! slower; nothing else is different.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rouse_snapshot::page_map::PACK_ALIGN;

use super::buffer::{Buffer, Buffers};

/// Reads that the kernel has at a time; more wait here. The completion queue has twice as many places, so that it
/// never runs over.
const DEPTH: u32 = 64;

/// What was read: the bytes of the range asked for begin at `skip`.
#[derive(Debug)]
pub(crate) struct Piece {
    pub buffer: Buffer,
    /// Because reads are aligned.
    pub skip: usize,
    /// Where the range was said to begin.
    pub start: u64,
}

impl Piece {
    /// Bytes at a file offset within the range that was read.
    pub fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = self.skip + usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.buffer.bytes().get(from..from.checked_add(len)?)
    }
}

#[derive(Debug)]
struct Read<T> {
    file: Arc<File>,
    buffer: Buffer,
    /// Aligned file offset.
    offset: u64,
    /// Bytes of the buffer to be filled: aligned; the file may end before, but not before `needed`.
    len: usize,
    needed: usize,
    done: usize,
    skip: usize,
    start: u64,
    tag: T,
}

/// A read's end.
pub(crate) type Completion<T> = (T, io::Result<Piece>);

/// Reads in progress, each with a tag by which its issuer knows it.
pub(crate) struct Reads<T> {
    ring: Option<IoUring>,
    buffers: Buffers,
    // A buffer stays here, and so allocated, until the kernel is done with it.
    running: HashMap<u64, Read<T>>,
    waiting: VecDeque<Read<T>>,
    finished: Vec<Completion<T>>,
    next: u64,
    unsubmitted: bool,
}

impl<T> Reads<T> {
    pub fn new() -> Self {
        Self {
            ring: IoUring::new(DEPTH).ok(),
            buffers: Buffers::default(),
            running: HashMap::new(),
            waiting: VecDeque::new(),
            finished: Vec::new(),
            next: 0,
            unsubmitted: false,
        }
    }

    /// Becomes readable when a read has ended. `None`: reads end at once.
    pub fn wakeup(&self) -> Option<RawFd> {
        self.ring.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Begins to read a range of bytes, which lies `base` bytes behind that place in the file (aligned); [`Reads::submit`]
    /// must follow.
    pub fn start(&mut self, file: Arc<File>, base: u64, range: Range<u64>, tag: T) {
        let aligned = range.start / PACK_ALIGN * PACK_ALIGN;
        let offset = base + aligned;
        let needed = (range.end - aligned) as usize;
        let len = needed.next_multiple_of(PACK_ALIGN as usize);
        let buffer = match self.buffers.take(len) {
            Ok(buffer) => buffer,
            Err(error) => return self.finished.push((tag, Err(error))),
        };
        let read = Read {
            file,
            buffer,
            offset,
            len,
            needed,
            done: 0,
            skip: (range.start - aligned) as usize,
            start: range.start,
            tag,
        };
        match self.ring {
            Some(_) => {
                self.waiting.push_back(read);
                self.push_waiting();
            }
            None => {
                let completion = read_now(read);
                self.finished.push(completion);
            }
        }
    }

    fn push_waiting(&mut self) {
        while self.running.len() < DEPTH as usize {
            let Some(read) = self.waiting.pop_front() else {
                return;
            };
            if let Err(read) = self.push(read) {
                // Full until the kernel has taken what is there.
                return self.waiting.push_front(read);
            }
        }
    }

    /// Gives the read back when the submission queue is full.
    fn push(&mut self, mut read: Read<T>) -> Result<(), Read<T>> {
        let Some(ring) = &mut self.ring else {
            return Err(read);
        };
        let key = self.next;
        let file = types::Fd(read.file.as_raw_fd());
        let rest = &mut read.buffer.bytes_mut()[read.done..read.len];
        let entry = opcode::Read::new(file, rest.as_mut_ptr(), rest.len() as u32)
            .offset(read.offset + read.done as u64)
            .build()
            .user_data(key);
        // SAFETY: file and buffer are owned by `running` until the completion of this entry; the
        // pointer is into the heap, so that moving the buffer does not move its bytes. Nothing is
        // submitted between this line and the insertion.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            return Err(read);
        }
        self.next += 1;
        self.running.insert(key, read);
        self.unsubmitted = true;
        Ok(())
    }

    /// Hands everything that was begun to the kernel, in one call.
    pub fn submit(&mut self) {
        self.push_waiting();
        if std::mem::take(&mut self.unsubmitted)
            && let Some(ring) = &self.ring
            && ring.submit().is_err()
        {
            // Interrupted, or short of memory: again at the next turn.
            self.unsubmitted = true;
        }
    }

    /// Whether something still waits for being submitted or taken.
    pub fn has_more(&self) -> bool {
        let room = self.running.len() < DEPTH as usize;
        self.unsubmitted || !self.finished.is_empty() || (room && !self.waiting.is_empty())
    }

    /// A buffer that is not needed any more.
    pub fn give_back(&mut self, piece: Piece) {
        self.buffers.give_back(piece.buffer);
    }

    /// Takes the reads that have ended.
    pub fn completions(&mut self) -> Vec<Completion<T>> {
        let entries: Vec<(u64, i32)> = match &mut self.ring {
            Some(ring) => ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result()))
                .collect(),
            None => Vec::new(),
        };
        for (key, result) in entries {
            if let Some(read) = self.running.remove(&key) {
                self.advance(read, result);
            }
        }
        std::mem::take(&mut self.finished)
    }

    fn advance(&mut self, mut read: Read<T>, result: i32) {
        const INTERRUPTED: i32 = -libc::EINTR;
        const AGAIN: i32 = -libc::EAGAIN;
        match result {
            INTERRUPTED | AGAIN => return self.waiting.push_front(read),
            ..0 => {
                let error = io::Error::from_raw_os_error(-result);
                self.finished.push((read.tag, Err(error)));
                return;
            }
            0 => {
                self.finished
                    .push((read.tag, Err(io::ErrorKind::UnexpectedEof.into())));
                return;
            }
            len => read.done += len as usize,
        }
        if read.done >= read.needed {
            self.finished.push(finish(read));
        } else if read.done.is_multiple_of(PACK_ALIGN as usize) {
            self.waiting.push_front(read);
        } else {
            // The end of the file, in the middle of what should be there.
            self.finished
                .push((read.tag, Err(io::ErrorKind::UnexpectedEof.into())));
        }
    }
}

fn finish<T>(read: Read<T>) -> Completion<T> {
    let piece = Piece {
        buffer: read.buffer,
        skip: read.skip,
        start: read.start,
    };
    (read.tag, Ok(piece))
}

fn read_now<T>(mut read: Read<T>) -> Completion<T> {
    while read.done < read.needed {
        let at = read.offset + read.done as u64;
        let rest = &mut read.buffer.bytes_mut()[read.done..read.len];
        match read.file.read_at(rest, at) {
            Ok(0) => return (read.tag, Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => read.done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (read.tag, Err(error)),
        }
    }
    finish(read)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(len: usize) -> (Arc<File>, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (Arc::new(file), bytes)
    }

    fn wait_for<T>(reads: &mut Reads<T>, count: usize) -> Vec<Completion<T>> {
        let mut completions = Vec::new();
        while completions.len() < count {
            reads.submit();
            completions.extend(reads.completions());
            std::thread::yield_now();
        }
        completions
    }

    fn check(mut reads: Reads<Range<u64>>) {
        let (file, bytes) = file(1_000_003);
        let ranges: Vec<Range<u64>> = (0..200_u64)
            .map(|i| i * 5000 + i % 3..i * 5000 + i * 13 % 4900 + 3)
            .chain(std::iter::once(999_000..1_000_003))
            .collect();
        for range in &ranges {
            reads.start(file.clone(), 0, range.clone(), range.clone());
        }
        for (range, piece) in wait_for(&mut reads, ranges.len()) {
            let piece = piece.unwrap();
            let len = (range.end - range.start) as usize;
            let expected = &bytes[range.start as usize..range.end as usize];
            assert_eq!(piece.at(range.start, len).unwrap(), expected);
            assert!(piece.at(range.start.wrapping_sub(1), 1).is_none() || range.start == 0);
            reads.give_back(piece);
        }
        reads.start(file, 0, 999_000..1_000_004, 0..1);
        let [(_, result)] = wait_for(&mut reads, 1).try_into().unwrap();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn any_ranges_are_read_at_once() {
        check(Reads::new());
    }

    #[test]
    fn the_same_is_read_without_a_ring() {
        let mut reads = Reads::new();
        reads.ring = None;
        check(reads);
    }
}
