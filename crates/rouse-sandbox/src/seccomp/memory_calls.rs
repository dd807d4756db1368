//! A second filter: hands the system calls that would show a function the pool behind its memory to the node.
//!
//! Memory of a restored function is a private mapping of the pool. `MADV_DONTNEED` would bring back the bytes of the
//! snapshot where the function expects zeros, and `mremap` would grow into pages that belong elsewhere. The node answers
//! these calls (seccomp user notification, Linux 5.5). The spawner installs the filter once, before any child, so that
//! no boot pays for it; all other system calls pass at no cost (the kernel keeps a bitmap of those always allowed).
//!
//! `MADV_COLLAPSE` is refused at once, as by a kernel without pages of 2 MiB. Whatever the host's settings, it would make
//! one of small pages of the pool itself, of which parts are taken out later: what cannot be split then reads as zeros.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::compile::{
    ARCHITECTURE, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET, NUMBER_OFFSET, give, jump, load,
    load_argument,
};

/// As its sixth argument, which neither `madvise` nor `mremap` has, this lets a call pass: the calls that rouse itself
/// makes while it restores. A function that uses it harms its own memory only.
pub const PASS: u64 = 0x726f_7573_6521_9d37;

/// `MADV_DONTNEED_LOCKED`, Linux 5.18.
const MADV_DONTNEED_LOCKED: u32 = 24;
/// `MADV_COLLAPSE`, Linux 6.1.
const MADV_COLLAPSE: u32 = 25;
/// Once the node has the call, only a fatal signal interrupts it; Linux 5.19.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

fn program() -> Vec<libc::sock_filter> {
    let (low, high) = (PASS as u32, (PASS >> 32) as u32);
    let last = 5;
    vec![
        load(ARCHITECTURE_OFFSET),
        // Other architectures are killed by the function's own filter.
        jump(libc::BPF_JEQ, ARCHITECTURE, 0, 3),
        load(NUMBER_OFFSET),
        jump(libc::BPF_JEQ, libc::SYS_mremap as u32, 7, 0),
        jump(libc::BPF_JEQ, libc::SYS_madvise as u32, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        load_argument(2),
        jump(libc::BPF_JEQ, libc::MADV_DONTNEED as u32, 3, 0),
        jump(libc::BPF_JEQ, libc::MADV_FREE as u32, 2, 0),
        jump(libc::BPF_JEQ, MADV_COLLAPSE, 7, 0),
        jump(libc::BPF_JEQ, MADV_DONTNEED_LOCKED, 0, 4),
        load_argument(last),
        jump(libc::BPF_JEQ, low, 0, 3),
        load(ARGUMENTS_OFFSET + 8 * last + 4),
        jump(libc::BPF_JEQ, high, 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_USER_NOTIF),
        give(libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
    ]
}

/// Installs the filter on the calling thread and all that it will start. Returns the end at which the calls arrive;
/// from then on a call waits until somebody answers it there, or the last copy of that end is closed (`ENOSYS`).
///
/// # Errors
/// `EBUSY` where an outer sandbox already listens in the same way.
pub fn install() -> io::Result<OwnedFd> {
    let program = program();
    let description = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_ptr().cast_mut(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the description points to `len` instructions, which the kernel copies and checks.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const description,
            )
        }
    };
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let mut result = install(listener | WAIT_KILLABLE);
    if result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        result = install(listener);
    }
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}

#[cfg(test)]
mod tests {
    use super::super::compile::run;
    use super::*;

    #[test]
    fn only_calls_that_show_the_pool_are_handed_over() {
        let program = program();
        let verdict = |number: libc::c_long, arguments: [u64; 6]| {
            run(&program, ARCHITECTURE, number as u32, arguments)
        };
        let handed = libc::SECCOMP_RET_USER_NOTIF;
        let passed = libc::SECCOMP_RET_ALLOW;
        for advice in 0..64 {
            let shows = [libc::MADV_DONTNEED, libc::MADV_FREE, 24].contains(&advice);
            let refused = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
            // Nobody in a sandbox may make large pages of a pool, whatever else it says.
            let is_refused = advice == 25;
            let expected = match (shows, is_refused) {
                (_, true) => refused,
                (true, _) => handed,
                (false, _) => passed,
            };
            let advice = advice as u64;
            assert_eq!(
                verdict(libc::SYS_madvise, [0, 0, advice, 0, 0, 0]),
                expected
            );
            assert_eq!(
                verdict(libc::SYS_madvise, [0, 0, advice, 0, 0, PASS]),
                if is_refused { refused } else { passed }
            );
        }
        assert_eq!(verdict(libc::SYS_mremap, [0; 6]), handed);
        assert_eq!(verdict(libc::SYS_mremap, [0, 0, 0, 0, 0, PASS]), passed);
        for almost in [PASS ^ 1, PASS ^ (1 << 63), PASS & 0xffff_ffff] {
            assert_eq!(verdict(libc::SYS_mremap, [0, 0, 0, 0, 0, almost]), handed);
        }
        for number in (0..500).filter(|n| ![libc::SYS_mremap, libc::SYS_madvise].contains(n)) {
            assert_eq!(verdict(number, [4; 6]), passed, "{number}");
        }
        // AUDIT_ARCH_I386
        assert_eq!(run(&program, 0x4000_0003, 219, [4; 6]), passed);
    }
}
