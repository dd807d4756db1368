//! The order in which a process first touches the pages of its pools.
//!
//! ```text
//!  instance --first touch of a page--> pager --16 bytes--> memory file <--reads-- daemon
//! ```
//! The file is only ever appended to, with one write for each entry, so that a pager that dies leaves whole entries, and the next one
//! goes on behind them. It holds pages of pools and not addresses: memory that a process moves keeps its name.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, OFlags};

use crate::pool::PoolId;

/// Bytes of an entry: a pool's id, and a page of it.
const ENTRY: usize = 16;

/// What the pager has seen of a process, see [`register_recorded`](crate::keeper::PagerHandle::register_recorded).
#[derive(Debug)]
pub struct TouchRecord(OwnedFd);

impl TouchRecord {
    /// An empty one.
    ///
    /// # Errors
    /// What the kernel says about memory files.
    pub fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("rouse-touches", MemfdFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self(file))
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The pages touched so far, in the order of their first touch, each once: pool, and page of it.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read(&self) -> io::Result<Vec<(PoolId, u64)>> {
        let entries = entries(self.0.as_fd())?;
        Ok(entries
            .into_iter()
            .map(|(p, page)| (PoolId(p), page))
            .collect())
    }
}

fn entries(file: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    let len = rustix::fs::fstat(file)?.st_size as usize / ENTRY * ENTRY;
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match rustix::io::pread(file, &mut bytes[done..], done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let pairs = pairs.iter();
    Ok(pairs
        .map(|[pool, page]| (u64::from_ne_bytes(*pool), u64::from_ne_bytes(*page)))
        .collect())
}

/// The pager's end of a record.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// What is written already: however often a process makes its pages fault, the record has each of them once.
    seen: HashSet<(u64, u64)>,
}

impl Recorder {
    /// Goes on with a record, to which a pager before may have written.
    pub fn resume(file: BorrowedFd<'_>) -> io::Result<Self> {
        let seen = entries(file)?.into_iter().collect();
        Ok(Self { seen })
    }

    /// A page is touched.
    pub fn note(&mut self, file: BorrowedFd<'_>, pool: u64, page: u64) -> io::Result<()> {
        if !self.seen.insert((pool, page)) {
            return Ok(());
        }
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&pool.to_ne_bytes());
        entry[8..].copy_from_slice(&page.to_ne_bytes());
        match rustix::io::write(file, &entry)? {
            ENTRY => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_recorded_once_in_the_order_of_its_first_touch() {
        let record = TouchRecord::new().unwrap();
        let mut recorder = Recorder::resume(record.file()).unwrap();
        for (pool, page) in [(7, 3), (7, 1), (8, 1), (7, 3)] {
            recorder.note(record.file(), pool, page).unwrap();
        }
        // The next pager.
        let mut recorder = Recorder::resume(record.file()).unwrap();
        for (pool, page) in [(7, 1), (7, 2), (8, 1)] {
            recorder.note(record.file(), pool, page).unwrap();
        }
        let expected = [(7, 3), (7, 1), (8, 1), (7, 2)].map(|(pool, page)| (PoolId(pool), page));
        assert_eq!(record.read().unwrap(), expected);
    }

    #[test]
    fn an_entry_that_was_cut_off_is_left_out() {
        let record = TouchRecord::new().unwrap();
        let mut recorder = Recorder::resume(record.file()).unwrap();
        recorder.note(record.file(), 1, 2).unwrap();
        rustix::fs::ftruncate(record.file(), 20).unwrap();
        assert_eq!(record.read().unwrap(), [(PoolId(1), 2)]);
    }
}
