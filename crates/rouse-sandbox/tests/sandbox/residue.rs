//! Proof that a used sandbox is as good as a new one: canaries in every class of residue, and a comparison of everything
//! that can be read.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rouse_sandbox::Sandbox;
use serde_json::Value;

use crate::driver::{LIMITS, Node};

const SCRIPT: &str = include_str!("residue.py");

/// Classes that a function cannot leave anything in: it has no right to, and is told so.
const DENIED: &[&str] = &[
    "/var/task",
    "addresses",
    "host name",
    "ipc settings",
    "keyrings",
    "leases",
    "mounts",
    "network settings",
    "root",
    "routes",
];

/// Classes in which one process of a sandbox does not see what another one has left, so that only the next sandbox can be asked.
const PRIVATE: &[&str] = &["connection tracking", "POSIX locks", "flock"];

fn ask(node: &Node, sandbox: &Sandbox, what: &str) -> Value {
    let output = node.run(sandbox, &["/usr/bin/python3", "-c", SCRIPT, what]);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{what}: {error}: {output}"))
}

fn network_of(sandbox: &Sandbox) -> u64 {
    let path = format!("/proc/{}/ns/net", sandbox.init.pid);
    std::fs::metadata(path).unwrap().ino()
}

/// The same limits as no other test has, so that slots are not shared with what other tests have left.
fn sandbox(node: &Node, memory_mib: u64) -> Sandbox {
    let limits = rouse_sandbox::Limits {
        memory: memory_mib << 20,
        ..LIMITS
    };
    let kind = rouse_sandbox::SandboxKind::Blank;
    node.spawner.create(limits, kind).unwrap()
}

/// Ends a sandbox and takes others until one of them lives where it lived.
fn repurposed(node: &Node, used: Sandbox, memory_mib: u64) -> Sandbox {
    let network = network_of(&used);
    used.destroy();
    // Slots that still remember connections wait for a minute; those around this one are tried first.
    let mut others = Vec::new();
    loop {
        let next = sandbox(node, memory_mib);
        if network_of(&next) == network {
            return next;
        }
        assert!(others.len() < 64, "the slot was not used again");
        others.push(next);
    }
}

/// What is planted is seen by another process of the same sandbox, or denied; and in no sandbox that comes after.
pub fn canaries_are_not_found(node: &Node) {
    for round in 0..4 {
        let used = sandbox(node, 97);
        let answer = ask(node, &used, "plant");
        let planted = answer["planted"].as_object().unwrap();
        assert!(planted.len() > 30, "{planted:?}");
        for (class, outcome) in planted {
            let denied = DENIED.contains(&class.as_str());
            assert_eq!(
                outcome == "planted",
                !denied,
                "{class}: {outcome} in round {round}"
            );
            let seen = &answer["seen"][class];
            if !denied && !PRIVATE.contains(&class.as_str()) {
                assert_eq!(seen, true, "{class} is not seen where it was planted");
            }
        }
        used.destroy();
        // Whatever slot it gets, the one just used or any that was used before.
        let next = sandbox(node, 97);
        // As the host's root, who may read it; where nothing is tracked there is no such file.
        let tracked = format!("/proc/{}/net/nf_conntrack", next.init.pid);
        let tracked = std::fs::read_to_string(tracked).unwrap_or_default();
        assert!(!tracked.contains("dport=7177"), "{tracked}");
        for (class, found) in ask(node, &next, "look").as_object().unwrap() {
            assert_eq!(found, false, "{class} in round {round}");
        }
        next.destroy();
    }
}

/// Fields in which two new sandboxes differ, too, or which say something about the host or the moment. Each with the reason.
const IGNORED: &[(&str, &str)] = &[
    ("/proc/self/auxv", "random addresses"),
    ("/proc/self/maps", "random addresses"),
    ("/proc/self/numa_maps", "random addresses"),
    (
        "/proc/self/pagemap",
        "pages that the program happens to have touched",
    ),
    ("/proc/self/smaps", "random addresses"),
    ("/proc/self/smaps_rollup", "random addresses"),
    ("/proc/self/syscall", "random addresses"),
    (
        "/proc/self/autogroup",
        "a number that the kernel gives out for the whole host",
    ),
    ("/proc/self/environ", "compared as the environment"),
    (
        "/proc/self/mounts",
        "the same as /proc/self/mountinfo, which is compared below",
    ),
    ("/proc/mounts", "the same"),
    (
        "/proc/self/stat",
        "times, addresses, counters of this process",
    ),
    (
        "/proc/self/statm",
        "what of the program happens to be mapped",
    ),
    (
        "/proc/self/status",
        "memory and context switches; compared line by line below",
    ),
    ("/proc/self/sched", "times of this process"),
    ("/proc/self/schedstat", "times of this process"),
    ("/proc/self/io", "counters of this process"),
    ("/proc/self/oom_score", "follows the memory of the host"),
    ("/proc/self/latency_stats", "times of this process"),
    ("/proc/self/task", "times of this process"),
    ("/proc/self/arch_status", "times of this process"),
    (
        "/proc/self/cgroup",
        "names groups of the host's other hierarchies",
    ),
    (
        "/proc/self/mountinfo",
        "numbers of mounts, which the kernel gives out for the whole host; compared without them",
    ),
    ("/proc/self/mountstats", "the same as the mounts"),
    ("/proc/self/uid_map", "each slot has host users of its own"),
    ("/proc/self/gid_map", "each slot has host users of its own"),
    (
        "/proc/self/net/dev",
        "counters of the loopback interface (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/netstat",
        "counters of the network namespace (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/snmp",
        "counters of the network namespace (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/snmp6",
        "counters of the network namespace (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/dev_snmp6",
        "counters of the network namespace (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/softnet_stat",
        "counters of the host's processors",
    ),
    (
        "/proc/self/net/stat",
        "counters of the network namespace (weak: see docs/sandbox.md)",
    ),
    (
        "/proc/self/net/sockstat",
        "pages of buffers, counted for the host; the counts of sockets are compared below",
    ),
    (
        "/proc/self/net/protocols",
        "memory of buffers, counted for the host",
    ),
    (
        "/proc/self/net/ptype",
        "addresses of the kernel, hidden or not",
    ),
    (
        "/proc/self/net/tcp",
        "inode numbers and timers of the runtime API's connection, whose port on one side is random",
    ),
    (
        "/proc/self/net/unix",
        "inode numbers, given out for the whole host",
    ),
    (
        "/proc/self/net/netlink",
        "inode numbers, given out for the whole host",
    ),
    (
        "/proc/self/net/packet",
        "inode numbers, given out for the whole host",
    ),
    (
        "/proc/self/net/if_inet6",
        "none on the loopback interface but its number",
    ),
    ("/proc/self/net/rt_cache", "counters of the host"),
    ("/proc/sys/kernel/random", "random"),
    (
        "/proc/sys/kernel/ns_last_pid",
        "the last pid of this sandbox: one for each process that Python has started",
    ),
    ("/proc/sys/kernel/pty", "the host's terminals"),
    ("/proc/sys/kernel/perf_event", "the host's"),
    ("/proc/sys/fs/dentry-state", "the host's caches"),
    ("/proc/sys/fs/inode-nr", "the host's caches"),
    ("/proc/sys/fs/inode-state", "the host's caches"),
    ("/proc/sys/fs/file-nr", "the host's files"),
    ("/proc/sys/fs/aio-nr", "the host's"),
    ("/proc/sys/fs/quota", "the host's"),
    ("/proc/sys/net/netfilter", "the host's counts"),
    ("/proc/self/ns/", "each sandbox has namespaces of its own"),
    ("/proc/key-users", "users by their host number"),
    ("/proc/locks", "inode numbers of the host's files"),
];

fn is_ignored(field: &str) -> bool {
    IGNORED.iter().any(|(name, _)| {
        field == *name
            || (field.starts_with(name)
                && (name.ends_with('/') || field[name.len()..].starts_with('/')))
    })
}

/// Lines of `/proc/self/status` that say something about the place, not about what the program happens to do.
fn standing(status: &str) -> Vec<String> {
    let moving = [
        "Vm",
        "Rss",
        "Hugetlb",
        "voluntary",
        "nonvoluntary",
        "x86_Thread",
        "untag",
    ];
    let lines = status
        .lines()
        .filter(|line| !moving.iter().any(|prefix| line.starts_with(prefix)));
    lines.map(str::to_owned).collect()
}

/// Mounts without the numbers that the kernel gives out: ids and device numbers of file systems without a device.
fn mounts(mountinfo: &str) -> Vec<String> {
    let line = |line: &str| {
        // Host users of the slot.
        let users = |option: &&str| !option.starts_with("uid=") && !option.starts_with("gid=");
        let options: Vec<&str> = line.split(',').filter(users).collect();
        let line = options.join(",");
        let words: Vec<&str> = line.split(' ').skip(3).collect();
        // `shared:N` and `master:N` are numbers, too.
        let words = words
            .iter()
            .map(|word| word.split(':').next().unwrap_or(word));
        words.collect::<Vec<_>>().join(" ")
    };
    mountinfo.lines().map(line).collect()
}

/// Sockets by kind, without the memory that the host's buffers take.
fn socket_counts(sockstat: &str) -> Vec<String> {
    let lines = sockstat.lines().map(|line| {
        line.split(" mem")
            .next()
            .unwrap_or(line)
            .split(" alloc")
            .next()
            .unwrap_or(line)
            .to_owned()
    });
    lines.collect()
}

/// What the control groups of a sandbox say, by hierarchy and file.
fn groups(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let list = std::fs::read_to_string(format!("/proc/{}/cgroup", sandbox.init.pid)).unwrap();
    let mut found = BTreeMap::new();
    for line in list.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        let root = match controllers {
            "" => PathBuf::from("/sys/fs/cgroup"),
            named if named.starts_with("name=") => continue,
            named => Path::new("/sys/fs/cgroup").join(named),
        };
        let directory = root.join(path.trim_start_matches('/'));
        // Groups that all sandboxes share are the host's.
        if !path.contains("rouse-test-") {
            continue;
        }
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                found.insert(format!("{controllers} {name}"), text);
            }
        }
    }
    found
}

/// Files of control groups that count: what is used at the moment, or was since the group was made. None of them is
/// visible inside of a sandbox; the node counts from where a sandbox began.
const COUNTING: &[&str] = &[
    "cgroup.procs",
    "tasks",
    "cgroup.stat",
    "cgroup.threads",
    "cpu.stat",
    "cpuacct",
    "memory.stat",
    "memory.numa_stat",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.memsw.usage_in_bytes",
    "memory.memsw.max_usage_in_bytes",
    "memory.kmem",
    "memory.failcnt",
    "memory.memsw.failcnt",
    "memory.oom_control",
    "memory.current",
    "memory.peak",
    "memory.events",
    "memory.pressure",
    "cpu.pressure",
    "io.pressure",
    "io.stat",
    "irq.pressure",
    "pids.events",
    "pids.peak",
    "pids.current",
    "memory.swap",
    "memory.zswap",
    "cgroup.pressure",
    "memory.pressure_level",
    "misc",
];

/// Everything that can be read in a sandbox that was used is as in one that is new.
pub fn a_used_sandbox_is_as_a_new_one(node: &Node) {
    // A new slot, and what its first sandbox sees.
    let (memory, other) = (101, 103);
    let fresh = sandbox(node, memory);
    let expected = ask(node, &fresh, "fields");
    // While the first one still lives, so that this one gets another slot. It leaves no remembered connections: its slot
    // would be refused for a minute.
    let used = sandbox(node, other);
    let script = SCRIPT.replace(
        "\"remembered connections\": (plant_time_wait",
        "\"remembered connections\": (plant_conntrack",
    );
    let script = script.replace(
        "\"IPv6 flow labels\": (plant_flow_label",
        "\"IPv6 flow labels\": (plant_conntrack",
    );
    let planted = node.run(&used, &["/usr/bin/python3", "-c", &script, "plant"]);
    assert!(planted.contains("planted"), "{planted}");
    let again = repurposed(node, used, memory);
    let limits = [groups(&fresh), groups(&again)];
    let found = ask(node, &again, "fields");

    let (expected, found) = (expected.as_object().unwrap(), found.as_object().unwrap());
    let mut differences = Vec::new();
    let names: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for name in names {
        let (one, other) = (expected.get(name), found.get(name));
        if one != other && !is_ignored(name) {
            differences.push(format!("{name}: {one:?} / {other:?}"));
        }
    }
    let texts = |name: &str, of: fn(&str) -> Vec<String>| {
        let text = |fields: &serde_json::Map<String, Value>| of(fields[name].as_str().unwrap());
        (text(expected), text(found))
    };
    for (name, of) in [
        ("/proc/self/status", standing as fn(&str) -> Vec<String>),
        ("/proc/self/mountinfo", mounts),
        ("/proc/self/net/sockstat", socket_counts),
    ] {
        let (one, other) = texts(name, of);
        if one != other {
            differences.push(format!("{name}: {one:#?} / {other:#?}"));
        }
    }
    for (file, value) in &limits[0] {
        let name = file.split(' ').nth(1).unwrap();
        let counts = COUNTING.iter().any(|prefix| name.starts_with(prefix));
        if !counts && limits[1].get(file) != Some(value) {
            differences.push(format!("{file}: {value:?} / {:?}", limits[1].get(file)));
        }
    }
    assert!(expected.len() > 200, "{} fields", expected.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    fresh.destroy();
    again.destroy();
}
