//! Control groups: one small directory per sandbox slot in each hierarchy, below the node's own group.
//!
//! ```text
//! <hierarchy>/<group of the node's process>/<name>/<slot>     v1, once for each of memory, pids, cpu
//! <unified>/<group of the node's process>/<name>/<slot>       v2, once
//! ```
//! Slots are reused: a removed group lives on in the kernel until the last page charged to it is gone, so a
//! directory per instance would pile up dying groups.

mod detect;
mod group;
mod migration;
mod slot;
mod unified;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

pub use detect::unescape;
use detect::{Controller, Place, Version};
use group::NodeGroup;
pub use slot::MemoryAccounts;
use slot::SlotGroup;

use crate::config::Limits;

/// Why the node's control groups could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The configured name is not one path component of letters, digits, `-`, `_` and `.`.
    #[error("`{0}` is not a name for a control group")]
    Name(String),
    /// The kernel's description of the hierarchies is unreadable.
    #[error("cannot read {path}")]
    Describe {
        /// Which file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A running node has this group.
    #[error("the control group {0} belongs to another running node")]
    InUse(String),
    /// A group could not be made or cleared.
    #[error("cannot set up the control group {path}")]
    Setup {
        /// Which group.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The node's groups in all hierarchies.
#[derive(Debug)]
pub struct Cgroups {
    groups: Vec<NodeGroup>,
    leaf: Option<unified::Leaf>,
    /// Holds the hierarchy that keeps migrations cheap; see [`migration`].
    fast_migration: Option<OwnedFd>,
}

impl Cgroups {
    /// Makes the node's groups, and removes what an earlier run left in them (its processes are killed).
    ///
    /// The second value lists what the host does not offer; sandboxes work without it.
    pub fn open(name: &str) -> Result<(Cgroups, Vec<String>), CgroupError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            return Err(CgroupError::Name(name.to_owned()));
        }
        let read = |path| {
            std::fs::read_to_string(path).map_err(|source| CgroupError::Describe { path, source })
        };
        let places = detect::places(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        let mut warnings = Vec::new();
        let mut cgroups = Cgroups {
            groups: Vec::new(),
            leaf: None,
            fast_migration: None,
        };
        let missing = match cgroups.fill(name, &places) {
            Ok(missing) => missing,
            Err(error) => {
                cgroups.remove();
                return Err(error);
            }
        };
        for controller in missing {
            warnings.push(format!(
                "no {} controller: sandboxes have no such limit",
                controller.name()
            ));
        }
        match migration::favour(name) {
            Ok(held) => cgroups.fast_migration = Some(held),
            Err(error) => warnings.push(format!(
                "moving processes between control groups may take milliseconds: {error}"
            )),
        }
        Ok((cgroups, warnings))
    }

    /// Makes the groups; returns the controllers that no hierarchy has.
    fn fill(&mut self, name: &str, places: &[Place]) -> Result<Vec<Controller>, CgroupError> {
        let mut missing = Controller::ALL.to_vec();
        // v1 first: a controller that is bound to a v1 hierarchy is absent from the unified one.
        for place in places.iter().filter(|place| place.version == Version::V1) {
            missing.retain(|controller| !place.controllers.contains(controller));
            self.groups
                .push(open_group(place, name, place.controllers.clone())?);
        }
        let unified = places.iter().find(|place| place.version == Version::V2);
        if let Some(place) = unified.filter(|_| !missing.is_empty()) {
            let room = unified::make_room(place, name, &missing)
                .map_err(|source| setup_error(&place.own, source))?;
            missing.retain(|controller| !room.controllers.contains(controller));
            self.leaf = room.leaf;
            if !room.controllers.is_empty() {
                self.groups
                    .push(open_group(&room.place, name, room.controllers)?);
            }
        }
        Ok(missing)
    }

    /// Makes slot `number` if need be, and opens it.
    pub fn open_slot(&self, number: u32) -> io::Result<SlotGroups> {
        let groups = self
            .groups
            .iter()
            .map(|group| group.open_slot(number))
            .collect::<io::Result<_>>()?;
        Ok(SlotGroups {
            groups,
            limits: None,
        })
    }

    /// Removes a slot in which nothing runs and that nobody has open. What cannot be removed is opened again by its number.
    pub fn remove_slot(&self, number: u32) {
        self.groups
            .iter()
            .for_each(|group| group.remove_slot(number));
    }

    /// Whether the same open slot may serve one sandbox after the other.
    pub fn have_lasting_slots(&self) -> bool {
        self.groups.iter().all(NodeGroup::has_lasting_slots)
    }

    /// Kills what still runs in the groups, and removes them.
    pub fn remove(self) {
        drop(self.fast_migration);
        for group in &self.groups {
            group.clear();
            group.remove();
        }
        if let Some(leaf) = self.leaf {
            leaf.undo();
        }
    }
}

/// The groups of one slot in all hierarchies, open.
#[derive(Debug)]
pub struct SlotGroups {
    groups: Vec<SlotGroup>,
    /// What is set; nothing if a change failed half-way.
    limits: Option<Limits>,
}

impl SlotGroups {
    /// Gets the slot ready for a sandbox with these limits.
    pub fn prepare(&mut self, limits: &Limits) -> io::Result<()> {
        if self.limits != Some(*limits) {
            self.limits = None;
            self.groups
                .iter()
                .try_for_each(|group| group.limit(limits))?;
            self.limits = Some(*limits);
        }
        self.groups.iter().try_for_each(|group| group.reset(limits))
    }

    /// `cgroup.procs` in each hierarchy, open for writing.
    pub fn procs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.groups.iter().map(SlotGroup::procs)
    }

    /// Of each hierarchy, open for writing: where a process of one thread writes `0` to move itself.
    pub fn entrances(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.groups.iter().map(SlotGroup::entrance)
    }

    /// Moves the calling process, which has one thread, into the slot.
    pub fn enter(&self) -> io::Result<()> {
        for entrance in self.entrances() {
            rustix::io::write(entrance, b"0")?;
        }
        Ok(())
    }

    /// Moves another process into the slot.
    pub fn take_in(&self, pid: i32) -> io::Result<()> {
        let pid = pid.to_string();
        for procs in self.procs() {
            rustix::io::write(procs, pid.as_bytes())?;
        }
        Ok(())
    }

    /// What tells about the slot's memory.
    pub fn memory(&self) -> Option<MemoryAccounts<'_>> {
        self.groups.iter().find_map(SlotGroup::memory)
    }
}

fn open_group(
    place: &Place,
    name: &str,
    controllers: Vec<Controller>,
) -> Result<NodeGroup, CgroupError> {
    let path = place.own.join(name);
    loop {
        let group = NodeGroup::open(place, name, controllers.clone())
            .map_err(|source| setup_error(&path, source))?;
        match group.lock() {
            Ok(true) => {}
            Ok(false) => return Err(CgroupError::InUse(path.display().to_string())),
            Err(source) => return Err(setup_error(&path, source)),
        }
        // Whoever had the claim before may have removed the group in the meantime.
        if group
            .is_linked()
            .map_err(|source| setup_error(&path, source))?
        {
            group.clear();
            return Ok(group);
        }
    }
}

fn setup_error(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Setup {
        path: path.display().to_string(),
        source,
    }
}
