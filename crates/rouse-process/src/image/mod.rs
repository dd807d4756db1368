//! A snapshot in memory, verified and compiled, ready to be restored any number of times.

mod behind;
mod files;
mod learning;
mod placement;
mod programs;
pub(crate) mod registered;
pub(crate) mod resemblance;
pub(crate) mod stowage;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rouse_pool::cost::{CostInputs, MapOrCopy};
use rouse_pool::memory::{ImageMemory, PlacedMemory};
use rouse_snapshot::model::{DescriptionKind, ParentPool, ProcessSnapshot};
use rouse_snapshot::page_class::hot_pool_pages;
use rouse_snapshot::working_set::SnapshotBinding;
use tokio::sync::SetOnce;

pub(crate) use behind::Behind;
use files::OpenFile;
pub(crate) use programs::load;
pub use programs::{LoadedProgram, Programs};
use stowage::Stowage;

use crate::clones::Clones;
use crate::launcher::Parked;
use crate::memory_report::{MemoryReport, Placement, Tier};
use crate::plan::{self, PlanError};
use crate::rewind::Baseline;
use crate::working_set::{Costs, Learner, Schedule};

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file that the snapshot refers to is not what it was.
    #[error("{path}: {what} since the snapshot was taken")]
    FileChanged {
        /// Path on the host.
        path: String,
        /// What is different.
        what: &'static str,
    },
    /// A file that the snapshot refers to cannot be opened.
    #[error("{path} cannot be opened")]
    File {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The snapshot was taken on a host that differs.
    #[error("the snapshot belongs to another host: {0} differs")]
    OtherHost(&'static str),
    /// The snapshot is a delta of one that is not there.
    #[error("the snapshot that this one is a delta of is gone")]
    ParentGone,
    /// No operation list can be made.
    #[error("the snapshot cannot be compiled")]
    Plan(#[from] PlanError),
    /// What was learnt cannot be stored.
    #[error("what was learnt about the function cannot be stored")]
    Learnt(#[source] io::Error),
    /// Memory for the programs is not to be had.
    #[error("the operation list cannot be stored")]
    Store(#[source] io::Error),
}

/// A snapshot, loaded and verified, ready to be restored any number of times.
#[derive(Debug)]
pub struct Image {
    snapshot: ProcessSnapshot,
    /// Exchanged when the snapshot is stored anew: instances that run keep what they have.
    memory: PlacedMemory,
    /// How the pool lies on disk.
    stowage: Stowage,
    /// Pages that a call is expected to touch. Kept, because it is asked for all the time and seldom changes.
    expected_pages: AtomicU64,
    /// May all tenants share its pages? Those of templates and specimens.
    is_shared: bool,
    /// Another descendant of this template, once it is known.
    specimen: Mutex<Weak<Image>>,
    /// Identity of the pool, by which snapshots that descend from this one name it.
    identity: [u8; 32],
    /// The images in whose pools runs lie, in the order of [`ProcessSnapshot::parents`].
    parents: Vec<Arc<Image>>,
    files: Vec<OpenFile>,
    /// The files that the programs map, in their order.
    mapped: Vec<usize>,
    current: RwLock<Current>,
    /// Which boots are blind and which invocations are observed.
    schedule: Schedule,
    learner: Mutex<Learner>,
    /// What a fresh instance looks like, once one has been looked at.
    baseline: Mutex<Option<Arc<Baseline>>>,
    storing: Mutex<()>,
    problem: SetOnce<String>,
    binding: SnapshotBinding,
    /// Where the snapshot lies, and what is learnt about it.
    directory: PathBuf,
}

/// What changes while an image is in use: what was made with what was learnt about it.
#[derive(Debug)]
struct Current {
    programs: Arc<Programs>,
    /// Programs that prepare nothing, once they are needed.
    blind: Option<Arc<Programs>>,
    /// The template host and its clones in waiting, made when first asked for.
    clones: Option<Arc<Clones>>,
    /// Instances that wait for requests, once some were asked for.
    parked: Option<Arc<Parked>>,
}

/// A snapshot as it was stored.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub snapshot: ProcessSnapshot,
    pub memory: ImageMemory,
    pub stowage: Stowage,
    /// May all tenants share its pages?
    pub is_shared: bool,
    /// That of its pool.
    pub identity: [u8; 32],
}

impl Image {
    /// Verifies the snapshot against this host, with what was learnt about it before. `ancestors` are images that it may descend
    /// from; `directory` is where it lies.
    pub(crate) fn new(
        loaded: Loaded,
        ancestors: &[Arc<Image>],
        costs: &CostInputs,
        directory: &Path,
    ) -> Result<Self, ImageError> {
        let Loaded {
            snapshot,
            memory,
            stowage,
            is_shared,
            identity,
        } = loaded;
        let parent = |wanted: &ParentPool| {
            let is_it = |image: &&Arc<Image>| {
                image.identity == wanted.pool && image.snapshot.pool_pages == wanted.pages
            };
            ancestors.iter().find(is_it).cloned()
        };
        let parents = snapshot.parents.iter().map(parent);
        let parents = parents
            .collect::<Option<Vec<_>>>()
            .ok_or(ImageError::ParentGone)?;
        let files = snapshot
            .files
            .iter()
            .map(files::open)
            .collect::<Result<Vec<_>, _>>()?;
        let (learner, schedule) = learning::learnt_before(&snapshot, directory, Costs::of(costs));
        let working_set = learner.working_set();
        let prepared = !working_set.is_empty();
        schedule.set_prepared(prepared);
        let mapped = plan::files(&snapshot)?;
        let programs = Arc::new(Programs::new(&snapshot, working_set, MapOrCopy::new(costs)));
        let binding = SnapshotBinding::of(&snapshot);
        let current = Current {
            blind: (!prepared).then(|| programs.clone()),
            programs,
            clones: None,
            parked: None,
        };
        let image = Self {
            snapshot,
            memory: PlacedMemory::new(memory),
            stowage,
            expected_pages: AtomicU64::new(0),
            is_shared,
            specimen: Mutex::default(),
            identity,
            parents,
            files,
            mapped,
            current: RwLock::new(current),
            schedule,
            learner: Mutex::new(learner),
            baseline: Mutex::new(None),
            storing: Mutex::new(()),
            problem: SetOnce::new(),
            binding,
            directory: directory.to_path_buf(),
        };
        image.expect_pages();
        Ok(image)
    }

    /// What the snapshot holds.
    pub fn snapshot(&self) -> &ProcessSnapshot {
        &self.snapshot
    }

    /// The programs to run now.
    pub(crate) fn programs(&self) -> Arc<Programs> {
        self.read().programs.clone()
    }

    /// The template host, if there is one.
    pub(crate) fn clones(&self) -> Option<Arc<Clones>> {
        self.read().clones.clone()
    }

    /// Forgets the template host.
    pub(crate) fn drop_clones(&self) {
        let clones = self.write().clones.take();
        drop(clones);
    }

    /// Instances made ahead, if any were ever asked for.
    pub(crate) fn parked(&self) -> Option<Arc<Parked>> {
        self.read().parked.clone()
    }

    /// Puts this in place, unless somebody was faster. Returns what counts.
    pub(crate) fn set_parked(&self, parked: Arc<Parked>) -> Arc<Parked> {
        self.write().parked.get_or_insert(parked).clone()
    }

    /// Ends the instances that wait for requests.
    pub(crate) fn drop_parked(&self) {
        let parked = self.write().parked.take();
        drop(parked);
    }

    /// How many instances wait for requests.
    pub fn parked_count(&self) -> usize {
        (self.read().parked.as_ref()).map_or(0, |parked| parked.copies().parked())
    }

    /// How many instances wait that were rewound.
    pub fn rewound_count(&self) -> usize {
        (self.read().parked.as_ref()).map_or(0, |parked| parked.copies().rewound())
    }

    /// Ends those.
    pub fn end_rewound(&self) {
        if let Some(parked) = self.parked() {
            parked.copies().end_all_rewound();
        }
    }

    /// What a fresh instance looked like when one was last looked at.
    pub(crate) fn baseline(&self) -> Option<Arc<Baseline>> {
        let known = self.baseline.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A fresh instance looks like this now.
    pub(crate) fn set_baseline(&self, baseline: Arc<Baseline>) {
        let mut known = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(baseline);
    }

    /// What makes the image useless, once something does.
    pub fn problem(&self) -> Option<String> {
        self.problem.get().cloned()
    }

    /// From now on the image is useless.
    pub(crate) fn set_problem(&self, problem: String) {
        // The first is the one to be told.
        let _ = self.problem.set(problem);
    }

    /// Pages of its own pool that are in DRAM.
    pub fn resident_pages(&self) -> io::Result<u64> {
        self.memory().resident_pages()
    }

    /// Where the snapshot lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pages of its own pool that boots need, in the order in which they need them, as far as that is known.
    pub(crate) fn hot_pages(&self) -> Vec<Range<u64>> {
        hot_pool_pages(&self.snapshot, &self.predicted_set(), &self.places())
    }

    /// How many pages of its own pool boots are known to need.
    pub fn hot_pages_count(&self) -> u64 {
        let hot = self.hot_pages();
        hot.iter().map(|range| range.end - range.start).sum()
    }

    /// How the pool lies on disk.
    pub(crate) fn stowage(&self) -> &Stowage {
        &self.stowage
    }

    /// Number of pages that a call is expected to touch; of a function that was never called, a quarter of its pool.
    pub fn expected_pages(&self) -> u64 {
        self.expected_pages.load(Ordering::Relaxed)
    }

    /// To be called when something new is known of what calls touch.
    fn expect_pages(&self) {
        let pages = match self.hot_pages_count() {
            0 => self.snapshot.pool_pages / 4,
            pages => pages,
        };
        self.expected_pages.store(pages, Ordering::Relaxed);
    }

    /// Pages of its own pool that stay in DRAM as long as it is loaded.
    pub fn wired_pages(&self) -> u64 {
        self.memory().wired_pages()
    }

    /// Bytes that the pieces of its pool take on disk.
    pub fn stored_bytes(&self) -> u64 {
        self.stowage.bytes()
    }

    /// Bytes of these that are kept in memory.
    pub fn compressed_bytes(&self) -> u64 {
        self.memory().compressed_bytes()
    }

    /// Pages of its own pool that lie in pages of 2 MiB.
    pub fn huge_pages(&self) -> u64 {
        self.memory().huge_pages()
    }

    /// Pages of its own pool that lie on far memory.
    pub fn far_pages(&self) -> u64 {
        self.memory().far_pages()
    }

    /// Was the snapshot stored anew since it was loaded? It is better loaded again then: what lies on disk fits better, and
    /// what lay there takes room until nobody uses it.
    pub fn is_stale(&self) -> bool {
        self.memory().is_stale()
    }

    /// Puts a template host in place, unless there is one already that runs the current programs.
    /// Returns the one that counts. The one before lives on until its last user lets go of it.
    pub(crate) fn set_clones(&self, clones: Clones) -> Arc<Clones> {
        let mut current = self.write();
        let programs = current.programs.clone();
        match &current.clones {
            Some(present) if Arc::ptr_eq(&present.programs, &programs) => present.clone(),
            _ => current.clones.insert(Arc::new(clones)).clone(),
        }
    }

    /// What the snapshot's memory is made of. Takes a millisecond or so.
    pub fn memory_report(&self) -> MemoryReport {
        // What cannot be asked is not in memory for all that is known.
        let resident = self.memory().resident_ranges().unwrap_or_default();
        let resident = resident.into_iter().map(|pages| (pages, Tier::Dram));
        let rest = match self.compressed_bytes() {
            _ if self.memory().far_file().is_some() => Tier::Far,
            0 => Tier::Disk,
            _ => Tier::Compressed,
        };
        let placement = Placement::new(resident.collect(), rest);
        MemoryReport::of(
            &self.snapshot,
            &self.predicted_set(),
            &placement,
            self.working_set_report(),
        )
    }

    fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptors for a program: pool, then mapped files, then parents' pools. `memories` are those of
    /// [`Self::memories`].
    pub(crate) fn descriptors<'a>(
        &'a self,
        memories: &'a [Arc<ImageMemory>],
    ) -> impl Iterator<Item = BorrowedFd<'a>> {
        let files = self
            .mapped
            .iter()
            .map(|index| self.files[*index].file.as_fd());
        let mut pools = memories.iter().map(|memory| memory.view());
        pools.next().into_iter().chain(files).chain(pools)
    }

    /// The image that it is a delta of.
    pub(crate) fn template(&self) -> Option<&Arc<Image>> {
        self.parents.first()
    }

    /// May a specimen be made of it, for all tenants? It must be a template, and no delta.
    pub(crate) fn is_template(&self) -> bool {
        self.is_shared && self.parents.is_empty()
    }

    /// Whose pages its descendants need not save once more, as long as that is loaded.
    pub(crate) fn specimen(&self) -> Option<Arc<Image>> {
        let specimen = self.specimen.lock();
        specimen.unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    pub(crate) fn set_specimen(&self, image: &Arc<Image>) {
        let mut specimen = self.specimen.lock().unwrap_or_else(PoisonError::into_inner);
        *specimen = Arc::downgrade(image);
    }

    /// Those that it descends from.
    pub(crate) fn parents(&self) -> &[Arc<Image>] {
        &self.parents
    }

    /// Does it map pages of that one?
    pub(crate) fn descends_from(&self, parent: &Arc<Image>) -> bool {
        self.parents.iter().any(|one| Arc::ptr_eq(one, parent))
    }

    /// This image and those that it descends from: the pools that its instances map.
    pub(crate) fn lineage(self: &Arc<Self>) -> Vec<Arc<Image>> {
        std::iter::once(self)
            .chain(&self.parents)
            .cloned()
            .collect()
    }

    /// As a parent of another snapshot.
    pub(crate) fn as_parent(&self) -> ParentPool {
        ParentPool {
            pool: self.identity,
            pages: self.snapshot.pool_pages,
        }
    }

    /// Is the parked request a `restore/next`? Only the node knows; the snapshot tells that there is one.
    pub fn has_parked_request(&self) -> bool {
        self.snapshot
            .descriptions
            .iter()
            .any(|d| matches!(d.kind, DescriptionKind::RuntimeApi { .. }))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
