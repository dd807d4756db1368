//! Free memory of the allocator goes back to the kernel.
//!
//! Loading, compiling and storing a snapshot takes and frees some MiB, in whichever thread happens to do it. The allocator
//! of the GNU C library keeps that, in an arena for each thread: some 200 KiB for each function that was ever loaded. Two
//! things are needed against it, since each does what the other does not:
//! - the end of an arena is given back when memory is freed, if more than a threshold is free there. The threshold grows
//!   with the largest part that was ever freed, unless it is set;
//! - holes between what still lives are given back by `malloc_trim` alone, which leaves the ends as they are.

/// Keeps the ends of arenas small from now on.
pub(super) fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        /// What may be free at the end of an arena, bytes.
        const END: libc::c_int = 256 << 10;
        /// What is larger gets a mapping of its own, bytes.
        const OWN_MAPPING: libc::c_int = 1 << 20;
        for (setting, value) in [
            (libc::M_TRIM_THRESHOLD, END),
            (libc::M_MMAP_THRESHOLD, OWN_MAPPING),
        ] {
            // SAFETY: changes numbers by which the allocator goes; may be called at any time by any thread.
            let taken = unsafe { libc::mallopt(setting, value) };
            if taken != 1 {
                tracing::debug!(setting, "the allocator goes by its own numbers");
            }
        }
    }
}

/// Gives back the holes. Takes about a millisecond for 10 MiB, during which threads that need the same arena wait.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: only looks for pages in which nothing is allocated; may be called at any time by any thread.
        let gave = unsafe { libc::malloc_trim(0) };
        tracing::debug!(gave, "free memory was given back");
    }
}
