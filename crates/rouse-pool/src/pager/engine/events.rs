//! What happens in watched processes.

use std::collections::HashMap;
use std::os::fd::RawFd;

use rustix::event::epoll;
use rustix::fs::OFlags;

use super::super::arena::MAX_WATCHES;
use super::super::protocol::Notice;
use super::super::ranges::{Mapped, Ranges};
use super::demand::Waiter;
use super::timers::{self, Timer};
use super::{Engine, FIRST_WATCH, close_slot_fd};
use crate::touches::Recorder;
use crate::uffd::{Event, Userfaultfd};

/// Faults of one thread at one address, with its page present, after which the address is not
/// believed any more.
const MAX_STRIKES: u32 = 4;

/// A process whose memory is watched.
#[derive(Debug)]
pub(super) struct Watch {
    pub fd: RawFd,
    pub token: u64,
    pub ranges: Ranges,
    /// Slots of all pools that it may map.
    pub pools: Vec<u32>,
    /// Job that fills all of them, and who waits for its end.
    pub rescue: Option<(u64, Vec<Waiter>)>,
    /// How often a thread faulted at an address whose page was present. Counted for each thread:
    /// many of them may come a moment too late for the same page.
    strikes: HashMap<(u64, u32), u32>,
    /// What has been written down already of the pages that it touches, if that is asked for.
    pub recorder: Option<Recorder>,
}

impl Engine {
    /// Reads the waiting events of a watch, and answers its faults.
    pub(super) fn read_events(&mut self, slot: usize) {
        let Some(watch) = self.watches.get(&slot) else {
            return;
        };
        let uffd = Userfaultfd::new(self.borrow(watch.fd));
        let mut events = Vec::new();
        // If this pager dies from here on, a descriptor that nobody knows is this one's child.
        self.arena.set_reading(Some(slot));
        if let Err(error) = uffd.read(&mut events) {
            let token = watch.token;
            // For instance too many open files to follow a fork: it waits, and is tried again.
            let detail = format!("cannot read the events of an instance: {error}");
            self.control.send(Notice::Trouble { token, detail });
        }
        let (mut faults, mut changed) = (Vec::new(), false);
        for event in events {
            match event {
                Event::Fault {
                    address,
                    thread,
                    present,
                } => {
                    let waiter = Waiter {
                        slot,
                        address,
                        thread,
                    };
                    faults.push((waiter, present));
                }
                Event::Fork { fd } => {
                    self.arena.counters.forks.add(1);
                    self.adopt(slot, fd);
                }
                // The pool's page shows up again. Nothing to be done, but it must be read.
                Event::Remove { .. } => self.arena.counters.moves.add(1),
                Event::Remap { from, to, len } => {
                    changed |= self.change(slot, |ranges| ranges.relocate(from, to, len));
                }
                Event::Unmap { start, end } => {
                    changed |= self.change(slot, |ranges| ranges.remove(start, end));
                }
            }
        }
        if changed && let Some(watch) = self.watches.get(&slot) {
            self.arena.watches[slot].write_ranges(&watch.ranges);
        }
        self.arena.set_reading(None);
        self.arena.counters.faults.add(faults.len() as u64);
        for (waiter, present) in faults {
            self.note(waiter);
            match present {
                true => self.map(waiter),
                false => self.fault(waiter, 0),
            }
        }
    }

    fn change(&mut self, slot: usize, change: impl FnOnce(&mut Ranges) -> bool) -> bool {
        self.arena.counters.moves.add(1);
        self.watches.get_mut(&slot).is_some_and(|watch| {
            watch.strikes.clear();
            change(&mut watch.ranges)
        })
    }

    /// Answers somebody who waits; `attempts` counts how often the address was not known.
    pub(super) fn fault(&mut self, waiter: Waiter, attempts: u32) {
        let Some(watch) = self.watches.get(&waiter.slot) else {
            return;
        };
        match watch.ranges.find(waiter.address) {
            Some((pool, page)) => self.demand(pool as usize, page, waiter),
            // It may be that memory was moved, and the event comes only now.
            None if attempts < timers::MAX_UNKNOWN => {
                let attempts = attempts + 1;
                let timer = Timer::Fault(waiter, attempts);
                self.timers.add(timers::UNKNOWN, timer);
            }
            None => self.rescue(waiter),
        }
    }

    /// Somebody waits for a page that is present: most often it was filled a moment ago.
    pub(super) fn strike(&mut self, waiter: Waiter) {
        let Some(watch) = self.watches.get_mut(&waiter.slot) else {
            return;
        };
        if watch.strikes.len() > 1000 {
            watch.strikes.clear();
        }
        let strikes = watch
            .strikes
            .entry((waiter.address, waiter.thread))
            .or_insert(0);
        *strikes += 1;
        if *strikes >= MAX_STRIKES {
            watch.strikes.clear();
            self.rescue(waiter);
        } else {
            self.wake(waiter);
        }
    }

    pub(super) fn wake(&self, waiter: Waiter) {
        if let Some(watch) = self.watches.get(&waiter.slot) {
            // Fails only when the process is gone.
            let _ = Userfaultfd::new(self.borrow(watch.fd)).wake(waiter.address, 4096);
        }
    }

    /// Follows a fork: the child maps what its parent mapped.
    pub(super) fn adopt(&mut self, parent: usize, fd: RawFd) {
        let Some(watch) = self.watches.get(&parent) else {
            return;
        };
        let (token, pools, ranges) = (watch.token, watch.pools.clone(), watch.ranges.clone());
        let Some(slot) = self.arena.free_watch() else {
            // Left open and unanswered: the child waits until the daemon ends it.
            self.arena.set_overflow();
            let detail = format!("more than {MAX_WATCHES} processes are watched");
            return self.control.send(Notice::Trouble { token, detail });
        };
        let cell = &self.arena.watches[slot];
        cell.occupy(fd, None, token, true, &pools, &ranges);
        cell.set_registered();
        self.watch(slot, fd, token, pools, ranges);
        self.timers.add(timers::SWEEP, Timer::Sweep);
    }

    /// Begins to listen to a descriptor.
    pub(super) fn watch(
        &mut self,
        slot: usize,
        fd: RawFd,
        token: u64,
        pools: Vec<u32>,
        ranges: Ranges,
    ) {
        // Without this flag the kernel reports nothing but errors.
        let borrowed = self.borrow(fd);
        let listening = rustix::fs::fcntl_setfl(borrowed, OFlags::NONBLOCK)
            .map_err(Into::into)
            .and_then(|()| self.listen(fd, FIRST_WATCH + slot as u64));
        if let Err(error) = listening {
            let detail = format!("cannot listen to an instance: {error}");
            self.control.send(Notice::Trouble { token, detail });
        }
        let watch = Watch {
            fd,
            token,
            ranges,
            pools,
            rescue: None,
            strikes: HashMap::new(),
            recorder: None,
        };
        self.watches.insert(slot, watch);
    }

    /// Gives up watches whose process has ended; `None` looks at all.
    pub(super) fn bury(&mut self, token: Option<u64>) {
        let dead: Vec<usize> = self
            .watches
            .iter()
            .filter(|(_, watch)| token.is_none_or(|token| watch.token == token))
            .filter(|(_, watch)| !Userfaultfd::new(self.borrow(watch.fd)).is_alive())
            .map(|(slot, _)| *slot)
            .collect();
        for slot in &dead {
            self.forget(*slot);
        }
    }

    /// Gives up a watch. Its memory must be gone, or must never have been registered.
    pub(super) fn forget(&mut self, slot: usize) {
        let cell = &self.arena.watches[slot];
        let (fd, record) = (cell.fd(), cell.record());
        self.forget_waiters(slot);
        cell.free();
        if self.watches.remove(&slot).is_some() {
            let _ = epoll::delete(&self.epoll, self.borrow(fd));
        }
        close_slot_fd(fd);
        record.into_iter().for_each(close_slot_fd);
    }
}

/// Ranges that the kernel can be told of with one call: neighbours joined.
pub(super) fn spans(ranges: &Ranges) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for Mapped { address, pages, .. } in ranges.iter() {
        let bytes = pages * rouse_snapshot::model::PAGE_SIZE;
        match spans.last_mut() {
            Some((start, len)) if *start + *len == *address => *len += bytes,
            _ => spans.push((*address, bytes)),
        }
    }
    spans
}
