//! Which control-group hierarchies a host has, and where the node's own group lies in each.

use std::path::{Path, PathBuf};

/// The controllers that sandboxes are limited with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// Number of processes and threads.
    Pids,
    /// CPU time.
    Cpu,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
        }
    }
}

/// Which of the two interfaces a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each set of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which interface.
    pub version: Version,
    /// Where the hierarchy is mounted.
    pub mount_point: PathBuf,
    /// Directory of the group that this process is in.
    pub own: PathBuf,
    /// Those of [`Controller::ALL`] that are bound to it (v1); decided by the caller for v2.
    pub controllers: Vec<Controller>,
}

/// Finds the hierarchies from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
pub fn places(mountinfo: &str, membership: &str) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for line in mountinfo.lines() {
        let Some((place, _)) = parse_mount(line)
            .and_then(|mount| place_of(&mount, membership).map(|place| (place, ())))
        else {
            continue;
        };
        // A hierarchy may be mounted more than once; its first mount serves.
        let known = places
            .iter()
            .any(|other| other.version == place.version && other.controllers == place.controllers);
        if !known {
            places.push(place);
        }
    }
    places
}

struct Mount {
    root: String,
    mount_point: PathBuf,
    kind: String,
    options: String,
}

fn parse_mount(line: &str) -> Option<Mount> {
    // 36 35 98:0 /root /mount/point rw,noatime shared:1 - type source super,options
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let root = unescape(front.next()?);
    let mount_point = PathBuf::from(unescape(front.next()?));
    let mut back = back.split(' ');
    let kind = back.next()?.to_owned();
    let options = back.nth(1)?.to_owned();
    Some(Mount {
        root,
        mount_point,
        kind,
        options,
    })
}

fn place_of(mount: &Mount, membership: &str) -> Option<Place> {
    let (version, controllers) = match mount.kind.as_str() {
        "cgroup2" => (Version::V2, Vec::new()),
        "cgroup" => {
            let bound = Controller::ALL.into_iter().filter(|controller| {
                mount
                    .options
                    .split(',')
                    .any(|option| option == controller.name())
            });
            (Version::V1, bound.collect())
        }
        _ => return None,
    };
    if version == Version::V1 && controllers.is_empty() {
        return None;
    }
    // 4:memory:/own/group or 0::/own/group
    let group = membership.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let matches = match version {
            Version::V2 => names.is_empty(),
            Version::V1 => names.split(',').any(|name| {
                name == controllers
                    .first()
                    .map_or("", |controller| controller.name())
            }),
        };
        matches.then(|| path.to_owned())
    })?;
    Some(Place {
        version,
        own: below(&mount.mount_point, &mount.root, &group),
        mount_point: mount.mount_point.clone(),
        controllers,
    })
}

/// The directory of `group` in a mount that shows the hierarchy from `root` on.
fn below(mount_point: &Path, root: &str, group: &str) -> PathBuf {
    let inside = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    // A group outside of this cgroup namespace reads as "/../..": the visible part of the hierarchy is all there is.
    if inside
        .components()
        .any(|component| component == std::path::Component::ParentDir)
    {
        return mount_point.to_path_buf();
    }
    mount_point.join(inside)
}

/// Undoes the octal escapes of `/proc/PID/mountinfo`.
pub fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_hierarchies_are_found_with_their_groups() {
        let mountinfo = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let membership = "4:memory:/jobs/7\n1:cpu,cpuacct:/\n0::/\n";
        let found = places(mountinfo, membership);
        let owns: Vec<_> = found
            .iter()
            .map(|place| (place.own.to_str().unwrap_or(""), place.controllers.clone()))
            .collect();
        assert_eq!(
            owns,
            [
                ("/sys/fs/cgroup/memory/jobs/7", vec![Controller::Memory]),
                ("/sys/fs/cgroup/cpu,cpuacct/", vec![Controller::Cpu]),
                ("/sys/fs/cgroup/unified/", vec![]),
            ]
        );
    }

    #[test]
    fn the_unified_hierarchy_is_found_in_a_container() {
        let mountinfo =
            "30 23 0:26 /docker/ab /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = places(mountinfo, "0::/docker/ab/inner\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/inner"));
        assert_eq!(
            places(mountinfo, "0::/../..\n")[0].own,
            Path::new("/sys/fs/cgroup")
        );
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\9"), r"/a\9");
    }
}
