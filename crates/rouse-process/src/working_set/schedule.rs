//! Which invocations are observed, and which boots are blind.
//!
//! An observation walks page tables (0.1 to 1 ms after the answer), so after the first ones only
//! a sample is observed. A blind boot makes one request pay the faults that all requests paid before
//! anything was learnt, and is the only way to see whether prepared pages are used; so they are rare.
//!
//! Asked on the way of every request: only atomics.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// All of the first invocations are observed.
const FIRST: u64 = 16;
/// After that one of so many (a power of two).
const ONE_OF: u64 = 16;
/// Of the first invocations, those whose touches are seen exactly, where the boot path allows it: what gets into the set
/// by chance stays in it for long.
const EXACT: u64 = 4;
/// Invocations after which a boot is blind; later one of [`BLIND_ONE_OF`].
const BLIND_AT: [u64; 3] = [8, 32, 128];
const BLIND_ONE_OF: u64 = 512;

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    answered: AtomicU64,
    blind: AtomicU32,
    observe: AtomicU32,
    /// Is anything prepared? Otherwise all boots are blind anyway.
    prepared: AtomicBool,
}

impl Schedule {
    /// Goes on after `answered` invocations.
    pub fn after(answered: u64) -> Self {
        Self {
            answered: answered.into(),
            ..Self::default()
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// An invocation has answered: is it to be observed? `unprepared`: nothing had been prepared for its instance.
    pub fn answer(&self, unprepared: bool) -> bool {
        let count = self.answered.fetch_add(1, Relaxed) + 1;
        if BLIND_AT.contains(&count) || sampled(count, BLIND_ONE_OF) {
            self.blind.fetch_max(1, Relaxed);
        }
        // A blind boot was made to be observed. One that is observed for one reason does not use up the other.
        let blind = unprepared && self.prepared.load(Relaxed);
        blind || count <= FIRST || sampled(count, ONE_OF) || take(&self.observe)
    }

    /// Boots are prepared from now on, or not.
    pub fn set_prepared(&self, prepared: bool) {
        self.prepared.store(prepared, Relaxed);
    }

    /// The next `count` invocations are to be observed, and their boots blind where they can.
    pub fn record(&self, count: u32) {
        self.blind.fetch_max(count, Relaxed);
        self.observe.fetch_max(count, Relaxed);
    }

    /// Is it to be seen exactly what the next boot touches, though it may be prepared?
    pub fn wants_exact(&self) -> bool {
        self.answered() < EXACT
    }

    /// Should the next boot be blind?
    pub fn wants_blind(&self) -> bool {
        self.prepared.load(Relaxed) && self.blind.load(Relaxed) > 0
    }

    /// The boot that is about to begin is blind, if it should be.
    pub fn take_blind(&self) -> bool {
        self.prepared.load(Relaxed) && take(&self.blind)
    }
}

/// One of `of` numbers, evenly spread but in step with nothing: a function may do something else on every second call.
fn sampled(count: u64, of: u64) -> bool {
    // Multiples of the golden ratio, as fractions of 2^64.
    count.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX / of
}

fn take(count: &AtomicU32) -> bool {
    count
        .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_observed_then_a_sample() {
        let schedule = Schedule::default();
        let observed: Vec<u64> = (1..=100).filter(|_| schedule.answer(false)).collect();
        assert_eq!(observed[..16], (1..=16).collect::<Vec<u64>>());
        let later = &observed[16..];
        assert!((4..=7).contains(&later.len()), "{later:?}");
        let odd = later.iter().filter(|count| *count % 2 == 1).count();
        assert!(odd > 0 && odd < later.len(), "{later:?}");
    }

    #[test]
    fn blind_boots_are_rare_and_only_where_something_is_prepared() {
        let schedule = Schedule::default();
        let mut blind = 0;
        for count in 1..=1100 {
            schedule.set_prepared(count > 1);
            blind += u32::from(schedule.take_blind());
            schedule.answer(false);
        }
        assert!((4..=6).contains(&blind), "{blind}");
        schedule.set_prepared(false);
        schedule.record(4);
        assert!(!schedule.wants_blind() && !schedule.take_blind());
        schedule.set_prepared(true);
        let taken = (0..9).filter(|_| schedule.take_blind()).count();
        assert_eq!(taken, 4);
        let observed = (0..4).filter(|_| schedule.answer(false)).count();
        assert_eq!(observed, 4);
        assert!(schedule.answer(true), "a blind one always is");
    }
}
