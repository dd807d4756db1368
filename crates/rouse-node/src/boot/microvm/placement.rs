//! Where the pages of a machine's snapshot are: in near memory, on far memory, or nowhere until they are touched.
//!
//! As those of processes; a file on far memory is given to VMMs in the place of the pool. Machines that run keep what they map.

use std::sync::Arc;

use rouse_pool::memory::{ImageMemory, MemoryOwner};
use rouse_pool::{FarDirectory, FarError, FarMemory, NumaNode};

use super::image::MachineImage;
use crate::boot::BootError;

impl MachineImage {
    /// Brings all pages into memory, to stay: to near memory, or to far memory. On a NUMA node, those that its calls touch stay near.
    /// Those of what it descends from are brought to near memory. Blocks.
    pub fn place(&self, far: Option<FarMemory>) -> Result<(), BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        for ancestor in self.ancestors() {
            let resident = ancestor.memory.usable(ancestor.as_ref()).make_resident();
            resident.map_err(|error| failed(&error))?;
        }
        match far {
            Some(FarMemory::Directory(directory)) => self.place_in(&directory),
            Some(FarMemory::Node(node)) => self.place_on(Some(node)),
            None => self.place_on(None),
        }
    }

    fn place_on(&self, node: Option<NumaNode>) -> Result<(), BootError> {
        let placed = self.memory.place_on(self, node, &self.hot_pages());
        placed.map_err(|error| BootError::from_error(&error))
    }

    fn place_in(&self, directory: &Arc<FarDirectory>) -> Result<(), BootError> {
        // What is being stored anew has another pool soon.
        let Ok(_turn) = self.storing.try_lock() else {
            return Ok(());
        };
        let known = |_: &ImageMemory| Ok::<_, FarError>(());
        let moved = self.memory.move_to_far(self, directory, known);
        moved.map_err(|error| BootError::from_error(&error))?;
        // Machines that still map the pool keep its pages until they end, and this is called again.
        let released = self.memory.usable(self).release();
        released.map_err(|error| BootError::from_error(&error))?;
        Ok(())
    }

    /// Lets pages go, as far as nobody relies on them, and returns how many are left. With `compressed`, what is on disk of them is
    /// kept in memory.
    pub fn release(&self, compressed: bool) -> Result<u64, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let memory = self.memory.usable(self);
        // What is being stored anew has to stay until that is done.
        if let Ok(_turn) = self.storing.try_lock() {
            (memory.hold_compressed(compressed)).map_err(|error| failed(&error))?;
            let released = self.memory.release(self);
            released.map_err(|error| failed(&error))?;
        }
        let left = self.memory.usable(self).resident_pages();
        left.map_err(|error| failed(&error))
    }

    /// Why its pages had to leave far memory, the last time they had to.
    pub fn far_problem(&self) -> Option<String> {
        self.memory.far_problem()
    }

    /// A machine that maps `memory` has come to harm: looks whether far memory is to blame, and leaves it then. Reads all that is there.
    pub fn verify_far(&self, memory: &Arc<ImageMemory>) -> Option<String> {
        self.memory.verify_far(self, memory)
    }
}

impl MemoryOwner for MachineImage {
    fn drop_ahead(&self) {
        self.copies.set_target(0);
    }

    fn lost(&self, problem: &str) {
        tracing::error!(problem, "a function's machines are served from elsewhere");
    }
}
