"""Pipes with what is in them, their flags and sizes, and half-closed ones."""

import fcntl
import os

plain = os.pipe()
os.write(plain[1], b"some bytes")

full = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
content = bytes(range(256)) * 1024
size = 0
try:
    while True:
        size += os.write(full[1], content[size:] or content)
except BlockingIOError:
    pass

small = os.pipe()
fcntl.fcntl(small[1], 1031, 4096)  # F_SETPIPE_SZ

ended = os.pipe()
os.write(ended[1], b"last words")
os.close(ended[1])

deaf = os.pipe()
os.close(deaf[0])

copy = os.dup(plain[0])
os.set_inheritable(copy, True)


def handler(event, context):
    assert os.read(plain[0], 4) == b"some"
    assert os.read(copy, 100) == b" bytes"
    assert not os.get_inheritable(plain[0]) and os.get_inheritable(copy)
    got = b""
    while len(got) < size:
        got += os.read(full[0], 1 << 20)
    assert got == (content * 2)[:size], len(got)
    try:
        os.read(full[0], 1)
        raise AssertionError("the pipe should be empty and not block")
    except BlockingIOError:
        pass
    assert fcntl.fcntl(small[0], 1032) == 4096  # F_GETPIPE_SZ
    os.write(small[1], b"x")
    assert os.read(small[0], 2) == b"x"
    assert os.read(ended[0], 100) == b"last words" and os.read(ended[0], 100) == b""
    try:
        os.write(deaf[1], b"x")
        raise AssertionError("nobody reads this pipe")
    except BrokenPipeError:
        pass
    return "ok"
