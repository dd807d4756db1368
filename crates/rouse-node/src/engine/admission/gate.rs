//! Tasks that wait until the [`Queue`] admits them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::estimate::Observed;
use super::queue::{Capacity, FlowLimits, Queue, State, Throttle, Ticket};

/// Lets requests in, one by one, as the queue decides.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Told when nothing runs any more.
    quiet: Notify,
}

/// A request does not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// There is too much to do.
    Throttled(Throttle),
    /// The node ends.
    Closed,
}

impl From<Throttle> for NotAdmitted {
    fn from(throttle: Throttle) -> Self {
        NotAdmitted::Throttled(throttle)
    }
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    /// Nobody gets in any more.
    is_closed: bool,
    /// Who is to be told when it is admitted.
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
}

/// A request that was admitted. Dropped when it is over, whatever has come of it.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    ticket: Ticket,
}

/// The right to start an instance for a request. Dropped when the instance has the event, or is not coming.
#[derive(Debug)]
pub struct StartSlot {
    gate: Gate,
    ticket: Ticket,
}

impl Gate {
    /// With nobody waiting.
    pub fn new(capacity: Capacity) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                queue: Queue::new(capacity),
                is_closed: false,
                waiting: HashMap::new(),
            }),
            quiet: Notify::new(),
        }))
    }

    /// Makes a function known, or changes its limits.
    pub fn configure(&self, name: &str, limits: FlowLimits) {
        let mut inner = self.lock();
        inner.queue.configure(name, limits);
        inner.admit();
    }

    /// A function is gone.
    pub fn retire(&self, name: &str) {
        let mut inner = self.lock();
        inner.queue.retire(name);
        inner.admit();
    }

    /// Waits for at most `patience` until a request of this function is admitted. Dropping the future takes it out of the
    /// queue.
    pub async fn enter(&self, name: &str, patience: Duration) -> Result<Permit, NotAdmitted> {
        // From here on the request leaves when the permit is dropped, wherever it is then.
        let (permit, admitted) = {
            let mut inner = self.lock();
            if inner.is_closed {
                return Err(NotAdmitted::Closed);
            }
            let ticket = inner.queue.arrive(name)?;
            inner.admit();
            let permit = Permit {
                gate: self.clone(),
                ticket,
            };
            if inner.queue.state(ticket) != Some(State::Queued) {
                return Ok(permit);
            }
            let (sender, admitted) = oneshot::channel();
            inner.waiting.insert(ticket, sender);
            (permit, admitted)
        };
        match tokio::time::timeout(patience, admitted).await {
            Ok(Ok(())) => Ok(permit),
            // It may have been admitted at this very moment.
            _ if self.lock().queue.state(permit.ticket) != Some(State::Queued) => Ok(permit),
            _ if self.lock().is_closed => Err(NotAdmitted::Closed),
            _ => Err(self.lock().queue.overdue(name).into()),
        }
    }

    /// From now on nobody gets in; those who wait are turned away, those who run go on.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        // Dropping the senders wakes them.
        inner.waiting.clear();
    }

    /// Is it closed?
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Waits until no request waits or runs.
    pub async fn quiet(&self) {
        loop {
            let quiet = self.0.quiet.notified();
            tokio::pin!(quiet);
            // Before the look: what is told in between counts.
            quiet.as_mut().enable();
            if self.lock().queue.totals() == (0, 0, 0) {
                return;
            }
            quiet.await;
        }
    }

    /// Takes note of what a request of this function has taken.
    pub fn learn(&self, name: &str, observed: &Observed) {
        self.lock().queue.learn(name, observed);
    }

    /// Bytes that an instance of a function is expected to take.
    pub fn expected_memory(&self, name: &str) -> u64 {
        self.lock().queue.expected_memory(name)
    }

    /// Requests of a function that wait, and that run or start.
    pub fn counts(&self, name: &str) -> (usize, u32) {
        self.lock().queue.counts(name)
    }

    /// Requests of all functions that wait, that start, and that run or start.
    pub fn totals(&self) -> (u32, u32, u32) {
        self.lock().queue.totals()
    }

    /// Requests that functions have reserved, all together.
    pub fn reserved(&self) -> u32 {
        self.lock().queue.reserved()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics while the lock is held.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Lets in whoever there is room for.
    fn admit(&mut self) {
        if self.is_closed {
            return;
        }
        while let Some(ticket) = self.queue.admit() {
            if let Some(waiting) = self.waiting.remove(&ticket) {
                // Who has gone away leaves by dropping its permit.
                let _ = waiting.send(());
            }
        }
    }
}

impl Permit {
    /// The right to start an instance, which came with the permit.
    pub fn start_slot(&self) -> StartSlot {
        StartSlot {
            gate: self.gate.clone(),
            ticket: self.ticket,
        }
    }

    /// Says whether the request uses processors at the moment.
    pub fn rests(&self, rests: bool) {
        let mut inner = self.gate.lock();
        inner.queue.rests(self.ticket, rests);
        inner.admit();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.waiting.remove(&self.ticket);
        inner.queue.leave(self.ticket);
        inner.admit();
        if inner.queue.totals() == (0, 0, 0) {
            self.gate.0.quiet.notify_waiters();
        }
    }
}

impl Drop for StartSlot {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        inner.queue.started(self.ticket);
        inner.admit();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    fn gate(running: u32, queued: u32) -> Gate {
        gate_of(Capacity {
            running,
            starting: 10,
            cpu_milli: u64::MAX,
            memory: u64::MAX,
            queued,
        })
    }

    /// One with a function.
    fn gate_of(capacity: Capacity) -> Gate {
        let gate = Gate::new(capacity);
        let limits = FlowLimits {
            tenant: "t".into(),
            reserved: None,
            most: None,
            queued: 10,
        };
        gate.configure("f", limits);
        gate
    }

    const LONG: Duration = Duration::from_secs(3600);

    /// A gate with room for one, who is in, and another who waits.
    async fn with_one_waiting() -> (Gate, Permit, JoinHandle<Result<Permit, NotAdmitted>>) {
        let gate = gate(1, 10);
        let first = gate.enter("f", LONG).await.unwrap();
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter("f", LONG).await }
        });
        while gate.counts("f") != (1, 1) {
            tokio::task::yield_now().await;
        }
        (gate, first, second)
    }

    #[tokio::test]
    async fn who_waits_is_let_in_when_another_leaves() {
        let (gate, first, second) = with_one_waiting().await;
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert_eq!(gate.counts("f"), (0, 1));
        drop(second);
        assert_eq!(gate.counts("f"), (0, 0));
    }

    #[tokio::test]
    async fn who_goes_away_leaves_the_queue() {
        let (gate, first, second) = with_one_waiting().await;
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(gate.counts("f"), (0, 1));
        assert!(gate.lock().waiting.is_empty());
        drop(first);
        assert_eq!(gate.counts("f"), (0, 0));
    }

    #[tokio::test]
    async fn a_closed_gate_turns_away_who_waits_and_lets_go_on_who_runs() {
        let (gate, first, second) = with_one_waiting().await;
        gate.close();
        assert_eq!(second.await.unwrap().map(drop), Err(NotAdmitted::Closed));
        assert_eq!(
            gate.enter("f", LONG).await.map(drop),
            Err(NotAdmitted::Closed)
        );
        let quiet = tokio::spawn({
            let gate = gate.clone();
            async move { gate.quiet().await }
        });
        tokio::task::yield_now().await;
        assert!(!quiet.is_finished());
        drop(first);
        quiet.await.unwrap();
    }

    /// A function that calls itself, deeper than the processors allow to run at a time.
    #[tokio::test]
    async fn who_waits_for_others_makes_room_for_them() {
        let gate = gate_of(Capacity {
            running: 1000,
            starting: 1000,
            // Of what has not run yet: room for two.
            cpu_milli: 500,
            memory: u64::MAX,
            queued: 1000,
        });
        let mut chain = vec![gate.enter("f", LONG).await.unwrap()];
        chain.push(gate.enter("f", LONG).await.unwrap());
        for _ in 0..50 {
            let next = tokio::spawn({
                let gate = gate.clone();
                async move { gate.enter("f", LONG).await }
            });
            while gate.totals().0 == 0 {
                tokio::task::yield_now().await;
            }
            // It is let in because the others rest, and not before.
            chain.iter().for_each(|permit| permit.rests(true));
            chain.push(next.await.unwrap().unwrap());
            chain.push(gate.enter("f", LONG).await.unwrap());
        }
        // Who goes on counts again: nobody else gets in.
        chain.iter().for_each(|permit| permit.rests(false));
        assert!(gate.enter("f", Duration::ZERO).await.is_err());
        drop(chain);
        assert_eq!(gate.totals(), (0, 0, 0));
        assert!(gate.enter("f", Duration::ZERO).await.is_ok());
    }

    #[tokio::test]
    async fn patience_ends() {
        let gate = gate(1, 10);
        let first = gate.enter("f", LONG).await.unwrap();
        let second = gate.enter("f", Duration::ZERO).await;
        assert!(second.is_err());
        assert_eq!(gate.counts("f"), (0, 1));
        drop(first.start_slot());
        drop(first);
    }
}
