//! The way out of a sandbox with an outbound network: `slirp4netns`, a TCP/IP stack in user space that turns the
//! sandbox's connections into the host's.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;

use crate::home::Home;
use crate::kernel::clone::{CloneRequest, Side, clone3};
use crate::kernel::{namespace, process, socket};
use crate::sandbox::Process;

/// What it says when the network is there.
pub const READY: &[u8] = b"1";

/// Where the program may be.
const PROGRAMS: [&str; 3] = [
    "/usr/bin/slirp4netns",
    "/usr/local/bin/slirp4netns",
    "/bin/slirp4netns",
];

/// Starts it for the namespaces of `home`; `host` is the host's mount namespace.
///
/// The socket gets [`READY`], or in words why not, or ends. The process ends with the spawner.
pub fn start(home: &Home, host: impl AsFd) -> io::Result<(Process, OwnedFd)> {
    let (ours, theirs) = socket::pair()?;
    // SAFETY: the spawner has a single thread.
    match unsafe { clone3(&CloneRequest::default()) }? {
        Side::Child => process::run_child(|| {
            let Err(error) = become_slirp(home, host, &theirs);
            let words =
                format!("the outbound network needs slirp4netns, which cannot be run: {error}");
            let _ = socket::send(&theirs, words.as_bytes(), &[]);
            127
        }),
        Side::Parent(process) => Ok((process, ours)),
    }
}

fn become_slirp(home: &Home, host: impl AsFd, ready: &OwnedFd) -> io::Result<Infallible> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    namespace::enter(host, libc::CLONE_NEWNS)?;
    // With mounts of its own, and private ones: what it mounts to sandbox itself must not show up on the host, whose
    // mounts may be shared.
    namespace::leave(libc::CLONE_NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    rustix::process::chdir("/")?;
    process::silence_standard_streams()?;
    process::reset_signals();
    process::close_on_exec_from(3)?;
    for kept in [home.user(), home.network(), ready.as_fd()] {
        rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty())?;
    }
    let arguments = [
        "slirp4netns".to_owned(),
        "--configure".to_owned(),
        "--mtu=65520".to_owned(),
        "--disable-host-loopback".to_owned(),
        "--enable-sandbox".to_owned(),
        "--enable-seccomp".to_owned(),
        format!("--ready-fd={}", ready.as_raw_fd()),
        format!("--userns-path=/proc/self/fd/{}", home.user().as_raw_fd()),
        "--netns-type=path".to_owned(),
        format!("/proc/self/fd/{}", home.network().as_raw_fd()),
        "tap0".to_owned(),
    ];
    let arguments = arguments
        .into_iter()
        .map(CString::new)
        .collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null()];
    for program in PROGRAMS {
        let program = CString::new(program)?;
        // SAFETY: the strings and the lists, which end with null, live until the call returns, if it does.
        unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the program is not installed",
    ))
}
