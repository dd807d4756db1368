//! The file system that a function sees: disks that can only be read, and above them memory.
//!
//! A disk's name (its serial number) is where it belongs: `/` is the root, `/var/task` is the function's code. What is written
//! goes to a tmpfs above the root, and is gone with the machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

/// What every root has, empty: mount points, and directories that anybody can write to.
const SHARED: [&str; 2] = ["tmp", "dev/shm"];
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Files that programs expect, for a root that does not have them.
const FILES: [(&str, &str); 3] = [
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/usr/sbin/nologin\nsbx_user:x:993:990::/home/sbx_user:/usr/sbin/nologin\n",
    ),
    ("/etc/group", "root:x:0:\nsbx_user:x:990:\n"),
    ("/etc/hosts", "127.0.0.1 localhost sandbox\n"),
];
const HOST_NAME: &str = "sandbox";

/// Mounts what disks there are and makes it the root. Returns whether there is a disk for the root.
pub fn enter() -> Result<bool, String> {
    let disks = disks()?;
    let Some((root, _)) = disks.iter().find(|(_, place)| place == "/") else {
        return Ok(false);
    };
    for directory in ["/lower", "/memory", "/root"] {
        make(Path::new(directory))?;
    }
    read_only(root, Path::new("/lower"))?;
    mount(
        "tmpfs",
        "/memory",
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755"),
    )
    .map_err(|errno| format!("cannot mount a tmpfs: {errno}"))?;
    make(Path::new("/memory/upper"))?;
    make(Path::new("/memory/work"))?;
    let layers = c"lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work";
    mount(
        "overlay",
        "/root",
        "overlay",
        MountFlags::empty(),
        Some(layers),
    )
    .map_err(|errno| format!("cannot mount an overlay on the root's disk: {errno}"))?;

    for (disk, place) in disks.iter().filter(|(_, place)| place != "/") {
        let place = inside(place)?;
        make(&place)?;
        read_only(disk, &place)?;
    }
    for name in ["proc", "sys", "dev"] {
        let place = Path::new("/root").join(name);
        make(&place)?;
        mount_move(format!("/{name}"), &place)
            .map_err(|errno| format!("cannot move /{name} into the root: {errno}"))?;
    }
    for name in SHARED {
        let place = Path::new("/root").join(name);
        make(&place)?;
        mount(
            "tmpfs",
            &place,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=1777"),
        )
        .map_err(|errno| format!("cannot mount a tmpfs on /{name}: {errno}"))?;
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
    chdir("/root").map_err(|errno| failed("enter the root", &errno))?;
    mount_move(".", "/").map_err(|errno| failed("move the root to its place", &errno))?;
    chroot(".").map_err(|errno| failed("enter the root", &errno))?;
    chdir("/").map_err(|errno| failed("enter the root", &errno))?;
    for (target, name) in DEVICE_LINKS {
        let link = Path::new("/dev").join(name);
        if !link.exists() {
            symlink(target, &link).map_err(|error| failed("make links in /dev", &error))?;
        }
    }
    make(Path::new("/etc"))?;
    for (path, text) in FILES {
        if !Path::new(path).exists() {
            fs::write(path, text).map_err(|error| failed("write to the root", &error))?;
        }
    }
    rustix::system::sethostname(HOST_NAME.as_bytes())
        .map_err(|errno| failed("set the host's name", &errno))?;
    Ok(true)
}

/// Each disk's device and its place, by its name.
fn disks() -> Result<Vec<(PathBuf, String)>, String> {
    let all = Path::new("/sys/block");
    let entries = fs::read_dir(all).map_err(|error| format!("cannot list the disks: {error}"))?;
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        // Only disks of the machine monitor have a name there.
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            let device = Path::new("/dev").join(entry.file_name());
            found.push((device, serial.trim_end_matches(['\n', '\0']).to_owned()));
        }
    }
    // `/var` before `/var/task`.
    found.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(found)
}

/// The device of the disk that belongs at `place`.
pub fn disk_of(place: &str) -> Result<PathBuf, String> {
    let all = disks()?;
    let found = all.into_iter().find(|(_, of)| of == place);
    found
        .map(|(device, _)| device)
        .ok_or_else(|| format!("there is no disk for {place}"))
}

/// Where `place` of the function is now.
fn inside(place: &str) -> Result<PathBuf, String> {
    let relative = place.strip_prefix('/').filter(|rest| !rest.is_empty());
    let plain =
        relative.filter(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
    plain
        .map(|rest| Path::new("/root").join(rest))
        .ok_or_else(|| format!("a disk is named {place:?}, which is no place for it"))
}

/// Mounts a disk.
pub fn read_only(disk: &Path, place: &Path) -> Result<(), String> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount(disk, place, "erofs", flags, None).map_err(|errno| {
        format!(
            "cannot mount {} on {}: {errno}",
            disk.display(),
            place.display()
        )
    })
}

fn make(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_belongs_below_the_root() {
        assert_eq!(inside("/var/task"), Ok(PathBuf::from("/root/var/task")));
        for wrong in ["", "/", "var", "/a/../b", "//a", "/a/"] {
            assert!(inside(wrong).is_err(), "{wrong}");
        }
    }
}
