//! What a new pager finds.
//!
//! The order is given by what must never happen: that the last copy of a userfaultfd is closed
//! while its memory is in use, and that somebody waits whom nobody knows of.
//!
//! 1. Look at all descriptors before opening any. Those of slots stay. A userfaultfd that no slot
//!    knows came with a fork, if the pager before died while it read events: then it belongs to a
//!    child of the process whose events those were. Everything else was its own, and is closed.
//! 2. Give those children slots.
//! 3. Wake everybody: faults that the pager before had read died with it. They come again.
//! 4. Greet the daemon, which sends again what was not answered.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use super::super::arena::Arena;
use super::super::protocol::Notice;
use super::timers::{self, Timer};
use super::{Engine, close_slot_fd};
use crate::uffd::{Device, Userfaultfd};

/// Descriptors of children that no slot knows, and whose children they are.
#[derive(Debug)]
pub(super) struct Lost {
    parent: Option<usize>,
    children: Vec<RawFd>,
}

/// Closes what the pager before has left, except what others depend on.
pub(super) fn sweep(arena: &'static Arena) -> io::Result<Lost> {
    let parent = arena.reading();
    let overflow = arena.overflow.load(Ordering::SeqCst) != 0;
    let mut known: HashSet<RawFd> = (0..=2).collect();
    known.insert(arena.socket.load(Ordering::Relaxed));
    known.insert(arena.device.load(Ordering::Relaxed));
    known.extend(
        arena
            .used_pools()
            .flat_map(|slot| arena.pools[slot].descriptors()),
    );
    known.extend(arena.used_watches().map(|slot| arena.watches[slot].fd()));
    known.extend(
        arena
            .used_watches()
            .filter_map(|slot| arena.watches[slot].record()),
    );
    let own = arena.own_uffd.load(Ordering::Relaxed);
    let mut children = Vec::new();
    for fd in open_descriptors()? {
        if known.contains(&fd) {
            continue;
        }
        let is_uffd = fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]");
        if is_uffd && fd != own && parent.is_some() {
            children.push(fd);
        } else if !(is_uffd && overflow) {
            close_slot_fd(fd);
        }
    }
    Ok(Lost { parent, children })
}

/// All open descriptors but that of the list itself.
fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // The list was open while it was read.
    all.retain(|fd| {
        // SAFETY: only asks for flags; the number may be of no descriptor.
        let borrowed = unsafe { BorrowedFd::borrow_raw(*fd) };
        rustix::io::fcntl_getfd(borrowed).is_ok()
    });
    Ok(all)
}

/// A userfaultfd of the pager's own memory.
pub(super) fn make_uffd(arena: &'static Arena) -> io::Result<OwnedFd> {
    let fd = Device::borrow(arena.device.load(Ordering::Relaxed)).create()?;
    arena.own_uffd.store(fd.as_raw_fd(), Ordering::Relaxed);
    Ok(fd)
}

impl Engine {
    pub(super) fn take_over(&mut self, lost: Lost) {
        let slots: Vec<usize> = self.arena.used_watches().collect();
        for slot in slots {
            let cell = &self.arena.watches[slot];
            // What was not registered is sent again, and replaced then.
            if cell.is_registered() {
                let (pools, ranges) = (cell.pools(), cell.read_ranges());
                self.watch(slot, cell.fd(), cell.token(), pools, ranges);
                self.resume_record(slot);
            }
            if cell.is_ending() {
                self.timers.add(timers::ENDING, Timer::Ending(cell.token()));
            }
        }
        if let Some(parent) = lost.parent {
            for fd in lost.children {
                self.adopt(parent, fd);
            }
        }
        self.arena.set_reading(None);
        for watch in self.watches.values() {
            // Fails only when the process is gone, and then nobody waits.
            let _ = Userfaultfd::new(self.borrow(watch.fd)).wake_all();
        }
        self.timers.add(timers::SWEEP, Timer::Sweep);
        let generation = self.arena.generation.load(Ordering::Relaxed);
        self.control.send(Notice::Hello { generation });
    }
}
