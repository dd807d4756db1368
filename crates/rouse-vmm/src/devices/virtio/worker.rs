//! The thread that serves the queues of all devices.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Event;
use super::bus::{Bus, Seat};

/// The thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// What it waits with.
    #[error("cannot make what devices wait with")]
    Events(#[from] event_manager::Error),
    /// The system refuses.
    #[error("cannot start the thread of the devices")]
    Thread(#[from] io::Error),
}

/// The running thread. It ends when this is dropped.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serves the devices of `bus` from now on.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(bus: &Bus) -> Result<Self, WorkerError> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let mut manager = EventManager::<Box<dyn MutEventSubscriber + Send>>::new()?;
        for seat in bus.seats() {
            manager.add_subscriber(Box::new(Served(Arc::clone(seat))));
        }
        manager.add_subscriber(Box::new(Stop(stop.try_clone()?)));
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new()
            .name("devices".to_owned())
            .spawn(move || {
                // The counter is only ever written to, so it stays readable.
                while stopped.read().is_err() {
                    if let Err(error) = manager.run() {
                        tracing::error!(%error, "the devices' thread cannot wait");
                        return;
                    }
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.write(1));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Wakes the thread up, which then looks by itself.
struct Stop(EventFd);

impl MutEventSubscriber for Stop {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        add(ops, Events::new(&self.0, EventSet::IN));
    }
}

/// A device, to whose events this thread listens.
struct Served(Arc<Seat>);

/// Beside the numbers of queues.
const SOURCE: u32 = u32::MAX;

impl MutEventSubscriber for Served {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.data() == SOURCE {
            return self.0.serve(Event::Source);
        }
        let queue = events.data() as usize;
        if let Some(kick) = self.0.kicks().get(queue) {
            // Before the queue is looked at, so that what comes meanwhile kicks again.
            drop(kick.read());
            self.0.serve(Event::Queue(queue));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, kick) in (0..).zip(self.0.kicks()) {
            add(ops, Events::with_data(kick, queue, EventSet::IN));
        }
        if let Some(source) = self.0.source() {
            add(ops, Events::with_data_raw(source, SOURCE, EventSet::IN));
        }
    }
}

fn add(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        tracing::error!(%error, "a device's events cannot be waited for");
    }
}
