"""`rouse pager`: machines of another VMM get their memory from it.

The client does what Firecracker does: maps regions, registers them for missing pages, and sends JSON with the userfaultfd
in one message.
"""

import json
import random
import signal
import socket
import subprocess
import sys

import pytest

from harness.node import ROUSE, wait_until

PAGE = 4096
PAGES = 2048

CLIENT = """
import array, ctypes, fcntl, json, mmap, os, socket, struct, sys

PAGE = 4096
path, sizes = sys.argv[1], json.loads(sys.argv[2])
device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
uffd = fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC | os.O_NONBLOCK)
fcntl.ioctl(uffd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 1 << 3, 0)))
maps, regions, offset = [], [], 0
for pages in sizes:
    memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(uffd, 0xC020AA00, bytearray(struct.pack("QQQQ", address, pages * PAGE, 1, 0)))
    regions.append({"base_host_virt_addr": address, "size": pages * PAGE, "offset": offset,
                    "page_size": PAGE, "page_size_kib": PAGE})
    maps.append(memory)
    offset += pages * PAGE
stream = socket.socket(socket.AF_UNIX)
stream.connect(path)
stream.sendmsg([json.dumps(regions).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd]))])

def page(number):
    for memory, pages in zip(maps, sizes):
        if number < pages:
            return memory[number * PAGE:(number + 1) * PAGE]
        number -= pages

for line in sys.stdin:
    words = line.split()
    if words[0] == "read":
        print(page(int(words[1])).hex(), flush=True)
    if words[0] == "remove":
        maps[0].madvise(mmap.MADV_DONTNEED, int(words[1]) * PAGE, int(words[2]) * PAGE)
        print("removed", flush=True)
"""


class Machine:
    """A client with its memory."""

    def __init__(self, path, sizes=(1024, 1024)):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(path), json.dumps(sizes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def ask(self, words):
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def read(self, number):
        return bytes.fromhex(self.ask(f"read {number}"))

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Pager:
    """A pager that serves, and what it says."""

    def __init__(self, path, *arguments):
        self.path = path
        self.process = subprocess.Popen(
            [ROUSE, "pager", "--serve", path, "--json", *arguments], stdout=subprocess.PIPE, text=True,
        )
        assert "serving" in self.process.stdout.readline()

    def report(self):
        text = ""
        while True:
            text += self.process.stdout.readline()
            try:
                return json.loads(text)
            except json.JSONDecodeError:
                assert self.process.poll() is None, text

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def serve(tmp_path):
    pagers = []

    def start(*arguments):
        pagers.append(Pager(tmp_path / "pager.sock", *arguments))
        return pagers[-1]

    yield start
    for pager in pagers:
        pager.close()


@pytest.fixture
def memory_file(tmp_path):
    """Half of it zeros, the rest text that can be compressed."""
    numbers = random.Random(7)
    words = [numbers.randbytes(16) for _ in range(50)]
    pages = [
        b"".join(numbers.choices(words, k=PAGE // 16)) if number // 64 % 2 else bytes(PAGE)
        for number in range(PAGES)
    ]
    path = tmp_path / "memory"
    path.write_bytes(b"".join(pages))
    return path, pages


def test_a_memory_file_is_served(serve, memory_file):
    path, pages = memory_file
    pager = serve("--memory-file", path)
    machines = [Machine(pager.path) for _ in range(3)]
    for machine in machines:
        for number in (0, 70, 2047, 1023, 1024, 100):
            assert machine.read(number) == pages[number]
        machine.ask("remove 70 4")
        assert machine.read(70) == machine.read(71) == bytes(PAGE)
        assert machine.read(100) == pages[100]
    for machine in machines:
        machine.end()
        report = pager.report()
        assert (report["demandedPages"], report["zeroedPages"], report["damagedPages"]) == (6, 2, 0)


def test_a_stored_memory_file_is_small_and_learns_what_is_touched(serve, memory_file, tmp_path):
    path, pages = memory_file
    store = ["--store-dir", tmp_path / "store"]
    output = subprocess.run(
        [ROUSE, "pager", "--store", "vm", "--memory-file", path, "--json", *store],
        check=True, capture_output=True, text=True,
    ).stdout
    stored = json.loads(output)
    assert stored["memoryBytes"] == PAGES * PAGE and stored["storedBytes"] < PAGES * PAGE / 3, stored
    path.unlink()

    pager = serve("--snapshot", "vm", *store)
    touched = [64, 70, 200, 201, 1985, 330]
    reports = []
    # The second one from behind: whatever it asks for first, the beginning is fetched ahead meanwhile.
    for order in (touched, sorted(touched, reverse=True)):
        machine = Machine(pager.path)
        for number in order:
            assert machine.read(number) == pages[number]
        machine.end()
        reports.append(pager.report())
    first, second = reports
    assert (first["prefetchedPages"], first["faults"]) == (0, len(touched)), reports
    assert second["prefetchedPages"] > 0, reports
    assert second["prefetchedPages"] + second["demandedPages"] == len(touched), reports


def test_a_machine_that_is_killed_leaves_the_pager_to_the_others(serve, memory_file):
    path, pages = memory_file
    pager = serve("--memory-file", path)
    one, other = Machine(pager.path), Machine(pager.path)
    assert one.read(70) == other.read(70) == pages[70]
    one.process.send_signal(signal.SIGKILL)
    one.end()
    assert pager.report()["demandedPages"] == 1
    assert other.read(80) == pages[80]
    other.end()
    assert pager.report()["demandedPages"] == 2


def test_garbage_is_refused_and_others_are_served(serve, memory_file, capfd):
    path, pages = memory_file
    pager = serve("--memory-file", path)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(pager.path))
        stream.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stream.recv(1) == b""
    wait_until(lambda: "no list of regions" in capfd.readouterr().err, lambda: "the reason is told")
    machine = Machine(pager.path)
    assert machine.read(90) == pages[90]
    machine.end()


def test_what_cannot_be_served_is_said_at_once(memory_file, tmp_path):
    path, _ = memory_file
    socket_path = tmp_path / "pager.sock"

    def failure(*arguments):
        done = subprocess.run([ROUSE, "pager", *arguments], capture_output=True, text=True)
        assert done.returncode != 0
        return done.stderr

    assert "No such file" in failure("--serve", socket_path, "--memory-file", tmp_path / "none")
    short = tmp_path / "short"
    short.write_bytes(b"x" * 5000)
    assert "whole pages" in failure("--serve", socket_path, "--memory-file", short)
    assert not socket_path.exists()
    regular = tmp_path / "regular"
    regular.write_text("precious")
    assert "in use" in failure("--serve", regular, "--memory-file", path)
    assert regular.read_text() == "precious"
