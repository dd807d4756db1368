//! What a VMM process may still do once a guest could have taken it over: next to nothing.
//!
//! A guest talks to this process by its devices. Should one of them have a bug, the guest is a program of this process. So
//! before anything of a guest is read, the process has opened all that it will need, and gives the rest up:
//!
//! | in this order | because |
//! |---|---|
//! | namespaces of its own: mount, network, ipc, uts, cgroup, pid | they need the rights that go next |
//! | an empty, read-only root | no file of the host has a name any more |
//! | limits of descriptors, file sizes, core dumps | before the user changes, who might be over them already |
//! | the bounding set, then user and groups, then what capabilities are left | each needs what the next one gives up |
//! | `PR_SET_DUMPABLE`, death with its parent | a change of the user undoes both |
//! | `no_new_privs`, then the filter | the filter needs it without `CAP_SYS_ADMIN` |
//! | another filter in each processor's thread, before its guest runs | it does not need what the main thread needs |
//!
//! Into a control group it is put by whoever starts it ([`crate::zygote`]).

mod filter;
mod table;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rouse_sandbox::confine;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};

pub use filter::FilterError;

/// As whom a VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jail {
    /// Of the host; nobody else's.
    pub uid: u32,
    /// Of the host; nobody else's.
    pub gid: u32,
}

/// Descriptors of a VMM: KVM's, one for each pool, device and processor.
const DESCRIPTORS: u64 = 512;
/// Bytes of the largest file that it may write: the pool of a guest with all memory.
const FILE_SIZE: u64 = 4 << 30;

/// A process could not be jailed. It must end.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// It has threads, which would stay outside.
    #[error("a process with several threads cannot be jailed")]
    Threads,
    /// One of the steps.
    #[error("the jail: cannot {step}")]
    Step {
        /// Which one.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, JailError> {
    result.map_err(|source| JailError::Step {
        step,
        source: source.into(),
    })
}

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Makes the namespaces. The calling process must have a single thread; its *children* are in the pid namespace.
///
/// # Errors
/// The step that failed.
pub fn unshare() -> Result<(), JailError> {
    let single = step("count its threads", confine::is_single_threaded())?;
    if !single {
        return Err(JailError::Threads);
    }
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWPID;
    // SAFETY: takes flags only; the process has a single thread.
    let result = match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    step("make namespaces", result)
}

/// Gives everything else up, behind [`unshare`], in the child that is to be the VMM.
///
/// # Errors
/// The step that failed.
pub fn enter(jail: &Jail) -> Result<(), JailError> {
    empty_root()?;
    for (resource, value) in [
        (libc::RLIMIT_NOFILE, DESCRIPTORS),
        (libc::RLIMIT_FSIZE, FILE_SIZE),
        (libc::RLIMIT_CORE, 0),
    ] {
        step(
            "limit its resources",
            confine::limit_resource(resource, value),
        )?;
    }
    confine::forget_keys();
    step("clear its bounding set", confine::clear_bounding_set())?;
    step(
        "become another user",
        confine::become_user(jail.uid, jail.gid),
    )?;
    step("give its capabilities up", confine::clear_capabilities())?;
    step("close itself to others", set(libc::PR_SET_DUMPABLE, 0))?;
    step(
        "die with its parent",
        set(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong),
    )?;
    step("give up new rights", set(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    filter::install(table::VMM)?;
    ENTERED.store(true, Ordering::Release);
    Ok(())
}

/// The calling thread is to run a processor. Does nothing in a process that is not jailed.
///
/// # Errors
/// If the filter cannot be installed: the thread must not run a guest.
pub fn enter_vcpu() -> Result<(), FilterError> {
    match ENTERED.load(Ordering::Acquire) {
        true => filter::install(table::VCPU),
        false => Ok(()),
    }
}

/// Nothing but a directory that nobody can write to.
fn empty_root() -> Result<(), JailError> {
    // No mount or unmount is seen outside any more.
    step(
        "make its mounts private",
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        ),
    )?;
    // Any directory will do: it is seen nowhere else.
    let place = Path::new("/proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    step(
        "mount an empty root",
        mount(
            "none",
            place,
            "tmpfs",
            flags,
            Some(c"size=4k,nr_inodes=2,mode=555"),
        ),
    )?;
    step("enter its root", rustix::process::chdir(place))?;
    // The old root comes to lie on the new one, and is taken off.
    step("change its root", rustix::process::pivot_root(".", "."))?;
    step("leave the old root", unmount(".", UnmountFlags::DETACH))?;
    step("enter its root", rustix::process::chdir("/"))?;
    step(
        "make its root read-only",
        mount_remount("/", flags | MountFlags::RDONLY, ""),
    )
}

fn set(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these options take numbers only.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
