//! Descriptors that a process takes along when it leaves a shared table of many.
//!
//! ```text
//!  shared   0 1 2 | 3 | 4 5 6   | 7 ........ 546        4 5 6 are kept free (`/dev/null`)
//!  packed   0 1 2 | 3 | a b c   | 7 ........ 546        copies of what is taken along
//!  left     0 1 2 | 3 | a b c   |                       a table of its own
//! ```
//! A clone gets a copy of its maker's table, and each descriptor in it costs at the copy and again when it is closed: more than all else
//! in a sandbox when there are dozens of them. `close_range` copies what stays below its range only.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};

use super::process::close_range;

/// Numbers that are kept free, low in the table, and `/dev/null` to keep them so.
#[derive(Debug)]
pub struct Luggage<const N: usize> {
    places: [OwnedFd; N],
    null: OwnedFd,
}

impl<const N: usize> Luggage<N> {
    /// Takes the lowest numbers that are free now.
    pub fn reserve() -> io::Result<Self> {
        let open = || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let mut places = Vec::with_capacity(N);
        for _ in 0..N {
            places.push(open()?);
        }
        let places = places.try_into();
        let places = places.unwrap_or_else(|_| unreachable!("as many were opened"));
        let null = open()?;
        Ok(Self { places, null })
    }

    /// Gives the calling process, which shares its table with one that waits, a table of its own with these descriptors and
    /// those below them. Their numbers in it are [`Luggage::numbers`].
    ///
    /// # Safety
    /// The caller uses and closes no other descriptor any more, and does not return to frames that own some.
    pub unsafe fn leave_with(&self, taken: [BorrowedFd<'_>; N]) -> io::Result<()> {
        for (place, descriptor) in self.numbers().into_iter().zip(taken) {
            put(descriptor.as_raw_fd(), place)?;
        }
        let behind = self.numbers().into_iter().max().unwrap_or(2) + 1;
        // SAFETY: the table that is closed from here on is the caller's own; it vouches for not using the rest.
        unsafe { close_range(behind, libc::CLOSE_RANGE_UNSHARE) }
    }

    /// The numbers under which they are taken along.
    pub fn numbers(&self) -> [RawFd; N] {
        std::array::from_fn(|at| self.places[at].as_raw_fd())
    }

    /// Makes the numbers free again in the table that was left: what was put there is closed.
    pub fn unpack(&self) -> io::Result<()> {
        for place in self.numbers() {
            put(self.null.as_raw_fd(), place)?;
        }
        Ok(())
    }
}

fn put(descriptor: RawFd, place: RawFd) -> io::Result<()> {
    // SAFETY: replaces what a `Luggage` owns by another descriptor; the number stays its own.
    if unsafe { libc::dup3(descriptor, place, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
