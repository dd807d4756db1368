//! The calling process: descriptors, signals, identity, rights.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Closes all descriptors above 2 but one, which becomes 3.
///
/// For the main function of a forked process, which never returns to the frames whose values own the others.
pub fn keep_one_descriptor(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    let raw = descriptor.into_raw_fd();
    // SAFETY: the values that own other descriptors lie in frames that this process never returns to, so nobody uses
    // or closes them again. Number 3 gets its only owner here.
    unsafe {
        if raw != 3 && libc::dup3(raw, 3, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0);
        Ok(OwnedFd::from_raw_fd(3))
    }
}

/// Marks every descriptor from `first` on to be closed by execve (Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag; no descriptor is closed.
    unsafe { close_range(first, libc::CLOSE_RANGE_CLOEXEC) }
}

/// Does to every descriptor from `first` on what `flags` say (`CLOSE_RANGE_*`).
///
/// # Safety
/// Nobody uses or closes the descriptors that this closes.
pub(super) unsafe fn close_range(first: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the caller vouches for the descriptors; the call takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts `/dev/null` on descriptors 0, 1 and 2.
pub fn silence_standard_streams() -> io::Result<()> {
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Signals as a fresh program expects them: default actions, nothing blocked.
pub fn reset_signals() {
    // SAFETY: default actions run no code of ours.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    unblock_signals();
}

/// Blocks no signal.
pub fn unblock_signals() {
    // SAFETY: the set is initialised by `sigemptyset` before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Blocks every signal that can be blocked.
pub fn block_signals() {
    // SAFETY: the set is initialised by `sigfillset` before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}

/// Becomes user `uid` and group `gid` of the caller's user namespace, with no other groups.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    let gid = rustix::process::Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Takes every capability out of the bounding set: none can come back through a later execve.
///
/// Needs `CAP_SETPCAP`, so it goes before the capabilities themselves are given up.
pub fn clear_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know.
            if error.raw_os_error() == Some(libc::EINVAL) {
                return Ok(());
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Gives up all capabilities: ambient, inheritable, permitted and effective.
pub fn clear_capabilities() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}

/// Descriptor numbers of a blank process. More than a function may have: while it is restored, those that the restore
/// needs lie behind the function's own.
pub const BLANK_DESCRIPTORS: u64 = 4096;

/// Resource limits as AWS Lambda sets them, where they differ from the usual.
pub const RESOURCE_LIMITS: [(libc::__rlimit_resource_t, u64); 3] = [
    (libc::RLIMIT_NOFILE, 1024),
    (libc::RLIMIT_CORE, 0),
    (libc::RLIMIT_MEMLOCK, 64 * 1024),
];

/// Sets the soft and the hard resource limit; a hard limit that is already lower stays.
pub fn limit_resource(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let mut current = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::getrlimit(resource, &mut current) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let value = value.min(current.rlim_max);
    let wanted = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the structure is complete.
    if unsafe { libc::setrlimit(resource, &wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Wipes the command line and the environment that the kernel shows for this process, and names it `title`.
///
/// Children inherit the wiped memory; `/proc/PID/cmdline` of a sandbox's init is readable by the function in it.
pub fn retitle(title: &std::ffi::CStr) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let malformed = || io::Error::other("/proc/self/stat has an unknown form");
    // The command's name may hold spaces and parentheses; the numbered fields start behind the last one.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .ok_or_else(malformed)?
        .1
        .split_whitespace()
        .collect();
    // Fields 48 to 51 of proc(5): arg_start, arg_end, env_start, env_end; the first of the rest is field 3.
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|text| text.parse::<usize>().ok())
            .ok_or_else(malformed)
    };
    for (start, end) in [(field(48)?, field(49)?), (field(50)?, field(51)?)] {
        if start != 0 && end > start {
            // SAFETY: the kernel placed these strings in this process's initial stack, which is writable and never
            // unmapped. Whoever still reads them sees empty strings.
            unsafe { std::ptr::write_bytes(start as *mut u8, 0, end - start) };
        }
    }
    let (start, end) = (field(48)?, field(49)?);
    let bytes = title.to_bytes();
    if end > start {
        let length = bytes.len().min(end - start - 1);
        // SAFETY: as above; one byte is left for the terminating zero.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, length) };
    }
    rustix::thread::set_name(title)?;
    Ok(())
}

/// Leaves the session keyring of whoever started the node for an empty one. Kernels without keyrings have none to leave.
pub fn forget_keys() {
    // SAFETY: takes no pointer but the null name of an anonymous keyring.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        );
    }
}

/// Whether the calling process has exactly one thread.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Runs `body` in a forked child and never returns into the parent's code, a panic included.
pub fn run_child(body: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
    // SAFETY: ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}
