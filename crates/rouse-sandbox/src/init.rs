//! Pid 1 of a sandbox: mounts what is the sandbox's own, then reaps orphans until it is killed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::config::{Limits, Network};
use crate::kernel::{process, socket};
use crate::root::{NEXT, OUTBOUND_RESOLVER, mount_new, move_in};

/// Size of `/dev/shm`, bytes. As with `/tmp`, what is in it counts as memory of the sandbox.
const SHARED_MEMORY_SIZE: u64 = 64 << 20;

/// The namespaces that init is born in; the others are those of its slot's [`crate::home::Home`].
pub const NAMESPACES: libc::c_int = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

/// Message from the spawner that nobody needs to enter through init any more, and that all who are to live here are there.
pub const GO: &[u8] = b"go";
/// Message to the spawner when the sandbox is built.
pub const READY: &[u8] = b"ready";

/// Runs init, uid 0 of the sandbox's user namespace and in its control groups; `status` is its socket to the spawner.
pub fn run(status: OwnedFd, limits: &Limits) -> ! {
    process::run_child(|| {
        let Ok(status) =
            process::silence_standard_streams().and_then(|()| process::keep_one_descriptor(status))
        else {
            return 1;
        };
        let words = match prepare(&status, limits) {
            Ok(true) => READY.to_vec(),
            Ok(false) => return 1,
            Err((step, error)) => format!("init cannot {step}: {error}").into_bytes(),
        };
        if socket::send(&status, &words, &[]).is_err() || words != READY {
            return 1;
        }
        drop(status);
        reap_forever()
    })
}

type Step = (&'static str, io::Error);

fn at(step: &'static str) -> impl FnOnce(io::Error) -> Step {
    move |error| (step, error)
}

/// Builds the sandbox; `false` when the spawner has died.
///
/// Its bounding set stays as it is: it never calls execve, and could gain nothing by it.
fn prepare(status: &OwnedFd, limits: &Limits) -> Result<bool, Step> {
    // Only once this has been asked for is the spawner known to be alive.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| at("tie itself to the spawner")(error.into()))?;
    if is_hung_up(status).map_err(at("see the spawner"))? {
        return Ok(false);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let root = Path::new(NEXT);
    mount_new("proc", &root.join("proc"), flags | MountFlags::NOEXEC, "")
        .map_err(at("mount /proc"))?;
    for (path, size) in [("tmp", limits.tmp), ("dev/shm", SHARED_MEMORY_SIZE)] {
        let options = format!("mode=1777,size={size}");
        mount_new("tmpfs", &root.join(path), flags, &options).map_err(at("mount its own files"))?;
    }

    // As a rule it is there already.
    match socket::receive(status).map_err(at("hear from the spawner"))? {
        Some((message, _)) if message == GO => {}
        _ => return Ok(false),
    }
    move_in().map_err(at("change its root"))?;
    if limits.network == Network::Outbound {
        rustix::mount::mount_bind(OUTBOUND_RESOLVER, "/etc/resolv.conf")
            .map_err(|error| at("name the resolver")(error.into()))?;
    }
    process::clear_capabilities().map_err(at("give up its capabilities"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| at("forbid new privileges")(error.into()))?;
    // The function must not trace or read init, whose memory is a copy of the spawner's.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| at("hide its memory")(error.into()))?;
    for (resource, value) in process::RESOURCE_LIMITS {
        process::limit_resource(resource, value).map_err(at("limit its resources"))?;
    }
    let _ = rustix::thread::set_name(c"init");
    Ok(true)
}

fn is_hung_up(status: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(status, PollFlags::IN)];
    poll(
        &mut polled,
        Some(&rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

/// Reaps what the function leaves behind. Ends only by being killed.
fn reap_forever() -> i32 {
    // SAFETY: only this process's own memory is touched: a signal set and a status.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) > 0 {}
            libc::sigwaitinfo(&set, std::ptr::null_mut());
        }
    }
}
