//! Paths of a sandbox, seen from the host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::config::SandboxConfig;
use crate::root::is_shared;

/// The host's path of what a function sees at `sandbox_path`; `task_dir` is the host directory of its code.
///
/// `None` for what has no file of the host behind it: everything that a sandbox makes for itself (`/tmp`, `/proc`,
/// `/dev`), what is masked, and the few files with content of their own (`/etc/passwd` and its like, which are the
/// same in every sandbox of one version of rouse). Also for relative paths and paths with `..`.
pub fn host_path(config: &SandboxConfig, task_dir: &Path, sandbox_path: &[u8]) -> Option<PathBuf> {
    let inside = Path::new(OsStr::from_bytes(sandbox_path))
        .strip_prefix("/")
        .ok()?;
    if inside
        .components()
        .any(|component| !matches!(component, Component::Normal(_)))
    {
        return None;
    }
    for (mount, host) in [("var/task", task_dir), ("var/runtime", &config.runtime_dir)] {
        if let Ok(rest) = inside.strip_prefix(mount) {
            // Joining nothing would add a slash.
            return Some(if rest.as_os_str().is_empty() {
                host.to_path_buf()
            } else {
                host.join(rest)
            });
        }
    }
    is_shared(config, inside).then(|| config.root.join(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &str) -> SandboxConfig {
        SandboxConfig {
            root: root.into(),
            runtime_dir: "/srv/runtime".into(),
            hidden: vec!["/opt/secret".into()],
            cgroup: "test".into(),
            uid_base: 1 << 20,
            clock_offset: None,
            hand_over_memory_calls: false,
        }
    }

    fn translate(root: &str, path: &str) -> Option<String> {
        let host = host_path(&config(root), Path::new("/state/code/7"), path.as_bytes())?;
        Some(host.to_str()?.to_owned())
    }

    #[test]
    fn code_and_runtime_have_their_own_places() {
        assert_eq!(
            translate("/", "/var/task").as_deref(),
            Some("/state/code/7")
        );
        assert_eq!(
            translate("/", "/var/task/a/b.py").as_deref(),
            Some("/state/code/7/a/b.py")
        );
        assert_eq!(
            translate("/", "/var/runtime/bootstrap.py").as_deref(),
            Some("/srv/runtime/bootstrap.py")
        );
        assert_eq!(translate("/", "/var/taskforce"), None);
    }

    #[test]
    fn the_root_shines_through_where_it_is_shared() {
        assert_eq!(
            translate("/", "/usr/bin/python3").as_deref(),
            Some("/usr/bin/python3")
        );
        assert_eq!(
            translate("/images/a", "/usr/bin/python3").as_deref(),
            Some("/images/a/usr/bin/python3")
        );
        assert_eq!(
            translate("/images/a", "/app/x").as_deref(),
            Some("/images/a/app/x")
        );
        assert_eq!(translate("/", "/app/x"), None);
    }

    #[test]
    fn what_is_not_the_hosts_has_no_host_path() {
        for path in [
            "/tmp/x",
            "/proc/self/maps",
            "/dev/null",
            "/etc/passwd",
            "/etc/shadow",
            "/root/x",
            "/opt/secret/key",
            "/usr/../root",
            "usr",
        ] {
            assert_eq!(translate("/", path), None, "{path}");
        }
    }
}
