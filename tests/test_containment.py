"""Functions that try to take the host, or more of it than is theirs: contained, named, and the neighbours answer on."""

import threading

import pytest

from harness import leaks
from harness.node import wait_until
from harness.package import python

NEIGHBOUR = """
import os
def handler(event, context):
    with open('/tmp/own', 'w') as file:
        file.write('x' * 100000)
    print('neighbour', event, flush=True)
    return [event, os.listdir('/tmp')]
"""
# What an attempt says: the name of the error that it met, or `allowed`.
ATTEMPTS = """
import ctypes, errno, os, socket, stat
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return f'allowed: {result}' if result >= 0 else errno.errorcode[ctypes.get_errno()]

def write(path, text=b'1'):
    file = os.open(path, os.O_WRONLY)
    os.write(file, text)
    return 'allowed'

def read(path):
    os.read(os.open(path, os.O_RDONLY), 1)
    return 'allowed'

def handler(event, context):
    try:
        return str(eval(event))
    except OSError as error:
        return errno.errorcode[error.errno]
"""
ESCAPES = {
    "ptrace of init": "call(101, 16, 1, 0, 0)",
    "ptrace by seizing": "call(101, 0x4206, 1, 0, 0)",
    "memory of init": "write('/proc/1/mem')",
    "writing another's memory": "call(311, 1, ctypes.create_string_buffer(64), 1, ctypes.create_string_buffer(64), 1, 0)",
    "descriptor of another": "call(438, os.pidfd_open(1), 0, 0)",
    "mount": "os.makedirs('/tmp/m', exist_ok=True) or call(165, b'none', b'/tmp/m', b'tmpfs', 0, 0)",
    "bind mount": "call(165, b'/', b'/tmp', 0, 4096, 0)",
    "unmount": "call(166, b'/proc', 2)",
    "pivot_root": "call(155, b'/tmp', b'/tmp')",
    "chroot": "call(161, b'/tmp')",
    "fsopen": "call(430, b'tmpfs', 0)",
    "open_tree": "call(428, -100, b'/', 1)",
    "move_mount": "call(429, -100, b'/tmp', -100, b'/', 0)",
    "mount_setattr": "call(442, -100, b'/', 0, ctypes.create_string_buffer(32), 32)",
    "core pattern": "write('/proc/sys/kernel/core_pattern')",
    "modprobe path": "write('/proc/sys/kernel/modprobe')",
    "sysrq": "write('/proc/sysrq-trigger', b'h')",
    "own out-of-memory score": "write('/proc/self/oom_score_adj', b'-1000')",
    "uid map": "write('/proc/self/uid_map', b'0 0 1')",
    "kernel log": "write('/dev/kmsg')",
    "reading the kernel log": "call(103, 3, ctypes.create_string_buffer(64), 64)",
    "host memory": "read('/dev/mem')",
    "kernel image": "read('/proc/kcore')",
    "kvm": "read('/dev/kvm')",
    "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "vsock": "socket.socket(40, socket.SOCK_STREAM)",
    "crypto socket": "socket.socket(38, socket.SOCK_SEQPACKET)",
    "joining a keyring": "call(250, 1, 0)",
    "adding a key": "call(248, b'user', b'name', b'x', 1, -3)",
    "bpf": "call(321, 0, ctypes.create_string_buffer(bytes([1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]), 128), 128)",
    "userfaultfd": "call(323, 0)",
    "userfaultfd for user mode": "call(323, 1)",
    "userfaultfd device": "read('/dev/userfaultfd')",
    "io_uring": "call(425, 8, ctypes.create_string_buffer(120))",
    "perf": "call(298, ctypes.create_string_buffer(bytes([1, 0, 0, 0, 128]), 128), 0, -1, -1, 0)",
    "setns of init": "call(308, os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
    "setns of itself": "call(308, os.open('/proc/self/ns/net', os.O_RDONLY), 0)",
    "user namespace": "call(272, 0x10000000)",
    "mount namespace": "call(272, 0x20000)",
    "clone into a namespace": "call(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "device node": "call(133, b'/tmp/mem', stat.S_IFCHR | 0o666, os.makedev(1, 1))",
    "block device": "call(133, b'/tmp/disk', stat.S_IFBLK | 0o666, os.makedev(254, 0))",
    "file handle": "call(304, -100, ctypes.create_string_buffer(64), 0)",
    "kernel module": "call(175, ctypes.create_string_buffer(64), 64, b'')",
    "kernel module from a file": "call(313, 0, b'', 0)",
    "kexec": "call(246, 0, 0, 0, 0)",
    "reboot": "call(169, 0xfee1dead, 672274793, 0, 0)",
    "swap": "call(167, b'/tmp/x', 0)",
    "clock": "call(227, 0, ctypes.create_string_buffer(16))",
    "host name": "call(170, b'x', 1)",
    "ports": "call(172, 3)",
    "accounting": "call(163, 0)",
    "fanotify": "call(300, 0, 0)",
    "priority": "os.nice(-20)",
}


@pytest.fixture(scope="module")
def neighbour(node):
    return node.deploy(python(NEIGHBOUR), name="neighbour").ready()


@pytest.fixture(scope="module")
def prisoner(node):
    return node.deploy(python(ATTEMPTS), name="prisoner").ready()


def greet(neighbour, number):
    assert neighbour.call(number) == [number, ["own"]]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out(prisoner, neighbour, name):
    for path in ("cold", "restore", "fork"):
        reply = prisoner.invoke(ESCAPES[name], path)
        assert reply.status == 200, reply
        # Refused by the kernel, or ended by it for having asked: then the caller is told of the signal.
        refused = reply.error is None and reply.json in errors()
        ended = reply.error is not None and "signal: bad system call" in reply.json["errorMessage"]
        assert refused or ended, reply
    greet(neighbour, name)


def errors():
    import errno

    return set(errno.errorcode.values())


HARM = {
    "fork bomb": (
        """
        import os
        def handler(event, context):
            print('begun', flush=True)
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        """,
        {"Timeout": 3},
        {"Sandbox.Timedout"},
    ),
    "memory hog": (
        """
        def handler(event, context):
            print('begun', flush=True)
            held = []
            while True:
                held.append(bytearray(b'x') * (1 << 20))
        """,
        {"MemorySize": 128},
        # Python may see the limit itself, if the kernel refuses instead of killing.
        {"Runtime.OutOfMemory", "MemoryError"},
    ),
    "many hogs": (
        """
        import os
        def handler(event, context):
            print('begun', flush=True)
            while True:
                if os.fork() == 0:
                    held = []
                    while True:
                        held.append(bytearray(b'x') * (1 << 20))
                os.wait()
        """,
        {"MemorySize": 128, "Timeout": 3},
        {"Runtime.OutOfMemory", "Sandbox.Timedout", "Runtime.ExitError"},
    ),
    "disk filler": (
        """
        import os
        def handler(event, context):
            print('begun', flush=True)
            block = b'x' * (1 << 20)
            for number in range(1 << 30):
                for directory in ('/tmp', '/var/tmp', '/dev/shm', '/var/task', '/'):
                    try:
                        with open(f'{directory}/{number}', 'wb') as file:
                            while True:
                                file.write(block)
                    except OSError:
                        pass
        """,
        {"MemorySize": 256, "Timeout": 4},
        {"Sandbox.Timedout", "Runtime.OutOfMemory"},
    ),
    "one that ignores signals": (
        """
        import signal, time
        def handler(event, context):
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            print('begun', flush=True)
            while True:
                time.sleep(1000)
        """,
        {"Timeout": 1},
        {"Sandbox.Timedout"},
    ),
    "one that prints without end": (
        """
        import os
        def handler(event, context):
            print('begun', flush=True)
            while True:
                os.write(1, b'x' * 4095 + b'\\n')
        """,
        {"Timeout": 3},
        {"Sandbox.Timedout"},
    ),
    "one that fills its output with one line": (
        """
        import os
        def handler(event, context):
            print('begun', flush=True)
            while True:
                os.write(1, b'x' * 65536)
        """,
        {"Timeout": 3},
        {"Sandbox.Timedout"},
    ),
    "threads without end": (
        """
        import threading, time
        def handler(event, context):
            print('begun', flush=True)
            while True:
                try:
                    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
                except RuntimeError:
                    pass
        """,
        {"Timeout": 3},
        {"Sandbox.Timedout", "Runtime.OutOfMemory"},
    ),
}


@pytest.mark.parametrize("path", ("cold", "restore"))
@pytest.mark.parametrize("name", HARM)
def test_harm_stays_inside(node, neighbour, name, path):
    source, members, expected = HARM[name]
    function = node.deploy(python(source), **members).ready()
    failures = []
    thread = threading.Thread(target=lambda: failures.append(function.failure({}, path)))
    thread.start()
    greeted = 0
    while thread.is_alive():
        greet(neighbour, greeted)
        greeted += 1
    thread.join()
    assert greeted > 0
    assert failures and failures[0]["errorType"] in expected, failures
    # It could be called again, and what it made is gone.
    wait_until(lambda: function.describe()["instances"]["busy"] == 0, "its instance has ended")
    if name == "one that prints without end":
        # It is read as fast as it may log, so that few lines are dropped, or none.
        wait_until(lambda: any("x" * 4095 in line for line in function.logs()), "what it printed is in its log")
    greet(neighbour, "after")
    wait_until(lambda: "neighbour after" in neighbour.logs(), "the neighbour's log goes on")
    function.delete()


def test_nothing_is_left(node, neighbour, prisoner):
    for function in (neighbour, prisoner):
        function.delete()
    gone = {"python3", "node"}.isdisjoint
    wait_until(
        lambda: leaks.held(node)["code"] == [] and gone(leaks.held(node)["processes"]),
        lambda: f"nothing is held: {leaks.held(node)}",
    )
