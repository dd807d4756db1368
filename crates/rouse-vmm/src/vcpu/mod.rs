//! A guest's processors: what they can do, and the threads that run them.

mod features;
mod kick;
mod run;
pub mod state;

pub use features::{FeaturesError, configure};
pub use kick::{SignalMaskError, kick_signal, prepare_thread};
pub use run::{Stop, VcpuFailure, run};

/// How many processors a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuCount(u8);

/// No guest has so many.
#[derive(Debug, thiserror::Error)]
#[error("a guest has 1 to {most} processors, not {asked}", most = VcpuCount::MOST)]
pub struct VcpuCountError {
    /// So many.
    asked: u8,
}

impl VcpuCount {
    /// No function uses more.
    const MOST: u8 = 32;

    /// So many.
    ///
    /// # Errors
    /// If there would be none, or more than 32.
    pub fn new(count: u8) -> Result<Self, VcpuCountError> {
        if (1..=Self::MOST).contains(&count) {
            Ok(Self(count))
        } else {
            Err(VcpuCountError { asked: count })
        }
    }

    /// So many.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    /// Their numbers, which are also those of their interrupt controllers.
    pub fn ids(self) -> impl Iterator<Item = u8> {
        0..self.0
    }
}
