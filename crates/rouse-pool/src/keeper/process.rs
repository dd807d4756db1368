//! What the keeper does.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, WaitOptions};

use crate::pager;
use crate::pager::arena::Arena;

/// A pager that lived shorter is not started again at once.
const SHORT_LIFE: Duration = Duration::from_millis(50);

pub(super) fn is_single_threaded() -> io::Result<bool> {
    Ok(fs::read_dir("/proc/self/task")?.count() == 1)
}

/// The keeper's whole life, in the forked process.
pub(super) fn run(arena: &'static Arena, [socket, device]: [RawFd; 2]) -> ! {
    // Nothing may unwind into the frames of the process that was forked.
    std::panic::set_hook(Box::new(|panic| {
        pager::complain(format_args!("rouse keeper or pager: {panic}"));
        std::process::abort();
    }));
    set_up();
    // Numbers 3 and 4: everything else belongs to the daemon.
    match keep_descriptors([socket, device]) {
        Ok(()) => {
            arena.socket.store(3, Ordering::Relaxed);
            arena.device.store(4, Ordering::Relaxed);
        }
        Err(error) => {
            pager::complain(format_args!("rouse keeper: {error}"));
            exit(1);
        }
    }
    loop {
        let started = Instant::now();
        match start_pager(arena).and_then(wait_for) {
            // Nothing is left to be kept.
            Ok(0) => exit(0),
            Ok(_) if started.elapsed() >= SHORT_LIFE => {}
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => {
                // For instance no memory for a process: faults wait until there is.
                pager::complain(format_args!(
                    "rouse keeper: cannot start the pager: {error}"
                ));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Ends without running what the daemon has registered to be run at its end.
fn exit(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

fn set_up() {
    name(c"rouse-keeper");
    // Out of the terminal's reach: instances must end first, whoever asks.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for signal in [libc::SIGCHLD, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: default actions run no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // When memory is short the kernel chooses others; with nobody to choose it says so, and the
    // daemon can make room. Without the right to ask: as it is.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    raise_descriptor_limit();
}

/// Keeper, pager and daemon have some descriptors for each pool, and one for each process whose memory is watched.
pub(super) fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Fails only for values above the hard limit.
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

fn name(name: &std::ffi::CStr) {
    let _ = rustix::thread::set_name(name);
}

/// Makes two descriptors number 3 and 4, and closes all behind.
fn keep_descriptors(keep: [RawFd; 2]) -> io::Result<()> {
    // SAFETY: only numbers are passed. The values that own other descriptors lie in frames that
    // this process never returns to, so that nobody uses or closes them again.
    unsafe {
        let mut moved = [0; 2];
        for (to, from) in moved.iter_mut().zip(keep) {
            *to = libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 5);
            if *to < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (to, from) in (3..).zip(moved) {
            if libc::dup3(from, to, libc::O_CLOEXEC) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        libc::syscall(libc::SYS_close_range, 5, libc::c_uint::MAX, 0);
    }
    Ok(())
}

fn start_pager(arena: &'static Arena) -> io::Result<Pid> {
    let keeper = rustix::process::getpid();
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as `fork`: without CLONE_VM the child has its own copy of memory and stack. This
    // process has a single thread, so that the child may run any code.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            name(c"rouse-pager");
            exit(pager::run(arena, keeper));
        }
        pid => Pid::from_raw(pid as i32).ok_or_else(|| io::ErrorKind::Other.into()),
    }
}

/// Waits for the end of the pager, and returns its exit status; `-1` when it was killed.
fn wait_for(pager: Pid) -> io::Result<i32> {
    loop {
        match rustix::process::waitpid(Some(pager), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status.exit_status().unwrap_or(-1)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
