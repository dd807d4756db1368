//! Finds cgroup controllers in a hierarchy of version 1 or 2.

use super::HostProblem;

const MOUNTS: &str = "/proc/self/mountinfo";

/// Where `controller` can be used, for people.
pub fn find(controller: &'static str) -> Result<String, HostProblem> {
    let mounts = std::fs::read_to_string(MOUNTS).map_err(|source| HostProblem::Read {
        path: MOUNTS,
        source,
    })?;
    let v2_controllers = |mount_point: &str| {
        std::fs::read_to_string(format!("{mount_point}/cgroup.controllers")).unwrap_or_default()
    };
    locate(&mounts, controller, v2_controllers).ok_or(HostProblem::Cgroup { controller })
}

/// A controller belongs to at most one hierarchy: the v1 mount whose options name it, else the v2 tree that offers it.
fn locate(
    mounts: &str,
    controller: &str,
    v2_controllers: impl Fn(&str) -> String,
) -> Option<String> {
    mounts.lines().find_map(|line| {
        // "ID PARENT DEV ROOT MOUNT-POINT OPTIONS [TAG...] - TYPE SOURCE SUPER-OPTIONS"
        let (left, right) = line.split_once(" - ")?;
        let mount_point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        match right.next()? {
            "cgroup" if right.nth(1)?.split(',').any(|option| option == controller) => {
                Some(format!("cgroup v1 at {mount_point}"))
            }
            "cgroup2"
                if v2_controllers(mount_point)
                    .split_whitespace()
                    .any(|name| name == controller) =>
            {
                Some(format!("cgroup v2 at {mount_point}"))
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct";

    #[test]
    fn hybrid_hosts_have_v1_controllers() {
        let find = |controller| locate(HYBRID, controller, |_| String::new());
        assert_eq!(
            find("memory").as_deref(),
            Some("cgroup v1 at /sys/fs/cgroup/memory")
        );
        assert_eq!(
            find("cpu").as_deref(),
            Some("cgroup v1 at /sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(find("pids"), None);
    }

    #[test]
    fn unified_hosts_list_their_controllers() {
        let mounts = "26 24 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let find = |controller| {
            locate(mounts, controller, |_| {
                "cpuset cpu io memory pids\n".to_owned()
            })
        };
        assert_eq!(find("pids").as_deref(), Some("cgroup v2 at /sys/fs/cgroup"));
        assert_eq!(find("cpuacct"), None);
    }
}
