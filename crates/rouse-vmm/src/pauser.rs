//! How a running machine is asked to stand still.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::machine::RunError;
use crate::vcpu::Stop;

type End = Result<Stop, RunError>;

/// Pauses a machine from another thread. Clones pause the same one.
#[derive(Debug, Clone, Default)]
pub struct Pauser(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    /// Nobody has seen it yet.
    waiting: bool,
    /// Of the machine that runs now.
    running: Option<Sender<End>>,
}

impl Pauser {
    /// Makes [`Machine::run_until`](crate::Machine::run_until) return [`Outcome::Paused`](crate::Outcome::Paused): the call
    /// that is under way, or the next one.
    pub fn pause(&self) {
        let mut asked = self.lock();
        asked.waiting = true;
        if let Some(machine) = &asked.running {
            // It may have ended meanwhile.
            drop(machine.send(Ok(Stop::Asked)));
        }
    }

    /// A machine runs.
    pub(crate) fn begin(&self, machine: Sender<End>) {
        let mut asked = self.lock();
        if asked.waiting {
            drop(machine.send(Ok(Stop::Asked)));
        }
        asked.running = Some(machine);
    }

    /// It stands still.
    pub(crate) fn end(&self) {
        *self.lock() = Asked::default();
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_asks_before_the_machine_runs_is_heard() {
        let pauser = Pauser::default();
        pauser.clone().pause();
        let (sender, ends) = mpsc::channel();
        pauser.begin(sender);
        assert!(matches!(ends.try_recv(), Ok(Ok(Stop::Asked))));
        pauser.end();
        let (sender, ends) = mpsc::channel();
        pauser.begin(sender);
        assert!(ends.try_recv().is_err());
        pauser.pause();
        assert!(matches!(ends.try_recv(), Ok(Ok(Stop::Asked))));
    }
}
