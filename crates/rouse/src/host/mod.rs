//! What the host must offer before a node can start, checked one by one: a node that starts and then fails on
//! its first function would tell the operator less.

mod cgroups;

use std::path::Path;

use rouse_pool::SharedHuge;

/// Oldest kernel: `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE` are in it since 5.14. `clone3` with `set_tid`
/// (5.5), `setns` by pidfd (5.8) and detached mounts (5.2) are older.
const OLDEST_KERNEL: (u32, u32) = (5, 14);
/// Since this one POSIX timers can be made again with the ids that they had (`PR_TIMER_CREATE_RESTORE_IDS`).
const TIMERS_KERNEL: (u32, u32) = (6, 16);
/// Namespaces of a sandbox, as files of `/proc/self/ns`.
const NAMESPACES: [&str; 6] = ["user", "pid", "net", "mnt", "ipc", "uts"];

/// One requirement, and what was found.
#[derive(Debug)]
pub struct Check {
    /// What is required.
    pub name: &'static str,
    /// What was found, or why it is not enough.
    pub result: Result<String, HostProblem>,
}

/// Why a host cannot run a node.
#[derive(Debug, thiserror::Error)]
pub enum HostProblem {
    /// Not root.
    #[error("a node must be started as root (its functions never run as root), not as uid {uid}")]
    NotRoot {
        /// Who we are.
        uid: u32,
    },
    /// The kernel is too old.
    #[error("the kernel is {release}, and {}.{} or newer is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    Kernel {
        /// `uname -r`.
        release: String,
    },
    /// A kind of namespace is missing.
    #[error("the kernel has no {kind} namespaces")]
    Namespace {
        /// Its name in `/proc/self/ns`.
        kind: &'static str,
    },
    /// User namespaces are forbidden.
    #[error("user namespaces are switched off: /proc/sys/user/max_user_namespaces is 0")]
    UserNamespacesOff,
    /// No overlayfs.
    #[error("the kernel has no overlayfs (modprobe overlay)")]
    Overlay,
    /// No usable cgroup controller.
    #[error("no cgroup hierarchy with the {controller} controller is mounted")]
    Cgroup {
        /// The controller.
        controller: &'static str,
    },
    /// The kernel joins pages of pools.
    #[error(
        "the kernel makes pages of 2 MiB of any shared memory, parts of which cannot be taken out safely: write `never` or `advise` to \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled and `inherit` to hugepages-2048kB/shmem_enabled beside it"
    )]
    SharedHuge,
    /// A file of `/proc` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// The host lacks something.
#[derive(Debug, thiserror::Error)]
#[error("this host cannot run a node: {name} is missing")]
pub struct HostError {
    name: &'static str,
    source: HostProblem,
}

/// Checks everything, in the order in which an operator would fix it.
pub fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "root",
            result: root(),
        },
        Check {
            name: "a recent kernel",
            result: kernel(),
        },
        Check {
            name: "namespaces",
            result: namespaces(),
        },
        Check {
            name: "overlayfs",
            result: overlay(),
        },
        Check {
            name: "the memory controller",
            result: cgroups::find("memory"),
        },
        Check {
            name: "the pids controller",
            result: cgroups::find("pids"),
        },
        Check {
            name: "the cpu controller",
            result: cgroups::find("cpu"),
        },
        Check {
            name: "small pages of shared memory",
            result: shared_memory(SharedHuge::of_host()),
        },
        Check {
            name: "microVMs",
            result: Ok(microvms()),
        },
    ]
}

/// The first requirement that is not met, if any.
pub fn require() -> Result<(), HostError> {
    for Check { name, result } in checks() {
        result.map_err(|source| HostError { name, source })?;
    }
    Ok(())
}

/// Whether functions can have machines of their own, in one sentence. A node runs without.
pub fn microvms() -> String {
    match rouse_vmm::host::usable() {
        Ok(_) => "KVM on hardware".to_owned(),
        Err(why) => format!("not on this host: {why}"),
    }
}

/// Pages of pools are taken out one by one.
fn shared_memory(setting: SharedHuge) -> Result<String, HostProblem> {
    match setting {
        SharedHuge::Never => Ok("never joined by the kernel".to_owned()),
        SharedHuge::Advised => {
            Ok("joined where a function asks for it, then taken out as a whole".to_owned())
        }
        SharedHuge::Anywhere => Err(HostProblem::SharedHuge),
    }
}

fn root() -> Result<String, HostProblem> {
    match rustix::process::geteuid().as_raw() {
        0 => Ok("uid 0".to_owned()),
        uid => Err(HostProblem::NotRoot { uid }),
    }
}

fn kernel() -> Result<String, HostProblem> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    match parse_release(&release) {
        Some(version) if version >= OLDEST_KERNEL => Ok(release + limits(version)),
        _ => Err(HostProblem::Kernel { release }),
    }
}

/// What does not work with a kernel that a node can run on.
fn limits(version: (u32, u32)) -> &'static str {
    match version >= TIMERS_KERNEL {
        true => "",
        false => {
            " (functions with POSIX timers are served cold: timers keep their ids in snapshots since 6.16)"
        }
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn namespaces() -> Result<String, HostProblem> {
    for kind in NAMESPACES {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            return Err(HostProblem::Namespace { kind });
        }
    }
    const MAX: &str = "/proc/sys/user/max_user_namespaces";
    let max =
        std::fs::read_to_string(MAX).map_err(|source| HostProblem::Read { path: MAX, source })?;
    if max.trim() == "0" {
        return Err(HostProblem::UserNamespacesOff);
    }
    Ok(NAMESPACES.join(", "))
}

fn overlay() -> Result<String, HostProblem> {
    const FILESYSTEMS: &str = "/proc/filesystems";
    let list = std::fs::read_to_string(FILESYSTEMS).map_err(|source| HostProblem::Read {
        path: FILESYSTEMS,
        source,
    })?;
    // A module that is not loaded yet is not listed; mounting loads it.
    let loadable = || {
        let modules = Path::new("/lib/modules")
            .join(rustix::system::uname().release().to_string_lossy().as_ref());
        std::fs::read_to_string(modules.join("modules.dep"))
            .is_ok_and(|text| text.contains("/overlay.ko"))
    };
    if list
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some("overlay"))
    {
        Ok("built in or loaded".to_owned())
    } else if loadable() {
        Ok("a module".to_owned())
    } else {
        Err(HostProblem::Overlay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_distributions_are_read() {
        for (release, version) in [
            ("6.18.44-fc-v595", Some((6, 18))),
            ("5.14.0-427.el9.x86_64", Some((5, 14))),
            ("6.1-rc3", Some((6, 1))),
            ("unknown", None),
        ] {
            assert_eq!(parse_release(release), version, "{release}");
        }
    }

    #[test]
    fn what_an_older_kernel_lacks_is_said() {
        assert!(limits((6, 15)).contains("POSIX timers"));
        assert!(limits((5, 19)).contains("POSIX timers"));
        assert_eq!((limits((6, 16)), limits((7, 0))), ("", ""));
    }

    #[test]
    fn pages_that_the_kernel_joins_anywhere_are_refused() {
        assert!(shared_memory(SharedHuge::Never).is_ok());
        assert!(shared_memory(SharedHuge::Advised).is_ok());
        let problem = shared_memory(SharedHuge::Anywhere).expect_err("no such host is taken");
        assert!(problem.to_string().contains("shmem_enabled"), "{problem}");
    }

    #[test]
    fn a_missing_requirement_has_a_chain() {
        let error = HostError {
            name: "overlayfs",
            source: HostProblem::Overlay,
        };
        let chain = crate::output::error::chain(&error);
        assert_eq!(
            chain,
            [
                "this host cannot run a node: overlayfs is missing",
                "the kernel has no overlayfs (modprobe overlay)"
            ]
        );
    }
}
