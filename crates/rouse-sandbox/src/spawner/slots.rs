//! Slots: each live sandbox has one, with control groups, host uids and (most of its) namespaces of its own.

use std::collections::VecDeque;
use std::io;

use crate::cgroup::{Cgroups, SlotGroups};
use crate::config::{Limits, Network};
use crate::home::Home;

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
/// Slots that were given back are handed out before new ones, so that there are no more of them, and no more control
/// groups, than sandboxes ever lived at a time (and a few).
#[derive(Debug, Default)]
pub struct Slots {
    next: u32,
    /// Those given back first come first: their connections have had the most time to be closed.
    free: VecDeque<Slot>,
}

impl Slots {
    /// Takes a slot for a sandbox with these limits, whose groups are ready for it. Its `home` is clean, or missing.
    pub fn take(&mut self, cgroups: &Cgroups, limits: &Limits) -> io::Result<Slot> {
        let mut slot = match self.find(limits) {
            Some(slot) if cgroups.have_lasting_slots() => slot,
            Some(slot) => Slot {
                // Its group is made again.
                groups: cgroups.open_slot(slot.number)?,
                home: None,
                ..slot
            },
            None => {
                let groups = cgroups.open_slot(self.next)?;
                self.next += 1;
                Slot {
                    number: self.next - 1,
                    groups,
                    home: None,
                    limits: *limits,
                }
            }
        };
        slot.limits = *limits;
        match slot.groups.prepare(limits) {
            Ok(()) => Ok(slot),
            Err(error) => {
                self.give(slot);
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
    pub fn give(&mut self, mut slot: Slot) {
        if slot.limits.network != Network::None {
            slot.home = None;
        }
        self.free.push_back(slot);
    }
}
