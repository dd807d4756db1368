//! Makes the guest's memory hold as little as possible before a snapshot.
//!
//! What lies in free memory is garbage to the guest, but pages like others to the host. A list of free pages would be wrong by
//! the time that the host reads it, as this kernel goes on until the machine is paused. So free memory is emptied instead: it is
//! taken, which makes it zeros, and given back. A page that somebody takes meanwhile is just not among them, and pages of zeros
//! are not stored.

use std::fs;
use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::report::kib;

const PAGE: u64 = 4096;
/// So much is taken at once, bytes.
const PIECE: u64 = 4 << 20;
/// What is less is not worth a call, bytes.
const LEAST: u64 = 64 << 10;
/// What the kernel keeps back for itself while all else is taken, KiB. Its own choice may be a tenth of a small machine.
const KEPT_KIB: &str = "1024";
const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// Gives up all memory that the kernel could read again.
pub fn drop_caches() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Moves what is in use together.
pub fn compact() {
    // A kernel that cannot do this scatters its pages: more and shorter runs.
    drop(fs::write("/proc/sys/vm/compact_memory", "1"));
}

/// Makes free memory zeros, but for a little that the kernel needs to go on.
pub fn empty_free_memory() -> io::Result<()> {
    let before = fs::read_to_string(MIN_FREE)?;
    fs::write(MIN_FREE, KEPT_KIB)?;
    let done = take_and_return();
    // Whatever came of it: the function is not to run with less than its kernel wants.
    fs::write(MIN_FREE, before.trim())?;
    done
}

fn take_and_return() -> io::Result<()> {
    let (mut total, mut taken) = (None, Vec::new());
    loop {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let number = |name| {
            let missing = || io::Error::other("the kernel does not tell its memory");
            kib(&meminfo, name).map(|kib| kib << 10).ok_or_else(missing)
        };
        let total = *total.get_or_insert(number("MemTotal:")?);
        let left = number("MemFree:")?.saturating_sub(spare(total));
        let length = left.min(PIECE) / PAGE * PAGE;
        // More pieces than there is memory for: the kernel's count does not follow.
        if length < LEAST || taken.len() as u64 > total / LEAST {
            return Ok(());
        }
        taken.push(Taken::new(length as usize)?);
    }
}

/// What must stay free, bytes: nobody may be killed for this. The kernel keeps up to a 256th of all memory back in a zone
/// that only its drivers need, and counts it as free.
fn spare(total: u64) -> u64 {
    (4 << 20) + total / 256
}

/// Memory that holds zeros. Given back when it is dropped.
struct Taken {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Taken {
    fn new(length: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
        let taken = Self { start, length };
        // SAFETY: the range is this mapping, which nobody refers to.
        unsafe { madvise(start, length, Advice::LinuxPopulateWrite) }?;
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody refers to it.
        let result = unsafe { munmap(self.start, self.length) };
        debug_assert!(result.is_ok(), "{result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_taken_is_zeros() {
        let taken = Taken::new(LEAST as usize).expect("there is some");
        // SAFETY: the range is mapped for as long as `taken` lives.
        let bytes = unsafe { std::slice::from_raw_parts(taken.start.cast::<u8>(), taken.length) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_little_stays_free() {
        assert_eq!(spare(256 << 20), 5 << 20);
        assert_eq!(spare(3 << 30), 16 << 20);
    }
}
