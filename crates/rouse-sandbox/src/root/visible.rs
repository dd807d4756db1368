//! File systems that the host mounts inside of what sandboxes see.

use std::path::{Path, PathBuf};

use crate::cgroup::unescape;

/// Directories of the root in which mounts of the host are shown. Anything mounted elsewhere (disks, homes, sockets,
/// kernel interfaces) stays out of sight.
const SHOWN: [&str; 9] = [
    "usr", "opt", "nix", "bin", "sbin", "lib", "lib64", "lib32", "libx32",
];

/// Mount points below `root` that sandboxes see, relative to it, outer ones first.
pub fn mounts(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    let mut shown = Vec::new();
    for line in mountinfo.lines() {
        let Some(path) = line.split(' ').nth(4).map(unescape) else {
            continue;
        };
        let Ok(inside) = Path::new(&path).strip_prefix(root) else {
            continue;
        };
        let first = inside
            .components()
            .next()
            .and_then(|component| component.as_os_str().to_str());
        if first.is_some_and(|name| SHOWN.contains(&name))
            && Path::new(&path).is_dir()
            && !shown.contains(&inside.to_path_buf())
        {
            shown.push(inside.to_path_buf());
        }
    }
    shown.sort_by_key(|path| path.components().count());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_among_programs_are_shown() {
        let mountinfo = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                         28 27 254:1 / /usr/lib rw - ext4 /dev/vdb rw\n\
                         29 27 254:1 / /usr rw - ext4 /dev/vdb rw\n\
                         30 27 254:1 / /home rw - ext4 /dev/vdb rw\n\
                         22 27 0:21 / /proc rw,relatime - proc proc rw\n";
        assert_eq!(
            mounts(mountinfo, Path::new("/")),
            [PathBuf::from("usr"), PathBuf::from("usr/lib")]
        );
        assert!(mounts(mountinfo, Path::new("/some/where")).is_empty());
    }
}
