"""What cannot be brought back fails the checkpoint with its name; the function is served cold."""

import re

import pytest

from harness.package import python

HANDLER = "\ndef handler(event, context): return 'served'\n"
OBSTACLES = {
    "child process": (
        # It gets its name at the end of execve, when its parent goes on already.
        "import subprocess; child = subprocess.Popen(['sleep', '1000'])\n"
        "while open(f'/proc/{child.pid}/comm').read() != 'sleep\\n': pass",
        r"process \d+ \(sleep\)",
    ),
    "pidfd": ("import os; fd = os.pidfd_open(os.getpid())", r"fd \d+: pidfd"),
    "packet pipe": ("import os; pipe = os.pipe2(os.O_DIRECT)", r"fd \d+: pipe in packet mode"),
    "named pipe": (
        "import os; os.mkfifo('/tmp/fifo'); fd = os.open('/tmp/fifo', os.O_RDWR)",
        r"named pipe",
    ),
    "file lock": (
        "import fcntl; f = open('/tmp/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)",
        r"fd \d+: file lock",
    ),
    "descriptors in flight": (
        "import socket, os; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0])",
        r"fd \d+: descriptors in flight",
    ),
    "unread inotify events": (
        "import ctypes; libc = ctypes.CDLL(None); fd = libc.inotify_init1(0)\n"
        "libc.inotify_add_watch(fd, b'/tmp', 0x100); open('/tmp/x', 'w').close()",
        r"fd \d+: inotify instance with unread events",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_obstacle_is_named(node, name):
    code, reason = OBSTACLES[name]
    function = node.deploy(python(code + HANDLER))
    snapshot = function.snapshot()
    assert snapshot["state"] == "failed", snapshot
    assert re.search(reason, snapshot["reason"]), snapshot["reason"]
    reply = function.invoke({})
    assert reply.json == "served" and reply.boot == "cold", reply
    assert reply.error is None
    # An idle instance is used again, as there is no cheaper way.
    assert function.invoke({}).boot in ("warm", "cold")


def test_io_uring_does_not_exist(node):
    function = node.deploy(
        python(
            """
            import ctypes, errno
            libc = ctypes.CDLL(None, use_errno=True)
            def handler(event, context):
                result = libc.syscall(425, 8, ctypes.create_string_buffer(120))
                return [result, errno.errorcode[ctypes.get_errno()]]
            """
        )
    ).ready()
    assert function.call({}, "restore") == [-1, "ENOSYS"]
