//! A machine's snapshot that is loaded: where its pages lie, and what is known of them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rouse_pool::memory::{Hold, ImageMemory};
use rouse_pool::snapshot_store::{StoreError, WriteOptions};
use rouse_process::launcher::{Copies, Launcher, PoolOwner, SnapshotError, Waits};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE};
use rouse_snapshot::working_set::WorkingSet;
use rouse_vmm::agent::Owners;
use rouse_vmm::memory::hot_pages;
use rouse_vmm::zygote::GivenPool;
use tokio::runtime::Handle;

use super::TENANT;
use super::learning::{self, Learning};
use super::report;
use super::seals::Seal;
use crate::boot::{Booted, ImageUse};

/// A loaded snapshot of a machine.
#[derive(Debug)]
pub struct MachineImage {
    pub snapshot: MachineSnapshot,
    /// By which a store knows its pool.
    pub identity: [u8; 32],
    /// The disks that the guest knew.
    pub seals: Vec<Seal>,
    /// Numbers of the disks whose blocks lie in its memory, in the order in which the snapshot refers to them.
    pub parents: Vec<usize>,
    directory: PathBuf,
    memory: RwLock<Arc<ImageMemory>>,
    /// Whose its pages are, as far as its guest said so.
    owners: Owners,
    learning: Mutex<Learning>,
    /// Copies that wait for requests.
    pub copies: Copies<Booted>,
    /// Held while it is stored anew.
    storing: Mutex<()>,
    stored_bytes: u64,
    problem: OnceLock<String>,
}

impl Waits for Booted {
    fn lives(&self) -> bool {
        self.exit.borrow().is_none()
    }
}

/// What is read of a stored snapshot beside its pages.
pub struct Parts {
    pub snapshot: MachineSnapshot,
    pub identity: [u8; 32],
    pub seals: Vec<Seal>,
    pub parents: Vec<usize>,
    pub directory: PathBuf,
    pub owners: Owners,
    pub stored_bytes: u64,
}

/// What a machine's memory relies on. It must live until the VMM has ended.
#[derive(Debug)]
pub struct Held {
    memory: Arc<ImageMemory>,
    hold: Hold,
    identity: [u8; 32],
}

impl Held {
    /// The pool as a VMM is given it; with pages that the pager watches, if touches are to be seen `exactly`.
    pub fn pool(&self, exactly: bool) -> Option<GivenPool<'_>> {
        let identity = Some(self.identity);
        match (&*self.memory, &self.hold) {
            (ImageMemory::Whole(pool), _) => Some(GivenPool::Whole(pool)),
            (_, Hold::Pinned(pinned)) if !exactly => Some(GivenPool::Pinned(pinned, identity)),
            (memory, _) => {
                let registered = memory.registered()?;
                Some(GivenPool::Registered(registered, identity))
            }
        }
    }
}

impl MachineImage {
    /// Of what was read, with what was learnt before.
    pub fn new(parts: Parts, memory: ImageMemory) -> Self {
        let learning = learning::read(&parts.directory, &parts.identity).unwrap_or_default();
        Self {
            snapshot: parts.snapshot,
            identity: parts.identity,
            seals: parts.seals,
            parents: parts.parents,
            directory: parts.directory,
            memory: RwLock::new(Arc::new(memory)),
            owners: parts.owners,
            learning: Mutex::new(learning),
            copies: Copies::default(),
            storing: Mutex::default(),
            stored_bytes: parts.stored_bytes,
            problem: OnceLock::new(),
        }
    }

    /// What a machine that is restored now relies on.
    pub fn hold(&self) -> Held {
        let memory = self.memory();
        let hold = memory.hold();
        Held {
            memory,
            hold,
            identity: self.identity,
        }
    }

    /// Are the touches of the next machine to be seen exactly?
    pub fn is_to_be_observed(&self) -> bool {
        self.memory().registered().is_some() && self.learning().is_curious()
    }

    /// A machine has touched these pages until it answered. In the background, they are stored in front if that is worth it.
    pub fn learn(self: &Arc<Self>, seen: WorkingSet, launcher: &Launcher) {
        let learnt = {
            let mut learning = self.learning();
            if !learning.add(seen) {
                return;
            }
            learning.clone()
        };
        let (image, launcher) = (Arc::clone(self), launcher.clone());
        let store = move || {
            // What is on disk is as good as before if this fails.
            if let Err(error) = image.store_anew(&learnt, &launcher) {
                tracing::warn!(%error, "a machine's pages could not be stored anew");
            }
        };
        // The runtime waits for it when the node ends: nothing is left half written.
        match Handle::try_current() {
            Ok(tasks) => drop(tasks.spawn_blocking(store)),
            Err(_) => store(),
        }
    }

    /// Blocks for as long as reading and writing all takes.
    fn store_anew(
        self: &Arc<Self>,
        learnt: &Learning,
        launcher: &Launcher,
    ) -> Result<(), SnapshotError> {
        let _turn = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let hot = hot_pages(learnt.set(), &self.snapshot.memory);
        let store = launcher.store();
        let name = store.name_of(&self.directory)?;
        let options = WriteOptions {
            hot: &hot,
            ..WriteOptions::new(TENANT)
        };
        store.rewrite(&name, &options)?;
        if let Err(error) = learning::write(&self.directory, &self.identity, learnt) {
            tracing::warn!(%error, "what was learnt of a machine is not kept");
        }
        let stored = store.open_as::<MachineSnapshot>(&name)?;
        if stored.binding.pool != self.identity {
            let path = self.directory.clone();
            return Err(StoreError::Exchanged { path }.into());
        }
        let memory = launcher.memory_of(&stored, false)?;
        if self.memory().is_resident() {
            memory.make_resident()?;
        }
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(memory);
        launcher.follow(self.clone());
        Ok(())
    }

    /// Guest pages that its calls are known to touch.
    fn known(&self) -> WorkingSet {
        self.learning().set().clone()
    }

    /// Pages of its pool that its calls are known to touch.
    fn hot_pages(&self) -> Vec<Range<u64>> {
        hot_pages(self.learning().set(), &self.snapshot.memory)
    }

    pub fn image_use(&self) -> ImageUse {
        let memory = self.memory();
        let hot = self.hot_pages();
        ImageUse {
            resident_pages: memory.resident_pages().unwrap_or(0),
            huge_pages: memory.huge_pages(),
            wired_pages: memory.wired_pages(),
            hot_pages: hot.iter().map(|range| range.end - range.start).sum(),
            stored_bytes: self.stored_bytes,
            compressed_bytes: memory.compressed_bytes(),
            ..ImageUse::default()
        }
    }

    pub fn working_set(&self) -> WorkingSetReport {
        let learning = self.learning();
        let pages = |ranges: &[Range<u64>]| -> u64 {
            ranges
                .iter()
                .map(|range| (range.end - range.start) / PAGE_SIZE)
                .sum()
        };
        WorkingSetReport {
            version: learning.version(),
            on: true,
            predicted_written: pages(&learning.set().written),
            predicted_read: pages(&learning.set().read),
            observations: learning.observations(),
            recording: learning.is_curious(),
            ..WorkingSetReport::default()
        }
    }

    pub fn memory_report(&self) -> MemoryReport {
        report::of(
            &self.snapshot,
            &self.owners,
            &self.known(),
            &self.memory(),
            self.working_set(),
        )
    }

    /// What makes it useless, if something was found.
    pub fn problem(&self) -> Option<String> {
        self.problem.get().cloned()
    }

    fn learning(&self) -> MutexGuard<'_, Learning> {
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolOwner for MachineImage {
    fn memory(&self) -> Arc<ImageMemory> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&memory)
    }

    fn descends_from(&self, _other: &dyn PoolOwner) -> bool {
        false
    }

    fn set_problem(&self, problem: String) {
        // The first is the one to be told.
        let _ = self.problem.set(problem);
    }
}
