//! Where the pages of a machine's snapshot are: in near memory, on far memory, or nowhere until they are touched.
//!
//! As those of processes; a file on far memory is given to VMMs in the place of the pool. Machines that run keep what they map.

use std::sync::{Arc, PoisonError};

use rouse_pool::memory::ImageMemory;
use rouse_pool::{FarDirectory, FarError, FarMemory, FarPool, NumaNode};

use super::image::MachineImage;
use crate::boot::BootError;
use crate::refusal::chain;

impl MachineImage {
    /// Brings all pages into memory, to stay: to near memory, or to far memory. On a NUMA node, those that its calls touch stay near.
    /// Those of what it descends from are brought to near memory. Blocks.
    pub fn place(&self, far: Option<FarMemory>) -> Result<(), BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        for ancestor in self.ancestors() {
            let resident = ancestor.usable_memory().make_resident();
            resident.map_err(|error| failed(&error))?;
        }
        match far {
            Some(FarMemory::Directory(directory)) => self.place_in(&directory),
            Some(FarMemory::Node(node)) => self.place_on(Some(node)),
            None => self.place_on(None),
        }
    }

    fn place_on(&self, node: Option<NumaNode>) -> Result<(), BootError> {
        let memory = self.usable_memory();
        let near = memory.near().unwrap_or(&memory);
        let placed = near.place(node, &self.hot_pages());
        placed.map_err(|error| BootError::from_error(&error))?;
        // It is all there by now: nobody has to wait for pages meanwhile.
        self.leave_far();
        Ok(())
    }

    fn place_in(&self, directory: &Arc<FarDirectory>) -> Result<(), BootError> {
        // What is being stored anew has another pool soon.
        let Ok(_turn) = self.storing.try_lock() else {
            return Ok(());
        };
        let near = self.usable_memory();
        let far = ImageMemory::copy_far(&near, directory);
        let Some(far) = far.map_err(|error| BootError::from_error(&error))? else {
            return Ok(());
        };
        self.set_memory(Arc::new(far));
        self.copies.set_target(0);
        // Machines that still map the pool keep its pages until they end, and this is called again.
        let released = self.usable_memory().release();
        released.map_err(|error| BootError::from_error(&error))?;
        Ok(())
    }

    /// Lets pages go, as far as nobody relies on them, and returns how many are left. With `compressed`, what is on disk of them is
    /// kept in memory.
    pub fn release(&self, compressed: bool) -> Result<u64, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let memory = self.usable_memory();
        // What is being stored anew has to stay until that is done.
        if let Ok(_turn) = self.storing.try_lock() {
            (memory.hold_compressed(compressed)).map_err(|error| failed(&error))?;
            self.copies.set_target(0);
            self.leave_far();
            let released = self.usable_memory().release();
            released.map_err(|error| failed(&error))?;
        }
        let left = self.usable_memory().resident_pages();
        left.map_err(|error| failed(&error))
    }

    /// What machines map that start now. What was lost on far memory is left behind first.
    pub fn usable_memory(&self) -> Arc<ImageMemory> {
        let memory = self.current_memory();
        match memory.far_file().map(FarPool::check) {
            Some(Err(error)) => self.leave_lost(&memory, &error),
            _ => memory,
        }
    }

    /// Machines that start from now on map the pool again that was copied to far memory.
    pub fn leave_far(&self) {
        if let Some(near) = self.current_memory().near() {
            self.set_memory(Arc::clone(near));
            self.copies.set_target(0);
        }
    }

    /// The same, because the file was found to have changed, or cannot be read. Returns what is to be mapped instead.
    fn leave_lost(&self, memory: &Arc<ImageMemory>, error: &FarError) -> Arc<ImageMemory> {
        let Some(near) = memory.near() else {
            return Arc::clone(memory);
        };
        let problem = lost(error);
        {
            let mut current = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            // Somebody else may have found it out at the same time.
            if !Arc::ptr_eq(&current, memory) {
                return Arc::clone(&current);
            }
            *current = Arc::clone(near);
        }
        tracing::error!(problem, "a function's machines are served from elsewhere");
        *self
            .far_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(problem);
        self.copies.set_target(0);
        Arc::clone(near)
    }

    /// Why its pages had to leave far memory, the last time they had to.
    pub fn far_problem(&self) -> Option<String> {
        let known = self.far_problem.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A machine that maps `memory` has come to harm: looks whether far memory is to blame, and leaves it then. Reads all that is there.
    pub fn verify_far(&self, memory: &Arc<ImageMemory>) -> Option<String> {
        let error = memory.far_file()?.verify().err()?;
        self.leave_lost(memory, &error);
        Some(lost(&error))
    }
}

fn lost(error: &FarError) -> String {
    format!("its pages on far memory were lost: {}", chain(error))
}
