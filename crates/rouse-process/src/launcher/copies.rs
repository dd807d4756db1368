//! Copies of a snapshot that wait for requests: those that were made ahead, and those that have answered and were put back.
//!
//! ```text
//!            put                    take
//!  (made) ---------> parked ----------------> used
//!                      | ends, is one too many
//!                      v
//!                   (dropped)
//!            put_rewound            take_rewound
//!  (rewound) ------> rewound ---------------> used
//! ```
//! Whose copies they are, and who makes them, is not known here. What is dropped is dropped without the lock, since ending
//! an instance may take a moment.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Copies in a row that end before they are used, or cannot be made, until no more are made for a while.
const MOST_FAILURES: u32 = 4;
/// How long none are made then.
const PAUSE: Duration = Duration::from_secs(30);

/// What can wait.
pub trait Waits {
    /// Can it still be used?
    fn lives(&self) -> bool;
}

/// By what one is known that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyId(u64);

/// Those of one snapshot.
pub struct Copies<T>(Mutex<State<T>>);

struct State<T> {
    parked: VecDeque<(CopyId, T)>,
    /// The one that was used last is the first.
    rewound: VecDeque<(CopyId, T)>,
    next: u64,
    target: usize,
    /// Is somebody making them?
    filling: bool,
    failures: u32,
    paused_until: Option<Instant>,
}

impl<T> Default for Copies<T> {
    fn default() -> Self {
        Self(Mutex::new(State {
            parked: VecDeque::new(),
            rewound: VecDeque::new(),
            next: 0,
            target: 0,
            filling: false,
            failures: 0,
            paused_until: None,
        }))
    }
}

impl<T: Waits> fmt::Debug for Copies<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies")
            .field("parked", &self.parked())
            .field("rewound", &self.rewound())
            .finish()
    }
}

impl<T: Waits> Copies<T> {
    /// From now on so many are to wait.
    pub fn set_target(&self, target: usize) {
        let surplus: Vec<_> = {
            let mut state = self.lock();
            state.target = target;
            let keep = target.min(state.parked.len());
            state.parked.drain(keep..).collect()
        };
        drop(surplus);
    }

    /// Is one missing, and nobody makes it? If so, the caller makes one after the other, as long as [`goes_on`](Self::goes_on)
    /// says so. Those that are not `fresh` do not count, but stay until they are replaced.
    pub fn begin(&self, fresh: impl Fn(&T) -> bool) -> bool {
        let mut state = self.lock();
        if state.filling || !state.wants(&fresh, Instant::now()) {
            return false;
        }
        state.filling = true;
        true
    }

    /// Is another one to be made by who has begun? If not, who comes next may begin.
    pub fn goes_on(&self, fresh: impl Fn(&T) -> bool) -> bool {
        let mut state = self.lock();
        state.filling = state.wants(&fresh, Instant::now());
        state.filling
    }

    /// None can be made until somebody asks for them again.
    pub fn give_up(&self) {
        let mut state = self.lock();
        state.target = 0;
        state.filling = false;
    }

    /// None could be made, or one has ended that waited.
    pub fn failed(&self) {
        self.lock().fail(Instant::now());
    }

    /// One more waits. If they are too many, those that are not `fresh` go first.
    pub fn put(&self, copy: T, fresh: impl Fn(&T) -> bool) -> CopyId {
        let (id, surplus) = {
            let mut state = self.lock();
            let id = state.id();
            state.parked.push_back((id, copy));
            let mut surplus = Vec::new();
            while state.parked.len() > state.target {
                let at = state.parked.iter().position(|(_, one)| !fresh(one));
                surplus.extend(state.parked.remove(at.unwrap_or(0)));
            }
            (id, surplus)
        };
        drop(surplus);
        id
    }

    /// One that waits and lives.
    pub fn take(&self) -> Option<T> {
        loop {
            let (_, copy) = self.lock().parked.pop_front()?;
            if copy.lives() {
                self.lock().failures = 0;
                return Some(copy);
            }
            self.failed();
        }
    }

    /// This one has ended. Says whether it still waited.
    pub fn ended(&self, id: CopyId) -> bool {
        let found = {
            let mut state = self.lock();
            let found = remove(&mut state.parked, id);
            if found.is_some() {
                state.fail(Instant::now());
            }
            found
        };
        found.is_some()
    }

    /// How many wait that were made ahead.
    pub fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    /// Keeps one that was put back, beside at most `most - 1` others.
    pub fn put_rewound(&self, copy: T, most: usize) -> CopyId {
        let (id, surplus) = {
            let mut state = self.lock();
            let id = state.id();
            state.rewound.push_front((id, copy));
            let keep = most.min(state.rewound.len());
            (id, state.rewound.split_off(keep))
        };
        drop(surplus);
        id
    }

    /// One that was put back and lives.
    pub fn take_rewound(&self) -> Option<T> {
        loop {
            let (_, copy) = self.lock().rewound.pop_front()?;
            if copy.lives() {
                return Some(copy);
            }
        }
    }

    /// How many wait that were put back.
    pub fn rewound(&self) -> usize {
        self.lock().rewound.len()
    }

    /// Ends this one, if it still waits.
    pub fn end_rewound(&self, id: CopyId) {
        let ended = remove(&mut self.lock().rewound, id);
        drop(ended);
    }

    /// Ends all that were put back.
    pub fn end_all_rewound(&self) {
        let rewound = std::mem::take(&mut self.lock().rewound);
        drop(rewound);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Waits> State<T> {
    fn id(&mut self) -> CopyId {
        self.next += 1;
        CopyId(self.next)
    }

    fn wants(&mut self, fresh: &impl Fn(&T) -> bool, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        let counts = |(_, one): &&(CopyId, T)| one.lives() && fresh(one);
        self.parked.iter().filter(counts).count() < self.target
    }

    fn fail(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= MOST_FAILURES {
            self.failures = 0;
            self.paused_until = Some(now + PAUSE);
        }
    }
}

fn remove<T>(all: &mut VecDeque<(CopyId, T)>, id: CopyId) -> Option<(CopyId, T)> {
    let at = all.iter().position(|(one, _)| *one == id)?;
    all.remove(at)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A copy of a generation, and whether it lives.
    struct One(u32, Rc<Cell<bool>>);

    impl Waits for One {
        fn lives(&self) -> bool {
            self.1.get()
        }
    }

    fn one(generation: u32) -> (One, Rc<Cell<bool>>) {
        let lives = Rc::new(Cell::new(true));
        (One(generation, lives.clone()), lives)
    }

    fn any(_: &One) -> bool {
        true
    }

    #[test]
    fn as_many_are_made_as_are_missing() {
        let copies = Copies::default();
        assert!(!copies.begin(any), "none was asked for");
        copies.set_target(2);
        assert!(copies.begin(any));
        assert!(!copies.begin(any), "somebody makes one");
        let (first, lives) = one(0);
        copies.put(first, any);
        assert!(copies.goes_on(any));
        copies.put(one(0).0, any);
        assert!(!copies.goes_on(any));
        assert!(!copies.begin(any));
        // One that has ended is not handed out, and is replaced.
        lives.set(false);
        assert!(copies.begin(any));
        copies.put(one(0).0, any);
        assert_eq!(copies.parked(), 2);
        assert!(copies.take().is_some());
        copies.set_target(0);
        assert_eq!(copies.parked(), 0);
        assert!(copies.take().is_none());
    }

    #[test]
    fn those_that_know_less_are_replaced() {
        let copies = Copies::default();
        copies.set_target(1);
        copies.put(one(0).0, any);
        let fresh = |one: &One| one.0 == 1;
        assert!(copies.begin(fresh), "the one that waits is old");
        assert_eq!(copies.parked(), 1);
        copies.put(one(1).0, fresh);
        assert!(!copies.goes_on(fresh));
        assert_eq!(copies.take().map(|one| one.0), Some(1));
    }

    #[test]
    fn what_fails_again_and_again_is_not_tried_for_a_while() {
        let copies: Copies<One> = Copies::default();
        copies.set_target(1);
        assert!(copies.begin(any));
        for _ in 1..MOST_FAILURES {
            copies.failed();
            assert!(copies.goes_on(any));
        }
        copies.failed();
        assert!(!copies.goes_on(any));
        assert!(!copies.begin(any));
        let later = Instant::now() + PAUSE;
        assert!(copies.lock().wants(&any, later));
    }

    #[test]
    fn one_that_ends_while_it_waits_is_noticed_once() {
        let copies = Copies::default();
        copies.set_target(2);
        let id = copies.put(one(0).0, any);
        let other = copies.put(one(0).0, any);
        assert!(copies.ended(id));
        assert!(!copies.ended(id));
        assert!(copies.take().is_some());
        assert!(!copies.ended(other), "it is in use");
    }

    #[test]
    fn without_pages_nobody_makes_any() {
        let copies: Copies<One> = Copies::default();
        copies.set_target(1);
        assert!(copies.begin(any));
        copies.give_up();
        assert!(!copies.begin(any));
        copies.set_target(1);
        assert!(copies.begin(any));
    }

    #[test]
    fn those_that_were_put_back_go_when_they_are_too_many_or_too_old() {
        let copies = Copies::default();
        let (made, lives): (Vec<_>, Vec<_>) = (0..3).map(one).unzip();
        let ids: Vec<_> = (made.into_iter())
            .map(|one| copies.put_rewound(one, 2))
            .collect();
        assert_eq!(copies.rewound(), 2);
        copies.end_rewound(ids[0]);
        assert_eq!(copies.rewound(), 2, "it was gone before");
        copies.end_rewound(ids[1]);
        assert_eq!(copies.rewound(), 1);
        lives[2].set(false);
        assert!(copies.take_rewound().is_none(), "it has ended");
    }
}
