//! Memory that the pager has before it needs it.
//!
//! When memory is short, filling fails and can be answered. But a page fault of the pager itself
//! would make it wait until there is memory, and it is the one who can make room. So what it
//! usually needs is touched at its start; all threads then live from one heap that never shrinks.
//! For the rest it holds memory that it does not use, and lets go of it when filling fails.

use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Heap beyond what is in use at the start: buffers, page maps.
const HEAP: usize = 1 << 20;
/// Stack of the main thread. A batch has a piece on it.
const STACK: usize = 128 << 10;
/// Larger mappings are not the heap's or program's: the arena, stacks of threads.
const LARGEST: usize = 1 << 20;

/// Touches it. Must be called before there are threads.
pub(super) fn touch() {
    // SAFETY: only sets how much the allocator keeps, and from where it takes it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    drop(black_box(vec![1_u8; HEAP]));
    touch_stack();
    // Without this the pager is as it was.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let bounds = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'));
        let Some((Ok(start), Ok(end))) = bounds.map(|(start, end)| {
            let parse = |text| usize::from_str_radix(text, 16);
            (parse(start), parse(end))
        }) else {
            continue;
        };
        if end - start <= LARGEST || line.ends_with("[heap]") || line.ends_with("[stack]") {
            // SAFETY: gives each page of a private mapping a copy of its own, with the contents
            // that it has. It fails where there is nothing to be written.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_POPULATE_WRITE) };
        }
    }
}

#[inline(never)]
fn touch_stack() {
    black_box([0_u8; STACK]);
}

/// What the pager lets go of when memory is short, for its own page faults: bytes.
const BALLAST: usize = 1 << 20;

/// Memory that is only held. Nothing is filled while it cannot be held.
#[derive(Debug)]
pub(crate) struct Ballast {
    start: usize,
    held: Mutex<bool>,
}

impl Ballast {
    /// Reserves addresses; memory is taken when something is to be filled.
    pub fn new() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), BALLAST, protection, MapFlags::PRIVATE)
        }?;
        Ok(Self {
            start: start as usize,
            held: Mutex::new(false),
        })
    }

    /// Takes the memory, if it is not held. Returns whether it is. Never waits for memory.
    pub fn secure(&self) -> bool {
        let mut held = self.held();
        if !*held {
            *held = self.advise(Advice::LinuxPopulateWrite).is_ok();
            if !*held {
                // Part of it may be there.
                let _ = self.advise(Advice::LinuxDontNeed);
            }
        }
        *held
    }

    /// Lets go of it.
    pub fn release(&self) {
        let mut held = self.held();
        let _ = self.advise(Advice::LinuxDontNeed);
        *held = false;
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the mapping is this value's own, and nobody looks at what is in it.
        unsafe { rustix::mm::madvise(self.start as *mut _, BALLAST, advice) }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // SAFETY: as above; it is not used again.
        let _ = unsafe { rustix::mm::munmap(self.start as *mut _, BALLAST) };
    }
}
