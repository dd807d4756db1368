//! What is counted of a function while requests run: atomic numbers, and no lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rouse_process::instance::{BootPath, ExitReason};

use super::histogram::{Distribution, Histogram};

/// How an invocation failed, told apart by who or what ended it; whatever the function says itself is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The handler answered with an error.
    Handler,
    /// Its init or its after-restore hook did.
    Init,
    /// Its time was over.
    Timeout,
    /// It took more memory than it may.
    Memory,
    /// Its process ended.
    Exit,
    /// Its answer was too large.
    Response,
    /// The platform could not run it.
    Platform,
}

impl ErrorKind {
    /// All of them, in the order in which they are declared.
    pub const ALL: [ErrorKind; 7] = [
        ErrorKind::Handler,
        ErrorKind::Init,
        ErrorKind::Timeout,
        ErrorKind::Memory,
        ErrorKind::Exit,
        ErrorKind::Response,
        ErrorKind::Platform,
    ];

    /// Name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Handler => "handler",
            ErrorKind::Init => "init",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Memory => "memory",
            ErrorKind::Exit => "exit",
            ErrorKind::Response => "response",
            ErrorKind::Platform => "platform",
        }
    }
}

/// Names of the reasons for which instances end by themselves.
const DEATHS: [&str; 4] = ["exit", "signal", "out_of_memory", "machine"];

/// Place in [`DEATHS`].
fn death(reason: &ExitReason) -> usize {
    match reason {
        ExitReason::Code(_) => 0,
        ExitReason::Signal(_) => 1,
        ExitReason::OutOfMemory => 2,
        ExitReason::Machine(_) => 3,
    }
}

/// Counts of one function, or of several together. They only grow.
#[derive(Debug, Default)]
pub struct Tally {
    invocations: AtomicU64,
    throttles: AtomicU64,
    boots: [AtomicU64; BootPath::ALL.len()],
    errors: [AtomicU64; ErrorKind::ALL.len()],
    deaths: [AtomicU64; DEATHS.len()],
    duration: Histogram,
}

impl Tally {
    /// Invocations that began.
    pub fn invocations(&self) -> u64 {
        self.invocations.load(Ordering::Relaxed)
    }

    /// Requests answered 429.
    pub fn throttles(&self) -> u64 {
        self.throttles.load(Ordering::Relaxed)
    }

    /// Invocations that were answered, by the path that they took.
    pub fn boots(&self) -> BTreeMap<&'static str, u64> {
        let names = BootPath::ALL.into_iter().map(BootPath::name);
        names.zip(self.boots.iter().map(read)).collect()
    }

    /// Invocations that ended with a function error, by its kind.
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        let names = ErrorKind::ALL.into_iter().map(ErrorKind::name);
        names.zip(self.errors.iter().map(read)).collect()
    }

    /// Instances that ended by themselves, by reason.
    pub fn deaths(&self) -> BTreeMap<&'static str, u64> {
        DEATHS
            .into_iter()
            .zip(self.deaths.iter().map(read))
            .collect()
    }

    /// From request to answer.
    pub fn duration(&self) -> Distribution {
        self.duration.read()
    }
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// What is counted of a function.
#[derive(Debug, Default)]
pub struct Counters {
    own: Tally,
    /// Where it counts along, if it has no series of its own.
    other: Option<Arc<Tally>>,
    /// Instances that exist now.
    pub instances: Arc<AtomicUsize>,
}

impl Counters {
    /// Counters of a function that counts along with others.
    pub fn along(other: Arc<Tally>) -> Self {
        Self {
            other: Some(other),
            ..Self::default()
        }
    }

    /// Counts of this function alone.
    pub fn own(&self) -> &Tally {
        &self.own
    }

    /// Does the function have series of its own?
    pub fn is_labelled(&self) -> bool {
        self.other.is_none()
    }

    /// An invocation was let in.
    pub fn began(&self) {
        self.each(|tally| tally.invocations.fetch_add(1, Ordering::Relaxed));
    }

    /// A request was answered 429.
    pub fn throttled(&self) {
        self.each(|tally| tally.throttles.fetch_add(1, Ordering::Relaxed));
    }

    /// An invocation was answered, `duration` after its request came.
    pub fn answered(&self, path: BootPath, error: Option<ErrorKind>, duration: Duration) {
        self.each(|tally| {
            tally.boots[path as usize].fetch_add(1, Ordering::Relaxed);
            if let Some(kind) = error {
                tally.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
            }
            tally.duration.observe(duration);
        });
    }

    /// An instance ended that nobody has ended.
    pub fn died(&self, reason: &ExitReason) {
        self.each(|tally| tally.deaths[death(reason)].fetch_add(1, Ordering::Relaxed));
    }

    fn each<T>(&self, count: impl Fn(&Tally) -> T) {
        count(&self.own);
        if let Some(other) = &self.other {
            count(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_paths_are_in_their_own_places() {
        for (place, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
        for (place, path) in BootPath::ALL.into_iter().enumerate() {
            assert_eq!(path as usize, place);
        }
    }

    #[test]
    fn a_function_without_series_counts_along() {
        let other = Arc::new(Tally::default());
        let counters = [
            Counters::along(Arc::clone(&other)),
            Counters::along(Arc::clone(&other)),
        ];
        for one in &counters {
            one.began();
            one.answered(
                BootPath::Fork,
                Some(ErrorKind::Exit),
                Duration::from_millis(1),
            );
            assert_eq!(one.own().invocations(), 1);
        }
        drop(counters);
        assert_eq!(other.invocations(), 2);
        assert_eq!(other.boots()["fork"], 2);
        assert_eq!(other.errors()["exit"], 2);
        assert_eq!(other.duration().count(), 2);
    }
}
