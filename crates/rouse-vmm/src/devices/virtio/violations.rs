//! What a guest did wrong, as far as anybody wants to know.

use std::fmt::Display;

/// Counts what a guest does wrong with one device, and remembers the last of it.
#[derive(Debug, Clone, Default)]
pub struct Violations {
    device: &'static str,
    count: u64,
    last: String,
}

impl Violations {
    /// Of `device`.
    #[must_use]
    pub fn of(device: &'static str) -> Self {
        Self {
            device,
            ..Self::default()
        }
    }

    /// One more. It is logged, but ever more seldom: a guest can do as many as it likes.
    pub fn note(&mut self, what: &dyn Display) {
        self.count += 1;
        if self.count.is_power_of_two() {
            self.last = what.to_string();
            tracing::warn!(
                device = self.device,
                count = self.count,
                what = self.last,
                "a guest broke the rules of a device"
            );
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// One of the last, in words.
    #[must_use]
    pub fn last(&self) -> Option<&str> {
        (self.count > 0).then_some(self.last.as_str())
    }
}
