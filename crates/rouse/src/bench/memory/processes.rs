//! Memory of a node and of what it has started, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Descendants of a process, itself included.
pub fn family(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all() {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// Restored instances: processes that map a snapshot's pool, and are not our own like template hosts.
pub fn restored(among: &[u32]) -> Vec<u32> {
    let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let is_instance = |pid: &&u32| {
        read(**pid, "comm").is_ok_and(|name| !name.starts_with("rouse"))
            && read(**pid, "maps").is_ok_and(|maps| maps.contains("/memfd:rouse-"))
    };
    among.iter().filter(is_instance).copied().collect()
}

/// All processes in the memory control group of a process: the sandbox that it lives in.
pub fn sandbox_of(pid: u32) -> Vec<u32> {
    let procs = cgroup_of(pid).map(|group| group.join("cgroup.procs"));
    let listed = procs.and_then(|path| fs::read_to_string(path).ok());
    listed
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

/// Kernel memory (page tables, stacks, sockets, ...) that the sandbox of a process is charged for, KiB.
pub fn kernel_kib_of_sandbox(pid: u32) -> Option<u64> {
    let group = cgroup_of(pid)?;
    let text = fs::read_to_string(group.join("memory.kmem.usage_in_bytes")).ok()?;
    Some(text.trim().parse::<u64>().ok()? / 1024)
}

fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let is_it = controllers.split(',').any(|name| name == "memory");
        is_it.then(|| path.to_owned())
    })?;
    Some(PathBuf::from("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')))
}

/// Sum of some fields of `smaps_rollup`, KiB. Zero for a process that is gone.
pub fn rollup_kib(pid: u32, fields: &[&str]) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    rollup
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| fields.contains(name))
        .filter_map(|(_, value)| value.trim().split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// What all memory files that these processes have open hold, KiB; each file once. What a node measures its host with in its first
/// second is none of what it holds for functions.
pub fn memory_files_kib(pids: &[u32]) -> u64 {
    let mut known = BTreeSet::new();
    let mut kib = 0;
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            let is_memory = fs::read_link(entry.path()).is_ok_and(|target| {
                let target = target.to_string_lossy();
                target.starts_with("/memfd:") && !target.starts_with("/memfd:rouse-measure")
            });
            if let Ok(metadata) = fs::metadata(entry.path())
                && is_memory
                && known.insert(metadata.ino())
            {
                kib += metadata.blocks() / 2;
            }
        }
    }
    kib
}

/// DRAM that a node holds, instances not included, KiB: memory of its processes that is not in files of memory, and
/// the memory files themselves.
pub fn node_kib(root: u32) -> u64 {
    let all = family(root);
    let instances: BTreeSet<u32> = restored(&all).into_iter().collect();
    let own: Vec<u32> = all
        .into_iter()
        .filter(|pid| !instances.contains(pid))
        .collect();
    let private: u64 = own
        .iter()
        .map(|pid| rollup_kib(*pid, &["Pss_Anon", "Pss_File"]))
        .sum();
    private + memory_files_kib(&own)
}

/// Memory that the whole system has left, KiB.
pub fn available_kib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; field 4 is the second after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_its_own_child_and_memory_file() {
        use std::os::fd::AsFd;
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let own = std::process::id();
        assert!(family(own).contains(&child.id()));
        assert_eq!(parent_of(child.id()), Some(own));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("test", flags).expect("memfd");
        let before = memory_files_kib(&[own]);
        rustix::io::pwrite(file.as_fd(), &[1; 8192], 0).expect("pwrite");
        assert!(memory_files_kib(&[own]) >= before + 8);
        assert!(rollup_kib(own, &["Pss"]) > 0 && available_kib().expect("meminfo") > 0);
    }
}
