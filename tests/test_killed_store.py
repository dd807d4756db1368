"""The node is killed while snapshots are stored anew, collected and moved: what is on disk is whole, and nothing is left over."""

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import struct
import subprocess
import termios
import threading
import time
from pathlib import Path

import requests

from harness import leaks, victims
from harness.node import PATIENCE, ROUSE, wait_until
from harness.package import python
from harness.tiers import MIB, wait_for
from test_store import command

ROUNDS = 6
PIDFD_GETFD = 438
FUNCTIONS = 3

# 12 MiB: enough of it besides the working set that it is worth storing it anew.
SOURCE = """
import hashlib
import random

SEED = {seed}
data = bytearray(random.Random(SEED).randbytes(12 << 20))
digests = [hashlib.blake2b(data[at:at + 4096]).digest() for at in range(0, len(data), 4096)]

def handler(event, context):
    for page in event["pages"]:
        assert hashlib.blake2b(data[page * 4096:(page + 1) * 4096]).digest() == digests[page], page
        data[page * 4096] ^= 1
    return SEED
"""


class Round:
    """Calls that make the node store, learn and move; and a collector beside it. Ends with the node."""

    def __init__(self, node, functions, randomness):
        self.node = node
        self.functions = functions
        self.seeds = [randomness.random() for _ in functions]
        self.limit = randomness.randrange(4, 60)
        self.kills_collectors = randomness.random() < 0.5
        self.answered = 0
        self.changed = threading.Condition()
        self.is_over = threading.Event()
        self.wrong = []

    def call(self, number):
        randomness = random.Random(self.seeds[number])
        while not self.is_over.is_set():
            # Another part each few calls, so that what is known to be needed changes.
            first = randomness.randrange(0, 2500)
            event = {"pages": list(range(first, first + 500, randomness.randrange(1, 5)))}
            for _ in range(3):
                try:
                    reply = self.functions[number].invoke(event)
                except (requests.exceptions.RequestException, OSError):
                    # The node was killed.
                    return
                with self.changed:
                    self.answered += 1
                    self.changed.notify_all()
                if reply.status != 200 or reply.error or reply.json != number:
                    self.wrong.append((number, repr(reply)))
                    return

    def collect(self):
        """`rouse gc` beside the node; some are killed, too."""
        while not self.is_over.is_set():
            command = [ROUSE, "gc", "--state-dir", self.node.state, "--json"]
            collector = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if self.kills_collectors:
                before = self.answered
                with self.changed:
                    self.changed.wait_for(lambda: self.answered > before or self.is_over.is_set(), 10)
                collector.kill()
            collector.wait()

    def run(self):
        threads = [threading.Thread(target=self.call, args=(number,)) for number in range(len(self.functions))]
        threads.append(threading.Thread(target=self.collect))
        for thread in threads:
            thread.start()
        with self.changed:
            self.changed.wait_for(lambda: self.answered >= self.limit or self.wrong, 120)
        self.node.kill()
        self.is_over.set()
        with self.changed:
            self.changed.notify_all()
        for thread in threads:
            thread.join()
        # A collector may have been started between: it is over, too.
        assert self.wrong == []
        assert self.answered >= self.limit


def check(node, functions, what):
    """What a killed node has left is whole, and its successor serves."""
    wait_until(lambda: not leaks.processes(node), lambda: f"all are gone: {leaks.processes(node)}")
    _, report = command(node, "fsck")
    assert report["affected"] == [] and report["damages"] == [], (what, report)
    node.start()
    for seed, function in enumerate(functions):
        snapshot = function.snapshot()
        assert snapshot["state"] == "ready", (what, snapshot)
        assert function.call({"pages": list(range(0, 3072))}, "restore") == seed, what


def check_rubbish(node, functions):
    """Ends the node. What a killed writer has left goes at once, and nothing is left that nobody needs."""
    node.stop()
    assert command(node, "gc")[0] == 0
    code, report = command(node, "gc")
    assert (code, report["freedBytes"]) == (0, 0), report
    code, report = command(node, "fsck")
    assert code == 0 and not report["damages"], report
    assert leaks.temporary(node) == []
    named = {path.name for path in (node.state / "snapshots").iterdir() if not path.name.startswith("@")}
    assert named == {function.name for function in functions}, named


def deploy(node):
    return [node.deploy(python(SOURCE.replace("{seed}", str(seed))), name=f"f{seed}").ready() for seed in range(FUNCTIONS)]


def test_killed_while_snapshots_are_moved(own_node):
    randomness = random.Random(5)
    # Room for two of three, and each is let go of when it was not called for a second.
    node = own_node(memory_dram_bytes=28 * MIB, memory_compressed_bytes=8 * MIB, memory_idle_s=1)
    functions = deploy(node)
    for number in range(ROUNDS):
        Round(node, functions, randomness).run()
        check(node, functions, number)
    check_rubbish(node, functions)


def owners(paths):
    """Who has one of these locked for itself alone: pids."""
    inodes = {os.stat(path).st_ino for path in paths}
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        # Number, kind, ADVISORY, READ or WRITE, pid, MAJOR:MINOR:INODE; who waits has an arrow behind the number.
        fields = line.split()
        if fields[1] == "FLOCK" and fields[3] == "WRITE" and int(fields[5].split(":")[2]) in inodes:
            found.add(int(fields[4]))
    return found


def is_stopped(pid):
    return all(Path(task, "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def stop_while(find):
    """Stops the process that `find` finds at a moment at which it finds it, and returns it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in find():
            # It may be a collector that has ended.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(pid, signal.SIGSTOP)
                wait_until(lambda pid=pid: is_stopped(pid), "it is stopped")
                if pid in find():
                    return pid
                os.kill(pid, signal.SIGCONT)
    raise AssertionError("it was never found in the middle of it")


def test_killed_while_it_stores_anew(own_node):
    """A snapshot's directory is locked by who writes other files for it, and what is written has a temporary name."""
    randomness = random.Random(7)
    node = own_node(memory_dram_bytes=1024 * MIB)
    functions = deploy(node)
    for number in range(3):
        is_over = threading.Event()

        def call(function, seed):
            choice = random.Random(seed)
            while not is_over.is_set():
                first = choice.randrange(0, 2500)
                with contextlib.suppress(requests.exceptions.RequestException, OSError):
                    function.invoke({"pages": list(range(first, first + 500, choice.randrange(1, 5)))})

        def find():
            writing = any((node.state / "packs").glob(".tmp-*"))
            return owners((node.state / "snapshots").glob("f*/*/")) & {node.process.pid} if writing else ()

        threads = [threading.Thread(target=call, args=(function, randomness.random())) for function in functions]
        for thread in threads:
            thread.start()
        try:
            stop_while(find)
            node.kill()
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert any((node.state / "packs").glob(".tmp-*"))
        check(node, functions, number)
    check_rubbish(node, functions)


def test_killed_while_rubbish_is_collected(own_node):
    """The store is locked by who collects; the node serves meanwhile."""
    node = own_node(memory_dram_bytes=1024 * MIB)
    functions = deploy(node)
    lock = node.state / "store.lock"
    for number in range(3):
        rubbish = node.deploy(python(SOURCE.replace("{seed}", "9")), name="rubbish").ready()
        rubbish.delete()
        is_over = threading.Event()

        def collect():
            while not is_over.is_set():
                command = [ROUSE, "gc", "--state-dir", node.state, "--json"]
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            pid = stop_while(lambda: owners([lock]))
            # The node while another has locked the store, and then this one in the middle of it.
            node.kill()
            is_over.set()
            os.kill(pid, signal.SIGKILL)
        finally:
            is_over.set()
            collector.join()
        check(node, functions, number)
    check_rubbish(node, functions)


def has_requests(pid):
    """Whether a process has been sent something that it has not taken."""
    pidfd = os.pidfd_open(pid)
    try:
        for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
            if not os.readlink(entry).startswith("socket:"):
                continue
            copy = ctypes.CDLL(None).syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
            assert copy >= 0
            try:
                if struct.unpack("i", fcntl.ioctl(copy, termios.FIONREAD, bytes(4)))[0] > 0:
                    return True
            finally:
                os.close(copy)
        return False
    finally:
        os.close(pidfd)


def test_killed_while_pages_leave_memory(own_node):
    """The pager is stopped, and asked to let pages go. Then it is killed, or the node is, and the pager after it."""
    node = own_node(memory_dram_bytes=1024 * MIB, memory_compressed_bytes=0, memory_idle_s=1)
    functions = deploy(node)
    for number, kills_node in enumerate((False, True, False)):
        for seed, function in enumerate(functions):
            assert function.call({"pages": list(range(0, 3072))}, "restore") == seed
        pager = victims.pager(node)
        os.kill(pager, signal.SIGSTOP)
        wait_until(lambda pager=pager: is_stopped(pager), "it is stopped")
        wait_until(lambda pager=pager: has_requests(pager), "it is asked to let pages go")
        if kills_node:
            node.kill()
        os.kill(pager, signal.SIGKILL)
        if kills_node:
            check(node, functions, number)
        else:
            # Another pager does what this one was asked for.
            for function in functions:
                wait_for(function, "stored")
            assert victims.pager(node) != pager
    for seed, function in enumerate(functions):
        assert function.call({"pages": list(range(0, 3072))}, "restore") == seed
    check_rubbish(node, functions)
