//! The upper layer of the root: mount points, files of the sandboxes' own, and masks over what is the host's business.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, XattrFlags};

use crate::config::SandboxConfig;
use crate::{GID, HOSTNAME, UID};

/// Directories that exist in every sandbox and are empty, whatever the root has there.
const EMPTY: [&str; 16] = [
    "proc",
    "sys",
    "dev",
    "tmp",
    "run",
    "var",
    "root",
    "home",
    "srv",
    "mnt",
    "media",
    "boot",
    "etc/ssh",
    "etc/ssl/private",
    "etc/sudoers.d",
    "etc/docker",
];

/// Directories made inside of the empty ones.
const MADE: [&str; 4] = ["var/task", "var/runtime", "var/tmp", "home/sbx_user"];

/// Files of the root that do not exist in a sandbox: accounts and identity of the host.
const ABSENT: [&str; 13] = [
    "etc/shadow",
    "etc/shadow-",
    "etc/gshadow",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/group-",
    "etc/subuid",
    "etc/subgid",
    "etc/sudoers",
    "etc/machine-id",
    "etc/fstab",
    "etc/krb5.keytab",
    "etc/crontab",
];

/// What sandboxes see of the top level of the host's own root, besides [`EMPTY`]: programs and their settings. Other
/// names there (a data disk, a checkout, a container's marker) are the host's and do not exist in a sandbox.
const SHARED: [&str; 10] = [
    "bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc", "nix",
];

/// `/etc/resolv.conf` of sandboxes with an outbound network.
pub const OUTBOUND_RESOLVER: &str = "/etc/resolv.conf.outbound";
/// Where slirp4netns answers name queries.
const RESOLVER_ADDRESS: &str = "10.0.2.3";

/// Files with the sandboxes' own content.
fn own_files() -> [(&'static str, String); 6] {
    [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
                 sbx_user:x:{UID}:{GID}::/home/sbx_user:/usr/sbin/nologin\n"
            ),
        ),
        (
            "etc/group",
            format!("root:x:0:\nnogroup:x:65534:\nsbx_user:x:{GID}:\n"),
        ),
        (
            "etc/hosts",
            format!("127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n"),
        ),
        ("etc/hostname", format!("{HOSTNAME}\n")),
        ("etc/resolv.conf", String::new()),
        (
            &OUTBOUND_RESOLVER[1..],
            format!("nameserver {RESOLVER_ADDRESS}\n"),
        ),
    ]
}

/// Whether sandboxes see the root's own file or directory at `path` (relative to the root).
pub fn is_shared(config: &SandboxConfig, path: &Path) -> bool {
    let hidden = config
        .hidden
        .iter()
        .map(|hidden| hidden.strip_prefix("/").unwrap_or(hidden));
    let masked = EMPTY
        .iter()
        .chain(&ABSENT)
        .map(Path::new)
        .chain(hidden)
        .any(|mask| path.starts_with(mask));
    let own = own_files().iter().any(|(name, _)| Path::new(name) == path);
    let listed = config.root != Path::new("/") || SHARED.iter().any(|name| path.starts_with(name));
    listed && !masked && !own
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mask {
    /// An empty directory in its place.
    Empty,
    /// Nothing in its place.
    Absent,
}

/// What will be written. Made before the host's tree goes out of sight.
#[derive(Debug)]
pub struct Skeleton {
    masks: BTreeMap<PathBuf, Mask>,
}

impl Skeleton {
    /// Decides what to mask in `root` (canonical).
    pub fn plan(config: &SandboxConfig, root: &Path) -> io::Result<Skeleton> {
        let mut masks = BTreeMap::new();
        for name in ABSENT {
            if root.join(name).symlink_metadata().is_ok() {
                masks.insert(PathBuf::from(name), Mask::Absent);
            }
        }
        if root == Path::new("/") {
            for entry in fs::read_dir(root)? {
                let name = entry?.file_name();
                if !SHARED.iter().chain(&EMPTY).any(|known| name == *known) {
                    masks.insert(PathBuf::from(name), Mask::Absent);
                }
            }
        }
        for name in EMPTY {
            // Below a directory that the root does not have there is nothing to mask.
            if Path::new(name).components().count() == 1
                || root.join(name).symlink_metadata().is_ok()
            {
                masks.insert(PathBuf::from(name), Mask::Empty);
            }
        }
        for path in &config.hidden {
            // A mask must lie where the directory really is: a directory of the skeleton at `/lib/x` would replace the
            // link `/lib` by a directory.
            let Ok(real) = root
                .join(path.strip_prefix("/").unwrap_or(path))
                .canonicalize()
            else {
                continue;
            };
            let Ok(inside) = real.strip_prefix(root) else {
                continue;
            };
            if inside.as_os_str().is_empty() || masks.keys().any(|mask| inside.starts_with(mask)) {
                continue;
            }
            masks.insert(
                inside.to_path_buf(),
                if real.is_dir() {
                    Mask::Empty
                } else {
                    Mask::Absent
                },
            );
        }
        Ok(Skeleton { masks })
    }

    /// Writes the layer into the empty directory `target` of a file system of its own.
    pub fn write(&self, target: &Path) -> io::Result<()> {
        for (path, mask) in &self.masks {
            let place = target.join(path);
            make_parents(target, path)?;
            match mask {
                Mask::Empty => {
                    make_directory(&place)?;
                    rustix::fs::setxattr(
                        &place,
                        c"trusted.overlay.opaque",
                        b"y",
                        XattrFlags::empty(),
                    )?;
                }
                // Overlay's mark for "removed": a character device 0/0.
                Mask::Absent => rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &place,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    0,
                )?,
            }
        }
        for path in MADE {
            make_parents(target, Path::new(path))?;
            make_directory(&target.join(path))?;
        }
        for (path, content) in own_files() {
            make_parents(target, Path::new(path))?;
            let place = target.join(path);
            fs::write(&place, content)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

fn make_parents(target: &Path, path: &Path) -> io::Result<()> {
    let mut place = target.to_path_buf();
    for component in path.parent().unwrap_or(Path::new("")).components() {
        place.push(component);
        make_directory(&place)?;
    }
    Ok(())
}

/// A directory that everybody may enter, whatever the umask.
fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
