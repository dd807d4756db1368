//! Working memory of codecs, used again: making one costs as much as decoding a piece.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Contexts that no thread uses at the moment. There are at most as many as threads were at once.
pub(super) struct Contexts<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Contexts<T> {
    pub fn with<R>(&self, make: impl FnOnce() -> T, run: impl FnOnce(&mut T) -> R) -> R {
        // A thread that panicked while it held the lock was in the middle of `pop` or `push`,
        // which do not leave a vector half changed.
        let lock = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = lock().pop();
        let mut context = idle.unwrap_or_else(make);
        let result = run(&mut context);
        lock().push(context);
        result
    }
}

impl<T> Default for Contexts<T> {
    fn default() -> Self {
        Self {
            idle: Mutex::new(Vec::new()),
        }
    }
}

impl<T> fmt::Debug for Contexts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contexts")
    }
}
