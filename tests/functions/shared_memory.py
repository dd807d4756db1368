"""memfd, shared anonymous memory, files in /dev/shm and /tmp: content, sharing between mappings, seals, offsets."""

import ctypes
import fcntl
import mmap
import os

fd = os.memfd_create("tested", os.MFD_ALLOW_SEALING)
os.write(fd, b"content of a memfd" + bytes(8192))
os.lseek(fd, 3, os.SEEK_SET)
one = mmap.mmap(fd, 8192)
two = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
copy = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
copy[0:7] = b"private"
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

anonymous = mmap.mmap(-1, 1 << 20)
anonymous[0:6] = b"shared"
anonymous[-4:] = b"tail"

shm = os.open("/dev/shm/file", os.O_CREAT | os.O_RDWR) if os.path.isdir("/dev/shm") else None
scratch = os.open("/tmp/mapped", os.O_CREAT | os.O_RDWR)
os.ftruncate(scratch, 4096)
mapped = mmap.mmap(scratch, 4096, mmap.MAP_PRIVATE)
if shm is not None:
    os.close(shm)
    os.unlink("/dev/shm/file")


def handler(event, context):
    assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    assert os.read(fd, 4) == b"tent"
    assert os.fstat(fd).st_size == 8210
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK
    assert copy[0:7] == b"private" and one[0:7] == b"content"
    one[0:7] = b"changed"
    assert two[0:7] == b"changed" and os.pread(fd, 7, 0) == b"changed" and copy[0:7] == b"private"
    assert anonymous[0:6] == b"shared" and anonymous[-4:] == b"tail" and anonymous[5000] == 0
    # Shared with children, as shared memory is.
    pid = os.fork()
    if pid == 0:
        anonymous[0:6] = b"CHILD!"
        one[0:7] = b"CHILD!!"
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert anonymous[0:6] == b"CHILD!" and two[0:7] == b"CHILD!!"
    mapped[0] = 1
    return "ok"
