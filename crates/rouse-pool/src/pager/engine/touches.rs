//! Processes of which every first touch is seen.
//!
//! ```text
//!  page absent:            fault --written down--> demand --> fill, wake --> the thread faults again, as below
//!  present, not mapped:    fault --written down--> mapped, woken
//! ```
//! A child that such a process forks inherits the registration but not the record: its faults are answered, and not written down.

use super::super::protocol::{Failure, Notice};
use super::Engine;
use super::demand::Waiter;
use super::timers::{self, Timer};
use crate::touches::Recorder;
use crate::uffd::{Mapped, Userfaultfd};

impl Engine {
    /// Goes on with the record of a watch, if it has one. One that cannot be used is not: it is only advice.
    pub(super) fn resume_record(&mut self, slot: usize) {
        let Some(fd) = self.arena.watches[slot].record() else {
            return;
        };
        let recorder = Recorder::resume(self.borrow(fd));
        let Some(watch) = self.watches.get_mut(&slot) else {
            return;
        };
        match recorder {
            Ok(recorder) => watch.recorder = Some(recorder),
            Err(error) => {
                let token = watch.token;
                let detail = format!("the order of touches is not recorded: {error}");
                self.control.send(Notice::Trouble { token, detail });
            }
        }
    }

    /// Writes down what somebody touches.
    pub(super) fn note(&mut self, waiter: Waiter) {
        let Some(fd) = self.arena.watches[waiter.slot].record() else {
            return;
        };
        let Some(watch) = self.watches.get_mut(&waiter.slot) else {
            return;
        };
        let Some((pool, page)) = watch.ranges.find(waiter.address) else {
            return;
        };
        let (token, pool) = (watch.token, self.arena.pools[pool as usize].id());
        let Some(mut recorder) = watch.recorder.take() else {
            return;
        };
        // Without its recorder from now on, if that fails.
        if let Err(error) = recorder.note(self.borrow(fd), pool, page) {
            let detail = format!("the order of touches is not recorded any further: {error}");
            self.control.send(Notice::Trouble { token, detail });
        } else if let Some(watch) = self.watches.get_mut(&waiter.slot) {
            watch.recorder = Some(recorder);
        }
    }

    /// Somebody waits for a page that was there, and only is not mapped.
    pub(super) fn map(&mut self, waiter: Waiter) {
        let Some(watch) = self.watches.get(&waiter.slot) else {
            return;
        };
        match Userfaultfd::new(self.borrow(watch.fd)).map(waiter.address) {
            Mapped::Done | Mapped::Gone => {}
            // It was taken out meanwhile.
            Mapped::Absent => self.fault(waiter, 0),
            Mapped::Later => self.timers.add(timers::MAP, Timer::Map(waiter)),
            // The page is there and right: what is lacking is the memory to map it.
            Mapped::Refused => {
                self.poison(waiter, Failure::Memory, "the kernel does not map a page");
            }
        }
    }
}
