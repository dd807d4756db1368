//! A bound on how often something is logged that a function can bring about.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many in each second; those beyond are counted.
#[derive(Debug)]
pub struct RateLimit {
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    second: Instant,
    passed: u32,
    held_back: u64,
}

const SECOND: Duration = Duration::from_secs(1);

impl RateLimit {
    /// Lets `most` pass in each second.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            state: Mutex::new(State {
                second: Instant::now(),
                passed: 0,
                held_back: 0,
            }),
        }
    }

    /// Whether one may pass, and then how many were held back since the last that could.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.second) >= SECOND {
            state.second = now;
            state.passed = 0;
        }
        if state.passed == self.most {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_is_counted() {
        let limit = RateLimit::new(2);
        let now = Instant::now();
        let passed: Vec<_> = (0..4).map(|_| limit.pass_at(now)).collect();
        assert_eq!(passed, [Some(0), Some(0), None, None]);
        assert_eq!(limit.pass_at(now + 2 * SECOND), Some(2));
        assert_eq!(limit.pass_at(now + 2 * SECOND), Some(0));
    }
}
