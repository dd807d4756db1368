//! A machine's snapshot that is loaded: where its pages lie, and what is known of them.

use std::ops::Range;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rouse_pool::chunk::Base;
use rouse_pool::keeper::PagerError;
use rouse_pool::memory::{Hold, ImageMemory, PlacedMemory};
use rouse_pool::snapshot_store::{SnapshotStore, StoreError, StoredSnapshot, WriteOptions};
use rouse_process::launcher::{Copies, Launcher, PoolOwner, SnapshotError, Waits};
use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE, PageRun};
use rouse_snapshot::working_set::WorkingSet;
use rouse_vmm::agent::Owners;
use rouse_vmm::memory::hot_pages;
use rouse_vmm::zygote::GivenPool;
use tokio::runtime::Handle;

use super::TENANT;
use super::known::GuestKnows;
use super::learning::{self, Learning};
use super::prepare::DiskImage;
use super::report;
use crate::boot::{Booted, ImageUse};

/// A loaded snapshot of a machine.
#[derive(Debug)]
pub struct MachineImage {
    pub snapshot: MachineSnapshot,
    /// By which a store knows its pool.
    pub identity: [u8; 32],
    /// What its guest knew when it was written down.
    pub guest: GuestKnows,
    /// What else its memory lies in, in the order in which the snapshot refers to it.
    parents: Vec<Parent>,
    /// It knows no function and no package: functions are made of it.
    pub is_template: bool,
    /// Nothing for one that is only in memory.
    directory: Option<PathBuf>,
    /// Exchanged when it is stored anew, or placed elsewhere: machines that run keep what they have.
    pub(super) memory: PlacedMemory,
    /// Whose its pages are, as far as its guest said so.
    owners: Owners,
    learning: Mutex<Learning>,
    /// Copies that wait for requests.
    pub copies: Copies<Booted>,
    /// Held while it is stored anew.
    pub(super) storing: Mutex<()>,
    stored_bytes: AtomicU64,
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
    pub guest: GuestKnows,
    pub parents: Vec<Parent>,
    pub is_template: bool,
    pub directory: Option<PathBuf>,
    pub owners: Owners,
    pub stored_bytes: u64,
}

/// What a machine's memory lies in beside its snapshot's own pool.
#[derive(Debug)]
pub enum Parent {
    /// Blocks of the disk with this number.
    Disk(usize),
    /// Pages of a snapshot that it descends from: a template, or what a live machine was a copy of.
    Snapshot(Arc<MachineImage>),
}

/// What a machine's memory relies on. It must live until the VMM has ended.
#[derive(Debug)]
pub struct Held {
    own: HeldPool,
    parents: Vec<HeldParent>,
}

/// As [`Parent`].
#[derive(Debug)]
enum HeldParent {
    Disk(usize),
    Snapshot(HeldPool),
}

#[derive(Debug)]
struct HeldPool {
    memory: Arc<ImageMemory>,
    hold: Hold,
    identity: [u8; 32],
}

impl Held {
    /// The memory of its own pool.
    pub fn memory(&self) -> &Arc<ImageMemory> {
        &self.own.memory
    }

    /// The pools as a VMM is given them, and images of `disks`, in the order of the snapshot; of its own with pages that the pager
    /// watches, if touches are to be seen `exactly`. Nothing, if there is no pager any more.
    pub fn pools<'a>(
        &'a self,
        disks: &'a [DiskImage],
        exactly: bool,
    ) -> Option<Vec<GivenPool<'a>>> {
        let parents = self.parents.iter().map(|parent| match parent {
            HeldParent::Disk(disk) => disks.get(*disk).map(DiskImage::pool),
            HeldParent::Snapshot(pool) => pool.given(false),
        });
        std::iter::once(self.own.given(exactly))
            .chain(parents)
            .collect()
    }
}

impl HeldPool {
    fn of(image: &MachineImage) -> Self {
        let memory = image.memory.usable(image);
        let hold = memory.hold();
        Self {
            memory,
            hold,
            identity: image.identity,
        }
    }

    fn given(&self, exactly: bool) -> Option<GivenPool<'_>> {
        let identity = Some(self.identity);
        match (&*self.memory, &self.hold) {
            (ImageMemory::Whole(pool), _) => Some(GivenPool::Whole(pool, identity)),
            // It never changes, as a disk.
            (ImageMemory::Far(_), _) => {
                let file = self.memory.far_file()?;
                Some(GivenPool::Image(file.as_fd(), file.pages(), self.identity))
            }
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
        let directory = parts.directory.as_deref();
        let learnt = directory.and_then(|directory| learning::read(directory, &parts.identity));
        let learning = learnt.unwrap_or_default();
        Self {
            snapshot: parts.snapshot,
            identity: parts.identity,
            guest: parts.guest,
            parents: parts.parents,
            is_template: parts.is_template,
            directory: parts.directory,
            memory: PlacedMemory::new(memory),
            owners: parts.owners,
            learning: Mutex::new(learning),
            copies: Copies::default(),
            storing: Mutex::default(),
            stored_bytes: AtomicU64::new(parts.stored_bytes),
            problem: OnceLock::new(),
        }
    }

    /// What a machine that is restored now relies on.
    pub fn hold(&self) -> Held {
        let parents = self.parents.iter().map(|parent| match parent {
            Parent::Disk(disk) => HeldParent::Disk(*disk),
            Parent::Snapshot(image) => HeldParent::Snapshot(HeldPool::of(image)),
        });
        Held {
            own: HeldPool::of(self),
            parents: parents.collect(),
        }
    }

    /// The template that it was made of.
    pub fn template(&self) -> Option<&Arc<MachineImage>> {
        self.ancestors().find(|image| image.is_template)
    }

    /// The snapshots that it descends from.
    pub fn ancestors(&self) -> impl Iterator<Item = &Arc<MachineImage>> {
        self.parents.iter().filter_map(|parent| match parent {
            Parent::Snapshot(image) => Some(image),
            Parent::Disk(_) => None,
        })
    }

    /// Pages that its machines map from the template's pool.
    pub fn template_pages(&self) -> u64 {
        let runs = self.snapshot.memory.iter();
        let of_template = runs.filter(|run| self.is_of_template(run));
        of_template.map(|run| run.pages).sum()
    }

    /// Does it lie in the template's pool?
    pub fn is_of_template(&self, run: &PageRun) -> bool {
        let parent = run.pool().checked_sub(1);
        let parent = parent.and_then(|index| self.parents.get(index));
        matches!(parent, Some(Parent::Snapshot(image)) if image.is_template)
    }

    /// Are all of its pages in memory, to stay, and those of its ancestors?
    pub fn is_resident(&self) -> bool {
        let resident = |image: &MachineImage| image.memory.current().is_resident();
        resident(self) && self.ancestors().all(|image| resident(image))
    }

    /// Brings them in.
    pub fn make_resident(&self) -> Result<(), PagerError> {
        for image in self.ancestors() {
            image.memory.current().make_resident()?;
        }
        self.memory.current().make_resident()
    }

    /// What the pages of a snapshot that was made of it are to be stored beside. Nothing, if it is no template.
    pub fn base_for(
        &self,
        snapshot: &MachineSnapshot,
        store: &SnapshotStore,
    ) -> Result<Option<Base>, StoreError> {
        let Some(directory) = self.directory.as_deref().filter(|_| self.is_template) else {
            return Ok(None);
        };
        let parent = store.parent_pages(&store.name_of(directory)?)?;
        Ok(parent.map(|parent| Base {
            parent,
            pages: resemblance(snapshot.pool_pages, &snapshot.memory, &self.snapshot.memory),
        }))
    }

    /// Are the touches of the next machine to be seen exactly?
    pub fn is_to_be_observed(&self) -> bool {
        !self.is_template
            && self.memory.current().registered().is_some()
            && self.learning().is_curious()
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

    /// Blocks for as long as reading and writing all takes. Nothing is done about one that is only in memory.
    fn store_anew(
        self: &Arc<Self>,
        learnt: &Learning,
        launcher: &Launcher,
    ) -> Result<(), SnapshotError> {
        let Some(directory) = self.directory.as_deref() else {
            return Ok(());
        };
        let _turn = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let hot = hot_pages(learnt.set(), &self.snapshot.memory);
        let store = launcher.store();
        let name = store.name_of(directory)?;
        // Without it the pages take more room.
        let base = self.template().and_then(|template| {
            let base = template.base_for(&self.snapshot, store);
            base.inspect_err(|error| tracing::warn!(%error, "a template's pages cannot be used"))
                .ok()
                .flatten()
        });
        let options = WriteOptions {
            hot: &hot,
            base,
            ..WriteOptions::new(TENANT)
        };
        store.rewrite(&name, &options)?;
        if let Err(error) = learning::write(directory, &self.identity, learnt) {
            tracing::warn!(%error, "what was learnt of a machine is not kept");
        }
        let stored = store.open_as::<MachineSnapshot>(&name)?;
        if stored.binding.pool != self.identity {
            let path = directory.to_owned();
            return Err(StoreError::Exchanged { path }.into());
        }
        self.stored_bytes
            .store(stored_bytes(&stored), Ordering::Relaxed);
        let memory = launcher.memory_of(&stored, false)?;
        // What replaces the pool is not a copy of it; the policy makes another one.
        self.memory.leave_far(self.as_ref());
        if self.memory.current().is_resident() {
            memory.make_resident()?;
        }
        self.memory.replace(memory);
        launcher.follow(self.clone());
        Ok(())
    }

    /// Guest pages that its calls are known to touch.
    fn known(&self) -> WorkingSet {
        self.learning().set().clone()
    }

    /// Pages of its pool that its calls are known to touch.
    pub(super) fn hot_pages(&self) -> Vec<Range<u64>> {
        hot_pages(self.learning().set(), &self.snapshot.memory)
    }

    pub fn image_use(&self) -> ImageUse {
        let memory = self.memory.current();
        let hot = self.hot_pages();
        ImageUse {
            resident_pages: memory.resident_pages().unwrap_or(0),
            far_pages: memory.far_pages(),
            huge_pages: memory.huge_pages(),
            wired_pages: memory.wired_pages(),
            hot_pages: hot.iter().map(|range| range.end - range.start).sum(),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
            compressed_bytes: memory.compressed_bytes(),
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
            self,
            &self.owners,
            &self.known(),
            &self.memory.current(),
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
        self.memory.current()
    }

    fn descends_from(&self, other: &dyn PoolOwner) -> bool {
        self.ancestors()
            .any(|image| std::ptr::addr_eq(Arc::as_ptr(image), other))
    }

    fn set_problem(&self, problem: String) {
        // The first is the one to be told.
        let _ = self.problem.set(problem);
    }
}

/// What its pool takes on disk.
pub fn stored_bytes(stored: &StoredSnapshot<MachineSnapshot>) -> u64 {
    let chunks = stored.map.chunks();
    chunks.map(|chunk| u64::from(chunk.stored_len)).sum()
}

/// For each of the `pool_pages` pages of a snapshot's own pool the number of the page of its template's pool at the same address, plus
/// one; zero where there is none. `memory` and `template` are what lies where, in the order of addresses.
fn resemblance(pool_pages: u64, memory: &[PageRun], template: &[PageRun]) -> Vec<u32> {
    let own = |runs: &[PageRun]| -> Vec<PageRun> {
        let own = runs.iter().filter(|run| run.pool() == 0);
        own.copied().collect()
    };
    let before = own(template);
    let mut pages = vec![0; pool_pages as usize];
    for run in own(memory) {
        for index in 0..run.pages {
            let address = run.address + index * PAGE_SIZE;
            let at = before.partition_point(|run| run.address <= address);
            let Some(old) = at.checked_sub(1).map(|at| before[at]) else {
                continue;
            };
            let distance = (address - old.address) / PAGE_SIZE;
            if let Some(page) = pages.get_mut((run.page_in_pool() + index) as usize)
                && distance < old.pages
            {
                *page = u32::try_from(old.page_in_pool() + distance + 1).unwrap_or(0);
            }
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use rouse_snapshot::model::pool_page;

    use super::*;

    #[test]
    fn a_page_resembles_the_one_at_its_address() {
        let runs = |runs: &[(u64, u64, u64)]| -> Vec<PageRun> {
            let run = |(page, pages, pool_page): &(u64, u64, u64)| PageRun {
                address: page * PAGE_SIZE,
                pages: *pages,
                pool_page: *pool_page,
            };
            runs.iter().map(run).collect()
        };
        // Pages 30 to 39 are blocks of a disk.
        let template = runs(&[(10, 10, 0), (30, 10, pool_page(1, 7)), (40, 5, 10)]);
        let memory = runs(&[
            (8, 4, 0),
            (12, 3, pool_page(1, 2)),
            (19, 2, 4),
            (35, 1, 6),
            (42, 1, 7),
        ]);
        assert_eq!(
            resemblance(8, &memory, &template),
            [0, 0, 1, 2, 10, 0, 0, 13]
        );
        assert_eq!(resemblance(8, &memory, &[]), [0; 8]);
    }
}
