//! Where the pages of an image are: in near memory, on far memory, or nowhere until they are touched.

use std::sync::Arc;

use rouse_pool::keeper::PagerError;
use rouse_pool::memory::{ImageMemory, MemoryOwner};
use rouse_pool::{FarDirectory, FarError, NumaNode};

use super::Image;

impl Image {
    /// The memory that instances map which start now. What was lost on far memory is left behind first.
    pub(crate) fn memory(&self) -> Arc<ImageMemory> {
        self.memory.usable(self)
    }

    /// The same, unchecked: only to be looked at.
    pub(crate) fn placed_memory(&self) -> Arc<ImageMemory> {
        self.memory.current()
    }

    /// Its own memory and that of its parents, in the order in which runs number pools. What an instance maps and what
    /// it relies on must come from one and the same answer.
    pub(crate) fn memories(&self) -> Vec<Arc<ImageMemory>> {
        let parents = self.parents.iter().map(|parent| parent.memory());
        std::iter::once(self.memory()).chain(parents).collect()
    }

    /// Are all pages that instances map in DRAM, to stay? Otherwise they come when they are needed, and
    /// there is no template to fork.
    pub fn is_resident(&self) -> bool {
        self.memories().iter().all(|memory| memory.is_resident())
    }

    /// Has instances that start from now on map another pool of the same contents.
    pub(crate) fn replace_memory(&self, memory: ImageMemory) {
        self.memory.replace(memory);
    }

    /// Brings all pages in, to stay: to near memory, or to a NUMA node but for those that its calls touch. Blocks.
    pub(crate) fn place_on(&self, node: Option<NumaNode>) -> Result<(), PagerError> {
        self.memory.place_on(self, node, &self.hot_pages())
    }

    /// Copies all pages to far memory, and has instances that start from now on map them there. Blocks for as long as that takes.
    ///
    /// `known` is called with what they will map before they do. Nothing happens where the pages are there already.
    pub(crate) fn move_to_far<E: From<FarError>>(
        &self,
        directory: &Arc<FarDirectory>,
        known: impl FnOnce(&ImageMemory) -> Result<(), E>,
    ) -> Result<(), E> {
        let moved = self.memory.move_to_far(self, directory, known);
        moved.map(drop)
    }

    /// Instances that start from now on map the pool again that was copied to far memory.
    pub(crate) fn leave_far(&self) {
        self.memory.leave_far(self);
    }

    /// Lets its pages go, as far as no instance relies on them, and ends what was made ahead.
    pub(crate) fn release(&self) -> Result<u64, PagerError> {
        self.memory.release(self)
    }

    /// Why its pages had to leave far memory, the last time they had to.
    pub fn far_problem(&self) -> Option<String> {
        self.memory.far_problem()
    }

    /// An instance that maps `memory`, which is or was this image's, has come to harm: looks whether far memory is to
    /// blame, and leaves it then. Reads all that is there.
    pub(crate) fn verify_far(&self, memory: &Arc<ImageMemory>) -> Option<String> {
        self.memory.verify_far(self, memory)
    }
}

impl MemoryOwner for Image {
    fn drop_ahead(&self) {
        self.drop_parked();
        self.drop_clones();
    }

    fn lost(&self, problem: &str) {
        tracing::error!(directory = ?self.directory, problem, "a function is served from elsewhere");
    }
}
