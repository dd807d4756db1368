//! Which memory the instances of an image map that start now.
//!
//! ```text
//!   paged pool  --- move_to_far ---> file on far memory, the pool lets its pages go
//!       ^                                |
//!       |--------- leave_far ------------|   its pages belong elsewhere
//!       `--------- leave_lost -----------'   the file is not what it was: nobody maps it any more
//! ```
//! Instances that run keep what they have mapped. What the file has lost ends them when they touch it; it never shows
//! them another byte. Instances that were made ahead, and have not run, are their owner's to end: see [`MemoryOwner`].

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{ImageMemory, lock};
use crate::keeper::PagerError;
use crate::pager::batch::chain;
use crate::{FarDirectory, FarError, FarPool, NumaNode};

/// Whose memory it is. Handed in by whoever may change what is mapped, so that what must follow cannot be forgotten.
pub trait MemoryOwner {
    /// Other memory is mapped from now on: ends what was made ahead and maps the memory before.
    fn drop_ahead(&self);
    /// Tells that far memory is left because of this. [`drop_ahead`](Self::drop_ahead) follows.
    fn lost(&self, problem: &str);
}

/// The memory of an image, wherever it is placed at the moment.
#[derive(Debug)]
pub struct PlacedMemory {
    /// Instances that run may rely on another one that was current before.
    current: RwLock<Arc<ImageMemory>>,
    /// Why the pages had to leave far memory, the last time they had to.
    far_problem: Mutex<Option<String>>,
}

impl PlacedMemory {
    /// That is mapped until something else is said.
    pub fn new(memory: ImageMemory) -> Self {
        Self {
            current: RwLock::new(Arc::new(memory)),
            far_problem: Mutex::default(),
        }
    }

    /// What is mapped at the moment. A file on far memory may be lost by now: who starts an instance takes what is
    /// [`usable`](Self::usable).
    pub fn current(&self) -> Arc<ImageMemory> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What instances map that start now. What was lost on far memory is left behind first.
    pub fn usable(&self, owner: &impl MemoryOwner) -> Arc<ImageMemory> {
        let memory = self.current();
        match memory.far_file().map(FarPool::check) {
            Some(Err(error)) => self.leave_lost(owner, &memory, &error),
            _ => memory,
        }
    }

    /// Has instances that start from now on map another pool of the same contents. Those that were made ahead are as good, and
    /// keep the pool before in memory until the owner ends them.
    pub fn replace(&self, memory: ImageMemory) {
        let memory = Arc::new(memory);
        let before = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, memory)
        };
        // Its pool may go with it: not while others wait for the lock.
        drop(before);
    }

    /// Brings all pages in, to stay: to near memory, or to a NUMA node but for those in `hot`. A copy on far memory is left.
    /// Blocks.
    ///
    /// # Errors
    /// Those of [`ImageMemory::place`]; a copy on far memory is still mapped then.
    pub fn place_on(
        &self,
        owner: &impl MemoryOwner,
        node: Option<NumaNode>,
        hot: &[Range<u64>],
    ) -> Result<(), PagerError> {
        let memory = self.usable(owner);
        let near = memory.near().unwrap_or(&memory);
        near.place(node, hot)?;
        // It is all there by now: nobody has to wait for pages meanwhile.
        self.leave_far(owner);
        Ok(())
    }

    /// Copies all pages to far memory; instances that start from now on map them there. Blocks for as long as that takes.
    /// The pool keeps its pages until it is told to [release](ImageMemory::release) them.
    ///
    /// `known` is called with what they will map before they do. Returns whether something was moved: nothing is where the
    /// pages are there already, or in no pool of the pager.
    ///
    /// # Errors
    /// The pages cannot be copied, or what `known` says. Nothing has changed then.
    pub fn move_to_far<E: From<FarError>>(
        &self,
        owner: &impl MemoryOwner,
        directory: &Arc<FarDirectory>,
        known: impl FnOnce(&ImageMemory) -> Result<(), E>,
    ) -> Result<bool, E> {
        let near = self.usable(owner);
        let Some(far) = ImageMemory::copy_far(&near, directory)? else {
            return Ok(false);
        };
        known(&far)?;
        // It may be a copy of what is not current any more.
        let moved = self.exchange(&near, Arc::new(far)).is_ok();
        if moved {
            owner.drop_ahead();
        }
        Ok(moved)
    }

    /// Instances that start from now on map the pool again that was copied to far memory.
    pub fn leave_far(&self, owner: &impl MemoryOwner) {
        let memory = self.usable(owner);
        if let Some(near) = memory.near()
            && self.exchange(&memory, near.clone()).is_ok()
        {
            owner.drop_ahead();
        }
    }

    /// Lets pages go, as far as no instance relies on them, and those on far memory. What was made ahead ends. Returns by how
    /// many pages the pool became smaller.
    ///
    /// # Errors
    /// Those of [`ImageMemory::release`].
    pub fn release(&self, owner: &impl MemoryOwner) -> Result<u64, PagerError> {
        owner.drop_ahead();
        self.leave_far(owner);
        self.usable(owner).release()
    }

    /// An instance that maps `memory`, which is or was current, has come to harm: looks whether far memory is to blame, and
    /// leaves it then. Reads all that is there.
    pub fn verify_far(
        &self,
        owner: &impl MemoryOwner,
        memory: &Arc<ImageMemory>,
    ) -> Option<String> {
        let error = memory.far_file()?.verify().err()?;
        self.leave_lost(owner, memory, &error);
        Some(problem_of(&error))
    }

    /// Why the pages had to leave far memory, the last time they had to.
    pub fn far_problem(&self) -> Option<String> {
        lock(&self.far_problem).clone()
    }

    /// Leaves the file on far memory that `memory` is, because it was found to have changed or cannot be read. Returns what
    /// is to be mapped instead.
    fn leave_lost(
        &self,
        owner: &impl MemoryOwner,
        memory: &Arc<ImageMemory>,
        error: &FarError,
    ) -> Arc<ImageMemory> {
        let Some(near) = memory.near() else {
            return memory.clone();
        };
        if let Err(current) = self.exchange(memory, near.clone()) {
            return current;
        }
        let problem = problem_of(error);
        owner.lost(&problem);
        *lock(&self.far_problem) = Some(problem);
        owner.drop_ahead();
        near.clone()
    }

    /// Puts `to` in the place of `from`, or says what is current in its stead: somebody else may have found out the same, or
    /// stored the pages anew, at the same time.
    fn exchange(
        &self,
        from: &Arc<ImageMemory>,
        to: Arc<ImageMemory>,
    ) -> Result<(), Arc<ImageMemory>> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match Arc::ptr_eq(&current, from) {
            true => {
                // Not the last of it: the caller has `from`.
                *current = to;
                Ok(())
            }
            false => Err(current.clone()),
        }
    }
}

fn problem_of(error: &FarError) -> String {
    format!("its pages on far memory were lost: {}", chain(error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rouse_snapshot::model::PAGE_SIZE;

    use super::super::FarCopy;
    use super::*;
    use crate::PoolBuilder;

    const PAGES: u64 = 3;

    /// Counts what it is told.
    #[derive(Default)]
    struct Owner {
        dropped: AtomicU32,
        lost: AtomicU32,
    }

    impl MemoryOwner for Owner {
        fn drop_ahead(&self) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }

        fn lost(&self, problem: &str) {
            assert!(problem.contains("far memory were lost: "), "{problem}");
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Owner {
        /// How often something was ended, and lost.
        fn told(&self) -> (u32, u32) {
            let of = |count: &AtomicU32| count.load(Ordering::Relaxed);
            (of(&self.dropped), of(&self.lost))
        }
    }

    fn near() -> ImageMemory {
        let mut pool = PoolBuilder::new("near").unwrap();
        pool.append_zeros(PAGES).unwrap();
        ImageMemory::Whole(pool.finish().unwrap())
    }

    /// With a file for far memory such as every host has for shared memory.
    fn far() -> ImageMemory {
        let directory = Arc::new(FarDirectory::open(Path::new("/dev/shm")).unwrap());
        let file = FarPool::copy_with(&directory, PAGES, |_, _| Ok(())).unwrap();
        ImageMemory::Far(FarCopy {
            file,
            near: Arc::new(near()),
        })
    }

    fn damage(memory: &ImageMemory) {
        let file = memory.far_file().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(PAGE_SIZE).unwrap();
    }

    fn is_same(one: &Arc<ImageMemory>, other: &Arc<ImageMemory>) -> bool {
        Arc::ptr_eq(one, other)
    }

    #[test]
    fn what_was_lost_is_left_before_it_is_mapped() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        let far = placed.current();
        assert!(is_same(&placed.usable(&owner), &far));
        assert_eq!((owner.told(), placed.far_problem()), ((0, 0), None));
        damage(&far);
        assert!(is_same(&placed.current(), &far));
        for _ in 0..2 {
            assert!(is_same(&placed.usable(&owner), far.near().unwrap()));
            assert_eq!(owner.told(), (1, 1));
        }
        assert!(placed.far_problem().unwrap().contains("/dev/shm"));
    }

    #[test]
    fn a_loss_that_two_have_found_is_told_once() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        let far = placed.current();
        damage(&far);
        let error = far.far_file().unwrap().check().unwrap_err();
        for _ in 0..2 {
            let instead = placed.leave_lost(&owner, &far, &error);
            assert!(is_same(&instead, far.near().unwrap()));
        }
        assert_eq!(owner.told(), (1, 1));
    }

    #[test]
    fn who_had_mapped_what_is_lost_changes_nothing_of_what_came_after_it() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        let before = placed.current();
        placed.leave_far(&owner);
        placed.replace(near());
        let now = placed.current();
        damage(&before);
        let problem = placed.verify_far(&owner, &before).unwrap();
        assert!(problem.contains("/dev/shm"), "{problem}");
        assert!(is_same(&placed.current(), &now));
        // Far memory was left already.
        assert_eq!((owner.told(), placed.far_problem()), ((1, 0), None));
    }

    #[test]
    fn who_had_mapped_what_is_sound_is_told_so() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        let far = placed.current();
        assert_eq!(placed.verify_far(&owner, &far), None);
        assert_eq!(placed.verify_far(&owner, far.near().unwrap()), None);
        assert!(is_same(&placed.current(), &far));
        assert_eq!(owner.told(), (0, 0));
    }

    #[test]
    fn far_memory_is_left_once() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        let far = placed.current();
        for _ in 0..2 {
            placed.leave_far(&owner);
            assert!(is_same(&placed.current(), far.near().unwrap()));
            assert_eq!(owner.told(), (1, 0));
        }
        assert_eq!(placed.far_problem(), None);
    }

    #[test]
    fn far_memory_is_left_where_pages_are_placed_near_or_let_go() {
        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        placed.place_on(&owner, None, &[]).unwrap();
        assert!(placed.current().far_file().is_none());
        assert_eq!(owner.told(), (1, 0));

        let (placed, owner) = (PlacedMemory::new(far()), Owner::default());
        placed.release(&owner).unwrap();
        assert!(placed.current().far_file().is_none());
        assert_eq!(owner.lost.load(Ordering::Relaxed), 0);
        // Also where nothing was on far memory: what was made ahead relies on the pages.
        let before = owner.told();
        placed.release(&owner).unwrap();
        assert_eq!(owner.told(), (before.0 + 1, 0));
    }

    #[test]
    fn what_is_no_pool_of_the_pager_is_not_moved() {
        let (placed, owner) = (PlacedMemory::new(near()), Owner::default());
        let directory = Arc::new(FarDirectory::open(Path::new("/dev/shm")).unwrap());
        let known = |_: &ImageMemory| -> Result<(), FarError> { panic!("nothing is copied") };
        assert!(!placed.move_to_far(&owner, &directory, known).unwrap());
        assert_eq!(owner.told(), (0, 0));
    }
}
