//! Serves one VMM until it ends.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rouse_snapshot::model::PAGE_SIZE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::pages::{PageState, Pages, Region};
use super::{Contents, Handshake, ServeError};
use crate::uffd::{Answered, Event, FillEnd, Userfaultfd};

/// Pages that are filled ahead in one go: nobody waits longer than for these.
const AHEAD_PAGES: u64 = 64;
/// How often filling is tried again when there is no memory, with 20 ms in between: five seconds.
const MOST_ATTEMPTS: u32 = 250;
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// What was done for a VMM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Faults that were answered.
    pub faults: u64,
    /// Pages filled because somebody waited for them or for a neighbour, 4096 bytes each.
    pub demanded_pages: u64,
    /// Pages filled before anybody asked.
    pub prefetched_pages: u64,
    /// Pages answered with zeros because the guest had given them back.
    pub zeroed_pages: u64,
    /// Times that filling had to wait for an event to be read.
    pub retries: u64,
    /// Pages that could not be read, and fail in the VMM.
    pub damaged_pages: u64,
    /// Pages of the memory file in the order in which they were first asked for: the working set.
    pub order: Vec<u64>,
}

/// Serves a VMM. Returns when it has ended, which is when it closes `stream`.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(
    stream: &UnixStream,
    handshake: Handshake,
    contents: &dyn Contents,
) -> Result<Served, ServeError> {
    let mut ahead = VecDeque::new();
    for range in contents.hot() {
        let starts = range.clone().step_by(AHEAD_PAGES as usize);
        ahead.extend(starts.map(|start| start..(start + AHEAD_PAGES).min(range.end)));
    }
    let server = Server {
        uffd: Userfaultfd::new(handshake.uffd.as_fd()),
        pages: Pages::new(handshake.regions.clone()),
        contents,
        waiting: VecDeque::new(),
        ahead,
        buffer: Vec::new(),
        attempts: 0,
        served: Served::default(),
    };
    server.run(stream)
}

struct Server<'a> {
    uffd: Userfaultfd<'a>,
    pages: Pages,
    contents: &'a dyn Contents,
    /// Addresses that somebody waits for.
    waiting: VecDeque<u64>,
    /// Pages of the file to be filled while nobody waits.
    ahead: VecDeque<Range<u64>>,
    buffer: Vec<u8>,
    /// Fills that failed one after the other for want of memory.
    attempts: u32,
    served: Served,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next one.
    Go,
    /// Events must be read first.
    Read,
    /// There is no memory: a little later.
    Pause,
    /// The VMM is gone.
    End,
}

impl Server<'_> {
    fn run(mut self, stream: &UnixStream) -> Result<Served, ServeError> {
        loop {
            // All events that are there, before any fault is answered.
            self.read()?;
            let next = self.answer()?;
            let idle = self.waiting.is_empty() && self.ahead.is_empty();
            let timeout = match next {
                Next::End => return Ok(self.served),
                Next::Pause => Some(PAUSE),
                Next::Go | Next::Read if idle => None,
                Next::Go | Next::Read => Some(Timespec::default()),
            };
            if self.wait(stream, timeout)? {
                return Ok(self.served);
            }
        }
    }

    /// Waits for events; whether the VMM has ended.
    fn wait(&self, stream: &UnixStream, timeout: Option<Timespec>) -> Result<bool, ServeError> {
        // The VMM says nothing more: what is readable there is its end.
        let mut ready = [
            PollFd::new(&self.uffd, PollFlags::IN),
            PollFd::new(stream, PollFlags::IN),
        ];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(ServeError::Events(error.into())),
        }
        let ends = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ok(ready[1].revents().intersects(ends))
    }

    fn read(&mut self) -> Result<(), ServeError> {
        let mut events = Vec::new();
        loop {
            self.uffd.read(&mut events).map_err(ServeError::Events)?;
            if events.is_empty() {
                return Ok(());
            }
            for event in &events {
                match *event {
                    Event::Fault { address, .. } => self.waiting.push_back(address),
                    Event::Remove { start, end } => self.pages.removed(start, end),
                    // Firecracker does not ask for these; memory that is gone is noticed when it is filled.
                    Event::Fork { .. } | Event::Remap { .. } | Event::Unmap { .. } => {}
                }
            }
        }
    }

    /// Answers whoever waits; then fills one batch ahead.
    fn answer(&mut self) -> Result<Next, ServeError> {
        while let Some(address) = self.waiting.front().copied() {
            match self.fault(address)? {
                Next::Go => {
                    self.waiting.pop_front();
                    self.served.faults += 1;
                    self.attempts = 0;
                }
                other => return Ok(other),
            }
        }
        let Some(range) = self.ahead.front().cloned() else {
            return Ok(Next::Go);
        };
        let next = self.fill_ahead(range)?;
        if next == Next::Go {
            self.ahead.pop_front();
        }
        Ok(next)
    }

    fn fault(&mut self, address: u64) -> Result<Next, ServeError> {
        // A fault outside of the regions is none that this handler was asked to answer.
        let Some((region, start)) = self.pages.find(address) else {
            return Ok(Next::Go);
        };
        let region = *region;
        match self.pages.state(start) {
            Some(PageState::Absent) => self.demand(region, start),
            // A page that was filled and is asked for again was dropped without a word, and then it is zeros; or somebody had
            // been waiting a moment too long, and is woken.
            _ => self.zeros(region, start),
        }
    }

    fn demand(&mut self, region: Region, start: u64) -> Result<Next, ServeError> {
        let page = (region.offset + (start - region.address)) / PAGE_SIZE;
        let small = region.page_size == PAGE_SIZE;
        let wanted = match small {
            true => self.contents.around(page),
            false => page..page + region.page_size / PAGE_SIZE,
        };
        // In this region, and only what is still absent next to it.
        let first = region.offset / PAGE_SIZE;
        let wanted = wanted.start.max(first)..wanted.end.min(first + region.size / PAGE_SIZE);
        let address_of = |page: u64| region.address + (page - first) * PAGE_SIZE;
        let absent = |page: u64| self.pages.state(address_of(page)) == Some(PageState::Absent);
        let wanted = match small {
            true => around(page, &wanted, absent),
            false => wanted,
        };
        if self.served.order.last() != Some(&page) {
            self.served.order.push(page);
        }
        let next = match self.read_pages(wanted.clone()) {
            Ok(()) => {
                let address = address_of(wanted.start);
                let (next, done) = self.put(address, region.page_size)?;
                self.served.demanded_pages += done / PAGE_SIZE;
                next
            }
            Err(source) => self.damaged(start, page, source)?,
        };
        // Neighbours may have been filled up to a page that was there already, and the one that is waited for lies behind.
        match next {
            Next::Go if self.pages.state(start) == Some(PageState::Absent) => Ok(Next::Read),
            next => Ok(next),
        }
    }

    fn fill_ahead(&mut self, file: Range<u64>) -> Result<Next, ServeError> {
        for (address, part) in self.pages.addresses_of(file) {
            let Some((region, _)) = self.pages.find(address) else {
                continue;
            };
            let region = *region;
            // A huge page is filled as a whole, with its first page that is hot.
            let step = region.page_size / PAGE_SIZE;
            let first = (address - region.address) / region.page_size * region.page_size;
            let end = address - region.address + (part.end - part.start) * PAGE_SIZE;
            let mut at = region.address + first;
            while at < region.address + end {
                let mut count = 0;
                while at + count * region.page_size < region.address + end
                    && self.pages.state(at + count * region.page_size) == Some(PageState::Absent)
                {
                    count += 1;
                }
                if count > 0 {
                    let page = (region.offset + (at - region.address)) / PAGE_SIZE;
                    // What cannot be read is found again by whoever needs it.
                    if self.read_pages(page..page + count * step).is_ok() {
                        let (next, done) = self.put(at, region.page_size)?;
                        self.served.prefetched_pages += done / PAGE_SIZE;
                        if next != Next::Go {
                            return Ok(next);
                        }
                    }
                }
                at += count.max(1) * region.page_size;
            }
        }
        Ok(Next::Go)
    }

    fn read_pages(&mut self, pages: Range<u64>) -> io::Result<()> {
        let len = ((pages.end - pages.start) * PAGE_SIZE) as usize;
        self.buffer.resize(len, 0);
        self.contents.read(pages, &mut self.buffer)
    }

    /// Puts the buffer in, and returns how many bytes were new.
    fn put(&mut self, address: u64, page_size: u64) -> Result<(Next, u64), ServeError> {
        let (mut done, mut new) = (0, 0);
        while done < self.buffer.len() as u64 {
            let at = address + done;
            let filled = self.uffd.fill(at, &self.buffer[done as usize..]);
            self.pages.filled(at, filled.bytes);
            done += filled.bytes;
            new += filled.bytes;
            match self.after(filled.end, address + done, page_size)? {
                // All of it, or a page that is there: the ones behind it may not be.
                Next::Go if filled.end == FillEnd::Present => done += page_size,
                Next::Go => {}
                next => return Ok((next, new)),
            }
        }
        Ok((Next::Go, new))
    }

    fn zeros(&mut self, region: Region, start: u64) -> Result<Next, ServeError> {
        let filled = match region.page_size {
            PAGE_SIZE => self.uffd.fill_zeros(start, PAGE_SIZE),
            // The kernel has no huge page of zeros.
            huge => {
                self.buffer.clear();
                self.buffer.resize(huge as usize, 0);
                self.uffd.fill(start, &self.buffer)
            }
        };
        self.pages.filled(start, filled.bytes);
        self.served.zeroed_pages += filled.bytes / PAGE_SIZE;
        self.after(filled.end, start + filled.bytes, region.page_size)
    }

    fn after(&mut self, end: FillEnd, address: u64, page_size: u64) -> Result<Next, ServeError> {
        match end {
            FillEnd::Done => Ok(Next::Go),
            FillEnd::Present => {
                self.pages.filled(address, page_size);
                // Fails only when the process is gone.
                let _ = self.uffd.wake(address, page_size);
                Ok(Next::Go)
            }
            FillEnd::Later => {
                self.served.retries += 1;
                Ok(Next::Read)
            }
            // The VMM has unmapped it or watches it no longer: whoever waits is let go, and sees what is there now.
            FillEnd::Unwatched => {
                self.pages.filled(address, page_size);
                let _ = self.uffd.wake(address, page_size);
                Ok(Next::Go)
            }
            FillEnd::Gone => Ok(Next::End),
            FillEnd::Failed(errno) if errno == Errno::NOMEM && self.attempts < MOST_ATTEMPTS => {
                self.attempts += 1;
                Ok(Next::Pause)
            }
            FillEnd::Failed(errno) => Err(ServeError::Fill {
                address,
                source: errno.into(),
            }),
        }
    }

    /// A page that cannot be read fails in the VMM: wrong bytes would be worse.
    fn damaged(&mut self, address: u64, page: u64, source: io::Error) -> Result<Next, ServeError> {
        match self.uffd.poison(address) {
            Answered::Done => {
                tracing::error!(page, error = %source, "a page of a VMM cannot be read");
                self.pages.filled(address, PAGE_SIZE);
                self.served.damaged_pages += 1;
                Ok(Next::Go)
            }
            Answered::Later => Ok(Next::Read),
            Answered::Gone => Ok(Next::End),
            Answered::Unsupported => Err(ServeError::Read { page, source }),
        }
    }
}

/// Pages of `wanted` next to `page` that are all absent.
fn around(page: u64, wanted: &Range<u64>, absent: impl Fn(u64) -> bool) -> Range<u64> {
    let start = (wanted.start..page).rev().take_while(|page| absent(*page));
    let end = (page + 1..wanted.end).take_while(|page| absent(*page));
    start.last().unwrap_or(page)..end.last().map_or(page, |last| last) + 1
}
