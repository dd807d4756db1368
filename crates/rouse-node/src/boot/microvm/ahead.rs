//! Copies of a machine that wait for requests: those that were restored ahead, and those that have answered and were put back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::boot::Booted;

/// Copies in a row that end before they are used, or cannot be made, until no more are made for this snapshot.
const MOST_FAILURES: u32 = 4;

/// Those of one snapshot.
#[derive(Default)]
pub struct Ahead(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    parked: VecDeque<Booted>,
    /// The one that was used last is the first.
    rewound: VecDeque<(Instant, Booted)>,
    target: usize,
    is_filling: bool,
    failures: u32,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

fn lives(booted: &Booted) -> bool {
    booted.exit.borrow().is_none()
}

impl Ahead {
    /// From now on so many are to wait.
    pub fn set_target(&self, target: usize) {
        let surplus: Vec<Booted> = {
            let mut waiting = self.lock();
            waiting.target = target;
            let keep = target.min(waiting.parked.len());
            waiting.parked.drain(keep..).collect()
        };
        drop(surplus);
    }

    /// Is one missing? If so, the caller makes it, and [`put`](Self::put)s it or says that it has [`failed`](Self::failed).
    pub fn begin(&self) -> bool {
        let mut waiting = self.lock();
        let is_missing = waiting.parked.iter().filter(|one| lives(one)).count() < waiting.target
            && waiting.failures < MOST_FAILURES
            && !waiting.is_filling;
        waiting.is_filling |= is_missing;
        is_missing
    }

    /// One more waits.
    pub fn put(&self, booted: Booted) {
        let surplus = {
            let mut waiting = self.lock();
            waiting.is_filling = false;
            let dead = drain(&mut waiting.parked, |one| !lives(one));
            waiting.parked.push_back(booted);
            let most = waiting.target;
            let more: Vec<Booted> = match waiting.parked.len() {
                len if len > most => waiting.parked.drain(most..).collect(),
                _ => Vec::new(),
            };
            (dead, more)
        };
        drop(surplus);
    }

    /// None could be made.
    pub fn failed(&self) {
        let mut waiting = self.lock();
        waiting.is_filling = false;
        waiting.failures += 1;
    }

    /// One that waits and lives.
    pub fn take(&self) -> Option<Booted> {
        loop {
            let booted = self.lock().parked.pop_front()?;
            if lives(&booted) {
                self.lock().failures = 0;
                return Some(booted);
            }
            self.lock().failures += 1;
        }
    }

    /// How many wait.
    pub fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    /// Keeps one that was put back, beside at most `most - 1` others. Returns by what it is known.
    pub fn put_rewound(&self, booted: Booted, most: usize) -> Instant {
        let since = Instant::now();
        let surplus = {
            let mut waiting = self.lock();
            waiting.rewound.push_front((since, booted));
            let keep = most.min(waiting.rewound.len());
            waiting.rewound.split_off(keep)
        };
        drop(surplus);
        since
    }

    /// One that was put back and lives.
    pub fn take_rewound(&self) -> Option<Booted> {
        loop {
            let (_, booted) = self.lock().rewound.pop_front()?;
            if lives(&booted) {
                return Some(booted);
            }
        }
    }

    /// How many wait that were put back.
    pub fn rewound(&self) -> usize {
        self.lock().rewound.len()
    }

    /// Ends the one that was put back then, if it still waits.
    pub fn end_rewound_since(&self, since: Instant) {
        let ended = drain(&mut self.lock().rewound, |(time, _)| *time == since);
        drop(ended);
    }

    /// Ends all that were put back.
    pub fn end_rewound(&self) {
        let rewound = std::mem::take(&mut self.lock().rewound);
        drop(rewound);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of these is to go.
fn drain<T>(all: &mut VecDeque<T>, goes: impl Fn(&T) -> bool) -> VecDeque<T> {
    let (gone, left) = std::mem::take(all).into_iter().partition(goes);
    *all = left;
    gone
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use rouse_process::instance::{BootPath, ExitReason, Failure, MemoryUse, Stage};
    use tokio::sync::watch;

    use super::*;
    use crate::boot::Live;

    struct Nothing;

    impl Live for Nothing {
        fn kill(&self) {}
        fn memory(&self) -> io::Result<MemoryUse> {
            Ok(MemoryUse::default())
        }
        fn stages(&self) -> Vec<Stage> {
            Vec::new()
        }
        fn failure(&self) -> Option<Failure> {
            None
        }
        fn memory_peak(&self) -> u64 {
            0
        }
        fn cpu_time(&self) -> io::Result<Duration> {
            Ok(Duration::ZERO)
        }
    }

    type End = watch::Sender<Option<ExitReason>>;

    fn copy() -> (Booted, End) {
        let (end, exit) = watch::channel(None);
        let booted = Booted {
            live: Box::new(Nothing),
            path: BootPath::Parked,
            listener: None,
            parked: None,
            log: None,
            exit,
        };
        (booted, end)
    }

    fn ends(end: &End) {
        end.send_replace(Some(ExitReason::Signal(9)));
    }

    #[test]
    fn as_many_are_made_as_are_missing() {
        let ahead = Ahead::default();
        assert!(!ahead.begin(), "none was asked for");
        ahead.set_target(2);
        assert!(ahead.begin());
        assert!(!ahead.begin(), "somebody makes one");
        let (first, end) = copy();
        ahead.put(first);
        assert!(ahead.begin());
        let (second, _end) = copy();
        ahead.put(second);
        assert!(!ahead.begin());
        // One that has ended is not handed out, and is replaced.
        ends(&end);
        assert!(ahead.begin());
        let (third, _end) = copy();
        ahead.put(third);
        assert_eq!(ahead.parked(), 2);
        assert!(ahead.take().is_some());
        ahead.set_target(0);
        assert_eq!(ahead.parked(), 0);
        assert!(ahead.take().is_none());
    }

    #[test]
    fn what_fails_again_and_again_is_given_up() {
        let ahead = Ahead::default();
        ahead.set_target(1);
        for _ in 0..MOST_FAILURES {
            assert!(ahead.begin());
            ahead.failed();
        }
        assert!(!ahead.begin());
    }

    #[test]
    fn those_that_were_put_back_go_when_they_are_too_many_or_too_old() {
        let ahead = Ahead::default();
        let copies: Vec<_> = (0..3).map(|_| copy()).collect();
        let (booted, ends_of): (Vec<_>, Vec<_>) = copies.into_iter().unzip();
        let since: Vec<_> = (booted.into_iter())
            .map(|booted| ahead.put_rewound(booted, 2))
            .collect();
        assert_eq!(ahead.rewound(), 2);
        ahead.end_rewound_since(since[0]);
        assert_eq!(ahead.rewound(), 2, "it was gone before");
        ahead.end_rewound_since(since[1]);
        assert_eq!(ahead.rewound(), 1);
        ends(&ends_of[2]);
        assert!(ahead.take_rewound().is_none(), "it has ended");
    }
}
