//! Maps a program and jumps into it.

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::program::PAGE;

/// Maps the program in `image` at `base` and runs it. Returns only when it cannot be mapped.
///
/// `len` is the length of the image in bytes. The caller has blocked all signals and
/// unregistered its restartable sequence.
///
/// # Safety
/// The image must be a program made by [`crate::program::Builder`] for this `base` and `entry`.
/// Everything of the calling process may be replaced: no destructor of it runs any more.
pub unsafe fn enter(image: BorrowedFd<'_>, base: u64, len: u64, entry: u64) -> std::io::Error {
    let map = |address: u64, len: u64, prot: i32, offset: u64| {
        // SAFETY: FIXED_NOREPLACE cannot touch an existing mapping.
        let at = unsafe {
            libc::mmap(
                address as *mut libc::c_void,
                len as usize,
                prot,
                libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE,
                image.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if at as u64 == address {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    if let Err(error) = map(base, PAGE, libc::PROT_READ | libc::PROT_EXEC, 0) {
        return error;
    }
    if let Err(error) = map(
        base + PAGE,
        len - PAGE,
        libc::PROT_READ | libc::PROT_WRITE,
        PAGE,
    ) {
        return error;
    }
    // SAFETY: the code was mapped above; the caller vouches for the program. It never returns.
    unsafe {
        asm!(
            "jmp {code}",
            code = in(reg) base,
            in("rdi") entry,
            in("rsi") base + PAGE,
            options(noreturn)
        )
    }
}
