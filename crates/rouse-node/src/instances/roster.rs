//! Who can be named, and the seats in which held instances wait.
//!
//! An instance is in the roster as long as its [`Badge`] lives, which it carries itself. Nothing in here drops an instance while it
//! holds the lock, because that takes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::InstanceId;
use crate::engine::function::Revision;
use crate::engine::lifecycle::State;
use crate::engine::runner::Runner;
use crate::function::record::now_ms;

/// Becomes `Some` when an instance has ended.
type Exit = tokio::sync::watch::Receiver<Option<rouse_process::instance::ExitReason>>;

/// What is known of an instance that can be named, wherever it is.
pub struct Card {
    /// Its name.
    pub id: InstanceId,
    /// Its function, by name and version.
    pub function: String,
    /// What it runs.
    pub revision: Arc<Revision>,
    /// The instance that it is a copy of.
    pub from: Option<InstanceId>,
    /// When it got its name, milliseconds since the epoch.
    pub since_ms: u64,
    /// Is it held for whoever knows its name?
    pub is_held: bool,
    /// Is it being copied?
    pub is_forking: AtomicBool,
    /// Events that it has answered since it has a name.
    pub answered: AtomicU64,
    state: Arc<Mutex<State>>,
}

impl Card {
    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an instance one that can be named, as long as it lives.
pub struct Badge {
    /// What is known of it.
    pub card: Arc<Card>,
    roster: Weak<Roster>,
}

impl Drop for Badge {
    fn drop(&mut self) {
        if let Some(roster) = self.roster.upgrade() {
            let entry = roster.lock().remove(&self.card.id);
            drop(entry);
        }
    }
}

/// What is to be held, and how.
pub struct Hold {
    /// The instance that it is a copy of.
    pub from: Option<InstanceId>,
    /// For how long it is kept without an event.
    pub keep: Duration,
    /// Bytes that it is expected to take.
    pub memory: u64,
}

/// All instances that can be named.
#[derive(Default)]
pub struct Roster(Mutex<BTreeMap<InstanceId, Entry>>);

struct Entry {
    card: Arc<Card>,
    /// Of a held one.
    seat: Option<Seat>,
}

struct Seat {
    /// None while it answers an event or is copied.
    runner: Option<Runner>,
    since: Instant,
    keep: Duration,
    memory: u64,
}

impl Roster {
    /// Gives an instance that is kept for later requests a name, if it has none.
    pub fn enlist(self: &Arc<Self>, runner: &mut Runner, function: &str) {
        if runner.badge.is_none() {
            let card = self.card_for(runner, function, None, false);
            let entry = Entry {
                card: Arc::clone(&card),
                seat: None,
            };
            self.lock().insert(card.id, entry);
        }
    }

    /// Holds an instance, which waits for events, until its time is over.
    pub fn hold(self: &Arc<Self>, mut runner: Runner, function: &str, hold: Hold) -> Arc<Card> {
        let card = self.card_for(&mut runner, function, hold.from, true);
        let exit = runner.exit();
        let entry = Entry {
            card: Arc::clone(&card),
            seat: Some(Seat {
                runner: Some(runner),
                since: Instant::now(),
                keep: hold.keep,
                memory: hold.memory,
            }),
        };
        self.lock().insert(card.id, entry);
        // Not before: one that has died meanwhile is found in its seat.
        self.watch(exit, card.id);
        card
    }

    fn card_for(
        self: &Arc<Self>,
        runner: &mut Runner,
        function: &str,
        from: Option<InstanceId>,
        is_held: bool,
    ) -> Arc<Card> {
        let card = Arc::new(Card {
            id: InstanceId::new(),
            function: function.to_owned(),
            revision: Arc::clone(&runner.revision),
            from,
            since_ms: now_ms(),
            is_held,
            is_forking: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            state: runner.shared_state(),
        });
        runner.badge = Some(Badge {
            card: Arc::clone(&card),
            roster: Arc::downgrade(self),
        });
        card
    }

    /// Has a held instance that dies leave its seat at once.
    fn watch(self: &Arc<Self>, mut exit: Exit, id: InstanceId) {
        let roster = Arc::downgrade(self);
        tokio::spawn(async move {
            // An error means that the instance was dropped: we have ended it.
            if exit.wait_for(Option::is_some).await.is_ok()
                && let Some(roster) = roster.upgrade()
                && let Some(runner) = roster.take_held(id)
            {
                let reason = runner.problem();
                tracing::info!(instance = %id, reason, "a held instance has ended");
            }
        });
    }

    /// Who has this name.
    pub fn card(&self, id: InstanceId) -> Option<Arc<Card>> {
        self.lock().get(&id).map(|entry| Arc::clone(&entry.card))
    }

    /// Takes a held instance out of its seat, if it is there.
    pub fn take_held(&self, id: InstanceId) -> Option<Runner> {
        self.lock().get_mut(&id)?.seat.as_mut()?.runner.take()
    }

    /// Lets a held instance wait in its seat again. One that was told to end meanwhile, ends.
    pub fn put_back(&self, runner: Runner) {
        let mut back = Some(runner);
        if let Some(id) = back
            .as_ref()
            .and_then(|runner| Some(runner.badge.as_ref()?.card.id))
            && let Some(seat) = self
                .lock()
                .get_mut(&id)
                .and_then(|entry| entry.seat.as_mut())
            && back.as_ref().is_some_and(Runner::is_running)
        {
            seat.runner = back.take();
            seat.since = Instant::now();
        }
        drop(back);
    }

    /// Ends a held instance: now if it waits, else when it has answered. Says whether it was there.
    pub fn end_held(&self, id: InstanceId) -> bool {
        let entry = self.lock().remove(&id);
        entry.is_some()
    }

    /// Ends the held instances whose time is over.
    pub fn expire(&self) {
        self.end_where(|entry| {
            let seat = entry.seat.as_ref();
            seat.is_some_and(|seat| seat.runner.is_some() && seat.since.elapsed() >= seat.keep)
        });
    }

    /// Ends the held instances of a function.
    pub fn end_of(&self, function: &str) {
        self.end_where(|entry| entry.seat.is_some() && entry.card.function == function);
    }

    /// Ends all held instances.
    pub fn clear(&self) {
        self.end_where(|entry| entry.seat.is_some());
    }

    fn end_where(&self, is_over: impl Fn(&Entry) -> bool) {
        let ended: Vec<Entry> = {
            let mut all = self.lock();
            let over = all.iter().filter(|(_, entry)| is_over(entry));
            let over: Vec<InstanceId> = over.map(|(id, _)| *id).collect();
            over.iter().filter_map(|id| all.remove(id)).collect()
        };
        drop(ended);
    }

    /// All that can be named, the oldest first.
    pub fn all(&self) -> Vec<Arc<Card>> {
        let mut all: Vec<Arc<Card>> = (self.lock().values())
            .map(|entry| Arc::clone(&entry.card))
            .collect();
        all.sort_by_key(|card| (card.since_ms, card.id));
        all
    }

    /// Held instances of a function, those that answer included; and those of them that wait.
    pub fn held_of(&self, function: &str) -> (usize, usize) {
        let all = self.lock();
        let of_it = all.values().filter(|entry| entry.card.function == function);
        let seats = of_it.filter_map(|entry| entry.seat.as_ref());
        seats.fold((0, 0), |(held, wait), seat| {
            (held + 1, wait + usize::from(seat.runner.is_some()))
        })
    }

    /// Held instances, and the bytes that they are expected to take.
    pub fn held(&self) -> (usize, u64) {
        let all = self.lock();
        let seats = all.values().filter_map(|entry| entry.seat.as_ref());
        seats.fold((0, 0), |(count, bytes), seat| {
            (count + 1, bytes + seat.memory)
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks an instance as being copied until this is dropped.
pub struct Forking(Arc<Card>);

impl Forking {
    pub fn of(card: &Arc<Card>) -> Self {
        card.is_forking.store(true, Ordering::Relaxed);
        Self(Arc::clone(card))
    }
}

impl Drop for Forking {
    fn drop(&mut self) {
        self.0.is_forking.store(false, Ordering::Relaxed);
    }
}
