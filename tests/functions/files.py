"""Open files with offsets and flags, directories, devices, and the whole of /tmp."""

import fcntl
import os
import stat

regular = os.open("/tmp/regular", os.O_CREAT | os.O_RDWR)
os.write(regular, b"0123456789")
os.lseek(regular, 4, os.SEEK_SET)
twin = os.dup(regular)
again = os.open("/tmp/regular", os.O_RDONLY)
appended = os.open("/tmp/appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
os.write(appended, b"a")
code = open(__file__, "rb", buffering=0)
code.read(10)
directory = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
path_only = os.open("/tmp", os.O_PATH)
devices = {name: os.open(f"/dev/{name}", os.O_RDWR if name != "urandom" else os.O_RDONLY) for name in ("null", "zero", "full", "urandom")}

os.makedirs("/tmp/tree/a/b")
with open("/tmp/tree/a/file", "w") as file:
    file.write("x" * 100_000)
os.chmod("/tmp/tree/a/file", 0o640)
os.utime("/tmp/tree/a/file", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
os.symlink("a/file", "/tmp/tree/link")
os.link("/tmp/tree/a/file", "/tmp/tree/hard")
os.chmod("/tmp/tree/a/b", 0o700)
with open("/tmp/tree/sparse", "wb") as file:
    file.seek(10_000_000)
    file.write(b"end")
with open("/tmp/tree/\udcff odd \n name", "w") as file:
    file.write("odd")


def handler(event, context):
    assert os.read(regular, 2) == b"45" and os.read(twin, 2) == b"67"
    assert os.read(again, 3) == b"012"
    os.write(appended, b"b")
    assert open("/tmp/appended").read() == "ab"
    wanted = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
    assert fcntl.fcntl(appended, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) == wanted
    assert code.tell() == 10 and code.read(5) == open(__file__, "rb").read()[10:15]
    assert "regular" in os.listdir(directory)
    os.stat("tree", dir_fd=path_only)
    assert os.read(devices["zero"], 4) == bytes(4) and os.read(devices["null"], 4) == b""
    assert len(os.read(devices["urandom"], 16)) == 16
    try:
        os.write(devices["full"], b"x")
        raise AssertionError("/dev/full took a byte")
    except OSError as error:
        assert error.errno == 28
    assert open("/tmp/tree/link").read() == "x" * 100_000
    found = os.stat("/tmp/tree/a/file")
    assert stat.S_IMODE(found.st_mode) == 0o640 and found.st_mtime_ns == 1_100_000_000_987_654_321, found
    assert found.st_ino == os.stat("/tmp/tree/hard").st_ino and found.st_nlink == 2
    assert found.st_uid == os.getuid() and found.st_gid == os.getgid()
    assert stat.S_IMODE(os.stat("/tmp/tree/a/b").st_mode) == 0o700
    sparse = os.stat("/tmp/tree/sparse")
    assert sparse.st_size == 10_000_003 and sparse.st_blocks * 512 < 1_000_000, sparse
    assert open("/tmp/tree/\udcff odd \n name").read() == "odd"
    with open("/tmp/own", "x") as file:
        file.write("each instance has a /tmp of its own")
    return "ok"
