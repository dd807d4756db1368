"""The processes of a node, by what they are, for tests that kill them."""

import contextlib
from pathlib import Path

from . import leaks


def _status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def by_kind(node):
    """Pids of all processes of a node: `init`, `blank`, `instance`, `template`, `spawner`, each in ascending order."""
    found = {"init": [], "blank": [], "instance": [], "template": [], "spawner": []}
    for pid, comm in leaks.processes(node):
        with contextlib.suppress(OSError, KeyError):
            status = _status(pid)
            if status["State"].startswith("Z"):
                continue
            inside = status["NSpid"].split()
            if int(status["PPid"]) == node.process.pid and comm == "rouse-spawner":
                kind = "spawner"
            elif len(inside) == 1:
                # What the spawner has just made bears its name still.
                kind = "template" if comm == "rouse-template" else None
            elif inside[-1] == "1":
                kind = "init"
            elif inside[-1] == "2":
                is_function = b"bootstrap" in Path(f"/proc/{pid}/cmdline").read_bytes()
                kind = "instance" if is_function else "blank"
            else:
                kind = None
            if kind:
                found[kind].append(pid)
    pid = pager(node)
    return {**found, "pager": [pid] if pid else []}


def keeper(node):
    """Pid of the node's keeper."""
    return next((pid for pid, _ in _descendants(node, "rouse-keeper")), None)


def pager(node):
    """Pid of the node's pager."""
    for pid, parent in _descendants(node, "rouse-pager"):
        with contextlib.suppress(OSError, KeyError):
            if int(_status(parent)["PPid"]) == node.process.pid:
                return pid
    return None


def _descendants(node, name):
    """Pids with this name, and their parents'."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, KeyError):
                status = _status(entry.name)
                if status["Name"] == name and not status["State"].startswith("Z"):
                    yield int(entry.name), int(status["PPid"])
