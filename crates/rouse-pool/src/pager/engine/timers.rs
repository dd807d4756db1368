//! What is tried again later.

use std::time::{Duration, Instant};

use super::Engine;
use super::demand::Waiter;

/// An address is not known: until it is looked at again.
pub(super) const UNKNOWN: Duration = Duration::from_micros(300);
/// How often it is looked at again before everything is filled.
pub(super) const MAX_UNKNOWN: u32 = 3;
/// No memory for a page: until it is tried again.
pub(super) const MEMORY: Duration = Duration::from_millis(20);
/// How often that is tried: five seconds, in which the daemon may make room. It may have little of a busy processor.
pub(super) const MAX_MEMORY: u32 = 250;
/// An unread event is in the way of poisoning.
pub(super) const POISON: Duration = Duration::from_micros(300);
/// The same, of mapping a page.
pub(super) const MAP: Duration = POISON;
/// Between two looks for processes that have ended.
pub(super) const SWEEP: Duration = Duration::from_millis(500);
/// The same, of an instance of which the daemon has said that it ends.
pub(super) const ENDING: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Look at an address again, for the n-th time.
    Fault(Waiter, u32),
    /// Try to fill a piece again: (slot of the pool, piece).
    Memory(usize, usize),
    /// Try again to send what there was no memory to send.
    Flush,
    /// Try to poison again.
    Poison(Waiter),
    /// Try to map a page that is present again.
    Map(Waiter),
    /// Look for processes that have ended.
    Sweep,
    /// The same for one instance.
    Ending(u64),
}

#[derive(Debug, Default)]
pub(super) struct Timers(Vec<(Instant, Timer)>);

impl Timers {
    /// Adds one, unless the same is waiting already.
    pub fn add(&mut self, after: Duration, timer: Timer) {
        if !self.0.iter().any(|(_, other)| *other == timer) {
            self.0.push((Instant::now() + after, timer));
        }
    }

    /// Forgets what was to be done for threads of a process.
    pub fn forget(&mut self, slot: usize) {
        self.0.retain(|(_, timer)| match timer {
            Timer::Fault(waiter, _) | Timer::Poison(waiter) | Timer::Map(waiter) => {
                waiter.slot != slot
            }
            Timer::Memory(..) | Timer::Flush | Timer::Sweep | Timer::Ending(_) => true,
        });
    }

    /// How long until the next is due.
    pub fn next(&self) -> Option<Duration> {
        let next = self.0.iter().map(|(due, _)| *due).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn due(&mut self) -> Vec<Timer> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        self.0
            .extract_if(.., |(due, _)| *due <= now)
            .map(|(_, timer)| timer)
            .collect()
    }
}

impl Engine {
    pub(super) fn run_timers(&mut self) {
        for timer in self.timers.due() {
            match timer {
                Timer::Fault(waiter, attempts) => self.fault(waiter, attempts),
                Timer::Memory(pool, piece) => self.retry(pool, piece),
                // It is, at the end of each round.
                Timer::Flush => {}
                Timer::Poison(waiter) => self.poison_now(waiter),
                Timer::Map(waiter) => self.map(waiter),
                Timer::Sweep => {
                    self.bury(None);
                    let children =
                        (self.watches.keys()).any(|slot| self.arena.watches[*slot].is_child());
                    if children || self.daemon_is_gone {
                        self.timers.add(SWEEP, Timer::Sweep);
                    }
                }
                Timer::Ending(token) => {
                    self.bury(Some(token));
                    if self.watches.values().any(|watch| watch.token == token) {
                        self.timers.add(ENDING, Timer::Ending(token));
                    }
                }
            }
        }
    }
}
