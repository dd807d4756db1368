//! Kernel interfaces that a blank process needs and that no safe crate offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_FLAG_UNREGISTER: u64 = 1;
/// Bytes of the first version of `struct rseq`.
const RSEQ_LEN: u64 = 32;
/// The signature with which glibc registers its areas on x86.
const RSEQ_SIGNATURE: u64 = 0x5305_3053;

/// `dup2`, close-on-exec.
pub fn dup_to(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        return Ok(());
    }
    // SAFETY: `dup3` only changes the descriptor table; the caller decides about `number`.
    if unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocks every signal of this thread.
pub fn block_signals() -> io::Result<()> {
    set_signal_mask(!0)
}

/// The C library's own call leaves out signals 32 and 33, which it uses itself. A function's timer
/// that sends one of them would then end the process before its thread is there to receive it.
fn set_signal_mask(mask: u64) -> io::Result<()> {
    // SAFETY: rt_sigprocmask only reads the mask, of the size that it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Default actions for all signals and an empty mask: what a new program expects, and what
/// programs of the restorer assume.
pub fn reset_signals() -> io::Result<()> {
    // struct kernel_sigaction: handler (SIG_DFL), flags, restorer, mask. Not by the C library, which
    // leaves out signals 32 and 33.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: rt_sigaction only reads the structure; SIG_DFL installs no code. SIGKILL and
        // SIGSTOP are refused, which is fine.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    set_signal_mask(0)
}

/// Unregisters the restartable sequence that glibc (2.35 and later) registers for each thread:
/// the kernel writes to that memory, which is about to be unmapped.
pub fn unregister_rseq() -> io::Result<()> {
    let symbol = |name: &std::ffi::CStr| {
        // SAFETY: `name` is a C string; the result is only compared with null or read as documented.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
    };
    let (offset, size) = (symbol(c"__rseq_offset"), symbol(c"__rseq_size"));
    if offset.is_null() || size.is_null() {
        return Ok(());
    }
    // SAFETY: glibc documents `const ptrdiff_t __rseq_offset` and `const unsigned int __rseq_size`.
    let (offset, size) = unsafe { (*offset.cast::<isize>(), *size.cast::<u32>()) };
    if size == 0 {
        return Ok(());
    }
    let thread: u64;
    // SAFETY: on x86-64 the thread pointer is the word at fs:0.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly)) };
    let address = thread.wrapping_add_signed(offset as i64);
    let rseq = |len: u64, flags: u64| {
        // SAFETY: the area is glibc's own, made for this; both directions only change what the kernel writes there.
        match unsafe { libc::syscall(libc::SYS_rseq, address, len, flags, RSEQ_SIGNATURE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // glibc registers 32 bytes, or the kernel's feature size rounded up where that is more.
    let lengths = [
        RSEQ_LEN,
        u64::from(size).next_multiple_of(RSEQ_LEN),
        64,
        96,
        128,
    ];
    if lengths
        .iter()
        .any(|len| rseq(*len, RSEQ_FLAG_UNREGISTER).is_ok())
    {
        return Ok(());
    }
    // A process whose parent had only borrowed its memory has none. Then, and only then, one can be registered.
    rseq(RSEQ_LEN, 0)?;
    rseq(RSEQ_LEN, RSEQ_FLAG_UNREGISTER)
}

/// An instruction of a system-call filter as the kernel reads it (`struct sock_filter`).
pub fn filter_bytes(code: u16, jump_true: u8, jump_false: u8, k: u32) -> [u8; 8] {
    let ([c0, c1], [k0, k1, k2, k3]) = (code.to_le_bytes(), k.to_le_bytes());
    [c0, c1, jump_true, jump_false, k0, k1, k2, k3]
}
