"""Two instances that live side by side: neither learns from locks or watches what the other one opens."""

import pytest
import requests

from harness.node import PATIENCE
from harness.package import python

PROBE = """
import ctypes, errno, fcntl, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
IN_ALL = 0xFFF
PATHS = ["/", "/usr/bin", "/usr/lib", os.path.realpath("/usr/bin/env"), "/etc", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf",
         "/dev", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/shm", "/tmp", "/proc", "/proc/version", "/proc/sys/kernel/osrelease", "/sys", "/run", "/var",
         "/var/task", "/var/task/app.py", "/var/runtime", sys.modules["__main__"].__file__]
LOCK = "hhqqi4x"
kept, names = [], {}
watch = None

def others_lock(descriptor):
    # Whoever holds a POSIX lock that would be in the way: asking needs no right to write.
    found = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(LOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
    return struct.unpack(LOCK, found)[0] != fcntl.F_UNLCK

def plant():
    global watch
    watch = libc.inotify_init1(os.O_NONBLOCK)
    for path in PATHS:
        number = libc.inotify_add_watch(watch, path.encode(), IN_ALL)
        assert number > 0, (path, ctypes.get_errno())
        names[number] = path
        descriptor = os.open(path, os.O_RDONLY)
        kept.append(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.isdir(path):
            fcntl.fcntl(descriptor, fcntl.F_SETLK, struct.pack(LOCK, fcntl.F_RDLCK, 0, 0, 0, 0))
    hear()
    return sorted(names.values())

def hear():
    heard = set()
    while True:
        try:
            data = os.read(watch, 65536)
        except BlockingIOError:
            return sorted(heard)
        while data:
            number, mask, cookie, length = struct.unpack_from("iIII", data)
            data = data[16 + length:]
            if number in names:
                heard.add(names[number])

def touch():
    locked = []
    for path in PATHS:
        descriptor = os.open(path, os.O_RDONLY)
        if os.path.isdir(path):
            os.listdir(path)
        else:
            os.pread(descriptor, 1, 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            assert error.errno == errno.EWOULDBLOCK
            locked.append(path)
        else:
            if others_lock(descriptor):
                locked.append(path)
        os.close(descriptor)
    return locked

def touch_in_a_child():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, "\\n".join(touch()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        found = file.read().split()
    os.wait()
    return found

def handler(event, context):
    return globals()[event["do"]]()
"""


def start(function):
    path = f"{function.node.endpoint}/rouse/v1/functions/{function.name}/instances"
    response = requests.post(path, json={}, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()["instances"][0]["id"]


def ask(function, instance, what):
    reply = function.invoke({"do": what}, x_rouse_instance=instance, x_amz_log_type="Tail")
    assert reply.status == 200 and reply.error is None, reply
    return reply.json


@pytest.fixture(scope="module")
def functions(node):
    made = [node.deploy(python(PROBE)).ready() for _ in range(2)]
    yield made
    for function in made:
        function.delete()


def test_locks_and_watches_are_seen_inside_only(functions):
    one, other = functions
    spy = start(one)
    planted = ask(one, spy, "plant")
    assert len(planted) > 20
    # In the same sandbox all of it is seen: what nobody could see would prove nothing.
    locked = ask(one, spy, "touch_in_a_child")
    assert set(locked) == set(planted), set(planted) - set(locked)
    heard = ask(one, spy, "hear")
    # File systems of the kernel tell nothing of themselves to anybody.
    silent = {"/", "/proc", "/proc/version", "/proc/sys/kernel/osrelease", "/sys", "/run", "/var"}
    assert set(planted) - set(heard) <= silent, set(planted) - set(heard)
    # An instance of another function, and another one of the same.
    for victim in (other, one):
        assert ask(victim, start(victim), "touch") == []
        assert ask(one, spy, "hear") == []
        # On each way to boot that a request may take.
        for path in ("cold", "restore", "fork", "parked"):
            reply = victim.invoke({"do": "touch"}, boot=path, x_amz_log_type="Tail")
            assert reply.status == 200 and reply.error is None, reply
            assert reply.json == [], path
            assert ask(one, spy, "hear") == [], path
