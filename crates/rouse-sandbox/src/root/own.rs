//! The root of one sandbox: file systems that no other sandbox has.
//!
//! The order of the steps, and why:
//! - the spawner mounts them at [`NEXT`] before it makes init, whose namespace is a copy of its own: no descriptors to hand over,
//!   and the file systems belong to the host's user namespace, so that nobody in the sandbox can change them;
//! - init mounts its own `/proc` below it while the host's is still visible at `/proc`, without which the kernel refuses;
//! - init binds [`NEXT`] onto itself: a mount that came with the namespace is locked, and cannot become the root;
//! - init changes the root once the blank process exists and before the sandbox is handed over: the kernel takes all processes
//!   of the namespace along that had the old one;
//! - the spawner lets go of its own mounts. The file systems live on in the sandbox's namespace, and end with it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::{mount_new, pivot};

/// Where the root of the next sandbox is made ready.
pub const NEXT: &str = "/next";

/// An overlay without an upper layer has at least two lower ones.
const NOTHING: &str = "/layers/empty";

/// What roots of sandboxes are made of.
#[derive(Debug, Default)]
pub struct Roots {
    /// What the host has mounted below the directories shown: where in the sandbox, and the layer.
    further: Vec<(PathBuf, PathBuf)>,
}

/// The root of the next sandbox, until the sandbox has a copy of it.
#[derive(Debug)]
#[must_use]
pub struct Prepared;

impl Roots {
    pub(super) fn offer(&mut self, inside: &Path, layer: PathBuf) {
        self.further.push((inside.to_path_buf(), layer));
    }

    /// Makes a root for trial, and forgets what is hidden or replaced by the skeleton.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let _trial = bare()?;
        let next = Path::new(NEXT);
        let mut shown: Vec<PathBuf> = Vec::new();
        self.further.retain(|(inside, _)| {
            // What lies below another one is there only once that is mounted.
            let is_below = shown.iter().any(|outer| inside.starts_with(outer));
            let is_shown = is_below || next.join(inside).is_dir();
            if is_shown {
                shown.push(inside.clone());
            }
            is_shown
        });
        Ok(())
    }

    /// Mounts the root of the next sandbox.
    pub fn prepare(&self) -> io::Result<Prepared> {
        let prepared = bare()?;
        for (inside, layer) in &self.further {
            over(layer, &Path::new(NEXT).join(inside), LENT)?;
        }
        Ok(prepared)
    }
}

const LENT: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV);
/// For devices.
const DEVICES: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NOEXEC);

/// A root without what the host has mounted below the directories shown.
fn bare() -> io::Result<Prepared> {
    let next = Path::new(NEXT);
    let layers = "lowerdir=/layers/skeleton:/layers/root";
    mount_new("overlay", next, LENT, layers)?;
    let prepared = Prepared;
    over(
        Path::new("/layers/runtime"),
        &next.join("var/runtime"),
        LENT,
    )?;
    over(Path::new("/dev"), &next.join("dev"), DEVICES)?;
    Ok(prepared)
}

/// Mounts what is in the directory `layer`, which the spawner has named, as a file system of its own.
fn over(layer: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    let options = format!("lowerdir={}:{NOTHING}", layer.display());
    mount_new("overlay", target, flags, &options)
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Only if it is not mounted, which it is.
        let _ = rustix::mount::unmount(NEXT, UnmountFlags::DETACH);
    }
}

/// Makes the root that was prepared the one of the sandbox whose init the caller is.
pub fn move_in() -> io::Result<()> {
    rustix::mount::mount_bind_recursive(NEXT, NEXT)?;
    pivot(Path::new(NEXT))
}
