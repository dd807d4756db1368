//! How often a function is called, as far as it is known now.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After this time a call counts for 1/e of what it counted when it came.
const MEMORY: Duration = Duration::from_secs(120);
/// Calls that come within this time of one another say that more will come.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Decayed rate of calls.
#[derive(Debug)]
pub struct Heat(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// Calls, each counted less the longer ago it was.
    weight: f64,
    /// When `weight` was right.
    at: Instant,
    last: Option<Instant>,
    before_last: Option<Instant>,
}

/// What is known at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Calls per second.
    pub rate: f64,
    /// Since the last call, or since the function is known.
    pub idle: Duration,
    /// Has it been called at least twice just now?
    pub is_called_again: bool,
}

impl Heat {
    /// Of a function that was not called yet.
    pub fn new() -> Self {
        Self(Mutex::new(State {
            weight: 0.0,
            at: Instant::now(),
            last: None,
            before_last: None,
        }))
    }

    /// A call has come.
    pub fn called(&self, now: Instant) {
        let mut state = self.lock();
        state.weight = decayed(&state, now) + 1.0;
        state.at = now;
        state.before_last = state.last.replace(now);
    }

    /// What is known now.
    pub fn read(&self, now: Instant) -> Reading {
        let state = *self.lock();
        let since = |then: Instant| now.saturating_duration_since(then);
        let again = |then: Instant| since(then) <= WINDOW;
        Reading {
            rate: decayed(&state, now) / MEMORY.as_secs_f64(),
            idle: since(state.last.unwrap_or(state.at)),
            is_called_again: state.before_last.is_some_and(again),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Heat {
    fn default() -> Self {
        Self::new()
    }
}

fn decayed(state: &State, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(state.at);
    state.weight * (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_reached_and_forgotten() {
        let heat = Heat::new();
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        assert_eq!(heat.read(at(1)).rate, 0.0);
        for second in 0..1200 {
            heat.called(at(second));
        }
        let hot = heat.read(at(1200));
        assert!((hot.rate - 1.0).abs() < 0.05, "{hot:?}");
        assert!(hot.is_called_again && hot.idle <= Duration::from_secs(1));
        let cold = heat.read(at(1200 + 1200));
        assert!(cold.rate < 1e-3, "{cold:?}");
        assert!(!cold.is_called_again && cold.idle >= Duration::from_secs(1200));
    }

    #[test]
    fn one_call_is_no_habit() {
        let heat = Heat::new();
        let now = Instant::now();
        heat.called(now);
        assert!(!heat.read(now).is_called_again);
        heat.called(now + WINDOW * 2);
        assert!(!heat.read(now + WINDOW * 2).is_called_again);
        heat.called(now + WINDOW * 2);
        assert!(heat.read(now + WINDOW * 2).is_called_again);
    }
}
