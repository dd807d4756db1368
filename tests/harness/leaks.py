"""What a node holds on the host. Counted by what bears its marks, because other nodes may run beside it."""

import collections
import contextlib
import os
import re
from pathlib import Path


def processes(node):
    """Processes of the node and of its sandboxes: by control group, by the state directory among the arguments, and by
    open control groups for the spawner, which hides its arguments."""
    marks = (f"/{node.cgroup}".encode(), str(node.state).encode())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            comm = (entry / "comm").read_text().strip()
            text = (entry / "cgroup").read_bytes() + (entry / "cmdline").read_bytes()
            if any(mark in text for mark in marks) or (comm == "rouse-spawner" and _has_open(entry, node.cgroup)):
                found.append((int(entry.name), comm))
    return sorted(found)


def _has_open(entry, name):
    for descriptor in os.scandir(entry / "fd"):
        with contextlib.suppress(OSError):
            if name in os.readlink(descriptor.path):
                return True
    return False


def cgroups(node):
    """Control groups that bear the node's name."""
    found = []
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(top, name) for name in names if node.cgroup in name]
    return sorted(found)


def mounts(node, pid="self"):
    """Mounts below the state directory, as a process sees them."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        return sorted(line.split(" ", 4)[4] for line in lines if str(node.folder) in line)
    return []


def namespaces(node):
    """Network, pid, mount, user, ipc and uts namespaces that the node's processes are in and we are not."""
    found = set()
    for kind in ("net", "pid", "mnt", "user", "ipc", "uts"):
        ours = os.readlink(f"/proc/self/ns/{kind}")
        for pid, _ in processes(node):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
        found.discard(ours)
    return sorted(found)


def temporary(node):
    """Files in the node's temporary directory, and unfinished ones in its state directory."""
    found = [str(path) for path in node.temporary.rglob("*")]
    for path in node.state.rglob("*"):
        if path.name.endswith((".new", ".tmp", ".part", ".old")) or path.name.startswith(".tmp"):
            found.append(str(path))
    return sorted(found)


def leftovers(node):
    """Everything that must not exist once the node has ended."""
    found = {
        "processes": processes(node),
        "cgroups": cgroups(node),
        "mounts": mounts(node),
        "temporary": temporary(node),
    }
    return {name: items for name, items in found.items() if items}


def descriptors(pids):
    """How many descriptors of each kind these processes have open: sockets, memory files, pidfds, ..."""
    found = collections.Counter()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    # Numbers of sockets, pipes and files say nothing about how many there are.
                    found[re.sub(r"\d+", "N", os.readlink(entry.path))] += 1
    return found


def anonymous_kib(pid):
    """Anonymous memory of a process, KiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def held(node):
    """How much a running node holds: grows while functions exist, and must come back when they are gone."""
    seen = 0
    for pid, comm in processes(node):
        # What the spawner makes bears its name at first, and may have ended.
        if comm == "rouse-spawner":
            with contextlib.suppress(OSError):
                seen += len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return {
        "processes": sorted(comm for _, comm in processes(node)),
        "cgroups": len(cgroups(node)),
        "mounts": seen,
        "namespaces": len(namespaces(node)),
        # Language templates stay: they are no function's.
        "code": sorted(
            path.name
            for kind in ("code", "packages", "snapshots")
            for path in (node.state / kind).glob("*")
            if path.name != "@templates"
        ),
    }
