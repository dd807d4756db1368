//! Slots: each live sandbox has one, with control groups, host uids and (most of its) namespaces of its own.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use crate::cgroup::{Cgroups, SlotGroups};
use crate::config::{Limits, Network};
use crate::home::Home;
use crate::spawner::demand::Demand;

/// Idle slots whose last sandbox's connections the node has not closed yet, before namespaces are thrown away for it.
const MOST_UNCLEAN: usize = 8;

/// What a sandbox lives in, and the next one after it.
#[derive(Debug)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Its control groups.
    pub groups: SlotGroups,
    /// Its namespaces, if they are made.
    pub home: Option<Home>,
    /// Of the last sandbox.
    limits: Limits,
}

/// All slots that no sandbox has.
///
/// Slots that were given back are handed out before new ones. Those that were not needed for a while go: there are no more
/// of them, and no more control groups and namespaces, than sandboxes lately lived at a time, and [`MOST_UNCLEAN`].
#[derive(Debug)]
pub struct Slots {
    next: u32,
    /// Numbers of slots that went.
    numbers: Vec<u32>,
    demand: Demand,
    /// Those given back first come first: their connections have had the most time to be closed.
    free: VecDeque<Slot>,
}

impl Slots {
    /// None yet.
    pub fn new() -> Self {
        Self {
            next: 0,
            numbers: Vec::new(),
            demand: Demand::new(Instant::now()),
            free: VecDeque::new(),
        }
    }

    /// Takes a slot for a sandbox with these limits, whose groups are ready for it. Its `home` is clean, or missing.
    pub fn take(&mut self, cgroups: &Cgroups, limits: &Limits) -> io::Result<Slot> {
        let found = self.find(limits);
        self.prepare(found, cgroups, limits)
    }

    /// Takes one of which only the groups are needed: it has no namespaces.
    pub fn take_bare(&mut self, cgroups: &Cgroups, limits: &Limits) -> io::Result<Slot> {
        let at = self.free.iter().position(|slot| slot.home.is_none());
        let found = at.and_then(|at| self.free.remove(at));
        self.prepare(found, cgroups, limits)
    }

    /// Makes what was found ready, or a new one.
    fn prepare(
        &mut self,
        found: Option<Slot>,
        cgroups: &Cgroups,
        limits: &Limits,
    ) -> io::Result<Slot> {
        let mut slot = match found {
            Some(slot) if cgroups.have_lasting_slots() => slot,
            Some(slot) => Slot {
                // Its group is made again.
                groups: cgroups.open_slot(slot.number)?,
                home: None,
                ..slot
            },
            None => {
                let used_before = self.numbers.last().copied();
                let number = used_before.unwrap_or(self.next);
                let groups = cgroups.open_slot(number)?;
                match used_before {
                    Some(_) => drop(self.numbers.pop()),
                    None => self.next += 1,
                }
                Slot {
                    number,
                    groups,
                    home: None,
                    limits: *limits,
                }
            }
        };
        slot.limits = *limits;
        match slot.groups.prepare(limits) {
            Ok(()) => {
                self.demand.take();
                Ok(slot)
            }
            Err(error) => {
                self.keep(slot);
                Err(error)
            }
        }
    }

    fn find(&mut self, limits: &Limits) -> Option<Slot> {
        let usable = |slot: &Slot| match limits.network {
            Network::None => slot.home.as_ref().is_some_and(Home::is_clean),
            Network::Outbound => slot.home.is_none(),
        };
        // Equal limits need not be written again.
        let same = |slot: &Slot| slot.limits == *limits && usable(slot);
        let found = self
            .free
            .iter()
            .position(same)
            .or_else(|| self.free.iter().position(usable))
            .or_else(|| self.free.iter().position(|slot| slot.home.is_none()));
        if let Some(at) = found {
            return self.free.remove(at);
        }
        if self.free.len() < MOST_UNCLEAN {
            return None;
        }
        self.free
            .pop_front()
            .map(|slot| Slot { home: None, ..slot })
    }

    /// Gives a slot back; all processes in it have ended.
    pub fn give(&mut self, slot: Slot) {
        self.demand.give();
        self.keep(slot);
    }

    /// Removes what was not needed for a while. To be called from time to time.
    pub fn trim(&mut self, cgroups: &Cgroups) {
        let kept = self.demand.spare(Instant::now()) + MOST_UNCLEAN;
        while self.free.len() > kept
            && let Some(slot) = self.free.pop_front()
        {
            let number = slot.number;
            drop(slot);
            cgroups.remove_slot(number);
            self.numbers.push(number);
        }
    }

    fn keep(&mut self, mut slot: Slot) {
        if slot.limits.network != Network::None {
            slot.home = None;
        }
        self.free.push_back(slot);
    }
}
