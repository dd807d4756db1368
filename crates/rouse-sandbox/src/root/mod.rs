//! What sandboxes see as their file system. Its parts are made once, in the spawner's mount namespace; each sandbox gets file
//! systems of its own over them.
//!
//! ```text
//!  the spawner's root                 a sandbox's root (prepared at `/next`, see `own`)
//!  /layers/skeleton  tmpfs     ---+-> /             overlay, read-only: skeleton (mount points, masks, /etc/passwd ...) over
//!  /layers/root      the root  ---'                 the configured root
//!  /layers/mount-N   the host's ----> /usr/..., ... overlay, read-only: what the host has mounted there
//!  /layers/runtime   the clients ---> /var/runtime  overlay, read-only
//!  /dev              tmpfs ---------> /dev          overlay, read-only: null zero full random urandom tty
//!  /proc             the host's                     only so that a sandbox may mount its own
//! ```
//! Locks, leases and watches belong to the inodes of a file system. Were a mount shared, a function could tell by them what another
//! one opens. An overlay has inodes of its own, and shows nothing of what is done to the files below it through another.
//!
//! A sandbox adds its own `/proc`, `/tmp`, `/dev/shm` and, with a function, `/var/task`.

mod own;
mod skeleton;
mod visible;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use skeleton::Skeleton;
pub use skeleton::{OUTBOUND_RESOLVER, is_shared};

use crate::config::SandboxConfig;
use crate::kernel::mount::{self, LENT, MountAttributes};
use crate::kernel::namespace;
pub use own::{NEXT, Roots, move_in};

/// Why the root of the sandboxes could not be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct RootError {
    step: String,
    source: io::Error,
}

/// Describes a failed step.
fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> RootError {
    let step = step.into();
    move |source| RootError { step, source }
}

/// Character devices of `/dev`: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Links of `/dev`.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Leaves the host's mount namespace for one that holds only what the sandboxes' roots are made of.
pub fn enter(config: &SandboxConfig) -> Result<Roots, RootError> {
    // Everything that is named by a path of the host is opened before the host's tree goes out of sight.
    let root = config
        .root
        .canonicalize()
        .map_err(failed(format!("find the root {}", config.root.display())))?;
    let lower =
        mount::clone_tree(&root).map_err(failed(format!("open the root {}", root.display())))?;
    let runtime = lend(&config.runtime_dir)
        .map_err(failed(format!("open {}", config.runtime_dir.display())))?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(failed("read /proc/self/mountinfo"))?;
    let mut further: Vec<(PathBuf, OwnedFd)> = Vec::new();
    for inside in visible::mounts(&mountinfo, &root) {
        let path = root.join(&inside);
        further.push((
            inside,
            lend(&path).map_err(failed(format!("open {}", path.display())))?,
        ));
    }
    let skeleton = Skeleton::plan(config, &root).map_err(failed("list the root's directories"))?;

    namespace::leave(libc::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)
        .map_err(|error| failed("make the mounts private")(error.into()))?;

    // Any directory will do to build in: only this namespace sees what is mounted on it.
    let stage = Path::new("/tmp");
    mount_new(
        "tmpfs",
        stage,
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=755,size=4m",
    )
    .map_err(failed("mount the skeleton"))?;
    let layers = stage.join("layers");
    let directories = ["layers", "proc", "dev", "next"].map(|name| stage.join(name));
    let of_layers = ["skeleton", "root", "runtime", "empty"].map(|name| layers.join(name));
    for directory in directories.iter().chain(&of_layers) {
        std::fs::create_dir(directory).map_err(failed("make the skeleton"))?;
    }
    mount::attach(&lower, &layers.join("root")).map_err(failed("attach the root"))?;
    mount::attach(&runtime, &layers.join("runtime"))
        .map_err(failed("attach the runtime clients"))?;
    skeleton
        .write(&layers.join("skeleton"))
        .map_err(failed("write the skeleton"))?;
    let mut roots = Roots::default();
    for (number, (inside, tree)) in further.iter().enumerate() {
        let layer = layers.join(format!("mount-{number}"));
        std::fs::create_dir(&layer).map_err(failed("make the skeleton"))?;
        mount::attach(tree, &layer).map_err(failed(format!("attach {}", inside.display())))?;
        roots.offer(inside, Path::new("/layers").join(format!("mount-{number}")));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", &stage.join("proc"), flags, "").map_err(failed("mount /proc"))?;
    mount_devices(&stage.join("dev")).map_err(failed("make /dev"))?;
    pivot(stage).map_err(failed("change the root"))?;
    roots
        .check()
        .map_err(failed("mount the root of a sandbox"))?;
    Ok(roots)
}

/// A detached mount of a host directory, as it is lent to sandboxes.
fn lend(path: &Path) -> io::Result<OwnedFd> {
    let tree = mount::clone_tree(path)?;
    mount::set_attributes(
        &tree,
        MountAttributes {
            set: LENT,
            recursive: false,
        },
    )?;
    Ok(tree)
}

/// Mounts a new file system.
pub fn mount_new(kind: &str, target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(
        kind,
        target,
        kind,
        flags,
        options.as_c_str(),
    )?)
}

fn mount_devices(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new("tmpfs", target, flags, "mode=755,size=64k,nr_inodes=32")?;
    for (name, major, minor) in DEVICES {
        let path = target.join(name);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            device,
        )?;
        // The umask does not apply to chmod.
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666))?;
    }
    for (name, destination) in DEVICE_LINKS {
        std::os::unix::fs::symlink(destination, target.join(name))?;
    }
    std::fs::create_dir(target.join("shm"))?;
    Ok(rustix::mount::mount_remount(
        target,
        flags | MountFlags::RDONLY,
        c"",
    )?)
}

/// Makes `base`, a mount, the root and lets go of everything above it.
fn pivot(base: &Path) -> io::Result<()> {
    rustix::process::chdir(base)?;
    // With one directory as both arguments the old root ends up on top of the new one: no mount point for it is needed.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}
