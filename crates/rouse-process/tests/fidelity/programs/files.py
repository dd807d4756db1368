"""Open files: offsets and flags, what duplicates share, directories, devices, memfds, watches."""
from prelude import *

with open("/tmp/log", "wb") as new:
    new.write(b"0123456789" * 10)
append = os.open("/tmp/log", os.O_WRONLY | os.O_APPEND)
middle = os.open("/tmp/log", os.O_RDWR)
os.lseek(middle, 50, os.SEEK_SET)
shared = os.dup(middle)
read_only = os.open("/usr/lib/os-release", os.O_RDONLY)
os.read(read_only, 7)
rest = os.pread(read_only, 1000, 7)
os.mkdir("/tmp/secret", 0o700)
with open("/tmp/secret/none", "wb") as new:
    new.write(b"nobody may open this")
unreadable = os.open("/tmp/secret/none", os.O_RDONLY)
os.chmod("/tmp/secret/none", 0)
directory = os.open("/tmp/secret", os.O_RDONLY | os.O_DIRECTORY)
path_only = os.open("/tmp/secret", os.O_PATH)
devices = {name: os.open(f"/dev/{name}", os.O_RDWR) for name in ["null", "zero", "full", "urandom"]}
synchronous = os.open("/tmp/log", os.O_WRONLY | os.O_DSYNC | os.O_NONBLOCK)
proc = os.open("/proc/self/status", os.O_RDONLY)
module = open("/var/task/prelude.py")
module.readline()
nameless = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)
os.write(nameless, b"without a name")
removed = os.open("/tmp/removed", os.O_RDWR | os.O_CREAT)
os.write(removed, b"removed meanwhile")
os.unlink("/tmp/removed")
memory = os.memfd_create("my memory", os.MFD_ALLOW_SEALING)
os.ftruncate(memory, 10 * PAGE + 7)
os.pwrite(memory, b"in the middle", 5 * PAGE)
os.lseek(memory, 123, os.SEEK_SET)
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
fcntl.fcntl(memory, F_ADD_SEALS, 2 | 4)
sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.write(sealed, b"for ever")
fcntl.fcntl(sealed, F_ADD_SEALS, 1 | 2 | 4 | 8)
with open("/tmp/blocks", "wb") as new:
    new.write(b"a" * PAGE + b"b" * PAGE)
direct = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path in ["/tmp/blocks", "/usr/bin/python3", "/var/task/main.py"]}
os.lseek(direct["/tmp/blocks"], PAGE, os.SEEK_SET)
inotify = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir("/tmp/watched")
removed_watch = call(libc.inotify_add_watch(inotify, b"/tmp/secret", 0x100))
watch = call(libc.inotify_add_watch(inotify, b"/tmp/watched", 0x100 | 0x200))
call(libc.inotify_rm_watch(inotify, removed_watch))
os.read(inotify, 1000)
# On the root, which is an overlay; and on the function's code, which is not.
everywhere = libc.inotify_init1(os.O_NONBLOCK)
elsewhere = [call(libc.inotify_add_watch(everywhere, path, mask))
             for path, mask in [(b"/usr/share", 0x400), (b"/usr/lib/os-release", 0x20), (b"/var/task/prelude.py", 0x20)]]
locked = os.open("/tmp/locked", os.O_RDWR | os.O_CREAT)


@check
def offsets_and_flags(me):
    equal(os.read(middle, 5), b"01234")
    equal(os.read(shared, 5), b"56789")
    os.write(append, b"at the end")
    equal(os.pread(middle, 100, 100), b"at the end")
    equal(os.read(read_only, 1000), rest)
    fails(errno.EBADF, lambda: os.write(read_only, b"x"))
    fails(errno.EBADF, lambda: os.read(append, 1))
    equal(fcntl.fcntl(append, fcntl.F_GETFL) & 0o7777, os.O_WRONLY | os.O_APPEND)
    equal(fcntl.fcntl(synchronous, fcntl.F_GETFL) & (os.O_DSYNC | os.O_NONBLOCK), os.O_DSYNC | os.O_NONBLOCK)
    equal(module.readline() != "", True)


@check
def files_without_a_cache(me):
    for path, fd in direct.items():
        equal(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT, os.O_DIRECT)
        with open(path, "rb") as same, mmap.mmap(-1, 2 * PAGE) as aligned:
            expected = same.read(PAGE)
            equal(os.preadv(fd, [memoryview(aligned)[:PAGE]], 0), len(expected))
            equal(aligned[:len(expected)], expected)
    equal(os.lseek(direct["/tmp/blocks"], 0, os.SEEK_CUR), PAGE)


@check
def files_that_could_not_be_opened_again(me):
    equal(os.read(unreadable, 100), b"nobody may open this")
    fails(errno.EACCES, lambda: os.open("/tmp/secret/none", os.O_RDONLY))


@check
def directories(me):
    equal(os.listdir(directory), ["none"])
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=path_only))
    fails(errno.EBADF, lambda: os.read(path_only, 1))
    equal(sorted(os.listdir(directory)), ["new", "none"])


@check
def harmless_devices(me):
    equal(os.read(devices["null"], 1), b"")
    equal(os.read(devices["zero"], 3), bytes(3))
    fails(errno.ENOSPC, lambda: os.write(devices["full"], b"x"))
    equal(len(os.read(devices["urandom"], 16)), 16)
    assert b"Pid:\t2\n" in os.pread(proc, 4096, 0)


@check
def files_without_a_name(me):
    equal(os.pread(nameless, 100, 0), b"without a name")
    equal(os.pread(removed, 100, 0), b"removed meanwhile")
    os.pwrite(nameless, me.encode(), 0)


@check
def memory_files(me):
    equal(os.fstat(memory).st_size, 10 * PAGE + 7)
    equal(os.pread(memory, 20, 5 * PAGE - 3), bytes(3) + b"in the middle" + bytes(4))
    equal(os.lseek(memory, 0, os.SEEK_CUR), 123)
    equal(fcntl.fcntl(memory, F_GET_SEALS), 2 | 4)
    fails(errno.EPERM, lambda: os.ftruncate(memory, 1))
    equal(os.pread(sealed, 100, 0), b"for ever")
    fails(errno.EPERM, lambda: os.pwrite(sealed, b"x", 0))
    fails(errno.EPERM, lambda: fcntl.fcntl(sealed, F_ADD_SEALS, 16))
    equal(os.readlink(f"/proc/self/fd/{memory}"), "/memfd:my memory (deleted)")
    os.pwrite(memory, me.encode(), 0)


@check
def watches_report(me):
    fails(errno.EAGAIN, lambda: os.read(inotify, 1000))
    os.close(os.open("/tmp/watched/new", os.O_CREAT))
    wd, mask, _, length = struct.unpack_from("iIII", os.read(inotify, 1000))
    equal((wd, mask), (watch, 0x100))
    os.mkdir("/tmp/not watched")
    fails(errno.EAGAIN, lambda: os.read(inotify, 1000))


@check
def watches_of_other_file_systems_report(me):
    with open(f"/proc/self/fdinfo/{everywhere}") as info:
        equal([f"inotify wd:{wd:x} " in info.read() or wd for wd in elsewhere[:1]], [True])
    for path, number in [("/usr/lib/os-release", 1), ("/var/task/prelude.py", 2)]:
        os.close(os.open(path, os.O_RDONLY))
        seen = []

        def reported():
            try:
                data = os.read(everywhere, 10000)
            except BlockingIOError:
                return False
            while data:
                wd, mask, _, length = struct.unpack_from("iIII", data)
                seen.append((wd, mask))
                data = data[16 + length:]
            return (elsewhere[number], 0x20) in seen
        until(reported)


@check
def nothing_else_is_open(me):
    own = {0, 1, 2, api.fileno(), append, middle, shared, read_only, unreadable, directory, path_only, synchronous, proc,
           module.fileno(), nameless, removed, memory, sealed, inotify, everywhere, locked, *direct.values(), *devices.values()}
    # One of them is the listing itself, and gone by now.
    equal({int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}, own)


@again
def it_is_all_its_own(me):
    equal(os.pread(nameless, len(me), 0), me.encode())
    equal(os.pread(memory, len(me), 0), me.encode())
    equal(os.stat("/tmp/log").st_size, 110)


serve()
