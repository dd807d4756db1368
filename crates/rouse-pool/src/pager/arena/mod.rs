//! What a pager leaves to the next one: memory shared by the daemon, the keeper and all pagers.
//!
//! ```text
//!  +----------+-------------------------+------------------------------------------+
//!  | header   | pool slots              | watch slots                              |
//!  | counters | memory file, source,    | userfaultfd, instance, pools, mappings   |
//!  |          | counters                |                                          |
//!  +----------+-------------------------+------------------------------------------+
//!               descriptor numbers are those of the table that keeper and pager share
//! ```
//!
//! A slot is used when its state says so, which is written last; a pager may die between any two
//! writes. Only the pager writes, from one thread; the daemon reads counters.
//!
//! What is written here may be *behind* the truth (an event was read and its reader died), never
//! misleading: a fault at an unknown address fills everything that the instance maps, and one that
//! comes again and again does too.

mod cells;
mod slots;

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

pub(crate) use cells::{Blob, Counter};
pub(crate) use slots::{MAX_POOLS_OF_WATCH, PoolCounters, PoolSlot, WatchSlot};

/// The most pools that a node has at a time.
pub const MAX_POOLS: usize = 4096;
/// The most processes whose memory is watched at a time: instances and what they forked.
pub const MAX_WATCHES: usize = 8192;

/// The shared memory. All zeros is a valid, empty one.
#[repr(C)]
pub(crate) struct Arena {
    /// How many pagers there have been.
    pub generation: AtomicU64,
    /// Watch slot plus one whose events are being read and applied; 0 when none.
    pub reading: AtomicU32,
    /// Not zero once there were more watches than slots: then nothing unknown may be closed.
    pub overflow: AtomicU32,
    /// Descriptor of the control socket.
    pub socket: AtomicI32,
    /// Descriptor of the userfaultfd device.
    pub device: AtomicI32,
    /// Descriptor by which the pager watches its own memory.
    pub own_uffd: AtomicI32,
    /// Pid of the pager.
    pub pager: AtomicU32,
    /// Slots behind these were never used, and are not looked at: each touched slot costs memory.
    pub pools_touched: AtomicU32,
    /// The same for watches.
    pub watches_touched: AtomicU32,
    pub counters: Counters,
    pub pools: [PoolSlot; MAX_POOLS],
    pub watches: [WatchSlot; MAX_WATCHES],
}

/// Of all pagers together.
#[repr(C)]
pub(crate) struct Counters {
    /// Faults read.
    pub faults: Counter,
    /// Faults at addresses or of instances that were not known exactly, answered by filling all.
    pub rescues: Counter,
    /// Forks that were followed.
    pub forks: Counter,
    /// Events by which memory moved or went.
    pub moves: Counter,
    /// Pages made unusable in an instance, because they could not be filled.
    pub poisoned: Counter,
    /// Times that there was no memory for a page that somebody waits for, or for saying so. The daemon looks: a message might have
    /// no memory, either.
    pub shortages: Counter,
    /// What was done with pools that are gone.
    pub gone: PoolCounters,
}

impl Arena {
    /// New shared memory, which lives as long as the process. Untouched parts of it cost nothing.
    pub fn new() -> io::Result<&'static Arena> {
        use rustix::mm::{MapFlags, ProtFlags};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<Arena>(),
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
            )
        }?;
        // SAFETY: the mapping is large enough, page aligned, zeroed, and never unmapped. All
        // fields are atomics, for which zero is valid, so that several processes may share it.
        Ok(unsafe { &*address.cast::<Arena>() })
    }

    /// The first free pool slot.
    pub fn free_pool(&self) -> Option<usize> {
        let touched = touched(&self.pools_touched, MAX_POOLS);
        let free = (0..touched).find(|slot| !self.pools[*slot].is_used());
        free.or_else(|| touch(&self.pools_touched, touched, MAX_POOLS))
    }

    /// The pool slot of that id.
    pub fn find_pool(&self, id: u64) -> Option<usize> {
        self.used_pools().find(|slot| self.pools[*slot].id() == id)
    }

    /// The first free watch slot.
    pub fn free_watch(&self) -> Option<usize> {
        let touched = touched(&self.watches_touched, MAX_WATCHES);
        let free = (0..touched).find(|slot| !self.watches[*slot].is_used());
        free.or_else(|| touch(&self.watches_touched, touched, MAX_WATCHES))
    }

    /// Numbers of all pool slots in use.
    pub fn used_pools(&self) -> impl Iterator<Item = usize> {
        (0..touched(&self.pools_touched, MAX_POOLS)).filter(|slot| self.pools[*slot].is_used())
    }

    /// Numbers of all watch slots in use.
    pub fn used_watches(&self) -> impl Iterator<Item = usize> {
        (0..touched(&self.watches_touched, MAX_WATCHES))
            .filter(|slot| self.watches[*slot].is_used())
    }

    /// While `slot` is being read, whoever finds a new descriptor knows whose child it belongs to.
    pub fn set_reading(&self, slot: Option<usize>) {
        let value = slot.map_or(0, |slot| slot as u32 + 1);
        self.reading.store(value, Ordering::SeqCst);
    }

    /// There are more watches than slots.
    pub fn set_overflow(&self) {
        self.overflow.store(1, Ordering::SeqCst);
    }

    /// Whose events a pager was reading when it died.
    pub fn reading(&self) -> Option<usize> {
        match self.reading.load(Ordering::SeqCst) as usize {
            slot @ 1..=MAX_WATCHES => Some(slot - 1),
            _ => None,
        }
    }
}

fn touched(count: &AtomicU32, max: usize) -> usize {
    (count.load(Ordering::Acquire) as usize).min(max)
}

fn touch(count: &AtomicU32, next: usize, max: usize) -> Option<usize> {
    (next < max).then(|| {
        count.store(next as u32 + 1, Ordering::Release);
        next
    })
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
