//! Tells instances how they ended.
//!
//! The spawner reaps every process and reports it by pid. The node may learn the pid of a clone
//! only after the clone has ended, so ends that nobody waits for yet are kept for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rouse_sandbox::Exits;
use tokio::sync::oneshot;

/// Ends kept for somebody who asks later. Far more than processes can end between the making of
/// a clone and its first message.
const KEPT: usize = 4096;

/// Distributes the ends of processes.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<i32, oneshot::Sender<i32>>,
    kept: VecDeque<(i32, i32, Instant)>,
}

impl Reaper {
    /// Starts the thread that listens to the spawner. It ends with the spawner.
    pub fn start(exits: Exits) -> std::io::Result<Self> {
        let reaper = Self::default();
        let state = reaper.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                while let Ok(exit) = exits.recv() {
                    state.ended(exit.pid, exit.status);
                }
            })?;
        Ok(reaper)
    }

    fn ended(&self, pid: i32, status: i32) {
        let mut state = self.lock();
        if let Some(waiting) = state.waiting.remove(&pid) {
            // The instance may have been dropped: then nobody needs to know.
            let _ = waiting.send(status);
            return;
        }
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back((pid, status, Instant::now()));
    }

    /// The raw wait status of the process with this pid that was started after `since`, once it has ended.
    ///
    /// `since` keeps apart processes that had the same pid one after the other.
    pub fn end_of(&self, pid: i32, since: Instant) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        match state
            .kept
            .iter()
            .position(|(kept, _, at)| *kept == pid && *at >= since)
        {
            Some(index) => {
                if let Some((_, status, _)) = state.kept.remove(index) {
                    let _ = sender.send(status);
                }
            }
            None => {
                state.waiting.insert(pid, sender);
            }
        }
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_found_before_and_after_it_happens() {
        let reaper = Reaper::default();
        let start = Instant::now();
        reaper.ended(7, 1);
        assert_eq!(reaper.end_of(7, start).await, Ok(1));
        let later = reaper.end_of(8, start);
        reaper.ended(8, 2);
        assert_eq!(later.await, Ok(2));
    }

    #[tokio::test]
    async fn the_end_of_an_earlier_process_with_the_same_pid_is_not_taken() {
        let reaper = Reaper::default();
        reaper.ended(7, 1);
        let now = Instant::now();
        let end = reaper.end_of(7, now);
        reaper.ended(7, 2);
        assert_eq!(end.await, Ok(2));
    }
}
