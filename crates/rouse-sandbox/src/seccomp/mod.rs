//! The system-call filter of functions.
//!
//! `table` says what is forbidden and why; `compile` turns it into a program. The filter is a fence of the second
//! line: namespaces, the lack of capabilities and `no_new_privs` already refuse most of it, and it keeps the rest of
//! the kernel's surface away from code that nobody has read.
//!
//! `seccompiler` was tried on paper and not taken: its filters have one action each, so that `EPERM` and `ENOSYS` need
//! several, and test system calls one after the other. The kernel runs a new filter once for each system call it knows
//! (to learn which are always allowed), so a chain of comparisons makes installing it, which each boot pays, slow.

mod compile;
pub mod memory_calls;
mod table;

use std::io;

/// Why a filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The program is longer than the kernel takes.
    #[error("the filter has {0} instructions, more than the kernel takes")]
    TooLong(usize),
    /// The kernel refused it.
    #[error("the kernel refused the filter: {0}")]
    Refused(io::Error),
}

/// The filter, to be installed with `seccomp(SECCOMP_SET_MODE_FILTER, flags, {length, pointer})`.
pub fn program() -> Result<Vec<libc::sock_filter>, SeccompError> {
    let program = compile::compile(table::RULES, table::LAST_KNOWN);
    if program.len() > libc::BPF_MAXINSNS as usize {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

/// Installs the filter on the calling thread, or on all threads with `SECCOMP_FILTER_FLAG_TSYNC`.
/// Needs `no_new_privs`.
pub fn install(flags: libc::c_ulong) -> Result<(), SeccompError> {
    let program = program()?;
    let description = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the description points to `len` instructions, which the kernel copies and checks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const description,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(SeccompError::Refused(io::Error::last_os_error())),
        // TSYNC names the thread that could not be synchronised.
        thread => Err(SeccompError::Refused(io::Error::other(format!(
            "thread {thread} has another filter"
        )))),
    }
}
