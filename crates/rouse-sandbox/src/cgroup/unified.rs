//! Room for the node's group in the unified hierarchy.
//!
//! A group of it may have either processes or children with controllers, never both; only the root group is free of
//! that rule.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::detect::{Controller, Place};
use super::group::{make_directory, read_file, write_file};

/// A parent for the node's group, and what was changed to make it one.
#[derive(Debug)]
pub struct Room {
    /// Where the node's group goes: `own` is its parent.
    pub place: Place,
    /// The controllers that its children may have.
    pub controllers: Vec<Controller>,
    /// Where the node itself had to go.
    pub leaf: Option<Leaf>,
}

/// A child group that the node's processes were moved to.
#[derive(Debug)]
pub struct Leaf {
    parent: OwnedFd,
    name: String,
    controllers: Vec<Controller>,
}

impl Leaf {
    /// Moves the node's processes back. All other children with controllers must be gone.
    pub fn undo(self) {
        for controller in &self.controllers {
            let _ = write_file(
                &self.parent,
                "cgroup.subtree_control",
                &format!("-{}", controller.name()),
            );
        }
        let members =
            read_file(&self.parent, &format!("{}/cgroup.procs", self.name)).unwrap_or_default();
        for pid in members.lines() {
            let _ = write_file(&self.parent, "cgroup.procs", pid);
        }
        let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Finds room for those of the `wanted` controllers that the hierarchy has.
///
/// A node in the root group, or in a group that holds only the node (which then moves to a child), stays where it is;
/// otherwise its group goes below the root.
pub fn make_room(place: &Place, name: &str, wanted: &[Controller]) -> io::Result<Room> {
    let mut place = place.clone();
    let open = |place: &Place| {
        rustix::fs::open(
            &place.own,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let mut parent = open(&place)?;
    let mut leaf = None;
    if place.own != place.mount_point {
        let members = read_file(&parent, "cgroup.procs")?;
        let node = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
        let spawner = rustix::process::getpid().as_raw_nonzero().get().to_string();
        if members
            .lines()
            .all(|pid| pid == spawner || Some(pid) == node.as_deref())
        {
            let child = format!("{name}.node");
            make_directory(&parent, &child)?;
            for pid in members.lines() {
                write_file(&parent, format!("{child}/cgroup.procs"), pid)?;
            }
            leaf = Some(child);
        } else {
            place.own = place.mount_point.clone();
            parent = open(&place)?;
        }
    }
    let available = read_file(&parent, "cgroup.controllers").unwrap_or_default();
    let is_available = |controller: &Controller| {
        available
            .split_whitespace()
            .any(|other| other == controller.name())
    };
    let hand_down = |controller: &Controller| {
        write_file(
            &parent,
            "cgroup.subtree_control",
            &format!("+{}", controller.name()),
        )
        .is_ok()
    };
    let controllers: Vec<_> = wanted
        .iter()
        .copied()
        .filter(|controller| is_available(controller) && hand_down(controller))
        .collect();
    let leaf = leaf.map(|name| Leaf {
        parent,
        name,
        controllers: controllers.clone(),
    });
    Ok(Room {
        place,
        controllers,
        leaf,
    })
}
