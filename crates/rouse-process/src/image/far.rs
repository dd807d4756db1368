//! Pages that lie in a file on far memory, on their way there and back.
//!
//! ```text
//!   paged pool  --- move_to_far ---> file on far memory, the pool lets its pages go
//!       ^                                |
//!       |--------- leave_far ------------|   its pages belong elsewhere
//!       `--------- leave_lost -----------'   the file is not what it was: nobody maps it any more
//! ```
//! Instances that run keep what they have mapped. What the file has lost ends them when they touch it; it never shows
//! them another byte.

use std::sync::{Arc, PoisonError};

use rouse_pool::{FarDirectory, FarError};

use super::{Image, chain};
use rouse_pool::memory::ImageMemory;

impl Image {
    /// Copies all pages to far memory; instances that start from now on map them there. Blocks for as long as that takes.
    ///
    /// `known` is called with what they will map before they do. Nothing happens where the pages are there already.
    pub(crate) fn move_to_far<E: From<FarError>>(
        &self,
        directory: &Arc<FarDirectory>,
        known: impl FnOnce(&ImageMemory) -> Result<(), E>,
    ) -> Result<(), E> {
        let near = self.memory();
        let Some(far) = ImageMemory::copy_far(&near, directory)? else {
            return Ok(());
        };
        known(&far)?;
        self.set_memory(Arc::new(far));
        self.drop_makers();
        Ok(())
    }

    /// Instances that start from now on map the pool again that was copied to far memory.
    pub(crate) fn leave_far(&self) {
        let memory = self.memory();
        if let Some(near) = memory.near() {
            self.set_memory(near.clone());
            self.drop_makers();
        }
    }

    /// The same, because the file was found to have changed or cannot be read. Returns what is to be mapped instead.
    pub(crate) fn leave_lost(
        &self,
        memory: &Arc<ImageMemory>,
        error: &FarError,
    ) -> Arc<ImageMemory> {
        let Some(near) = memory.near() else {
            return memory.clone();
        };
        let problem = lost(error);
        {
            let mut current = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            // Somebody else may have found it out at the same time.
            if !Arc::ptr_eq(&current, memory) {
                return current.clone();
            }
            *current = near.clone();
        }
        tracing::error!(directory = ?self.directory, problem, "a function is served from elsewhere");
        let mut known = (self.far_problem.lock()).unwrap_or_else(PoisonError::into_inner);
        *known = Some(problem);
        drop(known);
        self.drop_makers();
        near.clone()
    }

    /// Why its pages had to leave far memory, the last time they had to.
    pub fn far_problem(&self) -> Option<String> {
        let known = self.far_problem.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An instance that maps `memory`, which is or was this image's, has come to harm: looks whether far memory is to
    /// blame, and leaves it then. Reads all that is there.
    pub(crate) fn verify_far(&self, memory: &Arc<ImageMemory>) -> Option<String> {
        let error = memory.far_file()?.verify().err()?;
        self.leave_lost(memory, &error);
        Some(lost(&error))
    }

    /// What makes instances ahead maps what was mapped before.
    fn drop_makers(&self) {
        self.drop_parked();
        self.drop_clones();
    }
}

fn lost(error: &FarError) -> String {
    format!("its pages on far memory were lost: {}", chain(error))
}
