//! The node's group in one hierarchy, and the slots below it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::detect::{Controller, Place, Version};
use super::slot::SlotGroup;

/// Rounds of waiting for killed processes to leave a group, and the pause between them.
const CLEAR_ROUNDS: u32 = 200;
const CLEAR_PAUSE: Duration = Duration::from_millis(5);
/// How long a claim waits for the spawner of a node that has died, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The node's group in one hierarchy.
#[derive(Debug)]
pub struct NodeGroup {
    version: Version,
    controllers: Vec<Controller>,
    parent: OwnedFd,
    name: String,
    dir: OwnedFd,
    /// Slots are removed and made again for each sandbox: the kernel cannot reset what it counts for one.
    fresh_slots: bool,
}

impl NodeGroup {
    /// Makes (or takes over) the group `name` below the node's own.
    pub fn open(place: &Place, name: &str, controllers: Vec<Controller>) -> io::Result<NodeGroup> {
        let parent = rustix::fs::open(
            &place.own,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        make_directory(&parent, name)?;
        let dir = rustix::fs::openat(
            &parent,
            name,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut fresh_slots = false;
        if place.version == Version::V2 {
            for controller in &controllers {
                write_file(
                    &dir,
                    "cgroup.subtree_control",
                    &format!("+{}", controller.name()),
                )?;
            }
            fresh_slots = controllers.contains(&Controller::Memory) && !can_reset_peak(&dir);
        }
        Ok(NodeGroup {
            version: place.version,
            controllers,
            parent,
            name: name.to_owned(),
            dir,
            fresh_slots,
        })
    }

    /// Claims the group for this process; `false` if another process has it.
    ///
    /// The claim ends with the descriptor, so a killed node leaves none. Its spawner outlives it by the moment that it
    /// takes to end the sandboxes, and a supervisor starts the next node at once: so the claim waits a little.
    pub fn lock(&self) -> io::Result<bool> {
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the group can still be found under its name.
    pub fn is_linked(&self) -> io::Result<bool> {
        match rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok(named.st_ino == rustix::fs::fstat(&self.dir)?.st_ino),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes slot `slot` if need be, and opens it.
    pub fn open_slot(&self, slot: u32) -> io::Result<SlotGroup> {
        if self.fresh_slots {
            self.remove_slot(slot);
        }
        let slot = slot.to_string();
        make_directory(&self.dir, &slot)?;
        let dir = rustix::fs::openat(
            &self.dir,
            &slot,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        SlotGroup::open(self.version, &self.controllers, dir)
    }

    /// Removes a slot, if there is one and nothing runs in it.
    pub fn remove_slot(&self, slot: u32) {
        let _ = rustix::fs::unlinkat(&self.dir, slot.to_string(), AtFlags::REMOVEDIR);
    }

    /// Whether a slot may serve one sandbox after the other.
    pub fn has_lasting_slots(&self) -> bool {
        !self.fresh_slots
    }

    /// Kills every process in the slots and removes them.
    pub fn clear(&self) {
        for slot in self.slots() {
            let procs = format!("{slot}/cgroup.procs");
            for _ in 0..CLEAR_ROUNDS {
                let pids = read_file(&self.dir, &procs).unwrap_or_default();
                let pids: Vec<i32> = pids
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .filter(|pid| *pid > 1)
                    .collect();
                if pids.is_empty()
                    && rustix::fs::unlinkat(&self.dir, &slot, AtFlags::REMOVEDIR).is_ok()
                {
                    break;
                }
                for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
                std::thread::sleep(CLEAR_PAUSE);
            }
        }
    }

    /// Removes the group itself.
    pub fn remove(&self) {
        let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }

    fn slots(&self) -> Vec<String> {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.dir) else {
            return Vec::new();
        };
        let names =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str().map(str::to_owned).ok());
        names.filter(|name| name.parse::<u32>().is_ok()).collect()
    }
}

/// Whether a write to `memory.peak` resets it for the writing descriptor (since Linux 6.12).
fn can_reset_peak(dir: &OwnedFd) -> bool {
    write_file(dir, "memory.peak", "reset").is_ok()
}

pub fn make_directory(parent: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub fn write_file(dir: &OwnedFd, path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let path = path.as_ref();
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("{} = {text}: {error}", path.display()),
        )
    };
    let file = rustix::fs::openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| explain(error.into()))?;
    fs::File::from(file)
        .write_all(text.as_bytes())
        .map_err(explain)
}

pub fn read_file(dir: &OwnedFd, path: &str) -> io::Result<String> {
    let file = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}
