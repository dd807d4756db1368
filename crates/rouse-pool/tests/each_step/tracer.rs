//! Runs a process up to its n-th change of a directory, and then ends it, or has that change fail.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A system call that does not exist: the process says by it where counting begins and ends.
const MARK: i64 = 0x7e57;

/// Offsets into `struct user`, bytes.
const RAX: usize = 10 * 8;
const ORIG_RAX: usize = 15 * 8;
/// `PTRACE_GET_SYSCALL_INFO`, and what it says of a stop.
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;

/// What happens to the n-th change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The process is killed before it.
    Kill,
    /// It is not made, and fails with this error.
    Fail(i32),
}

/// What became of the process.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It made fewer changes, and ended by itself.
    TooFew,
    Killed,
    /// It went on after the failure, and ended with this status.
    Ended(i32),
}

/// To be called by the process before the first and after the last change.
pub fn mark() {
    // SAFETY: there is no such system call.
    unsafe { libc::syscall(MARK) };
}

/// Calls that change files: those that name a descriptor, and the rest.
fn changes(call: i64, arguments: [u64; 2], tid: i32, below: &Path) -> bool {
    match call {
        libc::SYS_write
        | libc::SYS_pwrite64
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_ftruncate
        | libc::SYS_fallocate => {
            let link = format!("/proc/{tid}/fd/{}", arguments[0]);
            std::fs::read_link(link).is_ok_and(|path| path.starts_with(below))
        }
        libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_link
        | libc::SYS_linkat
        | libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_rmdir
        | libc::SYS_mkdir
        | libc::SYS_mkdirat => true,
        libc::SYS_openat => arguments[1] & libc::O_CREAT as u64 != 0,
        _ => false,
    }
}

fn ptrace(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: requests of this module change a tracee, or write to a buffer that `data` is the address of.
    match unsafe { libc::ptrace(request as _, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The call that a thread is about to make, with its first and third argument.
fn entry(tid: i32) -> Option<(i64, [u64; 2])> {
    let mut info = [0_u64; 16];
    let address = info.as_mut_ptr() as usize;
    ptrace(GET_SYSCALL_INFO, tid, size_of_val(&info), address).ok()?;
    // struct ptrace_syscall_info: op, arch, ip, sp; then number and arguments.
    let third = match info[3] as i64 {
        libc::SYS_openat => info[6],
        _ => 0,
    };
    (info[0] as u8 == ENTRY).then_some((info[3] as i64, [info[4], third]))
}

/// Runs `command`, whose changes below a directory are counted from 1.
#[expect(
    clippy::zombie_processes,
    reason = "it is waited for by its id, as its threads are"
)]
pub fn run(mut command: Command, below: &Path, nth: usize, fate: Fate) -> Outcome {
    // SAFETY: between fork and exec, a single system call.
    unsafe {
        command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0, 0));
    }
    let child = command.spawn().unwrap();
    let pid = child.id() as i32;
    let (mut counting, mut count, mut failing) = (false, 0, None);
    let mut is_set_up = false;
    loop {
        let mut status = 0;
        // Only what this thread has started: other tests have children too.
        let flags = libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: stores the status in a local.
        let tid = unsafe { libc::waitpid(-1, &mut status, flags) };
        assert!(tid > 0, "{}", io::Error::last_os_error());
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if tid != pid {
                continue;
            }
            return match (libc::WIFSIGNALED(status), failing.is_some() || count >= nth) {
                (true, _) => Outcome::Killed,
                (false, true) => Outcome::Ended(libc::WEXITSTATUS(status)),
                (false, false) => Outcome::TooFew,
            };
        }
        let mut signal = libc::WSTOPSIG(status);
        if !is_set_up {
            let options =
                libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).unwrap();
            is_set_up = true;
            signal = 0;
        } else if signal == libc::SIGTRAP | 0x80 {
            signal = 0;
            match entry(tid) {
                Some((MARK, _)) => counting = !counting,
                Some((call, arguments)) if counting && changes(call, arguments, tid, below) => {
                    count += 1;
                    if count == nth {
                        match fate {
                            Fate::Kill => {
                                // SAFETY: a process that this function has started, and not waited for.
                                unsafe { libc::kill(pid, libc::SIGKILL) };
                            }
                            Fate::Fail(error) => {
                                ptrace(libc::PTRACE_POKEUSER, tid, ORIG_RAX, usize::MAX).unwrap();
                                failing = Some((tid, error));
                            }
                        }
                    }
                }
                Some(_) => {}
                None => {
                    if let Some((_, error)) = failing.filter(|(who, _)| *who == tid) {
                        ptrace(libc::PTRACE_POKEUSER, tid, RAX, -error as usize).unwrap();
                        failing = Some((0, error));
                    }
                }
            }
        } else if signal == libc::SIGTRAP || signal == libc::SIGSTOP {
            // Of a new thread.
            signal = 0;
        }
        // Fails when it has been killed meanwhile, which is heard next.
        let _ = ptrace(libc::PTRACE_SYSCALL, tid, 0, signal as usize);
    }
}
